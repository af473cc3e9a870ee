//! Agents' streams over loopback TCP, with a client that others generate.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failed assertion is what a test is for"
)]

mod bounds;
mod world;

use std::time::Duration;

use tonic::Code;
use weir_control::ads::{Change, Limits, Resource};
use weir_proto::{
    ResourceType,
    envoy::service::discovery::v3::DeltaDiscoveryRequest,
    google::rpc,
    istio::workload::{Address, address},
    weir::node::v1::Pod,
};

use crate::world::{World, names, request, subscribe, workload};

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
