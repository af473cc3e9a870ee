//! End-to-end tests. Each asserts what someone outside would see: what an application got, what the wire carried, which
//! flow was recorded.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "tests")]

mod advise;
mod attacks;
mod budgets;
mod clients;
mod cluster;
mod cluster_claims;
mod cluster_observe;
mod cluster_rotation;
mod cni;
mod control_peer;
mod corners;
mod direct;
mod direct_attacks;
mod direct_limits;
mod direct_spoofing;
mod envoy;
mod explain;
mod exports;
mod flows_authority;
mod halves;
mod hostile;
mod hubble;
mod istiod;
mod lifecycle;
mod metrics;
mod modes;
mod operations;
mod paths;
mod peers;
mod policy;
mod policy_changes;
mod probes;
mod programs;
mod rotation;
mod servers;
mod services;
mod top;
mod volume;
mod ztunnel_client;
