use std::time::Duration;

use http::Method;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::{Value, json};
use weir_api_server::{Effect, Faults, Requests, TestCluster, eventually};
use weir_control::crd::AuthorizationPolicy;

use crate::replica::{PACE, Replica, install, policy};

/// So often may something still have been to write.
const ROUNDS: usize = 6;

struct Stage {
    cluster: TestCluster,
    faults: Faults,
    namespace: String,
    api: Api<AuthorizationPolicy>,
}

impl Stage {
    async fn new() -> Self {
        let cluster = TestCluster::new().await;
        install(&cluster).await;
        let namespace = cluster.namespace("status").await;
        Self {
            faults: cluster.faults(),
            api: Api::namespaced(cluster.client(), &namespace),
            namespace,
            cluster,
        }
    }

    /// A client through the faults that tries nothing again by itself.
    fn writing(&self) -> Client {
        let mut config = self.faults.config();
        config.default_retry = false;
        Client::try_from(config).unwrap()
    }

    fn replica(&self, name: &str) -> Replica {
        Replica::start(&self.cluster, self.writing(), &self.namespace, name)
    }

    fn writes(&self) -> usize {
        self.faults
            .count(&Requests::all().of("authorizationpolicies").method(Method::PATCH))
    }

    async fn spec(&self, name: &str, spec: Value) {
        let patch = Patch::Merge(json!({ "spec": spec }));
        self.api
            .patch(name, &PatchParams::default(), &patch)
            .await
            .unwrap();
    }

    /// Waits for the condition of the policy's present generation.
    async fn condition(&self, name: &str) -> Condition {
        eventually("a condition of this generation", || async {
            let policy = self.api.get(name).await.unwrap();
            let status = policy.status?;
            let condition = status
                .conditions
                .into_iter()
                .find(|one| one.type_ == "Accepted")?;
            let generation = policy.metadata.generation;
            (status.observed_generation == generation && condition.observed_generation == generation)
                .then_some(condition)
        })
        .await
    }

    /// Waits until nothing has been written for as long as anything would be tried again, and gives how much was.
    async fn quiet(&self) -> usize {
        let long = PACE.rest + PACE.retry_most + PACE.coalesce * 4;
        for _ in 0..ROUNDS {
            let before = self.writes();
            tokio::time::sleep(long).await;
            if self.writes() == before {
                return before;
            }
        }
        panic!("still writing after {} writes", self.writes());
    }
}

/// A rule that the definition lets through, and the compiler does not.
fn wrong() -> Value {
    json!([{"when": [{"key": "source.ip", "values": ["10.0.0.0/99"]}]}])
}

#[tokio::test]
async fn a_condition_appears_changes_with_its_policy_and_is_written_once() {
    let stage = Stage::new().await;
    policy(&stage.cluster, &stage.namespace, "one", json!({"rules": [{}]})).await;
    let _replica = stage.replica("a");
    let condition = stage.condition("one").await;
    assert_eq!((&*condition.status, &*condition.reason), ("True", "Accepted"));
    assert_eq!(stage.quiet().await, 1);

    stage.spec("one", json!({"rules": wrong()})).await;
    let refused = stage.condition("one").await;
    assert_eq!((&*refused.status, &*refused.reason), ("False", "Invalid"));
    assert!(
        refused
            .message
            .starts_with("rules[0].when[0].values[0]: expected"),
        "{}",
        refused.message
    );

    let l7 = json!([{"to": [{"operation": {"methods": ["GET"]}}]}]);
    stage.spec("one", json!({"rules": l7})).await;
    let warned = stage.condition("one").await;
    assert_eq!(
        (&*warned.status, &*warned.reason),
        ("True", "AcceptedWithWarnings")
    );
    assert!(
        warned.message.contains("cannot be decided at L4"),
        "{}",
        warned.message
    );
    assert_eq!(stage.quiet().await, 3, "one write for each generation");
}

#[tokio::test]
async fn conditions_of_others_stay_and_ours_comes_back() {
    let stage = Stage::new().await;
    policy(&stage.cluster, &stage.namespace, "one", json!({})).await;
    let _replica = stage.replica("a");
    let ours = stage.condition("one").await;
    let other = json!({
        "type": "Audited", "status": "True", "reason": "R", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z",
    });
    let applied = json!({
        "apiVersion": "weir.dev/v1alpha1", "kind": "AuthorizationPolicy", "metadata": {"name": "one"},
        "status": {"conditions": [other]},
    });
    stage
        .api
        .patch_status("one", &PatchParams::apply("auditor"), &Patch::Apply(applied))
        .await
        .unwrap();
    // Somebody writes over ours.
    let mut forged = json!(ours);
    forged["status"] = json!("False");
    let merged = json!({"status": {"conditions": [other, forged], "bound": 99}});
    stage
        .api
        .patch_status("one", &PatchParams::default(), &Patch::Merge(merged))
        .await
        .unwrap();
    eventually("ours is back", || async {
        let status = stage.api.get("one").await.unwrap().status?;
        let holds = |kind: &str| {
            status
                .conditions
                .iter()
                .any(|one| one.type_ == kind && one.status == "True")
        };
        (holds("Accepted") && holds("Audited") && status.bound == Some(0)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn two_replicas_converge_and_fall_silent() {
    let stage = Stage::new().await;
    for number in 0..8 {
        policy(&stage.cluster, &stage.namespace, &format!("p{number}"), json!({})).await;
    }
    let _replicas = [stage.replica("a"), stage.replica("b")];
    for number in 0..8 {
        stage.condition(&format!("p{number}")).await;
    }
    let first = stage.quiet().await;
    assert!((8..=16).contains(&first), "{first} writes for 8 policies");
    for number in 0..8 {
        stage.spec(&format!("p{number}"), json!({"rules": wrong()})).await;
    }
    for number in 0..8 {
        assert_eq!(stage.condition(&format!("p{number}")).await.status, "False");
    }
    let second = stage.quiet().await - first;
    assert!(
        (8..=24).contains(&second),
        "{second} writes for 8 policies that changed"
    );
}

#[tokio::test]
async fn conditions_survive_an_api_server_that_refuses_or_loses_writes() {
    for effect in [
        Effect::Refuse(429),
        Effect::Refuse(500),
        Effect::Refuse(503),
        Effect::Refuse(409),
        Effect::LoseResponse,
    ] {
        let stage = Stage::new().await;
        stage
            .faults
            .inject_times(3, effect, Requests::all().method(Method::PATCH));
        policy(&stage.cluster, &stage.namespace, "one", json!({})).await;
        let _replica = stage.replica("a");
        assert_eq!(stage.condition("one").await.status, "True", "{effect:?}");
        // A lost answer is that of a write which stands: a watch says so, and it is not made again.
        let writes = stage.quiet().await;
        assert!((1..=4).contains(&writes), "{effect:?}: {writes} writes");
    }
}

#[tokio::test]
async fn a_server_that_stays_away_is_asked_ever_more_rarely() {
    let stage = Stage::new().await;
    let fault = stage
        .faults
        .inject(Effect::Refuse(500), Requests::all().method(Method::PATCH));
    policy(&stage.cluster, &stage.namespace, "one", json!({})).await;
    let _replica = stage.replica("a");
    eventually("the first tries", || async {
        (stage.writes() >= 3).then_some(())
    })
    .await;
    let before = stage.writes();
    tokio::time::sleep(Duration::from_secs(2)).await;
    // At least half of the longest wait lies between two.
    let tries = stage.writes() - before;
    assert!((1..=12).contains(&tries), "{tries} tries in two seconds");
    stage.faults.lift(fault);
    stage.condition("one").await;
}

#[tokio::test]
async fn a_policy_is_bound_to_the_enrolled_pods_that_it_selects() {
    let stage = Stage::new().await;
    let node = stage.cluster.node("status").await;
    let selector = json!({"selector": {"matchLabels": {"app": "web"}}});
    policy(&stage.cluster, &stage.namespace, "web", selector).await;
    policy(&stage.cluster, &stage.namespace, "all", json!({})).await;
    let replica = stage.replica("a");
    let mut uids = Vec::new();
    for (name, app) in [("a", "web"), ("b", "web"), ("c", "db")] {
        let pod = stage.cluster.pod(&stage.namespace, name).on(&node);
        let pod = pod
            .labels(&[("app", app)])
            .annotations(&[("weir.dev/mesh", "enabled")])
            .create()
            .await;
        uids.push(pod.uid().unwrap());
    }
    let bound = async |name: &str, expected: i64| {
        eventually("how many it is bound to", || async {
            let status = stage.api.get(name).await.unwrap().status?;
            (status.bound == Some(expected)).then_some(())
        })
        .await;
    };
    bound("web", 0).await;
    let node = node.name_any();
    let reported: Vec<_> = uids.iter().map(|uid| (uid.as_str(), Ok(()))).collect();
    replica.report(&node, Some(&reported));
    bound("web", 2).await;
    bound("all", 3).await;
    replica.report(&node, Some(&reported[1..]));
    bound("web", 1).await;
    // Its agent speaks to another replica now: nothing is known, so nothing changes.
    replica.report(&node, None);
    stage.quiet().await;
    bound("web", 1).await;
}

#[tokio::test]
async fn a_policy_made_anew_under_the_name_gets_a_status_of_its_own() {
    let stage = Stage::new().await;
    policy(&stage.cluster, &stage.namespace, "one", json!({})).await;
    let _replica = stage.replica("a");
    stage.condition("one").await;
    stage.api.delete("one", &DeleteParams::default()).await.unwrap();
    policy(&stage.cluster, &stage.namespace, "one", json!({"rules": wrong()})).await;
    assert_eq!(stage.condition("one").await.status, "False");
}
