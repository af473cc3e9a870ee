//! One agent's connection: TLS, gRPC and the stream of resources, as weir-agent opens them.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use bytes::{Buf as _, BufMut as _, Bytes};
use hyper_util::rt::TokioIo;
use prost::Message as _;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, IpAddr, ServerName, pem::PemObject as _};
use tokio::{net::TcpSocket, sync::mpsc};
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Status, Streaming,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::http::{Uri, uri::PathAndQuery},
    metadata::{Ascii, MetadataValue},
    transport::{Channel, Endpoint},
};
use weir_proto::SharedResponse;

const METHOD: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
/// As weir-agent takes it.
const MAX_RESPONSE: usize = 256 << 20;
const CONNECT: Duration = Duration::from_secs(10);
/// Requests that wait to be sent.
const REQUESTS: usize = 16;

/// Opens connections of one agent.
#[derive(Debug, Clone)]
pub(super) struct Client {
    pub(super) number: usize,
    pub(super) control: SocketAddr,
    pub(super) roots: PathBuf,
    pub(super) token: String,
}

/// A connection with the stream of resources on it.
pub(super) struct Connection {
    pub(super) channel: Channel,
    pub(super) bearer: MetadataValue<Ascii>,
    pub(super) requests: mpsc::Sender<Bytes>,
    pub(super) responses: Streaming<SharedResponse>,
}

/// Requests are encoded before: what all agents say alike is there once. Responses are taken apart as far as counting them
/// needs.
#[derive(Debug, Default)]
struct Counting;

// === impl Client ===

impl Client {
    pub(super) async fn open(&self, first: Vec<Bytes>) -> Result<Connection> {
        let channel = self.channel().await?;
        let bearer: MetadataValue<Ascii> = format!("Bearer {}", self.token).parse()?;
        let (requests, outgoing) = mpsc::channel(REQUESTS);
        for request in first {
            requests
                .try_send(request)
                .context("more first requests than fit")?;
        }
        let mut request = Request::new(ReceiverStream::new(outgoing));
        request.metadata_mut().insert("authorization", bearer.clone());
        let mut grpc = Grpc::new(channel.clone()).max_decoding_message_size(MAX_RESPONSE);
        grpc.ready().await?;
        let path = PathAndQuery::from_static(METHOD);
        let responses = grpc.streaming(request, path, Counting).await?.into_inner();
        Ok(Connection {
            channel,
            bearer,
            requests,
            responses,
        })
    }

    async fn channel(&self) -> Result<Channel> {
        let pem = tokio::fs::read(&self.roots).await.context("no roots yet")?;
        let mut roots = RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(&pem).flatten() {
            roots.add(root)?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let tls = TlsConnector::from(Arc::new(config));
        let (from, control) = (self.address(), self.control);
        let connector = tower::service_fn(move |_: Uri| {
            let tls = tls.clone();
            async move {
                let socket = TcpSocket::new_v4()?;
                socket.bind(from)?;
                let socket = socket.connect(control).await?;
                socket.set_nodelay(true)?;
                let name = ServerName::IpAddress(IpAddr::from(control.ip()));
                tls.connect(name, socket).await.map(TokioIo::new)
            }
        });
        let endpoint = Endpoint::from(Uri::from_static("https://weir-control")).connect_timeout(CONNECT);
        Ok(endpoint.connect_with_connector(connector).await?)
    }

    /// Each agent has an address of its own, as nodes have: what one address may do is bounded.
    fn address(&self) -> SocketAddr {
        let [.., high, low] = self.number.to_be_bytes();
        (Ipv4Addr::new(127, 1, high, low), 0).into()
    }
}

// === impl Counting ===

impl Codec for Counting {
    type Encode = Bytes;
    type Decode = SharedResponse;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Counting {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Counting {
    type Item = SharedResponse;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<SharedResponse>, Status> {
        let message = buffer.copy_to_bytes(buffer.remaining());
        let response =
            SharedResponse::decode(message).map_err(|error| Status::internal(error.to_string()))?;
        Ok(Some(response))
    }
}
