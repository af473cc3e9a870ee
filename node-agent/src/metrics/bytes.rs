//! Bytes, as they flow: what open connections carried is counted whenever somebody looks, and at their end.
//!
//! A connection's own counters are all that is touched for each read. Its labels are looked up when it opens.

use std::{
    array,
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::Instant,
};

use prometheus::IntCounter;
use weir_tunnel::copy::Counters;
use weir_types::{Flow, FlowPeer};

use super::{
    capped::{Capped, SERIES, Series},
    direction,
    family::Families,
};

/// The label value of an end that is not verified, or not known by a name. No name in Kubernetes has an underscore.
pub const UNKNOWN: &str = "_unknown";

/// Connections open and end on all processors at once: each waits for a sixteenth of the others at most.
const SHARDS: u64 = 16;

/// From client to server, and back.
const FLOWS: [&str; 2] = ["sent", "received"];

/// Bytes by direction and by pair of workloads.
#[derive(Debug)]
pub(super) struct Bytes {
    total: [[IntCounter; 2]; 2],
    pairs: Capped,
    open: Box<[Mutex<HashMap<u64, Open>>]>,
}

/// An open connection.
#[derive(Debug)]
struct Open {
    counters: Arc<Counters>,
    reversed: bool,
    total: [IntCounter; 2],
    pair: [Arc<Series>; 2],
    /// What was counted already.
    counted: [u64; 2],
}

// === impl Bytes ===

impl Bytes {
    pub(super) fn new(families: &Families<'_>) -> Self {
        let total = families.counters(
            "weir_bytes_total",
            "Payload bytes of connections, from client to server (sent) and back (received).",
            &["direction", "flow"],
        );
        let pairs = families.counters(
            "weir_workload_bytes_total",
            "Payload bytes between workloads whose identities are verified, as the client's node (egress) and the server's (ingress) see them.",
            &[
                "source_namespace",
                "source_workload",
                "destination_namespace",
                "destination_workload",
                "direction",
                "flow",
            ],
        );
        Self {
            total: ["egress", "ingress"]
                .map(|direction| FLOWS.map(|flow| total.with_label_values(&[direction, flow]))),
            pairs: Capped::new(pairs, 4, SERIES),
            open: (0..SHARDS).map(|_| Mutex::default()).collect(),
        }
    }

    /// A connection is open; `reversed`: its counters' "sent" is what the server sent.
    pub(super) fn opened(&self, flow: &Flow, counters: &Arc<Counters>, reversed: bool) {
        let open = Open {
            counters: counters.clone(),
            reversed,
            total: self.total[flow.direction as usize].clone(),
            pair: self.pair(flow),
            counted: [0; 2],
        };
        self.shard(flow.connection).insert(flow.connection, open);
    }

    /// A connection ended; also one that was never said to be open, as the kernel's own.
    pub(super) fn closed(&self, flow: &Flow) {
        let bytes = [flow.bytes_sent, flow.bytes_received];
        // Held until its last bytes are counted: nobody who looks meanwhile counts them too.
        let mut shard = self.shard(flow.connection);
        let mut open = shard.remove(&flow.connection).unwrap_or_else(|| Open {
            counters: Arc::default(),
            reversed: false,
            total: self.total[flow.direction as usize].clone(),
            pair: self.pair(flow),
            counted: [0; 2],
        });
        open.count(bytes);
    }

    /// Counts what open connections carried since somebody looked last.
    pub(super) fn settle(&self, now: Instant) {
        for shard in &self.open {
            for open in lock(shard).values_mut() {
                let (there, back) = (&open.counters.sent, &open.counters.received);
                let (there, back) = if open.reversed {
                    (back, there)
                } else {
                    (there, back)
                };
                let bytes = [there.load(Ordering::Relaxed), back.load(Ordering::Relaxed)];
                open.count(bytes);
            }
        }
        self.pairs.forget_idle(now);
    }

    /// Forgets the pairs of a pod that left.
    pub(super) fn forget(&self, namespace: &str, name: &str) {
        let is = |of: &[String]| of[0] == namespace && of[1] == name;
        self.pairs.forget(|labels| is(&labels[..2]) || is(&labels[2..4]));
    }

    fn pair(&self, flow: &Flow) -> [Arc<Series>; 2] {
        let (from, to) = (name(&flow.source), name(&flow.destination));
        let (now, direction) = (Instant::now(), direction(flow.direction));
        array::from_fn(|side| {
            let labels = [from.0, from.1, to.0, to.1, direction, FLOWS[side]];
            self.pairs.series(&labels, now)
        })
    }

    fn shard(&self, connection: u64) -> MutexGuard<'_, HashMap<u64, Open>> {
        lock(&self.open[(connection % SHARDS) as usize])
    }
}

impl Open {
    fn count(&mut self, bytes: [u64; 2]) {
        for (side, now) in bytes.into_iter().enumerate() {
            let new = now.saturating_sub(self.counted[side]);
            self.counted[side] += new;
            self.total[side].inc_by(new);
            self.pair[side].add(new);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is counted is noted at once, so a panic elsewhere does not spoil it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Namespace and workload of an end, if its identity is verified: an address alone proves nothing, and what a peer says of
/// itself is no label. The workload is what runs the pod, or the pod where nobody says.
fn name(end: &FlowPeer) -> (&str, &str) {
    let Some(identity) = &end.identity else {
        return (UNKNOWN, UNKNOWN);
    };
    let owner = end.about.as_ref().and_then(|about| about.workload.as_ref());
    let owner = owner.map(|workload| workload.name.as_str());
    let name = owner.filter(|name| !name.is_empty()).or(end.pod.as_deref());
    (identity.namespace(), name.unwrap_or(UNKNOWN))
}
