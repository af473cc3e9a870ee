//! Weir's record of a flow as Hubble's, and back.

mod back;
mod identity;
mod reason;

use std::net::SocketAddr;

use prost::Message as _;
use prost_types::Timestamp;
use weir_proto::{
    Any, flow as hubble,
    weir::flow::v1::{self as own, Details},
};
use weir_types::{Flow, FlowEvent, FlowPath, FlowPeer, FlowVerdict, PolicyMatch, Reason, TrafficDirection};

pub use back::from_hubble;
pub use identity::number;
pub use reason::drop_reason;

/// The type's URL of what stands in `extensions`.
pub const DETAILS: &str = "type.googleapis.com/weir.flow.v1.Details";

/// Types of events, as Cilium's monitor numbers them.
const DROP: i32 = 1;
const TRACE: i32 = 4;
const POLICY_VERDICT: i32 = 5;
/// Sub-types of a trace: towards an endpoint, and from one.
const TO_ENDPOINT: i32 = 0;
const FROM_ENDPOINT: i32 = 5;
/// Numbers of connections that are cookies of sockets are below this.
const COOKIES: u64 = 1 << 40;

/// Whose records they are.
#[derive(Debug, Clone)]
pub struct Origin {
    /// The cluster's name; empty for the default one.
    pub cluster: String,
    /// The agent's version.
    pub version: String,
    /// Random, of one run of the agent: UUIDs are made of it and of the record's position.
    pub run: u64,
}

// === impl Origin ===

impl Origin {
    /// The UUID of a record: version 8 (RFC 9562, section 5.8), of the run and the record's position.
    #[must_use]
    pub fn uuid(&self, sequence: u64) -> String {
        let (run, low) = (self.run, sequence);
        format!(
            "{:08x}-{:04x}-8{:03x}-{:04x}-{:012x}",
            run >> 32,
            (run >> 16) & 0xffff,
            (run >> 4) & 0xfff,
            // The variant, four bits of the run, and the position's highest ones.
            0x8000 | ((run & 0xf) << 10) | ((low >> 48) & 0x3ff),
            low & 0xffff_ffff_ffff,
        )
    }
}

/// The record as Hubble has it.
#[must_use]
pub fn to_hubble(flow: &Flow, origin: &Origin) -> hubble::Flow {
    let ingress = flow.direction == TrafficDirection::Ingress;
    let verdict = verdict(flow);
    let by_policy = flow.policy.is_some() || verdict == hubble::Verdict::Audit;
    let dropped = matches!(verdict, hubble::Verdict::Dropped | hubble::Verdict::Error);
    let reason = if dropped {
        drop_reason(flow.reason)
    } else {
        hubble::DropReason::Unknown
    };
    let (kind, sub_type) = match flow.event {
        FlowEvent::Refused if by_policy => (POLICY_VERDICT, 0),
        FlowEvent::Refused => (DROP, reason.into()),
        FlowEvent::Open if by_policy => (POLICY_VERDICT, 0),
        FlowEvent::Open | FlowEvent::Close if ingress => (TRACE, TO_ENDPOINT),
        FlowEvent::Open | FlowEvent::Close => (TRACE, FROM_ENDPOINT),
    };
    let point = match (kind, ingress) {
        (TRACE, true) => hubble::TraceObservationPoint::ToEndpoint,
        (TRACE, false) => hubble::TraceObservationPoint::FromEndpoint,
        _ => hubble::TraceObservationPoint::UnknownPoint,
    };
    let decided = match verdict {
        hubble::Verdict::Audit => flow.dry_run.as_ref(),
        _ => flow.policy.as_ref(),
    };
    let policies: Vec<hubble::Policy> = decided.map(policy).into_iter().collect();
    let (mut allowed, mut denied) = (Vec::new(), Vec::new());
    if verdict == hubble::Verdict::Forwarded {
        allowed = policies;
    } else {
        denied = policies;
    }
    // Weir's policies are the destination's, on whichever node they are asked.
    #[allow(deprecated, reason = "Hubble's command line reads the old fields")]
    hubble::Flow {
        time: Some(timestamp(flow.time)),
        uuid: origin.uuid(flow.sequence),
        emitter: Some(hubble::Emitter {
            name: "weir".to_owned(),
            version: origin.version.clone(),
        }),
        verdict: verdict.into(),
        drop_reason: u32::try_from(i32::from(reason)).unwrap_or_default(),
        drop_reason_desc: reason.into(),
        auth_type: if flow.path == FlowPath::Tunnel {
            hubble::AuthType::Spire
        } else {
            hubble::AuthType::Disabled
        }
        .into(),
        ip: Some(ip(flow)),
        l4: Some(layer4(flow)),
        source: Some(endpoint(&flow.source, origin)),
        destination: Some(endpoint(&flow.destination, origin)),
        r#type: hubble::FlowType::L3L4.into(),
        node_name: flow.node.clone(),
        event_type: Some(hubble::CiliumEventType {
            r#type: kind,
            sub_type,
        }),
        destination_service: flow.service.as_deref().map(service),
        traffic_direction: if ingress {
            hubble::TrafficDirection::Ingress
        } else {
            hubble::TrafficDirection::Egress
        }
        .into(),
        trace_observation_point: point.into(),
        // A record is of the connection, which goes from client to server; of one that never was it is not known.
        is_reply: (!dropped).then_some(false),
        socket_cookie: if flow.connection < COOKIES {
            flow.connection
        } else {
            0
        },
        trace_context: flow.trace.as_ref().map(|trace| hubble::TraceContext {
            parent: Some(hubble::TraceParent {
                trace_id: trace.trace_id.to_string(),
            }),
        }),
        summary: summary(flow),
        extensions: Some(Any {
            type_url: DETAILS.to_owned(),
            value: details(flow).encode_to_vec().into(),
        }),
        ingress_allowed_by: allowed,
        ingress_denied_by: denied,
        ..hubble::Flow::default()
    }
}

fn verdict(flow: &Flow) -> hubble::Verdict {
    match flow.verdict {
        FlowVerdict::Forwarded if flow.event == FlowEvent::Open && flow.dry_run.is_some() => {
            hubble::Verdict::Audit
        }
        FlowVerdict::Forwarded => hubble::Verdict::Forwarded,
        FlowVerdict::Denied => hubble::Verdict::Dropped,
        FlowVerdict::Failed => hubble::Verdict::Error,
    }
}

fn policy(own: &PolicyMatch) -> hubble::Policy {
    let (namespace, name) = own.policy.split_once('/').unwrap_or(("", &own.policy));
    hubble::Policy {
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        kind: "AuthorizationPolicy".to_owned(),
        log: own.rule.map(|rule| format!("rule {rule}")).unwrap_or_default(),
        ..hubble::Policy::default()
    }
}

fn service(name: &str) -> hubble::Service {
    let (namespace, name) = name.split_once('/').unwrap_or(("", name));
    hubble::Service {
        name: name.to_owned(),
        namespace: namespace.to_owned(),
    }
}

fn ip(flow: &Flow) -> hubble::Ip {
    let (source, destination) = (flow.source.address.ip(), flow.destination.address.ip());
    let version = if destination.is_ipv4() {
        hubble::IpVersion::IPv4
    } else {
        hubble::IpVersion::IPv6
    };
    hubble::Ip {
        source: source.to_string(),
        destination: destination.to_string(),
        ip_version: version.into(),
        encrypted: flow.path == FlowPath::Tunnel,
        ..hubble::Ip::default()
    }
}

fn layer4(flow: &Flow) -> hubble::Layer4 {
    let reset = matches!(
        flow.reason,
        Reason::ApplicationReset | Reason::TunnelReset | Reason::PolicyChanged
    );
    let flags = match flow.event {
        FlowEvent::Close if reset => hubble::TcpFlags {
            rst: true,
            ..Default::default()
        },
        FlowEvent::Close => hubble::TcpFlags {
            fin: true,
            ack: true,
            ..Default::default()
        },
        FlowEvent::Open | FlowEvent::Refused => hubble::TcpFlags {
            syn: true,
            ..Default::default()
        },
    };
    let tcp = hubble::Tcp {
        source_port: flow.source.address.port().into(),
        destination_port: flow.destination.address.port().into(),
        flags: Some(flags),
    };
    hubble::Layer4 {
        protocol: Some(hubble::layer4::Protocol::Tcp(tcp)),
    }
}

fn endpoint(peer: &FlowPeer, origin: &Origin) -> hubble::Endpoint {
    let workload = peer.about.as_ref().and_then(|about| about.workload.as_ref());
    let in_cluster = peer.pod.is_some() || peer.identity.is_some();
    hubble::Endpoint {
        id: 0,
        identity: identity::of_peer(peer),
        cluster_name: if in_cluster {
            origin.cluster.clone()
        } else {
            String::new()
        },
        namespace: peer.namespace.clone().unwrap_or_default(),
        labels: identity::labels(peer),
        pod_name: peer.pod.clone().unwrap_or_default(),
        workloads: workload
            .map(|workload| hubble::Workload {
                name: workload.name.clone(),
                kind: workload.kind.clone(),
            })
            .into_iter()
            .collect(),
    }
}

/// What Hubble's command line prints at the end of a line.
fn summary(flow: &Flow) -> String {
    let path = match flow.path {
        FlowPath::Tunnel => "; mTLS",
        FlowPath::Direct => "; same node",
        FlowPath::Plaintext | FlowPath::Kernel | FlowPath::Nowhere => "",
    };
    match flow.event {
        FlowEvent::Open => format!("TCP Flags: SYN{path}"),
        FlowEvent::Refused => format!("TCP Flags: SYN; {}", flow.reason.as_str()),
        FlowEvent::Close => {
            let why = match flow.reason {
                Reason::None => String::new(),
                reason => format!("; {}", reason.as_str()),
            };
            format!(
                "TCP Flags: ACK, FIN{path}; {} B sent, {} B received, {} ms{why}",
                flow.bytes_sent,
                flow.bytes_received,
                flow.duration_us / 1000
            )
        }
    }
}

fn details(flow: &Flow) -> Details {
    let identity = |peer: &FlowPeer| {
        peer.identity
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default()
    };
    let matched = |own: &Option<PolicyMatch>| {
        own.as_ref().map(|own| own::PolicyMatch {
            policy: own.policy.to_string(),
            rule: own.rule,
        })
    };
    Details {
        sequence: flow.sequence,
        connection: flow.connection,
        event: match flow.event {
            FlowEvent::Open => own::Event::Open,
            FlowEvent::Close => own::Event::Close,
            FlowEvent::Refused => own::Event::Refused,
        }
        .into(),
        reason: match flow.reason {
            Reason::None => String::new(),
            reason => reason.as_str().to_owned(),
        },
        detail: flow.detail.clone().unwrap_or_default(),
        path: match flow.path {
            FlowPath::Tunnel => own::Path::Tunnel,
            FlowPath::Plaintext => own::Path::Plaintext,
            FlowPath::Direct => own::Path::Direct,
            FlowPath::Kernel => own::Path::Kernel,
            FlowPath::Nowhere => own::Path::Nowhere,
        }
        .into(),
        source_identity: identity(&flow.source),
        destination_identity: identity(&flow.destination),
        original_destination: flow
            .original_destination
            .as_ref()
            .map(SocketAddr::to_string)
            .unwrap_or_default(),
        tls: flow.tls.clone().unwrap_or_default(),
        policy: matched(&flow.policy),
        dry_run: matched(&flow.dry_run),
        bytes_sent: flow.bytes_sent,
        bytes_received: flow.bytes_received,
        duration_us: flow.duration_us,
        rtt_us: flow.rtt_us,
        retransmits: flow.retransmits,
        process: flow.process.as_ref().map(|process| own::Process {
            pid: process.pid,
            name: process.name.clone(),
        }),
        span: flow.trace.as_ref().map(|trace| own::Span {
            span_id: trace.span_id.to_string(),
            parent_span_id: trace
                .parent_span_id
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
            sampled: trace.sampled,
        }),
    }
}

/// A time as protobuf has it.
#[must_use]
pub fn timestamp(time: jiff::Timestamp) -> Timestamp {
    // Nanoseconds count forwards, also before 1970.
    let nanos = time.subsec_nanosecond();
    let (seconds, nanos) = if nanos < 0 {
        (time.as_second() - 1, nanos + 1_000_000_000)
    } else {
        (time.as_second(), nanos)
    };
    Timestamp { seconds, nanos }
}

#[cfg(test)]
mod tests;
