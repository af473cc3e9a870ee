//! The messages and services that Weir speaks, generated from `proto/protos`.
//!
//! Field names and numbers are those of the public interfaces: delta ADS, Istio's workloads, policies and
//! certificates, and Hubble's flows. [`weir`] is Weir's own.

#![forbid(unsafe_code)]

mod filter;
mod policy;
mod resource;
mod shared;

use std::net::IpAddr;

use bytes::Bytes;

pub use filter::FlowFilter;
pub use generated::{envoy, flow, google, istio, observer, peer, relay, weir};
pub use policy::{AuthorizationError, scope_of};
pub use resource::{Any, REVOCATIONS, ResourceMessage, ResourceType, UnpackError, WILDCARD};
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

/// All definitions, as an encoded `google.protobuf.FileDescriptorSet`.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// An address as the wire has it: 4 or 16 bytes in network order, IPv4 never as v4-mapped.
#[must_use]
pub fn address_bytes(address: IpAddr) -> Bytes {
    match address.to_canonical() {
        IpAddr::V4(address) => Bytes::copy_from_slice(&address.octets()),
        IpAddr::V6(address) => Bytes::copy_from_slice(&address.octets()),
    }
}

/// The address that these bytes are, in canonical form; `None` if they are none.
#[must_use]
pub fn address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(bytes) {
        Some(octets.into())
    } else {
        <[u8; 16]>::try_from(bytes)
            .ok()
            .map(|octets| IpAddr::from(octets).to_canonical())
    }
}
