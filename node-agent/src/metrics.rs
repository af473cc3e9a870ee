//! Metrics: handles are kept, and label values come from closed lists only.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use prometheus::{
    Encoder as _, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder, core::Collector,
};
use weir_types::{Flow, FlowEvent, FlowPath, FlowVerdict, Reason, TrafficDirection};

/// All metrics of the agent. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
    opened: IntCounterVec,
    open: IntGaugeVec,
    refused: IntCounterVec,
    workload_refused: IntCounterVec,
    dry_run_denied: IntCounterVec,
    bytes: IntCounterVec,
    duration: Histogram,
    refusals: Arc<Vec<AtomicU64>>,
    /// Events lost before they became flow records, or overwritten unread.
    pub flows_lost: IntCounter,
    /// Pods enrolled now.
    pub pods: IntGauge,
    /// Generation of the configuration in force.
    pub generation: IntGauge,
    /// 1 while the file's newest contents are refused.
    pub config_rejected: IntGauge,
    /// Whether what is new arrives from the control plane; 1 without one, since files are then what counts.
    pub control_plane_connected: IntGauge,
    /// Entries in the kernel's connection table.
    pub kernel_connections: IntGauge,
    /// When the first certificate expires, Unix time in seconds.
    pub certificate_expiry: IntGauge,
    /// Certificates whose last renewal failed.
    pub certificate_problems: IntGauge,
    /// Tunnel connections open now, by direction.
    pub tunnels: IntGaugeVec,
}

/// Upper bounds of connection durations, seconds: from a request on loopback to a day's session.
const DURATIONS: &[f64] = &[
    0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 60.0, 600.0, 3600.0, 86_400.0,
];

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
        let counter = |name: &str, help: &str| register(&registry, IntCounter::new(name, help));
        let gauge = |name: &str, help: &str| register(&registry, IntGauge::new(name, help));
        let counters = |name: &str, help: &str, labels: &[&str]| {
            register(&registry, IntCounterVec::new(Opts::new(name, help), labels))
        };
        let gauges = |name: &str, help: &str, labels: &[&str]| {
            register(&registry, IntGaugeVec::new(Opts::new(name, help), labels))
        };
        let duration = HistogramOpts::new(
            "weir_connection_duration_seconds",
            "Age of connections at their end.",
        );
        Self {
            opened: counters(
                "weir_connections_opened_total",
                "Connections let through.",
                &["direction", "path"],
            ),
            open: gauges(
                "weir_connections_open",
                "Connections open through the agent.",
                &["direction", "path"],
            ),
            refused: counters(
                "weir_connections_refused_total",
                "Connections refused or failed before they were open, by reason.",
                &["direction", "reason"],
            ),
            workload_refused: counters(
                "weir_workload_refused_total",
                "Connections to a pod of this node that this node refused, by reason.",
                &["namespace", "workload", "reason"],
            ),
            dry_run_denied: counters(
                "weir_workload_dry_run_denied_total",
                "Connections to a pod of this node that a dry-run policy would have refused.",
                &["namespace", "workload"],
            ),
            bytes: counters(
                "weir_bytes_total",
                "Payload bytes of closed connections, from client to server (sent) and back (received).",
                &["direction", "flow"],
            ),
            duration: register(
                &registry,
                Histogram::with_opts(duration.buckets(DURATIONS.to_vec())),
            ),
            refusals: Arc::new(Reason::ALL.iter().map(|_| AtomicU64::new(0)).collect()),
            flows_lost: counter(
                "weir_flows_lost_total",
                "Flow events lost before anybody could read them.",
            ),
            pods: gauge("weir_pods_enrolled", "Pods of this node that are in the mesh."),
            generation: gauge(
                "weir_config_generation",
                "Generation of the configuration in force.",
            ),
            control_plane_connected: gauge(
                "weir_control_plane_connected",
                "1 while what is new arrives from the control plane, or none is configured; else 0.",
            ),
            config_rejected: gauge(
                "weir_config_rejected",
                "1 while the newest configuration is refused.",
            ),
            kernel_connections: gauge(
                "weir_kernel_connections",
                "Entries in the kernel's connection table.",
            ),
            certificate_expiry: gauge(
                "weir_certificate_expiry_timestamp_seconds",
                "When the first of this node's certificates expires, Unix time.",
            ),
            certificate_problems: gauge(
                "weir_certificates_failing",
                "Certificates whose last renewal failed.",
            ),
            tunnels: gauges(
                "weir_tunnels_open",
                "Tunnel connections between nodes.",
                &["direction"],
            ),
            registry,
        }
    }

    /// Counts a flow record.
    pub fn count(&self, flow: &Flow) {
        let direction = direction(flow.direction);
        match flow.event {
            FlowEvent::Open => {
                self.opened.with_label_values(&[direction, path(flow.path)]).inc();
                if flow.dry_run.is_some()
                    && let Some((namespace, pod)) = local_destination(flow)
                {
                    self.dry_run_denied.with_label_values(&[namespace, pod]).inc();
                }
            }
            FlowEvent::Refused => {
                self.refused
                    .with_label_values(&[direction, flow.reason.as_str()])
                    .inc();
                self.refusals[flow.reason as usize].fetch_add(1, Ordering::Relaxed);
                if flow.verdict == FlowVerdict::Denied
                    && let Some((namespace, pod)) = local_destination(flow)
                {
                    let labels = [namespace, pod, flow.reason.as_str()];
                    self.workload_refused.with_label_values(&labels).inc();
                }
            }
            FlowEvent::Close => {
                self.bytes
                    .with_label_values(&[direction, "sent"])
                    .inc_by(flow.bytes_sent);
                self.bytes
                    .with_label_values(&[direction, "received"])
                    .inc_by(flow.bytes_received);
                self.duration.observe(flow.duration_us as f64 / 1e6);
            }
        }
    }

    /// Forgets what was counted for a pod that left the node.
    pub fn forget_pod(&self, namespace: &str, pod: &str) {
        // Errors here: there was no such count.
        for reason in Reason::ALL {
            let labels = [namespace, pod, reason.as_str()];
            let _ = self.workload_refused.remove_label_values(&labels);
        }
        let _ = self.dry_run_denied.remove_label_values(&[namespace, pod]);
    }

    /// A connection through the agent is open.
    pub fn opened(&self, flow: &Flow) {
        self.open
            .with_label_values(&[direction(flow.direction), path(flow.path)])
            .inc();
    }

    /// A connection through the agent is open no more.
    pub fn closed(&self, flow: &Flow) {
        self.open
            .with_label_values(&[direction(flow.direction), path(flow.path)])
            .dec();
    }

    /// Refused and failed connections by reason, without those that never happened.
    #[must_use]
    pub fn refusals(&self) -> Vec<(Reason, u64)> {
        let counts = self.refusals.iter().map(|count| count.load(Ordering::Relaxed));
        Reason::ALL
            .iter()
            .copied()
            .zip(counts)
            .filter(|(_, count)| *count > 0)
            .collect()
    }

    /// The Prometheus text format.
    #[must_use]
    pub fn render(&self) -> Vec<u8> {
        let mut text = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            tracing::error!(%error, "metrics cannot be rendered");
        }
        text
    }
}

/// Names are constants, each valid and used once: anything else is a mistake that the first test shows.
fn register<M: Collector + Clone + 'static>(registry: &Registry, metric: prometheus::Result<M>) -> M {
    #[expect(clippy::expect_used, reason = "see above")]
    let metric = metric.expect("a valid name");
    #[expect(clippy::expect_used, reason = "see above")]
    registry
        .register(Box::new(metric.clone()))
        .expect("a name used once");
    metric
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
    match direction {
        TrafficDirection::Egress => "egress",
        TrafficDirection::Ingress => "ingress",
    }
}

fn path(path: FlowPath) -> &'static str {
    match path {
        FlowPath::Tunnel => "tunnel",
        FlowPath::Plaintext => "plaintext",
        FlowPath::Direct => "direct",
        FlowPath::Kernel => "kernel",
        FlowPath::Nowhere => "nowhere",
    }
}
