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

/// The label that tells authorities apart.
const AUTHORITY: &str = "authority";

/// Metrics of requests to an authority's service.
#[derive(Debug)]
pub(crate) struct Metrics {
    pub(crate) issued: IntCounter,
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

fn of(authority: &str, name: &str, help: &str) -> Opts {
    Opts::new(name, help).const_label(AUTHORITY, authority)
}

// === impl Metrics ===

impl Metrics {
    /// `reasons` are all that requests may be refused for.
    pub(crate) fn new(
        authority: &str,
        reasons: &[&str],
        registry: &Registry,
    ) -> Result<Self, prometheus::Error> {
        let issued = IntCounter::with_opts(of(authority, "weir_ca_issued_total", "Certificates issued."))?;
        let help = "Requests for certificates that were refused.";
        let refused = IntCounterVec::new(of(authority, "weir_ca_refused_total", help), &["reason"])?;
        // From the start: that one rises from nothing is seen only if nothing was seen before.
        for reason in reasons {
            let _ = refused.with_label_values(&[reason]);
        }
        registry.register(Box::new(issued.clone()))?;
        registry.register(Box::new(refused.clone()))?;
        Ok(Self { issued, refused })
    }

    pub(crate) fn refused(&self, reason: &str) {
        self.refused.with_label_values(&[reason]).inc();
    }
}

// === impl KeyMetrics ===

impl KeyMetrics {
    pub(super) fn new(authority: &str, registry: &Registry) -> Result<Self, prometheus::Error> {
        let rejected = IntCounter::with_opts(of(
            authority,
            "weir_ca_secret_rejected_total",
            "Times that the Secret's contents were not fit to be put into force.",
        ))?;
        let problem = IntGauge::with_opts(of(
            authority,
            "weir_ca_problem",
            "1 while the authority is not as its Secret should have it; the log and the status say why.",
        ))?;
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
    pub(super) fn new(
        authority: &str,
        in_force: watch::Receiver<Option<Arc<InForce>>>,
    ) -> Result<Self, prometheus::Error> {
        Ok(Self {
            in_force,
            root: IntGauge::with_opts(of(
                authority,
                "weir_ca_root_expires_seconds",
                "Seconds until the first of the roots that agents trust ends.",
            ))?,
            authority: IntGauge::with_opts(of(
                authority,
                "weir_ca_authority_expires_seconds",
                "Seconds until the certificate that signs others ends.",
            ))?,
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
