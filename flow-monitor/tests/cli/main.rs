//! The command as its users run it, against an API server in memory, or a real one where that can be.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failed step is a failed test"
)]

mod advise;
mod agents;
mod audit;
mod check;
mod flows;
mod install;
mod migrate;
mod observer;
mod rollback;
mod world;
