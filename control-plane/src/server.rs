//! The port that agents connect to: TLS with a certificate of the authority's own, gRPC within.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use jiff::Timestamp;
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs::{self, sign::any_supported_type},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc, watch},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;

use crate::{
    ads::Severable,
    ca::{AuthorityError, InForce},
    sources::Sources,
};

/// How long a client may take for its handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Handshakes at once: all agents of a large cluster return together when a control plane restarts.
const HANDSHAKES: usize = 512;
/// Connections at once: an agent has one.
const CONNECTIONS: usize = 20_000;
/// Connections of one address at once, with those that are at their handshake: an agent has one, and another while it is
/// replaced.
const CONNECTIONS_OF_ADDRESS: usize = 64;
/// Connections that wait to be taken over by the server.
const QUEUE: usize = 64;
/// How long the server's own certificate is valid: as those of workloads at most are.
const LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// How often it is looked whether it is to be replaced.
const CHECK: Duration = Duration::from_secs(60);
/// How long to wait after accepting failed: descriptors may have run out.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// A connection with TLS.
pub type Connection = Severable<TlsStream<TcpStream>>;

/// The server's certificate, replaced in time.
#[derive(Debug, Default)]
pub struct OwnCertificate(ArcSwapOption<CertifiedKey>);

impl ResolvesServerCert for OwnCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.load_full()
    }
}

impl OwnCertificate {
    /// Keeps the certificate up: a new one from each authority that comes into force, and at half of its life. Never ends.
    pub async fn keep(&self, mut in_force: watch::Receiver<Option<Arc<InForce>>>, names: &[String]) {
        let mut renew_at = Timestamp::MIN;
        let mut ticks = tokio::time::interval(CHECK);
        loop {
            let now = Timestamp::now();
            let authority = in_force.borrow_and_update().clone();
            if let Some(authority) = authority
                && now >= renew_at
            {
                match self.renew(&authority, names, now) {
                    Ok(half) => renew_at = half,
                    Err(error) => tracing::error!(%error, "no certificate for the control plane's own port"),
                }
            }
            tokio::select! {
                _ = ticks.tick() => {}
                changed = in_force.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    renew_at = Timestamp::MIN;
                }
            }
        }
    }

    /// Gives the time at which it is to be renewed.
    fn renew(
        &self,
        authority: &InForce,
        names: &[String],
        now: Timestamp,
    ) -> Result<Timestamp, AuthorityError> {
        let own = authority.authority().server_certificate(names, LIFETIME, now)?;
        let key = any_supported_type(&own.key).map_err(|_| AuthorityError::MalformedKey("the new key"))?;
        self.0.store(Some(Arc::new(CertifiedKey::new(own.chain, key))));
        let half = own.not_after.duration_since(now) / 2;
        tracing::info!(names = ?names, not_after = %own.not_after, "certificate of the control plane's own port");
        Ok(now.checked_add(half).unwrap_or(now))
    }
}

/// TLS as the port speaks it.
///
/// # Errors
/// When the provider lacks what is needed.
pub fn tls(certificate: Arc<OwnCertificate>) -> Result<Arc<ServerConfig>, rustls::Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec()];
    // Agents show tokens in each call: there is nothing to resume.
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// Accepts connections until the listener is dropped; gives those that finished their handshake.
pub fn accept(listener: TcpListener, config: Arc<ServerConfig>) -> ReceiverStream<io::Result<Connection>> {
    let (connections, ready) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        let acceptor = TlsAcceptor::from(config);
        let sources = Sources::default();
        let (handshakes, open) = (
            Arc::new(Semaphore::new(HANDSHAKES)),
            Arc::new(Semaphore::new(CONNECTIONS)),
        );
        loop {
            let Ok(place) = open.clone().acquire_owned().await else {
                return;
            };
            let Ok(permit) = handshakes.clone().acquire_owned().await else {
                return;
            };
            let (socket, peer) = tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        tracing::warn!(%error, "a connection cannot be accepted");
                        tokio::time::sleep(ACCEPT_RETRY).await;
                        continue;
                    }
                },
                () = connections.closed() => return,
            };
            let Some(of_address) = sources.enter(peer.ip(), CONNECTIONS_OF_ADDRESS) else {
                tracing::debug!(%peer, "its address has too many connections");
                continue;
            };
            let (acceptor, connections) = (acceptor.clone(), connections.clone());
            tokio::spawn(async move {
                let finished = timeout(HANDSHAKE, handshake(socket, peer, acceptor)).await;
                drop(permit);
                match finished {
                    Ok(Ok(connection)) => {
                        let connection = connection.with_place((place, of_address));
                        // The server is about to end otherwise.
                        let _ = connections.send(Ok(connection)).await;
                    }
                    Ok(Err(error)) => tracing::debug!(%peer, %error, "no TLS handshake"),
                    Err(_) => tracing::debug!(%peer, "no TLS handshake in time"),
                }
            });
        }
    });
    ReceiverStream::new(ready)
}

async fn handshake(socket: TcpStream, peer: SocketAddr, acceptor: TlsAcceptor) -> io::Result<Connection> {
    // Else the end of each response waits for the client's delayed acknowledgement.
    socket.set_nodelay(true)?;
    Ok(Severable::new(acceptor.accept(socket).await?, Some(peer)))
}
