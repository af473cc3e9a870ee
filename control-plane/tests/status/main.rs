//! What the control plane writes to a cluster, with several replicas and an API server that does not always answer.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failed step is a failed test"
)]

mod addresses;
mod annotations;
mod conditions;
mod events;
mod fairness;
mod nodes;
mod replica;
