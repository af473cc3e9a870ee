//! What watches over the process sees: readiness, and metrics of its own besides those that its parts keep.

use std::sync::Arc;

use prometheus::{Encoder as _, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder, core::Collector};
use tokio::sync::{mpsc, watch};
use weir_proto::ResourceType;

use crate::{
    ads::Store,
    ca::{InForce, Keys},
    reports::Reports,
    watch::Batch,
};

/// What is looked at.
pub(crate) struct Parts {
    pub(crate) synced: watch::Receiver<bool>,
    pub(crate) in_force: watch::Receiver<Option<Arc<InForce>>>,
    pub(crate) keys: Arc<Keys>,
    pub(crate) store: Arc<Store>,
    pub(crate) reports: Arc<Reports>,
    /// Where watches put what they bring.
    pub(crate) batches: mpsc::WeakSender<Batch>,
}

/// The process, as it is seen from outside.
pub(crate) struct Overview {
    registry: Registry,
    parts: Parts,
    gauges: Gauges,
}

/// What is measured only when somebody looks.
struct Gauges {
    synced: IntGauge,
    queue: IntGauge,
    queue_capacity: IntGauge,
    resources: IntGaugeVec,
    reports: IntGauge,
    pods: IntGaugeVec,
}

// === impl Overview ===

impl Overview {
    pub(crate) fn new(registry: Registry, parts: Parts) -> Result<Self, prometheus::Error> {
        let gauges = Gauges::new(&registry)?;
        Ok(Self {
            registry,
            parts,
            gauges,
        })
    }

    fn refresh(&self) {
        let (gauges, parts) = (&self.gauges, &self.parts);
        gauges.synced.set((*parts.synced.borrow()).into());
        if let Some(batches) = parts.batches.upgrade() {
            set(&gauges.queue, batches.max_capacity() - batches.capacity());
            set(&gauges.queue_capacity, batches.max_capacity());
        }
        for kind in ResourceType::ALL {
            let gauge = gauges.resources.with_label_values(&[kind.label()]);
            set(&gauge, parts.store.len(kind));
        }
        let reports = parts.reports.all();
        set(&gauges.reports, reports.len());
        let pods = || reports.values().flat_map(|node| node.pods.values());
        let enrolled = pods().filter(|pod| pod.is_ok()).count();
        set(&gauges.pods.with_label_values(&["enrolled"]), enrolled);
        set(
            &gauges.pods.with_label_values(&["refused"]),
            pods().count() - enrolled,
        );
    }
}

impl weir_admin::Admin for Overview {
    fn metrics(&self) -> Vec<u8> {
        self.refresh();
        let mut text = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            tracing::error!(%error, "metrics cannot be written");
        }
        text
    }

    fn not_ready(&self) -> Option<String> {
        if !*self.parts.synced.borrow() {
            return Some("what is in the cluster is not known yet".to_owned());
        }
        if self.parts.in_force.borrow().is_none() {
            let problem = self.parts.keys.problem();
            let problem = problem.unwrap_or_else(|| "its Secret was not read yet".to_owned());
            return Some(format!("no certificate authority: {problem}"));
        }
        None
    }
}

// === impl Gauges ===

impl Gauges {
    fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let one = |name: &str, help: &str| register(registry, IntGauge::new(name, help)?);
        let by = |label: &str, name: &str, help: &str| {
            register(registry, IntGaugeVec::new(Opts::new(name, help), &[label])?)
        };
        let build = by(
            "version",
            "weir_build_info",
            "1; the label says which version runs.",
        )?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        Ok(Self {
            synced: one(
                "weir_cluster_synced",
                "1 once all there is in the cluster was taken in.",
            )?,
            queue: one(
                "weir_watch_queue_length",
                "Sets of changes from the API server that wait for the compiler.",
            )?,
            queue_capacity: one(
                "weir_watch_queue_capacity",
                "Sets of changes that may wait; the watches wait then.",
            )?,
            resources: by("type", "weir_ads_resources", "Resources that agents are told of.")?,
            reports: one("weir_node_reports", "Nodes whose agents report to this replica.")?,
            pods: by(
                "state",
                "weir_reported_pods",
                "Pods of these nodes that should be in the mesh, and whether they are.",
            )?,
        })
    }
}

fn register<M: Collector + Clone + 'static>(registry: &Registry, metric: M) -> Result<M, prometheus::Error> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn set(gauge: &IntGauge, value: usize) {
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
}
