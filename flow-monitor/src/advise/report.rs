//! What is advised, as it is written for programs.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;

/// Everything that was asked for.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Advice {
    pub(crate) basis: Basis,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) strict: Option<Vec<Strict>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) layers: Option<Layers>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) policy: Option<Policy>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cost: Option<Cost>,
}

/// What the advice is made from.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Basis {
    /// Records that were counted.
    pub(crate) flows: u64,
    /// The first of them, and the last.
    pub(crate) from: Option<Timestamp>,
    pub(crate) until: Option<Timestamp>,
    pub(crate) seconds: i64,
    pub(crate) nodes: Vec<NodeBasis>,
    /// Connections to what is no pod that is known: no policy concerns them.
    pub(crate) outside: u64,
    /// Records of other things than connections of TCP.
    pub(crate) others: u64,
    /// Why the advice is weak, if it is.
    pub(crate) weak: Vec<String>,
}

/// What one node recorded.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NodeBasis {
    pub(crate) node: String,
    pub(crate) flows: u64,
    pub(crate) from: Option<Timestamp>,
    pub(crate) until: Option<Timestamp>,
    /// Sequence numbers that no record bears.
    pub(crate) missing: u64,
    /// Events that its agent says were lost.
    pub(crate) lost: u64,
}

/// Whether a namespace could refuse plaintext.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Strict {
    pub(crate) namespace: String,
    pub(crate) answer: StrictAnswer,
    /// Connections to it with a verified identity, and without.
    pub(crate) verified: u64,
    pub(crate) plaintext: u64,
    /// Probes of the kubelet, which STRICT lets through.
    pub(crate) probes: u64,
    pub(crate) workloads: Vec<StrictWorkload>,
    pub(crate) notes: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum StrictAnswer {
    /// It refuses plaintext already.
    IsStrict,
    /// No client came in plaintext.
    CouldGoStrict,
    /// Clients came in plaintext.
    ClientsWouldBreak,
    /// No connection to it was seen.
    NothingSeen,
    /// None of its pods is known to be in the mesh.
    NotInMesh,
}

/// Whether a workload could refuse plaintext.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct StrictWorkload {
    pub(crate) workload: String,
    pub(crate) answer: StrictAnswer,
    pub(crate) verified: u64,
    pub(crate) plaintext: u64,
    /// Who came in plaintext.
    pub(crate) clients: Vec<PlainClient>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PlainClient {
    pub(crate) client: String,
    pub(crate) ports: Vec<u16>,
    pub(crate) connections: u64,
    /// Attempts that were refused, for they were in plaintext or by a policy.
    pub(crate) refused: u64,
    pub(crate) last: Option<Timestamp>,
}

/// Which workloads ask for layer 7.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Layers {
    /// Whether agents said what their policies ask for; a record alone does not.
    pub(crate) policies_known: bool,
    pub(crate) workloads: Vec<LayerWorkload>,
    pub(crate) asks: Vec<Ask>,
    pub(crate) notes: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LayerWorkload {
    pub(crate) namespace: String,
    pub(crate) workload: String,
    pub(crate) ports: Vec<u16>,
    pub(crate) answer: LayerAnswer,
    /// Policies that ask for layer 7 where it is.
    pub(crate) policies: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum LayerAnswer {
    /// Nothing asks for more.
    Layer4IsEnough,
    /// A policy that may concern it asks for layer 7.
    AsksForWaypoint,
}

/// What a policy asks of layer 7.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Ask {
    pub(crate) policy: String,
    pub(crate) field: String,
    /// What becomes of it at layer 4.
    pub(crate) now: String,
}

/// The least policies that allow what was seen.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Policy {
    /// Connections that they are made from.
    pub(crate) connections: u64,
    pub(crate) policies: Vec<Advised>,
    /// What they would have denied.
    pub(crate) would_deny: Vec<Attempt>,
    /// Connections that no policy can be written for.
    pub(crate) not_covered: Vec<Attempt>,
    pub(crate) notes: Vec<String>,
}

/// A policy.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Advised {
    pub(crate) namespace: String,
    pub(crate) name: String,
    /// The workloads that it was made for.
    pub(crate) workloads: Vec<String>,
    /// Labels; all of the namespace if there are none.
    pub(crate) selector: BTreeMap<String, String>,
    pub(crate) connections: u64,
    /// Of all connections, from 0 to 1.
    pub(crate) share: f64,
    pub(crate) rules: Vec<AdvisedRule>,
    pub(crate) notes: Vec<String>,
    /// The object itself.
    pub(crate) manifest: serde_json::Value,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AdvisedRule {
    /// Identities; or, where there are none, addresses that come without.
    pub(crate) principals: Vec<String>,
    pub(crate) ip_blocks: Vec<String>,
    /// Pods that these addresses are of.
    pub(crate) pods: Vec<String>,
    pub(crate) ports: Vec<u16>,
    pub(crate) connections: u64,
    pub(crate) share: f64,
    pub(crate) last: Option<Timestamp>,
}

/// Connections of one client to one port of a workload.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Attempt {
    pub(crate) client: String,
    pub(crate) workload: String,
    pub(crate) port: u16,
    pub(crate) count: u64,
    pub(crate) last: Option<Timestamp>,
    pub(crate) why: String,
}

/// What the mesh takes.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Cost {
    pub(crate) nodes: Vec<NodeCost>,
    /// Of all these nodes together.
    pub(crate) total: Option<NodeCost>,
    pub(crate) notes: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NodeCost {
    pub(crate) node: String,
    /// Since when the counts are.
    pub(crate) up_seconds: f64,
    pub(crate) cpu_seconds: f64,
    /// Processors that were busy on average.
    pub(crate) cores: f64,
    pub(crate) resident_bytes: u64,
    pub(crate) bytes: u64,
    pub(crate) connections: u64,
    /// Gigabytes of 10^9 bytes.
    pub(crate) cpu_seconds_per_gigabyte: Option<f64>,
    pub(crate) cpu_ms_per_connection: Option<f64>,
}
