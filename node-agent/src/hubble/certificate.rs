//! The certificate of the port for flows, where the control plane gives it.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use tokio::sync::watch;
use weir_hubble::certificate::{self, CertificateError, ControlPlane as Ask, Credentials, Held, Usage};
use weir_types::api::FlowsCertificateStatus;

use crate::{control::ControlPlane, metrics::Metrics};

/// The longest that is asked for: the authority gives no more.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// The certificate as it is held, and what is wrong with it.
#[derive(Debug, Clone)]
pub struct OwnCertificate {
    name: Arc<str>,
    held: Held,
    problem: Arc<Mutex<Option<String>>>,
}

/// Tells the log, the status and the metrics.
struct Told {
    own: OwnCertificate,
    metrics: Metrics,
}

// === impl OwnCertificate ===

impl OwnCertificate {
    /// Keeps it from now on. A node whose name does not fit has none: its port stays closed, and all else goes on. Needs a runtime.
    #[must_use]
    pub fn keep(control_plane: &ControlPlane, node: &str, lifetime: Duration, metrics: &Metrics) -> Self {
        let (to, held) = watch::channel(None);
        let name = weir_types::hubble::agent(node);
        let problem = match &name {
            Ok(_) => "no certificate from the control plane yet".to_owned(),
            Err(error) => format!("the agent of this node can have no certificate: {error}"),
        };
        let own = Self {
            name: name.as_deref().unwrap_or(node).into(),
            held,
            problem: Arc::new(Mutex::new(Some(problem))),
        };
        if let Ok(name) = name {
            let told = Told {
                own: own.clone(),
                metrics: metrics.clone(),
            };
            let ask = Ask {
                connection: control_plane.connection().clone(),
                usage: Usage::Server,
                lifetime: lifetime.min(LONGEST),
            };
            tokio::spawn(certificate::keep(ask, name, to, told, Timestamp::now));
        }
        own
    }

    pub(super) fn held(&self) -> Held {
        self.held.clone()
    }

    /// What is wrong with it, for people.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        let problem = self
            .problem
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()?;
        Some(match self.not_after() {
            None => format!("{problem}; nobody can connect before there is one"),
            Some(end) => format!("{problem}; the certificate lasts until {end:.0}"),
        })
    }

    /// What `weir status` shows.
    #[must_use]
    pub fn status(&self) -> FlowsCertificateStatus {
        FlowsCertificateStatus {
            name: self.name.to_string(),
            not_after: self.not_after(),
        }
    }

    fn not_after(&self) -> Option<Timestamp> {
        self.held.borrow().as_ref().map(|held| held.not_after)
    }

    fn note(&self, problem: Option<String>) {
        *self.problem.lock().unwrap_or_else(PoisonError::into_inner) = problem;
    }
}

// === impl Told ===

impl certificate::Observer for Told {
    fn renewed(&self, credentials: &Credentials) {
        tracing::info!(name = %self.own.name, until = %credentials.not_after, "a certificate for the port for flows");
        let end = credentials.not_after.as_second();
        self.metrics.flows_certificate_expiry.set(end);
        self.own.note(None);
    }

    fn failed(&self, error: &CertificateError, _: Option<&Credentials>) {
        tracing::warn!(%error, "no certificate for the port for flows; trying again");
        self.metrics.flows_certificate_failures.inc();
        self.own
            .note(Some(format!("no certificate from the control plane: {error}")));
    }
}
