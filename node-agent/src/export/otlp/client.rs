//! The connection to the collector.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::{
    logs::v1::{ExportLogsServiceRequest, logs_service_client::LogsServiceClient},
    trace::v1::{ExportTraceServiceRequest, trace_service_client::TraceServiceClient},
};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use tokio::{io::AsyncReadExt as _, net::TcpStream};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataKey, MetadataValue},
    transport::{Channel, Endpoint, Uri},
};

use crate::config::{OtlpConfig, OtlpEndpoint, otlp_header};

/// How often a silent connection is asked whether it is alive, and how long it may take to say so: HBONE's figures.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(20));
/// Most bytes of an answer: a number, and a sentence.
const MOST_ANSWER: usize = 64 << 10;
/// Most bytes of a file of headers.
const MOST_HEADERS: u64 = 16 << 10;
/// Most bytes of the file with roots.
const MOST_ROOTS: u64 = 1 << 20;

/// A name and a value.
type Header = (MetadataKey<Ascii>, MetadataValue<Ascii>);

/// Why an export failed. The collector's side is [`ExportError::Status`].
#[derive(Debug, thiserror::Error)]
pub(super) enum ExportError {
    /// The collector refused, or could not be reached.
    #[error("{}: {}{}", .0.code(), .0.message(), cause(.0))]
    Status(Box<Status>),
    /// It did not answer in time.
    #[error("no answer in time")]
    Timeout,
    /// The file of headers cannot be read. May be put right.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A collector. Connects when it is first used, and again whenever the connection was lost.
#[derive(Debug, Clone)]
pub(super) struct Client {
    endpoint: Arc<OtlpEndpoint>,
    channel: Channel,
    headers: Arc<[Header]>,
    headers_file: Option<Arc<Path>>,
    timeout: Duration,
}

// === impl ExportError ===

impl From<Status> for ExportError {
    fn from(status: Status) -> Self {
        Self::Status(Box::new(status))
    }
}

/// What is behind a status that the transport made: its own text is `transport error`.
fn cause(status: &Status) -> String {
    let mut text = String::new();
    let mut error = std::error::Error::source(status);
    while let Some(own) = error {
        text = format!(": {own}");
        error = own.source();
    }
    text
}

// === impl Client ===

impl Client {
    /// Needs a runtime.
    pub(super) fn new(config: &OtlpConfig) -> Self {
        let endpoint = Arc::new(config.endpoint.clone());
        let roots: Option<Arc<Path>> = config.roots.as_deref().map(Arc::from);
        let connector = {
            let endpoint = endpoint.clone();
            tower::service_fn(move |_: Uri| {
                let (endpoint, roots) = (endpoint.clone(), roots.clone());
                async move { connect(&endpoint, roots.as_deref()).await }
            })
        };
        // What requests say in `:authority`; the connector knows where to go.
        let authority =
            Uri::try_from(endpoint.to_string()).unwrap_or_else(|_| Uri::from_static("http://collector"));
        let channel = Endpoint::from(authority)
            .connect_timeout(config.timeout.0)
            .http2_keep_alive_interval(KEEPALIVE.0)
            .keep_alive_timeout(KEEPALIVE.1)
            .tcp_nodelay(true)
            .connect_with_connector_lazy(connector);
        let headers = config.headers.iter();
        Self {
            endpoint,
            channel,
            headers: headers
                .filter_map(|(name, value)| otlp_header(name, value))
                .collect(),
            headers_file: config.headers_file.as_deref().map(Arc::from),
            timeout: config.timeout.0,
        }
    }

    /// Where it is.
    pub(super) fn endpoint(&self) -> &OtlpEndpoint {
        &self.endpoint
    }

    /// How long one export may take.
    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    pub(super) async fn logs(&self, own: ExportLogsServiceRequest) -> Result<(u64, String), ExportError> {
        let request = self.request(own).await?;
        let mut client = LogsServiceClient::new(self.channel.clone()).max_decoding_message_size(MOST_ANSWER);
        let partial = client
            .export(request)
            .await?
            .into_inner()
            .partial_success
            .unwrap_or_default();
        Ok((rejected(partial.rejected_log_records), partial.error_message))
    }

    pub(super) async fn spans(&self, own: ExportTraceServiceRequest) -> Result<(u64, String), ExportError> {
        let request = self.request(own).await?;
        let mut client = TraceServiceClient::new(self.channel.clone()).max_decoding_message_size(MOST_ANSWER);
        let partial = client
            .export(request)
            .await?
            .into_inner()
            .partial_success
            .unwrap_or_default();
        Ok((rejected(partial.rejected_spans), partial.error_message))
    }

    async fn request<T>(&self, message: T) -> Result<Request<T>, ExportError> {
        let mut request = Request::new(message);
        request.set_timeout(self.timeout);
        let metadata = request.metadata_mut();
        for (name, value) in self.headers.iter().cloned() {
            metadata.insert(name, value);
        }
        if let Some(path) = &self.headers_file {
            let file = |source| ExportError::File {
                path: path.to_path_buf(),
                source,
            };
            for (name, value) in headers(&read(path, MOST_HEADERS).await.map_err(file)?).map_err(file)? {
                metadata.insert(name, value);
            }
        }
        Ok(request)
    }
}

/// Nothing, or less, is nothing.
fn rejected(count: i64) -> u64 {
    u64::try_from(count).unwrap_or_default()
}

/// The headers of a file: `NAME: VALUE` in each line that is not empty.
fn headers(text: &[u8]) -> io::Result<Vec<Header>> {
    let wrong = || {
        io::Error::new(
            io::ErrorKind::InvalidData,
            "expected a line 'NAME: VALUE' for each header",
        )
    };
    let text = std::str::from_utf8(text).map_err(|_| wrong())?;
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    lines
        .map(|line| {
            let (name, value) = line.split_once(':').ok_or_else(wrong)?;
            otlp_header(name.trim(), value.trim()).ok_or_else(wrong)
        })
        .collect()
}

async fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = tokio::fs::File::open(path).await?;
    file.take(most).read_to_end(&mut bytes).await?;
    Ok(bytes)
}

/// A connection with TLS, or without.
async fn connect(endpoint: &OtlpEndpoint, roots: Option<&Path>) -> io::Result<TokioIo<Io>> {
    let socket = TcpStream::connect((endpoint.host().as_str(), endpoint.port)).await?;
    socket.set_nodelay(true)?;
    if !endpoint.tls {
        return Ok(TokioIo::new(Box::pin(socket)));
    }
    let roots = roots.ok_or_else(|| io::Error::other("there are no roots to check the collector by"))?;
    let connector = TlsConnector::from(Arc::new(tls(roots).await?));
    let stream: TlsStream<_> = connector.connect(endpoint.host.clone(), socket).await?;
    Ok(TokioIo::new(Box::pin(stream)))
}

type Io = std::pin::Pin<Box<dyn Stream>>;

/// What bytes travel by.
trait Stream: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send {}

impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send> Stream for T {}

async fn tls(path: &Path) -> io::Result<ClientConfig> {
    let named = |error: &dyn std::fmt::Display| io::Error::other(format!("{}: {error}", path.display()));
    let text = read(path, MOST_ROOTS).await.map_err(|error| named(&error))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&text) {
        let certificate = certificate.map_err(|error| named(&error))?;
        roots.add(certificate).map_err(|error| named(&error))?;
    }
    if roots.is_empty() {
        return Err(named(&"expected a certificate, in PEM form"));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_headers_is_taken_as_a_whole_or_not_at_all() {
        let names = |text: &str| -> Option<Vec<String>> {
            let all = headers(text.as_bytes()).ok()?;
            Some(all.into_iter().map(|(name, _)| name.to_string()).collect())
        };
        let table: [(&str, Option<&[&str]>); 6] = [
            ("", Some(&[])),
            (
                "Authorization: Bearer a:b\n\nX-Tenant:7\n",
                Some(&["authorization", "x-tenant"]),
            ),
            ("authorization", None),
            ("authorization: a\nnonsense\n", None),
            ("grpc-timeout: 1S", None),
            ("a b: c", None),
        ];
        for (text, expected) in table {
            let expected = expected.map(|all| all.iter().map(|name| (*name).to_owned()).collect());
            assert_eq!(names(text), expected, "{text}");
        }
        assert!(headers(&[b'x', b':', 0xff]).is_err());
        let secret = headers(b"authorization: Bearer secret").unwrap();
        assert!(!format!("{secret:?}").contains("secret"));
    }
}
