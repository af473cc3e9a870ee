//! Hubble's record of a flow as Weir's.

use std::{net::SocketAddr, sync::Arc};

use weir_proto::{flow as hubble, weir::flow::v1 as own};
use weir_types::{
    About, Flow, FlowEvent, FlowPath, FlowPeer, FlowTrace, FlowVerdict, PolicyMatch, Process, Reason,
    TrafficDirection, WorkloadName,
};

use crate::form::details;

/// The record as Weir has it; `None` if it is not one of a TCP connection. Of records that are not Weir's own, what only the
/// details say is missing.
#[must_use]
pub fn from_hubble(flow: &hubble::Flow) -> Option<Flow> {
    let details = details(flow);
    let known = details.clone().unwrap_or_default();
    let ip = flow.ip.as_ref()?;
    let Some(hubble::layer4::Protocol::Tcp(tcp)) = &flow.l4.as_ref()?.protocol else {
        return None;
    };
    let address = |ip: &str, port: u32| Some(SocketAddr::new(ip.parse().ok()?, u16::try_from(port).ok()?));
    let source = address(&ip.source, tcp.source_port)?;
    let destination = address(&ip.destination, tcp.destination_port)?;
    let verdict = match flow.verdict() {
        hubble::Verdict::Dropped => FlowVerdict::Denied,
        hubble::Verdict::Error => FlowVerdict::Failed,
        _ => FlowVerdict::Forwarded,
    };
    let flags = tcp.flags.unwrap_or_default();
    let event = match own::Event::try_from(known.event) {
        Ok(own::Event::Open) => FlowEvent::Open,
        Ok(own::Event::Close) => FlowEvent::Close,
        Ok(own::Event::Refused) => FlowEvent::Refused,
        _ if verdict != FlowVerdict::Forwarded => FlowEvent::Refused,
        _ if flags.fin || flags.rst => FlowEvent::Close,
        _ => FlowEvent::Open,
    };
    let path = match own::Path::try_from(known.path) {
        Ok(own::Path::Tunnel) => FlowPath::Tunnel,
        Ok(own::Path::Plaintext) => FlowPath::Plaintext,
        Ok(own::Path::Direct) => FlowPath::Direct,
        Ok(own::Path::Nowhere) => FlowPath::Nowhere,
        _ if ip.encrypted => FlowPath::Tunnel,
        _ => FlowPath::Kernel,
    };
    let reasons = Reason::ALL.iter().copied();
    let reason = match known.reason.as_str() {
        "" if verdict == FlowVerdict::Forwarded => Reason::None,
        "" => Reason::Internal,
        name => reasons
            .into_iter()
            .find(|reason| reason.as_str() == name)
            .unwrap_or(Reason::Internal),
    };
    let matched = |own: Option<own::PolicyMatch>| {
        own.map(|own| PolicyMatch {
            policy: own.policy.into(),
            rule: own.rule,
        })
    };
    let seconds = flow.time.unwrap_or_default();
    let time = jiff::Timestamp::new(seconds.seconds, seconds.nanos).ok()?;
    let some = |text: String| (!text.is_empty()).then_some(text);
    Some(Flow {
        sequence: known.sequence,
        time,
        node: flow.node_name.clone(),
        connection: known.connection,
        event,
        verdict,
        reason,
        detail: some(known.detail),
        direction: match flow.traffic_direction() {
            hubble::TrafficDirection::Ingress => TrafficDirection::Ingress,
            _ => TrafficDirection::Egress,
        },
        path,
        source: peer(flow.source.as_ref(), source, &known.source_identity),
        destination: peer(
            flow.destination.as_ref(),
            destination,
            &known.destination_identity,
        ),
        original_destination: known.original_destination.parse().ok(),
        service: flow
            .destination_service
            .as_ref()
            .map(|service| match service.namespace.as_str() {
                "" => service.name.clone(),
                namespace => format!("{namespace}/{}", service.name),
            }),
        tls: some(known.tls),
        policy: matched(known.policy),
        dry_run: matched(known.dry_run),
        bytes_sent: known.bytes_sent,
        bytes_received: known.bytes_received,
        duration_us: known.duration_us,
        rtt_us: known.rtt_us,
        retransmits: known.retransmits,
        process: known.process.map(|process| Process {
            pid: process.pid,
            name: process.name,
        }),
        trace: known.span.and_then(|span| trace(flow, &span)),
    })
}

/// Without a span of its own a record is in no trace: Cilium's name the trace of a request, which is another thing.
fn trace(flow: &hubble::Flow, span: &own::Span) -> Option<FlowTrace> {
    let parent = flow.trace_context.as_ref()?.parent.as_ref()?;
    Some(FlowTrace {
        trace_id: parent.trace_id.parse().ok()?,
        span_id: span.span_id.parse().ok()?,
        parent_span_id: span.parent_span_id.parse().ok(),
        sampled: span.sampled,
    })
}

fn peer(endpoint: Option<&hubble::Endpoint>, address: SocketAddr, identity: &str) -> FlowPeer {
    let Some(endpoint) = endpoint else {
        return FlowPeer::unknown(address);
    };
    let some = |text: &String| (!text.is_empty()).then(|| text.clone());
    let labels = endpoint.labels.iter().filter_map(|label| {
        let (key, value) = label.strip_prefix("k8s:")?.split_once('=')?;
        (!key.starts_with("io.kubernetes.pod.") && !key.starts_with("io.cilium."))
            .then(|| (key.to_owned(), value.to_owned()))
    });
    let about = About {
        labels: labels.collect(),
        workload: endpoint.workloads.first().map(|workload| WorkloadName {
            name: workload.name.clone(),
            kind: workload.kind.clone(),
        }),
    };
    FlowPeer {
        address,
        identity: identity.parse().ok(),
        namespace: some(&endpoint.namespace),
        pod: some(&endpoint.pod_name),
        about: (about != About::default()).then(|| Arc::new(about)),
    }
}
