//! The messages and services that Weir speaks, generated from `proto/protos`.
//!
//! Field names and numbers are those of the public interfaces: delta ADS, Istio's workloads, policies and
//! certificates. [`weir::node`] is Weir's own.

#![forbid(unsafe_code)]

mod resource;
mod shared;

pub use generated::{envoy, google, istio, weir};
pub use resource::{Any, ResourceMessage, ResourceType, UnpackError, WILDCARD};
pub use shared::{SharedResource, SharedResponse};

#[allow(
    missing_docs,
    unreachable_pub,
    rust_2018_idioms,
    clippy::all,
    clippy::doc_markdown,
    clippy::enum_variant_names,
    reason = "generated"
)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/generated.rs"));
}
