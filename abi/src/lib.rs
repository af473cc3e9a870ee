//! Types and decisions that the kernel programs and the agent share.
//!
//! Everything here compiles for the kernel (`no_std`, no allocation) and for ordinary unit tests. A type that
//! crosses the boundary is `repr(C)`, has no implicit padding and has its size asserted at compile time.
#![cfg_attr(not(any(test, feature = "user")), no_std)]

pub mod address;
pub mod conn;
pub mod decide;
pub mod event;
#[cfg(feature = "maps")]
mod maps;
pub mod reason;
#[cfg(feature = "user")]
pub mod user;

pub use address::{Endpoint, FlowKey};
pub use conn::{
    Backend, BackendKey, Budget, Config, Conn, ConnKind, Connecting, HOST_HANDLE, ListenerSlot, MAX_PODS,
    Pending, Pod, PodState, ProbePort, SockState, Verdict, VerdictKey, VerdictKind, slot,
};
pub use event::{Event, EventKind};
pub use reason::Reason;

/// Version of the layout of pinned maps. Part of the pin path, so that an agent never reads another layout's bytes.
pub const LAYOUT_VERSION: u32 = 4;

/// The port on which workloads accept HBONE.
pub const HBONE_PORT: u16 = 15008;
