//! Ends the open connections that a changed configuration forbids, and no others.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    sync::{Arc, Mutex, PoisonError},
};

use weir_abi::{Conn, ConnKind, FlowKey, HBONE_PORT};
use weir_policy::{Request, WorkloadPolicies};
use weir_types::{FlowPath, Identity, Reason, TrafficDirection};

use crate::{
    datapath::{
        PodHandle,
        sock_diag::{SockDiag, TcpSocket},
    },
    mesh::Mesh,
    node::{Node, Pod},
    policy::{self, Judgement},
};

/// Connections whose end is remembered until the kernel reports it. More than end at once is a mass that nobody reads one
/// by one.
const REMEMBERED: usize = 65_536;

/// Why connections that never touched the agent were ended, by their client's socket cookie.
#[derive(Debug, Default)]
pub struct Ended(Mutex<HashMap<u64, Judgement>>);

/// What an open connection of a pod is, as far as its server's socket tells.
enum Inbound {
    /// From a pod of this node, whose socket registered it.
    Direct(Conn),
    /// From elsewhere, not over mutual TLS.
    Plaintext,
}

/// Ends what the configuration in force forbids, of all pods. Blocks: some milliseconds a pod.
pub fn all(node: &Node) {
    let mesh = node.mesh.load_full();
    for pod in node.pods() {
        one(node, &mesh, &pod);
    }
}

/// Ends what it forbids of one pod.
pub fn one(node: &Node, mesh: &Mesh, pod: &Arc<Pod>) {
    let Some(local) = mesh.local().get(&pod.workload.uid) else {
        return;
    };
    let policies = mesh.policies_of(&local.workload);
    pod.open.revalidate(policies);
    if let Err(error) = kernel_only(node, mesh, pod, policies) {
        tracing::error!(pod = pod.workload.uid, %error, "connections that policy forbids may go on");
    }
}

/// Those that the agent does not carry.
fn kernel_only(node: &Node, mesh: &Mesh, pod: &Arc<Pod>, policies: &WorkloadPolicies) -> io::Result<()> {
    let diag = SockDiag::open(&pod.netns)?;
    let sockets = diag.sockets()?;
    let listening: HashSet<u16> = sockets
        .iter()
        .filter(|socket| socket.listens)
        .map(|socket| socket.local.port())
        .collect();
    let ephemeral = ephemeral_ports(pod)?;
    let carried = pod.open.carried();
    let may_be_server = |port: u16| listening.contains(&port) || !ephemeral.contains(&port);
    for socket in &sockets {
        // The agent's own end of a connection: whoever carries it was told.
        if carried.contains(&(socket.remote, socket.local)) {
            continue;
        }
        let Some(inbound) = inbound(node, pod, socket, may_be_server) else {
            continue;
        };
        let judgement = judge(node, mesh, pod, policies, socket, &inbound);
        if judgement.is_allowed() {
            continue;
        }
        if let Inbound::Direct(conn) = &inbound {
            // Before it ends: the kernel reports that at once.
            node.ended.remember(conn.cookie, judgement.clone());
        }
        if diag.destroy(socket)? && matches!(inbound, Inbound::Plaintext) {
            let source = node.peer(socket.remote, None);
            let destination = pod.workload.verified_peer(socket.local);
            let mut flow =
                node.flows
                    .connection(TrafficDirection::Ingress, FlowPath::Kernel, source, destination);
            flow.judged(&judgement);
            flow.close_uncounted(Reason::PolicyChanged);
        }
    }
    Ok(())
}

/// What a socket of a pod's namespace is, if it is a server's and nobody else looks after it.
fn inbound(
    node: &Node,
    pod: &Pod,
    socket: &TcpSocket,
    may_be_server: impl Fn(u16) -> bool,
) -> Option<Inbound> {
    let (local, remote) = (socket.local, socket.remote);
    let elsewhere = !socket.listens
        && remote.port() != 0
        && local.port() != HBONE_PORT
        && !local.ip().is_loopback()
        && !remote.ip().is_loopback()
        && !pod.has(remote.ip());
    if !elsewhere {
        return None;
    }
    let towards = FlowKey {
        src: remote.into(),
        dst: local.into(),
    };
    match node.datapath.connection(&towards) {
        Some(conn) if conn.kind == ConnKind::DIRECT && conn.dest_pod == pod.handle.0 => {
            Some(Inbound::Direct(conn))
        }
        // The kubelet's, the agent's own, or a client's end of a redirect.
        Some(conn) if conn.kind != ConnKind::DIRECT => None,
        _ if node.datapath.connection(&towards.reversed()).is_some() => None,
        _ => may_be_server(local.port()).then_some(Inbound::Plaintext),
    }
}

fn judge(
    node: &Node,
    mesh: &Mesh,
    pod: &Pod,
    policies: &WorkloadPolicies,
    socket: &TcpSocket,
    inbound: &Inbound,
) -> Judgement {
    let ask = |source: Option<&Identity>| {
        let request = Request {
            source,
            source_ip: socket.remote.ip(),
            destination_ip: socket.local.ip(),
            destination_port: socket.local.port(),
        };
        policy::judge(policies, &request)
    };
    let Inbound::Direct(conn) = inbound else {
        return ask(None);
    };
    let changed = Judgement {
        reason: Reason::PolicyChanged,
        ..Judgement::NONE
    };
    let Some(source) = node.pod_by_handle(PodHandle(conn.pod)) else {
        return changed;
    };
    let judgement = ask(Some(&source.workload.identity));
    let port = socket.local.port();
    let same_node = node.router(mesh).same_node(&source.workload, &pod.workload, port);
    if judgement.is_allowed() && !same_node.is_some_and(|same_node| same_node.direct) {
        return changed;
    }
    judgement
}

/// The ports that clients in a pod's namespace get by themselves.
fn ephemeral_ports(pod: &Pod) -> io::Result<std::ops::RangeInclusive<u16>> {
    let text = pod
        .netns
        .run(|| fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range"))??;
    let mut bounds = text.split_whitespace().map(str::parse::<u16>);
    match (bounds.next(), bounds.next()) {
        (Some(Ok(first)), Some(Ok(last))) => Ok(first..=last),
        _ => Err(io::Error::other("net.ipv4.ip_local_port_range is not two ports")),
    }
}

// === impl Ended ===

impl Ended {
    fn remember(&self, cookie: u64, judgement: Judgement) {
        let mut ended = self.table();
        if ended.len() >= REMEMBERED {
            ended.clear();
        }
        ended.insert(cookie, judgement);
    }

    /// Why a connection was ended, if it was; asked once.
    #[must_use]
    pub fn take(&self, cookie: u64) -> Option<Judgement> {
        self.table().remove(&cookie)
    }

    fn table(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Judgement>> {
        // Each change is one insertion or removal, so a panic elsewhere does not spoil it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
