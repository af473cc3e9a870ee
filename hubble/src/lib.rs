//! Flows as Hubble's tools know them: the record and its fields, filters, the observer that serves them, and a client of it.
//!
//! Names and numbers are those of Hubble's public API (`flow`, `observer`, `peer`). What it has no field for stands in a
//! flow's `extensions` ([`weir_proto::weir::flow::v1::Details`], in the form that [`form`] tells of).
#![forbid(unsafe_code)]

pub mod certificate;
pub mod client;
pub mod client_tls;
pub mod convert;
mod explain;
pub mod filter;
pub mod form;
pub mod json;
pub mod map;
mod mask;
pub mod observer;
pub mod pairs;
pub mod port;
mod reflect;
pub mod relay;
pub mod serve;
pub mod tls;
pub mod window;

pub use convert::{Origin, from_hubble, to_hubble};
pub use filter::{FilterError, Filters};
