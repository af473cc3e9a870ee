//! What the control plane says of the cluster in the cluster: conditions of policies, annotations and a condition of pods,
//! events.
//!
//! [`Wanted`] knows what should stand there, [`plan`] what is to be written for that, and [`Writer`] writes it. Any number of
//! replicas do so without a leader: what is desired follows from what all of them see, a write counts only for the
//! version that it was planned for, and what stands there already is not written.

mod desired;
mod fair;
mod ledger;
mod notice;
mod plan;
mod present;
#[cfg(test)]
mod tests;
mod writer;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use crate::{cluster::ObjectName, compile::PolicyKey};

pub use desired::{Wanted, desired};
pub use notice::{Notice, Regarding};
pub use plan::{AddressWrite, PodWrite, PolicyWrite, Write, plan};
pub use present::{Present, PresentNode, PresentPod};
pub use writer::Writer;

/// Who writes (`fieldManager`).
pub const MANAGER: &str = "weir-control";
/// The annotation of pods whose agent has said that they are enrolled.
pub use crate::cluster::parse::ENROLLED;
/// The annotation of pods that are meant to be in the mesh and are not: why.
pub const NOT_ENROLLED: &str = "weir.dev/not-enrolled";
/// The taint that keeps pods off a node until its agent is ready.
pub const NODE_TAINT: &str = "weir.dev/agent-not-ready";
/// The condition of pods that are refused an address which their status claims; others do not have it.
pub const ADDRESS: &str = "weir.dev/Address";
/// What [`ENROLLED`] says.
pub const TRUE: &str = "true";

/// What should stand in the cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    /// Of our policies.
    pub policies: BTreeMap<PolicyKey, PolicyState>,
    /// Of pods of which something else stands there now.
    pub pods: BTreeMap<ObjectName, PodState>,
    /// Nodes, and whether they bear [`NODE_TAINT`].
    pub nodes: BTreeMap<Arc<str>, bool>,
    /// What is to be told, once each.
    pub notices: Vec<Notice>,
}

/// What is to be said of a policy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PolicyState {
    /// Why it is not in force as it stands.
    pub problem: Option<String>,
    /// Whether it is only rehearsed, and so denies nothing.
    pub dry_run: bool,
    /// What of it may not do what was meant.
    pub warnings: Vec<String>,
    /// How many enrolled pods it applies to.
    pub bound: i64,
}

/// What is to be said of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodState {
    /// The pod of that name that is meant.
    pub uid: Arc<str>,
    /// Its node.
    pub node: Arc<str>,
    /// [`ENROLLED`].
    pub enrolled: Wish,
    /// [`NOT_ENROLLED`].
    pub not_enrolled: Wish,
    /// [`ADDRESS`]: why which addresses are refused, if any is.
    pub refused: Option<String>,
}

/// What an annotation should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wish {
    /// As it is: another replica knows.
    Any,
    /// Not there.
    Absent,
    /// This.
    Is(String),
}

/// How fast may be written.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pace {
    /// Changes that come within this of one another are written together. As much again is added by chance, so that of
    /// several replicas one is first, and the others find it written.
    pub coalesce: Duration,
    /// Most writes a second. Where there are more to be made, policies have half of them, and nodes share the rest alike.
    pub per_second: u32,
    /// What was written is not written again for so long: a watch must bring it first.
    pub rest: Duration,
    /// Wait after a first failure; it doubles with each.
    pub retry: Duration,
    /// Longest wait after failures.
    pub retry_most: Duration,
    /// Longest that one write may take.
    pub timeout: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            coalesce: Duration::from_millis(500),
            per_second: 10,
            rest: Duration::from_secs(3),
            retry: Duration::from_millis(500),
            retry_most: Duration::from_secs(60),
            timeout: Duration::from_secs(15),
        }
    }
}
