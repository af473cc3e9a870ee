//! What the server counts.

use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};
use weir_proto::ResourceType;

use super::close::Close;

/// Why streams are refused.
const REFUSED: [&str; 4] = ["unauthenticated", "too_many_streams", "unavailable", "not_ready"];

/// Handles of the metrics, looked up once.
#[derive(Debug)]
pub(super) struct Metrics {
    pub(super) streams: IntGauge,
    pushes: [Pushes; ResourceType::ALL.len()],
    refused: IntCounterVec,
    closed: IntCounterVec,
}

/// The metrics of one type.
#[derive(Debug)]
pub(super) struct Pushes {
    pub(super) pushes: IntCounter,
    pub(super) bytes: IntCounter,
    pub(super) nacks: IntCounter,
}

impl Metrics {
    pub(super) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let by = |label: &str, name: &str, help: &str| -> Result<IntCounterVec, prometheus::Error> {
            let counters = IntCounterVec::new(Opts::new(name, help), &[label])?;
            registry.register(Box::new(counters.clone()))?;
            Ok(counters)
        };
        let streams = IntGauge::new("weir_ads_streams", "Streams of agents that are open.")?;
        registry.register(Box::new(streams.clone()))?;
        let pushes = by("type", "weir_ads_pushes_total", "Responses sent.")?;
        let bytes = by(
            "type",
            "weir_ads_push_bytes_total",
            "Encoded bytes of responses sent.",
        )?;
        let nacks = by(
            "type",
            "weir_ads_nacks_total",
            "Responses that an agent rejected.",
        )?;
        let refused = by(
            "reason",
            "weir_ads_refused_total",
            "Streams refused before they began.",
        )?;
        let closed = by("reason", "weir_ads_closed_total", "Streams that ended.")?;
        // From the start: that one rises from nothing is seen only if nothing was seen before.
        for reason in REFUSED {
            let _ = refused.with_label_values(&[reason]);
        }
        for close in Close::ALL {
            let _ = closed.with_label_values(&[close.label()]);
        }
        Ok(Self {
            streams,
            pushes: ResourceType::ALL.map(|kind| Pushes {
                pushes: pushes.with_label_values(&[kind.label()]),
                bytes: bytes.with_label_values(&[kind.label()]),
                nacks: nacks.with_label_values(&[kind.label()]),
            }),
            refused,
            closed,
        })
    }

    pub(super) fn of(&self, kind: ResourceType) -> &Pushes {
        &self.pushes[kind as usize]
    }

    pub(super) fn refused(&self, reason: &str) {
        self.refused.with_label_values(&[reason]).inc();
    }

    pub(super) fn closed(&self, reason: &str) {
        self.closed.with_label_values(&[reason]).inc();
    }
}
