//! The records of many nodes as those of one: the same API, so that clients need not care whom they ask.

mod merge;
mod read;
mod serve;

use std::{collections::BTreeMap, sync::Arc};

use tokio::sync::{mpsc, watch};
use tonic::transport::Channel;
use weir_proto::observer::GetFlowsRequest;
use weir_types::explain::{ExplainRequest, Explanation};

use crate::{
    explain,
    observer::{Answer, Viewer, answer::Sink},
    window::{Query, QueryError},
};
pub use serve::RelayServer;

/// Why a node's server cannot be asked.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct Unreachable(pub String);

/// How nodes are reached.
pub trait Connect: Send + Sync + 'static {
    /// A channel to a node's server.
    fn connect(&self, node: &str) -> impl Future<Output = Result<Channel, Unreachable>> + Send;
}

/// The nodes that there are, by name, with the addresses of their servers for people.
pub type Nodes = Arc<BTreeMap<String, String>>;

/// Asks all nodes.
#[derive(Debug)]
pub struct Relay<C> {
    connect: Arc<C>,
    nodes: watch::Receiver<Nodes>,
}

// === impl Relay ===

impl<C> Clone for Relay<C> {
    fn clone(&self) -> Self {
        Self {
            connect: self.connect.clone(),
            nodes: self.nodes.clone(),
        }
    }
}

impl<C: Connect> Relay<C> {
    /// Asks these nodes, whichever there are at the time.
    #[must_use]
    pub fn new(connect: C, nodes: watch::Receiver<Nodes>) -> Self {
        Self {
            connect: Arc::new(connect),
            nodes,
        }
    }

    /// The nodes that there are now.
    #[must_use]
    pub fn nodes(&self) -> Nodes {
        self.nodes.borrow().clone()
    }

    /// Flows of all nodes. What is recorded comes ordered by time; what is new in the order of its arrival, but for what
    /// arrives together. Of a node that cannot be reached a status tells, and while flows are followed it is tried again.
    ///
    /// # Errors
    /// When the request is not understood.
    pub fn flows(&self, request: GetFlowsRequest, viewer: Viewer) -> Result<Answer, QueryError> {
        let query = Query::new(&request)?;
        let (sink, answer) = Answer::new();
        let relay = self.clone();
        tokio::spawn(async move {
            // The client went away: there is nobody to tell.
            let _ = relay.answer(request, &query, &viewer, &sink).await;
        });
        Ok(answer)
    }

    /// What would become of a connection, as a node's server says it.
    ///
    /// # Errors
    /// Why it cannot be asked, or cannot say it.
    pub async fn explain(&self, node: &str, request: ExplainRequest) -> Result<Explanation, String> {
        let channel = self.connect.connect(node).await;
        let channel = channel.map_err(|error| format!("{node} cannot be reached: {error}"))?;
        explain::ask(channel, request).await
    }

    async fn answer(
        &self,
        request: GetFlowsRequest,
        query: &Query,
        viewer: &Viewer,
        sink: &Sink,
    ) -> Result<(), crate::observer::answer::Gone> {
        // The mask is applied here: times and namespaces of what nodes say are needed.
        let asked = GetFlowsRequest {
            field_mask: None,
            experimental: None,
            ..request
        };
        let out = merge::Out::new(query, viewer, sink);
        if query.follow {
            let (to, events) = mpsc::channel(merge::WAITING);
            merge::followed(self, asked, to, events, out).await
        } else {
            merge::recorded(self, asked, out).await
        }
    }
}
