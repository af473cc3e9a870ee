//! One connection, made in a particular way, and a line about what the caller saw.

use std::{
    io::{self, Read as _, Write as _},
    net::{Shutdown, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::Args;
use rustix::event::{PollFd, PollFlags, Timespec};
use serde::Serialize;
use serde_json::json;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::net;

#[derive(Debug, Args)]
pub(crate) struct Connect {
    /// Where to.
    to: SocketAddr,
    /// Bind to this address first.
    #[arg(long)]
    bind: Option<SocketAddr>,
    /// Bind to this device first (SO_BINDTODEVICE).
    #[arg(long)]
    device: Option<String>,
    /// Set this mark on the socket (SO_MARK).
    #[arg(long)]
    mark: Option<u32>,
    /// Connect without blocking and poll for the end.
    #[arg(long)]
    non_blocking: bool,
    /// Multipath TCP.
    #[arg(long)]
    mptcp: bool,
    /// An IPv6 socket also to an IPv4 address, as Java and Node make it.
    #[arg(long)]
    mapped: bool,
    /// When done with the first connection, dissolve it (AF_UNSPEC) and connect the same socket to here.
    #[arg(long)]
    then: Option<SocketAddr>,
    /// Sent once connected.
    #[arg(long, default_value = "")]
    send: String,
    /// Shut the write side down after sending.
    #[arg(long)]
    half_close: bool,
    /// Read to the end, or this many bytes.
    #[arg(long)]
    read: Option<usize>,
    /// Read to the end.
    #[arg(long, conflicts_with = "read")]
    read_all: bool,
    /// Close with a reset (SO_LINGER 0).
    #[arg(long)]
    reset: bool,
    /// Stay connected for this long before closing.
    #[arg(long, default_value_t = 0)]
    hold_ms: u64,
    /// How long to wait for the connection and for each read.
    #[arg(long, default_value_t = 10_000)]
    timeout_ms: u64,
}

/// What was seen of one connection.
#[derive(Debug, Default, Serialize)]
struct Seen {
    to: Option<SocketAddr>,
    /// `ok`, or the name of the error.
    connect: String,
    /// Number of connect's error.
    errno: Option<i32>,
    getsockname: Option<SocketAddr>,
    getpeername: Option<SocketAddr>,
    sent: usize,
    received: usize,
    text: String,
    /// How reading ended: `eof`, `enough`, or the name of the error.
    end: Option<String>,
}

impl Connect {
    /// Ends well whatever the connection's fate: that is told in the line.
    pub(crate) fn run(self) -> Result<()> {
        let domain = if self.mapped || self.to.is_ipv6() {
            Domain::IPV6
        } else {
            Domain::IPV4
        };
        let protocol = if self.mptcp {
            Protocol::MPTCP
        } else {
            Protocol::TCP
        };
        let socket = Socket::new(domain, Type::STREAM, Some(protocol)).context("socket")?;
        if let Some(device) = &self.device {
            socket
                .bind_device(Some(device.as_bytes()))
                .context("SO_BINDTODEVICE")?;
        }
        if let Some(mark) = self.mark {
            socket.set_mark(mark).context("SO_MARK")?;
        }
        if let Some(address) = self.bind {
            socket.set_reuse_address(true)?;
            socket
                .bind(&self.address(address))
                .with_context(|| format!("bind to {address}"))?;
        }
        let first = self.once(&socket, self.to)?;
        let mut line = json!(first);
        if let Some(next) = self.then {
            rustix::net::connect_unspec(&socket).context("connect to AF_UNSPEC")?;
            line["then"] = json!(self.once(&socket, next)?);
        }
        std::thread::sleep(Duration::from_millis(self.hold_ms));
        if self.reset {
            socket.set_linger(Some(Duration::ZERO))?;
        }
        drop(socket);
        net::print(&line);
        Ok(())
    }

    fn once(&self, socket: &Socket, to: SocketAddr) -> Result<Seen> {
        let mut seen = Seen {
            to: Some(to),
            ..Seen::default()
        };
        match self.establish(socket, &self.address(to)) {
            Ok(()) => seen.connect = "ok".to_owned(),
            Err(error) => {
                seen.connect = net::error_name(&error);
                seen.errno = error.raw_os_error();
            }
        }
        seen.getsockname = address_of(socket.local_addr());
        seen.getpeername = address_of(socket.peer_addr());
        if seen.connect == "ok" {
            self.talk(socket, &mut seen)?;
        }
        Ok(seen)
    }

    fn establish(&self, socket: &Socket, to: &SockAddr) -> io::Result<()> {
        let patience = Duration::from_millis(self.timeout_ms);
        if !self.non_blocking {
            // Bounds a blocking connect too.
            socket.set_write_timeout(Some(patience))?;
            return socket.connect(to);
        }
        socket.set_nonblocking(true)?;
        match socket.connect(to) {
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
            other => return other,
        }
        let timeout = Timespec::try_from(patience).map_err(io::Error::other)?;
        if rustix::event::poll(&mut [PollFd::new(socket, PollFlags::OUT)], Some(&timeout))? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let failed = socket.take_error()?;
        socket.set_nonblocking(false)?;
        failed.map_or(Ok(()), Err)
    }

    fn talk(&self, mut socket: &Socket, seen: &mut Seen) -> Result<()> {
        socket.set_read_timeout(Some(Duration::from_millis(self.timeout_ms)))?;
        match socket.write_all(self.send.as_bytes()) {
            Ok(()) => seen.sent = self.send.len(),
            Err(error) => seen.end = Some(net::error_name(&error)),
        }
        if self.half_close {
            socket.shutdown(Shutdown::Write).ok();
        }
        let limit = if self.read_all {
            usize::MAX
        } else {
            self.read.unwrap_or(0)
        };
        let mut text = Vec::new();
        let mut buffer = [0; 16 * 1024];
        while text.len() < limit {
            let room = buffer.len().min(limit - text.len());
            match socket.read(&mut buffer[..room]) {
                Ok(0) => {
                    // A write that failed has already taken the socket's error, and is what happened.
                    seen.end.get_or_insert_with(|| "eof".to_owned());
                    break;
                }
                Ok(count) => text.extend_from_slice(&buffer[..count]),
                Err(error) => {
                    seen.end = Some(net::error_name(&error));
                    break;
                }
            }
        }
        if limit > 0 && seen.end.is_none() {
            seen.end = Some("enough".to_owned());
        }
        seen.received = text.len();
        seen.text = String::from_utf8_lossy(&text).into_owned();
        Ok(())
    }

    fn address(&self, address: SocketAddr) -> SockAddr {
        match address {
            SocketAddr::V4(v4) if self.mapped => {
                SocketAddr::from((v4.ip().to_ipv6_mapped(), v4.port())).into()
            }
            other => other.into(),
        }
    }
}

fn address_of(address: io::Result<SockAddr>) -> Option<SocketAddr> {
    address.ok().and_then(|address| address.as_socket())
}
