//! Turns what the kernel programs report into flow records.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use jiff::Timestamp;
use weir_abi::{ConnKind, Event, EventKind};
use weir_types::{Flow, FlowEvent, FlowPath, FlowPeer, FlowVerdict, Reason, TrafficDirection};

use crate::{
    datapath::{PodHandle, monotonic_ns},
    node::{Node, process},
};

/// Records one event. Events of pods that left are dropped: nothing is known of them.
pub fn record(node: &Arc<Node>, event: &Event) {
    let Some(pod) = node.pod_by_handle(PodHandle(event.pod)) else {
        return;
    };
    let (source, destination) = (event.key.src.socket_addr(), event.key.dst.socket_addr());
    let reason = Reason::from_u32(event.reason).unwrap_or(Reason::Internal);
    let unreached = event.kind == EventKind::CLOSED && event.established == 0;
    let (kind, reason) = match event.kind {
        EventKind::ESTABLISHED => (FlowEvent::Open, Reason::None),
        // The kernel does not say whether a reset or silence ended the attempt.
        EventKind::CLOSED if unreached => (FlowEvent::Refused, Reason::ConnectionRefused),
        EventKind::CLOSED => (FlowEvent::Close, Reason::None),
        _ => (FlowEvent::Refused, reason),
    };
    let inbound = event.kind == EventKind::SYN_DENIED;
    let (source, destination) = if inbound {
        (node.peer(source, None), pod.workload.verified_peer(destination))
    } else {
        (
            pod.workload.verified_peer(source),
            destination_of(node, event, destination),
        )
    };
    let denied = matches!(event.kind, EventKind::CONNECT_DENIED | EventKind::SYN_DENIED);
    node.flows.record(Flow {
        sequence: 0,
        time: time(event.time_ns),
        node: String::new(),
        connection: if event.cookie == 0 {
            node.flows.connection_id()
        } else {
            event.cookie
        },
        event: kind,
        verdict: FlowVerdict::of(reason),
        reason,
        detail: None,
        direction: if inbound {
            TrafficDirection::Ingress
        } else {
            TrafficDirection::Egress
        },
        path: if denied {
            FlowPath::Nowhere
        } else {
            FlowPath::Kernel
        },
        source,
        destination,
        original_destination: None,
        service: None,
        tls: None,
        bytes_sent: event.bytes_sent,
        bytes_received: event.bytes_received,
        duration_us: event.duration_ns / 1000,
        rtt_us: (event.rtt_us > 0).then_some(event.rtt_us),
        retransmits: (event.kind == EventKind::CLOSED).then_some(event.retransmits),
        process: process(event.pid, &event.comm),
    });
}

fn destination_of(node: &Node, event: &Event, address: SocketAddr) -> FlowPeer {
    let local = (event.conn_kind == ConnKind::DIRECT).then(|| node.pod_by_handle(PodHandle(event.dest_pod)));
    match local.flatten() {
        Some(pod) => pod.workload.verified_peer(address),
        None => node.peer(address, None),
    }
}

/// The time of day of an event that just happened.
fn time(monotonic: u64) -> Timestamp {
    let age = Duration::from_nanos(monotonic_ns().saturating_sub(monotonic));
    Timestamp::now()
        .checked_sub(age)
        .unwrap_or_else(|_| Timestamp::now())
}
