//! A server of flows that the user names: an agent, a relay, or any other that speaks Hubble's API.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use clap::Args;
use rand::seq::SliceRandom as _;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _};
use tokio::{
    net::{TcpStream, UnixStream, lookup_host},
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tonic::{Streaming, transport::Channel};
use weir_hubble::{
    certificate::Held,
    client_tls::{Expected, client},
};
use weir_proto::{
    observer::{GetFlowsRequest, GetFlowsResponse, observer_client::ObserverClient},
    peer::{ChangeNotification, NotifyRequest, peer_client::PeerClient},
};

use crate::target::Usage;

/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(10);
/// How long one address may take, where there may be others.
const CONNECT_ONE: Duration = Duration::from_secs(3);

/// Where flows are asked for.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Another server")]
pub(crate) struct ServerOptions {
    /// Ask this server, as a relay: HOST:PORT or unix:///PATH.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) server: Option<String>,
    /// Use TLS, and trust the roots in this PEM file.
    #[arg(long, value_name = "FILE", requires = "server")]
    pub(crate) tls_ca: Option<PathBuf>,
    /// The PEM file with the client's own certificate.
    #[arg(long, value_name = "FILE", requires_all = ["tls_ca", "tls_key"])]
    pub(crate) tls_cert: Option<PathBuf>,
    /// The PEM file with its key.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub(crate) tls_key: Option<PathBuf>,
    /// The name in the server's certificate, if another than the host.
    #[arg(long, value_name = "NAME", requires = "tls_ca")]
    pub(crate) tls_server_name: Option<String>,
    /// A certificate from the control plane, in place of the files.
    #[arg(skip)]
    pub(crate) given: Option<Given>,
}

/// A certificate from the control plane, and who the server is to be.
#[derive(Debug, Clone)]
pub(crate) struct Given {
    /// The certificate, once there is one.
    pub(crate) held: Held,
    /// Whom it is shown to.
    pub(crate) expected: Expected,
}

impl ServerOptions {
    /// Asks for flows.
    ///
    /// # Errors
    /// When the server cannot be reached, or refuses.
    pub(crate) async fn flows(
        &self,
        request: GetFlowsRequest,
    ) -> anyhow::Result<Streaming<GetFlowsResponse>> {
        let answer = self
            .client()
            .await?
            .get_flows(weir_hubble::form::own(request))
            .await;
        Ok(answer
            .map_err(|status| crate::agent::refusal(&status))?
            .into_inner())
    }

    /// A client of the server.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub(crate) async fn client(&self) -> anyhow::Result<ObserverClient<Channel>> {
        Ok(weir_hubble::client::observer(self.channel().await?))
    }

    /// What the server says of others.
    ///
    /// # Errors
    /// When it cannot be reached, or says nothing of them.
    pub(crate) async fn peers(&self) -> anyhow::Result<Streaming<ChangeNotification>> {
        let mut client = PeerClient::new(self.channel().await?);
        let answer = client.notify(NotifyRequest {}).await;
        Ok(answer
            .map_err(|status| crate::agent::refusal(&status))?
            .into_inner())
    }

    pub(crate) async fn channel(&self) -> anyhow::Result<Channel> {
        let server = self.server.as_deref().unwrap_or_default();
        timeout(CONNECT, self.connect(server))
            .await
            .map_err(|_| anyhow::anyhow!("{server}: no connection within {CONNECT:?}"))?
            .with_context(|| server.to_owned())
    }

    async fn connect(&self, server: &str) -> anyhow::Result<Channel> {
        if let Some(path) = server.strip_prefix("unix://") {
            return Ok(weir_hubble::client::channel(UnixStream::connect(path).await?).await?);
        }
        let Some((host, _)) = server.rsplit_once(':') else {
            return Err(Usage("expected HOST:PORT or unix:///PATH".to_owned()).into());
        };
        let stream = connect(server).await?;
        stream.set_nodelay(true)?;
        let config = match (&self.given, &self.tls_ca) {
            (Some(given), _) => given.tls()?,
            (None, Some(roots)) => self.tls(roots)?,
            (None, None) => return Ok(weir_hubble::client::channel(stream).await?),
        };
        let name = self.tls_server_name.as_deref().unwrap_or(host);
        let name = ServerName::try_from(name.trim_matches(['[', ']']).to_owned())
            .map_err(|_| Usage(format!("'{name}' is no name of a server")))?;
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
        Ok(weir_hubble::client::channel(stream).await?)
    }

    fn tls(&self, roots: &PathBuf) -> anyhow::Result<ClientConfig> {
        let mut trusted = RootCertStore::empty();
        for root in certificates(roots)? {
            trusted.add(root)?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(trusted);
        let mut config = match (&self.tls_cert, &self.tls_key) {
            (Some(certificate), Some(key)) => {
                let private = PrivateKeyDer::from_pem_file(key)
                    .map_err(|error| Usage(format!("{}: {error}", key.display())))?;
                builder.with_client_auth_cert(certificates(certificate)?, private)?
            }
            _ => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }
}

// === impl Given ===

impl Given {
    fn tls(&self) -> anyhow::Result<ClientConfig> {
        let held = self.held.borrow().clone();
        let held = held.context("there is no certificate from the control plane yet")?;
        Ok(client(&held, self.expected)?)
    }
}

/// Connects to one of a name's addresses, in no order: those of a Service without an address of its own are all of its pods',
/// and one that went a moment ago does not answer.
async fn connect(server: &str) -> anyhow::Result<TcpStream> {
    let mut addresses: Vec<_> = lookup_host(server).await?.collect();
    addresses.shuffle(&mut rand::rng());
    let mut last = anyhow::anyhow!("the name has no address");
    for address in addresses {
        match timeout(CONNECT_ONE, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = error.into(),
            Err(_) => last = anyhow::anyhow!("{address} does not answer"),
        }
    }
    Err(last)
}

fn certificates(path: &PathBuf) -> Result<Vec<CertificateDer<'static>>, Usage> {
    let wrong = |problem: String| Usage(format!("{}: {problem}", path.display()));
    let found = CertificateDer::pem_file_iter(path).map_err(|error| wrong(error.to_string()))?;
    let all = found
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| wrong(error.to_string()))?;
    if all.is_empty() {
        return Err(wrong("expected a certificate, in PEM form".to_owned()));
    }
    Ok(all)
}
