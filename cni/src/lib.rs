//! The CNI plugin `weir-cni`, which stands last in the chain of a node's network: a pod's containers start only when the
//! agent has the pod, so that nothing of it is ever sent in plaintext that must not be.
//!
//! What is decided here is without I/O ([`args`], [`config`], [`decide`]); [`client`] speaks to the agent, whose side is in
//! `weir-agent`, and [`plugin`] puts it together.
#![forbid(unsafe_code)]

pub mod args;
pub mod client;
pub mod config;
pub mod decide;
pub mod error;
pub mod plugin;
pub mod protocol;
