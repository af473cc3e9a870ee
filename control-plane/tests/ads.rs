//! Agents' streams over loopback TCP, with a client that others generate.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failed assertion is what a test is for"
)]

use std::{net::SocketAddr, sync::Arc, time::Duration};

use prometheus::Registry;
use tokio::{
    net::TcpListener,
    sync::mpsc,
    time::{Instant, sleep, timeout},
};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream, wrappers::TcpListenerStream};
use tonic::{
    Code, Status, Streaming,
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
    google::rpc,
    istio::workload::{Address, Workload, address},
    weir::node::v1::Pod,
};

const PATIENCE: Duration = Duration::from_secs(10);

/// Takes the bearer token for the node's name.
struct ByToken;

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

struct World {
    store: Arc<Store>,
    ads: Ads,
    registry: Registry,
    address: SocketAddr,
}

impl World {
    /// A server with this content, which is complete.
    async fn new(limits: Limits, content: impl IntoIterator<Item = Change>) -> Self {
        let world = Self::unready(limits).await;
        world.store.apply(content);
        world.store.mark_ready();
        world
    }

    async fn unready(limits: Limits) -> Self {
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

    async fn channel(&self) -> Channel {
        // Small windows, so that little is on its way to a client that does not read.
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address)).unwrap();
        let endpoint = endpoint
            .initial_stream_window_size(65_535)
            .initial_connection_window_size(65_535);
        endpoint.connect().await.unwrap()
    }

    async fn try_open(&self, node: Option<&str>) -> Result<Client, Status> {
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

    async fn open(&self, node: &str) -> Client {
        self.try_open(Some(node)).await.unwrap()
    }

    fn metric(&self, name: &str, label: Option<&str>) -> f64 {
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

    async fn until_metric(&self, name: &str, label: Option<&str>, value: f64) {
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

struct Client {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl Client {
    async fn send(&self, request: DeltaDiscoveryRequest) {
        // A stream that has ended says why in its responses.
        let _ = self.requests.send(request).await;
    }

    async fn end(&mut self) -> Result<Option<DeltaDiscoveryResponse>, Status> {
        timeout(PATIENCE, self.responses.message())
            .await
            .expect("something comes")
    }

    async fn unanswered(&mut self) -> DeltaDiscoveryResponse {
        self.end().await.unwrap().expect("the stream goes on")
    }

    /// The next response, which is accepted.
    async fn next(&mut self) -> DeltaDiscoveryResponse {
        let response = self.unanswered().await;
        self.send(DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            ..DeltaDiscoveryRequest::default()
        })
        .await;
        response
    }

    async fn silent(&mut self) {
        let next = timeout(Duration::from_millis(100), self.responses.message()).await;
        assert!(next.is_err(), "{next:?}");
    }
}

fn request(kind: ResourceType) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: kind.url().to_owned(),
        ..DeltaDiscoveryRequest::default()
    }
}

fn subscribe(names: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        resource_names_subscribe: names.iter().map(|&name| name.to_owned()).collect(),
        ..request(ResourceType::Address)
    }
}

fn workload(name: &str, node: &str, address: &str) -> Change {
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
fn many() -> impl Iterator<Item = Change> {
    (0..2_000).map(|number| workload(&format!("uid-{number}"), &"x".repeat(1_000), "10.0.0.1"))
}

fn names(response: &DeltaDiscoveryResponse) -> Vec<&str> {
    let mut names: Vec<_> = response
        .resources
        .iter()
        .map(|resource| resource.name.as_str())
        .collect();
    names.sort_unstable();
    names
}

#[tokio::test]
async fn a_wildcard_gets_everything_and_then_changes() {
    let world = World::new(
        Limits::default(),
        [workload("a", "n1", "10.0.0.1"), workload("b", "n1", "10.0.0.2")],
    )
    .await;
    let mut client = world.open("n1").await;
    client.send(request(ResourceType::Address)).await;
    let everything = client.next().await;
    assert_eq!(names(&everything), ["a", "b"]);
    assert_eq!(
        everything
            .resources
            .iter()
            .find(|r| r.name == "a")
            .unwrap()
            .aliases,
        ["/10.0.0.1"]
    );
    let Some(address::Type::Workload(a)) = everything
        .resources
        .iter()
        .find(|r| r.name == "a")
        .unwrap()
        .unpack::<Address>()
        .unwrap()
        .r#type
    else {
        panic!("a workload")
    };
    assert_eq!(a.node, "n1");

    world.store.apply([
        workload("a", "n2", "10.0.0.1"),
        Change::Remove(ResourceType::Address, "b".into()),
    ]);
    let change = client.next().await;
    assert_eq!(
        (names(&change), change.removed_resources.clone()),
        (vec!["a"], vec!["b".to_owned()])
    );
    assert_eq!(world.metric("weir_ads_pushes_total", Some("address")), 2.0);
    assert!(world.metric("weir_ads_push_bytes_total", Some("address")) > 0.0);
    assert_eq!(world.metric("weir_ads_streams", None), 1.0);
    drop(client);
    world.until_metric("weir_ads_streams", None, 0.0).await;
    assert_eq!(world.metric("weir_ads_closed_total", Some("client")), 1.0);
}

#[tokio::test]
async fn names_and_addresses_are_answered_on_demand() {
    let world = World::new(Limits::default(), [workload("a", "n1", "10.0.0.1")]).await;
    let mut client = world.open("n1").await;
    let none = DeltaDiscoveryRequest {
        resource_names_unsubscribe: vec!["*".to_owned()],
        ..subscribe(&["*"])
    };
    client.send(none).await;
    assert!(client.next().await.resources.is_empty());
    client.send(subscribe(&["/10.0.0.1"])).await;
    assert_eq!(names(&client.next().await), ["a"]);
    client.send(subscribe(&["/10.0.0.2"])).await;
    assert_eq!(client.next().await.removed_resources, ["/10.0.0.2"]);
    world
        .store
        .apply([workload("b", "n1", "10.0.0.2"), workload("c", "n1", "10.0.0.3")]);
    assert_eq!(names(&client.next().await), ["b"]);
    let unsubscribe = vec!["/10.0.0.2".to_owned()];
    client
        .send(DeltaDiscoveryRequest {
            resource_names_unsubscribe: unsubscribe,
            ..subscribe(&[])
        })
        .await;
    client.send(subscribe(&["x"])).await;
    assert_eq!(client.next().await.removed_resources, ["x"]);
    world.store.apply([workload("b", "n2", "10.0.0.2")]);
    client.silent().await;
}

#[tokio::test]
async fn a_client_that_comes_back_gets_what_it_misses_from_any_replica() {
    let content = || [workload("a", "n1", "10.0.0.1"), workload("b", "n1", "10.0.0.2")];
    let world = World::new(Limits::default(), content()).await;
    let mut client = world.open("n1").await;
    client.send(request(ResourceType::Address)).await;
    let first = client.next().await;
    let mut known: std::collections::BTreeMap<_, _> = first
        .resources
        .into_iter()
        .map(|resource| (resource.name, resource.version))
        .collect();
    known.insert("gone".to_owned(), "1".to_owned());

    let replica = World::new(Limits::default(), content().into_iter().rev()).await;
    replica.store.apply([workload("b", "n2", "10.0.0.2")]);
    let mut client = replica.open("n1").await;
    client
        .send(DeltaDiscoveryRequest {
            initial_resource_versions: known,
            ..request(ResourceType::Address)
        })
        .await;
    let response = client.next().await;
    assert_eq!(
        (names(&response), response.removed_resources.clone()),
        (vec!["b"], vec!["gone".to_owned()])
    );
}

#[tokio::test]
async fn a_rejected_response_is_counted_and_not_repeated() {
    let world = World::new(Limits::default(), [workload("a", "n1", "10.0.0.1")]).await;
    let mut client = world.open("n1").await;
    client.send(request(ResourceType::Address)).await;
    let response = client.unanswered().await;
    client
        .send(DeltaDiscoveryRequest {
            response_nonce: response.nonce,
            error_detail: Some(rpc::Status {
                message: "no".to_owned(),
                ..rpc::Status::default()
            }),
            ..request(ResourceType::Address)
        })
        .await;
    world
        .until_metric("weir_ads_nacks_total", Some("address"), 1.0)
        .await;
    client.silent().await;
    world.store.apply([workload("b", "n1", "10.0.0.2")]);
    assert_eq!(names(&client.next().await), ["b"]);
}

#[tokio::test]
async fn a_flood_of_requests_is_read_slowly_and_others_are_served() {
    let limits = Limits {
        requests_per_second: 50.0,
        request_burst: 5.0,
        ..Limits::default()
    };
    let world = World::new(limits, [workload("a", "n1", "10.0.0.1")]).await;
    let mut flood = world.open("n1").await;
    let began = Instant::now();
    for number in 0..40 {
        flood.send(subscribe(&[&format!("name-{number}")])).await;
    }
    let mut other = world.open("n2").await;
    other.send(request(ResourceType::Address)).await;
    assert_eq!(names(&other.next().await), ["a"]);
    let mut answered = 0;
    while answered < 40 {
        answered += flood.next().await.removed_resources.len();
    }
    // 40 requests, of which 5 are free, at 50 a second.
    assert!(
        began.elapsed() > Duration::from_millis(600),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test]
async fn too_many_names_and_too_large_requests_end_the_stream() {
    let limits = Limits {
        names: 3,
        name_length: 100,
        request_bytes: 1_000,
        ..Limits::default()
    };
    let world = World::new(limits, []).await;
    for (subscription, code) in [
        (subscribe(&["a", "b", "c", "d"]), Code::ResourceExhausted),
        (subscribe(&["x".repeat(200).as_str()]), Code::InvalidArgument),
        (subscribe(&["x".repeat(2_000).as_str()]), Code::InvalidArgument),
    ] {
        let mut client = world.open("n1").await;
        client.send(subscription).await;
        assert_eq!(client.end().await.unwrap_err().code(), code);
    }
    world.until_metric("weir_ads_streams", None, 0.0).await;
}

#[tokio::test]
async fn a_client_that_never_reads_is_cut_off_and_makes_way_for_others() {
    let limits = Limits {
        full_pushes: 1,
        send_timeout: Duration::from_secs(1),
        ..Limits::default()
    };
    let world = World::new(limits, many()).await;
    let mut stuck = world.open("n1").await;
    stuck.send(request(ResourceType::Address)).await;
    world
        .until_metric("weir_ads_pushes_total", Some("address"), 1.0)
        .await;
    let mut other = world.open("n2").await;
    other.send(request(ResourceType::Address)).await;
    assert_eq!(other.next().await.resources.len(), 2_000);
    assert_eq!(world.metric("weir_ads_closed_total", Some("not_read")), 1.0);
    // What was under way to it does not arrive any more: the connection is gone.
    assert!(stuck.end().await.is_err());
}

#[tokio::test]
async fn a_client_that_never_answers_is_told_to_come_back() {
    let limits = Limits {
        ack_timeout: Duration::from_millis(200),
        ..Limits::default()
    };
    let world = World::new(limits, [workload("a", "n1", "10.0.0.1")]).await;
    let mut client = world.open("n1").await;
    client.send(request(ResourceType::Address)).await;
    client.unanswered().await;
    assert_eq!(client.end().await.unwrap_err().code(), Code::DeadlineExceeded);
    assert_eq!(world.metric("weir_ads_closed_total", Some("not_answered")), 1.0);
}

#[tokio::test]
async fn agents_that_connect_at_once_take_turns_and_all_get_everything() {
    let world = World::new(
        Limits {
            full_pushes: 2,
            ..Limits::default()
        },
        many(),
    )
    .await;
    let clients = (0..20).map(|number| {
        let node = format!("n{number}");
        let world = &world;
        async move {
            let mut client = world.open(&node).await;
            client.send(request(ResourceType::Address)).await;
            assert_eq!(client.next().await.resources.len(), 2_000);
            client
        }
    });
    let mut clients = futures_util::future::join_all(clients).await;
    world.store.apply([workload("new", "n1", "10.0.0.9")]);
    for client in &mut clients {
        assert_eq!(names(&client.next().await), ["new"]);
    }
}

#[tokio::test]
async fn a_client_that_says_nothing_does_not_keep_others_waiting() {
    let limits = Limits {
        full_pushes: 1,
        first_request_timeout: Duration::from_millis(200),
        ..Limits::default()
    };
    let world = World::new(limits, [workload("a", "n1", "10.0.0.1")]).await;
    let mut silent = world.open("n1").await;
    let mut other = world.open("n2").await;
    other.send(request(ResourceType::Address)).await;
    assert_eq!(names(&other.next().await), ["a"]);
    assert_eq!(silent.end().await.unwrap_err().code(), Code::DeadlineExceeded);
}

#[tokio::test]
async fn unknown_types_are_passed_over_until_there_are_too_many() {
    let world = World::new(Limits::default(), [workload("a", "n1", "10.0.0.1")]).await;
    let mut client = world.open("n1").await;
    let unknown = |number: usize| DeltaDiscoveryRequest {
        type_url: format!("type.googleapis.com/unknown-{number}"),
        ..DeltaDiscoveryRequest::default()
    };
    for number in 0..16 {
        client.send(unknown(number)).await;
    }
    client.send(request(ResourceType::Address)).await;
    assert_eq!(names(&client.next().await), ["a"]);
    client.send(unknown(16)).await;
    assert_eq!(client.end().await.unwrap_err().code(), Code::ResourceExhausted);
}

#[tokio::test]
async fn who_is_not_authenticated_learns_nothing() {
    let limits = Limits {
        authenticate_timeout: Duration::from_millis(100),
        ..Limits::default()
    };
    let world = World::new(limits, [workload("a", "n1", "10.0.0.1")]).await;
    let status = world.try_open(None).await.err().unwrap();
    assert_eq!(status.code(), Code::Unauthenticated);
    assert!(!status.message().contains("secret"), "{status}");
    assert_eq!(
        world.metric("weir_ads_refused_total", Some("unauthenticated")),
        1.0
    );
    let status = world.try_open(Some("stuck")).await.err().unwrap();
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(world.metric("weir_ads_streams", None), 0.0);
}

#[tokio::test]
async fn a_node_has_a_few_streams_and_no_more() {
    let world = World::new(
        Limits {
            streams_per_node: 2,
            ..Limits::default()
        },
        [],
    )
    .await;
    let first = world.open("n1").await;
    let _second = world.open("n1").await;
    assert_eq!(
        world.try_open(Some("n1")).await.err().unwrap().code(),
        Code::ResourceExhausted
    );
    assert_eq!(
        world.metric("weir_ads_refused_total", Some("too_many_streams")),
        1.0
    );
    let _of_another_node = world.open("n2").await;
    drop(first);
    world.until_metric("weir_ads_streams", None, 2.0).await;
    let _again = world.open("n1").await;
}

#[tokio::test]
async fn pods_are_for_their_own_node_whatever_is_asked() {
    let pod = |node: &str, uid: &str| {
        Change::Set(Resource::of_node(
            node,
            uid,
            &Pod {
                uid: uid.to_owned(),
                ..Pod::default()
            },
        ))
    };
    let world = World::new(Limits::default(), [pod("n1", "p1"), pod("n2", "p2")]).await;
    let mut client = world.open("n1").await;
    client.send(request(ResourceType::Pod)).await;
    assert_eq!(names(&client.next().await), ["p1"]);
    let by_name = vec!["p2".to_owned()];
    client
        .send(DeltaDiscoveryRequest {
            resource_names_subscribe: by_name,
            ..request(ResourceType::Pod)
        })
        .await;
    let response = client.next().await;
    assert_eq!(
        (names(&response), response.removed_resources.clone()),
        (vec![], vec!["p2".to_owned()])
    );
    world.store.apply([pod("n2", "p3")]);
    world
        .store
        .apply([Change::Remove(ResourceType::Pod, "p3".into())]);
    client.silent().await;
}

#[tokio::test]
async fn a_stream_ends_cleanly_at_its_age() {
    let limits = Limits {
        age: Duration::from_millis(200),
        ..Limits::default()
    };
    let world = World::new(limits, [workload("a", "n1", "10.0.0.1")]).await;
    let mut client = world.open("n1").await;
    client.send(request(ResourceType::Address)).await;
    client.next().await;
    assert!(client.end().await.unwrap().is_none(), "no error");
    world
        .until_metric("weir_ads_closed_total", Some("age"), 1.0)
        .await;
}

#[tokio::test]
async fn streams_end_when_the_server_drains() {
    let world = World::new(Limits::default(), [workload("a", "n1", "10.0.0.1")]).await;
    let mut client = world.open("n1").await;
    client.send(request(ResourceType::Address)).await;
    client.next().await;
    world.ads.drain();
    assert_eq!(client.end().await.unwrap_err().code(), Code::Unavailable);
    let mut late = world.open("n1").await;
    assert_eq!(late.end().await.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn streams_wait_for_the_store_but_not_for_ever() {
    let world = World::unready(Limits {
        ready_timeout: Duration::from_millis(100),
        ..Limits::default()
    })
    .await;
    world.store.apply([workload("a", "n1", "10.0.0.1")]);
    assert_eq!(
        world.try_open(Some("n1")).await.err().unwrap().code(),
        Code::Unavailable
    );
    assert_eq!(world.metric("weir_ads_refused_total", Some("not_ready")), 1.0);

    let world = World::unready(Limits::default()).await;
    let (client, ()) = tokio::join!(world.open("n1"), async {
        world.until_metric("weir_ads_streams", None, 1.0).await;
        world.store.apply([workload("a", "n1", "10.0.0.1")]);
        world.store.mark_ready();
    });
    let mut client = client;
    client.send(request(ResourceType::Address)).await;
    assert_eq!(names(&client.next().await), ["a"]);
}
