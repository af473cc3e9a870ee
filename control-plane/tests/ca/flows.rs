//! Certificates of the ports that serve flows: who gets which, and what others say of them.

mod client;

use std::{
    path::Path,
    process::{Command, Output},
    sync::Arc,
};

use jiff::Timestamp;
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{Api, ResourceExt as _};
use prometheus::Registry;
use rcgen::{CertificateParams, Issuer, KeyPair};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_stream::{StreamExt as _, wrappers::TcpListenerStream};
use tonic::{Code, Request, Status, transport::Channel, transport::Endpoint, transport::Server};
use weir_api_server::TestCluster;
use weir_control::{
    ads::{Authenticate as _, Severable},
    auth::{AgentAccount, AuthLimits, KubePods, TokenAuthenticator},
    ca::{AuthoritySecret, Keys, Scope, SecretName, Source},
    flows::{Authority, FlowLimits, FlowService, rotation},
};
use weir_proto::weir::flows::v1::{
    CreateRequest, CreateResponse, Usage, flow_certificates_client::FlowCertificatesClient,
};

use crate::{
    openssl::{is_there, openssl, text},
    world::DAY,
};

const SECRET: &str = "weir-flows-authority";

/// Replicas of the service, in a cluster with agents, a relay and others.
struct Stage {
    cluster: TestCluster,
    agents: String,
    authority: String,
    nodes: [String; 2],
}

/// One replica, which ends when it is dropped.
struct Replica {
    channel: Channel,
    authenticator: Arc<TokenAuthenticator>,
    registry: Registry,
    run: JoinHandle<()>,
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.run.abort();
    }
}

impl Stage {
    async fn new() -> Self {
        let cluster = TestCluster::new().await;
        let (agents, authority) = (
            cluster.namespace("agents").await,
            cluster.namespace("authority").await,
        );
        let nodes = [cluster.node("one.zone").await, cluster.node("two").await];
        for account in ["weir-agent", "ztunnel"] {
            cluster.service_account(&agents, account).await;
            let set = cluster.daemon_set(&agents, account).await;
            for node in &nodes {
                let name = format!("{account}-{}", node.name_any());
                let pod = cluster.pod(&agents, &name).account(account).on(node);
                pod.owned_by(&set).create().await;
            }
        }
        for account in ["weir-relay", "other"] {
            cluster.service_account(&agents, account).await;
            let pod = cluster.pod(&agents, account).account(account).on(&nodes[0]);
            pod.create().await;
        }
        Self {
            nodes: nodes.map(|node| node.name_any()),
            cluster,
            agents,
            authority,
        }
    }

    fn secret(&self) -> AuthoritySecret {
        let name = SecretName {
            namespace: self.authority.clone(),
            name: SECRET.to_owned(),
        };
        AuthoritySecret::new(self.cluster.client(), name, Scope::Flows)
    }

    async fn data(&self) -> Option<Secret> {
        let secrets = Api::<Secret>::namespaced(self.cluster.client(), &self.authority);
        secrets.get_opt(SECRET).await.unwrap()
    }

    async fn replica(&self) -> Replica {
        let client = self.cluster.client();
        let registry = Registry::new();
        let account = AgentAccount {
            namespace: self.agents.clone(),
            trusted: vec![format!("{}/ztunnel", self.agents).parse().unwrap()],
            ..AgentAccount::default()
        };
        let pods = Arc::new(KubePods::new(client.clone()));
        let limits = AuthLimits::default();
        let authenticator = TokenAuthenticator::new(client, account, pods, limits, &registry);
        let authenticator = Arc::new(authenticator.unwrap());
        let keys = Keys::new(self.secret(), Source::Own, &registry).unwrap();
        let authority = Authority::new(&keys);
        let limits = FlowLimits::default();
        let service = FlowService::new(authenticator.clone(), authority.clone(), limits, &registry);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = TcpListenerStream::new(listener)
            .map(|io| io.map(|io| Severable::new(io, Some("10.0.0.1:1".parse().unwrap()))));
        let server = Server::builder().add_service(service.unwrap().service());
        tokio::spawn(server.serve_with_incoming(connections));
        let channel = Endpoint::from_shared(format!("http://{address}")).unwrap();
        Replica {
            channel: channel.connect().await.unwrap(),
            authenticator,
            registry,
            run: tokio::spawn(async move { authority.run(&keys).await }),
        }
    }

    /// The token of a pod.
    async fn token(&self, pod: &str, audience: &str) -> String {
        let pods = Api::namespaced(self.cluster.client(), &self.agents);
        self.cluster
            .token(&pods.get(pod).await.unwrap(), &[audience])
            .await
    }

    async fn agent(&self, node: usize) -> String {
        self.token(&format!("weir-agent-{}", self.nodes[node]), "weir")
            .await
    }

    /// Runs `weir-control flows-client`.
    fn client(&self, dir: &Path, arguments: &[&str]) -> Output {
        let kubeconfig = dir.join("kubeconfig");
        std::fs::write(&kubeconfig, self.cluster.kubeconfig()).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_weir-control"));
        command
            .env("KUBECONFIG", kubeconfig)
            .arg("flows-client")
            .args(arguments);
        let authority = format!("{}/weir-authority", self.authority);
        command.args(["--authority-secret", &authority]).output().unwrap()
    }
}

fn csr(names: &[&str]) -> (KeyPair, String) {
    let key = KeyPair::generate().unwrap();
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let request = CertificateParams::new(names).unwrap().serialize_request(&key);
    (key, request.unwrap().pem().unwrap())
}

impl Replica {
    async fn send(&self, token: &str, message: CreateRequest) -> Result<CreateResponse, Status> {
        let mut request = Request::new(message);
        if !token.is_empty() {
            let bearer = format!("Bearer {token}").parse().unwrap();
            request.metadata_mut().insert("authorization", bearer);
        }
        let mut client = FlowCertificatesClient::new(self.channel.clone());
        Ok(client.create(request).await?.into_inner())
    }

    async fn ask(&self, token: &str, usage: Usage) -> Result<CreateResponse, Status> {
        let message = CreateRequest {
            csr: csr(&[]).1,
            usage: usage.into(),
            lifetime_seconds: 0,
        };
        self.send(token, message).await
    }

    fn refused(&self, reason: &str) -> f64 {
        let families = self.registry.gather();
        let family = families
            .iter()
            .find(|family| family.name() == "weir_ca_refused_total")
            .unwrap();
        let is = |pairs: &[prometheus::proto::LabelPair], name: &str, value: &str| {
            pairs
                .iter()
                .any(|pair| (pair.name(), pair.value()) == (name, value))
        };
        let found = family.get_metric().iter().find(|metric| {
            is(metric.get_label(), "reason", reason) && is(metric.get_label(), "authority", "flows")
        });
        found.unwrap().get_counter().get_value()
    }
}

fn write(dir: &Path, answer: &CreateResponse) {
    std::fs::write(dir.join("leaf.pem"), &answer.chain[0]).unwrap();
    std::fs::write(dir.join("roots.pem"), &answer.roots).unwrap();
}

/// What OpenSSL says of a certificate for a use and a name.
fn verify(dir: &Path, purpose: &str, name: &str) -> Output {
    let mut arguments = vec![
        "verify",
        "-x509_strict",
        "-CAfile",
        "roots.pem",
        "-purpose",
        purpose,
    ];
    arguments.extend(["-verify_hostname", name, "leaf.pem"]);
    openssl(dir, &arguments)
}

#[tokio::test]
async fn agents_and_relays_get_certificates_of_their_own_names_for_their_own_uses_as_openssl_sees_them() {
    let stage = Stage::new().await;
    let replica = stage.replica().await;
    assert!(stage.data().await.is_none(), "nobody has asked yet");
    let dir = tempfile::tempdir().unwrap();
    let agent = format!("{}.hubble.weir.dev", stage.nodes[0].replace('.', "-"));
    let relay = "relay.hubble.weir.dev";
    let (agent_token, relay_token) = (stage.agent(0).await, stage.token("weir-relay", "weir").await);
    for (token, asked, name, use_for, not_for) in [
        (
            &agent_token,
            Usage::Server,
            agent.as_str(),
            "sslserver",
            "sslclient",
        ),
        (&relay_token, Usage::Server, relay, "sslserver", "sslclient"),
        (&relay_token, Usage::Client, relay, "sslclient", "sslserver"),
    ] {
        let answer = replica.ask(token, asked).await.unwrap();
        assert_eq!(answer.chain.len(), 1);
        if !is_there() {
            continue;
        }
        write(dir.path(), &answer);
        let good = verify(dir.path(), use_for, name);
        assert!(good.status.success(), "{name} {use_for}: {}", text(&good));
        assert!(
            !verify(dir.path(), not_for, name).status.success(),
            "{name} {not_for}"
        );
        assert!(
            !verify(dir.path(), use_for, "two.hubble.weir.dev")
                .status
                .success()
        );
        let printed = text(&openssl(
            dir.path(),
            &["x509", "-in", "leaf.pem", "-noout", "-text"],
        ));
        assert!(
            printed.contains(&format!("DNS:{name}\n")) && printed.contains("CA:FALSE"),
            "{printed}"
        );
        let printed = text(&openssl(
            dir.path(),
            &["x509", "-in", "roots.pem", "-noout", "-text"],
        ));
        assert!(
            printed.contains("Name Constraints: critical") && printed.contains("DNS:hubble.weir.dev"),
            "{printed}"
        );
        let a_day_on = (Timestamp::now() + DAY).as_second().to_string();
        let later = ["verify", "-CAfile", "roots.pem", "-attime", &a_day_on, "leaf.pem"];
        assert!(
            !openssl(dir.path(), &later).status.success(),
            "it lives for a day"
        );
    }
}

#[tokio::test]
async fn nobody_else_gets_anything() {
    let stage = Stage::new().await;
    let replica = stage.replica().await;
    let agent = stage.agent(0).await;
    let relay = stage.token("weir-relay", "weir").await;
    let ztunnel = stage.token(&format!("ztunnel-{}", stage.nodes[0]), "weir").await;
    let other = stage.token("other", "weir").await;
    let elsewhere = stage.token("weir-relay", "elsewhere").await;
    use Usage::{Client, Server, Unspecified};
    for (who, token, usage, code, reason) in [
        ("nobody", "", Server, Code::Unauthenticated, "unauthenticated"),
        ("no token", "x", Server, Code::Unauthenticated, "unauthenticated"),
        (
            "another's pod",
            &other,
            Client,
            Code::Unauthenticated,
            "unauthenticated",
        ),
        (
            "for another audience",
            &elsewhere,
            Client,
            Code::Unauthenticated,
            "unauthenticated",
        ),
        (
            "another node proxy",
            &ztunnel,
            Server,
            Code::PermissionDenied,
            "not_agent",
        ),
        (
            "an agent that would ask others",
            &agent,
            Client,
            Code::PermissionDenied,
            "usage",
        ),
        (
            "an agent for nothing",
            &agent,
            Unspecified,
            Code::PermissionDenied,
            "usage",
        ),
        (
            "a relay for nothing",
            &relay,
            Unspecified,
            Code::PermissionDenied,
            "usage",
        ),
    ] {
        let before = replica.refused(reason);
        let status = replica.ask(token, usage).await.expect_err(who);
        assert_eq!(status.code(), code, "{who}: {status}");
        assert_eq!(replica.refused(reason), before + 1.0, "{who}");
    }
    assert!(stage.data().await.is_none(), "none of it has an authority made");
    // Names that are asked for, and proofs that are none.
    let forged = {
        let (_, good) = csr(&[]);
        let mut lines: Vec<String> = good.lines().map(str::to_owned).collect();
        let last = lines.len() - 2;
        let changed = if lines[last].starts_with('A') { "B" } else { "A" };
        lines[last].replace_range(0..1, changed);
        lines.join("\n")
    };
    for (what, request) in [
        ("another agent's name", csr(&["two.hubble.weir.dev"]).1),
        ("the relay's", csr(&["relay.hubble.weir.dev"]).1),
        ("a signature of another key", forged),
        ("nothing", String::new()),
    ] {
        let message = CreateRequest {
            csr: request,
            usage: Server.into(),
            lifetime_seconds: 0,
        };
        let status = replica.send(&agent, message).await.expect_err(what);
        assert_eq!(status.code(), Code::InvalidArgument, "{what}");
    }
    // A relay is no agent: it is told nothing of the mesh.
    let mut metadata = tonic::metadata::MetadataMap::new();
    metadata.insert("authorization", format!("Bearer {relay}").parse().unwrap());
    assert!(replica.authenticator.authenticate(&metadata, None).await.is_err());
    // A pod that is gone.
    let pods = Api::<k8s_openapi::api::core::v1::Pod>::namespaced(stage.cluster.client(), &stage.agents);
    let at_once = kube::api::DeleteParams::default().grace_period(0);
    pods.delete("weir-relay", &at_once).await.unwrap();
    let status = replica.ask(&relay, Client).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    // One that asks without end.
    let mut refusals = 0;
    for _ in 0..40 {
        let answer = replica.ask(&agent, Server).await;
        refusals += usize::from(answer.is_err_and(|status| status.code() == Code::ResourceExhausted));
    }
    assert!(refusals >= 10, "{refusals}");
}

#[tokio::test]
async fn replicas_that_are_asked_at_once_have_one_authority() {
    let stage = Stage::new().await;
    let replicas = [stage.replica().await, stage.replica().await];
    let tokens = [stage.agent(0).await, stage.agent(1).await];
    let [one, other] = [0, 1].map(|index| replicas[index].ask(&tokens[index], Usage::Server));
    let (one, other) = tokio::join!(one, other);
    assert_eq!(one.unwrap().roots, other.unwrap().roots);
}

#[tokio::test]
async fn the_root_is_replaced_by_itself_and_both_are_trusted_meanwhile() {
    let stage = Stage::new().await;
    let secret = stage.secret();
    let start = Timestamp::now();
    assert!(secret.create_if_absent(start).await.unwrap());
    let mut seen = Vec::new();
    let mut now = start;
    // A look a week, for twelve years: longer than a root lives.
    for _ in 0..12 * 52 {
        now += 7 * DAY;
        let before = secret.status(now).await.unwrap();
        let step = rotation::advance(&secret, before.authority_end, now)
            .await
            .unwrap();
        let Some(step) = step else { continue };
        let after = secret.status(now).await.unwrap();
        seen.push(format!("{step:?} {}", after.roots));
        assert!(
            after.authority_end > now + 365 * DAY,
            "a client's longest certificate fits"
        );
        // Another replica that looks at once finds it done.
        let again = rotation::advance(&secret, after.authority_end, now)
            .await
            .unwrap();
        assert_eq!(again, None);
    }
    assert_eq!(seen, ["Begin 2", "Activate 2", "Retire 1"]);
}

#[tokio::test]
async fn what_the_authority_signs_for_other_names_is_accepted_by_nobody() {
    if !is_there() {
        return;
    }
    let stage = Stage::new().await;
    let secret = stage.secret();
    secret.create_if_absent(Timestamp::now()).await.unwrap();
    let data = stage.data().await.unwrap().data.unwrap();
    let of = |key: &str| {
        let ByteString(bytes) = &data[key];
        String::from_utf8(bytes.clone()).unwrap()
    };
    let key = KeyPair::from_pem(&of("tls.key")).unwrap();
    let issuer = Issuer::from_ca_cert_pem(&of("tls.crt"), key).unwrap();
    let dir = tempfile::tempdir().unwrap();
    for (name, purpose, expected) in [
        ("n1.hubble.weir.dev", "sslserver", true),
        ("weir-control.weir-system.svc", "sslserver", false),
        ("10.0.0.1", "sslserver", false),
    ] {
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let mut params = params;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.use_authority_key_identifier_extension = true;
        let leaf = params.signed_by(&KeyPair::generate().unwrap(), &issuer).unwrap();
        std::fs::write(dir.path().join("leaf.pem"), leaf.pem()).unwrap();
        std::fs::write(dir.path().join("roots.pem"), of("ca.crt")).unwrap();
        let arguments = ["verify", "-CAfile", "roots.pem", "-purpose", purpose, "leaf.pem"];
        let said = openssl(dir.path(), &arguments);
        assert_eq!(said.status.success(), expected, "{name}: {}", text(&said));
        if !expected {
            assert!(
                text(&said).contains("subtree violation"),
                "{name}: {}",
                text(&said)
            );
        }
    }
}
