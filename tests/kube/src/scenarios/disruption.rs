//! Parts of Weir go and come back.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::{at, pair};
use crate::{
    cluster::{Cluster, SYSTEM},
    pods::{Spec, Traffic},
};

fn control() -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"namespace": SYSTEM, "name": "weir-control"}})
}

pub(super) async fn restart(cluster: &mut Cluster) -> anyhow::Result<Vec<String>> {
    let namespace = cluster.namespace("restart", Some("enabled")).await?;
    let (client, server) = pair(cluster, &namespace, true).await?;
    let mut traffic = Traffic::start(cluster, &client, &at(&server)).await?;
    cluster.restart("Deployment", "weir-control").await?;
    let before = [
        cluster.agent(&cluster.nodes[0]).await?,
        cluster.agent(&cluster.nodes[1]).await?,
    ];
    cluster.restart("DaemonSet", "weir-agent").await?;
    for (node, before) in cluster.nodes.iter().zip(before) {
        ensure!(
            cluster.agent(node).await? != before,
            "the agent of {node} is the one before"
        );
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    traffic.unharmed().await?;
    super::mesh::tunnelled(cluster, &client, &server).await?;
    let (well, said) = cluster.try_weir(&["check"]).await?;
    ensure!(well, "weir check: {said}");
    Ok(Vec::new())
}

/// Keeps agents off a node, and puts them back.
async fn agents_on(cluster: &Cluster, node: &str, wanted: bool) -> anyhow::Result<()> {
    let label = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": node, "labels": {"weir.dev/test-no-agent": if wanted { Value::Null } else { json!("true") }}},
    });
    cluster.merge(&label).await?;
    let affinity = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
        {"matchExpressions": [{"key": "weir.dev/test-no-agent", "operator": "DoesNotExist"}]},
    ]}}});
    let affinity = if wanted { Value::Null } else { affinity };
    let patch = json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"namespace": SYSTEM, "name": "weir-agent"},
        "spec": {"template": {"spec": {"affinity": affinity}}},
    });
    cluster.merge(&patch).await
}

pub(super) async fn agent_away(cluster: &mut Cluster) -> anyhow::Result<Vec<String>> {
    let namespace = cluster.namespace("away", Some("enabled")).await?;
    let outside = cluster.namespace("plain", None).await?;
    let (client, server) = pair(cluster, &namespace, true).await?;
    // A namespace of which nothing is known would count as one of the mesh.
    pair(cluster, &outside, false).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let node = cluster.nodes[1].clone();
    agents_on(cluster, &node, false).await?;
    cluster
        .until("the node's agent is gone", async || {
            Ok(cluster
                .agent(&node)
                .await
                .is_err()
                .then_some(())
                .ok_or_else(|| "it is there".to_owned()))
        })
        .await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let result = while_away(cluster, &namespace, &outside, &node).await;
    agents_on(cluster, &node, true).await?;
    cluster.rolled_out("DaemonSet", "weir-agent").await?;
    result?;
    let waited = cluster.ready(&namespace, "waits").await?;
    cluster.enrolled(&[&waited], true).await?;
    cluster
        .until("pods that were there are reached again", async || {
            let reached = cluster.reaches(&client, &at(&server)).await?;
            Ok(reached.then_some(()).ok_or_else(|| "they are not".to_owned()))
        })
        .await?;
    Ok(Vec::new())
}

async fn while_away(cluster: &Cluster, namespace: &str, outside: &str, node: &str) -> anyhow::Result<()> {
    let serve = ["echo-server", "--port", "7000"];
    let spec = |namespace, name| Spec {
        namespace,
        name,
        node,
        command: &serve,
        more: json!({}),
    };
    cluster.create_pod(&spec(namespace, "waits")).await?;
    // Outside of the mesh they start as ever.
    cluster.pod(&spec(outside, "starts")).await?;
    cluster
        .until("an event says why the pod waits", async || {
            let events = cluster.events(namespace, "waits").await?;
            let told = events.iter().any(|note| note.contains("weir"));
            Ok(told.then_some(()).ok_or_else(|| format!("{events:?}")))
        })
        .await?;
    let object =
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": namespace, "name": "waits"}});
    let pod = cluster.get(&object).await?.context("the pod is gone")?;
    ensure!(
        pod["status"]["phase"] == "Pending",
        "a pod of the mesh started without an agent: {}",
        pod["status"]
    );
    Ok(())
}

pub(super) async fn control_away(cluster: &mut Cluster) -> anyhow::Result<Vec<String>> {
    let namespace = cluster.namespace("stale", Some("enabled")).await?;
    let (client, server) = pair(cluster, &namespace, true).await?;
    let scaled = cluster.get(&control()).await?.context("no weir-control")?;
    let replicas = scaled["spec"]["replicas"].clone();
    let scale = |count: &Value| {
        let mut patch = control();
        patch["spec"] = json!({"replicas": count});
        patch
    };
    let mut traffic = Traffic::start(cluster, &client, &at(&server)).await?;
    cluster.merge(&scale(&json!(0))).await?;
    let told = cluster
        .until("weir status says that the control plane is away", async || {
            let (_, said) = cluster.try_weir(&["status"]).await?;
            Ok(said.contains("is not connected").then_some(()).ok_or(said))
        })
        .await;
    // New connections too: that is what the traffic is made of.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let unharmed = traffic.unharmed().await;
    cluster.merge(&scale(&replicas)).await?;
    cluster.rolled_out("Deployment", "weir-control").await?;
    told?;
    unharmed?;
    let back = cluster
        .until("all is well again", async || {
            let (well, said) = cluster.try_weir(&["check"]).await?;
            Ok(well.then_some(()).ok_or(said))
        })
        .await?;
    Ok(vec![format!(
        "well again {:.1} s after it came back",
        back.as_secs_f64()
    )])
}

/// As the kubelet of a node that joins sets it.
pub(super) async fn taint(cluster: &mut Cluster) -> anyhow::Result<Vec<String>> {
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": cluster.nodes[1]}});
    let taints = async || {
        let now = cluster.get(&node).await?.context("no node")?;
        let taints = now["spec"]["taints"].as_array().cloned().unwrap_or_default();
        anyhow::Ok(taints)
    };
    let before = taints().await?;
    let mut with = before.clone();
    with.push(json!({"key": "weir.dev/agent-not-ready", "effect": "NoSchedule"}));
    let mut patch = node.clone();
    patch["spec"] = json!({"taints": with});
    cluster.merge(&patch).await?;
    let took = cluster
        .until("the node is freed", async || {
            let now = taints().await?;
            Ok((now == before).then_some(()).ok_or_else(|| format!("{now:?}")))
        })
        .await?;
    Ok(vec![format!("after {:.1} s", took.as_secs_f64())])
}
