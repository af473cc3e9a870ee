//! The gRPC service: who is let in.

use std::{
    collections::HashMap,
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body_util::StreamBody;
use prometheus::Registry;
use tokio::{
    sync::{Semaphore, watch},
    time::timeout,
};
use tonic::{
    Code, Status,
    body::Body,
    codegen::{Body as HttpBody, BoxFuture, Service, StdError, http},
    metadata::{GRPC_CONTENT_TYPE, MetadataMap},
    server::NamedService,
    transport::server::TcpConnectInfo,
};

use super::{
    authenticate::{Agent, Authenticate, Refusal},
    limits::Limits,
    metrics::Metrics,
    requests::Requests,
    sever::Peer,
    store::Store,
    stream::{Outbound, Stream},
};

const SERVICE: &str = "envoy.service.discovery.v3.AggregatedDiscoveryService";
const METHOD: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";

/// The server of all streams.
#[derive(Clone)]
pub struct Ads(Arc<Shared>);

/// The gRPC service of [`Ads`], to be mounted on a server whose connections are [`super::Severable`].
#[derive(Clone)]
pub struct AdsService(Arc<Shared>);

pub(super) struct Shared {
    pub(super) store: Arc<Store>,
    pub(super) limits: Limits,
    pub(super) metrics: Metrics,
    /// Full pushes that are encoded or waited for.
    pub(super) full_pushes: Arc<Semaphore>,
    pub(super) drain: watch::Sender<bool>,
    authenticate: Arc<dyn Authenticate>,
    streams: Mutex<HashMap<Arc<str>, usize>>,
}

/// A node's place among the streams, given back when it is dropped.
pub(super) struct Place {
    shared: Arc<Shared>,
    node: Arc<str>,
}

// === impl Ads ===

impl Ads {
    /// A server of this store's resources, for agents that `authenticate` knows.
    ///
    /// # Errors
    ///
    /// If the registry has metrics of these names already.
    pub fn new(
        store: Arc<Store>,
        authenticate: Arc<dyn Authenticate>,
        limits: Limits,
        registry: &Registry,
    ) -> Result<Self, prometheus::Error> {
        let full_pushes = Arc::new(Semaphore::new(limits.full_pushes));
        Ok(Self(Arc::new(Shared {
            store,
            metrics: Metrics::new(registry)?,
            full_pushes,
            drain: watch::Sender::new(false),
            authenticate,
            streams: Mutex::default(),
            limits,
        })))
    }

    /// The service, for a tonic server.
    pub fn service(&self) -> AdsService {
        AdsService(self.0.clone())
    }

    /// Ends all streams, and every later one at once, so that the process can end.
    pub fn drain(&self) {
        self.0.drain.send_replace(true);
    }
}

// === impl Shared ===

impl Shared {
    async fn open(
        self: Arc<Self>,
        metadata: &MetadataMap,
        extensions: &http::Extensions,
        requests: Requests,
    ) -> Result<Outbound, Status> {
        let peer = extensions.get::<Peer>().cloned();
        let address = peer.as_ref().map_or_else(
            || {
                extensions
                    .get::<TcpConnectInfo>()
                    .and_then(TcpConnectInfo::remote_addr)
            },
            |peer| peer.address,
        );
        let agent = self.admit(metadata, address).await.inspect_err(|status| {
            self.metrics.refused(match status.code() {
                Code::Unauthenticated => "unauthenticated",
                Code::ResourceExhausted => "too_many_streams",
                _ => "unavailable",
            });
        })?;
        let place = self
            .place(&agent.node)
            .inspect_err(|_| self.metrics.refused("too_many_streams"))?;
        let mut ready = self.store.ready();
        if !matches!(
            timeout(self.limits.ready_timeout, ready.wait_for(|ready| *ready)).await,
            Ok(Ok(_))
        ) {
            self.metrics.refused("not_ready");
            return Err(Status::unavailable(
                "the control plane is not in sync with the cluster yet",
            ));
        }
        let sever = peer.map(|peer| peer.sever);
        Ok(Stream::spawn(self.clone(), agent, place, requests, sever))
    }

    async fn admit(&self, metadata: &MetadataMap, address: Option<SocketAddr>) -> Result<Agent, Status> {
        let check = self.authenticate.authenticate(metadata, address);
        match timeout(self.limits.authenticate_timeout, check).await {
            Ok(Ok(agent)) => Ok(agent),
            Ok(Err(reason @ Refusal::Unauthenticated(_))) => {
                tracing::warn!(peer = ?address, %reason, "a stream is refused");
                Err(Status::unauthenticated(
                    "the credentials are not those of an agent",
                ))
            }
            Ok(Err(reason @ Refusal::Unavailable(_))) => {
                tracing::warn!(peer = ?address, %reason, "a stream is refused");
                Err(Status::unavailable("credentials cannot be checked now"))
            }
            Err(_) => {
                tracing::warn!(peer = ?address, "a stream is refused: the check of its credentials took too long");
                Err(Status::unavailable("credentials cannot be checked now"))
            }
        }
    }

    fn place(self: &Arc<Self>, node: &Arc<str>) -> Result<Place, Status> {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = streams.entry(node.clone()).or_default();
        if *taken >= self.limits.streams_per_node {
            tracing::warn!(%node, "a stream is refused: the node has too many");
            return Err(Status::resource_exhausted("the node has too many streams"));
        }
        *taken += 1;
        self.metrics.streams.inc();
        Ok(Place {
            shared: self.clone(),
            node: node.clone(),
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut streams = self.shared.streams.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(taken) = streams.get_mut(&self.node) {
            *taken -= 1;
            if *taken == 0 {
                streams.remove(&self.node);
            }
        }
        self.shared.metrics.streams.dec();
    }
}

// === impl AdsService ===

// Written out instead of generated: tonic's encoder and decoder keep the buffers of a stream's largest response and
// request for as long as the stream lives, which would be two copies of the whole mesh for every agent.

impl NamedService for AdsService {
    const NAME: &'static str = SERVICE;
}

impl<B> Service<http::Request<B>> for AdsService
where
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let shared = self.0.clone();
        Box::pin(async move {
            if request.uri().path() != METHOD {
                return Ok(Status::unimplemented("only DeltaAggregatedResources is served").into_http());
            }
            let (parts, body) = request.into_parts();
            let requests = Requests::new(Body::new(body), shared.limits.request_bytes);
            let metadata = MetadataMap::from_headers(parts.headers);
            let opened = shared.open(&metadata, &parts.extensions, requests).await;
            Ok(opened.map_or_else(Status::into_http, |outbound| {
                let mut response = http::Response::new(Body::new(StreamBody::new(outbound)));
                response
                    .headers_mut()
                    .insert(http::header::CONTENT_TYPE, GRPC_CONTENT_TYPE);
                response
            }))
        })
    }
}
