//! What the agents' process is told at its start, and what it and the benchmark say to each other: a line of JSON each.

use std::{collections::HashMap, net::SocketAddr, path::PathBuf};

use serde::{Deserialize, Serialize};

/// What the agents' process is to do.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Plan {
    /// Where weir-control listens.
    pub(super) control: SocketAddr,
    /// The file with the roots, which may come later.
    pub(super) roots: PathBuf,
    /// Who subscribe to everything, as weir-agent does.
    pub(super) agents: Vec<Agent>,
    /// Who ask for a few names.
    pub(super) on_demand: Vec<OnDemand>,
}

/// An agent: one a node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Agent {
    /// That of its pod.
    pub(super) token: String,
}

/// An agent that asks for a few names.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct OnDemand {
    pub(super) agent: Agent,
    /// Names of workloads and services, or their addresses.
    pub(super) names: Vec<String>,
}

/// What the benchmark asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Ask {
    /// How far it is.
    Progress,
    /// What came since all had everything, and when.
    Arrivals,
    /// All connections are to be closed, and opened again with the versions that are known.
    Reconnect,
}

/// What the agents' process answers.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Answer {
    /// When the last had everything, in microseconds of the monotonic clock; nothing while one has not.
    pub(super) whole: Option<u64>,
    /// Of the agents that subscribe to everything, since they were last told to connect.
    pub(super) received: Received,
    /// Of those on demand.
    pub(super) on_demand: Received,
    /// Times at which agents had what changed, by the workload's name.
    pub(super) arrivals: HashMap<String, Vec<u64>>,
    /// What kept agents from connecting, and how often.
    pub(super) failures: HashMap<String, u32>,
}

/// What agents received, all together.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(super) struct Received {
    /// Agents that have everything.
    pub(super) whole: usize,
    pub(super) responses: u64,
    pub(super) bytes: u64,
    /// Workloads and services.
    pub(super) addresses: u64,
    pub(super) policies: u64,
    /// Pods of the agent's own node.
    pub(super) pods: u64,
    /// Bytes of workloads and services.
    pub(super) address_bytes: u64,
}

/// Microseconds of the clock that all processes of this machine share.
pub(super) fn now() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(time.tv_sec).unwrap_or_default() * 1_000_000
        + u64::try_from(time.tv_nsec).unwrap_or_default() / 1_000
}
