//! The authority's root is rotated.

use std::time::Duration;

use anyhow::ensure;
use serde_json::json;

use super::{at, pair};
use crate::{
    cluster::{Cluster, SYSTEM},
    pods::Traffic,
};

/// How long leaves live meanwhile.
const LIFETIME: Duration = Duration::from_secs(60);
/// How long the kubelet may take to bring the agents' file of roots up to date: its own period, and what it may be late.
const MOUNTED: Duration = Duration::from_secs(100);

pub(super) async fn rotation(cluster: &mut Cluster) -> anyhow::Result<Vec<String>> {
    let config = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"namespace": SYSTEM, "name": "weir-agent"}});
    let before = cluster.get(&config).await?.unwrap_or_default()["data"]["agent.yaml"].clone();
    let short = format!(
        "{}certificates: {{ lifetime: {}s }}\n",
        before.as_str().unwrap_or_default(),
        LIFETIME.as_secs()
    );
    let with = |text: &serde_json::Value| {
        let mut map = config.clone();
        map["data"] = json!({"agent.yaml": text});
        map
    };
    cluster.merge(&with(&json!(short))).await?;
    cluster.restart("DaemonSet", "weir-agent").await?;
    let result = rotate(cluster).await;
    cluster.merge(&with(&before)).await?;
    cluster.restart("DaemonSet", "weir-agent").await?;
    result
}

async fn rotate(cluster: &mut Cluster) -> anyhow::Result<Vec<String>> {
    let namespace = cluster.namespace("rotation", Some("enabled")).await?;
    let (client, server) = pair(cluster, &namespace, true).await?;
    let mut traffic = Traffic::start(cluster, &client, &at(&server)).await?;
    let first = roots(cluster).await?;
    cluster.authority(&["prepare"]).await?;
    cluster
        .until("agents trust both roots", async || {
            let now = roots(cluster).await?;
            Ok((now > first).then_some(()).ok_or_else(|| format!("{now} roots")))
        })
        .await?;
    let early = cluster.authority(&["activate"]).await;
    ensure!(
        early.is_err(),
        "activated before agents can know the new root: {early:?}"
    );
    tokio::time::sleep(MOUNTED).await;
    cluster.authority(&["activate", "--force"]).await?;
    tokio::time::sleep(LIFETIME + Duration::from_secs(10)).await;
    cluster.authority(&["retire", "--force"]).await?;
    cluster
        .until("agents trust the new root alone", async || {
            let now = roots(cluster).await?;
            Ok((now == first).then_some(()).ok_or_else(|| format!("{now} roots")))
        })
        .await?;
    tokio::time::sleep(LIFETIME / 2 + Duration::from_secs(5)).await;
    traffic.unharmed().await?;
    super::mesh::tunnelled(cluster, &client, &server).await?;
    Ok(Vec::new())
}

/// How many roots the first node's agent trusts.
async fn roots(cluster: &Cluster) -> anyhow::Result<usize> {
    let status = cluster
        .weir(&["status", "--node", &cluster.nodes[0], "--output", "json"])
        .await?;
    let status: serde_json::Value = serde_json::from_str(&status)?;
    Ok(status["roots"].as_array().map_or(0, Vec::len))
}
