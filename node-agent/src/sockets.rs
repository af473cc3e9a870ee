//! Sockets of the agent in the pods' network namespaces.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd as _, AsRawFd as _},
    time::Duration,
};

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use weir_abi::{Conn, ConnKind};

use crate::{
    datapath::{Datapath, PodHandle},
    netns::NetNs,
};

/// Connections that wait for the agent to accept them. The kernel caps it at `net.core.somaxconn`, 4096 by default.
const BACKLOG: i32 = 4096;
/// When a connection is probed after silence, how often, and how many probes may go unanswered.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(60), Duration::from_secs(10), 6);
/// How long a destination may take to accept a connection.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// What a connection of the agent is to the kernel programs.
#[derive(Debug, Clone, Copy)]
pub enum Mark {
    /// A tunnel.
    Agent,
    /// To a destination outside the mesh.
    Plain,
    /// To a pod's application, on behalf of a client.
    Delivery {
        /// The pod.
        pod: PodHandle,
        /// The client that the application shall see.
        client: SocketAddr,
    },
}

impl From<Mark> for Conn {
    fn from(mark: Mark) -> Self {
        match mark {
            Mark::Agent | Mark::Plain => Self {
                kind: ConnKind::AGENT,
                ..Self::default()
            },
            Mark::Delivery { pod, client } => Self {
                kind: ConnKind::DELIVERY,
                pod: pod.0,
                orig: client.into(),
                ..Self::default()
            },
        }
    }
}

/// Connects from a pod's namespace.
///
/// # Errors
/// As connect(2); `TimedOut` after [`CONNECT_TIMEOUT`].
pub async fn connect(
    datapath: &Datapath,
    netns: &NetNs,
    address: SocketAddr,
    mark: Mark,
) -> io::Result<TcpStream> {
    let domain = Domain::for_address(address);
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = netns.run(|| Socket::new(domain, kind, Some(Protocol::TCP)))??;
    match mark {
        Mark::Delivery { .. } => {
            // Both ends are on this machine: the kernel tells when the other is gone.
            socket.set_tcp_nodelay(true)?;
            reset_unless_finished(&socket)?;
            if address.is_ipv4() {
                spread(&socket)?;
            }
        }
        Mark::Plain => {
            tune(&socket)?;
            reset_unless_finished(&socket)?;
        }
        Mark::Agent => tune(&socket)?,
    }
    datapath.mark(socket.as_fd(), mark.into())?;
    let socket = TcpSocket::from_std_stream(socket.into());
    tokio::time::timeout(CONNECT_TIMEOUT, socket.connect(address)).await?
}

/// A listener in a pod's namespace that only the pod's `sk_lookup` program hands connections to.
///
/// It is bound to a port that the kernel chooses on loopback: nothing collides with it, and who finds it from inside the
/// pod is turned away. Bound with FREEBIND, since loopback may not be up yet.
///
/// # Errors
/// As socket(2), bind(2) and listen(2).
pub fn listen(netns: &NetNs, v4: bool, carries: Carries) -> io::Result<TcpListener> {
    let (domain, address) = if v4 {
        (Domain::IPV4, SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
    } else {
        (Domain::IPV6, SocketAddr::from((Ipv6Addr::LOCALHOST, 0)))
    };
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = netns.run(|| Socket::new(domain, kind, Some(Protocol::TCP)))??;
    if v4 {
        socket.set_freebind_v4(true)?;
    } else {
        socket.set_only_v6(true)?;
        socket.set_freebind_v6(true)?;
    }
    // Accepted connections inherit them.
    tune(&socket)?;
    if carries == Carries::Bytes {
        reset_unless_finished(&socket)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Settings of connections that may cross the network.
fn tune(socket: &Socket) -> io::Result<()> {
    let (time, interval, retries) = KEEPALIVE;
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(time)
            .with_interval(interval)
            .with_retries(retries),
    )
}

/// What a listener's connections carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carries {
    /// An application's bytes.
    Bytes,
    /// TLS, which tells by itself whether it ended in order.
    Tls,
}

/// Makes a socket end with a reset whenever it is closed: when the agent gives up, is stopped or crashes, the other side
/// must not take that for the end of the data. Who finished in order takes it back.
fn reset_unless_finished(socket: &Socket) -> io::Result<()> {
    socket.set_linger(Some(Duration::ZERO))
}

/// Gives a delivery one of 16 million loopback addresses as its source: with the pod's own, all clients of an application
/// would share the ephemeral ports of one address, and those stay taken for a minute after each connection.
fn spread(socket: &Socket) -> io::Result<()> {
    let host: u32 = rand::random_range(1..0x00ff_ffff);
    let address = Ipv4Addr::from_bits(Ipv4Addr::LOCALHOST.to_bits() & 0xff00_0000 | host);
    let on: libc::c_int = 1;
    // Not a port of this address's own, but one that is free towards this destination (kernel 4.2).
    // SAFETY: the value is an int, as the length says.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    socket.bind(&SocketAddr::from((address, 0)).into())
}

/// Ends a connection with a reset, so that the other side does not take it for a complete answer.
pub fn reset(stream: TcpStream) {
    if let Err(error) = SockRef::from(&stream).set_linger(Some(Duration::ZERO)) {
        tracing::debug!(%error, "a connection ends without a reset");
    }
}
