//! A server on loopback TCP, and a client of it.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use prometheus::Registry;
use tokio::{
    net::TcpListener,
    sync::mpsc,
    time::{Instant, sleep, timeout},
};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream, wrappers::TcpListenerStream};
use tonic::{
    Status, Streaming,
    metadata::MetadataMap,
    transport::{Channel, Endpoint, Server},
};
use weir_control::ads::{Ads, Agent, Authenticate, Change, Limits, Refusal, Resource, Severable, Store};
use weir_proto::{
    ResourceType,
    envoy::service::discovery::v3::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse,
        aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
    },
    istio::workload::{Address, Workload, address},
};

pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Takes the bearer token for the node's name.
pub(crate) struct ByToken;

#[tonic::async_trait]
impl Authenticate for ByToken {
    async fn authenticate(&self, metadata: &MetadataMap, peer: Option<SocketAddr>) -> Result<Agent, Refusal> {
        assert!(peer.is_some_and(|peer| peer.ip().is_loopback()));
        let token = metadata
            .get("authorization")
            .and_then(|value| value.to_str().ok());
        match token.and_then(|token| token.strip_prefix("Bearer ")) {
            Some("stuck") => std::future::pending().await,
            Some(node) => Ok(Agent { node: node.into() }),
            None => Err(Refusal::Unauthenticated("secret detail".to_owned())),
        }
    }
}

pub(crate) struct World {
    pub(crate) store: Arc<Store>,
    pub(crate) ads: Ads,
    pub(crate) registry: Registry,
    pub(crate) address: SocketAddr,
}

impl World {
    /// A server with this content, which is complete.
    pub(crate) async fn new(limits: Limits, content: impl IntoIterator<Item = Change>) -> Self {
        let world = Self::unready(limits).await;
        world.store.apply(content);
        world.store.mark_ready();
        world
    }

    pub(crate) async fn unready(limits: Limits) -> Self {
        let store = Arc::new(Store::new());
        let registry = Registry::new();
        let ads = Ads::new(store.clone(), Arc::new(ByToken), limits, &registry).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = TcpListenerStream::new(listener).map(|connection| {
            connection.map(|io| {
                // Else the end of a response waits for the client's delayed ACK, 40 ms.
                io.set_nodelay(true).unwrap();
                let peer = io.peer_addr().ok();
                Severable::new(io, peer)
            })
        });
        tokio::spawn(
            Server::builder()
                .add_service(ads.service())
                .serve_with_incoming(connections),
        );
        Self {
            store,
            ads,
            registry,
            address,
        }
    }

    pub(crate) async fn channel(&self) -> Channel {
        // Small windows, so that little is on its way to a client that does not read.
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address)).unwrap();
        let endpoint = endpoint
            .initial_stream_window_size(65_535)
            .initial_connection_window_size(65_535);
        endpoint.connect().await.unwrap()
    }

    pub(crate) async fn try_open(&self, node: Option<&str>) -> Result<Client, Status> {
        let (requests, outgoing) = mpsc::channel(1_000);
        let mut request = tonic::Request::new(ReceiverStream::new(outgoing));
        if let Some(node) = node {
            request
                .metadata_mut()
                .insert("authorization", format!("Bearer {node}").parse().unwrap());
        }
        let mut client =
            AggregatedDiscoveryServiceClient::new(self.channel().await).max_decoding_message_size(64 << 20);
        let opened = timeout(PATIENCE, client.delta_aggregated_resources(request)).await;
        let responses = opened.expect("the server answers")?.into_inner();
        Ok(Client { requests, responses })
    }

    pub(crate) async fn open(&self, node: &str) -> Client {
        self.try_open(Some(node)).await.unwrap()
    }

    pub(crate) fn metric(&self, name: &str, label: Option<&str>) -> f64 {
        let families = self.registry.gather();
        let metrics = families
            .iter()
            .filter(|family| family.name() == name)
            .flat_map(|family| family.get_metric());
        let labelled = metrics.filter(|metric| {
            label.is_none_or(|label| metric.get_label().iter().any(|pair| pair.value() == label))
        });
        labelled
            .map(|metric| metric.get_counter().get_value() + metric.get_gauge().get_value())
            .sum()
    }

    pub(crate) async fn until_metric(&self, name: &str, label: Option<&str>, value: f64) {
        let deadline = Instant::now() + PATIENCE;
        while self.metric(name, label) != value {
            assert!(
                Instant::now() < deadline,
                "{name} {label:?} is {}",
                self.metric(name, label)
            );
            sleep(Duration::from_millis(5)).await;
        }
    }
}

pub(crate) struct Client {
    pub(crate) requests: mpsc::Sender<DeltaDiscoveryRequest>,
    pub(crate) responses: Streaming<DeltaDiscoveryResponse>,
}

impl Client {
    pub(crate) async fn send(&self, request: DeltaDiscoveryRequest) {
        // A stream that has ended says why in its responses.
        let _ = self.requests.send(request).await;
    }

    pub(crate) async fn end(&mut self) -> Result<Option<DeltaDiscoveryResponse>, Status> {
        timeout(PATIENCE, self.responses.message())
            .await
            .expect("something comes")
    }

    pub(crate) async fn unanswered(&mut self) -> DeltaDiscoveryResponse {
        self.end().await.unwrap().expect("the stream goes on")
    }

    /// The next response, which is accepted.
    pub(crate) async fn next(&mut self) -> DeltaDiscoveryResponse {
        let response = self.unanswered().await;
        self.send(DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            ..DeltaDiscoveryRequest::default()
        })
        .await;
        response
    }

    pub(crate) async fn silent(&mut self) {
        let next = timeout(Duration::from_millis(100), self.responses.message()).await;
        assert!(next.is_err(), "{next:?}");
    }
}

pub(crate) fn request(kind: ResourceType) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: kind.url().to_owned(),
        ..DeltaDiscoveryRequest::default()
    }
}

pub(crate) fn subscribe(names: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        resource_names_subscribe: names.iter().map(|&name| name.to_owned()).collect(),
        ..request(ResourceType::Address)
    }
}

pub(crate) fn workload(name: &str, node: &str, address: &str) -> Change {
    let workload = Workload {
        uid: name.to_owned(),
        node: node.to_owned(),
        ..Workload::default()
    };
    let message = Address {
        r#type: Some(address::Type::Workload(workload)),
    };
    Change::Set(Resource::new(name, [format!("/{address}")], &message))
}

/// Workloads of some megabytes.
pub(crate) fn many() -> impl Iterator<Item = Change> {
    (0..2_000).map(|number| workload(&format!("uid-{number}"), &"x".repeat(1_000), "10.0.0.1"))
}

pub(crate) fn names(response: &DeltaDiscoveryResponse) -> Vec<&str> {
    let mut names: Vec<_> = response
        .resources
        .iter()
        .map(|resource| resource.name.as_str())
        .collect();
    names.sort_unstable();
    names
}
