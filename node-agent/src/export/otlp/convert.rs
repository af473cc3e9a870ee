//! What records are in OTLP: names of attributes are those of OpenTelemetry's semantic conventions where these have one, and else
//! begin with `weir.`.

use std::sync::Arc;

use opentelemetry_proto::tonic::{
    collector::{logs::v1::ExportLogsServiceRequest, trace::v1::ExportTraceServiceRequest},
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value},
    logs::v1::{LogRecord, ResourceLogs, ScopeLogs, SeverityNumber},
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span, SpanFlags, Status, span::SpanKind, status::StatusCode},
};
use weir_types::{Flow, FlowEvent, FlowPeer, FlowTrace, FlowVerdict, Reason, TrafficDirection};

use super::{
    super::{line, names},
    LOGS, SPANS, Signal,
    client::{Client, ExportError},
};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Who sends.
#[derive(Debug, Clone)]
pub struct About {
    /// The node.
    pub node: String,
    /// The cluster, as the control plane knows it.
    pub cluster: Option<String>,
}

/// Records as logs.
pub(super) struct Logs(pub(super) Arc<About>);

/// Connections as spans.
pub(super) struct Spans(pub(super) Arc<About>);

impl Signal for Logs {
    const NAME: &'static str = LOGS;
    type Item = LogRecord;

    fn item(&self, flow: &Flow) -> Option<LogRecord> {
        Some(log_record(flow, jiff::Timestamp::now()))
    }

    async fn export(&self, client: &Client, items: Vec<LogRecord>) -> Result<(u64, String), ExportError> {
        let logs = ScopeLogs {
            scope: Some(scope()),
            log_records: items,
            ..ScopeLogs::default()
        };
        let logs = ResourceLogs {
            resource: Some(self.0.resource()),
            scope_logs: vec![logs],
            ..ResourceLogs::default()
        };
        client
            .logs(ExportLogsServiceRequest {
                resource_logs: vec![logs],
            })
            .await
    }
}

impl Signal for Spans {
    const NAME: &'static str = SPANS;
    type Item = Span;

    fn item(&self, flow: &Flow) -> Option<Span> {
        span(flow)
    }

    async fn export(&self, client: &Client, items: Vec<Span>) -> Result<(u64, String), ExportError> {
        let spans = ScopeSpans {
            scope: Some(scope()),
            spans: items,
            ..ScopeSpans::default()
        };
        let spans = ResourceSpans {
            resource: Some(self.0.resource()),
            scope_spans: vec![spans],
            ..ResourceSpans::default()
        };
        client
            .spans(ExportTraceServiceRequest {
                resource_spans: vec![spans],
            })
            .await
    }
}

impl About {
    fn resource(&self) -> Resource {
        let mut own = Attributes::default();
        own.text("service.name", "weir-agent");
        own.text("service.version", VERSION);
        own.text("k8s.node.name", &self.node);
        own.text("k8s.cluster.name", self.cluster.as_deref().unwrap_or_default());
        Resource {
            attributes: own.0,
            ..Resource::default()
        }
    }
}

fn scope() -> InstrumentationScope {
    InstrumentationScope {
        name: "weir".to_owned(),
        version: VERSION.to_owned(),
        ..InstrumentationScope::default()
    }
}

/// A record as a log record. Its time is the event's; `now` is when it was read from the ring.
pub(super) fn log_record(flow: &Flow, now: jiff::Timestamp) -> LogRecord {
    let (severity, text) = match flow.verdict {
        FlowVerdict::Forwarded => (SeverityNumber::Info, "INFO"),
        FlowVerdict::Denied | FlowVerdict::Failed => (SeverityNumber::Warn, "WARN"),
    };
    let trace = flow.trace.as_ref();
    LogRecord {
        time_unix_nano: nanos(flow.time),
        observed_time_unix_nano: nanos(now),
        severity_number: severity.into(),
        severity_text: text.to_owned(),
        body: Some(AnyValue {
            value: Some(Value::StringValue(line::text(flow))),
        }),
        attributes: attributes(flow),
        flags: trace.map_or(0, flags),
        trace_id: trace.map_or_else(Vec::new, |own| own.trace_id.bytes().to_vec()),
        span_id: trace.map_or_else(Vec::new, |own| own.span_id.bytes().to_vec()),
        event_name: format!("weir.connection.{}", names::event(flow.event)),
        ..LogRecord::default()
    }
}

/// A connection that is over as a span, if its trace's spans are recorded.
pub(super) fn span(flow: &Flow) -> Option<Span> {
    let trace = flow.trace.as_ref().filter(|trace| trace.sampled)?;
    if flow.event == FlowEvent::Open {
        return None;
    }
    let end = nanos(flow.time);
    let kind = match flow.direction {
        TrafficDirection::Egress => SpanKind::Client,
        TrafficDirection::Ingress => SpanKind::Server,
    };
    let failed = flow.verdict != FlowVerdict::Forwarded;
    let status = failed.then(|| Status {
        message: match &flow.detail {
            Some(detail) => format!("{}: {detail}", flow.reason.as_str()),
            None => flow.reason.as_str().to_owned(),
        },
        code: StatusCode::Error.into(),
    });
    let mut attributes = attributes(flow);
    if failed {
        let mut own = Attributes(attributes);
        own.text("error.type", flow.reason.as_str());
        attributes = own.0;
    }
    let parent = trace.parent_span_id;
    // Of those that are below another, only one at the server's side has its parent elsewhere.
    let parents = match (parent, flow.direction) {
        (Some(_), TrafficDirection::Ingress) => {
            SpanFlags::ContextHasIsRemoteMask as u32 | SpanFlags::ContextIsRemoteMask as u32
        }
        (Some(_), TrafficDirection::Egress) => SpanFlags::ContextHasIsRemoteMask as u32,
        (None, _) => 0,
    };
    Some(Span {
        trace_id: trace.trace_id.bytes().to_vec(),
        span_id: trace.span_id.bytes().to_vec(),
        parent_span_id: parent.map_or_else(Vec::new, |own| own.bytes().to_vec()),
        flags: flags(trace) | parents,
        name: span_name(flow),
        kind: kind.into(),
        start_time_unix_nano: end.saturating_sub(flow.duration_us.saturating_mul(1000)),
        end_time_unix_nano: end,
        attributes,
        status,
        ..Span::default()
    })
}

/// The service that was asked for, or what runs the server: of these there are few, as there must be of names of spans.
fn span_name(flow: &Flow) -> String {
    let peer = &flow.destination;
    let workload = peer.about.as_ref().and_then(|about| about.workload.as_ref());
    match (&flow.service, &peer.namespace, workload) {
        (Some(service), ..) => format!("connection {service}"),
        (None, Some(namespace), Some(workload)) => format!("connection {namespace}/{}", workload.name),
        _ => "connection".to_owned(),
    }
}

fn flags(trace: &FlowTrace) -> u32 {
    u32::from(trace.sampled)
}

/// Since 1970; what is before, or after 2554, does not fit and is zero, which stands for unknown.
fn nanos(time: jiff::Timestamp) -> u64 {
    u64::try_from(time.as_nanosecond()).unwrap_or_default()
}

/// Attributes on their way. What is empty or absent is left out.
#[derive(Default)]
struct Attributes(Vec<KeyValue>);

impl Attributes {
    fn put(&mut self, key: &str, value: Value) {
        self.0.push(KeyValue {
            key: key.to_owned(),
            value: Some(AnyValue { value: Some(value) }),
            ..KeyValue::default()
        });
    }

    fn text(&mut self, key: &str, value: &str) {
        if !value.is_empty() {
            self.put(key, Value::StringValue(value.to_owned()));
        }
    }

    fn number(&mut self, key: &str, value: impl TryInto<i64>) {
        self.put(key, Value::IntValue(value.try_into().unwrap_or(i64::MAX)));
    }

    fn end(&mut self, end: &str, peer: &FlowPeer) {
        self.text(&format!("{end}.address"), &peer.address.ip().to_string());
        self.number(&format!("{end}.port"), peer.address.port());
        let mut own = |name: &str, value: Option<&str>| {
            self.text(&format!("weir.{end}.{name}"), value.unwrap_or_default());
        };
        let workload = peer.about.as_ref().and_then(|about| about.workload.as_ref());
        let identity = peer.identity.as_ref().map(ToString::to_string);
        own("identity", identity.as_deref());
        own("namespace", peer.namespace.as_deref());
        own("pod", peer.pod.as_deref());
        own("workload", workload.map(|own| own.name.as_str()));
        own("workload_kind", workload.map(|own| own.kind.as_str()));
    }
}

/// The attributes of a record, as a log record's or a span's.
fn attributes(flow: &Flow) -> Vec<KeyValue> {
    let mut own = Attributes(Vec::with_capacity(32));
    own.end("source", &flow.source);
    own.end("destination", &flow.destination);
    own.text("network.transport", "tcp");
    let version = if flow.destination.address.is_ipv4() {
        "ipv4"
    } else {
        "ipv6"
    };
    own.text("network.type", version);
    // The pod of this node.
    let local = match flow.direction {
        TrafficDirection::Egress => &flow.source,
        TrafficDirection::Ingress => &flow.destination,
    };
    own.text(
        "k8s.namespace.name",
        local.namespace.as_deref().unwrap_or_default(),
    );
    own.text("k8s.pod.name", local.pod.as_deref().unwrap_or_default());
    own.text("weir.direction", names::direction(flow.direction));
    own.text("weir.path", names::path(flow.path));
    own.text("weir.verdict", names::verdict(flow.verdict));
    if flow.reason != Reason::None {
        own.text("weir.reason", flow.reason.as_str());
    }
    own.text("weir.detail", flow.detail.as_deref().unwrap_or_default());
    // Numbers of connections are unique in one run of the agent: as text they are none to calculate with.
    own.text("weir.connection", &flow.connection.to_string());
    own.number("weir.sequence", flow.sequence);
    own.text("weir.service", flow.service.as_deref().unwrap_or_default());
    let asked = flow.original_destination.map(|own| own.to_string());
    own.text("weir.original_destination", &asked.unwrap_or_default());
    own.text("weir.tls", flow.tls.as_deref().unwrap_or_default());
    for (name, policy) in [
        ("weir.policy", &flow.policy),
        ("weir.dry_run_policy", &flow.dry_run),
    ] {
        let policy = policy.as_ref().map(ToString::to_string);
        own.text(name, &policy.unwrap_or_default());
    }
    if flow.event == FlowEvent::Close {
        own.number("weir.bytes.sent", flow.bytes_sent);
        own.number("weir.bytes.received", flow.bytes_received);
        own.number("weir.duration_us", flow.duration_us);
    }
    if let Some(rtt) = flow.rtt_us {
        own.number("weir.rtt_us", rtt);
    }
    if let Some(count) = flow.retransmits {
        own.number("weir.retransmits", count);
    }
    if let Some(process) = &flow.process {
        own.number("process.pid", process.pid);
        own.text("weir.process", &process.name);
    }
    own.0
}

#[cfg(test)]
mod tests;
