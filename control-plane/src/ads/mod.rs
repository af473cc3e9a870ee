//! The delta ADS server: every agent's view of workloads, services, policies and its own pods.
//!
//! Whoever watches Kubernetes writes into the [`Store`]; each stream is a `session::Session`, a state machine
//! without I/O or clocks, driven by `stream`. A stream keeps a revision of the store and no copy of what it sent.

mod authenticate;
mod bucket;
mod close;
mod limits;
mod metrics;
mod requests;
mod resource;
mod service;
mod session;
mod sever;
mod store;
mod stream;

pub use authenticate::{Agent, Authenticate, Refusal};
pub use limits::Limits;
pub use resource::{Change, Resource};
pub use service::{Ads, AdsService};
pub use sever::{Peer, Sever, Severable};
pub use store::Store;
