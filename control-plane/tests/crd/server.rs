use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api,
    api::{ListParams, Patch, PatchParams, PostParams},
    discovery,
};
use serde_json::{Value, json};
use weir_api_server::{TestCluster, eventually, object};
use weir_control::crd::{AuthorizationPolicy, GROUP, PeerAuthentication, custom_resource_definitions};

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
