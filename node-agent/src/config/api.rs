//! The section of the local API.

use std::{net::SocketAddr, path::PathBuf};

use schemars::JsonSchema;
use serde::Deserialize;

/// The local API.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ApiConfig {
    /// Path of the Unix socket, made with mode 0600. It also answers Hubble's tools: `hubble observe --server unix:///run/weir/agent.sock`.
    pub socket: PathBuf,
    /// The number of a group whose members may ask too: the socket's mode is then 0660.
    pub group: Option<u32>,
    /// Address and port on loopback for the same, for where the agent has a network namespace of its own: whoever reaches it
    /// may ask. Off if absent.
    pub address: Option<SocketAddr>,
}

impl Default for ApiConfig {
    fn default() -> Self {
        Self {
            socket: PathBuf::from(weir_types::api::DEFAULT_SOCKET),
            group: None,
            address: None,
        }
    }
}
