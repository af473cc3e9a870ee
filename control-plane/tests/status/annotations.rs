use http::Method;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt as _};
use weir_api_server::{Effect, Requests, TestCluster, eventually};

use crate::replica::{PACE, Replica, install};

const ENROLLED: &str = "weir.dev/enrolled";
const NOT_ENROLLED: &str = "weir.dev/not-enrolled";
const MESH: (&str, &str) = ("weir.dev/mesh", "enabled");

/// Waits until a pod's annotation is this.
async fn annotation(pods: &Api<Pod>, name: &str, key: &str, expected: Option<&str>) {
    eventually(&format!("{name}: {key}: {expected:?}"), || async {
        let pod = pods.get(name).await.unwrap();
        let found = pod.annotations().get(key).map(String::as_str);
        (found == expected).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_annotation_comes_and_goes_with_what_the_agent_says() {
    let cluster = TestCluster::new().await;
    install(&cluster).await;
    let namespace = cluster.namespace("status").await;
    let (node, other) = (cluster.node("status").await, cluster.node("status").await);
    let pods = Api::<Pod>::namespaced(cluster.client(), &namespace);
    let pod = cluster
        .pod(&namespace, "web")
        .on(&node)
        .annotations(&[MESH])
        .create()
        .await;
    let host = cluster
        .pod(&namespace, "host")
        .on(&node)
        .annotations(&[MESH])
        .host_network();
    host.create().await;
    let faults = cluster.faults();
    let replica = Replica::start(&cluster, faults.client().unwrap(), &namespace, "a");
    eventually("why it cannot be", || async {
        let pod = pods.get("host").await.unwrap();
        let why = pod.annotations().get(NOT_ENROLLED)?;
        why.contains("hostNetwork").then_some(())
    })
    .await;
    let (node, other, uid) = (node.name_any(), other.name_any(), pod.uid().unwrap());
    // Another node's agent has no say.
    replica.report(&other, Some(&[(&uid, Ok(()))]));
    replica.report(&node, Some(&[(&uid, Err("no room"))]));
    annotation(&pods, "web", NOT_ENROLLED, Some("no room")).await;
    annotation(&pods, "web", ENROLLED, None).await;
    replica.report(&node, Some(&[(&uid, Ok(()))]));
    annotation(&pods, "web", ENROLLED, Some("true")).await;
    annotation(&pods, "web", NOT_ENROLLED, None).await;
    annotation(&pods, "web", MESH.0, Some(MESH.1)).await;
    let patches = Requests::all().method(Method::PATCH).of("pods");
    let before = faults.count(&patches);
    assert_eq!(before, 3, "one for each change");
    tokio::time::sleep(PACE.rest * 2).await;
    assert_eq!(faults.count(&patches), before, "nothing changed");
    replica.report(&node, Some(&[]));
    annotation(&pods, "web", ENROLLED, None).await;
}

#[tokio::test]
async fn a_pod_made_anew_does_not_get_what_was_meant_for_the_earlier_one() {
    let cluster = TestCluster::new().await;
    install(&cluster).await;
    let namespace = cluster.namespace("status").await;
    let node = cluster.node("status").await;
    let make = async || {
        let pod = cluster.pod(&namespace, "web").on(&node).annotations(&[MESH]);
        pod.create().await
    };
    let first = make().await;
    let faults = cluster.faults();
    let patches = Requests::all().method(Method::PATCH).of("pods");
    // The write is on its way when the pod is made anew.
    faults.inject_times(
        1,
        Effect::Delay(std::time::Duration::from_secs(1)),
        patches.clone(),
    );
    let replica = Replica::start(&cluster, faults.client().unwrap(), &namespace, "a");
    replica.report(&node.name_any(), Some(&[(&first.uid().unwrap(), Ok(()))]));
    eventually("the write is on its way", || async {
        (faults.count(&patches) == 1).then_some(())
    })
    .await;
    cluster.delete_pod(&first).await;
    let second = make().await;
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    let pods = Api::<Pod>::namespaced(cluster.client(), &namespace);
    let found = pods.get("web").await.unwrap();
    assert_eq!(found.uid(), second.uid());
    assert!(!found.annotations().contains_key(ENROLLED));
    // Nor was it there for a while, to be taken back.
    assert_eq!(faults.count(&patches), 1);
    replica.report(&node.name_any(), Some(&[(&second.uid().unwrap(), Ok(()))]));
    annotation(&pods, "web", ENROLLED, Some("true")).await;
}
