//! The connection to the control plane: TLS by the roots in a file, and calls that show a token from another.
//!
//! Both files are read when they are needed: the kubelet replaces them long before what is in them ends.
#![forbid(unsafe_code)]

mod address;
mod error;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::{
    Request,
    metadata::MetadataValue,
    transport::{Channel, Endpoint, Uri},
};

pub use address::Address;
pub use error::ControlError;

/// How long connecting may take, with name resolution and TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a silent connection is asked whether it is alive, and how long it may take to say so: HBONE's figures.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(20));
/// Most bytes of a token: those of service accounts have about 1,500.
const MAX_TOKEN: u64 = 16 * 1024;
/// Most bytes of the file with roots.
const MAX_ROOTS: u64 = 1 << 20;

/// Where the control plane is, and how a client shows who it is.
#[derive(Debug, Clone)]
pub struct Connection {
    address: Address,
    roots: PathBuf,
    token: PathBuf,
    channel: Channel,
}

// === impl Connection ===

impl Connection {
    /// To this address; the files hold the roots that its certificate must chain to, and the token. Connects when it is first
    /// used, and again whenever the connection was lost. Needs a runtime.
    #[must_use]
    pub fn new(address: Address, roots: PathBuf, token: PathBuf) -> Self {
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
            channel: endpoint.connect_with_connector_lazy(connector),
            address,
            roots,
            token,
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

    /// For a client of one of its services.
    #[must_use]
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// A request that shows the token.
    ///
    /// # Errors
    /// When there is none.
    pub async fn request<T>(&self, message: T) -> Result<Request<T>, ControlError> {
        let path = || self.token.clone();
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
        let name = address.server_name()?;
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
