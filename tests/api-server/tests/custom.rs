//! Custom resources and server-side apply ("Extend the Kubernetes API", "Server-Side Apply").

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failed step is a failed test"
)]

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api, ResourceExt as _,
    api::{
        ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams,
        ValidationDirective,
    },
    discovery,
    runtime::{WatchStreamExt as _, watcher},
};
use serde_json::{Value, json};
use weir_api_server::{TestCluster, object};

/// A definition with a status and conditions, under a group of its own.
fn definition(group: &str) -> CustomResourceDefinition {
    object(json!({
        "metadata": {"name": format!("gauges.{group}")},
        "spec": {
            "group": group, "scope": "Namespaced",
            "names": {"plural": "gauges", "singular": "gauge", "kind": "Gauge", "shortNames": ["gg"]},
            "versions": [{
                "name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                    "spec": {"type": "object", "required": ["level"], "properties": {
                        "level": {"type": "integer", "minimum": 0, "maximum": 10},
                        "mode": {"type": "string", "enum": ["Auto", "Manual"], "default": "Auto"},
                        "label": {"type": "string", "pattern": "^[a-z]*$"},
                        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                    }},
                    "status": {"type": "object", "properties": {
                        "observedGeneration": {"type": "integer", "format": "int64"},
                        "conditions": {
                            "type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"],
                            "items": {"type": "object", "required": ["type", "status"], "properties": {
                                "type": {"type": "string"}, "status": {"type": "string"}, "reason": {"type": "string"},
                            }},
                        },
                    }},
                }}},
            }],
        },
    }))
}

struct Gauges {
    cluster: TestCluster,
    api: Api<DynamicObject>,
    resource: ApiResource,
}

impl Gauges {
    async fn new() -> Self {
        let cluster = TestCluster::new().await;
        let group = format!("{}.weir.dev", cluster.unique("test"));
        cluster.define(&definition(&group)).await;
        let resource = ApiResource {
            api_version: format!("{group}/v1"),
            group,
            version: "v1".to_owned(),
            kind: "Gauge".to_owned(),
            plural: "gauges".to_owned(),
        };
        let namespace = cluster.namespace("custom").await;
        let api = Api::namespaced_with(cluster.client(), &namespace, &resource);
        Self {
            cluster,
            api,
            resource,
        }
    }

    fn gauge(&self, name: &str, spec: Value) -> DynamicObject {
        DynamicObject::new(name, &self.resource).data(json!({ "spec": spec }))
    }

    async fn create(&self, name: &str, spec: Value) -> kube::Result<DynamicObject> {
        self.api
            .create(&PostParams::default(), &self.gauge(name, spec))
            .await
    }

    /// Applies a status with one condition.
    async fn condition(
        &self,
        manager: &str,
        kind: &str,
        status: &str,
        force: bool,
    ) -> kube::Result<DynamicObject> {
        let applied = json!({
            "apiVersion": self.resource.api_version, "kind": "Gauge", "metadata": {"name": "one"},
            "status": {"conditions": [{"type": kind, "status": status}]},
        });
        let mut params = PatchParams::apply(manager);
        params.force = force;
        self.api
            .patch_status("one", &params, &Patch::Apply(applied))
            .await
    }

    async fn apply(&self, manager: &str, force: bool, spec: Value) -> kube::Result<DynamicObject> {
        let applied = json!({
            "apiVersion": self.resource.api_version, "kind": "Gauge", "metadata": {"name": "one"}, "spec": spec,
        });
        let mut params = PatchParams::apply(manager);
        params.force = force;
        self.api.patch("one", &params, &Patch::Apply(applied)).await
    }
}

fn refusal<T: std::fmt::Debug>(result: kube::Result<T>) -> (u16, String) {
    match result {
        Err(kube::Error::Api(status)) => (status.code, status.message.clone()),
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test]
async fn a_defined_resource_is_discovered() {
    let gauges = Gauges::new().await;
    let client = gauges.cluster.client();
    let group = discovery::group(&client, &gauges.resource.group).await.unwrap();
    let (resource, capabilities) = group.recommended_kind("Gauge").unwrap();
    assert_eq!(resource.plural, "gauges");
    assert_eq!(capabilities.scope, discovery::Scope::Namespaced);
    assert!(
        capabilities
            .subresources
            .iter()
            .any(|(below, _)| below.plural == "status")
    );
    let whole = discovery::Discovery::new(client.clone()).run().await.unwrap();
    assert!(whole.has_group(&gauges.resource.group) && whole.has_group("discovery.k8s.io"));
    let at_once = discovery::Discovery::new(client).run_aggregated().await.unwrap();
    assert!(at_once.has_group(&gauges.resource.group));
}

#[tokio::test]
async fn the_schema_refuses_prunes_and_fills_in() {
    let gauges = Gauges::new().await;
    for (spec, said) in [
        (json!({}), "spec.level: Required value"),
        (json!({"level": "high"}), "must be of type integer"),
        (json!({"level": 11}), "less than or equal to 10"),
        (
            json!({"level": 1, "mode": "Never"}),
            "Unsupported value: \"Never\"",
        ),
        (json!({"level": 1, "label": "A"}), "should match '^[a-z]*$'"),
    ] {
        let (code, message) = refusal(gauges.create("bad", spec.clone()).await);
        assert_eq!(code, 422, "{spec}");
        assert!(message.contains(said), "{message}");
    }
    let made = gauges
        .create("one", json!({"level": 1, "unknown": 2, "free": {"any": 3}}))
        .await
        .unwrap();
    assert_eq!(
        made.data["spec"],
        json!({"level": 1, "mode": "Auto", "free": {"any": 3}})
    );
    let strict = PatchParams {
        field_validation: Some(ValidationDirective::Strict),
        ..PatchParams::default()
    };
    let unknown = Patch::Merge(json!({"spec": {"unknown": 2}}));
    assert_eq!(refusal(gauges.api.patch("one", &strict, &unknown).await).0, 422);
}

#[tokio::test]
async fn the_status_and_the_rest_are_written_apart() {
    let gauges = Gauges::new().await;
    let mut gauge = gauges.gauge("one", json!({"level": 1}));
    gauge.data["status"] = json!({"observedGeneration": 9});
    let made = gauges.api.create(&PostParams::default(), &gauge).await.unwrap();
    assert!(made.data.get("status").is_none(), "a status is not created with");
    assert_eq!(made.metadata.generation, Some(1));
    let both = json!({
        "metadata": {"labels": {"a": "b"}}, "spec": {"level": 5}, "status": {"observedGeneration": 1},
    });
    let status = gauges
        .api
        .patch_status("one", &PatchParams::default(), &Patch::Merge(&both))
        .await
        .unwrap();
    assert_eq!(status.data["status"]["observedGeneration"], 1);
    assert_eq!(status.data["spec"]["level"], 1);
    assert!(status.metadata.labels.is_none());
    assert_eq!(status.metadata.generation, Some(1));
    let other = json!({"spec": {"level": 5}, "status": {"observedGeneration": 7}});
    let spec = gauges
        .api
        .patch("one", &PatchParams::default(), &Patch::Merge(&other))
        .await
        .unwrap();
    assert_eq!(spec.data["status"]["observedGeneration"], 1);
    assert_eq!(spec.metadata.generation, Some(2));
    let labels = json!({"metadata": {"labels": {"a": "b"}}});
    let labelled = gauges
        .api
        .patch("one", &PatchParams::default(), &Patch::Merge(&labels))
        .await
        .unwrap();
    assert_eq!(labelled.metadata.generation, Some(2));
}

#[tokio::test]
async fn a_replacement_must_name_a_version_and_a_strategic_patch_is_not_for_custom_resources() {
    let gauges = Gauges::new().await;
    gauges.create("one", json!({"level": 1})).await.unwrap();
    let blind = gauges.gauge("one", json!({"level": 2}));
    assert_eq!(
        refusal(gauges.api.replace("one", &PostParams::default(), &blind).await).0,
        422
    );
    let strategic = Patch::Strategic(json!({"spec": {"level": 2}}));
    assert_eq!(
        refusal(gauges.api.patch("one", &PatchParams::default(), &strategic).await).0,
        415
    );
    let tested: json_patch::Patch = object(json!([
        {"op": "test", "path": "/spec/level", "value": 1}, {"op": "replace", "path": "/spec/level", "value": 2},
    ]));
    let patch = Patch::Json::<()>(tested);
    assert_eq!(
        gauges
            .api
            .patch("one", &PatchParams::default(), &patch)
            .await
            .unwrap()
            .data["spec"]["level"],
        2
    );
    assert_eq!(
        refusal(gauges.api.patch("one", &PatchParams::default(), &patch).await).0,
        422
    );
}

#[tokio::test]
async fn conditions_of_two_managers_stand_beside_each_other() {
    let gauges = Gauges::new().await;
    gauges.create("one", json!({"level": 1})).await.unwrap();
    gauges
        .condition("first", "Accepted", "True", false)
        .await
        .unwrap();
    gauges.condition("second", "Ready", "True", false).await.unwrap();
    let both = gauges
        .condition("first", "Accepted", "False", false)
        .await
        .unwrap();
    let conditions = json!([{"type": "Accepted", "status": "False"}, {"type": "Ready", "status": "True"}]);
    assert_eq!(both.data["status"]["conditions"], conditions);
    let again = gauges
        .condition("first", "Accepted", "False", false)
        .await
        .unwrap();
    assert_eq!(
        again.resource_version(),
        both.resource_version(),
        "what changes nothing makes no version"
    );
}

#[tokio::test]
async fn a_field_of_another_manager_is_a_conflict_unless_forced() {
    let gauges = Gauges::new().await;
    let made = gauges
        .apply("first", false, json!({"level": 1, "label": "a"}))
        .await
        .unwrap();
    let entry = &made.metadata.managed_fields.as_ref().unwrap()[0];
    assert_eq!(
        (entry.manager.as_deref(), entry.operation.as_deref()),
        (Some("first"), Some("Apply"))
    );
    let (code, message) = refusal(gauges.apply("second", false, json!({"level": 2})).await);
    assert_eq!(code, 409);
    assert!(
        message.contains("conflict with \"first\"") && message.contains(".spec.level"),
        "{message}"
    );
    let forced = gauges.apply("second", true, json!({"level": 2})).await.unwrap();
    assert_eq!(forced.data["spec"]["level"], 2);
    // It keeps what is another's now, and loses what nobody applies.
    let less = gauges.apply("first", false, json!({})).await.unwrap();
    assert_eq!(less.data["spec"]["level"], 2);
    assert!(less.data["spec"].get("label").is_none());
}

#[tokio::test]
async fn a_merge_patch_takes_fields_over() {
    let gauges = Gauges::new().await;
    gauges.apply("first", false, json!({"level": 1})).await.unwrap();
    let patch = Patch::Merge(json!({"spec": {"level": 3}}));
    gauges
        .api
        .patch(
            "one",
            &PatchParams {
                field_manager: Some("hand".to_owned()),
                ..PatchParams::default()
            },
            &patch,
        )
        .await
        .unwrap();
    let (code, message) = refusal(gauges.apply("first", false, json!({"level": 1})).await);
    assert_eq!(code, 409);
    assert!(message.contains("\"hand\""), "{message}");
}

#[tokio::test]
async fn objects_go_with_their_definition() {
    use futures_util::StreamExt as _;
    let gauges = Gauges::new().await;
    gauges.create("one", json!({"level": 1})).await.unwrap();
    let mut stream = watcher::watcher(gauges.api.clone(), watcher::Config::default())
        .applied_objects()
        .boxed();
    assert_eq!(stream.next().await.unwrap().unwrap().name_any(), "one");
    let definitions = Api::<CustomResourceDefinition>::all(gauges.cluster.client());
    let name = format!("gauges.{}", gauges.resource.group);
    definitions.delete(&name, &DeleteParams::default()).await.unwrap();
    weir_api_server::eventually("the resource is not served", || async {
        match gauges.api.list(&ListParams::default()).await {
            Err(kube::Error::Api(status)) if status.code == 404 => Some(()),
            _ => None,
        }
    })
    .await;
}

#[tokio::test]
async fn a_definition_that_cannot_be_is_refused() {
    let cluster = TestCluster::new().await;
    let definitions = Api::<CustomResourceDefinition>::all(cluster.client());
    let group = format!("{}.weir.dev", cluster.unique("test"));
    let mut misnamed = definition(&group);
    misnamed.metadata.name = Some(format!("other.{group}"));
    assert_eq!(
        refusal(definitions.create(&PostParams::default(), &misnamed).await).0,
        422
    );
    let mut unstored = definition(&group);
    unstored.spec.versions[0].storage = false;
    assert_eq!(
        refusal(definitions.create(&PostParams::default(), &unstored).await).0,
        422
    );
    let mut without = definition(&group);
    without.spec.versions[0].schema = None;
    assert_eq!(
        refusal(definitions.create(&PostParams::default(), &without).await).0,
        422
    );
}
