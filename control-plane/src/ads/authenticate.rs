//! Who opens a stream.

use std::{net::SocketAddr, sync::Arc};

use tonic::metadata::MetadataMap;

/// An authenticated agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agent {
    /// The Kubernetes node that it runs on: it sees resources of this node and of none else.
    pub node: Arc<str>,
}

/// Why a stream is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The credentials are bad. The reason is for our log alone: it would tell an attacker how to do better.
    #[error("{0}")]
    Unauthenticated(String),
    /// They could not be checked now; the client may try again.
    #[error("credentials cannot be checked now: {0}")]
    Unavailable(String),
}

/// Decides who a caller is.
#[tonic::async_trait]
pub trait Authenticate: Send + Sync + 'static {
    /// The agent that sent these metadata from this address.
    async fn authenticate(&self, metadata: &MetadataMap, peer: Option<SocketAddr>) -> Result<Agent, Refusal>;
}
