//! A certificate from the control plane, for a port or to ask with: in memory alone, and renewed in time.

mod request;

use std::{fmt, sync::Arc, time::Duration};

use jiff::Timestamp;
use rand::Rng as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use weir_control_client::{Connection, ControlError};
use weir_proto::weir::flows::v1::{
    CreateRequest, CreateResponse, flow_certificates_client::FlowCertificatesClient,
};
use zeroize::Zeroizing;

use request::Request;
pub use request::RequestError;
pub use weir_proto::weir::flows::v1::Usage;

/// The part of its life after which a certificate is renewed: half, and less or more so that agents that started together do not
/// all return at once.
const RENEWED_AT: std::ops::Range<f64> = 0.45..0.55;
/// First wait after a failure; doubled each time.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// Longest wait after a failure: short against half a day, long enough to spare a service that recovers.
const LAST_RETRY: Duration = Duration::from_secs(60);
/// Longest sleep before the clock is read again: a clock that was set, or a machine that slept, is noticed.
const CLOCK_CHECK: Duration = Duration::from_secs(60);
/// A control plane that does not answer in this time has failed.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// Most bytes of an answer: a chain and some roots.
const MAX_ANSWER: usize = 1 << 20;

/// A certificate with its key, and the roots that the other side must chain to.
pub struct Credentials {
    /// The certificate, then its issuers without the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// At least one.
    pub roots: Vec<CertificateDer<'static>>,
    /// Valid until.
    pub not_after: Timestamp,
    key: Zeroizing<Vec<u8>>,
}

/// The newest, if there is one yet.
pub type Held = watch::Receiver<Option<Arc<Credentials>>>;

/// Why there is no new certificate. Trying again is always safe.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// No request can be made, or the answer is not what was asked for.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The control plane cannot be asked, or refuses.
    #[error("{0}")]
    Control(#[from] ControlError),
    /// It does not answer.
    #[error("the control plane does not answer")]
    Slow,
}

/// Who is asked for certificates.
pub trait Ask: Send + Sync + 'static {
    /// Has a request certified.
    fn ask(&self, csr: &str) -> impl Future<Output = Result<CreateResponse, CertificateError>> + Send;
}

/// The control plane.
#[derive(Debug, Clone)]
pub struct ControlPlane {
    /// The connection to it.
    pub connection: Connection,
    /// What the certificate is for.
    pub usage: Usage,
    /// How long it is to be valid; the longest that there is if zero.
    pub lifetime: Duration,
}

/// Is told of each attempt.
pub trait Observer: Send + Sync + 'static {
    /// There is a new one.
    fn renewed(&self, credentials: &Credentials);
    /// There is none; the one before, if there is one, stays.
    fn failed(&self, error: &CertificateError, before: Option<&Credentials>);
}

// === impl Credentials ===

impl Credentials {
    /// Of nobody.
    #[cfg(test)]
    pub(crate) fn example() -> Self {
        Self {
            chain: Vec::new(),
            roots: Vec::new(),
            not_after: Timestamp::MAX,
            key: Zeroizing::default(),
        }
    }

    /// Its key.
    pub(crate) fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.to_vec()))
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

// === impl ControlPlane ===

impl Ask for ControlPlane {
    async fn ask(&self, csr: &str) -> Result<CreateResponse, CertificateError> {
        let message = CreateRequest {
            csr: csr.to_owned(),
            usage: self.usage.into(),
            lifetime_seconds: self.lifetime.as_secs(),
        };
        let request = self.connection.request(message).await?;
        let mut client = FlowCertificatesClient::new(self.connection.channel());
        client = client.max_decoding_message_size(MAX_ANSWER);
        let answer = client.create(request).await.map_err(ControlError::from)?;
        Ok(answer.into_inner())
    }
}

/// Keeps a certificate for this DNS name, for ever, or until nobody holds it any more. `now` is the clock.
pub async fn keep(
    ask: impl Ask,
    name: String,
    to: watch::Sender<Option<Arc<Credentials>>>,
    observer: impl Observer,
    now: impl Fn() -> Timestamp + Send,
) {
    let mut failures = 0;
    loop {
        let begun = Instant::now();
        let asked = timeout(ANSWER_TIMEOUT, attempt(&ask, &name)).await;
        let due = match asked.unwrap_or(Err(CertificateError::Slow)) {
            Ok(credentials) => {
                failures = 0;
                let life = Duration::try_from(credentials.not_after.duration_since(now()));
                let wait = life
                    .unwrap_or_default()
                    .mul_f64(rand::rng().random_range(RENEWED_AT));
                observer.renewed(&credentials);
                if to.send(Some(Arc::new(credentials))).is_err() {
                    return;
                }
                // One that ends at once must not have the control plane asked without pause.
                Due::At(now().checked_add(wait.max(FIRST_RETRY)).unwrap_or(Timestamp::MAX))
            }
            Err(error) => {
                failures += 1;
                observer.failed(&error, to.borrow().as_deref());
                Due::After(begun + back_off(failures))
            }
        };
        loop {
            let left = due.left(now());
            if left.is_zero() {
                break;
            }
            tokio::select! {
                () = sleep(left.min(CLOCK_CHECK)) => {}
                () = to.closed() => return,
            }
        }
    }
}

/// When to ask again: by the clock that certificates go by, or after a wait.
enum Due {
    At(Timestamp),
    After(Instant),
}

impl Due {
    fn left(&self, now: Timestamp) -> Duration {
        match self {
            Self::At(at) => Duration::try_from(at.duration_since(now)).unwrap_or_default(),
            Self::After(at) => at.saturating_duration_since(Instant::now()),
        }
    }
}

async fn attempt(ask: &impl Ask, name: &str) -> Result<Credentials, CertificateError> {
    let request = Request::new()?;
    let answer = ask.ask(request.pem()).await?;
    Ok(request.answer(&answer, name)?)
}

/// Doubling from one second to a minute, and a random part of half of it.
fn back_off(failures: u32) -> Duration {
    let full = FIRST_RETRY
        .saturating_mul(1 << failures.saturating_sub(1).min(10))
        .min(LAST_RETRY);
    full.mul_f64(rand::rng().random_range(0.5..1.0))
}

#[cfg(test)]
mod tests;
