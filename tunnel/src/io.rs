//! The socket under a TLS session: large reads, and a handle for its kernel statistics.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_util::io::poll_read_buf;

/// Bytes asked of the kernel at once when reads are large. rustls reads 4 KiB at a time, which would be four
/// system calls a TLS record; sixteen records (RFC 8446 section 5.1) a call make the calls' cost vanish.
const LARGE_READ: usize = 256 * 1024;

/// Bytes asked of the kernel at first: a chatty connection needs no more, an idle one keeps nothing.
const SMALL_READ: usize = 8 * 1024;

/// A TCP socket read in large pieces. The buffer exists only while bytes come.
#[derive(Debug)]
pub struct BufferedSocket {
    socket: TcpStream,
    /// A duplicate for [`SocketHandle`]; goes with the socket, so that closing it closes the connection.
    statistics: Arc<OwnedFd>,
    buffer: BytesMut,
    /// How much to ask for next: grows while reads fill the buffer, shrinks when they don't.
    ask: usize,
}

/// A tunnel's socket, for reading statistics such as `TCP_INFO`. Does not keep the socket open.
#[derive(Debug, Clone)]
pub struct SocketHandle(Weak<OwnedFd>);

// === impl BufferedSocket ===

impl BufferedSocket {
    /// Takes a connected socket and turns off Nagle's algorithm: records leave as soon as they are written.
    ///
    /// # Errors
    /// When the socket is no longer connected, or no more descriptors can be had.
    pub fn new(socket: TcpStream) -> io::Result<Self> {
        socket.set_nodelay(true)?;
        let statistics = Arc::new(socket.as_fd().try_clone_to_owned()?);
        Ok(Self {
            socket,
            statistics,
            buffer: BytesMut::new(),
            ask: SMALL_READ,
        })
    }

    /// A handle that outlives this without keeping the socket open.
    #[must_use]
    pub fn handle(&self) -> SocketHandle {
        SocketHandle(Arc::downgrade(&self.statistics))
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.buffer.reserve(self.ask);
        match poll_read_buf(Pin::new(&mut self.socket), cx, &mut self.buffer) {
            Poll::Pending => {
                // Nothing to hold: give the memory back until there is.
                self.buffer = BytesMut::new();
                Poll::Pending
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(read)) => {
                if read >= self.ask {
                    self.ask = (self.ask * 4).min(LARGE_READ);
                } else if read <= SMALL_READ {
                    self.ask = SMALL_READ;
                }
                Poll::Ready(Ok(()))
            }
        }
    }
}

impl AsyncRead for BufferedSocket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.buffer.is_empty() {
            ready!(self.poll_fill(cx))?;
        }
        let length = self.buffer.len().min(out.remaining());
        out.put_slice(&self.buffer[..length]);
        self.buffer.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for BufferedSocket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

// === impl SocketHandle ===

impl SocketHandle {
    /// Runs a function on the socket, unless it was closed.
    pub fn with<T>(&self, f: impl FnOnce(BorrowedFd<'_>) -> T) -> Option<T> {
        self.0.upgrade().map(|socket| f(socket.as_fd()))
    }
}
