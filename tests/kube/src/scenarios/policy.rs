//! Policies by their definitions.

use anyhow::ensure;
use serde_json::{Value, json};

use super::{at, mesh, pair};
use crate::cluster::Cluster;

fn policy(namespace: &str, name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "weir.dev/v1alpha1", "kind": "AuthorizationPolicy",
        "metadata": {"namespace": namespace, "name": name}, "spec": spec,
    })
}

pub(super) async fn policy_(cluster: &mut Cluster) -> anyhow::Result<Vec<String>> {
    let namespace = cluster.namespace("policy", Some("enabled")).await?;
    let (client, server) = pair(cluster, &namespace, true).await?;
    ensure!(cluster.reaches(&client, &at(&server)).await?);
    let deny = policy(
        &namespace,
        "no-clients",
        &json!({
            "selector": {"matchLabels": {"app": "server"}}, "action": "DENY",
            "rules": [{"from": [{"source": {"principals": [format!("cluster.local/ns/{namespace}/sa/client")]}}]}],
        }),
    );
    cluster.apply(deny.clone()).await?;
    let took = cluster
        .until("the policy denies", async || {
            let reached = cluster.reaches(&client, &at(&server)).await?;
            Ok((!reached)
                .then_some(())
                .ok_or_else(|| "the server is still reached".to_owned()))
        })
        .await?;
    let flows = mesh::flows(cluster, &["--verdict", "denied", "--namespace", &namespace]).await?;
    let named = flows
        .iter()
        .any(|flow| flow["policy"].to_string().contains("no-clients"));
    ensure!(named, "no denied flow names the policy: {flows:?}");
    let (_, explained) = cluster
        .try_weir(&[
            "explain",
            "--from",
            &format!("{namespace}/client"),
            "--to",
            &format!("{namespace}/server"),
            "--port",
            "7000",
        ])
        .await?;
    ensure!(
        explained.contains("no-clients"),
        "weir explain does not name the policy: {explained}"
    );
    cluster
        .until("the policy's status", async || {
            let found = cluster.get(&deny).await?.unwrap_or_default();
            let condition = &found["status"]["conditions"][0];
            let right = condition["type"] == "Accepted"
                && condition["status"] == "True"
                && found["status"]["bound"] == 1;
            Ok(right.then_some(()).ok_or_else(|| found["status"].to_string()))
        })
        .await?;
    cluster.delete(&deny).await?;
    cluster
        .until("the policy is gone", async || {
            let reached = cluster.reaches(&client, &at(&server)).await?;
            Ok(reached
                .then_some(())
                .ok_or_else(|| "the server is not reached".to_owned()))
        })
        .await?;

    // What cannot be meant is refused by the API server.
    let nonsense = [
        json!({"action": "PERHAPS"}),
        json!({"rules": [{"to": [{"operation": {"ports": ["http"]}}]}]}),
        json!({"rules": [{"from": [{"source": {"ipBlocks": ["10.0.0.0/99"]}}]}]}),
        json!({"rules": [{"when": [{"key": "source.colour", "values": ["red"]}]}]}),
    ];
    for spec in nonsense {
        let refused = cluster.apply(policy(&namespace, "nonsense", &spec)).await;
        ensure!(refused.is_err(), "the API server took {spec}");
    }
    Ok(vec![format!("in force after {:.1} s", took.as_secs_f64())])
}
