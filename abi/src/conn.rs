//! Keys and values of the maps.

use crate::address::{Endpoint, FlowKey};

/// What a registered connection or a socket is.
///
/// Kept as plain constants, not as an enum: the kernel reads them from memory that user space writes.
#[non_exhaustive]
pub struct ConnKind;

impl ConnKind {
    /// Nothing is known of the socket.
    pub const NONE: u32 = 0;
    /// A pod's connection that was sent to the agent. Registered.
    pub const REDIRECT: u32 = 1;
    /// A pod's connection straight to a pod on the same node. Registered.
    pub const DIRECT: u32 = 2;
    /// The agent's connection to the application of a pod, in that pod's namespace. Registered.
    pub const DELIVERY: u32 = 3;
    /// Another socket of the agent: never captured. Not registered.
    pub const AGENT: u32 = 4;
    /// A pod's connection to a destination outside the mesh: left alone, observed. Not registered.
    pub const PASS: u32 = 5;
    /// A connection of a process in the kubelet's cgroup, from the node's own namespace. Registered.
    pub const HOST: u32 = 6;
}

/// A registered connection: value of the `CONNECTIONS` map, and part of a socket's own state.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq)]
#[cfg_attr(any(test, feature = "user"), derive(Debug))]
pub struct Conn {
    /// Network namespace cookie of the socket that opened it.
    pub netns: u64,
    /// Socket cookie.
    pub cookie: u64,
    /// When the socket closed, nanoseconds of CLOCK_MONOTONIC; 0 while it lives. Only the entry of an established redirect
    /// outlives its socket: the agent may not have accepted the connection yet, and removes the entry when it has.
    pub closed_ns: u64,
    /// One of [`ConnKind`].
    pub kind: u32,
    /// Handle of the source pod; of the destination pod for a delivery.
    pub pod: u32,
    /// Handle of the destination pod of a direct connection.
    pub dest_pod: u32,
    /// Configuration generation under which it was allowed.
    pub generation: u32,
    /// The destination that a pod asked for; the original client of a delivery.
    pub orig: Endpoint,
    /// The backend of a service that the kernel picked for a redirect; port 0 if it picked none.
    pub pick: Endpoint,
    /// Process id (thread group) in the initial PID namespace.
    pub pid: u32,
    /// Name of the thread that connected, NUL-padded.
    pub comm: [u8; 16],
    /// Whether it was ever established.
    pub established: u32,
    /// When `connect` was called, nanoseconds of CLOCK_MONOTONIC.
    pub started_ns: u64,
    /// [`FlowKey::tag`] of the key that it stands under. The kernel gives the memory of a removed element to the next at
    /// once: who reads one checks that it is still the one that was looked up.
    pub tag: u64,
}

/// A socket's own state: value of the `SOCKETS` sk_storage map.
#[repr(C)]
#[derive(Clone, Copy, Default)]
#[cfg_attr(any(test, feature = "user"), derive(Debug))]
pub struct SockState {
    /// What the socket is, and what is registered for it.
    pub conn: Conn,
    /// The 4-tuple under which it is registered. Between `connect` and its SYN, the source of a direct connection: the
    /// address that the pod must send it from.
    pub key: FlowKey,
    /// Whether it stands in `CONNECTIONS` under `key`.
    pub registered: u32,
    /// Explicit padding.
    pub pad: u32,
}

/// A direct connection between its `connect` and its SYN: value of the `PENDING` map, keyed by socket cookie.
///
/// Storage of the socket's own takes the kernel longer to make than all the rest of a `connect`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
#[cfg_attr(any(test, feature = "user"), derive(Debug))]
pub struct Pending {
    /// What is to be registered.
    pub conn: Conn,
    /// The address that the pod must send it from.
    pub src: [u32; 4],
}

/// A plain direct connection between its `connect` and its SYN, which the same call sends: value of the `CONNECTING` map, one
/// for each processor.
///
/// Only good where both cookies are the socket's: the next `connect` on this processor writes over it, at any moment.
#[repr(C)]
#[derive(Clone, Copy, Default)]
#[cfg_attr(any(test, feature = "user"), derive(Debug))]
pub struct Connecting {
    /// The socket's cookie, written before the rest.
    pub before: u64,
    /// What is to be registered.
    pub pending: Pending,
    /// The socket's cookie, written after the rest.
    pub after: u64,
}

/// A pod on this node: value of the `PODS` map, keyed by network namespace cookie.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq)]
#[cfg_attr(any(test, feature = "user"), derive(Debug))]
pub struct Pod {
    /// The pod's handle. Never used for another pod while pins last.
    pub handle: u32,
    /// Its IPv4 address in network order, 0 if it has none.
    pub v4: u32,
    /// Its IPv6 address, `::` if it has none.
    pub v6: [u32; 4],
    /// 1 if its connections are only recorded, 0 if they are captured.
    pub observed: u32,
}

/// Pods on one node; Kubernetes stops at 110 by default, and large nodes at some hundreds. A power of two.
pub const MAX_PODS: u32 = 4096;

/// The element of an array that a pod has: no two pods that are enrolled together share one.
#[inline(always)]
#[must_use]
pub const fn slot(handle: u32) -> u32 {
    handle & (MAX_PODS - 1)
}

/// What may change about a pod while it is enrolled: value of the `POD_STATES` map, an array by [`slot`].
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq)]
#[cfg_attr(any(test, feature = "user"), derive(Debug))]
pub struct PodState {
    /// 1: plaintext from outside is refused.
    pub strict: u32,
    /// Handle of the pod whose this is.
    pub pod: u32,
}

/// A pod's share of the connection table: value of the `BUDGETS` map, an array by [`slot`].
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq)]
#[cfg_attr(any(test, feature = "user"), derive(Debug))]
pub struct Budget {
    /// Entries that it has now.
    pub used: u64,
    /// Entries that it may have.
    pub limit: u64,
    /// Handle of the pod whose this is.
    pub pod: u32,
    /// Explicit padding.
    pub pad: u32,
}

/// Key of the `VERDICTS` map: what a pod may reach, and how.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
#[cfg_attr(any(test, feature = "user"), derive(Debug))]
pub struct VerdictKey {
    /// Handle of the pod that connects.
    pub pod: u32,
    /// The destination that it named.
    pub dst: Endpoint,
}

/// What to do with a connection to a destination.
#[non_exhaustive]
pub struct VerdictKind;

impl VerdictKind {
    /// Send it to the agent.
    pub const REDIRECT: u32 = 0;
    /// Outside the mesh: leave it alone.
    pub const PASS: u32 = 1;
    /// To a pod on this node: leave it alone and register it.
    pub const DIRECT: u32 = 2;
    /// Fail it with ECONNREFUSED.
    pub const DENY: u32 = 3;
    /// A service: pick one of its backends.
    pub const SERVICE: u32 = 4;
}

/// Value of the `VERDICTS` map.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq)]
#[cfg_attr(any(test, feature = "user"), derive(Debug))]
pub struct Verdict {
    /// One of [`VerdictKind`].
    pub kind: u32,
    /// Configuration generation under which the agent decided.
    pub generation: u32,
    /// Handle of the destination pod, for DIRECT.
    pub dest_pod: u32,
    /// Number of the [`crate::Reason`], for DENY.
    pub reason: u32,
    /// The set of backends, for SERVICE. Never used for another set while a verdict could name it.
    pub set: u32,
    /// How many backends the set has, for SERVICE.
    pub count: u32,
    /// The key that it stands under, to be compared after all else was read: the kernel gives the memory of a removed
    /// element to the next at once.
    pub key: VerdictKey,
}

/// Key of the `BACKENDS` map.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
#[cfg_attr(any(test, feature = "user"), derive(Debug))]
pub struct BackendKey {
    /// The set.
    pub set: u32,
    /// The backend's number in its set, from 0.
    pub index: u32,
}

/// A backend of a service that a pod may reach: value of the `BACKENDS` map.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq)]
#[cfg_attr(any(test, feature = "user"), derive(Debug))]
pub struct Backend {
    /// Where it listens.
    pub address: Endpoint,
    /// Handle of its pod if it is on this node and may be reached directly, else 0: the agent carries the connection.
    pub dest_pod: u32,
    /// The key that it stands under, to be compared after all else was read.
    pub key: BackendKey,
}

/// Key of the `PROBE_PORTS` map: a port that the kubelet probes.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
#[cfg_attr(any(test, feature = "user"), derive(Debug))]
pub struct ProbePort {
    /// Handle of the pod that is probed.
    pub pod: u32,
    /// The port, host order; [`ProbePort::ANY`] stands for all.
    pub port: u32,
}

impl ProbePort {
    /// No port, for pods of which nobody says what is probed: the kubelet may reach all.
    pub const ANY: u16 = 0;
}

/// What holds for all programs of an agent: the one value of the `CONFIG` map.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq)]
#[cfg_attr(any(test, feature = "user"), derive(Debug))]
pub struct Config {
    /// Cached verdicts hold until then, nanoseconds of CLOCK_MONOTONIC; the agent's heartbeat moves it on.
    pub lease_until_ns: u64,
    /// The generation of the configuration in force.
    pub generation: u32,
    /// The handle that the next pod gets. Kept here, so that it lives as long as the entries that bear handles.
    pub next_handle: u32,
    /// Id of the cgroup that the kubelet itself is in (the inode of its folder), 0 if none is known.
    pub kubelet_cgroup: u64,
    /// Cookie of the node's own network namespace: the kubelet's probes come from there.
    pub host_netns: u64,
}

/// The agent's listeners in a pod's namespace. Key of the `LISTENERS` map: `handle << 3 | slot`.
#[non_exhaustive]
pub struct ListenerSlot;

/// The handle under which the connections of processes outside of pods are counted.
pub const HOST_HANDLE: u32 = 0;

impl ListenerSlot {
    /// Redirected connections of the pod, IPv4.
    pub const OUTBOUND: u32 = 0;
    /// HBONE from elsewhere, IPv4.
    pub const HBONE: u32 = 2;
    /// Plaintext from elsewhere, IPv4.
    pub const PLAINTEXT: u32 = 4;
    /// Added to a slot: the same for IPv6. A socket of another family cannot be assigned.
    pub const V6: u32 = 1;

    /// The key of a pod's slot.
    #[inline(always)]
    #[must_use]
    pub const fn key(handle: u32, slot: u32) -> u32 {
        handle << 3 | slot
    }
}

const _: () = assert!(size_of::<Conn>() == 120);
const _: () = assert!(size_of::<SockState>() == 168);
const _: () = assert!(size_of::<Pending>() == 136);
const _: () = assert!(size_of::<Connecting>() == 152);
const _: () = assert!(size_of::<Pod>() == 28);
const _: () = assert!(size_of::<VerdictKey>() == 24);
const _: () = assert!(size_of::<Verdict>() == 48);
const _: () = assert!(size_of::<Config>() == 32);
const _: () = assert!(size_of::<BackendKey>() == 8);
const _: () = assert!(size_of::<Backend>() == 32);
const _: () = assert!(size_of::<ProbePort>() == 8);
const _: () = assert!(size_of::<Budget>() == 24);
