//! Faults in front of the server, and what a client of kube makes of them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failed step is a failed test"
)]

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use futures_util::StreamExt as _;
use http::Method;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client, ResourceExt as _,
    api::{ListParams, PostParams, WatchEvent, WatchParams},
    runtime::{WatchStreamExt as _, reflector, utils::Backoff, watcher},
};
use serde_json::json;
use weir_api_server::{Effect, Faults, Requests, TestCluster, eventually, object};

const PATIENCE: Duration = Duration::from_secs(20);

struct Stage {
    cluster: TestCluster,
    faults: Faults,
    namespace: String,
    /// Past the faults.
    direct: Api<ConfigMap>,
    /// Through them, without trying again.
    through: Api<ConfigMap>,
}

impl Stage {
    async fn new() -> Self {
        let cluster = TestCluster::new().await;
        let namespace = cluster.namespace("faults").await;
        let faults = cluster.faults();
        let mut config = faults.config();
        config.default_retry = false;
        let direct = Api::namespaced(cluster.client(), &namespace);
        let through = Api::namespaced(Client::try_from(config).unwrap(), &namespace);
        Self {
            cluster,
            faults,
            namespace,
            direct,
            through,
        }
    }

    async fn make(&self, name: &str) {
        let config = object(json!({"metadata": {"name": name, "labels": {"test": "yes"}}}));
        self.direct.create(&PostParams::default(), &config).await.unwrap();
    }

    async fn listed(&self) -> Result<usize, Option<u16>> {
        match self.through.list(&ListParams::default().labels("test")).await {
            Ok(list) => Ok(list.items.len()),
            Err(kube::Error::Api(status)) => Err(Some(status.code)),
            Err(_) => Err(None),
        }
    }

    async fn version(&self) -> String {
        self.direct
            .list(&ListParams::default())
            .await
            .unwrap()
            .metadata
            .resource_version
            .unwrap()
    }
}

#[tokio::test]
async fn without_faults_nothing_is_different() {
    let stage = Stage::new().await;
    stage.make("one").await;
    assert_eq!(stage.listed().await, Ok(1));
    let missing = stage.through.get("none").await;
    assert!(
        matches!(missing, Err(kube::Error::Api(status)) if status.code == 404 && status.reason == "NotFound")
    );
    assert_eq!(
        stage
            .faults
            .count(&Requests::all().method(Method::GET).of("configmaps")),
        2
    );
}

#[tokio::test]
async fn refused_requests_are_refused_as_often_as_asked() {
    let stage = Stage::new().await;
    stage.make("one").await;
    for code in [429, 500, 503] {
        stage
            .faults
            .inject_times(2, Effect::Refuse(code), Requests::all().of("configmaps"));
        assert_eq!(stage.listed().await, Err(Some(code)));
        assert_eq!(stage.listed().await, Err(Some(code)));
        assert_eq!(stage.listed().await, Ok(1));
    }
    let fault = stage
        .faults
        .inject(Effect::Refuse(500), Requests::all().of("configmaps"));
    assert_eq!(stage.listed().await, Err(Some(500)));
    stage.faults.lift(fault);
    assert_eq!(stage.listed().await, Ok(1));
}

#[tokio::test]
async fn a_delayed_request_comes_later() {
    let stage = Stage::new().await;
    let delay = Duration::from_millis(300);
    stage
        .faults
        .inject_times(1, Effect::Delay(delay), Requests::all());
    let start = Instant::now();
    assert_eq!(stage.listed().await, Ok(0));
    assert!(start.elapsed() >= delay);
}

#[tokio::test]
async fn a_lost_response_is_that_of_a_request_that_was_carried_out() {
    let stage = Stage::new().await;
    stage
        .faults
        .inject_times(1, Effect::LoseResponse, Requests::all().method(Method::POST));
    let config = object(json!({"metadata": {"name": "one"}}));
    let lost = stage.through.create(&PostParams::default(), &config).await;
    assert!(
        matches!(&lost, Err(error) if !matches!(error, kube::Error::Api(_))),
        "{lost:?}"
    );
    assert!(stage.direct.get_opt("one").await.unwrap().is_some());
    let again = stage.through.create(&PostParams::default(), &config).await;
    assert!(matches!(again, Err(kube::Error::Api(status)) if status.code == 409));
}

#[tokio::test]
async fn a_server_that_went_away_comes_back_at_the_same_place() {
    let stage = Stage::new().await;
    stage.make("one").await;
    let open = stage
        .through
        .watch(&WatchParams::default(), &stage.version().await)
        .await
        .unwrap();
    let mut open = open.boxed();
    stage.faults.go_away();
    assert_eq!(stage.listed().await, Err(None));
    let end = tokio::time::timeout(PATIENCE, open.next())
        .await
        .expect("the watch ends");
    assert!(!matches!(end, Some(Ok(_))), "{end:?}");
    stage.faults.come_back().unwrap();
    assert_eq!(stage.listed().await, Ok(1));
}

#[tokio::test]
async fn a_watch_is_cut_after_so_many_events() {
    let stage = Stage::new().await;
    let version = stage.version().await;
    for name in ["a", "b", "c"] {
        stage.make(name).await;
    }
    stage
        .faults
        .inject_times(1, Effect::CutAfter(2), Requests::watches("configmaps"));
    let stream = stage
        .through
        .watch(&WatchParams::default(), &version)
        .await
        .unwrap();
    let seen: Vec<String> = stream
        .take_while(|event| std::future::ready(event.is_ok()))
        .filter_map(|event| async move {
            match event {
                Ok(WatchEvent::Added(object)) => Some(object.name_any()),
                _ => None,
            }
        })
        .collect()
        .await;
    assert_eq!(seen, ["a", "b"]);
}

#[tokio::test]
async fn a_watch_is_told_that_its_version_is_gone_in_either_way() {
    let stage = Stage::new().await;
    let version = stage.version().await;
    stage
        .faults
        .inject_times(1, Effect::GoneStatus, Requests::watches("configmaps"));
    // kube reads the answer of a watch as its stream, whatever its HTTP status.
    let stream = stage
        .through
        .watch(&WatchParams::default(), &version)
        .await
        .unwrap();
    let refused = stream.boxed().next().await.unwrap();
    assert!(matches!(refused, Err(kube::Error::Api(status)) if status.code == 410));
    stage
        .faults
        .inject_times(1, Effect::GoneEvent, Requests::watches("configmaps"));
    let mut stream = stage
        .through
        .watch(&WatchParams::default(), &version)
        .await
        .unwrap()
        .boxed();
    let event = stream.next().await.unwrap().unwrap();
    assert!(matches!(event, WatchEvent::Error(status) if status.code == 410 && status.reason == "Expired"));
}

#[tokio::test]
async fn held_bookmarks_do_not_come_and_events_do() {
    let stage = Stage::new().await;
    let version = stage.version().await;
    stage
        .faults
        .inject(Effect::HoldBookmarks, Requests::watches("configmaps"));
    stage.make("one").await;
    let params = WatchParams::default().timeout(4);
    let stream = stage.through.watch(&params, &version).await.unwrap();
    let events: Vec<_> = stream.map(Result::unwrap).collect().await;
    assert!(matches!(events.as_slice(), [WatchEvent::Added(_)]), "{events:?}");
}

/// Watches are tried again at once: it is not their patience that is tested.
struct Soon;

impl Iterator for Soon {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(Duration::from_millis(50))
    }
}

impl Backoff for Soon {
    fn reset(&mut self) {}
}

/// The store must have what there is, whatever became of the watches meanwhile.
#[tokio::test]
async fn a_reflector_recovers_from_every_fault() {
    let stage = Stage::new().await;
    let client = stage.faults.client().unwrap();
    let api = Api::<ConfigMap>::namespaced(client, &stage.namespace);
    let (store, writer) = reflector::store();
    let stream = watcher::watcher(api, watcher::Config::default().labels("test"));
    let following = reflector::reflector(writer, stream)
        .backoff(Soon)
        .for_each(|_| async {});
    let all = Requests::watches("configmaps");
    let testing = async {
        let mut expected = BTreeSet::new();
        for (index, fault) in ["cut", "gone status", "gone event", "refused", "away", "compacted"]
            .into_iter()
            .enumerate()
        {
            match fault {
                "cut" => stage.faults.cut_watches(),
                "gone status" => {
                    stage.faults.inject_times(1, Effect::GoneStatus, all.clone());
                    stage.faults.cut_watches();
                }
                "gone event" => {
                    stage.faults.inject_times(1, Effect::GoneEvent, all.clone());
                    stage.faults.cut_watches();
                }
                "refused" => {
                    stage.faults.inject_times(2, Effect::Refuse(500), Requests::all());
                    stage.faults.cut_watches();
                }
                "away" => stage.faults.go_away(),
                _ => stage
                    .cluster
                    .stand_in()
                    .into_iter()
                    .for_each(weir_api_server::ApiServer::compact),
            }
            let name = format!("made-{index}");
            stage.make(&name).await;
            expected.insert(name);
            stage.faults.come_back().unwrap();
            eventually(fault, || async {
                let names: BTreeSet<String> = store.state().iter().map(|one| one.name_any()).collect();
                (names == expected).then_some(())
            })
            .await;
        }
    };
    tokio::select! {
        () = following => panic!("the watch ended"),
        () = testing => {}
    }
}

#[tokio::test]
async fn events_come_through_as_they_happen() {
    let stage = Stage::new().await;
    for faults_went_away in [false, true] {
        if faults_went_away {
            stage.faults.go_away();
            stage.faults.come_back().unwrap();
        }
        let stream = stage
            .through
            .watch(&WatchParams::default(), &stage.version().await)
            .await
            .unwrap();
        let mut stream = stream.boxed();
        for name in ["a", "b", "c"] {
            let name = format!("{name}-{faults_went_away}");
            stage.make(&name).await;
            let event = tokio::time::timeout(PATIENCE, stream.next())
                .await
                .expect("an event in time");
            assert!(matches!(event, Some(Ok(WatchEvent::Added(object))) if object.name_any() == name));
        }
    }
}
