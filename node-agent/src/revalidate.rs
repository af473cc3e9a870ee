//! Ends the open connections that a changed configuration forbids, and no others.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fs, io,
    ops::RangeInclusive,
    sync::{Arc, Mutex, PoisonError},
};

use weir_abi::{Conn, ConnKind, FlowKey, HBONE_PORT};
use weir_policy::{Request, WorkloadPolicies};
use weir_types::{FlowPath, Identity, Reason, TrafficDirection};

use crate::{
    datapath::sock_diag::{SockDiag, TcpSocket},
    mesh::Mesh,
    node::{Node, Pod},
    policy::{self, Judgement},
};

/// Connections whose end is remembered until the kernel reports it. More than end at once is a mass that nobody reads one
/// by one.
const REMEMBERED: usize = 65_536;

/// What was ended, and what was not.
#[derive(Debug, Default)]
pub struct Ended {
    /// Why connections that never touched the agent were ended, by their client's socket cookie.
    connections: Mutex<HashMap<u64, Judgement>>,
    /// Pods of which something could not be ended.
    unfinished: Mutex<BTreeSet<String>>,
}

/// What an open connection of a pod is, as far as its server's socket tells.
enum Inbound {
    /// From a pod of this node, whose socket registered it.
    Direct(Conn),
    /// From elsewhere, not over mutual TLS.
    Plaintext,
}

/// Ends what the configuration in force forbids, of all pods. Blocks: a walk over the node's sockets for each pod that is
/// concerned.
pub fn all(node: &Node) {
    // Programs that began under the earlier configuration have ended, and what they let in is there to be seen.
    wait_for_programs();
    let mesh = node.mesh.load_full();
    // A registration may bear the handle that its pod had before, so it is not asked whose it is.
    let is_direct = |conn: &Conn| conn.kind == ConnKind::DIRECT && conn.pod != conn.dest_pod;
    let has_direct = node.datapath.connections().values().any(is_direct);
    let mut unfinished = BTreeSet::new();
    for pod in node.pods() {
        if !one(node, &mesh, &pod, has_direct) {
            unfinished.insert(pod.workload.uid.clone());
        }
    }
    node.ended.set_unfinished(unfinished);
}

/// Ends what it forbids of pods that came.
pub fn of(node: &Node, mesh: &Mesh, pods: &[Arc<Pod>]) {
    let failed = pods.iter().filter(|pod| !one(node, mesh, pod, true));
    let failed: BTreeSet<String> = failed.map(|pod| pod.workload.uid.clone()).collect();
    if !failed.is_empty() {
        node.ended.set_unfinished(&node.ended.unfinished() | &failed);
    }
}

/// Tries those again of which something could not be ended.
pub fn retry(node: &Node) {
    let unfinished = node.ended.unfinished();
    if unfinished.is_empty() {
        return;
    }
    let mesh = node.mesh.load_full();
    let left = |uid: &String| {
        let pod = node.pod(uid);
        pod.is_some_and(|pod| !one(node, &mesh, &pod, true))
    };
    node.ended
        .set_unfinished(unfinished.into_iter().filter(left).collect());
}

/// Ends what is forbidden of one pod; whether all of it could be ended.
fn one(node: &Node, mesh: &Mesh, pod: &Arc<Pod>, has_direct: bool) -> bool {
    let Some(local) = mesh.local().get(&pod.workload.uid) else {
        return true;
    };
    if local.observed {
        return true;
    }
    let policies = mesh.policies_of(&local.workload);
    pod.open.revalidate(policies);
    let asks = policies.names().next().is_some() || policies.mtls().is_strict_anywhere();
    if !asks && !has_direct {
        return true;
    }
    match kernel_only(node, mesh, pod, policies) {
        Ok(()) => true,
        Err(error) => {
            tracing::error!(pod = pod.workload.uid, %error, "connections that policy forbids may go on; tried again");
            false
        }
    }
}

/// Waits until every program that runs now has ended (membarrier(2), a grace period of RCU; kernel 4.3).
fn wait_for_programs() {
    // SAFETY: the call takes no pointers.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, libc::MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result != 0 {
        let error = io::Error::last_os_error();
        tracing::debug!(%error, "no grace period: a connection that is just being let in may be missed");
    }
}

/// Those that the agent does not carry.
///
/// # Errors
/// The first that occurred; the other connections were looked at all the same.
fn kernel_only(node: &Node, mesh: &Mesh, pod: &Arc<Pod>, policies: &WorkloadPolicies) -> io::Result<()> {
    let diag = SockDiag::open(&pod.netns)?;
    let sockets = diag.sockets()?;
    let listening: HashSet<u16> = sockets
        .iter()
        .filter(|socket| socket.listens)
        .map(|socket| socket.local.port())
        .collect();
    let ephemeral = ephemeral_ports(pod);
    let carried = pod.open.carried();
    let sources: HashMap<u64, Arc<Pod>> = node
        .pods()
        .into_iter()
        .map(|pod| (pod.netns.cookie(), pod))
        .collect();
    let may_be_server = |port: u16| listening.contains(&port) || !ephemeral.contains(&port);
    let mut result = Ok(());
    for socket in &sockets {
        // The agent's own end of a connection: whoever carries it was told.
        if carried.contains(&(socket.remote, socket.local)) {
            continue;
        }
        let Some(inbound) = inbound(node, pod, socket, may_be_server) else {
            continue;
        };
        let judgement = match &inbound {
            Inbound::Plaintext => ask(policies, socket, None),
            Inbound::Direct(conn) => direct(node, mesh, pod, policies, socket, sources.get(&conn.netns)),
        };
        if judgement.is_allowed() {
            continue;
        }
        if let Inbound::Direct(conn) = &inbound {
            // Before it ends: the kernel reports that at once.
            node.ended.remember(conn.cookie, judgement.clone());
        }
        match diag.destroy(socket) {
            Ok(true) if matches!(inbound, Inbound::Plaintext) => tell(node, pod, socket, &judgement),
            Ok(_) => {}
            Err(error) => result = result.and(Err(error)),
        }
    }
    result
}

/// Records the end of a connection that nobody else tells of.
fn tell(node: &Node, pod: &Pod, socket: &TcpSocket, judgement: &Judgement) {
    let source = node.peer(socket.remote, None);
    let destination = pod.workload.verified_peer(socket.local);
    let mut flow = node
        .flows
        .connection(TrafficDirection::Ingress, FlowPath::Kernel, source, destination);
    flow.judged(judgement);
    flow.close_uncounted(Reason::PolicyChanged);
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
        // Under whichever handle the pod had then: its socket is here.
        Some(conn) if conn.kind == ConnKind::DIRECT => Some(Inbound::Direct(conn)),
        // The kubelet's, the agent's own, or a client's end of a redirect.
        Some(_) => None,
        None if node.datapath.connection(&towards.reversed()).is_some() => None,
        None => may_be_server(local.port()).then_some(Inbound::Plaintext),
    }
}

fn ask(policies: &WorkloadPolicies, socket: &TcpSocket, source: Option<&Identity>) -> Judgement {
    let request = Request {
        source,
        source_ip: socket.remote.ip(),
        destination_ip: socket.local.ip(),
        destination_port: socket.local.port(),
    };
    policy::judge(policies, &request)
}

/// Judges a direct connection of a pod that is known by its network namespace.
fn direct(
    node: &Node,
    mesh: &Mesh,
    pod: &Pod,
    policies: &WorkloadPolicies,
    socket: &TcpSocket,
    source: Option<&Arc<Pod>>,
) -> Judgement {
    let changed = Judgement {
        reason: Reason::PolicyChanged,
        ..Judgement::NONE
    };
    let Some(source) = source else {
        return changed;
    };
    let judgement = ask(policies, socket, Some(&source.workload.identity));
    let (from, to) = (&source.workload.uid, &pod.workload.uid);
    let same_node = node
        .router(mesh)
        .same_node(from, to, socket.local, socket.remote.ip());
    if judgement.is_allowed() && !same_node.is_some_and(|same_node| same_node.direct) {
        return changed;
    }
    judgement
}

/// The ports that clients in a pod's namespace get by themselves; the kernel's default if that cannot be told.
fn ephemeral_ports(pod: &Pod) -> RangeInclusive<u16> {
    const DEFAULT: RangeInclusive<u16> = 32_768..=60_999;
    let text = pod
        .netns
        .run(|| fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range"));
    let Ok(Ok(text)) = text else { return DEFAULT };
    let mut bounds = text.split_whitespace().map(str::parse::<u16>);
    match (bounds.next(), bounds.next()) {
        (Some(Ok(first)), Some(Ok(last))) => first..=last,
        _ => DEFAULT,
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

    /// Pods of which something could not be ended.
    #[must_use]
    pub fn unfinished(&self) -> BTreeSet<String> {
        let unfinished = self.unfinished.lock();
        unfinished.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_unfinished(&self, pods: BTreeSet<String>) {
        *self.unfinished.lock().unwrap_or_else(PoisonError::into_inner) = pods;
    }

    /// Why a connection was ended, if it was; asked once.
    #[must_use]
    pub fn take(&self, cookie: u64) -> Option<Judgement> {
        self.table().remove(&cookie)
    }

    fn table(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Judgement>> {
        // Each change is one insertion or removal, so a panic elsewhere does not spoil it.
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
