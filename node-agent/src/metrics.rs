//! Metrics: handles are kept, and label values come from closed lists, or are names of the cluster's and have a cap.
//!
//! `docs/metrics.md` lists them all. What names a workload is what the node itself verified: a label never holds what a peer
//! says of itself.

mod bytes;
mod capped;
mod family;
mod fill;
mod refresh;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use prometheus::{
    Encoder as _, Gauge, Histogram, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry, TextEncoder,
};
use weir_tunnel::{certs::RenewalObserver, copy::Counters};
use weir_types::{Flow, FlowEvent, FlowPath, FlowVerdict, Reason, TrafficDirection};

use bytes::Bytes;
pub use bytes::UNKNOWN;
use capped::Capped;
pub use capped::{IDLE, OTHER, SERIES};
use family::{Families, Table};
pub(crate) use fill::Fill;

/// All metrics of the agent. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
    connections: Arc<Connections>,
    /// Round trips that connections begin with.
    handshakes: [Histogram; 2],
    connects: [Histogram; 3],
    renewals: [IntCounter; 2],
    renewal_age: Histogram,
    fill: Fill,
    /// Events lost before they became flow records, or overwritten unread.
    pub flows_lost: IntCounter,
    /// Records that were written to a file or the access log, by which of them.
    pub exported: IntCounterVec,
    /// Records that should have been, and were not.
    pub export_dropped: IntCounterVec,
    /// Events that found no room in the kernel's ring buffer; counted among the former too.
    pub kernel_events_lost: IntCounter,
    /// Pods enrolled now.
    pub pods: IntGauge,
    /// Pods of the mesh that are not enrolled.
    pub pods_refused: IntGauge,
    /// Parts of the agent that do not do what they should.
    pub faults: IntGauge,
    /// Generation of the configuration in force.
    pub generation: IntGauge,
    /// 1 while the file's newest contents are refused.
    pub config_rejected: IntGauge,
    /// Whether what is new arrives from the control plane; 1 without one, since files are then what counts.
    pub control_plane_connected: IntGauge,
    /// When something new came last, Unix time in seconds.
    pub control_plane_updated: IntGauge,
    /// Entries in the kernel's connection table.
    pub kernel_connections: IntGauge,
    /// Certificates that the agent holds.
    pub certificates: IntGauge,
    /// When the first certificate expires, Unix time in seconds.
    pub certificate_expiry: IntGauge,
    /// The least part of its life that a certificate has left.
    pub certificate_left: Gauge,
    /// When the oldest certificate began, Unix time in seconds.
    pub certificate_start: IntGauge,
    /// When the first of the trusted roots expires, Unix time in seconds.
    pub root_expiry: IntGauge,
    /// Certificates whose last renewal failed.
    pub certificate_problems: IntGauge,
    /// When the certificate of the port for flows ends that the control plane gave, Unix time in seconds.
    pub flows_certificate_expiry: IntGauge,
    /// Times that the control plane gave none.
    pub flows_certificate_failures: IntCounter,
    /// Tunnel connections open now, by direction.
    pub tunnels: IntGaugeVec,
}

/// What is counted of connections.
#[derive(Debug)]
struct Connections {
    opened: Table,
    open: [[IntGauge; PATHS.len()]; 2],
    closed: Table,
    refused: Table,
    failed: Table,
    workload_refused: Capped,
    dry_run_denied: Capped,
    bytes: Bytes,
    duration: Histogram,
    refusals: Vec<AtomicU64>,
}

/// Where a connection of the agent's own leads.
#[derive(Debug, Clone, Copy)]
pub enum Upstream {
    /// To another pod's tunnel.
    Tunnel,
    /// To a destination outside of the mesh.
    Plaintext,
    /// To the application of a pod of this node.
    Application,
}

/// Upper bounds of connection durations, seconds: from a request on loopback to a day's session.
const DURATIONS: &[f64] = &[
    0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 60.0, 600.0, 3600.0, 86_400.0,
];
/// Of handshakes: an idle machine takes a millisecond, the time-out is ten seconds.
const HANDSHAKES: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 2.5, 10.0];
/// Of connects: on the node, in the zone, across zones, and with one, two and three SYNs sent again.
const CONNECTS: &[f64] = &[
    0.0001, 0.000_25, 0.0005, 0.001, 0.0025, 0.005, 0.025, 0.1, 1.0, 3.0, 5.0,
];
/// Of certificates at their renewal: half of what is asked for, which is a day by default.
const AGES: &[f64] = &[
    60.0, 600.0, 3600.0, 10_800.0, 21_600.0, 43_200.0, 86_400.0, 604_800.0,
];

/// By the number of the variant.
const PATHS: [&str; 5] = ["tunnel", "plaintext", "direct", "kernel", "nowhere"];
const DIRECTIONS: [&str; 2] = ["egress", "ingress"];

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// New metrics, in a registry of their own.
    #[must_use]
    pub fn new() -> Self {
        let registry = Registry::new();
        let families = Families(&registry);
        let (counter, gauge) = (
            |name: &str, help: &str| families.counter(name, help),
            |name: &str, help: &str| families.gauge(name, help),
        );
        let renewals = families.counters(
            "weir_certificate_renewals_total",
            "Certificates that were asked for, by what came of it; the first of an identity too.",
            &["result"],
        );
        let build = families.gauges(
            "weir_build_info",
            "1; the label says which version runs.",
            &["version"],
        );
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let control_plane_connected = gauge(
            "weir_control_plane_connected",
            "1 while what is new arrives from the control plane, or none is configured; else 0.",
        );
        Self {
            connections: Arc::new(Connections::new(&families)),
            handshakes: families.histograms(
                "weir_tls_handshake_duration_seconds",
                "Time of TLS handshakes of tunnels that succeeded.",
                HANDSHAKES,
                "direction",
                DIRECTIONS,
            ),
            connects: families.histograms(
                "weir_upstream_connect_duration_seconds",
                "Time of TCP connects by the agent that succeeded.",
                CONNECTS,
                "to",
                ["tunnel", "plaintext", "application"],
            ),
            renewals: ["issued", "failed"].map(|result| renewals.with_label_values(&[result])),
            renewal_age: families.histogram(
                "weir_certificate_age_at_renewal_seconds",
                "Age of certificates when they were replaced.",
                AGES,
            ),
            fill: Fill::new(&families),
            exported: families.counters(
                "weir_flows_exported_total",
                "Flow records handed to the file (file) or the access log (access-log), or sent as logs (otlp-logs) or spans (otlp-spans).",
                &["to"],
            ),
            export_dropped: families.counters(
                "weir_flows_export_dropped_total",
                "Flow records overwritten before they could be written or sent, or that could not be.",
                &["to"],
            ),
            flows_lost: counter(
                "weir_flows_lost_total",
                "Flow events lost before anybody could read them.",
            ),
            kernel_events_lost: counter(
                "weir_kernel_events_lost_total",
                "Events that found no room in the kernel's ring buffer; among the lost flow events too.",
            ),
            pods: gauge("weir_pods_enrolled", "Pods of this node that are in the mesh."),
            pods_refused: gauge(
                "weir_pods_refused",
                "Pods of this node that should be in the mesh and cannot be enrolled.",
            ),
            faults: gauge(
                "weir_faults",
                "Parts of the agent that do not do what they should; `weir status` names them.",
            ),
            generation: gauge(
                "weir_config_generation",
                "Generation of the configuration in force.",
            ),
            control_plane_connected,
            control_plane_updated: gauge(
                "weir_control_plane_updated_timestamp_seconds",
                "When something new came from the control plane last, Unix time; 0 if nothing did.",
            ),
            config_rejected: gauge(
                "weir_config_rejected",
                "1 while the newest configuration is refused.",
            ),
            kernel_connections: gauge(
                "weir_kernel_connections",
                "Entries in the kernel's connection table.",
            ),
            certificates: gauge("weir_certificates", "Certificates that the agent holds."),
            certificate_expiry: gauge(
                "weir_certificate_expiry_timestamp_seconds",
                "When the first of this node's certificates expires, Unix time; 0 without any.",
            ),
            certificate_left: families.ratio(
                "weir_certificate_remaining_ratio",
                "The least part of its life that one of this node's certificates has left; 1 without any.",
            ),
            certificate_start: gauge(
                "weir_certificate_oldest_start_timestamp_seconds",
                "When the oldest of this node's certificates became valid, Unix time; 0 without any.",
            ),
            root_expiry: gauge(
                "weir_root_expiry_timestamp_seconds",
                "When the first of the trusted roots expires, Unix time; 0 without any.",
            ),
            certificate_problems: gauge(
                "weir_certificates_failing",
                "Certificates whose last renewal failed.",
            ),
            flows_certificate_expiry: gauge(
                "weir_flows_certificate_expiry_timestamp_seconds",
                "When the certificate of the port for flows ends that the control plane gave, Unix time; 0 without one.",
            ),
            flows_certificate_failures: counter(
                "weir_flows_certificate_failures_total",
                "Times that the control plane gave no certificate for the port for flows.",
            ),
            tunnels: families.gauges(
                "weir_tunnels_open",
                "Tunnel connections between nodes.",
                &["direction"],
            ),
            registry,
        }
    }

    /// Counts a flow record.
    pub fn count(&self, flow: &Flow) {
        self.connections.count(flow);
    }

    /// Forgets what was counted for a pod that left the node.
    pub fn forget_pod(&self, namespace: &str, pod: &str) {
        let is = |labels: &[String]| labels[0] == namespace && labels[1] == pod;
        self.connections.workload_refused.forget(is);
        self.connections.dry_run_denied.forget(is);
        self.connections.bytes.forget(namespace, pod);
    }

    /// A connection through the agent is open; `reversed`: its counters' "sent" is what the server sent.
    pub fn opened(&self, flow: &Flow, counters: &Arc<Counters>, reversed: bool) {
        self.connections.open[flow.direction as usize][flow.path as usize].inc();
        self.connections.bytes.opened(flow, counters, reversed);
    }

    /// A connection through the agent is open no more.
    pub fn closed(&self, flow: &Flow) {
        self.connections.open[flow.direction as usize][flow.path as usize].dec();
    }

    /// A TLS handshake succeeded.
    pub fn shook_hands(&self, direction: TrafficDirection, took: Duration) {
        self.handshakes[direction as usize].observe(took.as_secs_f64());
    }

    /// Observes how long a connect takes, if it succeeds.
    ///
    /// # Errors
    /// Those of the connect.
    pub async fn connecting<T, E>(
        &self,
        to: Upstream,
        connect: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let began = Instant::now();
        let connected = connect.await;
        if connected.is_ok() {
            self.connects[to as usize].observe(began.elapsed().as_secs_f64());
        }
        connected
    }

    /// Refused and failed connections by reason, without those that never happened.
    #[must_use]
    pub fn refusals(&self) -> Vec<(Reason, u64)> {
        let counts = self.connections.refusals.iter();
        Reason::ALL
            .iter()
            .copied()
            .zip(counts.map(|count| count.load(Ordering::Relaxed)))
            .filter(|(_, count)| *count > 0)
            .collect()
    }

    /// The Prometheus text format.
    #[must_use]
    pub fn render(&self) -> Vec<u8> {
        self.connections.bytes.settle(Instant::now());
        let mut text = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            tracing::error!(%error, "metrics cannot be rendered");
        }
        text
    }
}

impl RenewalObserver for Metrics {
    fn issued(&self, replaced: Option<Duration>) {
        self.renewals[0].inc();
        if let Some(age) = replaced {
            self.renewal_age.observe(age.as_secs_f64());
        }
    }

    fn failed(&self) {
        self.renewals[1].inc();
    }
}

// === impl Connections ===

impl Connections {
    fn new(families: &Families<'_>) -> Self {
        let reasons = Reason::ALL.len();
        let open = families.gauges(
            "weir_connections_open",
            "Connections open through the agent.",
            &["direction", "path"],
        );
        let workload_refused = families.counters(
            "weir_workload_refused_total",
            "Connections to a pod of this node that this node refused, by reason.",
            &["namespace", "workload", "reason"],
        );
        let dry_run_denied = families.counters(
            "weir_workload_dry_run_denied_total",
            "Connections to a pod of this node that a dry-run policy would have refused.",
            &["namespace", "workload"],
        );
        Self {
            opened: families.table(
                "weir_connections_opened_total",
                "Connections let through.",
                &["direction", "path"],
                2 * PATHS.len(),
            ),
            open: DIRECTIONS.map(|direction| PATHS.map(|path| open.with_label_values(&[direction, path]))),
            closed: families.table(
                "weir_connections_closed_total",
                "Connections that ended after they were open, by how.",
                &["direction", "path", "reason"],
                2 * PATHS.len() * reasons,
            ),
            refused: families.table(
                "weir_connections_refused_total",
                "Connections refused or failed before they were open, by reason.",
                &["direction", "reason"],
                2 * reasons,
            ),
            failed: families.table(
                "weir_connections_failed_total",
                "Of the connections that were not opened, those that no policy or mode refused, by reason.",
                &["direction", "reason"],
                2 * reasons,
            ),
            workload_refused: Capped::new(workload_refused, 2, SERIES),
            dry_run_denied: Capped::new(dry_run_denied, 2, SERIES),
            bytes: Bytes::new(families),
            duration: families.histogram(
                "weir_connection_duration_seconds",
                "Age of connections at their end.",
                DURATIONS,
            ),
            refusals: Reason::ALL.iter().map(|_| AtomicU64::new(0)).collect(),
        }
    }

    fn count(&self, flow: &Flow) {
        let (side, reason) = (flow.direction as usize, flow.reason as usize);
        let (direction, path) = (direction(flow.direction), PATHS[flow.path as usize]);
        let by_path = side * PATHS.len() + flow.path as usize;
        let by_reason = side * Reason::ALL.len() + reason;
        match flow.event {
            FlowEvent::Open => {
                self.opened.cell(by_path, &[direction, path]).inc();
                if flow.dry_run.is_some()
                    && let Some((namespace, pod)) = local_destination(flow)
                {
                    let series = self.dry_run_denied.series(&[namespace, pod], Instant::now());
                    series.add(1);
                }
            }
            FlowEvent::Refused => {
                let labels = [direction, flow.reason.as_str()];
                self.refused.cell(by_reason, &labels).inc();
                self.refusals[reason].fetch_add(1, Ordering::Relaxed);
                if flow.verdict == FlowVerdict::Failed {
                    self.failed.cell(by_reason, &labels).inc();
                }
                if flow.verdict == FlowVerdict::Denied
                    && let Some((namespace, pod)) = local_destination(flow)
                {
                    let labels = [namespace, pod, flow.reason.as_str()];
                    self.workload_refused.series(&labels, Instant::now()).add(1);
                }
            }
            FlowEvent::Close => {
                let labels = [direction, path, flow.reason.as_str()];
                self.closed
                    .cell(by_path * Reason::ALL.len() + reason, &labels)
                    .inc();
                self.bytes.closed(flow);
                self.duration.observe(flow.duration_us as f64 / 1e6);
            }
        }
    }
}

/// The pod of this node that a connection was for, if this node decided about it. Names of other nodes' pods are no labels:
/// there is no end to them.
fn local_destination(flow: &Flow) -> Option<(&str, &str)> {
    let here = flow.direction == TrafficDirection::Ingress
        || flow.path == FlowPath::Direct
        || (flow.path == FlowPath::Nowhere && flow.policy.is_some());
    let end = &flow.destination;
    here.then_some((end.namespace.as_deref()?, end.pod.as_deref()?))
}

/// The label of a direction.
#[must_use]
pub fn direction(direction: TrafficDirection) -> &'static str {
    DIRECTIONS[direction as usize]
}

#[cfg(test)]
mod tests;
