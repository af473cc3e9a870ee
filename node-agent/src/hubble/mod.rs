//! Flows for Hubble's tools, and for `weir`.

mod peers;
mod tls;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    time::timeout,
};
use weir_hubble::{
    Origin,
    observer::{Page, Peers, Source},
    serve::Connections,
};

use crate::{agent::Agent, config::HubbleConfig, flows::FlowLog};
use tls::Tls;
pub use tls::TlsError;

/// How long a client may take for TLS.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Handshakes at once.
const HANDSHAKES: usize = 64;
/// Pause after a failure to accept, as when the agent has no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The records of this agent.
#[derive(Debug)]
pub struct Records {
    origin: Origin,
    node: String,
    started: Timestamp,
    flows: FlowLog,
    peers: watch::Receiver<Peers>,
}

/// The port for Hubble's tools, open.
#[derive(Debug)]
pub struct Port {
    listener: TcpListener,
    tls: Tls,
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
}

// === impl Port ===

impl Port {
    /// Opens the port. Its files are read now, so that what is wrong with them is said at the start.
    ///
    /// # Errors
    /// When it cannot be opened, or a file is missing or wrong.
    pub async fn open(config: &HubbleConfig) -> anyhow::Result<Self> {
        use anyhow::Context as _;
        let tls = Tls::new(config).context("hubble")?;
        let listener = TcpListener::bind(config.address).await;
        let listener =
            listener.with_context(|| format!("the port for Hubble {} cannot be opened", config.address))?;
        Ok(Self { listener, tls })
    }

    /// Serves clients, for ever.
    pub async fn serve(self, connections: Connections) {
        let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
        let tls = Arc::new(self.tls);
        loop {
            let (stream, peer) = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "accept failed on the port for Hubble");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(permit) = handshakes.clone().try_acquire_owned() else {
                // Whoever comes now is sent away at once: nobody waits because of strangers.
                continue;
            };
            let (tls, connections) = (tls.clone(), connections.clone());
            tokio::spawn(async move {
                let result = timeout(HANDSHAKE_TIMEOUT, handshake(&tls, stream)).await;
                drop(permit);
                match result {
                    Ok(Ok((stream, viewer))) => {
                        if !connections.take(stream, viewer).await {
                            tracing::warn!(%peer, "a client for flows is sent away: there are too many");
                        }
                    }
                    Ok(Err(error)) => refused(peer, &error.to_string()),
                    Err(_) => refused(peer, "the TLS handshake did not finish in time"),
                }
            });
        }
    }
}

fn refused(peer: SocketAddr, problem: &str) {
    tracing::info!(%peer, problem, "a client for flows is refused");
}

type Accepted = (
    tokio_rustls::server::TlsStream<TcpStream>,
    weir_hubble::observer::Viewer,
);

async fn handshake(tls: &Tls, stream: TcpStream) -> Result<Accepted, TlsError> {
    stream.set_nodelay(true)?;
    let accepted = tls.acceptor().accept(stream).await?;
    let viewer = tls.viewer(accepted.get_ref().1)?;
    Ok((accepted, viewer))
}

impl From<io::Error> for TlsError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}
