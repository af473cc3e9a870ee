//! Coming and going.

use anyhow::ensure;
use serde_json::{Value, json};

use super::{at, pair};
use crate::{
    cluster::{Cluster, SYSTEM},
    pods::{Spec, TestPod},
};

pub(super) async fn install(cluster: &mut Cluster) -> anyhow::Result<Vec<String>> {
    let arguments = cluster.arguments.clone();
    let mut command = vec![
        "install",
        "--registry",
        &arguments.registry,
        "--tag",
        &arguments.tag,
        "--pull-policy",
        &arguments.pull_policy,
    ];
    if let Some(cgroup) = &arguments.agent_cgroup {
        command.extend(["--agent-cgroup", cgroup]);
    }
    let start = std::time::Instant::now();
    cluster.weir(&command).await?;
    let took = start.elapsed();
    // Again: nothing changes, and it is no error.
    cluster.weir(&command).await?;
    let (well, said) = cluster.try_weir(&["check"]).await?;
    ensure!(well, "weir check: {said}");
    Ok(vec![format!("ready after {:.1} s", took.as_secs_f64())])
}

pub(super) async fn rollback(cluster: &mut Cluster) -> anyhow::Result<Vec<String>> {
    let namespace = cluster.namespace("rollback", Some("enabled")).await?;
    let (client, server) = pair(cluster, &namespace, true).await?;
    let start = std::time::Instant::now();
    cluster.weir(&["rollback", &namespace, "--yes"]).await?;
    let took = start.elapsed();
    cluster.enrolled(&[&client, &server], false).await?;
    ensure!(
        cluster.reaches(&client, &at(&server)).await?,
        "the client reaches the server no more"
    );
    Ok(vec![format!("done after {:.1} s", took.as_secs_f64())])
}

pub(super) async fn uninstall(cluster: &mut Cluster) -> anyhow::Result<Vec<String>> {
    let namespace = cluster.namespace("stays", Some("enabled")).await?;
    let (client, server) = pair(cluster, &namespace, true).await?;
    let before = restarts(cluster, &[&client, &server]).await?;
    let start = std::time::Instant::now();
    cluster.weir(&["uninstall", "--yes"]).await?;
    let took = start.elapsed();
    cluster.enrolled(&[&client, &server], false).await?;
    ensure!(
        cluster.reaches(&client, &at(&server)).await?,
        "the client reaches the server no more"
    );
    ensure!(
        restarts(cluster, &[&client, &server]).await? == before,
        "applications were restarted"
    );
    let gone = [
        ("v1", "Namespace", SYSTEM),
        ("v1", "Namespace", "weir-authority"),
        ("rbac.authorization.k8s.io/v1", "ClusterRole", "weir-control"),
        (
            "rbac.authorization.k8s.io/v1",
            "ClusterRoleBinding",
            "weir-control",
        ),
        (
            "apiextensions.k8s.io/v1",
            "CustomResourceDefinition",
            "authorizationpolicies.weir.dev",
        ),
        (
            "apiextensions.k8s.io/v1",
            "CustomResourceDefinition",
            "peerauthentications.weir.dev",
        ),
    ];
    for (version, kind, name) in gone {
        let object = json!({"apiVersion": version, "kind": kind, "metadata": {"name": name}});
        ensure!(
            cluster.get(&object).await?.is_none(),
            "{kind} {name} is still there"
        );
    }
    // On the nodes: what a pod of theirs sees.
    for node in cluster.nodes.clone() {
        let left = leftovers(cluster, &namespace, &node).await?;
        ensure!(left.is_empty(), "node {node} still has {left:?}");
    }
    // A pod that starts needs nobody's leave.
    let late = Spec {
        namespace: &namespace,
        name: "late",
        node: &cluster.nodes[0].clone(),
        command: &["echo-server", "--port", "7000"],
        more: json!({}),
    };
    let late = cluster.pod(&late).await?;
    ensure!(
        cluster.reaches(&client, &at(&late)).await?,
        "a new pod is not reached"
    );
    Ok(vec![format!("done after {:.1} s", took.as_secs_f64())])
}

async fn restarts(cluster: &Cluster, pods: &[&TestPod]) -> anyhow::Result<Vec<Value>> {
    let mut counts = Vec::new();
    for pod in pods {
        let object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": pod.namespace, "name": pod.name}});
        let found = cluster.get(&object).await?.unwrap_or_default();
        counts.push(found["status"]["containerStatuses"][0]["containerID"].clone());
    }
    Ok(counts)
}

/// Files of Weir's on a node: pins, sockets, the plugin, its entry.
async fn leftovers(cluster: &Cluster, namespace: &str, node: &str) -> anyhow::Result<Vec<String>> {
    let mount = |name: &str| json!({"name": name, "mountPath": format!("/node/{name}"), "readOnly": true});
    let volume = |name: &str, path: &str| json!({"name": name, "hostPath": {"path": path}});
    let more = json!({"spec": {
        "containers": [{"volumeMounts": [mount("bpf"), mount("run"), mount("bin"), mount("conf")]}],
        "volumes": [
            volume("bpf", "/sys/fs/bpf"), volume("run", "/run/weir"), volume("bin", "/opt/cni/bin"),
            volume("conf", "/etc/cni/net.d"),
        ],
    }});
    let name = format!("look-{node}");
    let spec = Spec {
        namespace,
        name: &name,
        node,
        command: &["echo-server", "--port", "7000"],
        more,
    };
    let pod = cluster.pod(&spec).await?;
    let found = cluster
        .exec(&pod, &["find", "/node", "--name", "weir", "--text", "weir-cni"])
        .await?;
    Ok(found.lines().map(str::to_owned).collect())
}
