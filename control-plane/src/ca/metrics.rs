//! What the certificate service counts.

use std::sync::Arc;

use jiff::Timestamp;
use prometheus::{
    IntCounter, IntCounterVec, IntGauge, Opts, Registry,
    core::{Collector, Desc},
    proto::MetricFamily,
};
use tokio::sync::watch;

use super::in_force::InForce;

/// Why requests are refused.
const REFUSED: [&str; 12] = [
    "unauthenticated",
    "unavailable",
    "rate",
    "no_identity",
    "bad_identity",
    "trust_domain",
    "csr",
    "revoked",
    "not_entitled",
    "no_service_account",
    "no_authority",
    "authority",
];

/// Metrics of requests.
#[derive(Debug)]
pub(super) struct Metrics {
    pub(super) issued: IntCounter,
    refused: IntCounterVec,
}

/// Metrics of the Secret.
#[derive(Debug)]
pub(super) struct KeyMetrics {
    rejected: IntCounter,
    problem: IntGauge,
}

/// How long certificates of authorities last, computed when it is asked for.
#[derive(Debug)]
pub(super) struct Expiry {
    in_force: watch::Receiver<Option<Arc<InForce>>>,
    root: IntGauge,
    authority: IntGauge,
}

// === impl Metrics ===

impl Metrics {
    pub(super) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let issued = IntCounter::new("weir_ca_issued_total", "Certificates issued.")?;
        let refused = Opts::new(
            "weir_ca_refused_total",
            "Requests for certificates that were refused.",
        );
        let refused = IntCounterVec::new(refused, &["reason"])?;
        // From the start: that one rises from nothing is seen only if nothing was seen before.
        for reason in REFUSED {
            let _ = refused.with_label_values(&[reason]);
        }
        registry.register(Box::new(issued.clone()))?;
        registry.register(Box::new(refused.clone()))?;
        Ok(Self { issued, refused })
    }

    pub(super) fn refused(&self, reason: &str) {
        self.refused.with_label_values(&[reason]).inc();
    }
}

// === impl KeyMetrics ===

impl KeyMetrics {
    pub(super) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let rejected = IntCounter::new(
            "weir_ca_secret_rejected_total",
            "Times that the Secret's contents were not fit to be put into force.",
        )?;
        let problem = IntGauge::new(
            "weir_ca_problem",
            "1 while the authority is not as its Secret should have it; the log and the status say why.",
        )?;
        registry.register(Box::new(rejected.clone()))?;
        registry.register(Box::new(problem.clone()))?;
        Ok(Self { rejected, problem })
    }

    pub(super) fn rejected(&self) {
        self.rejected.inc();
    }

    pub(super) fn problem(&self, there: bool) {
        self.problem.set(there.into());
    }
}

// === impl Expiry ===

impl Expiry {
    pub(super) fn new(in_force: watch::Receiver<Option<Arc<InForce>>>) -> Result<Self, prometheus::Error> {
        Ok(Self {
            in_force,
            root: IntGauge::new(
                "weir_ca_root_expires_seconds",
                "Seconds until the first of the roots that agents trust ends.",
            )?,
            authority: IntGauge::new(
                "weir_ca_authority_expires_seconds",
                "Seconds until the certificate that signs others ends.",
            )?,
        })
    }
}

impl Collector for Expiry {
    fn desc(&self) -> Vec<&Desc> {
        [self.root.desc(), self.authority.desc()].concat()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let Some(in_force) = self.in_force.borrow().clone() else {
            // No authority is not one that ends now.
            return Vec::new();
        };
        let left = |end: Timestamp| end.as_second() - Timestamp::now().as_second();
        self.root.set(left(in_force.roots_end()));
        self.authority.set(left(in_force.authority().not_after()));
        [self.root.collect(), self.authority.collect()].concat()
    }
}
