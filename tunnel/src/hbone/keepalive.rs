//! What ends an open connection: a peer that is gone, and a certificate that is no longer good.

use std::{sync::Arc, time::Duration};

use h2::{Ping, PingPong};
use rustls_pki_types::CertificateDer;
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior},
};
use weir_types::Reason;

use crate::certs::{CertificateStore, PeerCertificate, TrustBundle, Usage, system_time};

/// Time between pings.
pub(crate) const PING_INTERVAL: Duration = Duration::from_secs(10);

/// A peer that leaves a ping unanswered for this long is gone.
pub(crate) const PING_PATIENCE: Duration = Duration::from_secs(20);

/// Longest sleep before the clock is read again for a certificate's expiry.
const CLOCK_CHECK: Duration = Duration::from_secs(60);

/// Pings the peer.
pub(crate) struct KeepAlive {
    ping: Option<PingPong>,
    interval: tokio::time::Interval,
}

/// Watches a peer's certificate.
pub(crate) struct TrustWatch {
    store: CertificateStore,
    bundle: watch::Receiver<Arc<TrustBundle>>,
    chain: Vec<CertificateDer<'static>>,
    usage: Usage,
    peer: PeerCertificate,
}

// === impl KeepAlive ===

impl KeepAlive {
    pub(crate) fn new(ping: Option<PingPong>) -> Self {
        let mut interval = tokio::time::interval_at(Instant::now() + PING_INTERVAL, PING_INTERVAL);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { ping, interval }
    }

    /// Pings until an answer is missing.
    pub(crate) async fn lost(mut self) -> Reason {
        let Some(mut ping) = self.ping.take() else {
            return std::future::pending().await;
        };
        loop {
            self.interval.tick().await;
            match tokio::time::timeout(PING_PATIENCE, ping.ping(Ping::opaque())).await {
                Ok(Ok(_)) => {}
                // The connection is closing; its own future says why.
                Ok(Err(_)) => return std::future::pending().await,
                Err(_) => return Reason::KeepAliveTimeout,
            }
        }
    }
}

// === impl TrustWatch ===

impl TrustWatch {
    /// `None` when the certificate is not good already.
    pub(crate) fn new(
        store: &CertificateStore,
        chain: Vec<CertificateDer<'static>>,
        usage: Usage,
    ) -> Option<Self> {
        let bundle = store.trust().watch();
        let peer = store.trust().verify(&chain, usage, store.now()).ok()?;
        Some(Self {
            store: store.clone(),
            bundle,
            chain,
            usage,
            peer,
        })
    }

    pub(crate) fn peer(&self) -> &PeerCertificate {
        &self.peer
    }

    /// Waits until the certificate, an issuer or the root has expired, or the root is removed.
    pub(crate) async fn ended(mut self) {
        loop {
            let remaining = self.remaining();
            if remaining.is_zero() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(remaining.min(CLOCK_CHECK)) => {}
                Ok(()) = self.bundle.changed() => {
                    let trust = self.store.trust();
                    match trust.verify(&self.chain, self.usage, self.store.now()) {
                        // By another root, perhaps, which ends sooner or later.
                        Ok(peer) => self.peer = peer,
                        Err(_) => return,
                    }
                }
            }
        }
    }

    fn remaining(&self) -> Duration {
        let now = system_time(self.store.now());
        self.peer.not_after.duration_since(now).unwrap_or_default()
    }
}
