use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api, ResourceExt as _,
    api::{DynamicObject, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use weir_api_server::{eventually, object};
use weir_control::crd::custom_resource_definitions;

use crate::world::{Ran, World, weir};

const OBJECTS: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: api, namespace: NAMESPACE}
spec:
  selector: {matchLabels: {app: api}}
  rules:
  - from: [{source: {principals: [cluster.local/ns/shop/sa/web], notIpBlocks: [10.0.0.1, 'fd00::/8']}}]
    to: [{operation: {ports: ['8080'], methods: [GET]}}, {operation: {notPorts: ['9090']}}]
    when: [{key: source.namespace, notValues: [dev-*]}]
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: api, namespace: NAMESPACE}
spec: {selector: {matchLabels: {app: api}}, mtls: {mode: STRICT}, portLevelMtls: {9100: {mode: DISABLE}}}
---
apiVersion: policy.linkerd.io/v1beta3
kind: Server
metadata: {name: db, namespace: NAMESPACE}
spec: {podSelector: {matchLabels: {app: db}}, port: 5432, accessPolicy: cluster-authenticated}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: none-of-ours}
";

async fn define(world: &World, definition: CustomResourceDefinition) {
    let definitions = Api::<CustomResourceDefinition>::all(world.cluster.client());
    let (name, params) = (definition.name_any(), PatchParams::apply("test").force());
    definitions
        .patch(&name, &params, &Patch::Apply(&definition))
        .await
        .unwrap();
    eventually("a definition", || async {
        let status = definitions.get(&name).await.unwrap().status?;
        let mut conditions = status.conditions.into_iter().flatten();
        conditions
            .any(|one| one.type_ == "Established" && one.status == "True")
            .then_some(())
    })
    .await;
}

fn api(world: &World, namespace: &str, object: &Value) -> Api<DynamicObject> {
    let (group, version) = object["apiVersion"].as_str().unwrap().split_once('/').unwrap();
    let kind = kube::core::GroupVersionKind::gvk(group, version, object["kind"].as_str().unwrap());
    let resource = kube::api::ApiResource::from_gvk(&kind);
    Api::namespaced_with(world.cluster.client(), namespace, &resource)
}

#[tokio::test]
async fn what_is_written_is_what_an_api_server_takes() {
    let world = World::new().await;
    for definition in custom_resource_definitions() {
        define(&world, definition).await;
    }
    let shop = world.cluster.namespace("shop").await;
    let folder = tempfile::tempdir().unwrap();
    let inner = folder.path().join("more");
    std::fs::create_dir(&inner).unwrap();
    std::fs::write(inner.join("policies.yaml"), OBJECTS.replace("NAMESPACE", &shop)).unwrap();
    std::fs::write(folder.path().join("README.md"), "{ no YAML").unwrap();
    let ran = Ran::of(
        weir()
            .args(["migrate", "-f"])
            .arg(folder.path())
            .output()
            .unwrap(),
    );
    assert_eq!(ran.code, 0);
    let made: Vec<Value> = serde_saphyr::from_multiple(&ran.out).unwrap();
    assert_eq!(made.len(), 3);
    for made in made {
        let created: DynamicObject = object(made.clone());
        let api = api(&world, &shop, &made);
        let created = api.create(&PostParams::default(), &created).await.unwrap();
        assert_eq!(created.data["spec"], made["spec"], "nothing is dropped");
    }
    for said in [
        "translated in part",
        "methods is of layer 7",
        "STRICTER",
        "3 policies for Weir written, nothing applied",
    ] {
        assert!(ran.err.contains(said), "{said}");
    }
}

#[tokio::test]
async fn the_clusters_own_are_read_and_kinds_that_are_not_there_are_no_error() {
    let world = World::new().await;
    let shop = world.cluster.namespace("shop").await;
    let server: CustomResourceDefinition = serde_json::from_value(json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "servers.policy.linkerd.io"},
        "spec": {
            "group": "policy.linkerd.io", "scope": "Namespaced",
            "names": {"kind": "Server", "plural": "servers", "singular": "server"},
            "versions": [{"name": "v1beta1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {
                "type": "object", "x-kubernetes-preserve-unknown-fields": true,
            }}}],
        },
    }))
    .unwrap();
    define(&world, server).await;
    let made = json!({
        "apiVersion": "policy.linkerd.io/v1beta1", "kind": "Server", "metadata": {"name": "api"},
        "spec": {"podSelector": {"matchLabels": {"app": "api"}}, "port": "http"},
    });
    let servers = api(&world, &shop, &made);
    servers
        .create(&PostParams::default(), &object(made))
        .await
        .unwrap();
    let ran = world.run(&["migrate"]);
    assert_eq!(ran.code, 0);
    assert!(ran.out.contains("name: server-api") && ran.out.contains(&format!("namespace: {shop}")));
    assert!(ran.err.contains("no pod of it was read"));
    assert_eq!(servers.list(&Default::default()).await.unwrap().items.len(), 1);
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("wrong.yaml");
    std::fs::write(&file, "a: [").unwrap();
    for path in [file, folder.path().join("nothing")] {
        let ran = Ran::of(weir().args(["migrate", "-f"]).arg(&path).output().unwrap());
        assert_eq!((ran.code, ran.out.as_str()), (1, ""));
        assert!(ran.err.contains(path.to_str().unwrap()));
    }
}
