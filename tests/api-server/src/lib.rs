//! A Kubernetes API server in memory, for tests.

#![forbid(unsafe_code)]

mod access;
mod apply;
mod builtin;
mod core;
mod definition;
mod discovery;
mod faults;
mod fields;
mod json;
mod patch;
mod request;
mod resource;
mod schema;
mod selector;
mod server;
mod serving;
mod status;
mod store;
mod tokens;

pub use access::Denied;
pub use faults::{Effect, FaultId, Faults, Requests, Seen};
pub use server::ApiServer;
