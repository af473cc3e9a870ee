//! A Kubernetes API server in memory, faults before any API server, and clusters for tests.
//!
//! [`TestCluster`] is the way in: the same tests run on the stand-in, and on the real cluster of the kubeconfig
//! that `WEIR_TEST_KUBECONFIG` names. What the stand-in does not do is said at [`ApiServer`].

#![forbid(unsafe_code)]

mod access;
mod apply;
mod builtin;
#[expect(
    clippy::expect_used,
    reason = "for tests, which end where their cluster is not as they made it"
)]
mod cluster;
mod core;
mod definition;
mod discovery;
mod faults;
mod fields;
mod forward;
mod json;
#[expect(
    clippy::expect_used,
    reason = "for tests, which end where their objects are refused"
)]
mod objects;
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
pub use cluster::{KUBECONFIG, TestCluster, eventually, object};
pub use faults::{Effect, FaultId, Faults, Requests, Seen};
pub use objects::NewPod;
pub use server::ApiServer;
