use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api, CustomResourceExt as _,
    api::{DynamicObject, ListParams, Patch, PatchParams, PostParams},
    discovery,
};
use serde_json::{Value, json};
use weir_api_server::{TestCluster, eventually, object};
use weir_control::crd::{AuthorizationPolicy, GROUP, PeerAuthentication, custom_resource_definitions};

use crate::{
    documents::{authorization_policies, peer_authentications},
    validator::Validator,
};

/// As an installation does, so that tests that share a cluster do not disturb one another.
async fn install(cluster: &TestCluster) {
    let api = Api::<CustomResourceDefinition>::all(cluster.client());
    for definition in custom_resource_definitions() {
        let name = definition.metadata.name.clone().unwrap();
        let params = PatchParams::apply("test").force();
        api.patch(&name, &params, &Patch::Apply(&definition))
            .await
            .unwrap();
        eventually("an established definition", || async {
            let found = api.get(&name).await.unwrap();
            let conditions = found.status.and_then(|status| status.conditions);
            let mut conditions = conditions.into_iter().flatten();
            conditions
                .any(|one| one.type_ == "Established" && one.status == "True")
                .then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn an_api_server_takes_the_definitions_and_refuses_by_them() {
    let cluster = TestCluster::new().await;
    install(&cluster).await;
    let group = discovery::group(&cluster.client(), GROUP).await.unwrap();
    for kind in ["AuthorizationPolicy", "PeerAuthentication"] {
        let (_, capabilities) = group.recommended_kind(kind).unwrap();
        assert_eq!(capabilities.scope, discovery::Scope::Namespaced);
        assert!(
            capabilities
                .subresources
                .iter()
                .any(|(below, _)| below.plural == "status")
        );
    }
    let namespace = cluster.namespace("crd").await;
    let policies = Api::<AuthorizationPolicy>::namespaced(cluster.client(), &namespace);
    let policy = |name: &str, spec: Value| -> AuthorizationPolicy {
        object(json!({
            "apiVersion": "weir.dev/v1alpha1", "kind": "AuthorizationPolicy",
            "metadata": {"name": name}, "spec": spec,
        }))
    };
    let made = policies
        .create(&PostParams::default(), &policy("one", json!({"rules": [{}]})))
        .await
        .unwrap();
    assert_eq!(made.spec.action.as_deref(), Some("ALLOW"), "the default");
    for (spec, said) in [
        (json!({"action": "AUDIT"}), "Unsupported value"),
        (
            json!({"rules": [{"to": [{"operation": {"ports": ["http"]}}]}]}),
            "spec.rules[0].to[0].operation.ports[0]",
        ),
        (
            json!({"rules": [{"from": [{"source": {}}]}]}),
            "spec.rules[0].from[0].source",
        ),
    ] {
        let refused = policies
            .create(&PostParams::default(), &policy("bad", spec.clone()))
            .await;
        match refused {
            Err(kube::Error::Api(status)) if status.code == 422 => {
                assert!(status.message.contains(said), "{spec}: {}", status.message);
            }
            other => panic!("{spec}: {other:?}"),
        }
    }
    assert_eq!(
        policies.list(&ListParams::default()).await.unwrap().items.len(),
        1
    );
    let peers = Api::<PeerAuthentication>::namespaced(cluster.client(), &namespace);
    let peer: PeerAuthentication = object(json!({
        "apiVersion": "weir.dev/v1alpha1", "kind": "PeerAuthentication",
        "metadata": {"name": "strict"}, "spec": {"mtls": {"mode": "STRICT"}},
    }));
    peers.create(&PostParams::default(), &peer).await.unwrap();
}

#[tokio::test]
async fn an_api_server_refuses_what_it_is_said_to_refuse_here() {
    let cluster = TestCluster::new().await;
    install(&cluster).await;
    let namespace = cluster.namespace("crd").await;
    let params = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    for (resource, table) in [
        (AuthorizationPolicy::api_resource(), authorization_policies()),
        (PeerAuthentication::api_resource(), peer_authentications()),
    ] {
        let api: Api<DynamicObject> = Api::namespaced_with(cluster.client(), &namespace, &resource);
        let validator = Validator::of(&resource.kind);
        for (spec, _) in table {
            let mut problems = validator.problems(&spec);
            if cluster.stand_in().is_some() {
                // It knows no CEL, and drops fields that nobody knows as a real server does that is not asked to be strict.
                problems.retain(|problem| !problem.starts_with("CEL:"));
            }
            problems.retain(|problem| !problem.ends_with(": unknown"));
            let mut policy = DynamicObject::new("p", &resource);
            policy.data = json!({ "spec": spec });
            match api.create(&params, &policy).await {
                Ok(_) => assert!(problems.is_empty(), "{spec} is taken: {problems:?}"),
                Err(kube::Error::Api(status)) if status.code == 422 => {
                    assert!(!problems.is_empty(), "{spec}: {}", status.message);
                }
                Err(other) => panic!("{spec}: {other}"),
            }
        }
    }
}
