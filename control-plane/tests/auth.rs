//! Who is let in as an agent: against an API server, with tokens of its own.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failed step is a failed test"
)]

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::api::{
    apps::v1::DaemonSet,
    core::v1::{Node, Pod},
};
use kube::{Api, Client, ResourceExt as _, api::DeleteParams};
use prometheus::Registry;
use serde_json::json;
use tonic::metadata::MetadataMap;
use weir_api_server::{Effect, NewPod, Requests, TestCluster, object};
use weir_control::{
    ads::{Authenticate as _, Refusal},
    auth::{AgentAccount, AuthLimits, KubePods, NodeAccount, TokenAuthenticator},
};

const AUDIENCE: &str = "weir";
const ACCOUNT: &str = "weir-agent";

struct World {
    cluster: TestCluster,
    namespace: String,
    node: Node,
    daemon_set: DaemonSet,
}

impl World {
    async fn new() -> Self {
        let cluster = TestCluster::new().await;
        let namespace = cluster.namespace("auth").await;
        let node = cluster.node("auth").await;
        cluster.service_account(&namespace, ACCOUNT).await;
        let daemon_set = cluster.daemon_set(&namespace, ACCOUNT).await;
        Self {
            cluster,
            namespace,
            node,
            daemon_set,
        }
    }

    fn new_pod(&self, name: &str) -> NewPod<'_> {
        self.cluster
            .pod(&self.namespace, name)
            .account(ACCOUNT)
            .on(&self.node)
    }

    async fn agent(&self) -> Pod {
        self.new_pod("agent-1").owned_by(&self.daemon_set).create().await
    }

    fn authenticator(&self) -> TokenAuthenticator {
        self.authenticator_with(self.cluster.client(), AuthLimits::default())
    }

    fn authenticator_with(&self, client: Client, limits: AuthLimits) -> TokenAuthenticator {
        let pods = Arc::new(KubePods::new(client.clone()));
        TokenAuthenticator::new(client, self.account(), pods, limits, &Registry::new()).unwrap()
    }

    fn account(&self) -> AgentAccount {
        AgentAccount {
            audiences: vec![AUDIENCE.to_owned()],
            namespace: self.namespace.clone(),
            service_account: ACCOUNT.to_owned(),
            daemon_set: ACCOUNT.to_owned(),
            trusted: Vec::new(),
            relay_service_account: "weir-relay".to_owned(),
        }
    }

    /// That lets this one in too.
    fn authenticator_trusting(&self, account: NodeAccount) -> TokenAuthenticator {
        let client = self.cluster.client();
        let pods = Arc::new(KubePods::new(client.clone()));
        let account = AgentAccount {
            trusted: vec![account],
            ..self.account()
        };
        TokenAuthenticator::new(client, account, pods, AuthLimits::default(), &Registry::new()).unwrap()
    }
}

fn metadata(headers: &[&str]) -> MetadataMap {
    let mut metadata = MetadataMap::new();
    for header in headers {
        metadata.append("authorization", header.parse().unwrap());
    }
    metadata
}

async fn ask(authenticator: &TokenAuthenticator, token: &str) -> Result<String, Refusal> {
    ask_from(authenticator, token, "10.0.0.1:1000").await
}

async fn ask_from(authenticator: &TokenAuthenticator, token: &str, peer: &str) -> Result<String, Refusal> {
    let peer: SocketAddr = peer.parse().unwrap();
    let metadata = metadata(&[&format!("Bearer {token}")]);
    let agent = authenticator.authenticate(&metadata, Some(peer)).await?;
    Ok(agent.node.as_ref().to_owned())
}

/// Refused, and for this reason, which never quotes the token.
fn assert_refused(result: Result<String, Refusal>, words: &str, token: &str) {
    match result {
        Err(Refusal::Unauthenticated(reason)) => {
            assert!(reason.contains(words), "{reason:?} for {words:?}");
            assert!(
                token.is_empty() || !reason.contains(token),
                "the token is in {reason:?}"
            );
        }
        other => panic!("{other:?} for {words:?}"),
    }
}

#[tokio::test]
async fn an_agents_token_gives_the_node_of_its_pod() {
    let world = World::new().await;
    let token = world
        .cluster
        .token(&world.agent().await, &[AUDIENCE, "other"])
        .await;
    assert_eq!(
        ask(&world.authenticator(), &token).await,
        Ok(world.node.name_any())
    );
}

#[tokio::test]
async fn a_header_that_is_not_one_token_is_refused_without_asking_the_api_server() {
    let world = World::new().await;
    let faults = world.cluster.faults();
    let authenticator = world.authenticator_with(faults.client().unwrap(), AuthLimits::default());
    let token = world.cluster.token(&world.agent().await, &[AUDIENCE]).await;
    let bearer = format!("Bearer {token}");
    let long = format!("Bearer a.{}.c", "b".repeat(9_000));
    for (headers, words) in [
        (vec![], "no bearer token"),
        (vec![bearer.as_str(), bearer.as_str()], "more than one"),
        (vec![long.as_str()], "holds no service account's token"),
        (vec!["Bearer garbage"], "holds no service account's token"),
        (vec!["Basic YTpi"], "holds no service account's token"),
    ] {
        let result = authenticator.authenticate(&metadata(&headers), None).await;
        assert_refused(result.map(|agent| agent.node.to_string()), words, "");
    }
    assert_eq!(faults.count(&Requests::all().of("tokenreviews")), 0);
}

#[tokio::test]
async fn tokens_of_others_are_refused() {
    let world = World::new().await;
    let authenticator = world.authenticator();
    let agent = world.agent().await;
    let cluster = &world.cluster;
    cluster.service_account(&world.namespace, "stranger").await;
    let other = cluster.namespace("auth-other").await;
    cluster.service_account(&other, ACCOUNT).await;
    let other_set = cluster.daemon_set(&world.namespace, "other-agent").await;
    let mut forged_set = world.daemon_set.clone();
    forged_set.metadata.uid = Some("00000000-0000-0000-0000-000000000000".to_owned());
    // Without its labels, by which a real DaemonSet would adopt the pod once a garbage collector has taken the owner away.
    forged_set.spec = None;

    let stranger = world
        .new_pod("stranger")
        .account("stranger")
        .owned_by(&world.daemon_set)
        .create()
        .await;
    let elsewhere = cluster
        .pod(&other, "agent-1")
        .account(ACCOUNT)
        .on(&world.node)
        .create()
        .await;
    let alone = world.new_pod("alone").create().await;
    let of_other = world.new_pod("of-other").owned_by(&other_set).create().await;
    let forged = world
        .new_pod("forged")
        .owned_by(&forged_set)
        .kept_by(&world.node)
        .create()
        .await;
    let nowhere = cluster
        .pod(&world.namespace, "nowhere")
        .account(ACCOUNT)
        .owned_by(&world.daemon_set);
    let nowhere = nowhere.create().await;
    for (pod, audiences, words) in [
        (&agent, &["other"][..], "does not believe"),
        (&agent, &[], "does not believe"),
        (&stranger, &[AUDIENCE], "is no agent"),
        (&elsewhere, &[AUDIENCE], "is no agent"),
        (&alone, &[AUDIENCE], "not one of the agents' DaemonSet"),
        (&of_other, &[AUDIENCE], "not one of the agents' DaemonSet"),
        (&forged, &[AUDIENCE], "not one of the agents' DaemonSet"),
        (&nowhere, &[AUDIENCE], "has no node"),
    ] {
        let token = cluster.token(pod, audiences).await;
        // Each from an address of its own, so that none is slowed down.
        let peer = format!("10.1.0.{}:1", words.len());
        assert_refused(ask_from(&authenticator, &token, &peer).await, words, &token);
    }
    let unbound = object(json!({"spec": {"audiences": [AUDIENCE]}}));
    let unbound = cluster
        .request_token(&world.namespace, ACCOUNT, &unbound)
        .await
        .unwrap();
    let unbound = unbound.status.unwrap().token;
    assert_refused(
        ask(&authenticator, &unbound).await,
        "not bound to a pod",
        &unbound,
    );
    let token = cluster.token(&agent, &[AUDIENCE]).await;
    // The first letter of the signature: of the last one, some bits mean nothing.
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let first = if signature.starts_with('A') { 'B' } else { 'A' };
    let changed = format!("{signed}.{first}{}", &signature[1..]);
    assert_refused(ask(&authenticator, &changed).await, "does not believe", &changed);
    assert_eq!(ask(&authenticator, &token).await, Ok(world.node.name_any()));
}

#[tokio::test]
async fn another_node_proxy_is_let_in_if_it_is_named_and_by_pods_of_its_own_daemon_set() {
    let world = World::new().await;
    let cluster = &world.cluster;
    let mesh = cluster.namespace("mesh").await;
    cluster.service_account(&mesh, "ztunnel").await;
    let set = cluster.daemon_set(&mesh, "ztunnel").await;
    let new_pod = |name: &str| cluster.pod(&mesh, name).account("ztunnel").on(&world.node);
    let pod = new_pod("ztunnel-1").owned_by(&set).create().await;
    let token = cluster.token(&pod, &[AUDIENCE]).await;
    assert_refused(
        ask(&world.authenticator(), &token).await,
        "who is no agent",
        &token,
    );

    let account: NodeAccount = format!("{mesh}/ztunnel").parse().unwrap();
    let authenticator = world.authenticator_trusting(account);
    let agent = cluster.token(&world.agent().await, &[AUDIENCE]).await;
    for token in [&token, &agent] {
        assert_eq!(ask(&authenticator, token).await, Ok(world.node.name_any()));
    }
    let loose = new_pod("loose").create().await;
    let token = cluster.token(&loose, &[AUDIENCE]).await;
    assert_refused(
        ask(&authenticator, &token).await,
        "not one of the agents' DaemonSet",
        &token,
    );
}

#[tokio::test]
async fn an_expired_token_is_refused() {
    let world = World::new().await;
    let Some(server) = world.cluster.stand_in() else {
        eprintln!("skipped: the clock of a real API server cannot be moved");
        return;
    };
    let token = world.cluster.token(&world.agent().await, &[AUDIENCE]).await;
    server.advance(Duration::from_secs(3_602));
    assert_refused(ask(&world.authenticator(), &token).await, "expired", &token);
}

#[tokio::test]
async fn a_remembered_token_does_not_outlive_its_pod() {
    let world = World::new().await;
    let authenticator = world.authenticator();
    let agent = world.agent().await;
    let token = world.cluster.token(&agent, &[AUDIENCE]).await;
    let node = Ok(world.node.name_any());
    assert_eq!(ask(&authenticator, &token).await, node);
    world.cluster.delete_pod(&agent).await;
    assert_refused(ask(&authenticator, &token).await, "there is no pod", &token);
    let again = world.agent().await;
    assert_refused(ask(&authenticator, &token).await, "is another one", &token);
    let fresh = world.cluster.token(&again, &[AUDIENCE]).await;
    assert_eq!(ask(&authenticator, &fresh).await, node);
}

#[tokio::test]
async fn a_pod_that_ends_is_no_agent() {
    let world = World::new().await;
    let agent = world.agent().await;
    let token = world.cluster.token(&agent, &[AUDIENCE]).await;
    let pods = Api::<Pod>::namespaced(world.cluster.client(), &world.namespace);
    // With a grace period, and no kubelet that would end it.
    pods.delete(&agent.name_any(), &DeleteParams::default().grace_period(600))
        .await
        .unwrap();
    assert_refused(ask(&world.authenticator(), &token).await, "is ending", &token);
}

#[tokio::test]
async fn while_the_api_server_is_away_or_slow_the_answer_is_to_try_again() {
    let world = World::new().await;
    let token = world.cluster.token(&world.agent().await, &[AUDIENCE]).await;
    let faults = world.cluster.faults();
    let limits = AuthLimits {
        timeout: Duration::from_millis(500),
        ..AuthLimits::default()
    };
    let authenticator = world.authenticator_with(faults.client().unwrap(), limits);
    let unavailable = |result: Result<String, Refusal>, case: &str| {
        assert!(
            matches!(result, Err(Refusal::Unavailable(_))),
            "{case}: {result:?}"
        );
    };
    let reviews = || Requests::all().of("tokenreviews");
    let slow = faults.inject(Effect::Delay(Duration::from_secs(30)), reviews());
    unavailable(ask(&authenticator, &token).await, "slow");
    faults.lift(slow);
    let failing = faults.inject(Effect::Refuse(500), reviews());
    unavailable(ask(&authenticator, &token).await, "failing");
    faults.lift(failing);
    let no_pods = faults.inject(Effect::Refuse(403), Requests::all().of("pods"));
    unavailable(ask(&authenticator, &token).await, "no pods");
    faults.lift(no_pods);
    faults.go_away();
    unavailable(ask(&authenticator, &token).await, "away");
    faults.come_back().unwrap();
    // None of that was held against the caller.
    let before = Instant::now();
    assert_eq!(ask(&authenticator, &token).await, Ok(world.node.name_any()));
    assert!(before.elapsed() < Duration::from_millis(500));
}

#[tokio::test]
async fn many_calls_with_one_token_are_one_review() {
    let world = World::new().await;
    let token = world.cluster.token(&world.agent().await, &[AUDIENCE]).await;
    let faults = world.cluster.faults();
    let limits = AuthLimits {
        reviews: 1,
        ..AuthLimits::default()
    };
    let authenticator = Arc::new(world.authenticator_with(faults.client().unwrap(), limits));
    let calls: Vec<_> = (0..20)
        .map(|_| {
            let (authenticator, token) = (authenticator.clone(), token.clone());
            tokio::spawn(async move { ask(&authenticator, &token).await })
        })
        .collect();
    for call in calls {
        assert_eq!(call.await.unwrap(), Ok(world.node.name_any()));
    }
    assert_eq!(faults.count(&Requests::all().of("tokenreviews")), 1);
}

#[tokio::test]
async fn who_fails_again_and_again_is_slowed_down_and_nobody_else() {
    let world = World::new().await;
    let limits = AuthLimits {
        // Nothing is fresh, so that the good token is reviewed each time.
        remember: Duration::ZERO,
        ..AuthLimits::default()
    };
    let authenticator = world.authenticator_with(world.cluster.client(), limits);
    let token = world.cluster.token(&world.agent().await, &[AUDIENCE]).await;
    let node = Ok(world.node.name_any());
    assert_eq!(ask(&authenticator, &token).await, node);
    let timed = async |token: &str, peer: &str| {
        let before = Instant::now();
        let result = ask_from(&authenticator, token, peer).await;
        (result, before.elapsed())
    };
    for _ in 0..8 {
        assert!(ask(&authenticator, "a.b.c").await.is_err());
    }
    let (bad, took) = timed("a.b.c", "10.0.0.1:2000").await;
    assert_refused(bad, "does not believe", "");
    assert!(took >= Duration::from_millis(800), "{took:?}");
    let (good, took) = timed(&token, "10.0.0.1:2000").await;
    assert_eq!(
        good, node,
        "a token that was believed before, from the same address"
    );
    assert!(took < Duration::from_millis(800), "{took:?}");
    let (other, took) = timed("a.b.c", "10.0.0.2:2000").await;
    assert_refused(other, "does not believe", "");
    assert!(took < Duration::from_millis(800), "{took:?}");
}
