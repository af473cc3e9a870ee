//! One tunnel connection as a client: made, driven until it ends, and asked for streams.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use h2::client::{Connection, SendRequest};
use http::{Request, StatusCode};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::time::{Instant, timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::sync::CancellationToken;
use weir_types::{Reason, TrafficDirection};

use super::{CONNECT_TIMEOUT, HANDSHAKE_TIMEOUT, IDLE_TIMEOUT, Inner, OpenError, Target};
use crate::{
    certs::{ALPN_H2, CertificateStore, Failure, Side, Usage, classify_io, describe, system_time},
    connection::{ConnectionState, StreamGuard},
    hbone::{CLIENT_STREAMS, KeepAlive, TLS_BUFFER, Tap, TrustWatch, TunnelStream, client_builder},
    io::BufferedSocket,
};

/// How often an unused connection looks whether it should close.
const IDLE_CHECK: Duration = Duration::from_secs(10);

/// How long a failed request waits for its connection to say why it ended: the error reaches both at once.
const OUTCOME_PATIENCE: Duration = Duration::from_millis(100);

type Stream = Tap<TlsStream<BufferedSocket>>;

/// A connection of the pool.
pub(super) struct Client {
    send: SendRequest<Bytes>,
    state: Arc<ConnectionState>,
    /// Serial number of the certificate that we presented.
    certificate: Arc<str>,
    /// When the peer's certificate is too near its end for new streams.
    retire_at: SystemTime,
    failure: Arc<OnceLock<Failure>>,
    /// Set once: no new streams.
    closed: AtomicBool,
    close: CancellationToken,
    /// Cancelled when the connection has ended and its reason is known.
    ended: CancellationToken,
    undriven: Mutex<Option<(Connection<Stream, Bytes>, TrustWatch)>>,
}

/// Why a request has no answer.
pub(super) enum Unsent {
    /// The connection takes no more requests; this one did not leave.
    Closed,
    /// The server says that it did not process it.
    NotProcessed,
    /// It may have been processed.
    Failed,
}

// === impl Client ===

impl Client {
    /// Connects and shakes hands.
    pub(super) async fn connect(inner: &Inner, target: &Target) -> Result<Self, OpenError> {
        let address = target.address;
        let (config, certificate) = inner
            .store
            .client_config(&target.source_identity, &target.expected)
            .await?;
        let socket = timeout(CONNECT_TIMEOUT, inner.connector.connect(target.source, address))
            .await
            .map_err(|_| OpenError::ConnectTimeout { address })?
            .and_then(BufferedSocket::new)
            .map_err(|source| OpenError::Connect {
                address,
                source: Arc::new(source),
            })?;
        let handle = socket.handle();
        let refused = |failure| OpenError::Handshake { address, failure };
        let unexplained = Failure {
            reason: Reason::HandshakeFailed,
            by_peer: false,
        };

        let shake_hands = async {
            // An address as name: rustls then sends no SNI.
            let name = ServerName::IpAddress(address.ip().into());
            let began = Instant::now();
            let mut tls = TlsConnector::from(config)
                .connect(name, socket)
                .await
                .map_err(|error| refused(classify_io(&error, Side::Client).unwrap_or(unexplained)))?;
            inner.connector.shook_hands(began.elapsed());
            tls.get_mut().1.set_buffer_limit(Some(TLS_BUFFER));
            let session = tls.get_ref().1;
            let chain: Vec<CertificateDer<'static>> = session
                .peer_certificates()
                .map(|chain| chain.iter().map(|der| der.clone().into_owned()).collect())
                .unwrap_or_default();
            let watch = TrustWatch::new(&inner.store, chain, Usage::Server)
                .filter(|_| session.alpn_protocol() == Some(ALPN_H2))
                .ok_or_else(|| refused(unexplained))?;
            let peer = watch.peer();
            // A peer that did not renew in time must be served until its certificate ends: a new connection would
            // get the same one.
            let retire_at = if system_time(inner.store.now()) < peer.retire_at {
                peer.retire_at
            } else {
                peer.not_after
            };
            let state = ConnectionState::new(
                TrafficDirection::Egress,
                target.source,
                watch.peer(),
                address,
                describe(session),
                handle,
            );
            let (tap, failure) = Tap::new(tls, Side::Client);
            let (send, connection) = client_builder()
                .handshake(tap)
                .await
                .map_err(|_| refused(failure.get().copied().unwrap_or(unexplained)))?;
            Ok(Self {
                send,
                state,
                certificate: certificate.serial.clone(),
                retire_at,
                failure,
                closed: AtomicBool::new(false),
                close: CancellationToken::new(),
                ended: CancellationToken::new(),
                undriven: Mutex::new(Some((connection, watch))),
            })
        };
        timeout(HANDSHAKE_TIMEOUT, shake_hands)
            .await
            .map_err(|_| OpenError::HandshakeTimeout { address })?
    }

    /// Starts the task that drives the connection and takes it out of the pool at its end.
    pub(super) fn drive(self: &Arc<Self>, inner: &Arc<Inner>, target: &Target) {
        let undriven = self
            .undriven
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some((connection, watch)) = undriven else {
            return;
        };
        let registered = inner.registry.register(&self.state);
        let (client, inner, target) = (self.clone(), Arc::downgrade(inner), target.clone());
        tokio::spawn(async move {
            let _registered = registered;
            let reason = client.run(connection, watch, &inner, &target).await;
            tracing::debug!(address = %target.address, %reason, "tunnel connection ended");
            client.closed.store(true, Ordering::Relaxed);
            if let Some(inner) = inner.upgrade() {
                inner.slots.remove(&target, &client);
            }
            client.ended.cancel();
        });
    }

    async fn run(
        self: &Arc<Self>,
        mut connection: Connection<Stream, Bytes>,
        watch: TrustWatch,
        inner: &std::sync::Weak<Inner>,
        target: &Target,
    ) -> Reason {
        let mut lost = std::pin::pin!(KeepAlive::new(connection.ping_pong()).lost());
        let mut distrusted = std::pin::pin!(watch.ended());
        let mut check = tokio::time::interval_at(Instant::now() + IDLE_CHECK, IDLE_CHECK);
        let mut used = Instant::now();
        let reason = loop {
            tokio::select! {
                result = &mut connection => break match result {
                    Ok(()) => Reason::TunnelBroken,
                    Err(_) => self.failure.get().map_or(Reason::TunnelBroken, |failure| failure.reason),
                },
                reason = &mut lost => break reason,
                () = &mut distrusted => break Reason::TrustEnded,
                () = self.close.cancelled() => break Reason::PolicyChanged,
                _ = check.tick() => {
                    let Some(inner) = inner.upgrade() else { break Reason::Shutdown };
                    if self.state.streams() > 0 {
                        used = Instant::now();
                        continue;
                    }
                    // What takes no new streams is of no use without the old ones; a server may also allow none.
                    let usable = self.is_current(&inner.store, target) && self.send.current_max_send_streams() > 0;
                    if (used.elapsed() >= IDLE_TIMEOUT || !usable) && inner.slots.remove_if_unused(target, self) {
                        break Reason::None;
                    }
                }
            }
        };
        // Before the connection is dropped, which is when its streams fail and ask why.
        self.state.end(reason);
        reason
    }

    pub(super) fn state(&self) -> &Arc<ConnectionState> {
        &self.state
    }

    /// Whether the certificates of both sides are good for new streams.
    pub(super) fn is_current(&self, store: &CertificateStore, target: &Target) -> bool {
        store.is_current(&target.source_identity, &self.certificate)
            && system_time(store.now()) < self.retire_at
    }

    /// Whether a stream may be added: by our limit and by the server's.
    pub(super) fn has_room(&self) -> bool {
        let limit = self.send.current_max_send_streams().min(CLIENT_STREAMS as usize);
        !self.closed.load(Ordering::Relaxed) && self.state.streams() < limit
    }

    /// Counts a stream that is about to be opened; called under the pool's lock.
    pub(super) fn reserve(&self) -> Option<StreamGuard> {
        self.has_room().then(|| self.state.stream())
    }

    /// Whether the handshake turned out to have failed after our side of it had ended.
    pub(super) fn was_refused(&self) -> bool {
        self.failure.get().is_some()
    }

    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        self.close.cancel();
    }

    /// Sends a CONNECT and waits for the answer.
    pub(super) async fn connect_stream(
        &self,
        request: Request<()>,
        guard: StreamGuard,
    ) -> Result<(StatusCode, TunnelStream), Unsent> {
        let closed = |_| {
            self.closed.store(true, Ordering::Relaxed);
            Unsent::Closed
        };
        let mut send = self.send.clone().ready().await.map_err(closed)?;
        let (response, stream) = send.send_request(request, false).map_err(closed)?;
        let response = response.await.map_err(|error| {
            let refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
            // h2 gives the GOAWAY to streams above its last id at once (RFC 9113 section 6.8), and drops it with
            // the others only when the connection itself fails.
            let above_last =
                error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR);
            if refused || above_last {
                Unsent::NotProcessed
            } else {
                Unsent::Failed
            }
        })?;
        let status = response.status();
        Ok((status, TunnelStream::new(stream, response.into_body(), guard)))
    }

    /// Why a request failed: an alert of the server, which in TLS 1.3 comes after our side of the handshake, or
    /// the end of the connection.
    pub(super) async fn failure(&self, address: SocketAddr) -> OpenError {
        // Not ended: it was the stream alone.
        let _ = timeout(OUTCOME_PATIENCE, self.ended.cancelled()).await;
        match self.failure.get() {
            Some(failure) => OpenError::Handshake {
                address,
                failure: *failure,
            },
            None => {
                let reason = self.state.ended().unwrap_or(Reason::TunnelReset);
                OpenError::Ended { address, reason }
            }
        }
    }
}
