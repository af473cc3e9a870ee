//! What the end-to-end tests share: a mesh of two nodes with agents, and questions about what was recorded.
#![allow(clippy::expect_used, reason = "a failed step of a test is its result")]

pub mod cluster;
pub mod direct;
pub mod istiod;
pub mod packet;
pub mod peers;
pub mod promtool;
pub mod sockets;
pub mod ztunnel;

use std::net::SocketAddr;

use serde_json::Value;
use weir_lab::{Agent, Finished, Lab, Pod, PodSpec, Process, Spawn as _, config::AgentConfig};
use weir_types::{Flow, FlowEvent, Identity, TrafficDirection};

/// Two nodes; `a` and `b` on the first, `c` and `d` on the second; an agent on each node.
///
/// All in namespace `shop`, each under a service account of its own name.
#[derive(Debug)]
pub struct Mesh {
    /// On node 1.
    pub a: Pod,
    /// On node 1.
    pub b: Pod,
    /// On node 2.
    pub c: Pod,
    /// On node 2.
    pub d: Pod,
    /// The agents, dropped before the lab.
    pub agents: Vec<Agent>,
    /// The lab.
    pub lab: Lab,
}

impl Mesh {
    /// With the lab's usual configuration.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self::with(name, |_| {})
    }

    /// With a changed configuration on both nodes.
    ///
    /// # Panics
    /// When it cannot be made; the message says why.
    #[must_use]
    pub fn with(name: &str, change: impl FnMut(&mut AgentConfig)) -> Self {
        let lab = Lab::builder(name).outside().build().expect("a lab");
        let pod = |node: &str, name: &str| lab.add_pod(PodSpec::new(node, "shop", name)).expect("a pod");
        let (a, b, c, d) = (
            pod("node1", "a"),
            pod("node1", "b"),
            pod("node2", "c"),
            pod("node2", "d"),
        );
        let agents = lab.start_agents_with(change).expect("agents");
        Self {
            a,
            b,
            c,
            d,
            agents,
            lab,
        }
    }

    /// The agent of a pod's node.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn agent(&self, pod: &Pod) -> &Agent {
        self.agents
            .iter()
            .find(|agent| agent.node() == pod.spec().node)
            .expect("an agent on the pod's node")
    }

    /// Waits for a pod's record of a connection with this event and destination port.
    ///
    /// # Panics
    /// When it does not come.
    #[must_use]
    pub fn flow(&self, pod: &Pod, direction: TrafficDirection, event: FlowEvent, port: u16) -> Flow {
        self.flow_where(pod, direction, event, port, |_| true)
    }

    /// As [`Mesh::flow`], with something more to ask of it.
    ///
    /// # Panics
    /// When it does not come.
    #[must_use]
    pub fn flow_where(
        &self,
        pod: &Pod,
        direction: TrafficDirection,
        event: FlowEvent,
        port: u16,
        also: impl Fn(&Flow) -> bool,
    ) -> Flow {
        let what = format!("{direction:?} {event:?} of {} to port {port}", pod.uid());
        let wanted = |flow: &Flow| {
            let end = match direction {
                TrafficDirection::Egress => &flow.source,
                TrafficDirection::Ingress => &flow.destination,
            };
            flow.direction == direction
                && flow.event == event
                && end.pod.as_deref() == Some(&pod.spec().name)
                && flow.destination.address.port() == port
                && also(flow)
        };
        self.agent(pod).wait_flow(&what, wanted).expect("a flow")
    }
}

/// The identity of a service account in the lab's namespace `shop`.
///
/// # Panics
/// When it is no name.
#[must_use]
pub fn identity(service_account: &str) -> Option<Identity> {
    Some(
        format!("spiffe://cluster.local/ns/shop/sa/{service_account}")
            .parse()
            .expect("an identity"),
    )
}

/// Waits until a program has printed this many JSON lines with a field, and gives them.
///
/// # Panics
/// When it does not.
#[must_use]
pub fn lines(program: &Process, field: &str, count: usize) -> Vec<Value> {
    let what = format!("{count} lines with '{field}'");
    weir_lab::poll(&what, weir_lab::PATIENCE, || {
        let text = program.stdout();
        let lines = String::from_utf8_lossy(&text);
        let found: Vec<Value> = lines
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .filter(|value: &Value| value.get(field).is_some())
            .collect();
        Ok((found.len() >= count).then_some(found))
    })
    .expect("lines")
}

/// Starts a test program in a pod and waits until it listens.
///
/// # Panics
/// When it does not.
#[must_use]
pub fn serve<const N: usize>(pod: &Pod, arguments: [&str; N]) -> (Process, SocketAddr) {
    let server = pod.testapp(arguments).expect("a server");
    let address = server.wait_listening().expect("a listening server");
    (server, address)
}

/// A connection of a pod to another's port, over which a byte goes each way; whatever comes of it.
///
/// # Panics
/// When the program that makes it cannot be started.
pub fn connect(from: &Pod, to: &Pod, port: u16) {
    let to = format!("{}:{port}", to.v4());
    let arguments = [
        "connect",
        &to,
        "--send",
        "x",
        "--read",
        "1",
        "--timeout-ms",
        "3000",
    ];
    drop(from.run_testapp(arguments).expect("a test program"));
}

/// Runs a test program in a pod to its end, whatever that is.
///
/// # Panics
/// When it cannot be started, or does not end.
#[must_use]
pub fn run<const N: usize>(pod: &Pod, arguments: [&str; N]) -> Finished {
    pod.run_testapp(arguments).expect("a test program")
}
