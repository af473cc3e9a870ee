//! The server's side of HBONE: accepts tunnel connections and answers their CONNECTs.

use std::{future::Future, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use h2::server::Connection;
use http::StatusCode;
use rustls_pki_types::CertificateDer;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
    time::Instant,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;
use weir_types::{Identity, Reason, TrafficDirection};

use super::{
    Authority, ConnectRequest, HandshakeLimiter, HandshakePermit, KeepAlive, SERVER_STREAMS, TLS_BUFFER, Tap,
    TrustWatch,
    answer::{Answer, Answered},
    limiter::PeerConnections,
    server_builder,
};
use crate::{
    certs::{ALPN_H2, CertificateStore, Side, Usage, classify_io, describe},
    connection::{ConnectionState, PodKey, Registry},
    copy::{CopyOutcome, Counters},
    io::BufferedSocket,
};

/// TLS handshake and HTTP/2 preface must be done in this time: an honest peer needs milliseconds.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// After a refused handshake, how long and how much is read before closing: a socket closed with unread bytes
/// sends RST, which can overtake the alert that tells the peer why.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 64 * 1024;

/// A connection without streams is closed after this time; twice the client's, so that the client closes first.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10 * 60);

/// Requests that a peer may reset before they were answered, beyond those that were answered with 200; more is
/// the "rapid reset" attack (CVE-2023-44487), which costs us a connect to the application each.
const EARLY_RESETS: u32 = 256;

/// After a connection has ended, what its streams still owe to applications must be taken in this time: an
/// application that reads at all takes the megabyte of a stream at once, one that does not would keep it for ever.
const LAST_DELIVERY: Duration = Duration::from_secs(60);

/// What a [`Handler`] gives for a request that it lets through.
pub struct Accepted {
    /// Connected to the application.
    pub application: TcpStream,
    /// Counts the tunnel's bytes: `sent` by the application here, `received` by it.
    pub counters: Arc<Counters>,
    /// Told when the connection ended, however it did.
    pub observer: Box<dyn Observer>,
    /// Cancelled to reset the connection, for example when a new policy forbids it.
    pub stop: CancellationToken,
}

/// Told how a tunnelled connection ended.
pub trait Observer: Send + 'static {
    /// The answer 200 was sent: the connection is open.
    fn opened(&mut self, connection: &Arc<ConnectionState>);

    /// The connection ended; called once.
    fn closed(&mut self, outcome: CopyOutcome);
}

/// Why a [`Handler`] does not let a request through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// The status of the answer: 401 for policy, 503 for an application that refuses.
    pub status: StatusCode,
    /// The reason, for flow and metric.
    pub reason: Reason,
    /// The handler has told of it itself: [`Handler::refused`] is not called.
    pub told: bool,
}

/// A handshake or request that was refused before a [`Handler`] decided, or by its decision.
#[derive(Debug, Clone)]
pub struct Refused {
    /// The pod that was to be reached.
    pub pod: PodKey,
    /// The peer's address.
    pub peer: SocketAddr,
    /// The address that the peer connected to.
    pub local: SocketAddr,
    /// The peer's identity, if the handshake succeeded.
    pub peer_identity: Option<Identity>,
    /// Where the request was to lead, if it was parsed.
    pub authority: Option<Authority>,
    /// Why.
    pub reason: Reason,
    /// The peer ended the handshake because of our certificate.
    pub by_peer: bool,
}

/// Decides about requests and connects to applications.
pub trait Handler: Send + Sync + 'static {
    /// Whether the authority may be asked of the address that was connected to. A waypoint accepts others.
    fn accepts_authority(&self, request: &ConnectRequest) -> bool {
        request.is_for_local_address()
    }

    /// Decides about a request, and connects to the application. Dropped when the peer gives up.
    fn connect(
        &self,
        pod: PodKey,
        request: &ConnectRequest,
        connection: &Arc<ConnectionState>,
    ) -> impl Future<Output = Result<Accepted, Refusal>> + Send;

    /// Told of every handshake and request that was refused.
    fn refused(&self, refused: Refused);

    /// Told how long a TLS handshake took that succeeded.
    fn shook_hands(&self, _took: Duration) {}
}

/// What a [`Server`] shares among its connections.
#[derive(Debug, Clone, Default)]
pub struct ServerSettings {
    /// Bounds handshakes under way.
    pub limiter: HandshakeLimiter,
    /// Lists open connections.
    pub registry: Registry,
    /// Cancelled to drain: no new requests, open streams finish, then connections close.
    pub drain: CancellationToken,
}

/// An HBONE server for any number of local pods.
pub struct Server<H> {
    store: CertificateStore,
    handler: Arc<H>,
    settings: ServerSettings,
    peers: PeerConnections,
}

/// The local end of a connection that was accepted.
#[derive(Debug, Clone)]
pub(super) struct End {
    pub(super) pod: PodKey,
    pub(super) local: SocketAddr,
    pub(super) peer: SocketAddr,
}

// === impl Refusal ===

impl Refusal {
    /// Denied by a policy: 401.
    pub const POLICY: Self = Self {
        status: StatusCode::UNAUTHORIZED,
        reason: Reason::PolicyDenied,
        told: false,
    };

    /// The application or the way to it failed: 503.
    #[must_use]
    pub fn unavailable(reason: Reason) -> Self {
        Self {
            status: StatusCode::SERVICE_UNAVAILABLE,
            reason,
            told: false,
        }
    }

    /// The same, of which the handler has told.
    #[must_use]
    pub fn told(self) -> Self {
        Self { told: true, ..self }
    }
}

// === impl Server ===

impl<H: Handler> Server<H> {
    /// A server whose certificates come from `store`.
    #[must_use]
    pub fn new(store: CertificateStore, handler: Arc<H>, settings: ServerSettings) -> Self {
        Self {
            store,
            handler,
            settings,
            peers: PeerConnections::default(),
        }
    }

    /// Serves one accepted connection to its end, as `identity`. Dropping the future resets all its streams.
    ///
    /// `local` is the address that the peer connected to, `pod` the pod that has it.
    pub async fn serve(
        &self,
        socket: TcpStream,
        local: SocketAddr,
        peer: SocketAddr,
        pod: PodKey,
        identity: &Identity,
    ) {
        let end = End { pod, local, peer };
        if self.settings.drain.is_cancelled() {
            self.refuse_handshake(&end, Reason::Shutdown, false);
            return;
        }
        let Some(permit) = self.settings.limiter.acquire(peer.ip(), pod) else {
            // No linger: the point is to spend nothing.
            let _ = socket.set_zero_linger();
            self.refuse_handshake(&end, Reason::HandshakeLimit, false);
            return;
        };
        let deadline = Instant::now() + HANDSHAKE_TIMEOUT;
        if let Some((tls, watch)) = self.handshake(socket, &end, identity, deadline).await {
            self.run(tls, watch, end, permit, deadline).await;
        }
    }

    async fn handshake(
        &self,
        socket: TcpStream,
        end: &End,
        identity: &Identity,
        deadline: Instant,
    ) -> Option<(TlsStream<BufferedSocket>, TrustWatch)> {
        let config = match self.store.server_config(identity).await {
            Ok(config) => config,
            Err(error) => {
                tracing::warn!(%identity, %error, "refusing a connection");
                self.refuse_handshake(end, error.reason(), false);
                return None;
            }
        };
        let socket = BufferedSocket::new(socket).ok()?;
        let began = Instant::now();
        let accept = TlsAcceptor::from(config).accept(socket).into_fallible();
        let tls = match tokio::time::timeout_at(deadline, accept).await {
            Err(_) => {
                self.refuse_handshake(end, Reason::HandshakeTimeout, false);
                return None;
            }
            Ok(Err((error, socket))) => {
                let failure = classify_io(&error, Side::Server);
                let reason = failure.map_or(Reason::HandshakeFailed, |failure| failure.reason);
                tracing::debug!(peer = %end.peer, %error, %reason, "TLS handshake failed");
                self.refuse_handshake(end, reason, failure.is_some_and(|failure| failure.by_peer));
                linger(socket).await;
                return None;
            }
            Ok(Ok(mut tls)) => {
                self.handler.shook_hands(began.elapsed());
                tls.get_mut().1.set_buffer_limit(Some(TLS_BUFFER));
                tls
            }
        };
        let session = tls.get_ref().1;
        let chain: Option<Vec<CertificateDer<'static>>> = session
            .peer_certificates()
            .map(|chain| chain.iter().map(|der| der.clone().into_owned()).collect());
        let watch = chain.and_then(|chain| TrustWatch::new(&self.store, chain, Usage::Client));
        match watch {
            Some(watch) if session.alpn_protocol() == Some(ALPN_H2) => Some((tls, watch)),
            _ => {
                self.refuse_handshake(end, Reason::HandshakeFailed, false);
                None
            }
        }
    }

    async fn run(
        &self,
        tls: TlsStream<BufferedSocket>,
        watch: TrustWatch,
        end: End,
        permit: HandshakePermit,
        deadline: Instant,
    ) {
        let state = ConnectionState::new(
            TrafficDirection::Ingress,
            end.pod,
            watch.peer(),
            end.peer,
            describe(tls.get_ref().1),
            tls.get_ref().0.handle(),
        );
        let Some(_counted) = self.peers.add(end.pod, end.peer.ip()) else {
            self.refuse(&end, Some(state.peer.clone()), Reason::ConnectionLimit, false);
            return;
        };
        let (tap, failure) = Tap::new(tls, Side::Server);
        let handshake = server_builder().handshake::<_, Bytes>(tap);
        let mut connection = match tokio::time::timeout_at(deadline, handshake).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(_)) => {
                // A client that refuses our certificate says so after its own side of the handshake.
                match failure.get() {
                    Some(failure) => self.refuse_handshake(&end, failure.reason, failure.by_peer),
                    None => self.refuse_handshake(&end, Reason::HandshakeFailed, false),
                }
                return;
            }
            Err(_) => {
                self.refuse_handshake(&end, Reason::HandshakeTimeout, false);
                return;
            }
        };
        drop(permit);
        let _registered = self.settings.registry.register(&state);
        let mut streams = JoinSet::new();
        let reason = self
            .accept(&mut connection, &mut streams, watch, &state, &end)
            .await;
        state.end(reason);
        // Streams still open end with the connection, and with its reason.
        drop(connection);
        let rest = async { while streams.join_next().await.is_some() {} };
        if tokio::time::timeout(LAST_DELIVERY, rest).await.is_err() {
            streams.shutdown().await;
        }
    }

    /// Accepts requests until the connection ends; the reason is why.
    async fn accept(
        &self,
        connection: &mut Connection<Tap<TlsStream<BufferedSocket>>, Bytes>,
        streams: &mut JoinSet<Answered>,
        watch: TrustWatch,
        state: &Arc<ConnectionState>,
        end: &End,
    ) -> Reason {
        let mut lost = std::pin::pin!(KeepAlive::new(connection.ping_pong()).lost());
        let mut distrusted = std::pin::pin!(watch.ended());
        let mut idle = std::pin::pin!(tokio::time::sleep(IDLE_TIMEOUT));
        let mut draining = false;
        let mut early_resets = 0_u32;
        loop {
            tokio::select! {
                request = connection.accept() => match request {
                    Some(Ok((request, mut respond))) => {
                        while let Some(done) = streams.try_join_next() {
                            early_resets = done.map_or(early_resets, |done| done.count(early_resets));
                        }
                        // HTTP/2 counts a stream until both sides have ended it, this counts it until the
                        // application has taken what it carried.
                        if streams.len() >= SERVER_STREAMS as usize {
                            respond.send_reset(h2::Reason::REFUSED_STREAM);
                            self.refuse(end, Some(state.peer.clone()), Reason::ConnectionLimit, false);
                            continue;
                        }
                        let answer = Answer {
                            handler: self.handler.clone(),
                            state: state.clone(),
                            end: end.clone(),
                        };
                        streams.spawn(answer.run(request, respond));
                        // So that it connects before the next request's: an application sees its clients in the
                        // order in which they came. The runtime would run the newest first.
                        tokio::task::yield_now().await;
                    }
                    Some(Err(error)) => {
                        tracing::debug!(peer = %end.peer, %error, "tunnel connection failed");
                        return Reason::TunnelBroken;
                    }
                    None => return if draining { Reason::Shutdown } else { Reason::TunnelBroken },
                },
                Some(done) = streams.join_next(), if !streams.is_empty() => {
                    idle.as_mut().reset(Instant::now() + IDLE_TIMEOUT);
                    early_resets = done.map_or(early_resets, |done| done.count(early_resets));
                    if early_resets > EARLY_RESETS {
                        tracing::warn!(peer = %end.peer, "closing a connection whose requests are reset at once");
                        connection.abrupt_shutdown(h2::Reason::ENHANCE_YOUR_CALM);
                        early_resets = 0;
                    }
                },
                () = &mut idle, if streams.is_empty() && !draining => {
                    draining = true;
                    connection.graceful_shutdown();
                }
                reason = &mut lost => return reason,
                () = &mut distrusted => return Reason::TrustEnded,
                () = self.settings.drain.cancelled(), if !draining => {
                    draining = true;
                    connection.graceful_shutdown();
                }
            }
        }
    }

    fn refuse_handshake(&self, end: &End, reason: Reason, by_peer: bool) {
        self.refuse(end, None, reason, by_peer);
    }

    fn refuse(&self, end: &End, peer_identity: Option<Identity>, reason: Reason, by_peer: bool) {
        self.handler.refused(Refused {
            pod: end.pod,
            peer: end.peer,
            local: end.local,
            peer_identity,
            authority: None,
            reason,
            by_peer,
        });
    }
}

/// Closes a socket so that what was sent last arrives.
async fn linger(mut socket: BufferedSocket) {
    let drain = async {
        let mut left = LINGER_BYTES;
        let mut sink = [0; 4096];
        socket.shutdown().await?;
        while left > 0 {
            match socket.read(&mut sink).await? {
                0 => break,
                read => left = left.saturating_sub(read),
            }
        }
        std::io::Result::Ok(())
    };
    // Closed either way.
    let _ = tokio::time::timeout(LINGER, drain).await;
}
