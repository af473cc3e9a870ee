use k8s_openapi::{
    api::core::v1::{Namespace, Pod},
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, ResourceExt as _,
    api::{DynamicObject, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::json;
use weir_api_server::{eventually, object};
use weir_control::crd::custom_resource_definitions;

use crate::world::{Ran, World};

const MESH: &str = "weir.dev/mesh";
const ENROLLED: (&str, &str) = ("weir.dev/enrolled", "true");

/// A namespace in the mesh, another one, and the definitions of policies.
async fn world() -> (World, String, String) {
    let world = World::new().await;
    let definitions = Api::<CustomResourceDefinition>::all(world.cluster.client());
    for definition in custom_resource_definitions() {
        let (name, params) = (definition.name_any(), PatchParams::apply("test").force());
        let patch = Patch::Apply(&definition);
        definitions.patch(&name, &params, &patch).await.unwrap();
        eventually("a definition", || async {
            let status = definitions.get(&name).await.unwrap().status?;
            let mut conditions = status.conditions.into_iter().flatten();
            conditions
                .any(|one| one.type_ == "Established" && one.status == "True")
                .then_some(())
        })
        .await;
    }
    let on: &[(&str, &str)] = &[(MESH, "enabled")];
    let shop = world.cluster.namespace_with("shop", on).await;
    let other = world.cluster.namespace_with("other", on).await;
    let peers = peers(&world, &shop);
    let strict: DynamicObject = object(json!({
        "apiVersion": "weir.dev/v1alpha1", "kind": "PeerAuthentication", "metadata": {"name": "strict"},
        "spec": {"mtls": {"mode": "STRICT"}},
    }));
    peers.create(&PostParams::default(), &strict).await.unwrap();
    for namespace in [&shop, &other] {
        let pod = |name| world.cluster.pod(namespace, name);
        pod("plain").annotations(&[ENROLLED]).create().await;
        pod("own").annotations(&[ENROLLED, on[0]]).create().await;
        pod("labelled").labels(on).create().await;
        pod("off").annotations(&[(MESH, "disabled")]).create().await;
    }
    (world, shop, other)
}

fn peers(world: &World, namespace: &str) -> Api<DynamicObject> {
    let kind = kube::core::GroupVersionKind::gvk("weir.dev", "v1alpha1", "PeerAuthentication");
    let resource = kube::api::ApiResource::from_gvk(&kind);
    Api::namespaced_with(world.cluster.client(), namespace, &resource)
}

/// Every object's version, and what is said of the mesh.
async fn state(world: &World, namespace: &str) -> Vec<(String, String)> {
    let own = Api::<Namespace>::all(world.cluster.client());
    let own = own.get(namespace).await.unwrap();
    let pods = Api::<Pod>::namespaced(world.cluster.client(), namespace);
    let pods = pods.list(&ListParams::default()).await.unwrap();
    let text = |meta: &kube::core::ObjectMeta| {
        let of = |texts: &Option<std::collections::BTreeMap<String, String>>| {
            let value = texts.as_ref().and_then(|texts| texts.get(MESH));
            value.cloned().unwrap_or_else(|| "-".to_owned())
        };
        format!("{} {}", of(&meta.labels), of(&meta.annotations))
    };
    let mut state = vec![("namespace".to_owned(), text(&own.metadata))];
    state.extend(pods.items.iter().map(|pod| (pod.name_any(), text(&pod.metadata))));
    state
}

/// What agents and control plane do: pods that are to leave do.
async fn let_go(world: &World, namespace: &str) {
    let pods = Api::<Pod>::namespaced(world.cluster.client(), namespace);
    let namespaces = Api::<Namespace>::all(world.cluster.client());
    eventually("the namespace is off", || async {
        let own = namespaces.get(namespace).await.unwrap();
        (own.labels()[MESH] == "disabled").then_some(())
    })
    .await;
    eventually("the pod is off", || async {
        let own = pods.get("own").await.unwrap();
        (own.annotations()[MESH] == "disabled").then_some(())
    })
    .await;
    let gone = Patch::Merge(json!({"metadata": {"annotations": {ENROLLED.0: null}}}));
    for name in ["plain", "own"] {
        pods.patch(name, &PatchParams::default(), &gone).await.unwrap();
    }
}

#[tokio::test]
async fn a_namespace_and_its_pods_leave_the_mesh_and_nothing_else_changes() {
    let (world, shop, other) = world().await;
    let before = state(&world, &other).await;
    let command = world.command(&["rollback", &shop, "--yes"]).spawn().unwrap();
    let_go(&world, &shop).await;
    let ran = Ran::of(command.wait_with_output().unwrap());
    assert_eq!(ran.code, 0);
    let expected = [
        ("labelled", "enabled disabled"),
        ("namespace", "disabled -"),
        ("off", "- disabled"),
        ("own", "- disabled"),
        ("plain", "- -"),
    ];
    let mut now = state(&world, &shop).await;
    now.sort();
    let now: Vec<(&str, &str)> = now
        .iter()
        .map(|(name, text)| (name.as_str(), text.as_str()))
        .collect();
    assert_eq!(now, expected);
    assert_eq!(state(&world, &other).await, before);
    assert_eq!(
        peers(&world, &shop)
            .list(&ListParams::default())
            .await
            .unwrap()
            .items
            .len(),
        1
    );
    for said in [
        format!("{shop}/strict"),
        "No pod of".to_owned(),
        format!("kubectl label --overwrite namespace {shop} weir.dev/mesh=enabled"),
        format!("kubectl annotate --overwrite -n {shop} pod own weir.dev/mesh=enabled"),
        format!("kubectl annotate --overwrite -n {shop} pod labelled weir.dev/mesh-"),
    ] {
        assert!(ran.out.contains(&said), "{said}");
    }
    let again = world.run(&["rollback", &shop]);
    assert_eq!(again.code, 0, "there is nothing to ask");
    assert!(again.out.contains("nothing to change"));
}

#[tokio::test]
async fn nothing_changes_without_a_word_of_the_user() {
    let (world, shop, _) = world().await;
    let before = state(&world, &shop).await;
    let ran = world.run(&["rollback", &shop, "--dry-run"]);
    assert_eq!(ran.code, 0);
    assert!(ran.out.contains("enabled -> disabled") && ran.out.contains("own"));
    let ran = world.run(&["rollback", &shop]);
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("--yes"));
    assert_eq!(world.run(&["rollback", "no-such-namespace", "--yes"]).code, 1);
    assert_eq!(state(&world, &shop).await, before);
}

#[tokio::test]
async fn pods_that_do_not_leave_are_named() {
    let (world, shop, _) = world().await;
    let ran = world.run(&["rollback", &shop, "--yes", "--timeout", "0s"]);
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("own, plain"));
    assert!(ran.out.contains("To undo it"));
}
