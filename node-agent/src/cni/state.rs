//! What the plugin decides by while the agent is away: which namespaces are in the mesh, as far as the agent can tell.
//!
//! An agent knows pods, not namespaces. A namespace counts as enabled while a pod of it is in the mesh, on any node; as disabled
//! while it has pods with addresses of their own, and none is. One without such pods is in neither list: its pods wait.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use weir_cni::decide::State;

use super::install::replace;
use crate::{agent::Agent, config::TunnelProtocol, mesh::Mesh};

/// How often it is looked whether there is something new to leave.
const INTERVAL: Duration = Duration::from_secs(1);
/// Of the file: it tells what runs on other nodes, and who may write it decides which pods start unprotected.
const MODE: u32 = 0o600;
/// The part of the agent that a fault is noted under.
const PART: &str = "CNI state file";

/// What a mesh says of namespaces.
#[must_use]
pub fn of(mesh: &Mesh) -> State {
    let mut state = State::default();
    for pod in mesh.local().values().filter(|pod| !pod.observed) {
        state.enabled.insert(pod.workload.identity.namespace().to_owned());
    }
    for workload in mesh.workloads() {
        let namespace = workload.identity.namespace();
        if workload.tunnel == TunnelProtocol::Hbone {
            state.enabled.insert(namespace.to_owned());
        } else if workload
            .addresses
            .iter()
            // A pod in its node's network has its node's addresses, and is in the mesh nowhere: it says nothing.
            .any(|address| mesh.workload(*address).is_some_and(|own| own.uid == workload.uid))
            && !state.disabled.contains(namespace)
        {
            state.disabled.insert(namespace.to_owned());
        }
    }
    state
        .disabled
        .retain(|namespace| !state.enabled.contains(namespace));
    state
}

/// Whether a pod of a namespace is in the mesh.
pub(super) fn is_enabled(mesh: &Mesh, namespace: &str) -> bool {
    let is_own = |workload: &crate::mesh::Workload| workload.identity.namespace() == namespace;
    let mut local = mesh.local().values();
    local.any(|pod| !pod.observed && is_own(&pod.workload))
        || mesh
            .workloads()
            .any(|own| own.tunnel == TunnelProtocol::Hbone && is_own(own))
}

/// Keeps the file up to date, for ever. What an earlier agent left stays until there is something to say.
pub async fn keep(agent: Arc<Agent>, file: PathBuf) {
    let mut ticks = tokio::time::interval(INTERVAL);
    let mut version = None;
    let mut written = None;
    loop {
        ticks.tick().await;
        if agent.unready().is_some() {
            continue;
        }
        let mesh = agent.node.mesh.load_full();
        if version == Some(mesh.version()) && file.exists() {
            continue;
        }
        let state = of(&mesh);
        if written.as_ref() != Some(&state) || !file.exists() {
            if let Err(error) = write(&file, &state) {
                let problem = format!(
                    "{}: {error}; pods that start while the agent is away wait",
                    file.display()
                );
                agent.fault(PART, Some(problem));
                continue;
            }
            written = Some(state);
        }
        agent.fault(PART, None);
        version = Some(mesh.version());
    }
}

fn write(file: &Path, state: &State) -> io::Result<()> {
    let text = serde_json::to_vec(state)?;
    replace(file, &text, MODE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_enabled_if_a_pod_of_it_is_and_unknown_if_nothing_says_so() {
        const CONFIG: &str = "
node: n1
trustDomain: cluster.local
ca: { dir: /ca }
workloads:
- { uid: w1, namespace: shop, addresses: [10.0.0.1], node: n1 }
- { uid: w2, namespace: shop, addresses: [10.0.0.2], node: n2, tunnel: NONE }
- { uid: w3, namespace: legacy, addresses: [10.0.0.3], node: n2, tunnel: NONE }
";
        let config = crate::config::parse("t.yaml".as_ref(), CONFIG).unwrap();
        let (mesh, _) = Mesh::new(&config, &Mesh::nothing(0)).unwrap();
        let state = of(&mesh);
        let names = |set: &std::collections::BTreeSet<String>| set.iter().cloned().collect::<Vec<_>>();
        assert_eq!(names(&state.enabled), ["shop"]);
        assert_eq!(names(&state.disabled), ["legacy"]);
    }
}
