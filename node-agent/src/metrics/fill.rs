//! How full what is bounded is, beside how much it holds at most.

use prometheus::{IntGauge, IntGaugeVec};

use super::family::Families;

/// The gauges of fill.
#[derive(Debug, Clone)]
pub(crate) struct Fill {
    map_entries: IntGaugeVec,
    map_capacity: IntGaugeVec,
    ring: Pair,
    queue: Pair,
    records: Pair,
    descriptors: Pair,
}

/// What there is, and what there may be.
#[derive(Debug, Clone)]
struct Pair(IntGauge, IntGauge);

impl Fill {
    pub(super) fn new(families: &Families<'_>) -> Self {
        let pair = |(used, of): (&str, &str), (names, capacity): (&str, &str)| {
            Pair(families.gauge(used, of), families.gauge(names, capacity))
        };
        Self {
            map_entries: families.gauges(
                "weir_kernel_map_entries",
                "Entries of the kernel's maps that may fill up.",
                &["map"],
            ),
            map_capacity: families.gauges(
                "weir_kernel_map_capacity",
                "Entries that these maps have room for.",
                &["map"],
            ),
            ring: pair(
                (
                    "weir_event_ring_bytes",
                    "Bytes of events in the kernel's ring buffer that the agent has not read.",
                ),
                (
                    "weir_event_ring_capacity_bytes",
                    "Bytes that the ring buffer has room for.",
                ),
            ),
            queue: pair(
                ("weir_flow_queue_length", "Flow records on their way to the ring."),
                (
                    "weir_flow_queue_capacity",
                    "Flow records that may be on their way; more are lost.",
                ),
            ),
            records: pair(
                ("weir_flow_ring_records", "Flow records that are kept."),
                (
                    "weir_flow_ring_capacity",
                    "Flow records that are kept at most; the oldest go.",
                ),
            ),
            descriptors: pair(
                (
                    "weir_descriptors_used",
                    "File descriptors that connections have, by the agent's own count.",
                ),
                (
                    "weir_descriptors_capacity",
                    "File descriptors that all connections may have together.",
                ),
            ),
        }
    }

    pub(super) fn map(&self, name: &str, entries: u64, capacity: u64) {
        set(&self.map_entries.with_label_values(&[name]), entries);
        set(&self.map_capacity.with_label_values(&[name]), capacity);
    }

    pub(super) fn ring(&self, used: u64, capacity: u64) {
        self.ring.set(used, capacity);
    }

    pub(super) fn queue(&self, used: u64, capacity: u64) {
        self.queue.set(used, capacity);
    }

    pub(super) fn records(&self, used: u64, capacity: u64) {
        self.records.set(used, capacity);
    }

    pub(super) fn descriptors(&self, used: u64, capacity: u64) {
        self.descriptors.set(used, capacity);
    }
}

impl Pair {
    fn set(&self, used: u64, capacity: u64) {
        set(&self.0, used);
        set(&self.1, capacity);
    }
}

pub(super) fn set(gauge: &IntGauge, value: u64) {
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
}
