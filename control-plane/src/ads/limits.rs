//! What one stream, and all of them, may take.

use std::time::Duration;

/// Bounds of the server. The defaults are for 20,000 workloads on 200 nodes within 400 MB.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Names that one stream may be subscribed to, all types together. An agent that asks on demand holds one for
    /// each destination of its pods.
    pub names: usize,
    /// Bytes of a name: twice what the longest uid with Kubernetes' own limits takes.
    pub name_length: usize,
    /// Bytes of a request. The largest is a reconnecting agent's list of all that it has: about 100 bytes a resource.
    pub request_bytes: usize,
    /// Requests of one stream a second, in the long run. A stream that sends more is read more slowly.
    pub requests_per_second: f64,
    /// Requests that one stream may send at once.
    pub request_burst: f64,
    /// Types that we don't serve, that one stream may ask for.
    pub unknown_types: usize,
    /// Responses with everything in them that are encoded and not yet sent, over all streams: 8 MB each with 20,000
    /// workloads.
    pub full_pushes: usize,
    /// Streams of one node: its agent's, its predecessor's during an upgrade, and what TCP has not given up yet.
    pub streams_per_node: usize,
    /// How long changes are gathered before they are sent.
    pub batch: Duration,
    /// How long the check of a caller's credentials may take.
    pub authenticate_timeout: Duration,
    /// How long a stream waits for the store to become complete. A client's own patience is often 10 s.
    pub ready_timeout: Duration,
    /// How long a stream may take for its first request, once it is its turn.
    pub first_request_timeout: Duration,
    /// How long the transport may take to accept a response. 8 MB take 7 s at 10 Mbit/s.
    pub send_timeout: Duration,
    /// How long a client may take to answer a response.
    pub ack_timeout: Duration,
    /// How long a stream lives, give or take a tenth: credentials are then checked again, and streams spread over
    /// replicas again.
    pub age: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            names: 16_384,
            name_length: 1_024,
            request_bytes: 16 << 20,
            requests_per_second: 200.0,
            request_burst: 1_000.0,
            unknown_types: 16,
            full_pushes: 8,
            streams_per_node: 4,
            batch: Duration::from_millis(5),
            authenticate_timeout: Duration::from_secs(10),
            ready_timeout: Duration::from_secs(8),
            first_request_timeout: Duration::from_secs(10),
            send_timeout: Duration::from_secs(20),
            ack_timeout: Duration::from_secs(60),
            age: Duration::from_secs(30 * 60),
        }
    }
}
