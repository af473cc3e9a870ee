//! Creating, replacing, patching and deleting, as the API documentation has it ("Kubernetes API Concepts").

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failed step is a failed test"
)]

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Pod, Secret, Service};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
};
use serde_json::{Value, json};
use weir_api_server::{TestCluster, eventually, object};

/// The code and reason of a refusal.
fn refusal<T: std::fmt::Debug>(result: kube::Result<T>) -> (u16, String) {
    match result {
        Err(kube::Error::Api(status)) => (status.code, status.reason.clone()),
        other => panic!("not refused: {other:?}"),
    }
}

fn config(name: &str, value: &str) -> ConfigMap {
    object(json!({"metadata": {"name": name}, "data": {"key": value}}))
}

async fn configs(cluster: &TestCluster) -> (Api<ConfigMap>, String) {
    let namespace = cluster.namespace("writes").await;
    (Api::namespaced(cluster.client(), &namespace), namespace)
}

#[tokio::test]
async fn a_new_object_has_what_the_server_gives_it() {
    let cluster = TestCluster::new().await;
    let (api, namespace) = configs(&cluster).await;
    let made = api
        .create(&PostParams::default(), &config("one", "a"))
        .await
        .unwrap();
    assert!(made.uid().is_some_and(|uid| uid.len() == 36));
    assert!(made.resource_version().is_some());
    assert!(made.creation_timestamp().is_some());
    assert_eq!(made.namespace(), Some(namespace));
    assert_eq!(
        refusal(api.create(&PostParams::default(), &config("one", "b")).await),
        (409, "AlreadyExists".to_owned())
    );
}

#[tokio::test]
async fn a_generated_name_begins_as_asked() {
    let cluster = TestCluster::new().await;
    let (api, _) = configs(&cluster).await;
    let config: ConfigMap = object(json!({"metadata": {"generateName": "some-"}}));
    let one = api
        .create(&PostParams::default(), &config)
        .await
        .unwrap()
        .name_any();
    let two = api
        .create(&PostParams::default(), &config)
        .await
        .unwrap()
        .name_any();
    assert!(
        one.starts_with("some-") && one.len() == "some-".len() + 5,
        "{one}"
    );
    assert_ne!(one, two);
}

#[tokio::test]
async fn what_cannot_be_is_refused_with_the_code_of_the_documentation() {
    let cluster = TestCluster::new().await;
    let (api, namespace) = configs(&cluster).await;
    let create = PostParams::default();
    let pods = Api::<Pod>::namespaced(cluster.client(), &namespace);
    let container = json!([{"name": "main", "image": "i"}]);
    let pod = |name: &str, spec: Value| -> Pod { object(json!({"metadata": {"name": name}, "spec": spec})) };
    assert_eq!(refusal(api.get("none").await).0, 404);
    assert_eq!(refusal(api.create(&create, &config("Upper", "a")).await).0, 422);
    assert_eq!(
        refusal(api.create(&create, &object(json!({"metadata": {}}))).await).0,
        422
    );
    assert_eq!(
        refusal(
            pods.create(&create, &pod("empty", json!({"containers": []})))
                .await
        )
        .0,
        422
    );
    let stranger = pod(
        "stranger",
        json!({"containers": container, "serviceAccountName": "nobody"}),
    );
    assert_eq!(refusal(pods.create(&create, &stranger).await).0, 403);
    let elsewhere = Api::<ConfigMap>::namespaced(cluster.client(), "no-such-namespace");
    assert_eq!(
        refusal(elsewhere.create(&create, &config("one", "a")).await).0,
        404
    );
    let mut versioned = config("one", "a");
    versioned.metadata.resource_version = Some("5".to_owned());
    assert_eq!(refusal(api.create(&create, &versioned).await).0, 500);
}

#[tokio::test]
async fn a_stale_replacement_is_a_conflict_and_one_that_changes_nothing_makes_no_version() {
    let cluster = TestCluster::new().await;
    let (api, _) = configs(&cluster).await;
    let first = api
        .create(&PostParams::default(), &config("one", "a"))
        .await
        .unwrap();
    let mut second = first.clone();
    second.data = config("one", "b").data;
    let second = api.replace("one", &PostParams::default(), &second).await.unwrap();
    assert_ne!(first.resource_version(), second.resource_version());
    assert_eq!(
        refusal(api.replace("one", &PostParams::default(), &first).await),
        (409, "Conflict".to_owned())
    );
    let same = api.replace("one", &PostParams::default(), &second).await.unwrap();
    assert_eq!(same.resource_version(), second.resource_version());
    let unconditional = api
        .replace("one", &PostParams::default(), &config("one", "c"))
        .await
        .unwrap();
    assert_eq!(unconditional.data, config("one", "c").data);
}

#[tokio::test]
async fn every_kind_of_patch_does_what_its_document_says() {
    let cluster = TestCluster::new().await;
    let (api, _) = configs(&cluster).await;
    let params = PatchParams::default();
    api.create(&PostParams::default(), &config("one", "a"))
        .await
        .unwrap();
    let merge = json!({"data": {"key": null, "other": "b"}, "metadata": {"labels": {"l": "1"}}});
    let merged = api.patch("one", &params, &Patch::Merge(merge)).await.unwrap();
    assert_eq!(merged.data, Some([("other".to_owned(), "b".to_owned())].into()));
    let stale = json!({"metadata": {"resourceVersion": "1"}, "data": {"x": "y"}});
    assert_eq!(
        refusal(api.patch("one", &params, &Patch::Merge(stale)).await).0,
        409
    );
    let strategic = api
        .patch("one", &params, &Patch::Strategic(json!({"data": {"s": "t"}})))
        .await
        .unwrap();
    assert_eq!(strategic.data.unwrap().len(), 2);
    assert_eq!(
        refusal(api.patch("none", &params, &Patch::Merge(json!({}))).await).0,
        404
    );
}

#[tokio::test]
async fn finalizers_hold_an_object_until_they_are_gone() {
    let cluster = TestCluster::new().await;
    let (api, _) = configs(&cluster).await;
    let mut held = config("one", "a");
    held.metadata.finalizers = Some(vec!["test.weir.dev/hold".to_owned()]);
    api.create(&PostParams::default(), &held).await.unwrap();
    let deleted = api.delete("one", &DeleteParams::default()).await.unwrap();
    assert!(
        deleted
            .left()
            .is_some_and(|object| object.metadata.deletion_timestamp.is_some())
    );
    assert!(
        api.get("one")
            .await
            .unwrap()
            .metadata
            .deletion_timestamp
            .is_some()
    );
    let more = json!({"metadata": {"finalizers": ["test.weir.dev/hold", "test.weir.dev/more"]}});
    assert_eq!(
        refusal(
            api.patch("one", &PatchParams::default(), &Patch::Merge(more))
                .await
        )
        .0,
        422
    );
    let none = json!({"metadata": {"finalizers": null}});
    api.patch("one", &PatchParams::default(), &Patch::Merge(none))
        .await
        .unwrap();
    assert!(api.get_opt("one").await.unwrap().is_none());
}

#[tokio::test]
async fn a_replacement_with_another_uid_is_a_conflict_and_a_patch_invalid() {
    let cluster = TestCluster::new().await;
    let (api, _) = configs(&cluster).await;
    api.create(&PostParams::default(), &config("one", "a"))
        .await
        .unwrap();
    let mut other = config("one", "b");
    other.metadata.uid = Some("other".to_owned());
    let replaced = api.replace("one", &PostParams::default(), &other).await;
    assert_eq!(refusal(replaced), (409, "Conflict".to_owned()));
    let params = PatchParams::default();
    let merged = api.patch("one", &params, &Patch::Merge(&other)).await;
    match merged {
        Err(kube::Error::Api(status)) => {
            assert_eq!(status.code, 422, "{status:?}");
            assert_eq!(status.details.as_ref().unwrap().causes[0].field, "metadata.uid");
        }
        other => panic!("{other:?}"),
    }
    let params = PatchParams::apply("test").force();
    let applied = api.patch("one", &params, &Patch::Apply(&other)).await;
    assert_eq!(refusal(applied).0, 422);
    other.metadata.name = Some("none".to_owned());
    let applied = api.patch("none", &params, &Patch::Apply(&other)).await;
    assert_eq!(refusal(applied), (409, "Conflict".to_owned()));
}

#[tokio::test]
async fn a_deletion_with_another_uid_is_a_conflict() {
    let cluster = TestCluster::new().await;
    let (api, _) = configs(&cluster).await;
    let made = api
        .create(&PostParams::default(), &config("one", "a"))
        .await
        .unwrap();
    let only = |uid: Option<String>| DeleteParams {
        preconditions: Some(Preconditions {
            uid,
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    assert_eq!(
        refusal(api.delete("one", &only(Some("other".to_owned()))).await).0,
        409
    );
    assert!(api.delete("one", &only(made.uid())).await.unwrap().is_right());
    assert_eq!(refusal(api.delete("one", &DeleteParams::default()).await).0, 404);
}

#[tokio::test]
async fn a_pod_on_a_node_has_its_grace_period_and_none_when_asked_for_none() {
    let cluster = TestCluster::new().await;
    let namespace = cluster.namespace("grace").await;
    let node = cluster.node("grace").await;
    let pods = Api::<Pod>::namespaced(cluster.client(), &namespace);
    let pod = cluster
        .pod(&namespace, "one")
        .on(&node)
        .addresses(&["192.0.2.1"])
        .create()
        .await;
    let deleted = pods
        .delete("one", &DeleteParams::default())
        .await
        .unwrap()
        .left()
        .unwrap();
    assert_eq!(deleted.metadata.deletion_grace_period_seconds, Some(30));
    assert_eq!(pods.get("one").await.unwrap().uid(), pod.uid());
    cluster.delete_pod(&pod).await;
    assert!(pods.get_opt("one").await.unwrap().is_none());
}

#[tokio::test]
async fn the_status_of_a_pod_is_written_apart_from_its_spec() {
    let cluster = TestCluster::new().await;
    let namespace = cluster.namespace("status").await;
    let node = cluster.node("status").await;
    let pods = Api::<Pod>::namespaced(cluster.client(), &namespace);
    let pod = cluster
        .pod(&namespace, "one")
        .on(&node)
        .addresses(&["192.0.2.1", "2001:db8::1"])
        .create()
        .await;
    let status = pod.status.clone().unwrap();
    assert_eq!(status.phase.as_deref(), Some("Running"));
    assert_eq!(status.pod_ips.unwrap().len(), 2);
    let both = json!({"metadata": {"labels": {"l": "1"}}, "status": {"phase": "Failed"}});
    let patched = pods
        .patch("one", &PatchParams::default(), &Patch::Merge(both))
        .await
        .unwrap();
    assert_eq!(patched.status.unwrap().phase.as_deref(), Some("Running"));
    let elsewhere = json!({"spec": {"hostname": "other"}});
    assert_eq!(
        refusal(
            pods.patch("one", &PatchParams::default(), &Patch::Merge(elsewhere))
                .await
        )
        .0,
        422
    );
    // Through the status labels and annotations can be written, and nothing that decides what runs.
    let beside = json!({
        "metadata": {
            "uid": pod.metadata.uid, "annotations": {"a": "1"}, "labels": {"l": "2"},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "none", "uid": "none"}],
        },
        "spec": {"containers": [{"name": "main", "image": "registry.invalid/other"}]},
    });
    let written = pods
        .patch_status("one", &PatchParams::default(), &Patch::Merge(beside))
        .await
        .unwrap();
    assert_eq!(written.annotations()["a"], "1");
    assert_eq!(written.labels()["l"], "2");
    assert!(written.owner_references().is_empty());
    assert_eq!(
        written.spec.unwrap().containers[0].image.as_deref(),
        Some("registry.invalid/none")
    );
    let other = json!({"metadata": {"uid": "other", "annotations": {"a": "2"}}});
    let refused = pods
        .patch_status("one", &PatchParams::default(), &Patch::Merge(other))
        .await;
    assert_eq!(refusal(refused).0, 422, "a UID is a field that cannot be changed");
    let unready = cluster.set_ready(&pod, false).await;
    let conditions = unready.status.unwrap().conditions.unwrap();
    assert_eq!(conditions.len(), 4, "the other conditions stay");
    assert!(
        conditions
            .iter()
            .any(|condition| condition.type_ == "Ready" && condition.status == "False")
    );
}

#[tokio::test]
async fn a_deleted_namespace_takes_with_it_what_is_in_it() {
    let cluster = TestCluster::new().await;
    let (api, namespace) = configs(&cluster).await;
    api.create(&PostParams::default(), &config("one", "a"))
        .await
        .unwrap();
    let namespaces = Api::<Namespace>::all(cluster.client());
    namespaces
        .delete(&namespace, &DeleteParams::default())
        .await
        .unwrap();
    eventually("the namespace is gone", || async {
        namespaces
            .get_opt(&namespace)
            .await
            .unwrap()
            .is_none()
            .then_some(())
    })
    .await;
    assert!(api.get_opt("one").await.unwrap().is_none());
}

#[tokio::test]
async fn a_namespace_that_is_being_deleted_takes_nothing_new() {
    let cluster = TestCluster::new().await;
    let (api, namespace) = configs(&cluster).await;
    let mut held = config("one", "a");
    held.metadata.finalizers = Some(vec!["test.weir.dev/hold".to_owned()]);
    api.create(&PostParams::default(), &held).await.unwrap();
    let namespaces = Api::<Namespace>::all(cluster.client());
    namespaces
        .delete(&namespace, &DeleteParams::default())
        .await
        .unwrap();
    assert_eq!(
        refusal(api.create(&PostParams::default(), &config("two", "a")).await).0,
        403
    );
    let free = json!({"metadata": {"finalizers": null}});
    api.patch("one", &PatchParams::default(), &Patch::Merge(free))
        .await
        .unwrap();
    eventually("the namespace is gone", || async {
        namespaces
            .get_opt(&namespace)
            .await
            .unwrap()
            .is_none()
            .then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_server_fills_in_what_is_not_given() {
    let cluster = TestCluster::new().await;
    let namespace = cluster.namespace("defaults").await;
    let pod = cluster.pod(&namespace, "one").create().await;
    let spec = pod.spec.unwrap();
    assert_eq!(spec.restart_policy.as_deref(), Some("Always"));
    assert_eq!(spec.service_account_name.as_deref(), Some("default"));
    assert_eq!(pod.status.unwrap().phase.as_deref(), Some("Pending"));
    let service: Service = cluster.service(&namespace, "web", &[("http", 80, 8080)]).await;
    let spec = service.spec.unwrap();
    assert!(
        spec.cluster_ip
            .is_some_and(|address| address.parse::<std::net::IpAddr>().is_ok())
    );
    assert_eq!(spec.ports.unwrap()[0].protocol.as_deref(), Some("TCP"));
    let headless = cluster
        .headless_service(&namespace, "db", &[("db", 5432, 5432)])
        .await;
    assert_eq!(headless.spec.unwrap().cluster_ip.as_deref(), Some("None"));
    let secrets = Api::<Secret>::namespaced(cluster.client(), &namespace);
    let secret = object(json!({"metadata": {"name": "s"}, "stringData": {"a": "b"}}));
    let secret = secrets.create(&PostParams::default(), &secret).await.unwrap();
    assert_eq!(secret.type_.as_deref(), Some("Opaque"));
    assert_eq!(secret.data.unwrap()["a"].0, b"b");
}

#[tokio::test]
async fn nothing_is_written_by_a_dry_run() {
    let cluster = TestCluster::new().await;
    let (api, _) = configs(&cluster).await;
    let dry = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    assert!(
        api.create(&dry, &config("one", "a"))
            .await
            .unwrap()
            .uid()
            .is_some()
    );
    assert!(api.get_opt("one").await.unwrap().is_none());
}

#[tokio::test]
async fn a_node_is_there_under_its_own_name() {
    let cluster = TestCluster::new().await;
    let node = cluster.node("node").await;
    let nodes = Api::<Node>::all(cluster.client());
    assert_eq!(nodes.get(&node.name_any()).await.unwrap().uid(), node.uid());
}
