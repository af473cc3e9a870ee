//! The scenarios, in their order.

mod disruption;
mod install;
mod mesh;
mod policy;
mod rotation;
mod workloads;

use futures_util::future::LocalBoxFuture;

use crate::{
    cluster::Cluster,
    pods::{Spec, TestPod},
};

/// Something that a user of Weir does, or that happens to one.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    pub(crate) run: Run,
}

/// Does it; what it measured, for people.
pub(crate) type Run = fn(&mut Cluster) -> LocalBoxFuture<'_, anyhow::Result<Vec<String>>>;

macro_rules! scenarios {
    ($($name:literal: $what:literal => $run:path,)*) => {
        /// All of them.
        pub(crate) const ALL: &[Scenario] = &[$(Scenario { name: $name, what: $what, run: |cluster| Box::pin($run(cluster)) },)*];
    };
}

scenarios! {
    "install": "weir install, and weir check finds nothing wrong" => install::install,
    "enrol": "pods that run are enrolled without a restart, those that start before their first packet" => mesh::enrol,
    "wire": "between nodes a canary is on the link without the mesh, and not with it" => mesh::wire,
    "switch": "a pod that opts out, one that comes back under its name, one that is only observed" => mesh::switch,
    "services": "ClusterIP, headless, NodePort, session affinity, internalTrafficPolicy and trafficDistribution" => workloads::services,
    "probes": "probes of STRICT pods pass, plaintext from outside of the mesh does not" => workloads::probes,
    "kubectl": "exec, logs and port-forward of STRICT pods" => workloads::kubectl,
    "policy": "a policy's denial is seen by the client, in flows and in its status; nonsense is refused" => policy::policy_,
    "restart": "everything is restarted one after the other, and no connection fails" => disruption::restart,
    "agent-away": "while a node's agent is away pods of the mesh wait and others start" => disruption::agent_away,
    "taint": "a node that waits for its agent is freed once the agent is ready" => disruption::taint,
    "control-away": "without the control plane traffic goes on, and weir status says so" => disruption::control_away,
    "rotation": "the root is rotated under traffic" => rotation::rotation,
    "rollback": "weir rollback takes a namespace back to plaintext" => install::rollback,
    "uninstall": "weir uninstall leaves nothing, and applications keep running" => install::uninstall,
}

/// The port of the tests' servers.
pub(crate) const PORT: u16 = 7000;

/// A server that sends back what it gets, on the second node, and a client on the first; both ready, and enrolled if the
/// namespace is.
pub(crate) async fn pair(
    cluster: &Cluster,
    namespace: &str,
    in_mesh: bool,
) -> anyhow::Result<(TestPod, TestPod)> {
    let serve = ["echo-server", "--port", "7000"];
    let spec = |name, node| Spec {
        namespace,
        name,
        node,
        command: &serve,
        more: serde_json::Value::Null,
    };
    let [first, second] = &cluster.nodes;
    cluster.create_pod(&with_nothing(spec("server", second))).await?;
    cluster.create_pod(&with_nothing(spec("client", first))).await?;
    let server = cluster.ready(namespace, "server").await?;
    let client = cluster.ready(namespace, "client").await?;
    if in_mesh {
        cluster.enrolled(&[&server, &client], true).await?;
    }
    Ok((client, server))
}

/// Nothing is merged over the pod.
fn with_nothing(spec: Spec<'_>) -> Spec<'_> {
    Spec {
        more: serde_json::json!({}),
        ..spec
    }
}

/// An address and the servers' port.
pub(crate) fn at(pod: &TestPod) -> String {
    crate::pods::at(&pod.address, PORT)
}
