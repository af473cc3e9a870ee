//! What a client cannot take from others.

use std::time::Duration;

use tokio::time::Instant;
use tonic::Code;
use weir_control::ads::Limits;
use weir_proto::{ResourceType, envoy::service::discovery::v3::DeltaDiscoveryRequest};

use crate::world::{World, many, names, request, subscribe, workload};

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
