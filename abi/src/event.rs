//! What the kernel programs tell the agent through the ring buffer.

use crate::address::{Endpoint, FlowKey};

/// What happened.
#[non_exhaustive]
pub struct EventKind;

impl EventKind {
    /// A connection that the agent does not carry was established.
    pub const ESTABLISHED: u32 = 1;
    /// A connection that the agent does not carry ended.
    pub const CLOSED: u32 = 2;
    /// `connect` was refused.
    pub const CONNECT_DENIED: u32 = 3;
    /// A SYN to a pod was refused.
    pub const SYN_DENIED: u32 = 4;
}

/// One record of the `EVENTS` ring buffer.
#[repr(C)]
#[derive(Clone, Copy, Default)]
#[cfg_attr(any(test, feature = "user"), derive(Debug))]
pub struct Event {
    /// Nanoseconds of CLOCK_MONOTONIC.
    pub time_ns: u64,
    /// Age of the connection, nanoseconds.
    pub duration_ns: u64,
    /// Socket cookie, 0 where there is no socket yet.
    pub cookie: u64,
    /// Payload bytes that the peer acknowledged.
    pub bytes_sent: u64,
    /// Payload bytes received.
    pub bytes_received: u64,
    /// The connection, as its client sees it.
    pub key: FlowKey,
    /// One of [`EventKind`].
    pub kind: u32,
    /// One of [`crate::ConnKind`].
    pub conn_kind: u32,
    /// Handle of the pod that connected; of the destination for `SYN_DENIED`.
    pub pod: u32,
    /// Handle of the destination pod of a direct connection.
    pub dest_pod: u32,
    /// Number of a [`crate::Reason`].
    pub reason: u32,
    /// Whether the connection was ever established.
    pub established: u32,
    /// Smoothed round-trip time, microseconds.
    pub rtt_us: u32,
    /// Segments sent again.
    pub retransmits: u32,
    /// Process id (thread group) in the initial PID namespace, 0 where unknown.
    pub pid: u32,
    /// The destination that was asked for, where it is another than the key's: a service's address.
    pub orig: Endpoint,
    /// Name of the thread that connected, NUL-padded.
    pub comm: [u8; 16],
}

const _: () = assert!(size_of::<Event>() == 152);
