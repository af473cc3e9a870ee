//! The definitions of `weir.dev`: what they refuse, beside what the compiler of policies refuses, and how objects are read.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failed step is a failed test"
)]

mod definitions;
mod documents;
mod reading;
mod server;
mod validator;
