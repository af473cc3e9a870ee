//! The gRPC server, for connections that somebody else accepts.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{Sleep, sleep},
};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::{
    service::Routes,
    transport::{
        Error,
        server::{Connected, Server as Grpc},
    },
};
use weir_proto::{
    observer::observer_server::ObserverServer, peer::peer_server::PeerServer,
    weir::flow::v1::explainer_server::ExplainerServer,
};

use crate::{
    observer::{Server, Source, Viewer},
    relay::{Connect, RelayServer},
};

/// Connections at once, of all clients.
const CONNECTIONS: usize = 1024;
/// Calls at once on one connection.
const CALLS: u32 = 64;
/// Most bytes of a request: filters of some thousand names.
const MAX_REQUEST: usize = 1 << 20;
/// Most bytes of a request to explain something: two names.
const MAX_EXPLAIN: usize = 4 << 10;
/// Most bytes of a request's headers.
const MAX_HEADERS: u32 = 16 << 10;
/// How often a silent connection is asked whether it is alive, and how long it may take to say so.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(20));
/// The first bytes of HTTP/2 (RFC 9113, section 3.4), and how long a client may take to send them: from then on it is asked
/// whether it is alive.
const PREFACE: (usize, Duration) = (24, Duration::from_secs(10));
/// Services as health checks name them. The first is what Hubble's tools ask for.
const SERVICES: [&str; 3] = ["hubble.server.Observer", "observer.Observer", "peer.Peer"];

/// What a client is connected by.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Io for T {}

/// A connection, and what its client may see.
pub struct Connection {
    io: Box<dyn Io>,
    viewer: Viewer,
    /// Until it has begun: bytes that it still has to send, and until when.
    begins: Option<(usize, Pin<Box<Sleep>>)>,
    _permit: OwnedSemaphorePermit,
}

/// Takes connections.
#[derive(Debug, Clone)]
pub struct Connections {
    to: mpsc::Sender<Connection>,
    permits: Arc<Semaphore>,
}

// === impl Connections ===

impl Connections {
    /// Serves what `source` has on all connections that are given, until the last of these is dropped.
    pub fn serve<S: Source>(source: Arc<S>) -> (Self, impl Future<Output = Result<(), Error>> + use<S>) {
        let server = Server::new(source);
        let peers = PeerServer::new(server.clone()).max_decoding_message_size(MAX_REQUEST);
        let explainer = ExplainerServer::new(server.clone()).max_decoding_message_size(MAX_EXPLAIN);
        let observer = ObserverServer::new(server).max_decoding_message_size(MAX_REQUEST);
        Self::of(Routes::new(peers).add_service(explainer).add_service(observer))
    }

    /// Serves what a relay's nodes have.
    pub fn relay<C: Connect>(
        relay: RelayServer<C>,
    ) -> (Self, impl Future<Output = Result<(), Error>> + use<C>) {
        let observer = ObserverServer::new(relay).max_decoding_message_size(MAX_REQUEST);
        Self::of(Routes::new(observer))
    }

    fn of(routes: Routes) -> (Self, impl Future<Output = Result<(), Error>> + use<>) {
        let (to, connections) = mpsc::channel(1);
        let incoming = ReceiverStream::new(connections).map(Ok::<_, io::Error>);
        let serving = async move {
            let (reporter, health) = tonic_health::server::health_reporter();
            for service in SERVICES {
                reporter
                    .set_service_status(service, tonic_health::ServingStatus::Serving)
                    .await;
            }
            Grpc::builder()
                .max_concurrent_streams(CALLS)
                .http2_max_header_list_size(MAX_HEADERS)
                .http2_keepalive_interval(Some(KEEPALIVE.0))
                .http2_keepalive_timeout(Some(KEEPALIVE.1))
                .add_routes(routes.add_service(health))
                .serve_with_incoming(incoming)
                .await
        };
        let connections = Self {
            to,
            permits: Arc::new(Semaphore::new(CONNECTIONS)),
        };
        (connections, serving)
    }

    /// Serves a client; false if there are too many, or the server has ended.
    pub async fn take(&self, io: impl Io, viewer: Viewer) -> bool {
        let Ok(permit) = self.permits.clone().try_acquire_owned() else {
            return false;
        };
        let connection = Connection {
            io: Box::new(io),
            viewer,
            begins: Some((PREFACE.0, Box::pin(sleep(PREFACE.1)))),
            _permit: permit,
        };
        self.to.send(connection).await.is_ok()
    }
}

// === impl Connection ===

impl Connected for Connection {
    type ConnectInfo = Viewer;

    fn connect_info(&self) -> Viewer {
        self.viewer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let read = Pin::new(&mut self.io).poll_read(context, into);
        let Some((left, end)) = &mut self.begins else {
            return read;
        };
        *left = left.saturating_sub(into.filled().len() - before);
        if *left == 0 {
            self.begins = None;
        } else if read.is_pending() && end.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        from: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, from)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_begin_is_hung_up_on_and_one_that_has_begun_may_be_silent() {
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        for sent in [0, 1, 23, 24] {
            let (mut client, io) = tokio::io::duplex(64);
            let mut connection = Connection {
                io: Box::new(io),
                viewer: Viewer::default(),
                begins: Some((PREFACE.0, Box::pin(sleep(PREFACE.1)))),
                _permit: Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap(),
            };
            client.write_all(&preface[..sent]).await.unwrap();
            let mut read = vec![0; sent];
            connection.read_exact(&mut read).await.unwrap();
            let more = tokio::time::timeout(PREFACE.1 * 100, connection.read_u8()).await;
            let hung_up = more.is_ok_and(|read| read.unwrap_err().kind() == io::ErrorKind::TimedOut);
            assert_eq!(hung_up, sent < 24, "{sent} bytes");
        }
    }
}
