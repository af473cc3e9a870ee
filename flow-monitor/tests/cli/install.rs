//! `weir install` and `weir uninstall`. What they do on real nodes the scenarios on a real cluster show; here is what they do at
//! the API server.

use std::time::Duration;

use k8s_openapi::{
    api::{
        apps::v1::{DaemonSet, Deployment},
        core::v1::{ConfigMap, Namespace, Pod},
        rbac::v1::ClusterRole,
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, ResourceExt as _,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};

use crate::world::World;

const SYSTEM: &str = "weir-system";

async fn agents(world: &World) -> Value {
    let api = Api::<DaemonSet>::namespaced(world.cluster.client(), SYSTEM);
    serde_json::to_value(api.get("weir-agent").await.unwrap()).unwrap()
}

fn image(workload: &Value) -> String {
    let image = &workload["spec"]["template"]["spec"]["containers"][0]["image"];
    image.as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_installed_and_brought_to_another_version_with_its_settings() {
    let Some((world, _)) = World::in_memory().await else {
        return;
    };
    let first = [
        "install",
        "--no-wait",
        "--registry",
        "registry.example/mesh",
        "--tag",
        "1",
        "--trust-domain",
        "example.org",
    ];
    let installed = world.run_installed(&first);
    assert_eq!(installed.code, 0);
    assert!(installed.out.contains("DaemonSet weir-system/weir-agent"));
    assert_eq!(image(&agents(&world).await), "registry.example/mesh/weir-agent:1");
    let maps = Api::<ConfigMap>::namespaced(world.cluster.client(), SYSTEM);
    let config = maps.get("weir-agent").await.unwrap().data.unwrap()["agent.yaml"].clone();
    assert!(config.contains("trustDomain: example.org"), "{config}");

    // What is there is kept; the tag is this version's.
    assert_eq!(world.run_installed(&["install", "--no-wait"]).code, 0);
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(
        image(&agents(&world).await),
        format!("registry.example/mesh/weir-agent:{version}")
    );
    let config = maps.get("weir-agent").await.unwrap().data.unwrap()["agent.yaml"].clone();
    assert!(config.contains("trustDomain: example.org"), "{config}");

    // Another trust domain would end every connection.
    let other = world.run_installed(&["install", "--no-wait", "--trust-domain", "other.org"]);
    assert_eq!(other.code, 2);
    assert!(other.err.contains("trust domain is example.org"), "{}", other.err);

    // Where nothing becomes ready it says so in time.
    let waited = world.run_installed(&["install", "--timeout", "1s"]);
    assert_eq!(waited.code, 1);
    assert!(waited.err.contains("ready"), "{}", waited.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_helm_installed_is_left_to_helm() {
    let Some((world, _)) = World::in_memory().await else {
        return;
    };
    assert_eq!(world.run_installed(&["install", "--no-wait"]).code, 0);
    let api = Api::<DaemonSet>::namespaced(world.cluster.client(), SYSTEM);
    let patch = json!({"metadata": {"annotations": {"meta.helm.sh/release-name": "weir"}}});
    api.patch("weir-agent", &PatchParams::default(), &Patch::Merge(patch))
        .await
        .unwrap();
    let refused = world.run_installed(&["install", "--no-wait"]);
    assert_eq!(refused.code, 2);
    assert!(refused.err.contains("helm upgrade"), "{}", refused.err);
}

#[test]
fn what_would_be_applied_is_printed_without_a_cluster() {
    let printed = crate::world::weir()
        .args(["install", "--print", "--registry", "registry.example/mesh"])
        .env("KUBECONFIG", "/nonexistent")
        .output()
        .unwrap();
    assert!(printed.status.success());
    let text = String::from_utf8(printed.stdout).unwrap();
    assert!(text.contains("registry.example/mesh/weir-agent:"), "{text}");
    assert!(
        text.starts_with("---\n") && text.contains("kind: DaemonSet"),
        "{text}"
    );
}

/// Says of each DaemonSet that it runs what it should, as its controller would: of `weir-detach` once it is there.
async fn controller(client: kube::Client) {
    let api = Api::<DaemonSet>::namespaced(client, SYSTEM);
    loop {
        for set in api.list(&ListParams::default()).await.unwrap().items {
            let status = json!({"status": {
                "observedGeneration": set.metadata.generation, "desiredNumberScheduled": 1, "currentNumberScheduled": 1,
                "numberMisscheduled": 0, "numberReady": 1, "updatedNumberScheduled": 1,
            }});
            let name = set.name_any();
            // It may be gone.
            let _ = api
                .patch_status(&name, &PatchParams::default(), &Patch::Merge(status))
                .await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_taken_out_on_the_nodes_first_and_nothing_is_left() {
    let Some((world, node)) = World::in_memory().await else {
        return;
    };
    let client = world.cluster.client();
    assert_eq!(world.run_installed(&["install", "--no-wait"]).code, 0);
    let shop = world
        .cluster
        .namespace_with("shop", &[("weir.dev/mesh", "enabled")])
        .await;
    let pod = world.cluster.pod(&shop, "web").on(&node);
    pod.annotations(&[("weir.dev/enrolled", "true"), ("mine", "stays")])
        .create()
        .await;

    let looked = world.run_installed(&["uninstall", "--dry-run"]);
    assert_eq!(looked.code, 0);
    assert!(
        looked.out.contains("Deployment weir-system/weir-control"),
        "{}",
        looked.out
    );
    agents(&world).await;

    let refused = world.run_installed(&["uninstall"]);
    assert_eq!(refused.code, 2, "without a terminal and --yes it does nothing");
    agents(&world).await;

    let controlling = tokio::spawn(controller(client.clone()));
    let uninstall = ["uninstall", "--yes", "--timeout", "20s"];
    let done = tokio::task::block_in_place(|| world.run_installed(&uninstall));
    controlling.abort();
    assert_eq!(done.code, 0);
    assert!(done.out.contains("Detached on every node"), "{}", done.out);
    assert!(
        done.out.contains(&shop),
        "who is still labelled is said: {}",
        done.out
    );
    let sets = Api::<DaemonSet>::all(client.clone());
    assert!(sets.list(&ListParams::default()).await.unwrap().items.is_empty());
    let deployments = Api::<Deployment>::all(client.clone());
    assert!(
        deployments
            .list(&ListParams::default())
            .await
            .unwrap()
            .items
            .is_empty()
    );
    let roles = Api::<ClusterRole>::all(client.clone());
    assert!(roles.get_opt("weir-control").await.unwrap().is_none());
    let definitions = Api::<CustomResourceDefinition>::all(client.clone());
    assert!(
        definitions
            .get_opt("peerauthentications.weir.dev")
            .await
            .unwrap()
            .is_none()
    );
    let namespaces = Api::<Namespace>::all(client.clone());
    assert!(namespaces.get_opt(SYSTEM).await.unwrap().is_none());
    let web = Api::<Pod>::namespaced(client, &shop).get("web").await.unwrap();
    let annotations = web.metadata.annotations.unwrap_or_default();
    assert_eq!(annotations.keys().collect::<Vec<_>>(), ["mine"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_uninstallation_that_was_broken_off_goes_on_where_it_was() {
    let Some((world, node)) = World::in_memory().await else {
        return;
    };
    let client = world.cluster.client();
    assert_eq!(world.run_installed(&["install", "--no-wait"]).code, 0);
    // An agent on a node that does not answer: its pod stays.
    let pod = world.cluster.pod(SYSTEM, "weir-agent-stuck").on(&node);
    pod.labels(&[("app.kubernetes.io/name", "weir-agent")])
        .create()
        .await;
    let broken = world.run_installed(&["uninstall", "--yes", "--timeout", "1s"]);
    assert_eq!(broken.code, 1);
    let sets = Api::<DaemonSet>::namespaced(client.clone(), SYSTEM);
    assert!(sets.get_opt("weir-agent").await.unwrap().is_none());
    let held = serde_json::to_value(sets.get("weir-detach").await.unwrap()).unwrap();
    let affinity = &held["spec"]["template"]["spec"]["affinity"];
    assert!(
        affinity.is_object(),
        "it must not run beside an agent: {affinity}"
    );

    let pods = Api::<Pod>::namespaced(client.clone(), SYSTEM);
    let at_once = kube::api::DeleteParams::default().grace_period(0);
    let gone = pods.delete("weir-agent-stuck", &at_once).await;
    gone.unwrap();
    let controlling = tokio::spawn(controller(client.clone()));
    let again = ["uninstall", "--yes", "--timeout", "20s"];
    let done = tokio::task::block_in_place(|| world.run_installed(&again));
    controlling.abort();
    assert_eq!(done.code, 0);
    assert!(done.out.contains("Detached on every node"), "{}", done.out);
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_are_done_are_not_asked_for_again() {
    let Some((world, _)) = World::in_memory().await else {
        return;
    };
    let client = world.cluster.client();
    assert_eq!(world.run_installed(&["install", "--no-wait"]).code, 0);
    // Broken off between the nodes and the rest: weir-detach is there, has done its work, and its agents are gone.
    let sets = Api::<DaemonSet>::namespaced(client.clone(), SYSTEM);
    let mut done = sets.get("weir-agent").await.unwrap();
    done.metadata = kube::core::ObjectMeta {
        name: Some("weir-detach".to_owned()),
        ..Default::default()
    };
    sets.create(&kube::api::PostParams::default(), &done)
        .await
        .unwrap();
    sets.delete("weir-agent", &kube::api::DeleteParams::default())
        .await
        .unwrap();
    let unfinished = world.run_installed(&["uninstall", "--yes", "--timeout", "1s"]);
    assert_eq!(unfinished.code, 1, "it is not ready on any node");
    let status = json!({"status": {
        "observedGeneration": 9, "desiredNumberScheduled": 2, "currentNumberScheduled": 2, "numberMisscheduled": 0,
        "numberReady": 2, "updatedNumberScheduled": 2,
    }});
    sets.patch_status("weir-detach", &PatchParams::default(), &Patch::Merge(status))
        .await
        .unwrap();
    let again = world.run_installed(&["uninstall", "--yes", "--timeout", "5s"]);
    assert_eq!(again.code, 0);
    assert!(again.out.contains("when this was run before"), "{}", again.out);
    assert!(sets.get_opt("weir-detach").await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nodes_cannot_be_cleaned_nothing_else_is_deleted() {
    let Some((world, _)) = World::in_memory().await else {
        return;
    };
    assert_eq!(world.run_installed(&["install", "--no-wait"]).code, 0);
    let sets = Api::<DaemonSet>::namespaced(world.cluster.client(), SYSTEM);
    sets.delete("weir-agent", &kube::api::DeleteParams::default())
        .await
        .unwrap();
    let refused = world.run_installed(&["uninstall", "--yes", "--timeout", "5s"]);
    assert_eq!(refused.code, 1);
    assert!(refused.err.contains("--leave-nodes"), "{}", refused.err);
    let deployments = Api::<Deployment>::namespaced(world.cluster.client(), SYSTEM);
    assert!(deployments.get_opt("weir-control").await.unwrap().is_some());
    // Whoever goes on all the same is not told that nothing is left there.
    let left = world.run_installed(&["uninstall", "--yes", "--leave-nodes", "--timeout", "5s"]);
    assert_eq!(left.code, 0);
    assert!(left.out.contains("its nodes were not looked at"), "{}", left.out);
}
