//! Connections that the server can cut.
//!
//! A client that stops reading leaves a response in HTTP/2's buffers, where a stream that ends cannot take it back:
//! only the end of the connection frees it.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use futures_util::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

/// Cuts one connection.
#[derive(Clone, Debug, Default)]
pub struct Sever(Arc<State>);

#[derive(Debug, Default)]
struct State {
    cut: AtomicBool,
    reader: AtomicWaker,
}

/// The other end of a connection; found in the extensions of its requests.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its address.
    pub address: Option<SocketAddr>,
    /// Cuts the connection.
    pub sever: Sever,
}

/// A connection that fails once it is cut. Give these to tonic's server (TLS inside) if [`super::Ads`] is served, with
/// TCP_NODELAY set: else the end of each response waits for the client's delayed ACK, 40 ms.
pub struct Severable<T> {
    io: T,
    peer: Peer,
    /// Its place among the connections that there may be at once, given back with it.
    _place: Option<Box<dyn Send + Sync>>,
}

impl Sever {
    /// Ends the connection, whatever it is doing.
    pub fn cut(&self) {
        self.0.cut.store(true, Ordering::Release);
        self.0.reader.wake();
    }

    fn check(&self) -> io::Result<()> {
        if self.0.cut.load(Ordering::Acquire) {
            return Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "the client stopped reading",
            ));
        }
        Ok(())
    }
}

impl<T> Severable<T> {
    /// Wraps a connection.
    pub fn new(io: T, address: Option<SocketAddr>) -> Self {
        Self {
            io,
            peer: Peer {
                address,
                sever: Sever::default(),
            },
            _place: None,
        }
    }

    /// With its place among the connections that there may be at once.
    #[must_use]
    pub fn with_place(self, place: impl Send + Sync + 'static) -> Self {
        Self {
            _place: Some(Box::new(place)),
            ..self
        }
    }
}

impl<T> Connected for Severable<T> {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Severable<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // HTTP/2 always has a read under way, so this one waker is enough to end the connection.
        self.peer.sever.0.reader.register(context.waker());
        self.peer.sever.check()?;
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Severable<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.peer.sever.check()?;
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.peer.sever.check()?;
        Pin::new(&mut self.io).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.peer.sever.check()?;
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A goodbye over TLS would wait for the peer that does not read.
        self.peer.sever.check()?;
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}
