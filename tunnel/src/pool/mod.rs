//! The client's side of HBONE: tunnel connections, shared by the streams of one pod to one destination.

mod client;
mod slots;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use async_trait::async_trait;
use http::{Request, StatusCode};
use tokio::{net::TcpStream, sync::oneshot, time::timeout};
use weir_types::{Identity, Reason};

use crate::{
    certs::{CertificateError, CertificateStore, Failure},
    connection::{ConnectionState, PodKey, Registry, StreamGuard},
    hbone::{Authority, ConnectHeaders, TunnelStream},
};
use client::{Client, Unsent};
use slots::{Acquired, Slots};

/// A connect that takes longer has failed: three SYNs (sent at 0, 1 and 3 s) went unanswered.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The TLS handshake must be done in this time.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// The answer to a CONNECT must come in this time: the server's own connect to the application, and slack.
pub const RESPONSE_TIMEOUT: Duration = Duration::from_secs(20);

/// A connection without streams is closed after this time.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(5 * 60);

/// A request that was certainly not processed is sent again this often, on another connection.
const RETRIES: usize = 1;

/// Connections found closed before a request gives up: a few may have ended together (a server that restarts),
/// more means that new ones end at once.
const CLOSED_CONNECTIONS: usize = 4;

/// Connections that one request may cause: one, and a few more when they end before they carried it.
const CONNECTS: usize = 4;

/// An open must be done in this time, whatever happens: certificate, connect, handshake and answer at their slowest
/// (20, 5, 10 and 20 s). It also ends the wait for room on connections that others keep taking.
pub const OPEN_TIMEOUT: Duration = Duration::from_secs(60);

/// Opens sockets in a pod's network namespace, so that the network sees pod to pod.
#[async_trait]
pub trait Connector: Send + Sync + 'static {
    /// Connects from the pod to the address. The pool bounds the time.
    async fn connect(&self, source: PodKey, address: SocketAddr) -> io::Result<TcpStream>;

    /// Told how long a TLS handshake took that succeeded.
    fn shook_hands(&self, _took: Duration) {}
}

/// Which connection a stream needs: two pods never share one, even of the same service account, because its
/// source address is the pod's.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target {
    /// The pod that the connection comes from.
    pub source: PodKey,
    /// Its identity.
    pub source_identity: Identity,
    /// The identities of which the server must have one.
    pub expected: Arc<[Identity]>,
    /// The server's HBONE address, usually port 15008.
    pub address: SocketAddr,
}

/// Why a tunnel was not opened.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OpenError {
    /// There is no certificate for the source.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The connection to the server failed.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// The server.
        address: SocketAddr,
        /// Why.
        source: Arc<io::Error>,
    },
    /// The connection to the server took too long.
    #[error("{address} did not accept a connection in time")]
    ConnectTimeout {
        /// The server.
        address: SocketAddr,
    },
    /// The handshake failed.
    #[error("TLS handshake with {address} failed: {failure}")]
    Handshake {
        /// The server.
        address: SocketAddr,
        /// Who refused whom, and why.
        failure: Failure,
    },
    /// The handshake took too long.
    #[error("TLS handshake with {address} took too long")]
    HandshakeTimeout {
        /// The server.
        address: SocketAddr,
    },
    /// The server answered with another status than 200.
    #[error("{address} answered {status}")]
    Status {
        /// The server.
        address: SocketAddr,
        /// The answer.
        status: StatusCode,
    },
    /// The server did not answer in time.
    #[error("{address} did not answer in time")]
    ResponseTimeout {
        /// The server.
        address: SocketAddr,
    },
    /// The stream or its connection ended before there was an answer.
    #[error("the connection to {address} ended: {reason}")]
    Ended {
        /// The server.
        address: SocketAddr,
        /// Why, if known.
        reason: Reason,
    },
    /// The authority or a header cannot be sent.
    #[error("the request cannot be expressed")]
    Request,
    /// The pod was removed, or the pool dropped.
    #[error("the pod was removed")]
    Removed,
}

/// Pooled tunnel connections. Cheap to clone.
#[derive(Clone)]
pub struct Pool {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    store: CertificateStore,
    connector: Arc<dyn Connector>,
    registry: Registry,
    slots: Slots,
}

// === impl OpenError ===

impl OpenError {
    /// The reason that flows and metrics show.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Certificate(error) => error.reason(),
            Self::Connect { source, .. } => connect_reason(source),
            Self::ConnectTimeout { .. } | Self::ResponseTimeout { .. } => Reason::ConnectTimeout,
            Self::Handshake { failure, .. } => failure.reason,
            Self::HandshakeTimeout { .. } => Reason::HandshakeTimeout,
            Self::Status { status, .. } => match *status {
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Reason::PolicyDenied,
                StatusCode::BAD_REQUEST => Reason::BadAuthority,
                _ => Reason::ConnectionRefused,
            },
            Self::Ended { reason, .. } => *reason,
            Self::Request => Reason::Internal,
            Self::Removed => Reason::PolicyChanged,
        }
    }

    /// The server's answer, if there was one.
    #[must_use]
    pub fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Status { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// Whether another endpoint of the same service may be tried: this one failed, rather than refused us.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            // A server that refused our certificate has refused us, and its neighbours judge alike. Other alerts
            // are about its own state.
            Self::Handshake { failure, .. } => !failure.by_peer || failure.reason == Reason::HandshakeFailed,
            Self::Connect { .. }
            | Self::ConnectTimeout { .. }
            | Self::HandshakeTimeout { .. }
            | Self::ResponseTimeout { .. }
            | Self::Ended { .. } => true,
            Self::Status { status, .. } => status.is_server_error(),
            Self::Certificate(_) | Self::Request | Self::Removed => false,
        }
    }
}

/// What the failure of a connect means.
#[must_use]
pub fn connect_reason(error: &io::Error) -> Reason {
    match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => Reason::ConnectionRefused,
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable | io::ErrorKind::NetworkDown => {
            Reason::Unreachable
        }
        io::ErrorKind::TimedOut => Reason::ConnectTimeout,
        _ => Reason::Io,
    }
}

// === impl Pool ===

impl Pool {
    /// An empty pool. Its connections are driven by tasks of the runtime that opens them.
    #[must_use]
    pub fn new(store: CertificateStore, connector: Arc<dyn Connector>, registry: Registry) -> Self {
        Self {
            inner: Arc::new(Inner {
                store,
                connector,
                registry,
                slots: Slots::default(),
            }),
        }
    }

    /// Opens a stream to `authority` through the target's server: on a connection that is there, or on a new
    /// one that concurrent callers share.
    ///
    /// Cancel safe: dropping it resets the stream; a connection that was being made is kept for others.
    ///
    /// # Errors
    /// See [`OpenError`]; [`OpenError::is_retryable`] says whether another endpoint may be tried.
    pub async fn open(
        &self,
        target: &Target,
        authority: &Authority,
        headers: &ConnectHeaders,
    ) -> Result<TunnelStream, OpenError> {
        let request = headers.request(authority).map_err(|_| OpenError::Request)?;
        let address = target.address;
        timeout(OPEN_TIMEOUT, self.send(target, request))
            .await
            .unwrap_or(Err(OpenError::ResponseTimeout { address }))
    }

    async fn send(&self, target: &Target, request: Request<()>) -> Result<TunnelStream, OpenError> {
        let address = target.address;
        let (mut retries, mut closed, mut connects) = (0, 0, 0);
        loop {
            let (client, guard) = self.client(target, &mut connects).await?;
            let answer = timeout(RESPONSE_TIMEOUT, client.connect_stream(request.clone(), guard)).await;
            match answer {
                Err(_) => return Err(OpenError::ResponseTimeout { address }),
                Ok(Ok((status, stream))) if status == StatusCode::OK => return Ok(stream),
                Ok(Ok((status, _))) => return Err(OpenError::Status { address, status }),
                // It never left this process, and the connection is gone from the pool.
                Ok(Err(Unsent::Closed)) => {
                    self.inner.slots.remove(target, &client);
                    closed += 1;
                    if closed > CLOSED_CONNECTIONS || connects >= CONNECTS || client.was_refused() {
                        return Err(client.failure(address).await);
                    }
                }
                Ok(Err(Unsent::NotProcessed)) if retries < RETRIES => retries += 1,
                Ok(Err(Unsent::NotProcessed)) => {
                    return Err(OpenError::Ended {
                        address,
                        reason: Reason::TunnelReset,
                    });
                }
                Ok(Err(Unsent::Failed)) => return Err(client.failure(address).await),
            }
        }
    }

    /// A connection with a place for a stream; one that is made for this caller serves it, whatever becomes of the
    /// connection's fitness meanwhile. So this connects once at most, and adds that to `connects`.
    async fn client(
        &self,
        target: &Target,
        connects: &mut usize,
    ) -> Result<(Arc<Client>, StreamGuard), OpenError> {
        loop {
            let usable = |client: &Client| client.is_current(&self.inner.store, target);
            match self.inner.slots.acquire(target, usable) {
                Acquired::Client(client, guard) => return Ok((client, guard)),
                Acquired::Wait(attempt) => attempt.wait().await?,
                Acquired::Connect(attempt) => {
                    *connects += 1;
                    let (inner, target) = (self.inner.clone(), target.clone());
                    let (ours, made) = oneshot::channel();
                    // A task, so that the caller may go away without taking the connection from the others.
                    let sender = attempt.sender();
                    let task = tokio::spawn(async move {
                        let result = Client::connect(&inner, &target).await;
                        inner.slots.connected(&inner, &target, &sender, result, ours);
                    });
                    attempt.runs_in(task.abort_handle());
                    attempt.wait().await?;
                    // Sent before the attempt is told to have ended.
                    return made.await.map_err(|_| OpenError::Removed);
                }
            }
        }
    }

    /// Ends all connections of a pod that is gone.
    pub fn close_source(&self, source: PodKey) {
        self.inner.slots.close_source(source);
    }

    /// The open connections.
    #[must_use]
    pub fn connections(&self) -> Vec<Arc<ConnectionState>> {
        self.inner.slots.connections()
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").finish_non_exhaustive()
    }
}
