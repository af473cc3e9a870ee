//! Service accounts' tokens: who gets one, and who is believed.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failed step is a failed test"
)]

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenReview},
    authorization::v1::SelfSubjectAccessReview,
    core::v1::{Node, Pod},
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{ListParams, PostParams},
};
use serde_json::{Value, json};
use weir_api_server::{Denied, TestCluster, eventually, object};

const AUDIENCE: &str = "weir.example";

struct Stage {
    cluster: TestCluster,
    namespace: String,
    node: Node,
    pod: Pod,
}

impl Stage {
    async fn new() -> Self {
        let cluster = TestCluster::new().await;
        let namespace = cluster.namespace("tokens").await;
        let node = cluster.node("tokens").await;
        cluster.service_account(&namespace, "agent").await;
        let pod = cluster
            .pod(&namespace, "agent-0")
            .account("agent")
            .on(&node)
            .create()
            .await;
        Self {
            cluster,
            namespace,
            node,
            pod,
        }
    }

    async fn asked(&self, account: &str, spec: Value) -> Result<TokenRequest, u16> {
        let request = object(json!({ "spec": spec }));
        match self
            .cluster
            .request_token(&self.namespace, account, &request)
            .await
        {
            Ok(token) => Ok(token),
            Err(kube::Error::Api(status)) => Err(status.code),
            Err(other) => panic!("{other}"),
        }
    }

    /// A real server believes a token for some seconds after it has seen it to be good.
    async fn not_believed(&self, token: &str) {
        eventually("the token is not believed", || async {
            let review = self.cluster.review_token(token, &[AUDIENCE]).await;
            refused(&review).then_some(())
        })
        .await;
    }
}

fn refused(review: &TokenReview) -> bool {
    let status = review.status.as_ref().unwrap();
    status.authenticated != Some(true)
}

#[tokio::test]
async fn a_token_says_whose_pod_on_which_node_holds_it() {
    let stage = Stage::new().await;
    let token = stage.cluster.token(&stage.pod, &[AUDIENCE, "other"]).await;
    let review = stage.cluster.review_token(&token, &[AUDIENCE, "third"]).await;
    let status = review.status.unwrap();
    assert_eq!(status.authenticated, Some(true));
    assert_eq!(status.audiences.unwrap(), [AUDIENCE]);
    let user = status.user.unwrap();
    assert_eq!(
        user.username,
        Some(format!("system:serviceaccount:{}:agent", stage.namespace))
    );
    let groups = user.groups.unwrap();
    assert!(
        groups.contains(&format!("system:serviceaccounts:{}", stage.namespace)),
        "{groups:?}"
    );
    assert!(groups.contains(&"system:authenticated".to_owned()), "{groups:?}");
    let extra: BTreeMap<String, Vec<String>> = user.extra.unwrap();
    for (key, value) in [
        ("pod-name", stage.pod.name_any()),
        ("pod-uid", stage.pod.uid().unwrap()),
        ("node-name", stage.node.name_any()),
        ("node-uid", stage.node.uid().unwrap()),
    ] {
        assert_eq!(
            extra[&format!("authentication.kubernetes.io/{key}")],
            [value],
            "{key}"
        );
    }
}

#[tokio::test]
async fn a_token_is_refused_to_who_may_not_have_it() {
    let stage = Stage::new().await;
    stage.cluster.service_account(&stage.namespace, "stranger").await;
    let bound = |name: &str, uid: Option<String>| json!({"kind": "Pod", "apiVersion": "v1", "name": name, "uid": uid});
    let pod = || bound("agent-0", stage.pod.uid());
    for (case, account, spec, expected) in [
        ("no such account", "nobody", json!({"audiences": [AUDIENCE]}), 404),
        (
            "no such pod",
            "agent",
            json!({"audiences": [AUDIENCE], "boundObjectRef": bound("agent-9", None)}),
            404,
        ),
        (
            "another pod of that name",
            "agent",
            json!({"audiences": [AUDIENCE], "boundObjectRef": bound("agent-0", Some("other".to_owned()))}),
            409,
        ),
        (
            "another's pod",
            "stranger",
            json!({"audiences": [AUDIENCE], "boundObjectRef": pod()}),
            400,
        ),
        (
            "too short",
            "agent",
            json!({"audiences": [AUDIENCE], "expirationSeconds": 599}),
            422,
        ),
        (
            "bound to what cannot be",
            "agent",
            json!({"audiences": [AUDIENCE], "boundObjectRef": {"kind": "ConfigMap", "apiVersion": "v1", "name": "x"}}),
            400,
        ),
    ] {
        assert_eq!(stage.asked(account, spec).await.err(), Some(expected), "{case}");
    }
    let shortest = stage
        .asked(
            "agent",
            json!({"audiences": [AUDIENCE], "expirationSeconds": 600}),
        )
        .await
        .unwrap();
    assert_eq!(shortest.spec.expiration_seconds, Some(600));
}

#[tokio::test]
async fn a_token_for_others_or_of_nobody_is_not_believed() {
    let stage = Stage::new().await;
    let token = stage.cluster.token(&stage.pod, &["other"]).await;
    for (case, token, audiences) in [
        ("another audience", token.as_str(), [AUDIENCE].as_slice()),
        ("the API server's audience", token.as_str(), &[]),
        ("no token at all", "abc", &[AUDIENCE]),
        (
            "a changed token",
            &format!("{}x", &token[..token.len() - 1]),
            &["other"],
        ),
    ] {
        let review = stage.cluster.review_token(token, audiences).await;
        assert!(refused(&review), "{case}");
        assert!(
            review
                .status
                .unwrap()
                .error
                .is_some_and(|error| !error.is_empty()),
            "{case}"
        );
    }
    let plain = stage
        .asked("agent", json!({"audiences": []}))
        .await
        .unwrap()
        .status
        .unwrap()
        .token;
    assert!(
        !refused(&stage.cluster.review_token(&plain, &[]).await),
        "a token without audiences is the server's"
    );
}

#[tokio::test]
async fn a_token_is_worth_nothing_once_its_pod_is_gone_and_another_has_its_name() {
    let stage = Stage::new().await;
    let token = stage.cluster.token(&stage.pod, &[AUDIENCE]).await;
    assert!(!refused(&stage.cluster.review_token(&token, &[AUDIENCE]).await));
    stage.cluster.delete_pod(&stage.pod).await;
    stage.not_believed(&token).await;
    stage
        .cluster
        .pod(&stage.namespace, "agent-0")
        .account("agent")
        .on(&stage.node)
        .create()
        .await;
    stage.not_believed(&token).await;
}

#[tokio::test]
async fn a_token_expires() {
    let stage = Stage::new().await;
    let Some(server) = stage.cluster.stand_in() else {
        return;
    };
    let token = stage.cluster.token(&stage.pod, &[AUDIENCE]).await;
    server.advance(Duration::from_secs(3599));
    assert!(!refused(&stage.cluster.review_token(&token, &[AUDIENCE]).await));
    server.advance(Duration::from_secs(3));
    let review = stage.cluster.review_token(&token, &[AUDIENCE]).await;
    assert!(refused(&review));
    assert!(review.status.unwrap().error.unwrap().contains("expired"));
}

#[tokio::test]
async fn who_comes_with_a_token_may_do_what_is_not_forbidden() {
    let stage = Stage::new().await;
    let Some(server) = stage.cluster.stand_in() else {
        return;
    };
    let token = stage
        .asked("agent", json!({"audiences": []}))
        .await
        .unwrap()
        .status
        .unwrap()
        .token;
    let client = |token: String| {
        let mut config = stage.cluster.config();
        config.auth_info.token = Some(token.into());
        Client::try_from(config).unwrap()
    };
    let code = |result: kube::Result<kube::core::ObjectList<Pod>>| match result {
        Ok(_) => 200,
        Err(kube::Error::Api(status)) => status.code,
        Err(other) => panic!("{other}"),
    };
    let agent = client(token);
    let pods = Api::<Pod>::namespaced(agent.clone(), &stage.namespace);
    assert_eq!(code(pods.list(&ListParams::default()).await), 200);
    server.deny(Denied {
        user: format!("system:serviceaccount:{}:agent", stage.namespace),
        verb: "list".to_owned(),
        group: String::new(),
        resource: "pods".to_owned(),
    });
    assert_eq!(code(pods.list(&ListParams::default()).await), 403);
    let reviews = Api::<SelfSubjectAccessReview>::all(agent);
    for (verb, allowed) in [("list", false), ("get", true)] {
        let review = object(json!({"spec": {"resourceAttributes": {"verb": verb, "resource": "pods"}}}));
        let review = reviews.create(&PostParams::default(), &review).await.unwrap();
        assert_eq!(review.status.unwrap().allowed, allowed, "{verb}");
    }
    server.allow_all();
    assert_eq!(code(pods.list(&ListParams::default()).await), 200);
    let stranger = Api::<Pod>::namespaced(client("no-token".to_owned()), &stage.namespace);
    assert_eq!(code(stranger.list(&ListParams::default()).await), 401);
}
