//! The places of connections in traces.

use std::{
    collections::hash_map::RandomState,
    hash::BuildHasher as _,
    num::{NonZeroU32, NonZeroU64, NonZeroU128},
};

use http::HeaderValue;
use weir_types::{FlowTrace, SpanId, TraceId, TraceParent};

/// Which connections begin a trace whose spans are recorded, and under which numbers.
///
/// These are made of the connection's own number, by hashes with random keys. So nothing is kept of a connection of which only
/// the kernel knows, and the records of its begin and its end are of one span nevertheless.
#[derive(Debug)]
pub struct Tracing {
    /// One in so many.
    sample: NonZeroU32,
    keys: [RandomState; 3],
}

// === impl Tracing ===

impl Tracing {
    /// Spans for one in so many connections.
    #[must_use]
    pub fn new(sample: NonZeroU32) -> Self {
        Self {
            sample,
            keys: std::array::from_fn(|_| RandomState::new()),
        }
    }

    /// The trace that begins with a connection.
    pub(super) fn begin(&self, connection: u64) -> FlowTrace {
        let [high, low, span] = self.keys.each_ref().map(|key| key.hash_one(connection));
        // Zero is no number of a trace or a span; one hash in 2^64 is.
        let number = (u128::from(high) << 64) | u128::from(low);
        let trace_id = TraceId::from(NonZeroU128::new(number).unwrap_or(NonZeroU128::MIN));
        FlowTrace {
            trace_id,
            span_id: SpanId::from(NonZeroU64::new(span).unwrap_or(NonZeroU64::MIN)),
            parent_span_id: None,
            sampled: trace_id.is_one_in(self.sample),
        }
    }
}

/// What a peer's header says, if it is a `traceparent`.
pub(super) fn parent(header: &HeaderValue) -> Option<TraceParent> {
    header.to_str().ok()?.parse().ok()
}

/// A span below another.
pub(super) fn below(parent: TraceParent) -> FlowTrace {
    FlowTrace {
        trace_id: parent.trace_id,
        span_id: SpanId::from(rand::random::<NonZeroU64>()),
        parent_span_id: Some(parent.span_id),
        sampled: parent.sampled,
    }
}

/// The header for the next service.
pub(super) fn header(trace: &FlowTrace) -> Option<HeaderValue> {
    HeaderValue::try_from(trace.parent().to_string()).ok()
}
