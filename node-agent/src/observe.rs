//! Turns what the kernel programs report into flow records.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use jiff::Timestamp;
use weir_abi::{ConnKind, Event, EventKind};
use weir_policy::Request;
use weir_types::{Flow, FlowEvent, FlowPath, FlowPeer, FlowVerdict, Identity, Reason, TrafficDirection};

use crate::{
    datapath::{PodHandle, monotonic_ns},
    mesh::{Destination, Mesh, Workload},
    node::{Node, process},
    policy::{self, Judgement},
    route::NoRoute,
};

/// Records one event. Events of pods that left are dropped: nothing is known of them.
pub fn record(node: &Arc<Node>, event: &Event) {
    let (from, to) = (event.key.src.socket_addr(), event.key.dst.socket_addr());
    let mesh = node.mesh.load();
    let Some(Ends {
        direction,
        source,
        destination,
        judgement,
    }) = ends(node, &mesh, event, from, to)
    else {
        return;
    };
    let ended = (event.kind == EventKind::CLOSED).then(|| node.ended.take(event.cookie));
    let ended = ended.flatten();
    let unreached = event.kind == EventKind::CLOSED && event.established == 0;
    let (kind, reason) = match event.kind {
        EventKind::ESTABLISHED => (FlowEvent::Open, Reason::None),
        EventKind::CLOSED if ended.is_some() => (FlowEvent::Close, Reason::PolicyChanged),
        // The kernel does not say whether a reset or silence ended the attempt.
        EventKind::CLOSED if unreached => (FlowEvent::Refused, Reason::ConnectionRefused),
        EventKind::CLOSED => (FlowEvent::Close, Reason::None),
        _ => {
            let reason = Reason::from_u32(event.reason).unwrap_or(Reason::Internal);
            (FlowEvent::Refused, reason)
        }
    };
    let judgement = ended.unwrap_or(judgement);
    let denied = matches!(event.kind, EventKind::CONNECT_DENIED | EventKind::SYN_DENIED);
    let path = match event.conn_kind {
        _ if denied => FlowPath::Nowhere,
        ConnKind::DIRECT => FlowPath::Direct,
        _ => FlowPath::Kernel,
    };
    let asked = event.orig.socket_addr();
    let service = match mesh.destination(asked.ip()) {
        Destination::Service(service) => Some(service.name.to_string()),
        _ => None,
    };
    let connection = if event.cookie == 0 {
        node.flows.connection_id()
    } else {
        event.cookie
    };
    node.flows.record(Flow {
        sequence: 0,
        time: time(event.time_ns),
        node: String::new(),
        connection,
        event: kind,
        verdict: FlowVerdict::of(reason),
        reason,
        detail: judgement.detail.filter(|_| reason != Reason::None),
        direction,
        path,
        source,
        destination,
        original_destination: service.is_some().then_some(asked),
        service,
        tls: None,
        policy: judgement.policy,
        dry_run: judgement.dry_run,
        bytes_sent: event.bytes_sent,
        bytes_received: event.bytes_received,
        duration_us: event.duration_ns / 1000,
        rtt_us: (event.rtt_us > 0).then_some(event.rtt_us),
        retransmits: (event.kind == EventKind::CLOSED).then_some(event.retransmits),
        process: process(event.pid, &event.comm),
        trace: node.flows.trace(connection),
    });
}

/// Who was connected, or was not to be.
struct Ends {
    direction: TrafficDirection,
    source: FlowPeer,
    destination: FlowPeer,
    /// What policies say of it now; the kernel kept the verdict only.
    judgement: Judgement,
}

fn ends(node: &Node, mesh: &Mesh, event: &Event, from: SocketAddr, to: SocketAddr) -> Option<Ends> {
    let pod = node.pod_by_handle(PodHandle(event.pod))?;
    let ask = |workload: &Workload, source: Option<&Identity>| {
        let request = Request {
            source,
            source_ip: from.ip(),
            destination_ip: to.ip(),
            destination_port: to.port(),
        };
        policy::judge(mesh.policies_of(workload), &request)
    };
    if event.kind == EventKind::SYN_DENIED {
        let strict = event.reason == Reason::PlaintextToStrict as u32;
        let local = mesh.local().get(&pod.workload.uid).filter(|_| strict);
        return Some(Ends {
            direction: TrafficDirection::Ingress,
            source: node.peer(from, None),
            destination: pod.workload.verified_peer(to),
            judgement: local.map_or(Judgement::NONE, |local| ask(&local.workload, None)),
        });
    }
    let mut ends = Ends {
        direction: TrafficDirection::Egress,
        source: pod.workload.verified_peer(from),
        destination: node.peer(to, None),
        judgement: Judgement::NONE,
    };
    if event.conn_kind == ConnKind::DIRECT {
        let destination = node.pod_by_handle(PodHandle(event.dest_pod));
        if let Some(destination) = destination {
            ends.destination = destination.workload.verified_peer(to);
            let local = mesh.local().get(&destination.workload.uid);
            ends.judgement = local.map_or(Judgement::NONE, |local| {
                ask(&local.workload, Some(&pod.workload.identity))
            });
        }
    } else if event.kind == EventKind::CONNECT_DENIED
        && let Err(NoRoute::Denied { denied, .. }) = node.router(mesh).route(&pod.workload, to, None, 0)
        && let Some(first) = denied.into_iter().next()
    {
        if let Some(workload) = &first.workload {
            ends.destination = workload.verified_peer(first.address);
        }
        ends.judgement = first.judgement;
    }
    Some(ends)
}

/// The time of day of an event that just happened.
fn time(monotonic: u64) -> Timestamp {
    let age = Duration::from_nanos(monotonic_ns().saturating_sub(monotonic));
    Timestamp::now()
        .checked_sub(age)
        .unwrap_or_else(|_| Timestamp::now())
}
