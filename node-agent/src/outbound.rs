//! Outbound: a pod's connection that the kernel sent to the agent, to its destination.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
};

use async_trait::async_trait;
use http::HeaderValue;
use tokio::net::TcpStream;
use weir_abi::{Conn, ConnKind, FlowKey, HBONE_PORT, Verdict, VerdictKey, VerdictKind};
use weir_tunnel::{
    PodKey,
    copy::{Counters, copy_bidirectional, copy_plain},
    hbone::{Authority, ConnectHeaders, TunnelStream},
    pool::{Connector, Target},
};
use weir_types::{FlowPath, FlowPeer, Identity, Reason, TrafficDirection};

use crate::{
    config::TunnelProtocol,
    datapath::PodHandle,
    flows::Connection,
    mesh::{Destination, Workload},
    node::{Node, Pod, process},
    plaintext::outcome,
    serve::{Accepted, NetworkProbe, Serve, connect_reason, deliver, network},
    sockets::{self, Mark},
};

/// Endpoints that one connection tries before it gives up.
const ATTEMPTS: usize = 3;
/// Verdicts of one pod that the kernel caches under one configuration: a port scan flushes nobody else's.
const VERDICTS_PER_POD: u32 = 4096;

/// Opens the tunnels' connections in the pods' namespaces, so that the network sees pod to pod.
pub struct PodConnector {
    node: Arc<Node>,
}

/// One place that a connection may go to.
struct Candidate {
    address: SocketAddr,
    workload: Option<Arc<Workload>>,
    subject_alt_names: Vec<Identity>,
}

/// A connection that reached its destination.
enum Upstream {
    Tunnel(TunnelStream),
    Plaintext(TcpStream),
}

/// The kernel's entry of an accepted connection; removed with it, since the client's socket may be gone before.
struct Registration<'a> {
    node: &'a Node,
    key: FlowKey,
    conn: Conn,
}

impl Drop for Registration<'_> {
    fn drop(&mut self) {
        self.node.datapath.release(&self.key, &self.conn);
    }
}

/// Why a candidate was not reached.
struct Failure {
    reason: Reason,
    detail: String,
    retryable: bool,
}

// === impl PodConnector ===

impl PodConnector {
    /// For the pods of a node.
    #[must_use]
    pub fn new(node: Arc<Node>) -> Self {
        Self { node }
    }
}

#[async_trait]
impl Connector for PodConnector {
    async fn connect(&self, source: PodKey, address: SocketAddr) -> io::Result<TcpStream> {
        let pod = self.node.pod_by_handle(PodHandle(source.0));
        let pod = pod.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the pod left the mesh"))?;
        sockets::connect(&self.node.datapath, &pod.netns, address, Mark::Agent).await
    }
}

/// Carries one connection to its end.
pub async fn carry(serve: &Serve, pod: &Arc<Pod>, accepted: Accepted) {
    let node = &serve.node;
    let key = FlowKey {
        src: accepted.peer.into(),
        dst: accepted.local.into(),
    };
    let registered = node
        .datapath
        .connection(&key)
        .filter(|conn| conn.kind == ConnKind::REDIRECT && conn.pod == pod.handle.0);
    let Some(conn) = registered else {
        return serve.turn_away(pod, accepted, Reason::Unregistered);
    };
    let _registration = Registration { node, key, conn };
    let Accepted { stream, peer, .. } = accepted;
    let original = conn.orig.socket_addr();
    let source = pod.workload.verified_peer(peer);
    let target = FlowPeer::unknown(original);
    let mut flow = node
        .flows
        .connection(TrafficDirection::Egress, FlowPath::Nowhere, source, target);
    flow.process(process(conn.pid, &conn.comm));
    let candidates = match candidates(node, pod, &conn, original, &mut flow) {
        Ok(candidates) => candidates,
        Err(reason) => {
            flow.refuse(reason, None);
            return sockets::reset(stream);
        }
    };
    match reach(serve, pod, peer, &candidates, &mut flow).await {
        Ok(upstream) => copy(stream, upstream, flow).await,
        Err(Failure { reason, detail, .. }) => {
            flow.refuse(reason, Some(detail));
            sockets::reset(stream);
        }
    }
}

/// Where a connection may go, in the order to try.
fn candidates(
    node: &Node,
    pod: &Pod,
    conn: &Conn,
    original: SocketAddr,
    flow: &mut Connection,
) -> Result<Vec<Candidate>, Reason> {
    match node.mesh.load().destination(original.ip()) {
        Destination::Outside => {
            let candidate = Candidate {
                address: original,
                workload: None,
                subject_alt_names: Vec::new(),
            };
            flow.towards(FlowPath::Plaintext, FlowPeer::unknown(original), None);
            let_pass(node, pod, conn);
            Ok(vec![candidate])
        }
        Destination::Workload(workload) => {
            flow.towards(FlowPath::Nowhere, workload.peer(original), None);
            Ok(vec![Candidate {
                address: original,
                workload: Some(workload),
                subject_alt_names: Vec::new(),
            }])
        }
        Destination::Service(service) => {
            flow.asked(original, Some(service.name.to_string()));
            let backends = service
                .backends(original.port(), original.is_ipv4(), rand::random())
                .ok_or(Reason::UnknownPort)?;
            if backends.is_empty() {
                return Err(Reason::NoEndpoint);
            }
            let candidate = |backend: crate::mesh::Backend| Candidate {
                address: backend.address,
                workload: backend.workload,
                subject_alt_names: service.subject_alt_names.clone(),
            };
            Ok(backends.into_iter().take(ATTEMPTS).map(candidate).collect())
        }
    }
}

/// Lets the pod's next connections to this destination, which is outside the mesh, go their way in the kernel.
fn let_pass(node: &Node, pod: &Pod, conn: &Conn) {
    let generation = node.generation.load(Ordering::Acquire);
    // What was decided under an older configuration may be wrong under the present one.
    if conn.generation != generation {
        return;
    }
    if pod.verdicts.0.swap(generation, Ordering::Relaxed) != generation {
        pod.verdicts.1.store(0, Ordering::Relaxed);
    }
    if pod.verdicts.1.fetch_add(1, Ordering::Relaxed) >= VERDICTS_PER_POD {
        return;
    }
    let key = VerdictKey {
        pod: pod.handle.0,
        dst: conn.orig,
    };
    let verdict = Verdict {
        kind: VerdictKind::PASS,
        generation,
        dest_pod: 0,
        reason: 0,
    };
    if let Err(error) = node.datapath.set_verdict(&key, verdict) {
        tracing::debug!(%error, "a verdict is not cached; connections go on through the agent");
    }
}

/// Tries the candidates in turn.
async fn reach(
    serve: &Serve,
    pod: &Arc<Pod>,
    client: SocketAddr,
    candidates: &[Candidate],
    flow: &mut Connection,
) -> Result<Upstream, Failure> {
    let mut last = None;
    for candidate in candidates {
        match attempt(serve, pod, client, candidate, flow).await {
            Ok(upstream) => return Ok(upstream),
            Err(failure) => {
                let retryable = failure.retryable;
                last = Some(failure);
                if !retryable {
                    break;
                }
            }
        }
    }
    let none = || Failure {
        reason: Reason::NoEndpoint,
        detail: "no endpoint".to_owned(),
        retryable: false,
    };
    Err(last.unwrap_or_else(none))
}

async fn attempt(
    serve: &Serve,
    pod: &Arc<Pod>,
    client: SocketAddr,
    candidate: &Candidate,
    flow: &mut Connection,
) -> Result<Upstream, Failure> {
    let node = &serve.node;
    let address = candidate.address;
    let plain = |error: io::Error, reason| Failure {
        reason,
        detail: format!("{address}: {error}"),
        retryable: true,
    };
    let Some(workload) = &candidate.workload else {
        flow.towards(FlowPath::Plaintext, FlowPeer::unknown(address), None);
        let stream = sockets::connect(&node.datapath, &pod.netns, address, Mark::Agent).await;
        return stream.map(Upstream::Plaintext).map_err(|error| {
            let reason = connect_reason(&error);
            plain(error, reason)
        });
    };
    if workload.uid == pod.workload.uid {
        // A service that leads back to the pod itself: it never leaves the pod.
        flow.towards(FlowPath::Plaintext, workload.verified_peer(address), None);
        let stream = deliver(node, pod, address, client).await;
        return stream
            .map(Upstream::Plaintext)
            .map_err(|(reason, error)| plain(error, reason));
    }
    if workload.tunnel == TunnelProtocol::None {
        flow.towards(FlowPath::Plaintext, workload.peer(address), None);
        let stream = sockets::connect(&node.datapath, &pod.netns, address, Mark::Agent).await;
        return stream.map(Upstream::Plaintext).map_err(|error| {
            let reason = connect_reason(&error);
            plain(error, reason)
        });
    }
    flow.towards(FlowPath::Tunnel, workload.peer(address), None);
    let expected = std::iter::once(&workload.identity)
        .chain(&candidate.subject_alt_names)
        .cloned()
        .collect();
    let target = Target {
        source: pod.key(),
        source_identity: pod.workload.identity.clone(),
        expected,
        address: SocketAddr::new(address.ip(), HBONE_PORT),
    };
    let tunnel = serve
        .pool
        .open(&target, &Authority::Address(address), &headers(pod, client))
        .await
        .map_err(|error| Failure {
            reason: error.reason(),
            detail: error.to_string(),
            retryable: error.is_retryable(),
        })?;
    let connection = tunnel.connection();
    let peer = FlowPeer {
        identity: Some(connection.peer.clone()),
        ..workload.peer(address)
    };
    flow.towards(FlowPath::Tunnel, peer, Some(connection.tls.to_string()));
    Ok(Upstream::Tunnel(tunnel))
}

/// Hints for the other side's records.
fn headers(pod: &Pod, client: SocketAddr) -> ConnectHeaders {
    let identity = &pod.workload.identity;
    let baggage = format!(
        "k8s.namespace.name={},k8s.pod.name={}",
        identity.namespace(),
        pod.workload.name
    );
    ConnectHeaders {
        baggage: HeaderValue::try_from(baggage).ok(),
        forwarded: HeaderValue::try_from(format!("for=\"{client}\"")).ok(),
        traceparent: None,
    }
}

async fn copy(stream: TcpStream, upstream: Upstream, mut flow: Connection) {
    flow.open();
    let counters = Counters::default();
    match upstream {
        Upstream::Tunnel(tunnel) => {
            let connection = tunnel.connection().clone();
            let ended = copy_bidirectional(stream, tunnel, &counters).await.ended;
            let network = connection.socket.with(network).unwrap_or_default();
            flow.close(ended, outcome(&counters, network));
        }
        Upstream::Plaintext(upstream) => {
            let probe = NetworkProbe::new(&upstream);
            let ended = copy_plain(stream, upstream, &counters).await.ended;
            flow.close(ended, outcome(&counters, probe.read()));
        }
    }
}
