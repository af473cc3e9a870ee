//! Pods of one node that reach each other directly, and the policies that decide which of them may.

use std::net::{IpAddr, SocketAddr};

use serde_json::{Value, json};
use weir_lab::{
    Pod, PodSpec, Process, Spawn,
    config::{AgentConfig, SameNodeMode},
};
use weir_types::{FlowPath, TrafficDirection};

use crate::{Mesh, peers::python, run};

/// A mesh in which every pod refuses plaintext and pods of one node reach each other directly.
#[must_use]
pub fn mesh(name: &str) -> Mesh {
    mesh_with(name, |_| {})
}

/// As [`mesh`], with something more in the configuration.
#[must_use]
pub fn mesh_with(name: &str, change: impl Fn(&mut AgentConfig)) -> Mesh {
    Mesh::with(name, |config| {
        config.strict();
        config.same_node(SameNodeMode::Direct);
        change(config);
    })
}

/// An address and a port, as programs take them.
#[must_use]
pub fn at(host: impl Into<IpAddr>, port: u16) -> String {
    SocketAddr::new(host.into(), port).to_string()
}

/// Both addresses of a pod.
#[must_use]
pub fn both(pod: &Pod) -> [IpAddr; 2] {
    [pod.v4().into(), pod.v6().into()]
}

/// A policy for the pods with this label `app`: rules in the form of Istio's AuthorizationPolicy.
#[must_use]
pub fn policy(action: &str, app: &str, rules: &Value) -> Value {
    json!({
        "name": format!("{}-{app}", action.to_lowercase()), "namespace": "shop", "action": action, "rules": rules,
        "selector": { "matchLabels": { "app": app } },
    })
}

/// Rules that match connections of a service account of the lab's namespace `shop`.
#[must_use]
pub fn from(account: &str) -> Value {
    json!([{ "from": [source(account)] }])
}

/// As [`from`], to one port.
#[must_use]
pub fn from_to(account: &str, port: u16) -> Value {
    let to = json!([{ "operation": { "ports": [port.to_string()] } }]);
    json!([{ "from": [source(account)], "to": to }])
}

fn source(account: &str) -> Value {
    json!({ "source": { "principals": [format!("cluster.local/ns/shop/sa/{account}")] } })
}

impl Mesh {
    /// Makes these the policies of the first node, and waits until they are in force.
    ///
    /// # Panics
    /// When they are refused.
    pub fn set_policies(&mut self, policies: &[Value]) {
        self.change(|config| config.authorization_policies = policies.to_vec());
    }

    /// Changes the configuration of the first node and waits until it is in force.
    ///
    /// # Panics
    /// When it is refused.
    pub fn change(&mut self, change: impl FnOnce(&mut AgentConfig)) {
        let status = self.agents[0].reload(change).expect("a reload");
        assert_eq!(status.config.rejected, None);
    }

    /// Adds a pod to the first node, and tells its agent.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn add(&mut self, spec: PodSpec) -> Pod {
        let pod = self.lab.add_pod(spec).expect("a pod");
        self.change(|config| {
            config.workloads.push(pod.workload());
            config.pods.push(pod.config());
        });
        pod
    }

    /// Connects until the kernel lets a pod's connections to this destination go directly.
    ///
    /// # Panics
    /// When it does not, or a connection fails.
    pub fn learn(&self, client: &Pod, to: &str) {
        let address = to.parse().expect("an address and port");
        weir_lab::poll("a direct connection", weir_lab::PATIENCE, || {
            let line = run(client, ["connect", to, "--send", "x", "--read", "1"]).json()?;
            assert_eq!(line["connect"], "ok", "{line}");
            let flows = self.agent(client).flows()?;
            let direct = flows.iter().any(|flow| {
                flow.direction == TrafficDirection::Egress
                    && flow.path == FlowPath::Direct
                    && flow.source.pod.as_deref() == Some(&client.spec().name)
                    && flow.destination.address == address
            });
            Ok(direct.then_some(()))
        })
        .expect("a direct connection");
    }
}

/// Starts a client of `tests/peers/direct.py` in a pod or elsewhere.
///
/// # Panics
/// When it cannot be started.
#[must_use]
pub fn client(place: &impl Spawn, arguments: &[&str]) -> Process {
    let mut command = python("direct.py");
    command.args(arguments);
    place.spawn(command).expect("a client")
}
