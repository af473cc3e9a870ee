//! `weir relay`: the flows of all nodes at one address.

mod control;
mod find;
mod map;

use std::{io, net::SocketAddr, path::PathBuf};

use anyhow::Context as _;
use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};
use weir_hubble::{
    certificate::Usage as Use,
    client_tls::Expected,
    port::Port,
    relay::{Relay as Merged, RelayServer},
    serve::Connections,
    tls::{Tls, TlsFiles},
};

use weir_control_client::Connection;

use crate::{
    cluster::Agents,
    flows::{Given, ServerOptions},
    target::{Options, Usage},
    ways::Ways,
};
use find::Find;

/// Serves the flows of all nodes at one address, by Hubble's API: `weir flows --server`, Hubble's command line and its UI are
/// clients.
///
/// Asks the agents that `weir flows` would ask, or those that are named. Nodes that cannot be reached are named to clients, and
/// tried again.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    weir relay                                      agents of the kubeconfig's cluster, at 127.0.0.1:4245\n  \
    weir relay --map                                and a map for browsers, at http://127.0.0.1:4246/\n  \
    weir relay --map '[::]:4246' --map-mtls --client me.hubble.weir.dev --tls-cert tls.pem --tls-key tls.key \\\n    \
        --tls-client-ca ca.pem\n  \
    weir relay --agent n1=unix:///run/weir/n1.sock --agent n2=10.0.0.2:4244 \\\n    \
        --agent-tls-ca ca.pem --agent-tls-cert relay.pem --agent-tls-key relay.key\n  \
    weir relay --peers weir-agent.weir-system.svc:4244 --agent-tls-ca ca.pem --agent-tls-cert relay.pem \\\n    \
        --agent-tls-key relay.key --listen '[::]:4245' --tls-cert tls.pem --tls-key tls.key --tls-client-ca ca.pem \\\n    \
        --client ui.hubble.weir.dev --client team-a.hubble.weir.dev=shop,cart\n  \
    weir relay --control weir-control.weir-system.svc:15012 --control-roots roots.pem --token token \\\n    \
        --peers weir-agent-flows.weir-system.svc:4244        in a pod, as the chart has it")]
pub(crate) struct Relay {
    /// Where clients ask. Without TLS it must be on loopback.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:4245")]
    listen: SocketAddr,
    /// Ask this node's agent there: NODE=HOST:PORT or NODE=unix:///PATH.
    #[arg(long = "agent", value_name = "NODE=ADDRESS", value_parser = node, conflicts_with = "peers")]
    agents: Vec<(String, String)>,
    /// Ask this agent which others there are, and then all of them.
    #[arg(long, value_name = "ADDRESS")]
    peers: Option<String>,
    /// Speak TLS to agents, and trust the roots in this PEM file.
    #[arg(long, value_name = "FILE")]
    agent_tls_ca: Option<PathBuf>,
    /// The PEM file with the relay's own certificate towards agents.
    #[arg(long, value_name = "FILE", requires_all = ["agent_tls_ca", "agent_tls_key"])]
    agent_tls_cert: Option<PathBuf>,
    /// The PEM file with its key.
    #[arg(long, value_name = "FILE", requires = "agent_tls_cert")]
    agent_tls_key: Option<PathBuf>,
    /// The name in the certificate of the agent of --peers, if another than the host.
    #[arg(long, value_name = "NAME", requires_all = ["agent_tls_ca", "peers"])]
    agent_tls_server_name: Option<String>,
    /// The PEM file with the certificate for clients. Read again when it changes.
    #[arg(long, value_name = "FILE", requires_all = ["tls_key", "tls_client_ca", "clients"])]
    tls_cert: Option<PathBuf>,
    /// The PEM file with its key.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// The PEM file with the roots that clients' certificates must chain to.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_client_ca: Option<PathBuf>,
    /// A DNS name in the certificate of a client that may ask, and for which namespaces: NAME or NAME=NAMESPACE,...
    #[arg(long = "client", value_name = "NAME", value_parser = client)]
    clients: Vec<Client>,
    #[command(flatten)]
    control: control::ControlOptions,
    #[command(flatten)]
    map: map::MapOptions,
}

type Client = (String, Option<Vec<String>>);

fn node(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((node, address)) if !node.is_empty() && !address.is_empty() => {
            Ok((node.to_owned(), address.to_owned()))
        }
        _ => Err("expected NODE=HOST:PORT or NODE=unix:///PATH".to_owned()),
    }
}

fn client(text: &str) -> Result<Client, String> {
    let (name, namespaces) = match text.split_once('=') {
        Some((name, namespaces)) => (name, Some(namespaces)),
        None => (text, None),
    };
    rustls_pki_types::DnsName::try_from(name.trim_start_matches("*.")).map_err(|_| "expected a DNS name")?;
    let namespaces = namespaces.map(|all| all.split(',').map(str::to_owned).collect::<Vec<_>>());
    if namespaces
        .as_ref()
        .is_some_and(|all| all.iter().any(String::is_empty))
    {
        return Err("expected names of namespaces, with commas between them".to_owned());
    }
    Ok((name.to_owned(), namespaces))
}

impl Relay {
    /// Whether agents are to be found: none are named.
    pub(crate) fn asks_agents(&self) -> bool {
        self.agents.is_empty() && self.peers.is_none()
    }

    /// Serves until it is stopped.
    pub(crate) async fn run(self, options: &Options, agents: Option<Agents>) -> anyhow::Result<()> {
        let control = self.control.connection();
        let tls = self.tls(control.as_ref())?;
        if tls.is_none() && !self.listen.ip().is_loopback() {
            return Err(Usage(format!(
                "--listen {}: without TLS the relay listens on loopback only; give --tls-cert, --tls-key, \
                 --tls-client-ca and --client, or --control and --client",
                self.listen
            ))
            .into());
        }
        let mut stop = stop_signals()?;
        let map_tls = if self.map.is_mutual() {
            self.tls(control.as_ref())?
        } else {
            None
        };
        let map = self.map.open(map_tls).await?;
        let (ways, find) = self.find(options, agents, control.as_ref()).await?;
        let port = Port::open(self.listen, tls).await;
        let port = port.with_context(|| format!("{} cannot be opened", self.listen))?;
        let address = port.address()?;
        let nodes = ways.nodes();
        let relay = Merged::new(ways, nodes);
        anstream::eprintln!(
            "weir: serving the flows of {} nodes at {address}",
            relay.nodes().len()
        );
        let map = map::serve(map, relay.clone());
        let (connections, serving) = Connections::relay(RelayServer::new(relay, env!("CARGO_PKG_VERSION")));
        let port = async {
            port.listen().await?.serve(connections).await;
            Ok::<_, io::Error>(())
        };
        tokio::select! {
            served = serving => served.context("flows are served no more")?,
            served = port => served.with_context(|| format!("{address} cannot be opened"))?,
            () = find.keep() => {}
            () = map => {}
            () = stop.stopped() => {}
        }
        Ok(())
    }

    fn tls(&self, control: Option<&Connection>) -> anyhow::Result<Option<Tls>> {
        if let Some(control) = control.filter(|_| !self.clients.is_empty()) {
            let held = control::keep(control, Use::Server);
            return Ok(Some(Tls::held(held, &self.clients)));
        }
        if self.tls_cert.is_none() && !self.clients.is_empty() {
            let problem = "--client: give --tls-cert, --tls-key and --tls-client-ca, or --control";
            return Err(Usage(problem.to_owned()).into());
        }
        let (Some(certificate), Some(key), Some(roots)) =
            (&self.tls_cert, &self.tls_key, &self.tls_client_ca)
        else {
            return Ok(None);
        };
        let files = TlsFiles {
            certificate: certificate.clone(),
            key: key.clone(),
            roots: roots.clone(),
            clients: self.clients.clone(),
        };
        Ok(Some(Tls::new(&files).map_err(|error| Usage(error.to_string()))?))
    }

    fn agent(&self, address: &str, server_name: Option<&str>) -> ServerOptions {
        ServerOptions {
            server: Some(address.to_owned()),
            tls_ca: self.agent_tls_ca.clone(),
            tls_cert: self.agent_tls_cert.clone(),
            tls_key: self.agent_tls_key.clone(),
            tls_server_name: server_name.map(str::to_owned),
            given: None,
        }
    }

    async fn find(
        &self,
        options: &Options,
        agents: Option<Agents>,
        control: Option<&Connection>,
    ) -> anyhow::Result<(Ways, Find)> {
        if let Some(peers) = &self.peers {
            let mut server = self.agent(peers, self.agent_tls_server_name.as_deref());
            server.given = control.map(|control| Given {
                held: control::keep(control, Use::Client),
                expected: Expected::AnyAgent,
            });
            return Find::peers(server, control.is_some()).await;
        }
        match agents {
            Some(agents) => Ok(Find::agents(options, agents)),
            None => {
                Ok(Find::named(self.agents.iter().map(|(node, address)| {
                    (node.clone(), self.agent(address, None))
                })))
            }
        }
    }
}

/// SIGINT and SIGTERM.
pub(crate) struct StopSignals(Signal, Signal);

/// To hear when the program is told to stop.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn stop_signals() -> io::Result<StopSignals> {
    Ok(StopSignals(
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
    ))
}

impl StopSignals {
    /// Waits for one of them.
    pub(crate) async fn stopped(&mut self) {
        tokio::select! {
            _ = self.0.recv() => {}
            _ = self.1.recv() => {}
        }
    }
}
