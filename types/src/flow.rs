//! Flow records: what happened to one connection, as one node saw it.

use std::{collections::BTreeMap, fmt, net::SocketAddr, sync::Arc};

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use weir_abi::Reason;

use crate::{FlowTrace, Identity};

/// One event of one connection.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Flow {
    /// Position in the agent's ring; rises by one with each record, so a gap is a loss.
    pub sequence: u64,
    /// When it happened.
    pub time: Timestamp,
    /// The node whose agent recorded it.
    pub node: String,
    /// The connection that it belongs to, unique within one run of the agent.
    pub connection: u64,
    /// What happened.
    pub event: FlowEvent,
    /// What became of the connection.
    pub verdict: FlowVerdict,
    /// Why, unless `none`.
    pub reason: Reason,
    /// The error behind the reason, for a person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Seen at the client's node (egress) or at the server's (ingress).
    pub direction: TrafficDirection,
    /// How the bytes travel.
    pub path: FlowPath,
    /// The client.
    pub source: FlowPeer,
    /// The server that was chosen.
    pub destination: FlowPeer,
    /// The service address that the client asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub original_destination: Option<SocketAddr>,
    /// `namespace/name` of the service that the client asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Protocol version and cipher suite of the tunnel; absent for plaintext.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<String>,
    /// The policy that decided, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicyMatch>,
    /// The dry-run policy that would have refused the connection, were it enforced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dry_run: Option<PolicyMatch>,
    /// Bytes from client to server so far.
    pub bytes_sent: u64,
    /// Bytes from server to client so far.
    pub bytes_received: u64,
    /// Age of the connection in microseconds.
    pub duration_us: u64,
    /// Smoothed round-trip time of the connection that crosses the network, in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_us: Option<u32>,
    /// Segments sent again on the connection that crosses the network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retransmits: Option<u32>,
    /// The client's process, where it runs on this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<Process>,
    /// Its place in a trace, where spans are exported or the client's side sent `traceparent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<FlowTrace>,
}

/// What happened to a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum FlowEvent {
    /// It was let through and reached its destination.
    Open,
    /// It ended after it had been open.
    Close,
    /// It was refused, or failed, before it was open.
    Refused,
}

/// What became of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum FlowVerdict {
    /// Let through.
    Forwarded,
    /// Refused by Weir.
    Denied,
    /// Failed for a cause outside Weir's policy: application, network, certificate service.
    Failed,
}

/// Which end of the connection the recording node has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum TrafficDirection {
    /// The recording node has the client.
    Egress,
    /// The recording node has the server.
    Ingress,
}

/// How a connection's bytes travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum FlowPath {
    /// Through a mutual TLS tunnel.
    Tunnel,
    /// Plaintext through the agent.
    Plaintext,
    /// Between two pods of one node in the clear; the kernel vouches for both ends.
    Direct,
    /// Not through the agent at all: the kernel let it pass.
    Kernel,
    /// Nowhere: it was refused before a path was chosen.
    Nowhere,
}

/// One end of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowPeer {
    /// Address and port.
    pub address: SocketAddr,
    /// The verified identity: from the kernel for a local pod, from the certificate for a remote one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<Identity>,
    /// Kubernetes namespace of the workload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Name of the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// What else people know it by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub about: Option<Arc<About>>,
}

/// What people know a pod by, besides its name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct About {
    /// Its labels, as it bears them.
    pub labels: BTreeMap<String, String>,
    /// What runs it: name, and kind as Kubernetes has it.
    pub workload: Option<WorkloadName>,
}

/// What runs a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadName {
    /// Its name.
    pub name: String,
    /// `Deployment`, `StatefulSet`, `DaemonSet`, `Job`, `CronJob`, `Pod`; empty if nobody says.
    pub kind: String,
}

/// A client's process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Process {
    /// Process id in the node's PID namespace.
    pub pid: u32,
    /// The name that the kernel keeps: at most 15 bytes.
    pub name: String,
}

/// A policy that matched a connection, or, of those that should have, the first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyMatch {
    /// `namespace/name`.
    pub policy: Arc<str>,
    /// Which of its rules, from 0; none if it is that none matched, or for a PeerAuthentication.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<u32>,
}

impl fmt::Display for PolicyMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.rule {
            Some(rule) => write!(f, "{} rule {rule}", self.policy),
            None => f.write_str(&self.policy),
        }
    }
}

// === impl FlowPeer ===

impl FlowPeer {
    /// An end of which only the address is known.
    #[must_use]
    pub fn unknown(address: SocketAddr) -> Self {
        Self {
            address,
            identity: None,
            namespace: None,
            pod: None,
            about: None,
        }
    }
}

impl FlowVerdict {
    /// The verdict that a reason stands for.
    #[must_use]
    pub fn of(reason: Reason) -> Self {
        match reason {
            Reason::None => Self::Forwarded,
            Reason::ConnectionRefused
            | Reason::Unreachable
            | Reason::ConnectTimeout
            | Reason::NoEndpoint
            | Reason::UnknownPort
            | Reason::TunnelReset
            | Reason::TunnelBroken
            | Reason::ApplicationReset
            | Reason::NoOwnCertificate
            | Reason::KeepAliveTimeout
            | Reason::Io
            | Reason::SlowReader
            | Reason::ConnectionLimit
            | Reason::TableFull
            | Reason::LeaseEnded
            | Reason::Collision
            | Reason::Shutdown
            | Reason::Internal => Self::Failed,
            _ => Self::Denied,
        }
    }
}
