//! What kinds of flows are called in lines and attributes: as in metrics, filters and Weir's JSON.

use weir_types::{FlowEvent, FlowPath, FlowVerdict, TrafficDirection};

pub(super) fn event(own: FlowEvent) -> &'static str {
    match own {
        FlowEvent::Open => "open",
        FlowEvent::Close => "close",
        FlowEvent::Refused => "refused",
    }
}

pub(super) fn verdict(own: FlowVerdict) -> &'static str {
    match own {
        FlowVerdict::Forwarded => "forwarded",
        FlowVerdict::Denied => "denied",
        FlowVerdict::Failed => "failed",
    }
}

pub(super) fn direction(own: TrafficDirection) -> &'static str {
    match own {
        TrafficDirection::Egress => "egress",
        TrafficDirection::Ingress => "ingress",
    }
}

pub(super) fn path(own: FlowPath) -> &'static str {
    match own {
        FlowPath::Tunnel => "tunnel",
        FlowPath::Plaintext => "plaintext",
        FlowPath::Direct => "direct",
        FlowPath::Kernel => "kernel",
        FlowPath::Nowhere => "nowhere",
    }
}
