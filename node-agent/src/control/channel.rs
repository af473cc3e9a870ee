//! The connection to the control plane.

use std::{
    fmt,
    net::IpAddr,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use serde::Deserialize;
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::{
    Request,
    metadata::MetadataValue,
    transport::{Channel, Endpoint, Uri},
};

use weir_proto::ResourceType;

use super::{ControlError, local::LocalPods};
use crate::config::{ControlPlaneConfig, ControlPlaneKind};

/// How long connecting may take, with name resolution and TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the address of the Service in the environment may take: one that nobody has any more mostly swallows what is sent.
const SERVICE_TIMEOUT: Duration = Duration::from_secs(3);
/// How often a silent connection is asked whether it is alive, and how long it may take to say so: HBONE's figures.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(20));
/// Most bytes of a token: those of service accounts have about 1,500.
const MAX_TOKEN: u64 = 16 * 1024;
/// Most bytes of the file with roots.
const MAX_ROOTS: u64 = 1 << 20;

/// A host and a port.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Address {
    host: String,
    port: u16,
}

/// Where the control plane is, and how the agent shows who it is.
#[derive(Debug, Clone)]
pub struct ControlPlane {
    address: Address,
    roots: PathBuf,
    token: PathBuf,
    cluster: String,
    kind: ControlPlaneKind,
    pod_logs: PathBuf,
    channel: Channel,
}

// === impl Address ===

impl FromStr for Address {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let expected = "expected a host and a port, as weir-control.weir-system.svc:15012";
        let (host, port) = text.rsplit_once(':').ok_or(expected)?;
        let host = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host);
        ServerName::try_from(host).map_err(|_| expected)?;
        match port.parse() {
            Ok(port) if port != 0 => Ok(Self {
                host: host.to_owned(),
                port,
            }),
            _ => Err(expected),
        }
    }
}

impl Address {
    /// Connects to the Service's address, as the kubelet put it into the environment, or by name. Pods that resolve names may
    /// themselves have to wait until the agent is ready.
    async fn connect(&self) -> std::io::Result<TcpStream> {
        if let Some(address) = self.service(|name| std::env::var(name).ok()) {
            match timeout(SERVICE_TIMEOUT, TcpStream::connect((address, self.port))).await {
                Ok(Ok(stream)) => return Ok(stream),
                // The Service may have been made anew since this agent started.
                _ => tracing::debug!(%address, "the Service's address does not answer"),
            }
        }
        TcpStream::connect((self.host.as_str(), self.port)).await
    }

    /// The address of the Service of this name, if the host is one: `NAME_SERVICE_HOST` in a pod of its namespace.
    fn service(&self, variable: impl Fn(&str) -> Option<String>) -> Option<IpAddr> {
        let (service, rest) = self.host.split_once('.')?;
        let domain = rest.split_once('.').map(|(_, domain)| domain);
        if !domain.is_some_and(|domain| domain == "svc" || domain.starts_with("svc.")) {
            return None;
        }
        let name = service.to_uppercase().replace('-', "_");
        variable(&format!("{name}_SERVICE_HOST"))?.parse().ok()
    }
}

impl TryFrom<String> for Address {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

// === impl ControlPlane ===

impl ControlPlane {
    /// The control plane of a configuration. Connects when it is first used, and again whenever the connection was lost; the
    /// roots are read each time. Needs a runtime.
    #[must_use]
    pub fn new(config: &ControlPlaneConfig) -> Self {
        let (address, roots) = (config.address.value.clone(), config.roots.clone());
        // The connector knows where to go: this is what requests say in `:authority`.
        let endpoint = Endpoint::from(Uri::from_static("https://weir-control"))
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEPALIVE.0)
            .keep_alive_timeout(KEEPALIVE.1)
            .keep_alive_while_idle(true)
            .tcp_nodelay(true);
        let connector = {
            let (address, roots) = (address.clone(), roots.clone());
            tower::service_fn(move |_: Uri| {
                let (address, roots) = (address.clone(), roots.clone());
                async move { connect(&address, &roots).await.map(TokioIo::new) }
            })
        };
        Self {
            address,
            roots,
            token: config.token.clone(),
            cluster: config.cluster.clone(),
            kind: config.kind,
            pod_logs: config.pod_logs.clone(),
            channel: endpoint.connect_with_connector_lazy(connector),
        }
    }

    /// Where it is.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// The file with the roots that its certificate must chain to.
    #[must_use]
    pub fn roots(&self) -> &Path {
        &self.roots
    }

    /// The types of resources that it serves.
    pub(super) fn kinds(&self) -> &'static [ResourceType] {
        match self.kind {
            ControlPlaneKind::Weir => &ResourceType::ALL,
            ControlPlaneKind::Istiod => &[ResourceType::Address, ResourceType::Authorization],
        }
    }

    /// The type that there is least of.
    pub(super) fn least(&self) -> ResourceType {
        match self.kind {
            ControlPlaneKind::Weir => ResourceType::Revocations,
            ControlPlaneKind::Istiod => ResourceType::Authorization,
        }
    }

    /// What finds the pods of this node, if the control plane does not say which they are.
    pub(super) fn local_pods(&self) -> Option<LocalPods> {
        match self.kind {
            ControlPlaneKind::Weir => None,
            ControlPlaneKind::Istiod => Some(LocalPods::new(&self.pod_logs)),
        }
    }

    /// Whether it takes reports of what is enrolled, and writes them to the cluster.
    #[must_use]
    pub fn takes_reports(&self) -> bool {
        self.kind == ControlPlaneKind::Weir
    }

    pub(super) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// A request that shows who the agent is.
    pub(super) async fn request<T>(&self, message: T) -> Result<Request<T>, ControlError> {
        let path = || self.token.clone();
        // Read each time: the kubelet replaces it long before it expires.
        let text = read(&self.token, MAX_TOKEN).await?;
        let text = String::from_utf8(text).map_err(|_| ControlError::NoToken { path: path() })?;
        let bearer = format!("Bearer {}", text.trim());
        let mut value: MetadataValue<_> = match bearer.parse() {
            Ok(value) if !text.trim().is_empty() => value,
            _ => return Err(ControlError::NoToken { path: path() }),
        };
        value.set_sensitive(true);
        let mut request = Request::new(message);
        request.metadata_mut().insert("authorization", value);
        if let Ok(cluster) = self.cluster.parse() {
            request.metadata_mut().insert("clusterid", cluster);
        }
        Ok(request)
    }
}

async fn read(path: &Path, most: u64) -> Result<Vec<u8>, ControlError> {
    use tokio::io::AsyncReadExt as _;
    let error = |source| ControlError::File {
        path: path.to_owned(),
        source,
    };
    let file = tokio::fs::File::open(path).await.map_err(error)?;
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes).await.map_err(error)?;
    Ok(bytes)
}

async fn connect(address: &Address, roots: &Path) -> Result<TlsStream<TcpStream>, ControlError> {
    let config = client_config(roots).await?;
    let connect = async {
        let socket = address.connect().await?;
        socket.set_nodelay(true)?;
        let name = ServerName::try_from(address.host.clone()).map_err(std::io::Error::other)?;
        TlsConnector::from(Arc::new(config)).connect(name, socket).await
    };
    let connected = tokio::time::timeout(CONNECT_TIMEOUT, connect).await;
    connected
        .map_err(|_| ControlError::Timeout)?
        .map_err(ControlError::Connect)
}

async fn client_config(path: &Path) -> Result<ClientConfig, ControlError> {
    let text = read(path, MAX_ROOTS).await?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&text).flatten() {
        roots.add(certificate)?;
    }
    if roots.is_empty() {
        return Err(ControlError::NoRoots {
            path: path.to_owned(),
        });
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_services_address_is_found_without_dns() {
        let variable = |name: &str| (name == "WEIR_CONTROL_SERVICE_HOST").then(|| "10.96.0.7".to_owned());
        let service = |text: &str| text.parse::<Address>().unwrap().service(variable);
        let expected = Some("10.96.0.7".parse().unwrap());
        assert_eq!(service("weir-control.weir-system.svc:15012"), expected);
        assert_eq!(
            service("weir-control.weir-system.svc.cluster.local:15012"),
            expected
        );
        for other in [
            "istiod.istio-system.svc:15012",
            "weir-control.example.org:15012",
            "weir-control:1",
            "10.0.0.1:1",
        ] {
            assert_eq!(service(other), None, "{other}");
        }
    }

    #[test]
    fn an_address_is_a_host_and_a_port() {
        for text in [
            "weir-control.weir-system.svc:15012",
            "10.0.0.1:1",
            "[fd00::1]:15012",
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "host",
            "host:",
            "host:0",
            "host:65536",
            ":15012",
            "ho st:1",
            "https://host:1",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }
}
