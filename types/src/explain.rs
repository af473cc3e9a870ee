//! What would become of a connection, and why: the answer to `weir explain`.

use std::net::{IpAddr, SocketAddr};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use weir_abi::Reason;

use crate::{FlowVerdict, Identity, PolicyMatch};

/// A connection to explain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExplainRequest {
    /// Who connects: a pod (`namespace/name`, `name` or uid) or an address.
    pub from: String,
    /// Where to: a pod, a service (`namespace/name` or `name`; `svc/` before it if a pod has that name too), or an address.
    pub to: String,
    /// The port that is connected to.
    pub port: u16,
}

/// What would become of a connection.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// The node whose agent answers.
    pub node: String,
    /// Number of the configuration that it answers by.
    pub generation: u32,
    /// Who connects.
    pub source: ExplainedEnd,
    /// The address that it connects to.
    pub destination: SocketAddr,
    /// The service that this is, as `namespace/name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Whether it would be let through: to the first of `candidates`, or to one of those that are as near.
    pub verdict: FlowVerdict,
    /// Why it would not.
    pub reason: Reason,
    /// Where it may go, in the order in which that is tried; for a service, those of its endpoints that policy forbids last.
    pub candidates: Vec<ExplainedCandidate>,
    /// What the kernel of this node remembers of the agent's decisions for this pod and destination.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remembered: Option<String>,
    /// What each component would do.
    pub steps: Vec<ExplainedStep>,
}

/// One end of a connection.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExplainedEnd {
    /// Its address.
    pub address: IpAddr,
    /// `namespace/name`, of a workload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<String>,
    /// Its identity, of a workload of the mesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<Identity>,
    /// Its node, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Whether it is enrolled; unknown for a pod of another node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enrolled: Option<bool>,
    /// Its mode at the connection's port, of a destination: `STRICT` or `PERMISSIVE`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// Its certificate.
    pub certificate: CertificateState,
}

/// What is known of a workload's certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "state")]
pub enum CertificateState {
    /// Outside of the mesh: it has none.
    None,
    /// Of another node, and it has not been seen since this agent started.
    Unknown,
    /// Valid, as this agent has it or saw it last.
    #[serde(rename_all = "camelCase")]
    Valid {
        /// Its end.
        not_after: Timestamp,
        /// When it was seen, if it is another agent's.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        seen: Option<Timestamp>,
        /// What is wrong with its renewal.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        problem: Option<String>,
    },
    /// Past its end.
    #[serde(rename_all = "camelCase")]
    Expired {
        /// Its end.
        not_after: Timestamp,
        /// When it was seen, if it is another agent's.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        seen: Option<Timestamp>,
    },
    /// This agent should have one and has not.
    Missing {
        /// Why, as far as is known.
        problem: String,
    },
}

/// One place that a connection may go to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExplainedCandidate {
    /// Where it listens.
    pub address: SocketAddr,
    /// Who it is.
    pub end: ExplainedEnd,
    /// How the connection gets there.
    pub path: ExplainedPath,
    /// Why that way.
    pub why: String,
    /// What policies say.
    pub verdict: FlowVerdict,
    /// Why they refuse.
    pub reason: Reason,
    /// The policy that decides, if one does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicyMatch>,
    /// More about a refusal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The dry-run policy that would refuse it, were it enforced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dry_run: Option<PolicyMatch>,
    /// Every policy that applies to it, `namespace/name` with its action.
    pub policies: Vec<String>,
}

/// How a connection gets to its destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ExplainedPath {
    /// From socket to socket on one node, in the clear; the kernel vouches for both ends.
    Direct,
    /// Over mutual TLS.
    Tunnel,
    /// In plaintext to a workload of the mesh, whose agent has no identity to judge by.
    Plaintext,
    /// In plaintext to what is not in the mesh.
    Outside,
    /// To the pod itself.
    Itself,
}

/// What one component would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExplainedStep {
    /// The component, as `kernel of node1`.
    pub component: String,
    /// What it does.
    pub does: String,
}
