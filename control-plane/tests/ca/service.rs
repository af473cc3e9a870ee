//! `CreateCertificate` over the network: who gets which certificate.

use std::{
    collections::BTreeMap,
    sync::{Arc, RwLock},
    time::Duration,
};

use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt as _;
use prometheus::Registry;
use prost_types::{Struct, Value, value::Kind};
use rcgen::{CertificateParams, KeyPair, SanType};
use tokio::{net::TcpListener, time::Instant};
use tokio_stream::{StreamExt as _, wrappers::TcpListenerStream};
use tonic::{Code, Request, Status, transport::Channel, transport::Endpoint, transport::Server};
use weir_api_server::TestCluster;
use weir_control::{
    ads::Severable,
    auth::{AgentAccount, AuthLimits, KubePods, TokenAuthenticator},
    ca::{CaLimits, CertificateService, Entitlements, Source},
    cluster::{Event, NotEnrolled, ObjectName, Pod, Switch},
    compile::{Compiler, Settings, Unentitled},
};
use weir_proto::istio::v1::auth::{
    IstioCertificateRequest, istio_certificate_service_client::IstioCertificateServiceClient,
};
use weir_tunnel::ca::CertificateRequest;
use weir_types::Identity;

use crate::{
    verify::verify,
    world::{DAY, Replica, World, certificates, domain, identity},
};

const ACCOUNT: &str = "weir-agent";

/// What the compiler knows.
struct Known(RwLock<Compiler>);

impl Entitlements for Known {
    fn entitled(&self, node: &str, identity: &Identity) -> Result<(), Unentitled> {
        let compiler = self.0.read().unwrap();
        compiler.entitled(node, identity.namespace(), identity.service_account())
    }
}

impl Known {
    /// A pod, whose service account is there too.
    fn tell(&self, name: &str, pod: Option<Pod>) {
        if let Some(pod) = &pod {
            self.account(&pod.service_account, true);
        }
        let event = Event::Pod(ObjectName::new("shop", name), pod.map(Box::new));
        self.0.write().unwrap().apply([event]);
    }

    fn account(&self, name: &str, there: bool) {
        let event = Event::ServiceAccount(ObjectName::new("shop", name), there);
        self.0.write().unwrap().apply([event]);
    }
}

fn pod(node: &Node, account: &str) -> Pod {
    Pod {
        uid: format!("uid-{account}").into(),
        created: 0,
        node: node.name_any().into(),
        service_account: account.into(),
        addresses: Vec::new(),
        labels: BTreeMap::new(),
        switch: Some(Switch::Enabled),
        unfit: None,
        host_network: false,
        enrolled: true,
        probe_ports: Vec::new(),
        owner: None,
    }
}

/// A control plane with agents on two nodes.
struct Stage {
    world: World,
    replica: Replica,
    known: Arc<Known>,
    registry: Registry,
    channel: Channel,
    nodes: [Node; 2],
    tokens: [String; 2],
}

impl Stage {
    async fn new(limits: CaLimits) -> Self {
        let world = World::new().await;
        let cluster: &TestCluster = &world.cluster;
        let agents = cluster.namespace("agents").await;
        cluster.service_account(&agents, ACCOUNT).await;
        let daemon_set = cluster.daemon_set(&agents, ACCOUNT).await;
        let nodes = [cluster.node("ca").await, cluster.node("ca").await];
        let mut tokens = Vec::new();
        for node in &nodes {
            let agent = cluster.pod(&agents, &format!("agent-{}", node.name_any()));
            let agent = agent
                .account(ACCOUNT)
                .on(node)
                .owned_by(&daemon_set)
                .create()
                .await;
            tokens.push(cluster.token(&agent, &["weir"]).await);
        }
        let registry = Registry::new();
        let account = AgentAccount {
            namespace: agents,
            ..AgentAccount::default()
        };
        let pods = Arc::new(KubePods::new(cluster.client()));
        let authenticator =
            TokenAuthenticator::new(cluster.client(), account, pods, AuthLimits::default(), &registry);
        let known = Arc::new(Known(RwLock::new(Compiler::new(Settings::default()))));
        let replica = world.start(Source::Own);
        replica.in_force().await;
        let service = CertificateService::new(
            domain(),
            Arc::new(authenticator.unwrap()),
            known.clone(),
            replica.keys.in_force(),
            limits,
            &registry,
        );
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = TcpListenerStream::new(listener)
            .map(|io| io.map(|io| Severable::new(io, Some("10.0.0.1:1".parse().unwrap()))));
        let server = Server::builder().add_service(service.unwrap().service());
        tokio::spawn(server.serve_with_incoming(connections));
        let channel = Endpoint::from_shared(format!("http://{address}")).unwrap();
        Self {
            known,
            registry,
            channel: channel.connect().await.unwrap(),
            tokens: [tokens[0].clone(), tokens[1].clone()],
            nodes,
            replica,
            world,
        }
    }

    async fn send(&self, agent: usize, message: IstioCertificateRequest) -> Result<Vec<String>, Status> {
        let mut request = Request::new(message);
        let token = format!("Bearer {}", self.tokens[agent]);
        request
            .metadata_mut()
            .insert("authorization", token.parse().unwrap());
        let mut client = IstioCertificateServiceClient::new(self.channel.clone());
        Ok(client.create_certificate(request).await?.into_inner().cert_chain)
    }

    /// An honest request of an agent for an identity.
    async fn ask(&self, agent: usize, identity: &Identity) -> Result<Vec<String>, Status> {
        let csr = CertificateRequest::new(identity).unwrap();
        self.send(agent, message(csr.pem(), &identity.to_string())).await
    }

    fn refused(&self, reason: &str) -> f64 {
        let families = self.registry.gather();
        let refused = families
            .iter()
            .filter(|family| family.name() == "weir_ca_refused_total");
        let metrics = refused.flat_map(|family| family.get_metric());
        let labelled = metrics.filter(|metric| metric.get_label().iter().any(|pair| pair.value() == reason));
        labelled.map(|metric| metric.get_counter().get_value()).sum()
    }
}

fn limits() -> CaLimits {
    CaLimits {
        pod_wait: Duration::from_millis(200),
        ..CaLimits::default()
    }
}

fn metadata(value: Kind) -> Struct {
    let fields = [("ImpersonatedIdentity".to_owned(), Value { kind: Some(value) })];
    Struct {
        fields: fields.into(),
    }
}

fn message(csr: &str, identity: &str) -> IstioCertificateRequest {
    IstioCertificateRequest {
        csr: csr.to_owned(),
        validity_duration: 3_600,
        metadata: Some(metadata(Kind::StringValue(identity.to_owned()))),
    }
}

fn assert_denied(result: Result<Vec<String>, Status>, case: &str) {
    let status = result.expect_err(case);
    assert_eq!(status.code(), Code::PermissionDenied, "{case}");
    assert_eq!(
        status.message(),
        "the identity is not one of this node's",
        "{case}"
    );
}

#[tokio::test]
async fn an_agent_gets_a_certificate_for_a_pod_of_its_node_and_accepts_it() {
    let stage = Stage::new(limits()).await;
    stage.known.tell("web-1", Some(pod(&stage.nodes[0], "web")));
    for wish in [3_600, 0, -1, i64::MAX] {
        let csr = CertificateRequest::new(&identity("web")).unwrap();
        let mut message = message(csr.pem(), &identity("web").to_string());
        message.validity_duration = wish;
        let texts = stage.send(0, message).await.unwrap();
        assert_eq!(texts.len(), 2, "leaf and roots");
        let answer = csr.answer(&texts).expect("the agent's own check");
        verify(&answer.issued.chain, &answer.roots, &[], jiff::Timestamp::now()).unwrap();
        let life = answer
            .issued
            .not_after
            .duration_since(std::time::SystemTime::now())
            .unwrap();
        let expected = if wish == 3_600 {
            Duration::from_secs(3_600)
        } else {
            DAY
        };
        assert!(
            life <= expected && life + Duration::from_secs(30) > expected,
            "{wish}: {life:?}"
        );
    }
}

#[tokio::test]
async fn a_request_by_another_client_with_an_rsa_key_and_a_subject_is_answered() {
    let stage = Stage::new(limits()).await;
    stage.known.tell("web-1", Some(pod(&stage.nodes[0], "web")));
    let csr = include_str!("../../src/ca/csr/requests/rsa-2048.pem");
    let texts = stage
        .send(0, message(csr, &identity("web").to_string()))
        .await
        .unwrap();
    assert_eq!(certificates(&texts[0]).len(), 1);
}

#[tokio::test]
async fn no_agent_gets_a_certificate_for_what_is_not_its_nodes() {
    let stage = Stage::new(limits()).await;
    let [here, there] = &stage.nodes;
    stage.known.tell("web-1", Some(pod(here, "web")));
    stage.known.tell("api-1", Some(pod(there, "api")));
    let off = Pod {
        switch: None,
        ..pod(here, "plain")
    };
    let observed = Pod {
        switch: Some(Switch::Observe),
        ..pod(here, "observed")
    };
    let host = Pod {
        host_network: true,
        unfit: Some(NotEnrolled::HostNetwork),
        ..pod(here, "host")
    };
    for (name, pod) in [("plain-1", off), ("observed-1", observed), ("host-1", host)] {
        stage.known.tell(name, Some(pod));
    }
    stage.ask(0, &identity("web")).await.unwrap();
    stage.ask(1, &identity("api")).await.unwrap();
    for (agent, account) in [
        (0, "api"),
        (1, "web"),
        (0, "plain"),
        (0, "observed"),
        (0, "host"),
        (0, "unknown"),
    ] {
        assert_denied(stage.ask(agent, &identity(account)).await, account);
    }
    assert_eq!(stage.refused("not_entitled"), 6.0);
    let other_namespace = "spiffe://cluster.local/ns/bank/sa/web".parse().unwrap();
    assert_denied(stage.ask(0, &other_namespace).await, "another namespace");
    let other_domain = "spiffe://other.example/ns/shop/sa/web".parse().unwrap();
    assert_denied(stage.ask(0, &other_domain).await, "another trust domain");
    assert_eq!(stage.refused("trust_domain"), 1.0);
    stage.known.tell("web-1", None);
    assert_denied(stage.ask(0, &identity("web")).await, "a pod that is gone");
}

#[tokio::test]
async fn a_pod_whose_service_account_is_deleted_gets_no_certificate_until_there_is_one_again() {
    let stage = Stage::new(limits()).await;
    stage.known.tell("web-1", Some(pod(&stage.nodes[0], "web")));
    stage.ask(0, &identity("web")).await.unwrap();
    stage.known.account("web", false);
    let refused = stage.ask(0, &identity("web")).await.unwrap_err();
    assert_eq!(stage.refused("no_service_account"), 1.0);
    let of_nobody = stage.ask(0, &identity("nobody")).await.unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (of_nobody.code(), of_nobody.message()),
        "why is not told"
    );
    stage.known.account("web", true);
    stage.ask(0, &identity("web")).await.unwrap();
}

#[tokio::test]
async fn the_identity_has_to_be_named_and_to_be_one() {
    let stage = Stage::new(limits()).await;
    stage.known.tell("web-1", Some(pod(&stage.nodes[0], "web")));
    let web = identity("web");
    let csr = CertificateRequest::new(&web).unwrap();
    for (case, metadata) in [
        ("nothing", None),
        ("no field", Some(Struct::default())),
        ("empty", Some(metadata(Kind::StringValue(String::new())))),
        ("a number", Some(metadata(Kind::NumberValue(1.0)))),
        ("no identity", Some(metadata(Kind::StringValue("web".to_owned())))),
        (
            "a longer path",
            Some(metadata(Kind::StringValue(format!("{web}/x")))),
        ),
        (
            "the agent's own",
            Some(metadata(Kind::StringValue("spiffe://cluster.local".to_owned()))),
        ),
    ] {
        let message = IstioCertificateRequest {
            metadata,
            ..message(csr.pem(), "")
        };
        assert_denied(stage.send(0, message).await, case);
    }
}

#[tokio::test]
async fn requests_that_ask_for_more_or_prove_nothing_are_refused() {
    let stage = Stage::new(limits()).await;
    stage.known.tell("web-1", Some(pod(&stage.nodes[0], "web")));
    let web = identity("web").to_string();
    let csr = |names: &[SanType], change: &dyn Fn(&mut CertificateParams)| {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names.to_vec();
        change(&mut params);
        params
            .serialize_request(&KeyPair::generate().unwrap())
            .unwrap()
            .pem()
            .unwrap()
    };
    let uri = |text: &str| SanType::URI(text.try_into().unwrap());
    let honest = csr(&[uri(&web)], &|_| {});
    let line = honest.lines().nth(3).unwrap();
    let tampered = honest.replace(line, &line.chars().rev().collect::<String>());
    for (case, csr) in [
        (
            "DNS",
            csr(
                &[uri(&web), SanType::DnsName("a.example".try_into().unwrap())],
                &|_| {},
            ),
        ),
        (
            "address",
            csr(
                &[uri(&web), SanType::IpAddress("10.0.0.1".parse().unwrap())],
                &|_| {},
            ),
        ),
        (
            "second URI",
            csr(
                &[uri(&web), uri("spiffe://cluster.local/ns/shop/sa/api")],
                &|_| {},
            ),
        ),
        (
            "another URI",
            csr(&[uri("spiffe://cluster.local/ns/shop/sa/api")], &|_| {}),
        ),
        (
            "CA:TRUE",
            csr(&[uri(&web)], &|params| {
                params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            }),
        ),
        ("tampered", tampered),
        (
            "weak",
            include_str!("../../src/ca/csr/requests/rsa-1024.pem").to_owned(),
        ),
        ("large", "x".repeat(20_000)),
        ("nothing", String::new()),
    ] {
        let status = stage.send(0, message(&csr, &web)).await.expect_err(case);
        assert_eq!(status.code(), Code::InvalidArgument, "{case}: {status:?}");
        assert_eq!(
            status.message(),
            "the certificate request is not acceptable",
            "{case}"
        );
    }
    assert_eq!(stage.refused("csr"), 9.0);
    // Not even read.
    let huge = stage
        .send(0, message(&"x".repeat(100_000), &web))
        .await
        .unwrap_err();
    assert_eq!(huge.code(), Code::OutOfRange, "{huge:?}");
    stage.send(0, message(&honest, &web)).await.unwrap();
}

#[tokio::test]
async fn who_is_no_agent_gets_nothing() {
    let mut stage = Stage::new(limits()).await;
    stage.known.tell("web-1", Some(pod(&stage.nodes[0], "web")));
    stage.tokens[0] = "a.b.c".to_owned();
    let status = stage.ask(0, &identity("web")).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    assert_eq!(status.message(), "the credentials are not those of an agent");
}

#[tokio::test]
async fn a_pod_that_was_scheduled_a_moment_ago_is_waited_for() {
    let stage = Stage::new(CaLimits {
        pod_wait: Duration::from_secs(5),
        ..CaLimits::default()
    })
    .await;
    let (known, node) = (stage.known.clone(), stage.nodes[0].clone());
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(300)).await;
        known.tell("web-1", Some(pod(&node, "web")));
    });
    let before = Instant::now();
    stage.ask(0, &identity("web")).await.unwrap();
    assert!(before.elapsed() < Duration::from_secs(4));
}

#[tokio::test]
async fn a_node_that_asks_for_too_many_is_refused_and_others_are_not() {
    let stage = Stage::new(CaLimits {
        per_second: 1,
        burst: 3,
        ..limits()
    })
    .await;
    stage.known.tell("web-1", Some(pod(&stage.nodes[0], "web")));
    stage.known.tell("web-2", Some(pod(&stage.nodes[1], "web")));
    let mut codes = Vec::new();
    for _ in 0..5 {
        codes.push(
            stage
                .ask(0, &identity("web"))
                .await
                .map_err(|status| status.code())
                .err(),
        );
    }
    assert_eq!(codes[..3], [None; 3]);
    assert!(codes.contains(&Some(Code::ResourceExhausted)), "{codes:?}");
    stage.ask(1, &identity("web")).await.unwrap();
}

#[tokio::test]
async fn a_revoked_identity_gets_no_certificate() {
    let stage = Stage::new(limits()).await;
    stage.known.tell("web-1", Some(pod(&stage.nodes[0], "web")));
    let operations = stage.world.operations();
    let now = jiff::Timestamp::now();
    operations
        .revoke(now, |revoked| revoked.add_identity(identity("web"), now))
        .await
        .unwrap();
    stage
        .replica
        .until("revoked", |it| it.revoked().names(&identity("web")))
        .await;
    assert_denied(stage.ask(0, &identity("web")).await, "revoked");
    let remove = |revoked: &mut weir_control::ca::Revoked| {
        revoked.remove_identity(&identity("web"));
        Ok(())
    };
    operations.revoke(now, remove).await.unwrap();
    stage
        .replica
        .until("no longer", |it| !it.revoked().names(&identity("web")))
        .await;
    stage.ask(0, &identity("web")).await.unwrap();
}
