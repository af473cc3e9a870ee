//! How the servers of nodes are reached: agents that were found, or addresses that were named.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;
use tonic::transport::Channel;
use weir_hubble::relay::{Connect, Nodes, Unreachable};

use crate::{
    agent::{self, Agent},
    flows::ServerOptions,
};

/// One node's.
#[derive(Debug, Clone)]
pub(crate) enum Way {
    Agent(Arc<Agent>),
    Address(ServerOptions),
}

/// All nodes', which may change.
#[derive(Debug, Clone)]
pub(crate) struct Ways {
    all: Arc<Mutex<BTreeMap<String, Way>>>,
    nodes: watch::Sender<Nodes>,
}

// === impl Way ===

impl Way {
    /// Where it leads, for people.
    fn address(&self) -> String {
        match self {
            Self::Agent(_) => String::new(),
            Self::Address(server) => server.server.clone().unwrap_or_default(),
        }
    }
}

// === impl Ways ===

impl Ways {
    pub(crate) fn new(all: BTreeMap<String, Way>) -> Self {
        let ways = Self {
            all: Arc::default(),
            nodes: watch::Sender::default(),
        };
        ways.set(all);
        ways
    }

    /// To the agents that were found.
    pub(crate) fn of_agents(agents: Vec<Agent>) -> Self {
        let named = agents.into_iter().map(|agent| {
            let node = agent.node().unwrap_or_default().to_owned();
            (node, Way::Agent(Arc::new(agent)))
        });
        Self::new(named.collect())
    }

    /// Replaces them.
    pub(crate) fn set(&self, all: BTreeMap<String, Way>) {
        let nodes: Nodes = Arc::new(
            all.iter()
                .map(|(node, way)| (node.clone(), way.address()))
                .collect(),
        );
        *self.all() = all;
        self.nodes.send_if_modified(|before| {
            let is_new = *before != nodes;
            *before = nodes;
            is_new
        });
    }

    /// The nodes that there are at the time.
    pub(crate) fn nodes(&self) -> watch::Receiver<Nodes> {
        self.nodes.subscribe()
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<String, Way>> {
        // It is whole after each statement.
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connect for Ways {
    async fn connect(&self, node: &str) -> Result<Channel, Unreachable> {
        let way = self.all().get(node).cloned();
        let channel = match way {
            Some(Way::Agent(agent)) => agent.channel().await,
            Some(Way::Address(server)) => server.channel().await,
            None => Err(anyhow::anyhow!("it is gone")),
        };
        channel.map_err(|error| match error.downcast() {
            // Whoever is told of it is told the node.
            Ok(agent::Unreachable::Node { why, .. }) => Unreachable(why),
            Ok(other) => Unreachable(other.to_string()),
            Err(error) => Unreachable(format!("{error:#}")),
        })
    }
}
