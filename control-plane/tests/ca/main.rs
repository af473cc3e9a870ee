//! The certificate authority: its Secret, its service, and what others say of its certificates.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failed step is a failed test"
)]

mod flows;
mod openssl;
mod secret;
mod service;
mod verify;
mod world;
