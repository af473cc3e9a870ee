//! What is installed: the chart, the manifests rendered from it, and that they ask for no more than they say.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failed step is a failed test"
)]

mod chart;
mod monitoring;
mod rights;
