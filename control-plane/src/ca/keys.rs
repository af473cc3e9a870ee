//! The authority that is in force, kept up with its Secret.

use std::{
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::runtime::{WatchStreamExt as _, watcher};
use prometheus::Registry;
use rustls_pki_types::CertificateRevocationListDer;
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval, sleep, sleep_until},
};

use super::{
    contents::{Contents, ContentsError},
    in_force::InForce,
    metrics::{Expiry, KeyMetrics},
    secret::{AuthoritySecret, contents, wipe},
};
use crate::watch::SETTLED;

/// How often revocation lists are signed anew: often enough that many attempts fit into a list's life.
const SIGN_LISTS: Duration = Duration::from_secs(3600);
/// How long to wait before the API server is asked again whether there is a Secret, and before contents that were not
/// fit are looked at again: an authority that another's clock dates may be valid in a moment.
const RETRY: Duration = Duration::from_secs(2);

/// Where the authority comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A root of our own, made on the first start.
    Own,
    /// Given by cert-manager or by hand; the Secret is waited for, and never made.
    Given,
}

/// Revocation lists, DER, one of each authority whose certificates live.
pub type RevocationLists = Arc<[CertificateRevocationListDer<'static>]>;

/// The Secret's watch broke, and nothing says yet that it goes on: where nothing changes, nothing ever does.
struct Broken {
    /// What was wrong before.
    before: Option<String>,
    /// What is said of it.
    problem: String,
    /// When it will have had no error for long enough.
    settled: Instant,
}

/// The authority that is in force.
pub struct Keys {
    secret: AuthoritySecret,
    source: Source,
    in_force: watch::Sender<Option<Arc<InForce>>>,
    lists: watch::Sender<RevocationLists>,
    problem: Mutex<Option<String>>,
    metrics: KeyMetrics,
}

// === impl Keys ===

impl Keys {
    /// Nothing is in force until [`Self::run`] has read the Secret.
    ///
    /// # Errors
    /// If the registry has metrics of these names already.
    pub fn new(
        secret: AuthoritySecret,
        source: Source,
        registry: &Registry,
    ) -> Result<Arc<Self>, prometheus::Error> {
        let in_force = watch::Sender::new(None);
        let label = secret.scope().label();
        registry.register(Box::new(Expiry::new(label, in_force.subscribe())?))?;
        Ok(Arc::new(Self {
            source,
            in_force,
            lists: watch::Sender::new(Arc::new([])),
            problem: Mutex::default(),
            metrics: KeyMetrics::new(label, registry)?,
            secret,
        }))
    }

    /// The Secret that they are of.
    pub(crate) fn secret(&self) -> &AuthoritySecret {
        &self.secret
    }

    /// What is in force; changes are seen here. What has come stays in force until something fit takes its place.
    #[must_use]
    pub fn in_force(&self) -> watch::Receiver<Option<Arc<InForce>>> {
        self.in_force.subscribe()
    }

    /// Revocation lists; empty until there are any.
    #[must_use]
    pub fn revocation_lists(&self) -> watch::Receiver<RevocationLists> {
        self.lists.subscribe()
    }

    /// Why the Secret's contents are not in force, or cannot be known, if that is so.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        self.lock().clone()
    }

    /// Keeps up with the Secret; never ends.
    pub async fn run(&self) {
        if self.source == Source::Own {
            self.create().await;
        }
        let stream = watcher::watch_object(self.secret.api().clone(), self.secret.name());
        let mut stream = pin!(stream.default_backoff());
        let (mut sign, mut retry) = (interval(SIGN_LISTS), interval(RETRY));
        sign.set_missed_tick_behavior(MissedTickBehavior::Delay);
        retry.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Contents that were not fit when they came.
        let mut unfit: Option<Contents> = None;
        let mut broken: Option<Broken> = None;
        loop {
            let settled = broken.as_ref().map_or_else(Instant::now, |broken| broken.settled);
            tokio::select! {
                () = sleep_until(settled), if broken.is_some() => {
                    if let Some(broken) = broken.take()
                        && self.problem() == Some(broken.problem)
                    {
                        self.report(broken.before);
                    }
                }
                _ = sign.tick() => self.sign_lists(),
                _ = retry.tick(), if unfit.is_some() => {
                    unfit = unfit.filter(|contents| self.put_into_force(contents).is_err());
                }
                seen = stream.next() => match seen {
                    Some(Ok(Some(secret))) => {
                        broken = None;
                        unfit = self.take(secret);
                    }
                    Some(Ok(None)) => {
                        (broken, unfit) = (None, None);
                        let name = self.secret.display();
                        self.report(Some(format!("the Secret {name} is gone or not there yet")));
                    }
                    Some(Err(error)) => {
                        let name = self.secret.display();
                        let problem = format!("the Secret {name} cannot be watched: {error}");
                        let before = broken.map_or_else(|| self.problem(), |broken| broken.before);
                        self.report(Some(problem.clone()));
                        broken = Some(Broken { before, problem, settled: Instant::now() + SETTLED });
                    }
                    // The watcher's stream has no end.
                    None => std::future::pending().await,
                },
            }
        }
    }

    /// Makes the Secret, unless there is one, until the API server lets us know.
    async fn create(&self) {
        loop {
            match self.secret.create_if_absent(Timestamp::now()).await {
                Ok(true) => {
                    tracing::info!(secret = self.secret.display(), "a new root was made");
                    return;
                }
                Ok(false) => return,
                Err(error) => {
                    self.report(Some(error.to_string()));
                    sleep(RETRY).await;
                }
            }
        }
    }

    /// Puts a Secret's contents into force, if they are fit; gives back what is not.
    fn take(&self, secret: Secret) -> Option<Contents> {
        let contents = contents(&secret);
        wipe(secret);
        match contents {
            Ok(contents) => match self.put_into_force(&contents) {
                Ok(()) => return None,
                Err(error) => {
                    self.reject(&error);
                    return Some(contents);
                }
            },
            Err(error) => self.reject(&error),
        }
        None
    }

    fn reject(&self, error: &ContentsError) {
        self.metrics.rejected();
        let name = self.secret.display();
        self.report(Some(format!("the Secret {name} is not in force: {error}")));
    }

    fn put_into_force(&self, contents: &Contents) -> Result<(), ContentsError> {
        let loaded = InForce::load(contents, self.secret.scope(), Timestamp::now())?;
        let before = self.in_force.borrow().clone();
        if let Some(before) = before
            && !before.roots().iter().any(|root| loaded.roots().contains(root))
        {
            tracing::warn!(
                "none of the roots is one that was distributed before: agents do not trust each other until all \
                 have renewed their certificates"
            );
        }
        let (phase, _) = loaded.rotation();
        tracing::info!(authority = self.secret.scope().label(), ?phase, roots = loaded.roots().len(), until = %loaded.authority().not_after(), "an authority is in force");
        self.in_force.send_replace(Some(Arc::new(loaded)));
        self.report(None);
        self.sign_lists();
        Ok(())
    }

    fn sign_lists(&self) {
        let Some(in_force) = self.in_force.borrow().clone() else {
            return;
        };
        match in_force.revocation_lists(Timestamp::now()) {
            Ok(lists) => {
                self.lists.send_replace(lists.into());
            }
            // Certificates are issued all the same: a missing list is reported, not an outage.
            Err(error) => self.report(Some(format!("no revocation list can be signed: {error}"))),
        }
    }

    /// Notes what is wrong now, and says so once.
    fn report(&self, problem: Option<String>) {
        self.metrics.problem(problem.is_some());
        let mut held = self.lock();
        if *held != problem {
            match &problem {
                Some(problem) => tracing::error!(problem, "the certificate authority"),
                None => tracing::info!("the certificate authority is as it should be"),
            }
            *held = problem;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
