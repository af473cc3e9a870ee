//! Istio's objects.

pub(crate) mod authorization;
pub(crate) mod others;
pub(crate) mod peer;
mod values;
