//! What policies mean, as tables: whoever wants to know what a policy does finds it here.
#![allow(clippy::unwrap_used, reason = "a failed assertion is what a test is for")]

mod authorization;
mod conversion;
mod peer_authentication;
mod scopes;
mod support;
mod values;
