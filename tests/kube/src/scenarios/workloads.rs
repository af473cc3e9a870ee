//! What workloads do as without a mesh.

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::{PORT, at, pair};
use crate::{
    cluster::Cluster,
    pods::{self, Spec, TestPod},
};

fn service(namespace: &str, name: &str, more: &Value) -> Value {
    let mut spec = json!({"selector": {"app": "server"}, "ports": [{"port": 80, "targetPort": PORT}]});
    for (key, value) in more.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": namespace, "name": name}, "spec": spec})
}

pub(super) async fn services(cluster: &mut Cluster) -> anyhow::Result<Vec<String>> {
    let namespace = cluster.namespace("services", Some("enabled")).await?;
    let outside = cluster.namespace("plain", None).await?;
    let (client, server) = pair(cluster, &namespace, true).await?;
    let (stranger, _) = pair(cluster, &outside, false).await?;
    let kinds = [
        ("cluster-ip", json!({})),
        ("headless", json!({"clusterIP": "None"})),
        ("node-port", json!({"type": "NodePort"})),
        ("affinity", json!({"sessionAffinity": "ClientIP"})),
        ("local", json!({"internalTrafficPolicy": "Local"})),
    ];
    let mut made = Vec::new();
    for (name, more) in &kinds {
        let object = service(&namespace, name, more);
        cluster.apply(object.clone()).await?;
        made.push(object);
    }
    let found = async |index: usize| {
        let object: &Value = &made[index];
        cluster
            .get(object)
            .await?
            .with_context(|| format!("no service {}", kinds[index].0))
    };
    let address = async |index: usize| {
        let service = found(index).await?;
        let ip = service["spec"]["clusterIP"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        anyhow::Ok(pods::at(&ip, 80))
    };
    for (index, name) in [
        (0, "ClusterIP"),
        (2, "NodePort's cluster address"),
        (3, "session affinity"),
    ] {
        let to = address(index).await?;
        cluster
            .until(name, async || {
                let reached = cluster.reaches(&client, &to).await?;
                Ok(reached
                    .then_some(())
                    .ok_or_else(|| format!("{to} is not reached")))
            })
            .await?;
        ensure!(
            cluster.reaches(&stranger, &to).await?,
            "{name}: {to} from outside of the mesh"
        );
    }
    // A headless one is its pods.
    ensure!(cluster.reaches(&client, &at(&server)).await?);
    // The server is on the other node: no endpoint there, as without a mesh.
    let to = address(4).await?;
    ensure!(
        !cluster.reaches(&client, &to).await?,
        "internalTrafficPolicy: Local led to another node"
    );
    ensure!(
        cluster.reaches(&server, &to).await?,
        "internalTrafficPolicy: Local does not lead to its own node"
    );
    // From outside of the cluster, by the address of the server's node: comes in as plaintext, which PERMISSIVE allows.
    let port = found(2).await?["spec"]["ports"][0]["nodePort"]
        .as_u64()
        .unwrap_or(0);
    let port = u16::try_from(port)?;
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": cluster.nodes[1]}});
    let node = cluster.get(&node).await?.context("no node")?;
    let addresses = node["status"]["addresses"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let internal = addresses.iter().find(|address| address["type"] == "InternalIP");
    let internal = internal
        .and_then(|address| address["address"].as_str())
        .context("the node has no address")?;
    let to = pods::at(internal, port);
    ensure!(
        cluster.reaches(&stranger, &to).await?,
        "NodePort {to} from a pod outside of the mesh"
    );
    ensure!(
        cluster.reaches(&client, &to).await?,
        "NodePort {to} from a pod of the mesh"
    );
    own_node_first(cluster, &namespace, &client).await?;
    Ok(Vec::new())
}

/// A service that prefers the client's node leads there as long as there is an endpoint, and then to another.
async fn own_node_first(cluster: &Cluster, namespace: &str, client: &TestPod) -> anyhow::Result<()> {
    let mut servers = Vec::new();
    for (name, node) in ["near", "far"].into_iter().zip(&cluster.nodes) {
        let spec = Spec {
            namespace,
            name,
            node,
            command: &["name-server", "--name", name, "--port", "7000"],
            more: json!({"metadata": {"labels": {"tier": "spread"}}}),
        };
        servers.push(cluster.pod(&spec).await?);
    }
    cluster.enrolled(&[&servers[0], &servers[1]], true).await?;
    let preference = json!({"trafficDistribution": "PreferSameNode", "selector": {"tier": "spread"}});
    let object = service(namespace, "near-first", &preference);
    cluster.apply(object.clone()).await?;
    let object = cluster.get(&object).await?.context("no service near-first")?;
    let to = pods::at(object["spec"]["clusterIP"].as_str().unwrap_or_default(), 80);
    let answered = async |name: &str| {
        cluster
            .until(&format!("the service leads to {name}"), async || {
                let line = cluster.read(client, &to, 1 + name.len()).await?;
                Ok((line["text"] == format!("{name}\n"))
                    .then_some(())
                    .ok_or_else(|| line.to_string()))
            })
            .await
    };
    answered("near").await?;
    for _ in 0..20 {
        let line = cluster.read(client, &to, 5).await?;
        ensure!(line["text"] == "near\n", "PreferSameNode led elsewhere: {line}");
    }
    cluster.delete(&object_of(&servers[0])).await?;
    answered("far").await.map(drop)
}

fn object_of(pod: &TestPod) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": pod.namespace, "name": pod.name}})
}

fn strict(namespace: &str) -> Value {
    json!({
        "apiVersion": "weir.dev/v1alpha1", "kind": "PeerAuthentication",
        "metadata": {"namespace": namespace, "name": "default"}, "spec": {"mtls": {"mode": "STRICT"}},
    })
}

pub(super) async fn probes(cluster: &mut Cluster) -> anyhow::Result<Vec<String>> {
    let namespace = cluster.namespace("strict", Some("enabled")).await?;
    let outside = cluster.namespace("plain", None).await?;
    cluster.apply(strict(&namespace)).await?;
    let (stranger, _) = pair(cluster, &outside, false).await?;
    let probe = |kind: &str, port: u16| match kind {
        "http" => json!({"httpGet": {"path": "/", "port": port}, "periodSeconds": 1, "failureThreshold": 2}),
        _ => json!({"tcpSocket": {"port": port}, "periodSeconds": 1, "failureThreshold": 2}),
    };
    let node = cluster.nodes[1].clone();
    let probed = |kind: &str| {
        json!({"spec": {"containers": [{
            "readinessProbe": probe(kind, PORT), "livenessProbe": probe(kind, PORT), "startupProbe": probe(kind, PORT),
        }]}})
    };
    let spec = |name, command, more| Spec {
        namespace: &namespace,
        name,
        node: &node,
        command,
        more,
    };
    let http = spec("http", &["http-server", "--port", "7000"], probed("http"));
    let tcp = spec("tcp", &["echo-server", "--port", "7000"], probed("tcp"));
    cluster.create_pod(&http).await?;
    cluster.create_pod(&tcp).await?;
    let (http, tcp) = (
        cluster.ready(&namespace, "http").await?,
        cluster.ready(&namespace, "tcp").await?,
    );
    cluster.enrolled(&[&http, &tcp], true).await?;
    // Long enough for the liveness probes to fail, if they did.
    tokio::time::sleep(std::time::Duration::from_secs(6)).await;
    for pod in [&http, &tcp] {
        let found = cluster.get(&object_of(pod)).await?.unwrap_or_default();
        let status = &found["status"]["containerStatuses"][0];
        ensure!(
            status["restartCount"] == 0 && status["ready"] == true,
            "probes of {} fail: {status}",
            pod.name
        );
        let line = cluster.connect(&stranger, &at(pod)).await?;
        ensure!(
            line["connect"] == "ECONNREFUSED",
            "plaintext reaches a STRICT pod: {line}"
        );
    }
    let denied = super::mesh::flows(cluster, &["--verdict", "denied", "--namespace", &namespace]).await?;
    ensure!(
        denied.iter().any(|flow| flow["reason"] == "plaintext_to_strict"),
        "no flow of the refused plaintext: {denied:?}"
    );
    Ok(Vec::new())
}

pub(super) async fn kubectl(cluster: &mut Cluster) -> anyhow::Result<Vec<String>> {
    let namespace = cluster.namespace("strict", Some("enabled")).await?;
    cluster.apply(strict(&namespace)).await?;
    let (client, server) = pair(cluster, &namespace, true).await?;
    // `exec` is how all of this runs; what it prints is the answer through the mesh.
    ensure!(
        cluster.reaches(&client, &at(&server)).await?,
        "a STRICT pod is not reached by mutual TLS"
    );
    let logs = cluster.logs(&server).await?;
    ensure!(logs.contains("listening"), "logs: {logs}");
    // The runtime connects inside of the pod, by its loopback.
    let answer = cluster.forwarded(&server, PORT).await?;
    ensure!(answer == "through", "port-forward: {answer}");
    Ok(Vec::new())
}
