//! The certificates that the agent holds: issued at first demand, shared, kept until they are replaced.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, SystemTime},
};

use jiff::Timestamp;
use rustls::{
    ClientConfig, ServerConfig,
    crypto::aws_lc_rs::sign::any_supported_type,
    sign::CertifiedKey,
    time_provider::{DefaultTimeProvider, TimeProvider},
};
use rustls_pki_types::UnixTime;
use tokio::{sync::watch, task::AbortHandle};
use weir_types::{
    Identity, Reason, TrustDomain,
    api::{CertificateStatus, RootStatus},
};

use super::{
    renewal,
    revoked::Revoked,
    tls::{self, PROVIDER},
    trust::{Trust, TrustBundle},
};
use crate::ca::{IssueError, Issued, Issuer};

/// Validity that is asked for unless configured otherwise: a day, so that a lost key is soon worthless.
pub const DEFAULT_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// Certificates are not renewed faster than this, however short they are: an authority that is about to expire
/// itself must not make the agent spin.
const LEAST_RENEWAL: Duration = Duration::from_secs(1);

/// How certificates are issued and peers judged.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The mesh's trust domain.
    pub trust_domain: TrustDomain,
    /// Other trust domains whose identities are accepted.
    pub trust_domain_aliases: Vec<TrustDomain>,
    /// Validity that is asked for.
    pub lifetime: Duration,
    /// The time of day, by which certificates are judged and renewed.
    pub clock: Arc<dyn TimeProvider>,
    /// Told how renewals go.
    pub observer: Arc<dyn RenewalObserver>,
}

/// Told how certificates are renewed, for whoever counts that.
pub trait RenewalObserver: fmt::Debug + Send + Sync {
    /// A certificate was issued; `replaced` is the age of the one before, if there was one.
    fn issued(&self, replaced: Option<Duration>);

    /// One could not be had; it is tried again.
    fn failed(&self);
}

/// Counts nothing.
#[derive(Debug)]
struct Unobserved;

impl RenewalObserver for Unobserved {
    fn issued(&self, _replaced: Option<Duration>) {}

    fn failed(&self) {}
}

/// Why there is no certificate for an identity.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CertificateError {
    /// The issuer failed; it is tried again in the background.
    #[error("no certificate for this workload: {0}")]
    Issue(#[source] Arc<IssueError>),
    /// The identity was forgotten while its certificate was awaited.
    #[error("the workload was removed")]
    Removed,
    /// The certificate cannot be used for TLS.
    #[error("the workload's certificate cannot be used: {0}")]
    Unusable(#[from] rustls::Error),
}

/// A certificate in force.
pub struct Current {
    key: Arc<CertifiedKey>,
    server: OnceLock<Arc<ServerConfig>>,
    /// The issuer that it came from.
    pub(super) issuer: [u8; 32],
    /// Serial number, lower-case hexadecimal.
    pub serial: Arc<str>,
    /// Valid from.
    pub not_before: SystemTime,
    /// Valid until.
    pub not_after: SystemTime,
    /// When it is to be replaced.
    pub renew_at: SystemTime,
}

/// What is known of an identity's certificate.
#[derive(Clone, Default)]
pub(super) struct State {
    pub(super) current: Option<Arc<Current>>,
    pub(super) problem: Option<Arc<IssueError>>,
}

/// Certificates by identity, and the roots in force. Cheap to clone.
#[derive(Clone)]
pub struct CertificateStore {
    inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) settings: Settings,
    pub(super) trust: Arc<Trust>,
    pub(super) issuer: watch::Sender<Arc<dyn Issuer>>,
    entries: Mutex<HashMap<Identity, Entry>>,
}

struct Entry {
    state: watch::Receiver<State>,
    renewal: AbortHandle,
}

// === impl Settings ===

impl Settings {
    /// Settings of a mesh with one trust domain, and the system's clock.
    #[must_use]
    pub fn new(trust_domain: TrustDomain) -> Self {
        Self {
            trust_domain,
            trust_domain_aliases: Vec::new(),
            lifetime: DEFAULT_LIFETIME,
            clock: Arc::new(DefaultTimeProvider),
            observer: Arc::new(Unobserved),
        }
    }
}

// === impl CertificateError ===

impl CertificateError {
    /// The reason that flows and metrics show.
    #[must_use]
    pub fn reason(&self) -> Reason {
        Reason::NoOwnCertificate
    }
}

// === impl CertificateStore ===

impl CertificateStore {
    /// A store without certificates. They are issued and renewed by tasks of the runtime that asks for them.
    #[must_use]
    pub fn new(issuer: Arc<dyn Issuer>, settings: Settings) -> Self {
        let mut domains = vec![settings.trust_domain.clone()];
        domains.extend(settings.trust_domain_aliases.iter().cloned());
        let bundle = TrustBundle::new(&issuer.roots());
        let trust = Arc::new(Trust::new(
            bundle,
            domains,
            PROVIDER.signature_verification_algorithms.all,
        ));
        let inner = Inner {
            settings,
            trust,
            issuer: watch::Sender::new(issuer),
            entries: Mutex::default(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Replaces the authority: its roots judge new handshakes at once, open connections are verified again, and
    /// every certificate is issued anew if the authority's key or chain is another.
    pub fn replace_issuer(&self, issuer: Arc<dyn Issuer>) {
        self.inner.trust.replace(TrustBundle::new(&issuer.roots()));
        self.inner.issuer.send_replace(issuer);
    }

    /// Replaces what is revoked: it judges new handshakes at once, and open connections are verified again.
    pub fn revoke(&self, revoked: Revoked) {
        self.inner.trust.revoke(revoked);
    }

    /// What peers must satisfy.
    #[must_use]
    pub fn trust(&self) -> &Arc<Trust> {
        &self.inner.trust
    }

    /// The time of day by the store's clock.
    #[must_use]
    pub fn now(&self) -> UnixTime {
        self.inner.now()
    }

    /// The certificate of an identity, issued now if there is none. Concurrent callers share one issue.
    ///
    /// # Errors
    /// When there is none that is valid and the last attempt failed; more attempts follow in the background.
    pub async fn certificate(&self, identity: &Identity) -> Result<Arc<Current>, CertificateError> {
        let mut state = self.subscribe(identity);
        loop {
            {
                let state = state.borrow_and_update();
                if let Some(current) = &state.current
                    && system_time(self.now()) < current.not_after
                {
                    return Ok(current.clone());
                }
                if let Some(problem) = &state.problem {
                    return Err(CertificateError::Issue(problem.clone()));
                }
            }
            state.changed().await.map_err(|_| CertificateError::Removed)?;
        }
    }

    /// Whether this is the certificate that new connections of the identity would use.
    #[must_use]
    pub fn is_current(&self, identity: &Identity, serial: &str) -> bool {
        let entries = self.entries();
        let current = entries
            .get(identity)
            .and_then(|entry| entry.state.borrow().current.clone());
        current.is_some_and(|current| *current.serial == *serial)
    }

    /// TLS configuration of a server with this identity; the same one until the certificate is replaced.
    ///
    /// # Errors
    /// See [`Self::certificate`].
    pub async fn server_config(&self, identity: &Identity) -> Result<Arc<ServerConfig>, CertificateError> {
        let current = self.certificate(identity).await?;
        if let Some(config) = current.server.get() {
            return Ok(config.clone());
        }
        let clock = self.inner.settings.clock.clone();
        let config = Arc::new(tls::server_config(
            current.key.clone(),
            self.inner.trust.clone(),
            clock,
        )?);
        Ok(current.server.get_or_init(|| config).clone())
    }

    /// TLS configuration of a client with this identity, for servers with one of the expected identities, and
    /// the certificate that it presents.
    ///
    /// # Errors
    /// See [`Self::certificate`].
    pub async fn client_config(
        &self,
        identity: &Identity,
        expected: &Arc<[Identity]>,
    ) -> Result<(Arc<ClientConfig>, Arc<Current>), CertificateError> {
        let current = self.certificate(identity).await?;
        let clock = self.inner.settings.clock.clone();
        let config = tls::client_config(
            current.key.clone(),
            self.inner.trust.clone(),
            expected.clone(),
            clock,
        )?;
        Ok((Arc::new(config), current))
    }

    /// Forgets the certificates of all identities but these.
    pub fn retain(&self, identities: &HashSet<Identity>) {
        self.entries().retain(|identity, _| identities.contains(identity));
    }

    /// The certificates, for people; ordered by identity.
    #[must_use]
    pub fn status(&self) -> Vec<CertificateStatus> {
        let mut status: Vec<_> = self
            .entries()
            .iter()
            .filter_map(|(identity, entry)| {
                let state = entry.state.borrow();
                let current = state.current.as_ref()?;
                Some(CertificateStatus {
                    identity: identity.clone(),
                    serial: current.serial.to_string(),
                    not_before: timestamp(current.not_before),
                    not_after: timestamp(current.not_after),
                    renew_at: timestamp(current.renew_at),
                    problem: state.problem.as_ref().map(ToString::to_string),
                })
            })
            .collect();
        status.sort_by(|a, b| a.identity.cmp(&b.identity));
        status
    }

    /// Identities without any certificate, and why.
    #[must_use]
    pub fn problems(&self) -> Vec<(Identity, String)> {
        let entries = self.entries();
        let missing = entries.iter().filter_map(|(identity, entry)| {
            let state = entry.state.borrow();
            let problem = state.problem.as_ref().filter(|_| state.current.is_none())?;
            Some((identity.clone(), problem.to_string()))
        });
        missing.collect()
    }

    /// The trusted roots, for people.
    #[must_use]
    pub fn roots(&self) -> Vec<RootStatus> {
        self.inner.trust.current().status()
    }

    fn subscribe(&self, identity: &Identity) -> watch::Receiver<State> {
        let mut entries = self.entries();
        if let Some(entry) = entries.get(identity)
            && entry.state.has_changed().is_ok()
        {
            return entry.state.clone();
        }
        let (sender, state) = watch::channel(State::default());
        let task = tokio::spawn(renewal::run(
            Arc::downgrade(&self.inner),
            identity.clone(),
            sender,
        ));
        entries.insert(
            identity.clone(),
            Entry {
                state: state.clone(),
                renewal: task.abort_handle(),
            },
        );
        state
    }

    fn entries(&self) -> std::sync::MutexGuard<'_, HashMap<Identity, Entry>> {
        // Each critical section leaves the map whole, so a panic elsewhere does not spoil it.
        self.inner.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Inner ===

impl Inner {
    pub(super) fn now(&self) -> UnixTime {
        self.settings.clock.current_time().unwrap_or_else(UnixTime::now)
    }
}

// === impl Entry ===

impl Drop for Entry {
    fn drop(&mut self) {
        self.renewal.abort();
    }
}

// === impl Current ===

impl Current {
    pub(super) fn new(issued: &Issued, issuer: [u8; 32], now: SystemTime) -> Result<Self, IssueError> {
        // By reference: the provider's own loader would take a copy that nobody wipes.
        let signer = any_supported_type(issued.key.der());
        let key = CertifiedKey::new(issued.chain.clone(), signer.map_err(|_| IssueError::Malformed)?);
        key.keys_match().map_err(|_| IssueError::Malformed)?;
        let remaining = issued
            .not_after
            .duration_since(now)
            .map_err(|_| IssueError::Malformed)?;
        Ok(Self {
            key: Arc::new(key),
            server: OnceLock::new(),
            issuer,
            serial: issued.serial.clone(),
            not_before: issued.not_before,
            not_after: issued.not_after,
            renew_at: now + (remaining / 2).max(LEAST_RENEWAL),
        })
    }
}

impl std::fmt::Debug for Current {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Current")
            .field("serial", &self.serial)
            .finish_non_exhaustive()
    }
}

pub(crate) fn system_time(time: UnixTime) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(time.as_secs())
}

fn timestamp(time: SystemTime) -> Timestamp {
    Timestamp::try_from(time).unwrap_or(Timestamp::MAX)
}
