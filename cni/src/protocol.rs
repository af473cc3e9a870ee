//! What plugin and agent say to each other: one line of JSON each way over a Unix socket. ADD's carries the descriptor of the
//! pod's network namespace beside its first byte.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::{args, decide::Switch};

/// Where the agent listens.
pub const DEFAULT_SOCKET: &str = "/run/weir/cni.sock";
/// What the agent leaves for when it is away.
pub const DEFAULT_STATE_FILE: &str = "/run/weir/cni-state.json";
/// Largest request: GC names every sandbox of the node, some 100 bytes each.
pub const MAX_REQUEST: usize = 256 << 10;
/// Largest response.
pub const MAX_RESPONSE: usize = 16 << 10;
/// Largest state file: namespaces of at most 63 characters each, several thousand of them.
pub const MAX_STATE: u64 = 4 << 20;
/// Most addresses of a pod: one a family is usual.
pub const MAX_ADDRESSES: usize = 16;

/// What the plugin wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "lowercase", deny_unknown_fields)]
pub enum Request {
    /// A pod's network is ready: answer when the agent has the pod.
    Add(Sandbox),
    /// Is what ADD said still so?
    Check(Sandbox),
    /// A sandbox goes.
    Del(SandboxRef),
    /// All other sandboxes are gone.
    Gc {
        /// Those that are there.
        valid: Vec<SandboxRef>,
    },
}

/// A pod's sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sandbox {
    /// Kubernetes' UID of the pod.
    pub uid: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The sandbox's container.
    pub container_id: String,
    /// The interface in it.
    pub ifname: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The pod's own switch, where the runtime passes annotations on.
    #[serde(default)]
    pub switch: Option<Switch>,
    /// Whether its namespace must start without the mesh, unless it is known to be in it.
    #[serde(default)]
    pub excluded: bool,
}

/// A sandbox, as the runtime calls it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SandboxRef {
    /// The sandbox's container.
    pub container_id: String,
    /// The interface in it.
    pub ifname: String,
}

/// The agent's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "camelCase")]
pub enum Response {
    /// The kernel has the pod: it is captured, or observed.
    Enrolled,
    /// The pod is not in the mesh.
    NotInMesh,
    /// Done, for DEL and GC.
    Done,
    /// Not now.
    Error {
        /// Why, and what to do.
        reason: String,
    },
}

impl Sandbox {
    /// What is wrong with it, if something is. What arrives is checked, whoever may write to the socket.
    #[must_use]
    pub fn problem(&self) -> Option<&'static str> {
        if !args::is_uid(&self.uid) {
            Some("uid: expected a pod's UID")
        } else if !args::is_name(&self.namespace) || !args::is_name(&self.name) {
            Some("namespace, name: expected Kubernetes names")
        } else if !args::is_container_id(&self.container_id) || !args::is_ifname(&self.ifname) {
            Some("containerId, ifname: expected a container's id and an interface")
        } else if self.addresses.is_empty() || self.addresses.len() > MAX_ADDRESSES {
            Some("addresses: expected 1 to 16")
        } else if self
            .addresses
            .iter()
            .any(|own| own.is_unspecified() || own.is_loopback() || own.is_multicast())
        {
            Some("addresses: expected unicast addresses")
        } else {
            None
        }
    }

    /// The sandbox, as the runtime calls it.
    #[must_use]
    pub fn reference(&self) -> SandboxRef {
        SandboxRef {
            container_id: self.container_id.clone(),
            ifname: self.ifname.clone(),
        }
    }
}
