//! Lists and watches, as the API documentation has them ("Efficient detection of changes" and after).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failed step is a failed test"
)]

use std::{collections::BTreeSet, time::Duration};

use futures_util::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams},
    core::{PartialObjectMeta, params::VersionMatch},
    runtime::{
        WatchStreamExt as _, reflector,
        watcher::{self, Event, InitialListStrategy},
    },
};
use serde_json::json;
use weir_api_server::{TestCluster, eventually, object};

/// How many watches may go by without a bookmark on a real server.
const WATCHES: usize = 5;
const PATIENCE: Duration = Duration::from_secs(20);

fn config(name: &str, app: &str) -> ConfigMap {
    object(json!({"metadata": {"name": name, "labels": {"app": app}}, "data": {"app": app}}))
}

/// A namespace of config maps `a` to `e`, of the apps `web` and `db` in turn, and nothing else labelled so.
async fn five(cluster: &TestCluster) -> Api<ConfigMap> {
    let namespace = cluster.namespace("reads").await;
    let api = Api::namespaced(cluster.client(), &namespace);
    for (index, name) in ["a", "b", "c", "d", "e"].into_iter().enumerate() {
        let app = if index % 2 == 0 { "web" } else { "db" };
        api.create(&PostParams::default(), &config(name, app))
            .await
            .unwrap();
    }
    api
}

fn names(list: impl IntoIterator<Item = ConfigMap>) -> Vec<String> {
    list.into_iter().map(|one| one.name_any()).collect()
}

/// The next events of a watch, as their kinds and names.
async fn next(
    stream: &mut (impl futures_util::Stream<Item = kube::Result<WatchEvent<ConfigMap>>> + Unpin),
) -> (&'static str, String) {
    let event = tokio::time::timeout(PATIENCE, stream.next())
        .await
        .expect("an event in time");
    match event.expect("an open watch").expect("an event") {
        WatchEvent::Added(object) => ("ADDED", object.name_any()),
        WatchEvent::Modified(object) => ("MODIFIED", object.name_any()),
        WatchEvent::Deleted(object) => ("DELETED", object.name_any()),
        WatchEvent::Bookmark(bookmark) => ("BOOKMARK", bookmark.metadata.resource_version),
        WatchEvent::Error(status) => ("ERROR", status.code.to_string()),
    }
}

#[tokio::test]
async fn selectors_select() {
    let cluster = TestCluster::new().await;
    let api = five(&cluster).await;
    for (labels, expected) in [
        ("app=web", "a c e"),
        ("app!=web,app", "b d"),
        ("app in (web, db)", "a b c d e"),
        ("app notin (web),app", "b d"),
    ] {
        let list = api.list(&ListParams::default().labels(labels)).await.unwrap();
        assert_eq!(names(list).join(" "), expected, "{labels}");
    }
    let one = api
        .list(&ListParams::default().fields("metadata.name=b"))
        .await
        .unwrap();
    assert_eq!(names(one), ["b"]);
    let wrong = api.list(&ListParams::default().fields("data.app=web")).await;
    assert!(matches!(wrong, Err(kube::Error::Api(status)) if status.code == 400));
}

#[tokio::test]
async fn pods_are_selected_by_their_node_and_phase() {
    let cluster = TestCluster::new().await;
    let namespace = cluster.namespace("reads").await;
    let (one, two) = (cluster.node("one").await, cluster.node("two").await);
    cluster
        .pod(&namespace, "a")
        .on(&one)
        .addresses(&["192.0.2.1"])
        .create()
        .await;
    cluster.pod(&namespace, "b").on(&two).create().await;
    let pods = Api::<Pod>::all(cluster.client());
    let listed = pods
        .list(&ListParams::default().fields(&format!("spec.nodeName={}", one.name_any())))
        .await
        .unwrap();
    assert_eq!(
        listed.items.iter().map(|pod| pod.name_any()).collect::<Vec<_>>(),
        ["a"]
    );
    let pods = Api::<Pod>::namespaced(cluster.client(), &namespace);
    let listed = pods
        .list(&ListParams::default().fields("status.phase!=Running"))
        .await
        .unwrap();
    assert_eq!(
        listed.items.iter().map(|pod| pod.name_any()).collect::<Vec<_>>(),
        ["b"]
    );
}

#[tokio::test]
async fn a_list_in_pages_is_of_one_moment() {
    let cluster = TestCluster::new().await;
    let api = five(&cluster).await;
    let params = ListParams::default().labels("app").limit(2);
    let first = api.list(&params).await.unwrap();
    let version = first.metadata.resource_version.clone();
    api.delete("c", &DeleteParams::default()).await.unwrap();
    api.create(&PostParams::default(), &config("f", "web"))
        .await
        .unwrap();
    let mut seen = names(first.items);
    let mut token = first.metadata.continue_;
    while let Some(next) = token.filter(|token| !token.is_empty()) {
        let page = api.list(&params.clone().continue_token(&next)).await.unwrap();
        assert_eq!(page.metadata.resource_version, version);
        seen.extend(names(page.items));
        token = page.metadata.continue_;
    }
    assert_eq!(seen.join(" "), "a b c d e");
    let now = api.list(&ListParams::default().labels("app")).await.unwrap();
    assert_eq!(names(now).join(" "), "a b d e f");
    let then = ListParams::default()
        .labels("app")
        .at(&version.unwrap())
        .matching(VersionMatch::Exact);
    assert_eq!(names(api.list(&then).await.unwrap()).join(" "), "a b c d e");
}

#[tokio::test]
async fn a_watch_goes_on_from_the_version_of_a_list() {
    let cluster = TestCluster::new().await;
    let api = five(&cluster).await;
    let version = api
        .list(&ListParams::default())
        .await
        .unwrap()
        .metadata
        .resource_version
        .unwrap();
    api.create(&PostParams::default(), &config("f", "web"))
        .await
        .unwrap();
    let other = json!({"metadata": {"labels": {"app": "db"}}});
    api.patch("f", &PatchParams::default(), &Patch::Merge(other))
        .await
        .unwrap();
    let last = api.delete("f", &DeleteParams::default()).await.unwrap();
    assert!(last.is_right());
    let mut all = api
        .watch(&WatchParams::default(), &version)
        .await
        .unwrap()
        .boxed();
    for expected in ["ADDED", "MODIFIED", "DELETED"] {
        assert_eq!(next(&mut all).await, (expected, "f".to_owned()));
    }
    // What ceases to match is deleted, and what begins to is added, as far as the watch goes.
    let mut web = api
        .watch(&WatchParams::default().labels("app=web"), &version)
        .await
        .unwrap()
        .boxed();
    for expected in ["ADDED", "DELETED"] {
        assert_eq!(next(&mut web).await, (expected, "f".to_owned()));
    }
    let mut db = api
        .watch(&WatchParams::default().labels("app=db"), &version)
        .await
        .unwrap()
        .boxed();
    for expected in ["ADDED", "DELETED"] {
        assert_eq!(next(&mut db).await, (expected, "f".to_owned()));
    }
}

#[tokio::test]
async fn a_watch_of_too_old_a_version_is_told_so() {
    let cluster = TestCluster::new().await;
    let api = five(&cluster).await;
    let mut stream = api.watch(&WatchParams::default(), "1").await.unwrap().boxed();
    assert_eq!(next(&mut stream).await, ("ERROR", "410".to_owned()));
}

#[tokio::test]
async fn a_watch_has_a_bookmark_before_its_end() {
    let cluster = TestCluster::new().await;
    let api = five(&cluster).await;
    let version = api
        .list(&ListParams::default())
        .await
        .unwrap()
        .metadata
        .resource_version
        .unwrap();
    // A real server sends them as it finds the time: perhaps several, and now and then none.
    let mut bookmarks = Vec::new();
    for _ in 0..WATCHES {
        let params = WatchParams::default().timeout(4);
        let mut stream = api.watch(&params, &version).await.unwrap().boxed();
        let all = async {
            while let Some(event) = stream.try_next().await.unwrap() {
                match event {
                    WatchEvent::Bookmark(at) => bookmarks.push(at.metadata.resource_version),
                    other => panic!("{other:?}"),
                }
            }
        };
        tokio::time::timeout(PATIENCE, all).await.expect("an end in time");
        if !bookmarks.is_empty() || cluster.stand_in().is_some() {
            break;
        }
    }
    let at = bookmarks.last().expect("a bookmark");
    assert!(at.parse::<u64>().unwrap() >= version.parse::<u64>().unwrap());
}

#[tokio::test]
async fn a_streaming_list_ends_with_its_bookmark() {
    let cluster = TestCluster::new().await;
    let api = five(&cluster).await;
    let config = watcher::Config {
        initial_list_strategy: InitialListStrategy::StreamingList,
        ..watcher::Config::default().labels("app")
    };
    let mut stream = watcher::watcher(api.clone(), config).boxed();
    let mut seen = BTreeSet::new();
    loop {
        let event = tokio::time::timeout(PATIENCE, stream.next())
            .await
            .expect("an event in time");
        match event.unwrap().unwrap() {
            Event::InitApply(object) => {
                seen.insert(object.name_any());
            }
            Event::InitDone => break,
            _ => {}
        }
    }
    assert_eq!(seen.len(), 5);
}

#[tokio::test]
async fn a_watch_of_metadata_has_nothing_else() {
    let cluster = TestCluster::new().await;
    let api = five(&cluster).await;
    let namespace = api.namespace().unwrap();
    let partial = Api::<PartialObjectMeta<ConfigMap>>::namespaced(cluster.client(), namespace);
    let mut stream = watcher::watcher(partial, watcher::Config::default().labels("app"))
        .applied_objects()
        .boxed();
    for _ in 0..5 {
        let object = tokio::time::timeout(PATIENCE, stream.next())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        assert_eq!(object.types.unwrap().kind, "PartialObjectMetadata");
        assert!(object.metadata.labels.is_some());
    }
    api.create(&PostParams::default(), &config("f", "web"))
        .await
        .unwrap();
    let object = tokio::time::timeout(PATIENCE, stream.next())
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert_eq!(object.metadata.name.as_deref(), Some("f"));
}

#[tokio::test]
async fn a_reflector_follows() {
    let cluster = TestCluster::new().await;
    let api = five(&cluster).await;
    let (store, writer) = reflector::store();
    let stream = watcher::watcher(api.clone(), watcher::Config::default().labels("app"));
    let following = reflector::reflector(writer, stream)
        .applied_objects()
        .for_each(|_| async {});
    let reading = async {
        store.wait_until_ready().await.unwrap();
        assert_eq!(store.len(), 5);
        api.delete("a", &DeleteParams::default()).await.unwrap();
        api.create(&PostParams::default(), &config("f", "web"))
            .await
            .unwrap();
        eventually("the store follows", || async {
            let names: BTreeSet<String> = store.state().iter().map(|one| one.name_any()).collect();
            (names.iter().map(String::as_str).eq(["b", "c", "d", "e", "f"])).then_some(())
        })
        .await;
    };
    tokio::select! {
        () = following => panic!("the watch ended"),
        () = reading => {}
    }
}

#[tokio::test]
async fn a_list_newer_than_there_is_is_refused() {
    let cluster = TestCluster::new().await;
    let api = five(&cluster).await;
    let future = ListParams::default()
        .at("999999999999")
        .matching(VersionMatch::NotOlderThan);
    // Without the client's own patience, which would try again for a while.
    let mut config = cluster.config();
    config.default_retry = false;
    let api = Api::<ConfigMap>::namespaced(kube::Client::try_from(config).unwrap(), api.namespace().unwrap());
    assert!(matches!(api.list(&future).await, Err(kube::Error::Api(status)) if status.code == 504));
}
