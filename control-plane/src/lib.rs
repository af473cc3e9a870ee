//! The control plane: watches Kubernetes, serves workloads and policies to agents, signs certificates.

#![forbid(unsafe_code)]

pub mod ads;
pub mod auth;
pub mod ca;
pub mod cluster;
pub mod command;
pub mod compile;
pub mod crd;
pub mod engine;
pub mod flows;
mod overview;
pub mod publish;
pub mod reports;
pub mod run;
pub mod server;
pub mod sources;
pub mod status;
pub mod watch;
