//! Which nodes there are, as long as the relay runs.

use std::{collections::BTreeMap, future, sync::Arc, time::Duration};

use anyhow::Context as _;
use tokio::time::{sleep, timeout};
use tonic::Streaming;
use weir_proto::peer::{ChangeNotification, ChangeNotificationType};

use crate::{
    cluster::{Agents, Cluster},
    flows::ServerOptions,
    several::complain,
    target::Options,
    ways::{Way, Ways},
};

/// How often the cluster is asked which agents it has.
const LOOK: Duration = Duration::from_secs(15);
/// How long the first peers may take.
const FIRST: Duration = Duration::from_secs(10);
/// Peers that come this shortly after one another are taken together.
const TOGETHER: Duration = Duration::from_millis(200);
/// Wait before the peers are asked again.
const RETRY: Duration = Duration::from_secs(2);

/// What looks for nodes.
pub(super) enum Find {
    /// They were named.
    Named,
    /// This node's agent, and no other.
    Own,
    /// The agents of a cluster.
    Cluster(Box<Options>, Ways),
    /// An agent says which there are.
    Peers(Box<Peers>),
}

/// What an agent says of others.
pub(super) struct Peers {
    server: ServerOptions,
    ways: Ways,
    known: BTreeMap<String, Way>,
    changes: Option<Streaming<ChangeNotification>>,
}

// === impl Find ===

impl Find {
    pub(super) fn named(all: impl Iterator<Item = (String, ServerOptions)>) -> (Ways, Self) {
        let all = all.map(|(node, server)| (node, Way::Address(server)));
        (Ways::new(all.collect()), Self::Named)
    }

    pub(super) fn agents(options: &Options, mut agents: Agents) -> (Ways, Self) {
        agents.complain();
        let is_own = agents.found.iter().any(|agent| agent.node().is_none());
        let ways = Ways::of_agents(agents.found);
        let find = if is_own {
            Self::Own
        } else {
            Self::Cluster(Box::new(options.clone()), ways.clone())
        };
        (ways, find)
    }

    pub(super) async fn peers(server: ServerOptions) -> anyhow::Result<(Ways, Self)> {
        let ways = Ways::new(BTreeMap::new());
        let mut peers = Peers {
            server,
            ways: ways.clone(),
            known: BTreeMap::new(),
            changes: None,
        };
        timeout(FIRST, peers.first())
            .await
            .context("the agent of --peers named nobody in time")??;
        Ok((ways, Self::Peers(Box::new(peers))))
    }

    /// Keeps the nodes up to date, for ever.
    pub(super) async fn keep(self) {
        match self {
            Self::Named | Self::Own => future::pending().await,
            Self::Cluster(options, ways) => loop {
                sleep(LOOK).await;
                match look(&options).await {
                    Ok(all) => ways.set(all),
                    Err(error) => complain(None, &error),
                }
            },
            Self::Peers(mut peers) => loop {
                if let Err(error) = peers.next().await {
                    complain(None, &error.context("the agent of --peers"));
                    peers.changes = None;
                    sleep(RETRY).await;
                }
            },
        }
    }
}

async fn look(options: &Options) -> anyhow::Result<BTreeMap<String, Way>> {
    let cluster = Cluster::new(options).await?;
    let agents = cluster.agents(options.node.as_deref()).await?;
    let all = agents.found.into_iter().map(|agent| {
        let node = agent.node().unwrap_or_default().to_owned();
        (node, Way::Agent(Arc::new(agent)))
    });
    Ok(all.collect())
}

// === impl Peers ===

impl Peers {
    /// Waits for the first of them, and those that come with it.
    async fn first(&mut self) -> anyhow::Result<()> {
        while self.known.is_empty() {
            self.next().await?;
        }
        while let Ok(next) = timeout(TOGETHER, self.next()).await {
            next?;
        }
        Ok(())
    }

    /// Takes the next change.
    async fn next(&mut self) -> anyhow::Result<()> {
        if self.changes.is_none() {
            self.changes = Some(self.server.peers().await?);
            // All are named again: who is not is gone.
            self.known.clear();
        }
        let Some(changes) = &mut self.changes else {
            return Ok(());
        };
        let change = changes.message().await?.context("it ended the stream")?;
        match change.r#type() {
            ChangeNotificationType::PeerDeleted => {
                self.known.remove(&change.name);
            }
            ChangeNotificationType::PeerAdded | ChangeNotificationType::PeerUpdated => {
                let server = ServerOptions {
                    server: Some(change.address),
                    tls_server_name: change.tls.map(|tls| tls.server_name),
                    ..self.server.clone()
                };
                self.known.insert(change.name, Way::Address(server));
            }
            ChangeNotificationType::Unknown => {}
        }
        self.ways.set(self.known.clone());
        Ok(())
    }
}
