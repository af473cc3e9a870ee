use k8s_openapi::{
    api::{
        apps::v1::DaemonSet,
        core::v1::{ConfigMap, Node, Pod},
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, ResourceExt as _,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use weir_api_server::{Denied, object};
use weir_control::crd::custom_resource_definitions;

use crate::world::{Agent, Ran, World, status, weir};

/// What is said about something, as `LEVEL what -> what to do`.
fn found(ran: &Ran, about: &str) -> Vec<String> {
    let report: Value = serde_json::from_str(&ran.out).unwrap();
    let findings = report["findings"].as_array().unwrap().iter();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    findings
        .filter(|finding| finding["about"] == about)
        .map(|one| {
            format!(
                "{} {} -> {}",
                text(&one["level"]),
                text(&one["what"]),
                text(&one["todo"])
            )
        })
        .collect()
}

async fn described(world: &World, node: &Node, kernel: &str) {
    let info = json!({
        "architecture": "amd64", "bootID": "", "containerRuntimeVersion": "containerd://2.1", "kernelVersion": kernel,
        "kubeProxyVersion": "", "kubeletVersion": "v1.34.0", "machineID": "", "operatingSystem": "linux",
        "osImage": "Debian GNU/Linux 13", "systemUUID": "",
    });
    let patch = Patch::Merge(json!({"status": {"nodeInfo": info}}));
    let nodes = Api::<Node>::all(world.cluster.client());
    let params = PatchParams::default();
    nodes
        .patch_status(&node.name_any(), &params, &patch)
        .await
        .unwrap();
}

#[tokio::test]
async fn before_it_is_installed_what_stands_in_the_way_is_named() {
    let Some((world, first)) = World::in_memory().await else {
        return;
    };
    described(&world, &first, "6.12.1").await;
    let ran = world.run(&["check"]);
    assert_eq!(ran.code, 0);
    assert!(ran.out.contains("All is well.") && ran.out.contains("not installed"));
    let old = world.cluster.node("old").await;
    described(&world, &old, "5.15.0").await;
    let config: ConfigMap = object(json!({
        "metadata": {"name": "cilium-config"}, "data": {"kube-proxy-replacement": "true", "cni-exclusive": "true"},
    }));
    let maps = Api::<ConfigMap>::namespaced(world.cluster.client(), "kube-system");
    maps.create(&PostParams::default(), &config).await.unwrap();
    world.server().deny(Denied {
        user: "*".to_owned(),
        verb: "create".to_owned(),
        group: "rbac.authorization.k8s.io".to_owned(),
        resource: "clusterroles".to_owned(),
    });
    world.run(&["check"]);
    let ran = world.run(&["check", "-o", "json"]);
    assert_eq!(ran.code, 1);
    assert!(found(&ran, "Kernel")[0].contains(&format!("FAIL older than 6.1: 5.15.0 on {}", old.name_any())));
    let cilium = found(&ran, "Cilium");
    assert!(
        cilium[0].contains("socketLB.hostNamespaceOnly=true") && cilium[1].contains("cni.exclusive=false")
    );
    assert!(found(&ran, "Your rights")[0].starts_with("FAIL you may not: create clusterroles"));
}

/// Weir as it is to be, on nodes of which the last one has no agent.
async fn installed(world: &World, nodes: &[&Node]) -> Vec<Agent> {
    let client = || world.cluster.client();
    let definitions = Api::<CustomResourceDefinition>::all(client());
    for definition in custom_resource_definitions() {
        let _ = definitions.create(&PostParams::default(), &definition).await;
    }
    let labels = json!({"app.kubernetes.io/name": "weir-agent"});
    let set: DaemonSet = object(json!({
        "metadata": {"name": "weir-agent"},
        "spec": {"selector": {"matchLabels": labels}, "template": {
            "metadata": {"labels": labels},
            "spec": {"containers": [{"name": "agent", "image": "weir:1"}], "tolerations": [{"operator": "Exists"}]},
        }},
    }));
    let sets = Api::<DaemonSet>::namespaced(client(), &world.namespace);
    sets.create(&PostParams::default(), &set).await.unwrap();
    let mut agents = Vec::new();
    let ready = nodes.len() - 1;
    for node in &nodes[..ready] {
        let name = node.name_any();
        agents.push(world.agent(node, move |_| status(&name, &json!({}))).await);
    }
    let counts = json!({"status": {
        "currentNumberScheduled": ready, "desiredNumberScheduled": ready, "numberMisscheduled": 0, "numberReady": ready,
    }});
    let (patch, params) = (Patch::Merge(counts), PatchParams::default());
    sets.patch_status("weir-agent", &params, &patch).await.unwrap();
    agents
}

#[tokio::test]
async fn afterwards_a_missing_agent_and_pods_outside_of_the_mesh_are_named() {
    let Some((world, first)) = World::in_memory().await else {
        return;
    };
    let (second, bare) = (
        world.cluster.node("second").await,
        world.cluster.node("bare").await,
    );
    for node in [&first, &second, &bare] {
        described(&world, node, "6.12.1").await;
    }
    let _agents = installed(&world, &[&first, &second, &bare]).await;
    let shop = world
        .cluster
        .namespace_with("shop", &[("weir.dev/mesh", "enabled")])
        .await;
    let pod = |name| world.cluster.pod(&shop, name).on(&first).addresses(&["10.0.0.9"]);
    pod("in")
        .annotations(&[("weir.dev/enrolled", "true")])
        .create()
        .await;
    pod("off")
        .annotations(&[("weir.dev/mesh", "disabled")])
        .create()
        .await;
    pod("lost").create().await;
    let host = pod("host").annotations(&[("weir.dev/not-enrolled", "it uses the network of its node")]);
    host.create().await;
    world.run(&["check"]);
    let ran = world.run(&["check", "-o", "json"]);
    assert_eq!(ran.code, 1);
    let agents = found(&ran, "Agents").join("\n");
    assert!(agents.contains(&format!(
        "FAIL no agent on {}: the DaemonSet has no pod there",
        bare.name_any()
    )));
    assert!(agents.contains("OK 2 agents connected to the control plane"));
    let pods = found(&ran, "Pods").join("\n");
    assert!(pods.contains(&format!(
        "FAIL 1 of 3 in the mesh; meant to be and not: {shop}/lost "
    )));
    assert!(pods.contains(&format!("WARN not in the mesh: {shop}/host: it uses")));
    assert!(found(&ran, "Control plane")[0].starts_with("FAIL there is no Deployment"));
    assert!(found(&ran, "Roots")[0].starts_with("FAIL"));
    assert!(found(&ran, "Definitions")[0].starts_with("OK"));
}

#[tokio::test]
async fn it_only_reads_and_needs_no_more_than_it_says() {
    let Some((world, first)) = World::in_memory().await else {
        return;
    };
    described(&world, &first, "6.12.1").await;
    let _agents = installed(&world, &[&first, &world.cluster.node("bare").await]).await;
    let user = world.cluster.pod(&world.namespace, "user").create().await;
    let token = world.cluster.token(&user, &[]).await;
    let kubeconfig = tempfile::NamedTempFile::new().unwrap();
    let with_token = world
        .cluster
        .kubeconfig()
        .replace("user: {}", &format!("user: {{token: {token}}}"));
    std::fs::write(kubeconfig.path(), with_token).unwrap();
    for verb in ["update", "patch", "delete", "deletecollection", "watch"] {
        world.server().deny(Denied {
            user: "*".to_owned(),
            verb: verb.to_owned(),
            group: "*".to_owned(),
            resource: "*".to_owned(),
        });
    }
    world.server().deny(Denied {
        user: "*".to_owned(),
        verb: "list".to_owned(),
        group: "*".to_owned(),
        resource: "nodes".to_owned(),
    });
    let before = revision(&world).await;
    let mut command = weir();
    command.args([
        "check",
        "-o",
        "json",
        "--weir-namespace",
        &world.namespace,
        "--kubeconfig",
    ]);
    let ran = Ran::of(command.arg(kubeconfig.path()).output().unwrap());
    assert_eq!(revision(&world).await, before, "nothing was written");
    let not_looked_at = found(&ran, "Not looked at");
    assert_eq!(not_looked_at.len(), 1, "{not_looked_at:?}");
    assert!(not_looked_at[0].starts_with("WARN nodes: "), "{not_looked_at:?}");
}

/// Rises with each write of anything.
async fn revision(world: &World) -> Option<String> {
    let pods = Api::<Pod>::namespaced(world.cluster.client(), "default");
    pods.list(&kube::api::ListParams::default())
        .await
        .unwrap()
        .metadata
        .resource_version
}

#[test]
fn this_machine_is_checked_without_kubernetes() {
    let ran = Ran::of(
        weir()
            .args(["check", "--node-local", "-o", "json"])
            .output()
            .unwrap(),
    );
    for about in ["Kernel", "BTF", "cgroup v2", "bpffs"] {
        assert_eq!(found(&ran, about).len(), 1, "{about}");
    }
    Ran::of(weir().args(["check", "--node-local"]).output().unwrap());
}
