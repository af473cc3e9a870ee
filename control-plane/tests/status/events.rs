use http::Method;
use k8s_openapi::api::events::v1::Event;
use kube::{Api, ResourceExt as _, api::ListParams};
use serde_json::json;
use weir_api_server::{Effect, Requests, TestCluster, eventually};

use crate::replica::{PACE, Replica, install, policy};

#[tokio::test]
async fn what_is_wrong_is_told_once_by_all_replicas_together() {
    let cluster = TestCluster::new().await;
    install(&cluster).await;
    let namespace = cluster.namespace("status").await;
    let node = cluster.node("status").await;
    let mesh = [("weir.dev/mesh", "enabled")];
    let pod = |name: &str| cluster.pod(&namespace, name).on(&node).annotations(&mesh);
    pod("host").host_network().create().await;
    // Of two that claim an address the older has it; of two of one second, the one whose UID comes first.
    for name in ["web", "thief"] {
        pod(name).addresses(&["192.0.2.1"]).create().await;
    }
    let wrong = json!([{"when": [{"key": "source.ip", "values": ["10.0.0.0/99"]}]}]);
    policy(&cluster, &namespace, "bad", json!({ "rules": wrong })).await;
    policy(&cluster, &namespace, "good", json!({})).await;
    let faults = cluster.faults();
    let posts = Requests::all().method(Method::POST).of("events");
    faults.inject_times(2, Effect::LoseResponse, posts.clone());
    let _replicas =
        ["a", "b"].map(|name| Replica::start(&cluster, faults.client().unwrap(), &namespace, name));
    let api = Api::<Event>::namespaced(cluster.client(), &namespace);
    let told = async || {
        let events = api.list(&ListParams::default()).await.unwrap().items;
        let ours = events
            .into_iter()
            .filter(|event| event.reporting_controller.as_deref() == Some("weir.dev/control-plane"));
        let mut told: Vec<_> = ours
            .map(|event| {
                let about = event.regarding.clone().unwrap();
                let reason = event.reason.clone().unwrap();
                assert!(
                    event.note.is_some() && about.uid.is_some() && event.type_.as_deref() == Some("Warning")
                );
                assert_eq!(event.namespace().as_deref(), Some(&*namespace));
                (reason, about.kind.unwrap(), about.name.unwrap())
            })
            .collect();
        told.sort();
        told
    };
    eventually("three events", || async {
        (told().await.len() == 3).then_some(())
    })
    .await;
    tokio::time::sleep(PACE.rest * 2).await;
    let told = told().await;
    let kinds: Vec<_> = told
        .iter()
        .map(|(reason, kind, _)| (&**reason, &**kind))
        .collect();
    assert_eq!(
        kinds,
        [
            ("AddressRefused", "Pod"),
            ("NotEnrolled", "Pod"),
            ("PolicyRefused", "AuthorizationPolicy"),
        ]
    );
    assert_eq!((&*told[1].2, &*told[2].2), ("host", "bad"));
    // Each replica tries each once, and again where an answer was lost.
    let tries = faults.count(&posts);
    assert!((3..=8).contains(&tries), "{tries} tries");
    tokio::time::sleep(PACE.rest * 2).await;
    assert_eq!(faults.count(&posts), tries);
}
