//! The condition of pods that are refused an address.

use k8s_openapi::api::core::v1::{Pod, PodCondition};
use kube::{
    Api, ResourceExt as _,
    api::{Patch, PatchParams},
};
use serde_json::json;
use weir_api_server::{TestCluster, eventually};
use weir_control::status::ADDRESS;

use crate::replica::{Replica, install};

const SHARED: &str = "192.0.2.1";

fn condition(pod: &Pod, kind: &str) -> Option<PodCondition> {
    let conditions = pod.status.iter().filter_map(|status| status.conditions.as_ref());
    conditions.flatten().find(|one| one.type_ == kind).cloned()
}

async fn set_condition(pods: &Api<Pod>, name: &str, kind: &str, status: &str) {
    // As kubelet writes its own, and operators theirs.
    let patch = json!({"status": {"conditions": [{"type": kind, "status": status}]}});
    let params = PatchParams::default();
    pods.patch_status(name, &params, &Patch::Strategic(patch))
        .await
        .unwrap();
}

#[tokio::test]
async fn the_newer_of_two_pods_of_an_address_has_a_condition_until_the_older_is_gone() {
    let cluster = TestCluster::new().await;
    install(&cluster).await;
    let namespace = cluster.namespace("status").await;
    let node = cluster.node("status").await;
    let pods = Api::<Pod>::namespaced(cluster.client(), &namespace);
    let make = async |name: &str| {
        let pod = cluster.pod(&namespace, name).on(&node);
        pod.addresses(&[SHARED]).create().await
    };
    let older = make("web").await;
    // Pods are older by whole seconds.
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    make("thief").await;
    set_condition(&pods, "thief", "example.org/Checked", "True").await;
    let _replicas = ["a", "b"].map(|name| Replica::start(&cluster, cluster.client(), &namespace, name));

    let refused = eventually("the condition", || async {
        condition(&pods.get("thief").await.unwrap(), ADDRESS)
    })
    .await;
    assert_eq!(
        (&*refused.status, refused.reason.as_deref()),
        ("False", Some("AddressRefused"))
    );
    let message = refused.message.unwrap();
    assert!(
        message.contains(SHARED) && message.contains(&format!("{namespace}/web")),
        "{message}"
    );
    assert!(refused.last_transition_time.is_some());
    // Each keeps off the other's.
    set_condition(&pods, "thief", "Ready", "False").await;
    let thief = pods.get("thief").await.unwrap();
    for (kind, status) in [
        (ADDRESS, "False"),
        ("Ready", "False"),
        ("example.org/Checked", "True"),
    ] {
        assert_eq!(condition(&thief, kind).unwrap().status, status, "{kind}");
    }
    assert_eq!(condition(&pods.get("web").await.unwrap(), ADDRESS), None);

    cluster.delete_pod(&older).await;
    eventually("the condition to go", || async {
        condition(&pods.get("thief").await.unwrap(), ADDRESS)
            .is_none()
            .then_some(())
    })
    .await;
    let thief = pods.get("thief").await.unwrap();
    for (kind, status) in [("Ready", "False"), ("example.org/Checked", "True")] {
        assert_eq!(condition(&thief, kind).unwrap().status, status, "{kind}");
    }
    assert!(!thief.annotations().contains_key("weir.dev/not-enrolled"));
}
