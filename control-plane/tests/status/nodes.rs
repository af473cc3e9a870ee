//! The taint that keeps pods off a node until its agent is ready.

use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;
use weir_api_server::{TestCluster, eventually};
use weir_control::status::NODE_TAINT;

use crate::replica::{Replica, TAINTED};

/// Without those of Kubernetes' own, which a real cluster's controllers put on and take away meanwhile.
async fn taints(nodes: &Api<Node>, name: &str) -> Vec<String> {
    let node = nodes.get(name).await.unwrap();
    let taints = node.spec.and_then(|spec| spec.taints).unwrap_or_default();
    let keys = taints.into_iter().map(|taint| taint.key);
    keys.filter(|key| !key.starts_with("node.kubernetes.io/"))
        .collect()
}

async fn ready(nodes: &Api<Node>, name: &str, status: &str) {
    let condition = json!({
        "type": "Ready", "status": status, "reason": "Test", "message": "",
        "lastHeartbeatTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z",
    });
    let patch = json!({"status": {"conditions": [condition]}});
    let patched = nodes
        .patch_status(name, &PatchParams::default(), &Patch::Merge(patch))
        .await;
    patched.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_freed_once_it_and_its_agent_are_ready_and_keeps_the_taints_of_others() {
    let cluster = TestCluster::new().await;
    crate::replica::install(&cluster).await;
    let namespace = cluster.namespace("nodes").await;
    let node = cluster.node(TAINTED).await;
    let name = node.metadata.name.unwrap();
    let client: Client = cluster.client();
    let nodes: Api<Node> = Api::all(client.clone());
    let others = taints(&nodes, &name).await;
    assert!(!others.is_empty(), "the test's nodes bear a taint of their own");
    let first = Replica::start(&cluster, client.clone(), &namespace, "first");
    let _second = Replica::start(&cluster, client, &namespace, "second");

    let tainted = eventually("the node that starts is tainted", async || {
        let now = taints(&nodes, &name).await;
        now.contains(&NODE_TAINT.to_owned()).then_some(now)
    });
    assert_eq!(tainted.await.len(), others.len() + 1);

    // The agent is there before the node is: not yet.
    first.report(&name, Some(&[]));
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert!(taints(&nodes, &name).await.contains(&NODE_TAINT.to_owned()));

    ready(&nodes, &name, "True").await;
    eventually("the node is freed", async || {
        (taints(&nodes, &name).await == others).then_some(())
    })
    .await;
}
