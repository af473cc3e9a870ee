//! The objects that a control plane lives on, as the helpers make them, and what it writes itself.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failed step is a failed test"
)]

use k8s_openapi::api::{coordination::v1::Lease, core::v1, events::v1::Event};
use kube::{
    Api, Resource as _, ResourceExt as _,
    api::{ListParams, PostParams},
    runtime::events::{self, EventType, Recorder, Reporter},
};
use serde_json::json;
use weir_api_server::{TestCluster, object};

#[tokio::test]
async fn pods_of_a_daemon_set_and_slices_of_a_service_say_whose_they_are() {
    let cluster = TestCluster::new().await;
    let namespace = cluster.namespace_with("objects", &[("mesh", "on")]).await;
    let node = cluster.node("objects").await;
    let daemon_set = cluster.daemon_set(&namespace, "agent").await;
    assert_eq!(daemon_set.metadata.generation, Some(1));
    let pod = cluster
        .pod(&namespace, "agent-0")
        .on(&node)
        .owned_by(&daemon_set)
        .host_network()
        .annotations(&[("note", "yes")])
        .addresses(&["192.0.2.1"])
        .create()
        .await;
    let owner = &pod.owner_references()[0];
    assert_eq!(
        (owner.kind.as_str(), Some(&owner.uid)),
        ("DaemonSet", daemon_set.metadata.uid.as_ref())
    );
    assert_eq!(pod.spec.as_ref().unwrap().host_network, Some(true));
    assert_eq!(pod.annotations()["note"], "yes");
    let service = cluster.service(&namespace, "agent", &[("http", 80, 8080)]).await;
    let slice = cluster.endpoint_slice(&service, &[&pod], &[("http", 8080)]).await;
    assert_eq!(slice.labels()["kubernetes.io/service-name"], "agent");
    assert_eq!(slice.endpoints[0].addresses, ["192.0.2.1"]);
    assert_eq!(slice.endpoints[0].conditions.as_ref().unwrap().ready, Some(true));
    assert_eq!(slice.ports.unwrap()[0].protocol.as_deref(), Some("TCP"));
}

#[tokio::test]
async fn an_event_is_the_same_in_both_groups() {
    let cluster = TestCluster::new().await;
    let namespace = cluster.namespace("objects").await;
    let pod = cluster.pod(&namespace, "one").create().await;
    let reporter = Reporter {
        controller: "weir.dev/control".to_owned(),
        instance: None,
    };
    let recorder = Recorder::new(cluster.client(), reporter);
    let event = events::Event {
        type_: EventType::Warning,
        reason: "Refused".to_owned(),
        note: Some("why".to_owned()),
        action: "Checking".to_owned(),
        secondary: None,
    };
    recorder.publish(&event, &pod.object_ref(&())).await.unwrap();
    let new = Api::<Event>::namespaced(cluster.client(), &namespace);
    let found = new.list(&ListParams::default()).await.unwrap().items;
    let found = found
        .iter()
        .find(|one| one.reason.as_deref() == Some("Refused"))
        .unwrap();
    assert_eq!(found.note.as_deref(), Some("why"));
    assert_eq!(found.regarding.as_ref().unwrap().uid, pod.uid());
    let core = Api::<v1::Event>::namespaced(cluster.client(), &namespace);
    let about = ListParams::default().fields(&format!(
        "involvedObject.uid={},reason=Refused",
        pod.uid().unwrap()
    ));
    let found = core.list(&about).await.unwrap().items;
    assert_eq!(found[0].message.as_deref(), Some("why"));
    assert_eq!(found[0].reporting_component.as_deref(), Some("weir.dev/control"));
}

#[tokio::test]
async fn of_two_who_take_a_lease_one_has_a_conflict() {
    let cluster = TestCluster::new().await;
    let namespace = cluster.namespace("objects").await;
    let leases = Api::<Lease>::namespaced(cluster.client(), &namespace);
    let lease = |holder: &str, version: Option<String>| -> Lease {
        object(json!({
            "metadata": {"name": "leader", "resourceVersion": version},
            "spec": {"holderIdentity": holder, "leaseDurationSeconds": 15, "renewTime": "2026-01-01T00:00:00.123456Z"},
        }))
    };
    let first = leases
        .create(&PostParams::default(), &lease("one", None))
        .await
        .unwrap();
    let version = first.resource_version();
    let second = leases
        .replace("leader", &PostParams::default(), &lease("two", version.clone()))
        .await
        .unwrap();
    assert_eq!(second.spec.unwrap().holder_identity.as_deref(), Some("two"));
    let late = leases
        .replace("leader", &PostParams::default(), &lease("three", version))
        .await;
    assert!(matches!(late, Err(kube::Error::Api(status)) if status.code == 409));
    let blind = leases
        .replace("leader", &PostParams::default(), &lease("four", None))
        .await;
    assert!(matches!(blind, Err(kube::Error::Api(status)) if status.code == 422));
}
