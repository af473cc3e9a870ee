//! The TCP sockets of a network namespace: listing them, and ending a connection that must not go on (sock_diag(7),
//! SOCK_DESTROY of kernel 4.9 with CONFIG_INET_DIAG_DESTROY).

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_sock_diag::{
    SockDiagDestroy, SockDiagMessage,
    constants::{AF_INET, AF_INET6, IPPROTO_TCP, TCP_LISTEN, TCP_TIME_WAIT},
    inet::{ExtensionFlags, InetRequest, SocketId, StateFlags},
};
use netlink_sys::{Socket, protocols::NETLINK_SOCK_DIAG};

use crate::netns::NetNs;

/// Largest answer of the kernel to one read: it fills at most 32 KiB (`NLMSG_GOODSIZE` and what recvmsg grows it to).
const BUFFER: usize = 64 * 1024;

/// The TCP sockets of a network namespace.
pub(crate) struct SockDiag(Socket);

/// A TCP socket.
#[derive(Debug, Clone)]
pub(crate) struct TcpSocket {
    /// Its own address, v4-mapped ones as IPv4.
    pub(crate) local: SocketAddr,
    /// Its peer's.
    pub(crate) remote: SocketAddr,
    /// Whether it waits for connections.
    pub(crate) listens: bool,
    id: SocketId,
    family: u8,
}

impl SockDiag {
    /// Those of a namespace.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or the kernel has no sock_diag.
    pub(crate) fn open(netns: &NetNs) -> io::Result<Self> {
        let socket = netns.run(|| Socket::new(NETLINK_SOCK_DIAG))??;
        Ok(Self(socket))
    }

    /// All of them but those in TIME_WAIT, of both families.
    ///
    /// # Errors
    /// When the kernel refuses, or answers what is not understood.
    pub(crate) fn sockets(&self) -> io::Result<Vec<TcpSocket>> {
        let mut found = Vec::new();
        for (family, id) in [(AF_INET, SocketId::new_v4()), (AF_INET6, SocketId::new_v6())] {
            let request = SockDiagMessage::InetRequest(InetRequest {
                family,
                protocol: IPPROTO_TCP,
                extensions: ExtensionFlags::empty(),
                states: StateFlags::all() - StateFlags::TIME_WAIT,
                socket_id: id,
            });
            self.send(request, NLM_F_REQUEST | NLM_F_DUMP)?;
            self.receive(|message: NetlinkMessage<SockDiagMessage>| {
                if let NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) = message.payload
                {
                    let (header, id) = (&response.header, &response.header.socket_id);
                    let address = |ip: std::net::IpAddr, port| SocketAddr::new(ip.to_canonical(), port);
                    if header.state != TCP_TIME_WAIT {
                        found.push(TcpSocket {
                            local: address(id.source_address, id.source_port),
                            remote: address(id.destination_address, id.destination_port),
                            listens: header.state == TCP_LISTEN,
                            family: header.family,
                            id: response.header.socket_id,
                        });
                    }
                }
            })?;
        }
        Ok(found)
    }

    /// Ends a socket's connection with a reset. `false` if it was gone already.
    ///
    /// The socket is named by its cookie: by its addresses alone the kernel would find the listener, once the connection
    /// is gone, and end that.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn destroy(&self, socket: &TcpSocket) -> io::Result<bool> {
        if socket.listens {
            return Ok(false);
        }
        let request = SockDiagDestroy::new(SockDiagMessage::InetRequest(InetRequest {
            family: socket.family,
            protocol: IPPROTO_TCP,
            extensions: ExtensionFlags::empty(),
            states: StateFlags::all(),
            socket_id: socket.id.clone(),
        }));
        self.send(request, NLM_F_REQUEST | NLM_F_ACK)?;
        match self.receive(|_: NetlinkMessage<SockDiagMessage>| {}) {
            Ok(()) => Ok(true),
            // Gone, or on its way out: in TIME_WAIT, which some kernels cannot end.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EOPNOTSUPP)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn send<M: NetlinkSerializable>(&self, message: M, flags: u16) -> io::Result<()> {
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.0.send(&bytes, 0).map(drop)
    }

    /// Hands each message of an answer to `sink`, up to the answer's end.
    fn receive<M: NetlinkDeserializable>(&self, mut sink: impl FnMut(NetlinkMessage<M>)) -> io::Result<()> {
        let mut buffer = Vec::with_capacity(BUFFER);
        loop {
            buffer.clear();
            self.0.recv(&mut buffer, 0)?;
            let mut rest: &[u8] = &buffer;
            while !rest.is_empty() {
                let message = NetlinkMessage::<M>::deserialize(rest).map_err(io::Error::other)?;
                let length = usize::try_from(message.header.length).unwrap_or(usize::MAX);
                match &message.payload {
                    NetlinkPayload::Done(_) => return Ok(()),
                    NetlinkPayload::Error(error) => {
                        // An acknowledgement is an error of 0.
                        return error.code.map_or(Ok(()), |_| Err(error.to_io()));
                    }
                    _ => {}
                }
                sink(message);
                // Messages are aligned to four bytes.
                rest = rest.get(length.next_multiple_of(4).max(4)..).unwrap_or_default();
            }
        }
    }
}

/// Whether this kernel ends connections on request: tried on one over loopback, of the agent with itself.
///
/// # Errors
/// Why it does not.
pub(crate) fn check(netns: &NetNs) -> io::Result<()> {
    let (client, _server) = netns.run(|| {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let client = TcpStream::connect(listener.local_addr()?)?;
        io::Result::Ok((client, listener))
    })??;
    let own = client.local_addr()?;
    let diag = SockDiag::open(netns)?;
    let socket = diag.sockets()?.into_iter().find(|socket| socket.local == own);
    let socket = socket.ok_or_else(|| io::Error::other("sock_diag does not list the agent's own socket"))?;
    if diag.destroy(&socket)? {
        Ok(())
    } else {
        Err(io::Error::from(io::ErrorKind::Unsupported))
    }
}
