//! Which nodes there are, as long as the relay runs.

use std::{collections::BTreeMap, future, sync::Arc, time::Duration};

use anyhow::Context as _;
use tokio::time::{sleep, timeout};
use tonic::Streaming;
use weir_hubble::client_tls::Expected;
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
/// How long one agent is believed.
const ASK_AGAIN: Duration = Duration::from_secs(300);

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

    /// `patient`: an agent that cannot be asked yet is waited for, as where relay and agents start together.
    pub(super) async fn peers(server: ServerOptions, patient: bool) -> anyhow::Result<(Ways, Self)> {
        let ways = Ways::new(BTreeMap::new());
        let mut peers = Peers {
            server,
            ways: ways.clone(),
            known: BTreeMap::new(),
            changes: None,
        };
        let first = timeout(FIRST, peers.ask()).await;
        match first.unwrap_or_else(|_| Err(anyhow::anyhow!("it named nobody in time"))) {
            Err(error) if patient => complain(None, &error.context("the agent of --peers")),
            other => other.context("the agent of --peers")?,
        }
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
                if let Err(error) = peers.follow().await {
                    complain(None, &error.context("the agent of --peers"));
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
    /// Asks an agent for all of them. Those that were known stay until it has named all it knows: readers of nodes that are still
    /// there must not notice.
    async fn ask(&mut self) -> anyhow::Result<()> {
        let mut changes = self.server.peers().await?;
        let mut known = BTreeMap::new();
        while known.is_empty() {
            let change = changes.message().await?.context("it ended the stream")?;
            self.take(change, &mut known);
        }
        while let Ok(change) = timeout(TOGETHER, changes.message()).await {
            self.take(change?.context("it ended the stream")?, &mut known);
        }
        self.known = known;
        self.ways.set(self.known.clone());
        self.changes = Some(changes);
        Ok(())
    }

    /// Takes changes, until it is time to ask another agent: one whose own control plane is away does not know who came.
    async fn follow(&mut self) -> anyhow::Result<()> {
        let again = sleep(ASK_AGAIN);
        tokio::pin!(again);
        let Some(mut changes) = self.changes.take() else {
            return timeout(FIRST, self.ask())
                .await
                .context("it named nobody in time")?;
        };
        loop {
            let change = tokio::select! {
                change = changes.message() => change?.context("it ended the stream")?,
                () = &mut again => return Ok(()),
            };
            let mut known = std::mem::take(&mut self.known);
            self.take(change, &mut known);
            self.known = known;
            self.ways.set(self.known.clone());
        }
    }

    /// Takes a change.
    fn take(&self, change: ChangeNotification, known: &mut BTreeMap<String, Way>) {
        match change.r#type() {
            ChangeNotificationType::PeerDeleted => {
                known.remove(&change.name);
            }
            ChangeNotificationType::PeerAdded | ChangeNotificationType::PeerUpdated => {
                let said = change.tls.map(|tls| tls.server_name);
                let mut server = ServerOptions {
                    server: Some(change.address),
                    tls_server_name: said,
                    ..self.server.clone()
                };
                if let Err(error) = own_name(&change.name, &mut server) {
                    complain(Some(&change.name), &error);
                    known.remove(&change.name);
                    return;
                }
                known.insert(change.name, Way::Address(server));
            }
            ChangeNotificationType::Unknown => {}
        }
    }
}

/// Sees that whoever is connected to as a node is that node by its certificate, whatever another says of it. With certificates of
/// the user's own, names are the user's own too.
fn own_name(node: &str, server: &mut ServerOptions) -> anyhow::Result<()> {
    let Some(given) = &mut server.given else {
        return Ok(());
    };
    let own = weir_types::hubble::agent(node)?;
    anyhow::ensure!(
        server.tls_server_name.as_ref() == Some(&own),
        "it is not asked: its name is said to be {}, and has to be {own}",
        server.tls_server_name.as_deref().unwrap_or("none")
    );
    given.expected = Expected::Name;
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::sync::watch;

    use super::*;
    use crate::flows::Given;

    #[test]
    fn a_node_is_asked_under_its_own_name_alone() {
        let given = Given {
            held: watch::channel(None).1,
            expected: Expected::AnyAgent,
        };
        let named = |name: &str, given: Option<Given>| ServerOptions {
            tls_server_name: Some(name.to_owned()),
            given,
            ..ServerOptions::default()
        };
        let mut own = named("n-1.hubble.weir.dev", Some(given.clone()));
        own_name("n.1", &mut own).unwrap();
        assert_eq!(own.given.unwrap().expected, Expected::Name);
        for name in ["n-2.hubble.weir.dev", "relay.hubble.weir.dev", ""] {
            let error = own_name("n.1", &mut named(name, Some(given.clone()))).unwrap_err();
            assert!(
                error.to_string().contains("has to be n-1.hubble.weir.dev"),
                "{error}"
            );
        }
        own_name("n.1", &mut named("whatever.example.org", None)).unwrap();
    }
}
