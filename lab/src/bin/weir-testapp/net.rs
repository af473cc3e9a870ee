//! What the programs share: listening, serving each connection on a thread, lines of JSON.

use std::{
    io::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::Args;
use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};

/// Thousands of clients connect at once in tests; the kernel caps this at net.core.somaxconn.
const BACKLOG: i32 = 16384;
/// A thread a connection: small stacks, since thousands are held.
const STACK: usize = 256 * 1024;

/// Where a server listens.
#[derive(Debug, Args)]
pub(crate) struct Listen {
    /// Port; 0 for any.
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Address; all IPv4 addresses unless set.
    #[arg(long)]
    address: Option<IpAddr>,
    /// One IPv6 socket for both families, as Java, Go and Node make it.
    #[arg(long, conflicts_with = "address")]
    dual_stack: bool,
}

impl Listen {
    /// Listens, says so, and serves each connection on a thread of its own, for ever.
    pub(crate) fn serve(
        &self,
        serve: impl Fn(TcpStream, SocketAddr) -> Result<()> + Clone + Send + 'static,
    ) -> Result<()> {
        let listener = self.announce()?;
        loop {
            let (stream, peer) = match listener.accept() {
                Ok(accepted) => accepted,
                Err(error) => {
                    eprintln!("accept: {error}");
                    // Out of descriptors, most likely: other threads have to close some.
                    thread::sleep(Duration::from_millis(10));
                    continue;
                }
            };
            let serve = serve.clone();
            let thread = thread::Builder::new().stack_size(STACK);
            thread.spawn(move || {
                if let Err(error) = serve(stream, peer) {
                    eprintln!("{peer}: {error:#}");
                }
            })?;
        }
    }

    /// Listens, and says so.
    pub(crate) fn announce(&self) -> Result<TcpListener> {
        let listener = self.listen()?;
        print(&serde_json::json!({ "listening": listener.local_addr()? }));
        Ok(listener)
    }

    fn listen(&self) -> Result<TcpListener> {
        let address = match (self.address, self.dual_stack) {
            (Some(address), _) => address,
            (None, true) => Ipv6Addr::UNSPECIFIED.into(),
            (None, false) => Ipv4Addr::UNSPECIFIED.into(),
        };
        let address = SocketAddr::new(address, self.port);
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        if address.is_ipv6() {
            socket.set_only_v6(!self.dual_stack)?;
        }
        socket.set_reuse_address(true)?;
        socket
            .bind(&address.into())
            .with_context(|| address.to_string())?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    }
}

/// Writes one line of JSON at once.
pub(crate) fn print(value: &Value) {
    let mut line = value.to_string();
    line.push('\n');
    let mut stdout = std::io::stdout().lock();
    // Whoever read it may have gone; the work goes on.
    let _ = stdout.write_all(line.as_bytes());
    let _ = stdout.flush();
}

/// Hexadecimal SHA-256.
pub(crate) fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The name that manual pages use, for the errors that tests ask about.
pub(crate) fn error_name(error: &std::io::Error) -> String {
    let names = [
        (libc::ECONNREFUSED, "ECONNREFUSED"),
        (libc::ECONNRESET, "ECONNRESET"),
        (libc::EPIPE, "EPIPE"),
        (libc::ETIMEDOUT, "ETIMEDOUT"),
        (libc::EAGAIN, "EAGAIN"),
        (libc::EINPROGRESS, "EINPROGRESS"),
        (libc::ENETUNREACH, "ENETUNREACH"),
        (libc::EHOSTUNREACH, "EHOSTUNREACH"),
        (libc::EPERM, "EPERM"),
        (libc::EACCES, "EACCES"),
        (libc::EADDRNOTAVAIL, "EADDRNOTAVAIL"),
        (libc::EISCONN, "EISCONN"),
        (libc::EINVAL, "EINVAL"),
    ];
    let known = names
        .iter()
        .find(|(number, _)| error.raw_os_error() == Some(*number));
    known.map_or_else(|| error.to_string(), |(_, name)| (*name).to_owned())
}

/// Bytes that are the same at each run and differ by seed (xorshift64).
pub(crate) struct Pattern(u64);

impl Pattern {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn fill(&mut self, buffer: &mut [u8]) {
        for chunk in buffer.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            chunk.copy_from_slice(&self.0.to_le_bytes()[..chunk.len()]);
        }
    }
}
