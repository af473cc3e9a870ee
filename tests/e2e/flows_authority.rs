//! The ports that serve flows, with certificates from the control plane.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    process::Command,
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use rcgen::{CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use serde_json::{Value, json};
use weir_e2e::{
    cluster::{Cluster, Member, SYSTEM},
    direct::at,
    peers::{json_lines, python},
    run, serve,
};
use weir_lab::{PATIENCE, Process, Spawn as _, config::CertificatesConfig, poll, program};

const CONTROL: &str = "127.0.0.1:15012";
const RELAY: &str = "127.0.0.1:4245";
/// The first agent's port, and its name.
const AGENT: (&str, &str) = ("10.1.0.250:4244", "node1.hubble.weir.dev");

/// The address of the pod of a node's agent.
fn pod_of(node: &str) -> Ipv4Addr {
    Ipv4Addr::new(10, if node == "node1" { 1 } else { 2 }, 0, 250)
}

/// Two nodes with agents that serve flows, and a connection between their pods now and then.
struct Stage {
    cluster: Cluster,
    client: Member,
    server: Member,
    _server: Process,
}

impl Stage {
    fn new(name: &str, lifetime: Option<&str>) -> Self {
        let mut cluster = Cluster::with(name, &[], |config| {
            config.pod_ip = Some(IpAddr::from(pod_of(&config.node)));
            config.hubble = Some(json!({ "clients": [
                { "name": "relay.hubble.weir.dev" },
                { "name": "ui.client.hubble.weir.dev" },
                { "name": "cart.client.hubble.weir.dev", "namespaces": ["cart"] },
            ]}));
            config.certificates = lifetime.map(|lifetime| CertificatesConfig {
                lifetime: lifetime.to_owned(),
            });
        });
        for node in cluster.lab.nodes() {
            let mut address = Command::new("ip");
            address.args([
                "address",
                "add",
                &format!("{}/32", pod_of(node.name())),
                "dev",
                "lo",
            ]);
            node.run(address).unwrap().success().unwrap();
        }
        let client = cluster.pod("node1", "shop", "a");
        let server = cluster.pod("node2", "shop", "c");
        cluster.wait_enrolled(&[&client, &server]);
        let (serving, _) = serve(&server, ["echo-server", "--port", "7000"]);
        let stage = Self {
            cluster,
            client,
            server,
            _server: serving,
        };
        for agent in 0..2 {
            poll("a certificate of the port for flows", PATIENCE, || {
                Ok(stage.end_of(agent))
            })
            .unwrap_or_else(|error| panic!("{error}: {}", stage.cluster.agents[agent].log()));
        }
        stage
    }

    /// Until when an agent's certificate lasts.
    fn end_of(&self, agent: usize) -> Option<Timestamp> {
        let status = self.cluster.agents[agent].status().unwrap();
        status.flows_certificate.unwrap().not_after
    }

    fn connect(&self) {
        let to = at(self.server.v4(), 7000);
        run(&self.client, ["connect", &to, "--send", "x", "--read", "1"])
            .json()
            .unwrap();
    }

    fn file(&self, name: &str) -> PathBuf {
        self.cluster.lab.folder().join(name)
    }

    /// The data of an authority's Secret.
    fn authority(&self, name: &'static str, key: &str) -> String {
        let secret = self.cluster.block(async |client| {
            let secrets: Api<Secret> = Api::namespaced(client, "weir-authority");
            secrets.get(name).await
        });
        String::from_utf8(secret.data.unwrap()[key].0.clone()).unwrap()
    }

    /// A client's file by `weir-control flows-client`.
    fn client(&self, name: &str) -> PathBuf {
        let mut command = Command::new(program("weir-control").unwrap());
        command
            .env("KUBECONFIG", self.file("kubeconfig"))
            .args(["flows-client", name]);
        let output = command.output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        self.write(name, &String::from_utf8(output.stdout).unwrap())
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let file = self.file(&format!("{name}.pem"));
        std::fs::write(&file, text).unwrap();
        file
    }

    /// A certificate as an authority's own key would sign it, whoever may have asked.
    fn forged(
        &self,
        file: &str,
        authority: (&str, &str),
        names: Vec<SanType>,
        usages: &[ExtendedKeyUsagePurpose],
    ) -> PathBuf {
        let (certificate, key) = authority;
        let issuer = Issuer::from_ca_cert_pem(certificate, KeyPair::from_pem(key).unwrap()).unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = names;
        params.extended_key_usages = usages.to_vec();
        let own = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&own, &issuer).unwrap();
        self.write(file, &format!("{}{}", own.serialize_pem(), leaf.pem()))
    }

    /// What a client of other make is answered, that shows this file or nothing.
    fn ask(&self, to: (&str, &str), shown: Option<&PathBuf>, call: Value) -> Value {
        let roots = self.write(
            "roots-of-flows",
            &self.authority("weir-flows-authority", "ca.crt"),
        );
        let mut command = python("hubble.py");
        command
            .args(["--to", to.0, "--name", to.1])
            .arg("--roots")
            .arg(roots);
        if let Some(file) = shown {
            command.arg("--certificate").arg(file).arg("--key").arg(file);
        }
        command.arg(call.to_string());
        let node = self.cluster.lab.node("node1").unwrap();
        let finished = node.run(command).unwrap().success().unwrap();
        let lines = json_lines(&finished);
        let answer = lines
            .into_iter()
            .rfind(|line| line.get("answer").is_some() || line.get("refused").is_some());
        answer.unwrap()
    }

    /// Starts `weir relay` as in its pod.
    fn relay(&self, more: &[&str]) -> Process {
        let token = self.file("relay.token");
        if !token.exists() {
            std::fs::write(
                &token,
                self.cluster.pod_token(SYSTEM, "weir-relay", "node1", "weir"),
            )
            .unwrap();
        }
        let mut command = Command::new(program("weir").unwrap());
        command.args(["relay", "--control", CONTROL, "--peers", AGENT.0]);
        command
            .arg("--control-roots")
            .arg(self.file("roots.pem"))
            .arg("--token")
            .arg(token);
        let node = self.cluster.lab.node("node1").unwrap();
        node.spawn({
            command.args(more);
            command
        })
        .unwrap()
    }
}

/// The nodes whose flows are in an answer.
fn nodes(answer: &Value) -> Vec<String> {
    let all = answer["answer"].as_array().into_iter().flatten();
    let mut nodes: Vec<String> = all
        .filter(|one| one.get("flow").is_some())
        .map(|one| one["node_name"].as_str().unwrap().to_owned())
        .collect();
    nodes.sort();
    nodes.dedup();
    nodes
}

#[test]
fn a_relay_shows_both_nodes_by_certificates_of_the_control_plane_and_strangers_are_refused() {
    let mut stage = Stage::new("flowsca", None);
    stage.connect();
    let all = json!(["flows", {}]);
    let [ui, cart, nobody] = ["ui", "cart", "nobody"].map(|name| stage.client(name));
    let seen = |who: &PathBuf| nodes(&stage.ask(AGENT, Some(who), all.clone()));
    poll("flows of the first node", PATIENCE, || {
        Ok((seen(&ui) == ["node1"]).then_some(()))
    })
    .unwrap();
    assert!(seen(&cart).is_empty(), "nothing of its namespace happened");

    // Whoever is not on the list, or has not shown that it is.
    let flows = ["ca.crt", "tls.key"].map(|key| stage.authority("weir-flows-authority", key));
    let mesh = ["ca.crt", "tls.key"].map(|key| stage.authority("weir-authority", key));
    let strange_key = KeyPair::generate().unwrap();
    let mut strange = CertificateParams::default();
    strange.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let strange = [
        strange.self_signed(&strange_key).unwrap().pem(),
        strange_key.serialize_pem(),
    ];
    let dns = |name: &str| SanType::DnsName(name.try_into().unwrap());
    let spiffe = SanType::URI("spiffe://cluster.local/ns/shop/sa/a".try_into().unwrap());
    let (for_server, for_client) = (
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    );
    let both = [for_server.clone(), for_client.clone()];
    let relay = "relay.hubble.weir.dev";
    let by =
        |authority: &[String; 2], file: &str, names: Vec<SanType>, usages: &[ExtendedKeyUsagePurpose]| {
            stage.forged(file, (&authority[0], &authority[1]), names, usages)
        };
    for (who, shown) in [
        ("nobody", None),
        ("a name that is not listed", Some(nobody)),
        (
            "a workload",
            Some(by(&mesh, "workload", vec![spiffe.clone()], &both)),
        ),
        (
            "a workload's authority with the relay's name",
            Some(by(&mesh, "posing", vec![spiffe, dns(relay)], &both)),
        ),
        (
            "another authority",
            Some(by(&strange, "strange", vec![dns(relay)], &both)),
        ),
        (
            "an agent",
            Some(by(
                &flows,
                "agent",
                vec![dns("node2.hubble.weir.dev")],
                std::slice::from_ref(&for_server),
            )),
        ),
        (
            "a server, though of a listed name",
            Some(by(
                &flows,
                "server",
                vec![dns(relay)],
                std::slice::from_ref(&for_server),
            )),
        ),
    ] {
        let answer = stage.ask(AGENT, shown.as_ref(), json!(["status"]));
        assert_eq!(answer["refused"]["code"], "UNAVAILABLE", "{who}: {answer}");
    }
    // That it is the use that is refused, and not how the test makes certificates.
    let good = by(&flows, "good", vec![dns(relay)], &[for_client]);
    assert_eq!(seen(&good), ["node1"]);

    // The relay, with certificates of its own for both sides.
    let listed = [
        "--listen",
        RELAY,
        "--client",
        "ui.client.hubble.weir.dev",
        "--client",
        "cart.client.hubble.weir.dev=cart",
    ];
    let relay_process = stage.relay(&listed);
    let at_relay = |who: Option<&PathBuf>| stage.ask((RELAY, relay), who, all.clone());
    poll("the relay to show both nodes", 2 * PATIENCE, || {
        Ok((nodes(&at_relay(Some(&ui))) == ["node1", "node2"]).then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error}: {}", relay_process.stderr()));
    assert!(nodes(&at_relay(Some(&cart))).is_empty());
    for stranger in [None, Some(&good)] {
        let answer = at_relay(stranger);
        assert_eq!(answer["refused"]["code"], "UNAVAILABLE", "{stranger:?}: {answer}");
    }

    // Without the control plane both go on with what they have.
    stage.cluster.stop_control();
    stage.connect();
    assert_eq!(
        nodes(&stage.ask((RELAY, relay), Some(&ui), all.clone())),
        ["node1", "node2"]
    );
    assert_eq!(nodes(&stage.ask(AGENT, Some(&ui), all)), ["node1"]);
}

#[test]
fn a_stream_that_follows_does_not_notice_that_the_certificate_is_renewed() {
    let stage = Stage::new("flowsrenew", Some("10s"));
    let ui = stage.client("ui");
    let mut command = Command::new(program("weir").unwrap());
    command.args([
        "flows",
        "--follow",
        "-o",
        "json",
        "--server",
        AGENT.0,
        "--tls-server-name",
        AGENT.1,
    ]);
    for option in ["--tls-ca", "--tls-cert", "--tls-key"] {
        command.arg(option).arg(&ui);
    }
    let mut follower = stage.cluster.lab.node("node1").unwrap().spawn(command).unwrap();
    let count = |follower: &Process| follower.stdout().iter().filter(|byte| **byte == b'\n').count();
    let until_more = |follower: &Process| {
        let before = count(follower);
        poll("another flow", PATIENCE, || {
            stage.connect();
            Ok((count(follower) > before).then_some(()))
        })
        .unwrap_or_else(|error| panic!("{error}: {}", follower.stderr()));
    };
    until_more(&follower);
    // The certificate that the stream began with has ended long ago.
    let first = stage.end_of(0).unwrap();
    poll("two renewals", 3 * PATIENCE, || {
        let ended = Timestamp::now() > first && stage.end_of(0).is_some_and(|end| end > Timestamp::now());
        Ok(ended.then_some(()))
    })
    .unwrap();
    until_more(&follower);
    assert!(follower.ended().unwrap().is_none(), "{}", follower.stderr());
    assert_eq!(follower.stderr(), "", "nothing is said of a break");
    let metrics = stage.cluster.agents[0].metrics().unwrap();
    assert!(
        metrics.contains("weir_flows_certificate_failures_total 0"),
        "{metrics}"
    );
}
