//! The vocabulary of Weir: identities, flow records and the agent's local API.
//!
//! Shared by the agent, the tunnel and the command line; no I/O here.
#![forbid(unsafe_code)]

pub mod api;
pub mod explain;
pub mod flow;
pub mod hubble;
pub mod identity;
pub mod trace;

pub use flow::{
    About, Flow, FlowEvent, FlowPath, FlowPeer, FlowVerdict, PolicyMatch, Process, TrafficDirection,
    WorkloadName,
};
pub use identity::{Identity, IdentityError, TrustDomain};
pub use trace::{FlowTrace, SpanId, TraceError, TraceId, TraceParent};
pub use weir_abi::Reason;
