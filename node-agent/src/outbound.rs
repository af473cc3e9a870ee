//! Outbound: a pod's connection that the kernel sent to the agent, to its destination.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use async_trait::async_trait;
use http::HeaderValue;
use tokio::net::TcpStream;
use weir_abi::{Conn, ConnKind, FlowKey, HBONE_PORT};
use weir_tunnel::{
    PodKey,
    copy::{copy_bidirectional, copy_plain},
    hbone::{Authority, ConnectHeaders, TunnelStream},
    pool::{Connector, Target},
};
use weir_types::{FlowPath, FlowPeer, Reason, TrafficDirection};

use crate::{
    config::TunnelProtocol,
    datapath::{PodHandle, Remember},
    flows::Connection,
    mesh::Mesh,
    metrics,
    node::{DescriptorCount, Node, Pod, process},
    route::{ATTEMPTS, Candidate, NoRoute, Route},
    serve::{Accepted, NetworkProbe, Serve, connect_reason, network},
    sockets::{self, Mark},
};

/// Opens the tunnels' connections in the pods' namespaces, so that the network sees pod to pod.
pub struct PodConnector {
    node: Arc<Node>,
}

/// A connection that reached its destination.
enum Upstream {
    Tunnel(TunnelStream),
    Plaintext(TcpStream, DescriptorCount),
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
        if !self.node.has_room_for_tunnel(source) {
            return Err(io::Error::other(
                "this pod, or the node, has as many tunnels as it may; unused ones close in minutes",
            ));
        }
        let connect = sockets::connect(&self.node.datapath, &pod.netns, address, Mark::Agent);
        self.node
            .metrics
            .connecting(metrics::Upstream::Tunnel, connect)
            .await
    }

    fn shook_hands(&self, took: Duration) {
        self.node.metrics.shook_hands(TrafficDirection::Egress, took);
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
        .connection(TrafficDirection::Egress, FlowPath::Nowhere, source, target)
        .of(pod);
    flow.process(process(conn.pid, &conn.comm));
    let candidates = match candidates(node, pod, &conn, original, &mut flow) {
        Ok(candidates) => candidates,
        Err((reason, detail)) => {
            flow.refuse(reason, detail);
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

/// Where a connection may go, in the order to try; what can be remembered of that is.
fn candidates(
    node: &Node,
    pod: &Pod,
    conn: &Conn,
    original: SocketAddr,
    flow: &mut Connection,
) -> Result<Vec<Candidate>, (Reason, Option<String>)> {
    let mesh = node.mesh.load();
    let pick = (conn.pick.port != 0).then(|| conn.pick.socket_addr());
    let source = mesh.current(&pod.workload);
    let route = node.router(&mesh).route(source, original, pick, rand::random());
    if let Ok(Route {
        service: Some(service),
        ..
    })
    | Err(
        NoRoute::Service(service, _)
        | NoRoute::Denied {
            service: Some(service),
            ..
        },
    ) = &route
    {
        flow.asked(original, Some(service.name.to_string()));
    }
    match route {
        Ok(route) => {
            if let Some(first) = &route.candidates.first().filter(|_| route.service.is_none()) {
                let to = match &first.workload {
                    Some(workload) => workload.peer(original),
                    None => FlowPeer::unknown(original),
                };
                flow.towards(FlowPath::Nowhere, to, None);
            }
            // A pick is by what is remembered already.
            if let Some(what) = route.remember.as_ref().filter(|_| pick.is_none()) {
                remember(node, pod, conn, &mesh, what);
            }
            Ok(route.candidates.into_iter().take(ATTEMPTS).collect())
        }
        Err(NoRoute::Service(_, reason)) => Err((reason, None)),
        Err(NoRoute::Denied {
            denied,
            remember: what,
            ..
        }) => {
            remember(node, pod, conn, &mesh, &what);
            let Some(first) = denied.into_iter().next() else {
                return Err((Reason::NoEndpoint, None));
            };
            if let Some(workload) = &first.workload {
                flow.towards(FlowPath::Nowhere, workload.verified_peer(first.address), None);
            }
            flow.judged(&first.judgement);
            Err((first.judgement.reason, first.judgement.detail))
        }
    }
}

/// Lets the kernel decide the pod's next connections to this destination.
fn remember(node: &Node, pod: &Pod, conn: &Conn, mesh: &Mesh, what: &Remember) {
    // The kernel knows another configuration than the one that this was decided under.
    if conn.generation != mesh.generation() {
        return;
    }
    let still_holds = || node.mesh.load().version() == mesh.version();
    if let Err(error) = node
        .datapath
        .remember(pod.handle, conn.orig, mesh.generation(), what, still_holds)
    {
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
    for (number, candidate) in candidates.iter().enumerate() {
        match attempt(serve, pod, client, candidate, flow).await {
            Ok(upstream) => return Ok(upstream),
            // Recorded even if another endpoint serves the connection in the end.
            Err(failure) if failure.retryable && number + 1 < candidates.len() => {
                flow.failed_attempt(failure.reason, failure.detail);
            }
            Err(failure) => return Err(failure),
        }
    }
    Err(Failure {
        reason: Reason::NoEndpoint,
        detail: "no endpoint".to_owned(),
        retryable: false,
    })
}

async fn attempt(
    serve: &Serve,
    pod: &Arc<Pod>,
    client: SocketAddr,
    candidate: &Candidate,
    flow: &mut Connection,
) -> Result<Upstream, Failure> {
    let address = candidate.address;
    let plaintext = |to: FlowPeer, mark: Mark, flow: &mut Connection| {
        flow.towards(FlowPath::Plaintext, to, None);
        connect_plain(serve, pod, address, mark)
    };
    let Some(workload) = &candidate.workload else {
        return plaintext(FlowPeer::unknown(address), Mark::Plain, flow).await;
    };
    if workload.uid == pod.workload.uid {
        // A service that leads back to the pod itself: it never leaves the pod.
        let mark = Mark::Delivery {
            pod: pod.handle,
            client,
        };
        return plaintext(workload.verified_peer(address), mark, flow).await;
    }
    if workload.tunnel == TunnelProtocol::None {
        return plaintext(workload.peer(address), Mark::Plain, flow).await;
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
        .open(&target, &Authority::Address(address), &headers(pod, client, flow))
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

async fn connect_plain(
    serve: &Serve,
    pod: &Arc<Pod>,
    address: SocketAddr,
    mark: Mark,
) -> Result<Upstream, Failure> {
    let failure = |reason, detail| Failure {
        reason,
        detail,
        retryable: true,
    };
    // Where it goes on to, and its statistics.
    let Some(descriptors) = serve.node.admit(pod, 2) else {
        return Err(failure(Reason::ConnectionLimit, "no more descriptors".to_owned()));
    };
    let to = match mark {
        Mark::Delivery { .. } => metrics::Upstream::Application,
        Mark::Agent | Mark::Plain => metrics::Upstream::Plaintext,
    };
    let connect = sockets::connect(&serve.node.datapath, &pod.netns, address, mark);
    let connected = serve.node.metrics.connecting(to, connect).await;
    connected
        .map(|stream| Upstream::Plaintext(stream, descriptors))
        .map_err(|error| failure(connect_reason(&error), format!("{address}: {error}")))
}

/// Hints for the other side's records.
fn headers(pod: &Pod, client: SocketAddr, flow: &Connection) -> ConnectHeaders {
    let identity = &pod.workload.identity;
    let baggage = format!(
        "k8s.namespace.name={},k8s.pod.name={}",
        identity.namespace(),
        pod.workload.name
    );
    ConnectHeaders {
        baggage: HeaderValue::try_from(baggage).ok(),
        forwarded: HeaderValue::try_from(format!("for=\"{client}\"")).ok(),
        traceparent: flow.traceparent(),
    }
}

async fn copy(stream: TcpStream, upstream: Upstream, mut flow: Connection) {
    let counters = flow.open();
    match upstream {
        Upstream::Tunnel(tunnel) => {
            let connection = tunnel.connection().clone();
            let ended = copy_bidirectional(stream, tunnel, &counters).await.ended;
            flow.close(ended, connection.socket.with(network).unwrap_or_default());
        }
        Upstream::Plaintext(upstream, _descriptors) => {
            let probe = NetworkProbe::new(&upstream);
            let ended = copy_plain(stream, upstream, &counters).await.ended;
            flow.close(ended, probe.read());
        }
    }
}
