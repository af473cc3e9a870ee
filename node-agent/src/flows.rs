//! The record of flows: a bounded ring, filled by one task, read by any number.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use http::HeaderValue;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use weir_tunnel::copy::Counters;
use weir_types::{
    Flow, FlowEvent, FlowPath, FlowPeer, FlowTrace, FlowVerdict, Process, Reason, TrafficDirection,
};

use crate::{metrics::Metrics, node::Pod, policy::Judgement};

pub use trace::Tracing;

/// Records on their way to the ring. At 10,000 connections a second this is 400 ms of two records each.
const QUEUE: usize = 8192;

/// By how much a record may be older than the one before it: the kernel's events wait up to 50 ms to be read, the agent's own for
/// the queue. What is older by more was not late: the clock was set back.
const LATE: SignedDuration = SignedDuration::from_secs(1);

/// What is recorded within this time goes into the ring together: to be woken for each record costs more than the record.
const TOGETHER: Duration = Duration::from_millis(5);

/// Connections that the agent carries are numbered from here; those that the kernel reports have their socket cookie.
const FIRST_CONNECTION: u64 = 1 << 40;

/// The record of flows. Cheap to clone.
#[derive(Debug, Clone)]
pub struct FlowLog {
    shared: Arc<Shared>,
    /// Not moved on the way: a record is some hundred bytes.
    queue: mpsc::Sender<Arc<Flow>>,
    tracing: Option<Arc<Tracing>>,
    records: bool,
}

#[derive(Debug)]
struct Shared {
    ring: Mutex<Ring>,
    newest: watch::Sender<u64>,
    lost: AtomicU64,
    next_connection: AtomicU64,
    node: String,
    metrics: Metrics,
}

#[derive(Debug)]
struct Ring {
    flows: VecDeque<Arc<Flow>>,
    capacity: usize,
    next: u64,
    /// When the newest record was made, as it says.
    time: Timestamp,
}

/// What one look at the ring gave.
#[derive(Debug, Default)]
pub struct Page {
    /// Records that match, oldest first.
    pub flows: Vec<Arc<Flow>>,
    /// Records that were overwritten before they could be read.
    pub lost: u64,
    /// Where to go on.
    pub next: u64,
}

/// One connection's records: opened once, closed once, whatever happens.
#[derive(Debug)]
pub struct Connection {
    log: FlowLog,
    started: Instant,
    flow: Flow,
    counters: Arc<Counters>,
    /// The counters' "sent" is what the server sent: a tunnel's, at the server's side.
    reversed: bool,
    /// Cancelled when the pod leaves the mesh.
    left: CancellationToken,
    open: bool,
    ended: bool,
}

/// What the network's side of a connection measured.
#[derive(Debug, Clone, Copy, Default)]
pub struct Outcome {
    /// Smoothed round-trip time, microseconds.
    pub rtt_us: Option<u32>,
    /// Segments sent again.
    pub retransmits: Option<u32>,
}

// === impl FlowLog ===

impl FlowLog {
    /// A ring of `capacity` records, and the task that fills it.
    #[must_use]
    pub fn new(node: &str, capacity: usize, metrics: Metrics) -> Self {
        let (queue, mut records) = mpsc::channel(QUEUE);
        let shared = Arc::new(Shared {
            ring: Mutex::new(Ring {
                flows: VecDeque::new(),
                capacity,
                next: 0,
                time: Timestamp::MIN,
            }),
            newest: watch::Sender::new(0),
            lost: AtomicU64::new(0),
            next_connection: AtomicU64::new(FIRST_CONNECTION),
            node: node.to_owned(),
            metrics,
        });
        let filled = shared.clone();
        tokio::spawn(async move {
            let mut batch = Vec::new();
            while records.recv_many(&mut batch, QUEUE).await > 0 {
                let is_full = batch.len() == QUEUE;
                filled.push(batch.drain(..));
                if !is_full {
                    tokio::time::sleep(TOGETHER).await;
                }
            }
        });
        Self {
            shared,
            queue,
            tracing: None,
            records: true,
        }
    }

    /// Says whether anything is recorded; flows are counted anyhow.
    #[must_use]
    pub fn recording(mut self, records: bool) -> Self {
        self.records = records;
        self
    }

    /// With spans, if any: each connection is one then.
    #[must_use]
    pub fn tracing(mut self, tracing: Option<Tracing>) -> Self {
        self.tracing = tracing.map(Arc::new);
        self
    }

    /// The place of a connection in the trace that begins with it; none if there are no spans.
    #[must_use]
    pub fn trace(&self, connection: u64) -> Option<FlowTrace> {
        self.tracing.as_ref().map(|tracing| tracing.begin(connection))
    }

    /// A number for a connection.
    #[must_use]
    pub fn connection_id(&self) -> u64 {
        self.shared.next_connection.fetch_add(1, Ordering::Relaxed)
    }

    /// Records a flow. Never waits; what finds no room is counted as lost.
    pub fn record(&self, mut flow: Flow) {
        flow.node.clone_from(&self.shared.node);
        self.shared.metrics.count(&flow);
        if !self.records {
            return;
        }
        if self.queue.try_send(Arc::new(flow)).is_err() {
            self.lose(1);
        }
    }

    /// Counts events that were lost elsewhere.
    pub fn lose(&self, count: u64) {
        self.shared.lost.fetch_add(count, Ordering::Relaxed);
        self.shared.metrics.flows_lost.inc_by(count);
    }

    /// Events lost so far.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.shared.lost.load(Ordering::Relaxed)
    }

    /// Records made so far.
    #[must_use]
    pub fn recorded(&self) -> u64 {
        self.shared.ring().next
    }

    /// Where a reader starts that wants everything that is kept.
    #[must_use]
    pub fn oldest(&self) -> u64 {
        let ring = self.shared.ring();
        ring.next - ring.flows.len() as u64
    }

    /// The records from `from` on, `most` at most.
    #[must_use]
    pub fn page(&self, from: u64, most: usize) -> Page {
        let ring = self.shared.ring();
        let oldest = ring.next - ring.flows.len() as u64;
        let skip = usize::try_from(from.saturating_sub(oldest)).unwrap_or(usize::MAX);
        let flows: Vec<_> = ring.flows.iter().skip(skip).take(most).cloned().collect();
        Page {
            lost: oldest.saturating_sub(from),
            next: from.max(oldest) + flows.len() as u64,
            flows,
        }
    }

    /// How many records are kept at most.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.shared.ring().capacity
    }

    /// Told of the number of records whenever it rises.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.shared.newest.subscribe()
    }

    /// Starts the records of a connection.
    #[must_use]
    pub fn connection(
        &self,
        direction: TrafficDirection,
        path: FlowPath,
        source: FlowPeer,
        destination: FlowPeer,
    ) -> Connection {
        let connection = self.connection_id();
        Connection {
            log: self.clone(),
            started: Instant::now(),
            flow: Flow {
                sequence: 0,
                time: Timestamp::now(),
                node: String::new(),
                connection,
                event: FlowEvent::Open,
                verdict: FlowVerdict::Forwarded,
                reason: Reason::None,
                detail: None,
                direction,
                path,
                source,
                destination,
                original_destination: None,
                service: None,
                tls: None,
                policy: None,
                dry_run: None,
                bytes_sent: 0,
                bytes_received: 0,
                duration_us: 0,
                rtt_us: None,
                retransmits: None,
                process: None,
                trace: self.trace(connection),
            },
            counters: Arc::default(),
            reversed: false,
            left: CancellationToken::new(),
            open: false,
            ended: false,
        }
    }
}

impl Shared {
    fn ring(&self) -> MutexGuard<'_, Ring> {
        // The ring is whole after each statement, so a panic elsewhere does not spoil it.
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, flows: impl Iterator<Item = Arc<Flow>>) {
        let mut ring = self.ring();
        for mut flow in flows {
            // Nobody else has it yet: it is not copied.
            let own = Arc::make_mut(&mut flow);
            own.sequence = ring.next;
            ring.next += 1;
            ring.time = in_order(ring.time, own.time);
            own.time = ring.time;
            if ring.flows.len() == ring.capacity {
                ring.flows.pop_front();
            }
            ring.flows.push_back(flow);
        }
        self.newest.send_replace(ring.next);
    }
}

/// The time of a record that comes after another: readers expect a node's records in the order of time.
fn in_order(before: Timestamp, time: Timestamp) -> Timestamp {
    if before.duration_since(time) <= LATE {
        before.max(time)
    } else {
        time
    }
}

// === impl Connection ===

impl Connection {
    /// Adds what the client asked for.
    pub fn asked(&mut self, original: SocketAddr, service: Option<String>) {
        self.flow.original_destination = Some(original);
        self.flow.service = service;
    }

    /// Adds the client's process.
    pub fn process(&mut self, process: Option<Process>) {
        self.flow.process = process;
    }

    /// Adds what policies said.
    pub fn judged(&mut self, judgement: &Judgement) {
        self.flow.policy.clone_from(&judgement.policy);
        self.flow.dry_run.clone_from(&judgement.dry_run);
    }

    /// Adds what the client's side said of the trace that the connection is part of. It is a hint of the peer's: what is no
    /// `traceparent` is ignored.
    pub fn traced(&mut self, traceparent: Option<&HeaderValue>) {
        if let Some(parent) = traceparent.and_then(trace::parent) {
            self.flow.trace = Some(trace::below(parent));
        }
    }

    /// What the server's side is told of the trace.
    #[must_use]
    pub fn traceparent(&self) -> Option<HeaderValue> {
        self.flow.trace.as_ref().and_then(trace::header)
    }

    /// Changes what was found out on the way.
    pub fn towards(&mut self, path: FlowPath, destination: FlowPeer, tls: Option<String>) {
        self.flow.path = path;
        self.flow.destination = destination;
        self.flow.tls = tls;
    }

    /// Says whose connection it is: when the pod leaves the mesh, that is why it ended.
    #[must_use]
    pub fn of(mut self, pod: &Pod) -> Self {
        self.left = pod.left.clone();
        self
    }

    /// Says that the counters' "sent" is what the server sent.
    #[must_use]
    pub fn reversed(mut self) -> Self {
        self.reversed = true;
        self
    }

    /// Records that one endpoint failed, and another is tried.
    pub fn failed_attempt(&self, reason: Reason, detail: String) {
        // A span of its own, below that of the connection, which may go well yet.
        let trace = self.flow.trace.map(|own| trace::below(own.parent()));
        let flow = self.event(FlowEvent::Refused, reason, Some(detail), Outcome::default());
        self.log.record(Flow { trace, ..flow });
    }

    /// The bytes so far.
    #[must_use]
    pub fn counters(&self) -> Arc<Counters> {
        self.counters.clone()
    }

    /// Records that it was let through; gives the counters of its bytes.
    pub fn open(&mut self) -> Arc<Counters> {
        self.open = true;
        self.log
            .shared
            .metrics
            .opened(&self.flow, &self.counters, self.reversed);
        self.emit(FlowEvent::Open, Reason::None, None, Outcome::default());
        self.counters()
    }

    /// Records that it was refused, or failed before it was open.
    pub fn refuse(mut self, reason: Reason, detail: Option<String>) {
        self.ended = true;
        self.emit(FlowEvent::Refused, reason, detail, Outcome::default());
    }

    /// Records its end.
    pub fn close(mut self, reason: Reason, outcome: Outcome) {
        self.finish(reason, outcome);
    }

    /// Records the end of a connection that the agent never carried, and so did not count as open.
    pub fn close_uncounted(mut self, reason: Reason) {
        self.ended = true;
        self.emit(FlowEvent::Close, reason, None, Outcome::default());
    }

    fn finish(&mut self, reason: Reason, outcome: Outcome) {
        self.ended = true;
        self.log.shared.metrics.closed(&self.flow);
        self.emit(FlowEvent::Close, reason, None, outcome);
    }

    fn emit(&self, event: FlowEvent, reason: Reason, detail: Option<String>, outcome: Outcome) {
        self.log.record(self.event(event, reason, detail, outcome));
    }

    fn event(&self, event: FlowEvent, reason: Reason, detail: Option<String>, outcome: Outcome) -> Flow {
        let duration = self.started.elapsed();
        let (there, back) = if self.reversed {
            (&self.counters.received, &self.counters.sent)
        } else {
            (&self.counters.sent, &self.counters.received)
        };
        let (sent, received) = (there.load(Ordering::Relaxed), back.load(Ordering::Relaxed));
        Flow {
            time: Timestamp::now(),
            event,
            verdict: FlowVerdict::of(reason),
            reason,
            detail,
            bytes_sent: sent,
            bytes_received: received,
            duration_us: u64::try_from(duration.as_micros()).unwrap_or(u64::MAX),
            rtt_us: outcome.rtt_us,
            retransmits: outcome.retransmits,
            ..self.flow.clone()
        }
    }
}

impl Drop for Connection {
    /// A connection whose task was ended from outside: its pod left, or the agent stops.
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let reason = if self.left.is_cancelled() {
            Reason::PolicyChanged
        } else {
            Reason::Shutdown
        };
        if self.open {
            self.finish(reason, Outcome::default());
        } else {
            self.emit(FlowEvent::Refused, reason, None, Outcome::default());
        }
    }
}

mod fill;
mod trace;

#[cfg(test)]
mod tests;
