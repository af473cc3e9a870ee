//! The agent's side of the CNI plugin: a pod's containers start only when the kernel has the pod.
//!
//! The plugin gives the sandbox's network namespace and addresses ([`Sandboxes`]), the control plane says whether the pod is in
//! the mesh, [`verdict`] what follows from that, and [`server`] answers. For when the agent is away it leaves [`state`].

pub mod conflist;
pub mod install;
mod sandboxes;
pub mod server;
pub mod state;
pub mod verdict;

pub use sandboxes::{ByUid, Sandbox, Sandboxes, addresses};
