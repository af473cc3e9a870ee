//! The agent's local API: one JSON request a line over a Unix socket, answered by JSON lines.
//!
//! A client connects, writes one [`Request`] and a newline, and reads [`Response`] lines until the agent closes.
//! Flows are asked for by gRPC on the same socket (Hubble's observer).

use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use weir_abi::Reason;

use crate::{
    Identity,
    explain::{ExplainRequest, Explanation},
};

/// Where the agent listens unless configured otherwise.
pub const DEFAULT_SOCKET: &str = "/run/weir/agent.sock";

/// Longest request line that the agent accepts, in bytes.
pub const MAX_REQUEST: usize = 64 * 1024;

/// What a client asks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Request {
    /// The agent's state.
    Status,
    /// The workloads that the agent knows.
    Workloads,
    /// What would become of a connection; answered by [`Response::Explanation`].
    Explain(ExplainRequest),
}

/// One line of the agent's answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(clippy::large_enum_variant, reason = "answers are held one at a time")]
pub enum Response {
    /// Answer to `Status`.
    Status(Box<Status>),
    /// Answer to `Workloads`, one line each.
    Workload(WorkloadStatus),
    /// What would become of a connection.
    Explanation(Box<Explanation>),
    /// The request could not be understood or answered.
    Error(String),
}

/// The agent's state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The node's name.
    pub node: String,
    /// The agent's version.
    pub version: String,
    /// The trust domain.
    pub trust_domain: String,
    /// When the agent started.
    pub started: Timestamp,
    /// Ready to take traffic.
    pub ready: bool,
    /// The configuration in force.
    pub config: ConfigStatus,
    /// The control plane, if the agent has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control_plane: Option<ControlPlaneStatus>,
    /// Pods on this node.
    pub pods: Vec<PodStatus>,
    /// Kernel programs.
    pub programs: Vec<ProgramStatus>,
    /// Certificates that the agent holds.
    pub certificates: Vec<CertificateStatus>,
    /// Trusted roots.
    pub roots: Vec<RootStatus>,
    /// The certificate of the port for flows, where the control plane gives it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flows_certificate: Option<FlowsCertificateStatus>,
    /// Open connections between this node and others.
    pub tunnels: Vec<TunnelStatus>,
    /// Flow records made.
    pub flows_recorded: u64,
    /// Flow events lost, by the ring buffer or overwritten before a reader got them.
    pub flows_lost: u64,
    /// Refused and failed connections by reason, since start.
    pub refusals: Vec<(Reason, u64)>,
    /// Entries in the kernel's connection table.
    pub kernel_connections: u64,
    /// What is wrong now, in words.
    pub errors: Vec<String>,
    /// What of the policies may not do what was meant.
    pub warnings: Vec<String>,
    /// What the agent itself takes; absent from agents that do not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<ProcessStatus>,
}

/// The certificate of the port for flows. What is wrong with it is among the errors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowsCertificateStatus {
    /// The DNS name that it is for.
    pub name: String,
    /// Valid until; absent before there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after: Option<Timestamp>,
}

/// What the agent's process takes, and what for. Counts are since it started.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProcessStatus {
    /// CPU time, user and system, in milliseconds.
    pub cpu_ms: u64,
    /// Memory that is resident, in bytes.
    pub resident_bytes: u64,
    /// Payload bytes of connections, both ways.
    pub bytes: u64,
    /// Connections that were opened.
    pub connections: u64,
}

/// The configuration in force.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConfigStatus {
    /// Its file.
    pub file: String,
    /// When it was applied.
    pub applied: Timestamp,
    /// Rises by one with each configuration applied.
    pub generation: u32,
    /// Why the file's newest contents are not in force, if they are not.
    pub rejected: Option<String>,
}

/// The control plane that an agent follows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ControlPlaneStatus {
    /// Where it is.
    pub address: String,
    /// Whether what is new arrives.
    pub connected: bool,
    /// Since when it does, or does not.
    pub since: Timestamp,
    /// When something new was put in force last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub updated: Option<Timestamp>,
    /// Workloads that are known.
    pub workloads: usize,
    /// Services that are known.
    pub services: usize,
    /// Policies that are known.
    pub policies: usize,
    /// Why it is not connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// A pod on this node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodStatus {
    /// Its uid.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its identity.
    pub identity: Identity,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether it is enrolled.
    pub enrolled: bool,
    /// `STRICT` or `PERMISSIVE`.
    pub mode: String,
    /// How other pods of this node reach it, and why, while it is enrolled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub same_node: Option<String>,
    /// Policies that apply to it.
    pub policies: u64,
    /// Why it is not enrolled, or what is wrong.
    pub problem: Option<String>,
    /// Connections open now.
    pub connections: u64,
}

/// A kernel program.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProgramStatus {
    /// Name of the program.
    pub name: String,
    /// Where it is attached: a cgroup's path, or a pod.
    pub attached_to: String,
    /// Kernel id of the link.
    pub link_id: u32,
    /// Kernel id of the program.
    pub program_id: u32,
}

/// A certificate that the agent holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CertificateStatus {
    /// The identity that it names.
    pub identity: Identity,
    /// Serial number, hexadecimal.
    pub serial: String,
    /// Valid from.
    pub not_before: Timestamp,
    /// Valid until.
    pub not_after: Timestamp,
    /// When it will be renewed.
    pub renew_at: Timestamp,
    /// Why the last renewal failed, if it did.
    pub problem: Option<String>,
}

/// A trusted root.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RootStatus {
    /// Its subject.
    pub subject: String,
    /// SHA-256 of the certificate, hexadecimal.
    pub fingerprint: String,
    /// Valid until.
    pub not_after: Timestamp,
}

/// An open tunnel connection.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TunnelStatus {
    /// `outbound` or `inbound`.
    pub direction: crate::TrafficDirection,
    /// Uid of the local pod.
    pub pod: String,
    /// The peer's verified identity.
    pub peer: Identity,
    /// The peer's address.
    pub address: std::net::SocketAddr,
    /// Streams open now.
    pub streams: u64,
    /// Since when.
    pub since: Timestamp,
}

/// A workload that the agent knows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadStatus {
    /// Its uid.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its identity.
    pub identity: Identity,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its node.
    pub node: String,
    /// `HBONE` or `NONE`.
    pub tunnel: String,
    /// Services that it serves, `namespace/name`.
    pub services: Vec<String>,
    /// Labels.
    pub labels: std::collections::BTreeMap<String, String>,
    /// Whether it is on this node and enrolled.
    pub local: bool,
}
