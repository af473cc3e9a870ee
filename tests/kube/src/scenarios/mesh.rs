//! Pods come into the mesh and leave it.

use std::time::Duration;

use anyhow::ensure;
use serde_json::{Value, json};

use super::{PORT, at, pair};
use crate::{
    cluster::Cluster,
    pods::{Spec, TestPod, succeeded},
};

/// How soon a change must be in force.
const SOON: Duration = Duration::from_secs(10);

pub(super) async fn enrol(cluster: &mut Cluster) -> anyhow::Result<Vec<String>> {
    let namespace = cluster.namespace("shop", None).await?;
    let (client, server) = pair(cluster, &namespace, false).await?;
    ensure!(
        cluster.reaches(&client, &at(&server)).await?,
        "there is no way between pods at all"
    );
    let ids = [uid(cluster, &client).await?, uid(cluster, &server).await?];
    cluster.namespace("shop", Some("enabled")).await?;
    let took = cluster.enrolled(&[&client, &server], true).await?;
    ensure!(
        ids == [uid(cluster, &client).await?, uid(cluster, &server).await?],
        "pods were made anew"
    );
    ensure!(
        cluster.reaches(&client, &at(&server)).await?,
        "the enrolled client does not reach the server"
    );
    tunnelled(cluster, &client, &server).await?;

    // The very first connection of a pod that starts: its whole program is one.
    let to = at(&server);
    let first = Spec {
        namespace: &namespace,
        name: "first",
        node: &cluster.nodes[0].clone(),
        command: &["echo-client", &to, "--text", "first"],
        more: json!({"spec": {"restartPolicy": "Never"}}),
    };
    cluster.create_pod(&first).await?;
    let object =
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": namespace, "name": "first"}});
    cluster
        .until("a pod's first connection succeeds", async || {
            let pod = cluster.get(&object).await?.unwrap_or_default();
            let phase = pod["status"]["phase"].as_str().unwrap_or("gone").to_owned();
            Ok((phase == "Succeeded").then_some(()).ok_or(phase))
        })
        .await?;
    let flows = flows(cluster, &["--pod", &format!("{namespace}/first")]).await?;
    let opened: Vec<_> = flows.iter().filter(|flow| flow["event"] == "open").collect();
    ensure!(
        !opened.is_empty(),
        "no flow of the pod's first connection: {flows:?}"
    );
    ensure!(
        opened.iter().all(|flow| flow["path"] == "tunnel"),
        "a first connection in plaintext: {opened:?}"
    );
    Ok(vec![format!(
        "two pods enrolled {:.1} s after their namespace was labelled",
        took.as_secs_f64()
    )])
}

pub(super) async fn wire(cluster: &mut Cluster) -> anyhow::Result<Vec<String>> {
    const CANARY: &str = "canary-0f1e2d3c4b5a";
    let outside = cluster.namespace("plain", None).await?;
    let (plain_client, plain_server) = pair(cluster, &outside, false).await?;
    // One whose pods have no tunnel yet: the capture sees it begin.
    let inside = cluster.namespace("wire", Some("enabled")).await?;
    let (client, server) = pair(cluster, &inside, true).await?;
    let [first, _] = cluster.nodes.clone();
    let watcher = Spec {
        namespace: &outside,
        name: "watcher",
        node: &first,
        command: &["echo-server", "--port", "17999"],
        more: json!({"spec": {
            "hostNetwork": true,
            "containers": [{"securityContext": {"capabilities": {"add": ["NET_RAW", "NET_ADMIN"]}}}],
        }}),
    };
    let watcher = cluster.pod(&watcher).await?;
    let seen = async |from: &TestPod, to: &TestPod| {
        let watching = cluster.start(&watcher, &["capture", "--find", CANARY, "--seconds", "4"]);
        let mut watching = watching.await?;
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let sent = [
            "echo-client",
            &at(to),
            "--text",
            CANARY,
            "--bytes",
            "4096",
            "--connections",
            "5",
        ];
        cluster.exec(from, &sent).await?;
        let mut output = String::new();
        if let Some(mut stdout) = watching.stdout() {
            tokio::io::AsyncReadExt::read_to_string(&mut stdout, &mut output).await?;
        }
        if let Some(mut stderr) = watching.stderr() {
            tokio::io::AsyncReadExt::read_to_string(&mut stderr, &mut output).await?;
        }
        ensure!(succeeded(watching).await?, "capture: {output}");
        let findings: Value = serde_json::from_str(output.lines().last().unwrap_or_default())?;
        Ok(findings)
    };
    let without = seen(&plain_client, &plain_server).await?;
    ensure!(
        without["canaries"][0].as_u64() > Some(0),
        "the capture sees nothing: {without}"
    );
    let with = seen(&client, &server).await?;
    ensure!(with["canaries"][0] == 0, "the canary is on the link: {with}");
    ensure!(
        with["tls_bytes"].as_u64() > Some(4096),
        "there is no TLS on the link either: {with}"
    );
    ensure!(with["other_bytes_on_tunnel_port"] == 0, "{with}");
    Ok(vec![format!(
        "canary seen {} times without the mesh, never with it; {} bytes of TLS",
        without["canaries"][0], with["tls_bytes"]
    )])
}

pub(super) async fn switch(cluster: &mut Cluster) -> anyhow::Result<Vec<String>> {
    let namespace = cluster.namespace("switch", Some("enabled")).await?;
    let (client, server) = pair(cluster, &namespace, true).await?;
    // By its own annotation, which wins.
    let patch = |switch: Value| {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": namespace, "name": client.name, "annotations": {"weir.dev/mesh": switch}},
        })
    };
    cluster.merge(&patch(json!("disabled"))).await?;
    let left = cluster.enrolled(&[&client], false).await?;
    ensure!(
        cluster.reaches(&client, &at(&server)).await?,
        "a pod outside does not reach a PERMISSIVE one"
    );
    cluster.merge(&patch(Value::Null)).await?;
    let back = cluster.enrolled(&[&client], true).await?;
    ensure!(
        left < SOON && back < SOON,
        "left after {left:?}, back after {back:?}"
    );

    // Observed: recorded, and left alone.
    cluster.merge(&patch(json!("observe"))).await?;
    cluster.enrolled(&[&client], false).await?;
    ensure!(
        cluster.reaches(&client, &at(&server)).await?,
        "an observed pod does not reach the server"
    );
    let pod = format!("{namespace}/{}", client.name);
    let flows = flows(cluster, &["--pod", &pod, "--last", "2"]).await?;
    ensure!(
        flows.iter().any(|flow| flow["path"] != "tunnel"),
        "an observed pod was tunnelled: {flows:?}"
    );
    cluster.merge(&patch(Value::Null)).await?;

    // Deleted and made anew under its name; another pod's open connection does not notice.
    cluster.enrolled(&[&client], true).await?;
    let mut traffic = crate::pods::Traffic::start(cluster, &client, &at(&server)).await?;
    let again = Spec {
        namespace: &namespace,
        name: "again",
        node: &cluster.nodes[1].clone(),
        command: &["echo-server", "--port", "7000"],
        more: json!({}),
    };
    for _ in 0..2 {
        let pod = cluster.pod(&again).await?;
        cluster.enrolled(&[&pod], true).await?;
        ensure!(
            cluster.reaches(&client, &at(&pod)).await?,
            "the pod that was made anew is not reached"
        );
        let object =
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": namespace, "name": "again"}});
        cluster.delete(&object).await?;
        cluster
            .until("the pod is gone", async || {
                Ok(cluster
                    .get(&object)
                    .await?
                    .is_none()
                    .then_some(())
                    .ok_or_else(|| "it is there".to_owned()))
            })
            .await?;
    }
    traffic.unharmed().await?;
    Ok(vec![format!(
        "out after {:.1} s, in again after {:.1} s",
        left.as_secs_f64(),
        back.as_secs_f64()
    )])
}

async fn uid(cluster: &Cluster, pod: &TestPod) -> anyhow::Result<Value> {
    Ok(cluster.meta(pod).await?["uid"].clone())
}

/// Flow records as JSON.
pub(super) async fn flows(cluster: &Cluster, arguments: &[&str]) -> anyhow::Result<Vec<Value>> {
    let mut command = vec!["flows", "--output", "json"];
    command.extend(arguments);
    let text = cluster.weir(&command).await?;
    let lines = text.lines().filter(|line| line.starts_with('{'));
    Ok(lines.map(serde_json::from_str).collect::<Result<_, _>>()?)
}

/// Fails unless the last connection between these pods went by a tunnel, as who they are.
pub(super) async fn tunnelled(cluster: &Cluster, client: &TestPod, server: &TestPod) -> anyhow::Result<()> {
    let pod = format!("{}/{}", client.namespace, client.name);
    cluster
        .until("a flow by a tunnel", async || {
            let flows = flows(cluster, &["--pod", &pod]).await?;
            let found = flows.iter().any(|flow| {
                flow["path"] == "tunnel"
                    && flow["destination"]["pod"] == server.name
                    && flow["destination"]["address"] == crate::pods::at(&server.address, PORT)
                    && flow["destination"]["identity"].to_string().contains(&server.name)
            });
            Ok(found.then_some(()).ok_or_else(|| format!("{:?}", flows.last())))
        })
        .await?;
    Ok(())
}
