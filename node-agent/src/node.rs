//! What the parts of the agent share: the state of this node.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use arc_swap::ArcSwap;
use tokio_util::sync::CancellationToken;
use weir_abi::ProbePort;
use weir_tunnel::{PodKey, Registry, certs::CertificateStore, hbone::HandshakeLimiter};
use weir_types::{FlowPeer, Process, Reason, TrafficDirection};

use crate::{
    cni::Sandboxes,
    datapath::{Datapath, PodHandle},
    flows::FlowLog,
    mesh::{LocalPod, Mesh, Workload},
    metrics::Metrics,
    netns::NetNs,
    open::{OpenConnection, OpenConnections},
    policy::Judgement,
    revalidate::Ended,
    route::{ATTEMPTS, Enrolled, Locate, Router},
    same_node::Link,
};

/// The state of this node.
pub struct Node {
    /// Its name.
    pub name: String,
    /// What is known of workloads and services.
    pub mesh: ArcSwap<Mesh>,
    /// The kernel side.
    pub datapath: Datapath,
    /// The record of flows.
    pub flows: FlowLog,
    /// Metrics.
    pub metrics: Metrics,
    /// Sandboxes that the container runtime told of.
    pub sandboxes: Sandboxes,
    /// Certificates and trust.
    pub certificates: CertificateStore,
    /// Open tunnel connections.
    pub tunnels: Registry,
    /// Handshakes under way, for all pods of the node together.
    pub handshakes: HandshakeLimiter,
    /// Cancelled when the agent stops.
    pub drain: CancellationToken,
    /// Why this kernel does not end a direct connection on request, if it does not: then none is made.
    pub no_destroy: Option<String>,
    /// Why connections that the agent did not carry were ended.
    pub ended: Ended,
    /// Descriptors that the connections of one pod, and of all, may have.
    descriptors: (u64, u64),
    used: AtomicU64,
    pods: RwLock<Pods>,
}

#[derive(Default)]
struct Pods {
    by_uid: HashMap<String, Arc<Pod>>,
    by_handle: HashMap<PodHandle, Arc<Pod>>,
}

/// A pod that is enrolled.
pub struct Pod {
    /// Its number in the kernel's maps.
    pub handle: PodHandle,
    /// Its workload.
    pub workload: Arc<Workload>,
    /// Its network namespace.
    pub netns: NetNs,
    /// How it hangs on the node's network.
    pub link: Link,
    /// Whether its connections are only recorded.
    pub observed: bool,
    /// What the kernel was told of it.
    told: Mutex<Told>,
    /// Its inbound connections that are open through the agent.
    pub open: OpenConnections,
    /// Cancelled when it leaves the mesh: its connections end.
    pub left: CancellationToken,
    /// Connections open through the agent.
    pub connections: AtomicU64,
    /// Descriptors that its connections have.
    pub descriptors: AtomicU64,
}

/// What the kernel knows of a pod that may change while it is enrolled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// Whether it refuses all plaintext.
    pub strict: bool,
    /// The ports at which the kubelet probes it.
    pub probe_ports: Vec<u16>,
}

impl Told {
    /// Whether the kubelet probes this port.
    #[must_use]
    pub fn is_probed(&self, port: u16) -> bool {
        self.probe_ports.contains(&port) || self.probe_ports.contains(&ProbePort::ANY)
    }
}

/// Counts a connection of a pod until it is dropped.
pub struct ConnectionCount(Arc<Pod>);

/// Counts descriptors of a pod's connection until it is dropped.
pub struct DescriptorCount {
    node: Arc<Node>,
    pod: Arc<Pod>,
    count: u64,
}

/// Kept for the agent itself: configuration, API, metrics, programs, and connections about to be refused.
const RESERVE: u64 = 1024;

/// What one pod may have, and all together: half of the machine's limit, so that no pod takes all from the others, and
/// nearly all.
fn descriptor_limits() -> (u64, u64) {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile)
        .current
        .unwrap_or(u64::MAX);
    (limit / 2, limit.saturating_sub(RESERVE).max(limit / 2))
}

/// Descriptors of a tunnel's connection: its socket, and one for its statistics.
const TUNNEL_DESCRIPTORS: u64 = 2;

/// Half of what connections may have, for each pod and for all.
fn is_room_for_tunnel(of_pod: u64, of_all: u64, (pod_limit, all_limit): (u64, u64)) -> bool {
    of_pod < pod_limit / 2 / TUNNEL_DESCRIPTORS && of_all < all_limit / 2 / TUNNEL_DESCRIPTORS
}

// === impl Node ===

impl Node {
    /// A node without pods.
    #[must_use]
    pub fn new(
        name: String,
        datapath: Datapath,
        flows: FlowLog,
        metrics: Metrics,
        certificates: CertificateStore,
        no_destroy: Option<String>,
    ) -> Self {
        Self {
            name,
            mesh: ArcSwap::from_pointee(Mesh::nothing(datapath.generation())),
            no_destroy,
            datapath,
            flows,
            metrics,
            sandboxes: Sandboxes::default(),
            certificates,
            tunnels: Registry::default(),
            handshakes: HandshakeLimiter::default(),
            drain: CancellationToken::new(),
            ended: Ended::default(),
            descriptors: descriptor_limits(),
            used: AtomicU64::new(0),
            pods: RwLock::default(),
        }
    }

    /// The enrolled pod with this uid.
    #[must_use]
    pub fn pod(&self, uid: &str) -> Option<Arc<Pod>> {
        self.read().by_uid.get(uid).cloned()
    }

    /// The enrolled pod with this handle.
    #[must_use]
    pub fn pod_by_handle(&self, handle: PodHandle) -> Option<Arc<Pod>> {
        self.read().by_handle.get(&handle).cloned()
    }

    /// All enrolled pods.
    #[must_use]
    pub fn pods(&self) -> Vec<Arc<Pod>> {
        self.read().by_uid.values().cloned().collect()
    }

    /// Room for another connection of a pod that takes this many descriptors, unless it, or all together, have as many as
    /// they may.
    #[must_use]
    pub fn admit(self: &Arc<Self>, pod: &Arc<Pod>, count: u64) -> Option<DescriptorCount> {
        let of_pod = pod.descriptors.fetch_add(count, Ordering::Relaxed);
        let of_all = self.used.fetch_add(count, Ordering::Relaxed);
        let counted = DescriptorCount {
            node: self.clone(),
            pod: pod.clone(),
            count,
        };
        (of_pod < self.descriptors.0 && of_all < self.descriptors.1).then_some(counted)
    }

    /// Descriptors that connections have, and that all may have together.
    #[must_use]
    pub fn descriptors(&self) -> (u64, u64) {
        (self.used.load(Ordering::Relaxed), self.descriptors.1)
    }

    /// Whether a pod may have another tunnel. Tunnels outlive the connections that they were made for, so a pod that talks
    /// to every workload in turn would otherwise take all descriptors.
    #[must_use]
    pub fn has_room_for_tunnel(&self, pod: PodKey) -> bool {
        let open = self.tunnels.open();
        let outbound = || {
            open.iter()
                .filter(|tunnel| tunnel.direction == TrafficDirection::Egress)
        };
        let of_pod = outbound().filter(|tunnel| tunnel.pod == pod).count() as u64;
        is_room_for_tunnel(of_pod, outbound().count() as u64, self.descriptors)
    }

    /// What policies say of an inbound connection of a pod, now.
    #[must_use]
    pub fn judge(&self, pod: &Pod, open: &OpenConnection) -> Judgement {
        let mesh = self.mesh.load();
        match mesh.local().get(&pod.workload.uid) {
            Some(local) => open.judge(mesh.policies_of(&local.workload)),
            // It is about to leave.
            None => Judgement {
                reason: Reason::PolicyChanged,
                ..Judgement::NONE
            },
        }
    }

    /// What decides where connections go, under a configuration.
    #[must_use]
    pub fn router<'a>(&'a self, mesh: &'a Mesh) -> Router<'a> {
        Router {
            mesh,
            enrolled: self,
            can_destroy: self.no_destroy.is_none(),
            wanted: ATTEMPTS,
        }
    }

    /// Adds an enrolled pod.
    pub fn insert(&self, pod: Arc<Pod>) {
        let mut pods = self.pods.write().unwrap_or_else(PoisonError::into_inner);
        pods.by_handle.insert(pod.handle, pod.clone());
        if let Some(old) = pods.by_uid.insert(pod.workload.uid.clone(), pod) {
            pods.by_handle.remove(&old.handle);
        }
        self.metrics
            .pods
            .set(i64::try_from(pods.by_uid.len()).unwrap_or(i64::MAX));
    }

    /// Takes a pod out.
    pub fn remove(&self, uid: &str) -> Option<Arc<Pod>> {
        let mut pods = self.pods.write().unwrap_or_else(PoisonError::into_inner);
        let pod = pods.by_uid.remove(uid)?;
        pods.by_handle.remove(&pod.handle);
        self.metrics
            .pods
            .set(i64::try_from(pods.by_uid.len()).unwrap_or(i64::MAX));
        Some(pod)
    }

    /// A client's end of a flow, with an identity if one was verified. A verified client is called by the name of the
    /// workload at its address only if that has the same identity: the address alone proves nothing.
    #[must_use]
    pub fn peer(&self, address: SocketAddr, identity: Option<weir_types::Identity>) -> FlowPeer {
        let mesh = self.mesh.load();
        let known = mesh.workload(address.ip()).map(|workload| &workload.identity);
        let named = identity.is_none() || known == identity.as_ref();
        let peer = if named {
            mesh.peer(address)
        } else {
            FlowPeer::unknown(address)
        };
        FlowPeer {
            namespace: peer
                .namespace
                .or_else(|| identity.as_ref().map(|id| id.namespace().to_owned())),
            identity,
            ..peer
        }
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Pods> {
        // Every write leaves both maps whole, so a panic elsewhere does not spoil them.
        self.pods.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Locate for Node {
    fn enrolled(&self, uid: &str) -> Option<Enrolled> {
        let captured = self.pod(uid).filter(|pod| !pod.observed);
        captured.map(|pod| Enrolled {
            handle: pod.handle,
            link: pod.link,
        })
    }
}

// === impl Pod ===

impl Pod {
    /// A pod about to be enrolled.
    #[must_use]
    pub fn new(handle: PodHandle, local: &LocalPod, netns: NetNs, link: Link, told: Told) -> Self {
        Self {
            handle,
            workload: local.workload.clone(),
            netns,
            link,
            observed: local.observed,
            told: Mutex::new(told),
            open: OpenConnections::default(),
            left: CancellationToken::new(),
            connections: AtomicU64::new(0),
            descriptors: AtomicU64::new(0),
        }
    }

    /// Whether it is what the configuration says: the same identity, at the same addresses, in the same namespace. Other
    /// changes of its workload concern no connection.
    #[must_use]
    pub fn is(&self, local: &LocalPod) -> bool {
        let (own, new) = (&self.workload, &local.workload);
        own.identity == new.identity
            && own.addresses == new.addresses
            && *self.netns.source() == local.netns
            && self.observed == local.observed
    }

    /// What the kernel was told of it.
    pub fn told(&self) -> MutexGuard<'_, Told> {
        // It is replaced as a whole, so a panic elsewhere does not spoil it.
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its number, for the tunnel.
    #[must_use]
    pub fn key(&self) -> PodKey {
        PodKey(self.handle.0)
    }

    /// Whether an address is one of its own.
    #[must_use]
    pub fn has(&self, address: IpAddr) -> bool {
        self.workload.addresses.contains(&address.to_canonical())
    }

    /// Counts a connection until what it gives is dropped.
    #[must_use]
    pub fn count(self: &Arc<Self>) -> ConnectionCount {
        self.connections.fetch_add(1, Ordering::Relaxed);
        ConnectionCount(self.clone())
    }
}

impl Drop for DescriptorCount {
    fn drop(&mut self) {
        self.pod.descriptors.fetch_sub(self.count, Ordering::Relaxed);
        self.node.used.fetch_sub(self.count, Ordering::Relaxed);
    }
}

impl Drop for ConnectionCount {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The process behind a connection, from what the kernel program noted.
#[must_use]
pub fn process(pid: u32, comm: &[u8; 16]) -> Option<Process> {
    let end = comm.iter().position(|byte| *byte == 0).unwrap_or(comm.len());
    // A process names itself: nothing of it may reach a terminal as anything but text.
    let name = String::from_utf8_lossy(&comm[..end]).replace(char::is_control, "?");
    (pid != 0).then_some(Process { pid, name })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tunnels_are_bounded_for_each_pod_and_for_all() {
        // open of the pod, open of all, whether there is room
        for (of_pod, of_all, expected) in [
            (0, 0, true),
            (24, 24, true),
            (25, 25, false),
            (0, 49, true),
            (0, 50, false),
        ] {
            assert_eq!(
                is_room_for_tunnel(of_pod, of_all, (100, 200)),
                expected,
                "{of_pod} {of_all}"
            );
        }
    }
}
