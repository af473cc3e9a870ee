//! Accepts what the kernel programs hand to the agent, and gives each connection to who carries it.

use std::{
    net::SocketAddr,
    os::fd::{AsFd as _, OwnedFd},
    sync::Arc,
    time::Duration,
};

use tokio::net::{TcpListener, TcpStream};
use weir_abi::ListenerSlot;
use weir_tunnel::{
    hbone::{Server, ServerSettings},
    pool::Pool,
};
use weir_types::{FlowPath, FlowPeer, Reason, TrafficDirection};

use crate::{
    flows::Outcome,
    inbound::Inbound,
    metrics::Upstream,
    node::{Node, Pod},
    outbound, plaintext,
    sockets::{self, Mark},
};

/// Pause after `accept` failed for want of descriptors or memory, so as not to spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Carries connections.
pub struct Serve {
    /// The node.
    pub node: Arc<Node>,
    /// Tunnels to other pods.
    pub pool: Pool,
    hbone: Server<Inbound>,
}

/// A connection that was accepted from a pod's listener.
pub struct Accepted {
    /// The connection.
    pub stream: TcpStream,
    /// Who opened it.
    pub peer: SocketAddr,
    /// The address that it was opened to.
    pub local: SocketAddr,
}

impl Serve {
    /// For a node.
    #[must_use]
    pub fn new(node: Arc<Node>) -> Arc<Self> {
        let connector = Arc::new(outbound::PodConnector::new(node.clone()));
        let pool = Pool::new(node.certificates.clone(), connector, node.tunnels.clone());
        let settings = ServerSettings {
            limiter: node.handshakes.clone(),
            registry: node.tunnels.clone(),
            drain: node.drain.clone(),
        };
        let hbone = Server::new(
            node.certificates.clone(),
            Arc::new(Inbound::new(node.clone())),
            settings,
        );
        Arc::new(Self { node, pool, hbone })
    }

    /// Accepts from one listener until the pod leaves the mesh or the agent stops.
    pub async fn accept(self: Arc<Self>, pod: Arc<Pod>, slot: u32, listener: TcpListener) {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = pod.left.cancelled() => return,
                () = self.node.drain.cancelled() => return,
            };
            // The peer as accept gives it: a client that reset the connection meanwhile has no address any more.
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(pod = pod.workload.uid, %error, "accept failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Some(count) = self.node.admit(&pod, descriptors(slot)) else {
                self.refuse(&pod, stream, peer);
                continue;
            };
            let (serve, pod) = (self.clone(), pod.clone());
            tokio::spawn(async move {
                let _count = count;
                let left = pod.left.clone();
                tokio::select! {
                    () = serve.carry(&pod, slot, stream, peer) => {}
                    () = left.cancelled() => {}
                }
            });
            // So that it asks for its tunnel before the next one: connections that a client opens one after the other reach
            // the server in that order. The runtime would run the newest first.
            tokio::task::yield_now().await;
        }
    }

    async fn carry(&self, pod: &Arc<Pod>, slot: u32, stream: TcpStream, peer: SocketAddr) {
        let local = match stream.local_addr() {
            Ok(local) => local,
            Err(error) => return tracing::warn!(pod = pod.workload.uid, %error, "getsockname failed"),
        };
        let accepted = Accepted {
            stream,
            peer: canonical(peer),
            local: canonical(local),
        };
        // Its listeners are bound to loopback: who comes there was not handed over by the kernel program.
        let looped = accepted.local.ip().is_loopback();
        match slot {
            ListenerSlot::OUTBOUND => {
                let _count = pod.count();
                outbound::carry(self, pod, accepted).await;
            }
            ListenerSlot::HBONE if !looped && accepted.local.port() == weir_abi::HBONE_PORT => {
                let Accepted { stream, peer, local } = accepted;
                self.hbone
                    .serve(stream, local, peer, pod.key(), &pod.workload.identity)
                    .await;
            }
            ListenerSlot::PLAINTEXT if !looped => {
                let _count = pod.count();
                plaintext::carry(&self.node, pod, accepted).await;
            }
            // Somebody inside the pod found the port that the listener is bound to.
            _ => self.turn_away(pod, accepted, Reason::Unregistered),
        }
    }

    /// Resets a connection that the pod may not have besides its others.
    fn refuse(&self, pod: &Pod, stream: TcpStream, peer: SocketAddr) {
        if let Ok(local) = stream.local_addr() {
            let accepted = Accepted {
                stream,
                peer: canonical(peer),
                local: canonical(local),
            };
            self.turn_away(pod, accepted, Reason::ConnectionLimit);
        }
    }

    /// Resets a connection at once: one that no hook registered, or one too many.
    pub fn turn_away(&self, pod: &Pod, accepted: Accepted, reason: Reason) {
        let Accepted { stream, peer, local } = accepted;
        let source = FlowPeer::unknown(peer);
        let destination = pod.workload.verified_peer(local);
        let flow =
            self.node
                .flows
                .connection(TrafficDirection::Ingress, FlowPath::Nowhere, source, destination);
        flow.refuse(reason, None);
        sockets::reset(stream);
    }

    /// Closes the tunnels of a pod that left.
    pub fn forget(&self, pod: &Pod) {
        self.pool.close_source(pod.key());
    }
}

/// Descriptors of a connection from a listener: what is accepted, where it goes on to in plaintext, and one for its
/// statistics. A tunnel's connection goes on to the applications of its requests, which are counted one by one.
fn descriptors(slot: u32) -> u64 {
    match slot {
        ListenerSlot::HBONE => 2,
        ListenerSlot::PLAINTEXT => 3,
        _ => 1,
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Connects to the application of a pod on behalf of a client.
///
/// # Errors
/// Why it did not accept.
pub async fn deliver(
    node: &Node,
    pod: &Pod,
    address: SocketAddr,
    client: SocketAddr,
) -> Result<TcpStream, (Reason, std::io::Error)> {
    let mark = Mark::Delivery {
        pod: pod.handle,
        client,
    };
    let connect = sockets::connect(&node.datapath, &pod.netns, address, mark);
    node.metrics
        .connecting(Upstream::Application, connect)
        .await
        .map_err(|error| (connect_reason(&error), error))
}

/// What a failed connect means.
#[must_use]
pub fn connect_reason(error: &std::io::Error) -> Reason {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset => Reason::ConnectionRefused,
        ErrorKind::TimedOut => Reason::ConnectTimeout,
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable | ErrorKind::AddrNotAvailable => {
            Reason::Unreachable
        }
        _ => Reason::Io,
    }
}

/// Round-trip time and retransmitted segments of a connection (TCP_INFO).
#[must_use]
pub fn network(socket: std::os::fd::BorrowedFd<'_>) -> Outcome {
    use std::os::fd::AsRawFd as _;
    // SAFETY: tcp_info is made of integers; zero is a value of each.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the buffer is as large as `length` says; the kernel writes no more.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Outcome::default();
    }
    Outcome {
        rtt_us: (info.tcpi_rtt > 0).then_some(info.tcpi_rtt),
        retransmits: Some(info.tcpi_total_retrans),
    }
}

/// A connection whose statistics are wanted when its stream is already given away.
pub struct NetworkProbe(Option<OwnedFd>);

impl NetworkProbe {
    /// Keeps a descriptor of the connection. Drop it soon after the stream: the connection ends with the last descriptor.
    #[must_use]
    pub fn new(stream: &TcpStream) -> Self {
        Self(stream.as_fd().try_clone_to_owned().ok())
    }

    /// The statistics now.
    #[must_use]
    pub fn read(&self) -> Outcome {
        self.0
            .as_ref()
            .map_or_else(Outcome::default, |socket| network(socket.as_fd()))
    }
}
