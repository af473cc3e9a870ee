//! Flows for Hubble's tools, and for `weir`.

mod certificate;
mod peers;

use std::sync::Arc;

use anyhow::Context as _;
use jiff::Timestamp;
use tokio::sync::watch;
use weir_hubble::{
    Origin,
    observer::{Page, Peers, Source},
    port::Port,
    serve::Connections,
    tls::{Clients, Tls, TlsFiles},
};

use weir_types::explain::{ExplainRequest, Explanation};

use crate::{
    agent::Agent,
    config::{HubbleConfig, HubbleFiles},
    explain,
    flows::FlowLog,
    node::Node,
};
pub use certificate::OwnCertificate;

/// The records of this agent.
pub struct Records {
    origin: Origin,
    node: String,
    started: Timestamp,
    flows: FlowLog,
    peers: watch::Receiver<Peers>,
    of: Arc<Node>,
}

// === impl Records ===

impl Records {
    /// What an agent records. Looks after the peers for as long as the runtime runs.
    #[must_use]
    pub fn new(agent: &Arc<Agent>, config: Option<&HubbleConfig>) -> Self {
        Self {
            origin: Origin {
                cluster: String::new(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                run: rand::random(),
            },
            node: agent.node.name.clone(),
            started: agent.started,
            flows: agent.node.flows.clone(),
            of: agent.node.clone(),
            peers: peers::watch(agent, config),
        }
    }
}

impl Source for Records {
    fn origin(&self) -> &Origin {
        &self.origin
    }

    fn node(&self) -> &str {
        &self.node
    }

    fn started(&self) -> Timestamp {
        self.started
    }

    fn capacity(&self) -> usize {
        self.flows.capacity()
    }

    fn range(&self) -> (u64, u64) {
        (self.flows.oldest(), self.flows.recorded())
    }

    fn page(&self, from: u64, most: usize) -> Page {
        let page = self.flows.page(from, most);
        Page {
            flows: page.flows,
            lost: page.lost,
            next: page.next,
        }
    }

    fn watch(&self) -> watch::Receiver<u64> {
        self.flows.watch()
    }

    fn lost(&self) -> u64 {
        self.flows.lost()
    }

    fn peers(&self) -> watch::Receiver<Peers> {
        self.peers.clone()
    }

    fn explain(&self, request: &ExplainRequest) -> Result<Explanation, String> {
        explain::explain(&self.of, request).map_err(|error| error.to_string())
    }
}

/// Takes the port. Files are read now, so that what is wrong with them is said at the start; a certificate from the control plane
/// is waited for by [`Port::listen`].
///
/// # Errors
/// When it cannot be had, or a file is missing or wrong.
pub async fn open(config: &HubbleConfig, own: Option<&OwnCertificate>) -> anyhow::Result<Port> {
    let clients: Clients = config
        .clients
        .iter()
        .map(|client| (client.name.clone(), client.namespaces.clone()))
        .collect();
    let tls = match (config.files(), own) {
        (
            Some(HubbleFiles {
                certificate,
                key,
                roots,
            }),
            _,
        ) => {
            let files = TlsFiles {
                certificate: certificate.clone(),
                key: key.clone(),
                roots: roots.clone(),
                clients,
            };
            Tls::new(&files).context("hubble")?
        }
        (None, Some(own)) => Tls::held(own.held(), &clients),
        (None, None) => anyhow::bail!("there is nobody to give the port for flows a certificate"),
    };
    let port = Port::open(config.address, Some(tls)).await;
    port.with_context(|| format!("the port for flows {} cannot be opened", config.address))
}

/// Serves clients as soon as there is a certificate, for ever.
pub async fn serve(port: Port, connections: Connections) {
    match port.listen().await {
        Ok(port) => port.serve(connections).await,
        Err(error) => tracing::error!(%error, "the port for flows cannot be opened"),
    }
}
