//! Servers that share no code with ours, as destinations of our agent: one that behaves, and many that do not.

use std::time::Duration;

use weir_e2e::{
    Mesh, identity,
    peers::{memory, server},
    run, serve,
};
use weir_lab::{Pod, PodSpec, Process, Spawn as _};
use weir_types::{Flow, FlowEvent, FlowPath, Reason, TrafficDirection};

/// Longer than the longest time limit of the agent's client, which is 20 s for the answer to a CONNECT.
const LIMIT: Duration = Duration::from_secs(60);

/// A server of `tests/peers/server.py` with these arguments, in a pod of its own.
struct Peer {
    pod: Pod,
    program: Process,
}

/// Such pods, which the agents take for workloads with the identity `shop/peer`.
fn peers<const N: usize>(mesh: &mut Mesh, behaviours: [&[&str]; N]) -> [Peer; N] {
    let mut number = 0;
    let peers = behaviours.map(|behaviour| {
        number += 1;
        let spec = PodSpec::new("node2", "shop", &format!("peer{number}"));
        let pod = mesh
            .lab
            .add_pod(spec.service_account("peer").outside_mesh())
            .unwrap();
        let program = server(&mesh.lab, &pod, behaviour);
        Peer { pod, program }
    });
    for agent in &mut mesh.agents {
        let add = |config: &mut weir_lab::AgentConfig| {
            config
                .workloads
                .extend(peers.iter().map(|peer| peer.pod.workload()));
        };
        assert_eq!(agent.reload(add).unwrap().config.rejected, None);
    }
    peers
}

fn application(peer: &Peer) -> String {
    format!("{}:7000", peer.pod.v4())
}

#[test]
fn a_server_of_other_make_gets_the_requests_that_it_expects() {
    let mut mesh = Mesh::new("pyserve");
    let [peer] = peers(&mut mesh, [&[]]);
    let to = application(&peer);
    let bind = format!("{}:5000", mesh.a.v4());
    run(
        &mesh.a,
        [
            "connect",
            &to,
            "--bind",
            &bind,
            "--send",
            "x",
            "--half-close",
            "--read-all",
        ],
    )
    .success()
    .unwrap();
    let request = weir_e2e::lines(&peer.program, "request", 1).remove(0);
    let headers = request["request"].as_object().unwrap();
    let text = |name: &str| headers.get(name).and_then(|value| value.as_str());
    assert_eq!(
        (text(":method"), text(":authority")),
        (Some("CONNECT"), Some(&*to))
    );
    assert!(
        text(":scheme").is_none() && text(":path").is_none(),
        "{headers:?}"
    );
    assert_eq!(text("forwarded"), Some(&*format!("for=\"{bind}\"")));
    assert!(
        text("baggage").is_some_and(|baggage| baggage.contains("k8s.namespace.name=shop")),
        "{headers:?}"
    );
    assert_eq!(
        request["peer"],
        serde_json::json!(["spiffe://cluster.local/ns/shop/sa/a"])
    );
    assert_eq!(request["address"], mesh.a.v4().to_string());
    run(&mesh.a, ["echo-client", &to, "--bytes", "3000000"])
        .success()
        .unwrap();
    let flow = mesh.flow_where(
        &mesh.a,
        TrafficDirection::Egress,
        FlowEvent::Close,
        7000,
        |flow| flow.bytes_sent == 3_000_000 && flow.bytes_received == 3_000_000,
    );
    assert_eq!(
        (flow.path, flow.destination.identity),
        (FlowPath::Tunnel, identity("peer"))
    );
}

#[test]
fn a_server_that_is_not_who_it_should_be_or_refuses_resets_the_application_and_says_why() {
    let mut mesh = Mesh::new("pybad");
    let table: [(&[&str], Reason); 15] = [
        (&["--identity", "shop/other"], Reason::WrongIdentity),
        (&["--fault", "other-root"], Reason::UntrustedRoot),
        (&["--fault", "other-trust-domain"], Reason::WrongTrustDomain),
        (&["--fault", "expired"], Reason::CertificateExpired),
        (&["--fault", "not-yet-valid"], Reason::CertificateExpired),
        (&["--fault", "two-uris"], Reason::BadCertificate),
        (&["--fault", "dns-only"], Reason::BadCertificate),
        (&["--fault", "no-name"], Reason::BadCertificate),
        (&["--fault", "wrong-usage"], Reason::BadCertificate),
        (&["--mode", "no-tls"], Reason::HandshakeFailed),
        (&["--mode", "401"], Reason::PolicyDenied),
        (&["--mode", "400"], Reason::BadAuthority),
        (&["--mode", "503"], Reason::ConnectionRefused),
        (&["--mode", "goaway"], Reason::TunnelReset),
        (&["--mode", "hang-up"], Reason::TunnelBroken),
    ];
    let peers = peers(&mut mesh, table.map(|(behaviour, _)| behaviour));
    for (peer, (behaviour, reason)) in peers.iter().zip(table) {
        let line = talk(&mesh, peer);
        assert_eq!(
            (&line["end"], &line["received"]),
            (&"ECONNRESET".into(), &0.into()),
            "{behaviour:?}"
        );
        let flow = ended(&mesh, peer, FlowEvent::Refused);
        assert_eq!(flow.reason, reason, "{behaviour:?}: {flow:?}");
        assert_eq!(flow.destination.identity, None, "{behaviour:?}: {flow:?}");
        // Not even the request goes to a server whose certificate is bad.
        let asked = String::from_utf8(peer.program.stdout()).unwrap();
        let trusted = behaviour[0] == "--mode" && behaviour[1] != "no-tls";
        assert_eq!(asked.contains("\"request\""), trusted, "{behaviour:?}: {asked}");
    }
}

#[test]
fn a_server_that_breaks_off_an_open_tunnel_resets_the_application() {
    let mut mesh = Mesh::new("pybreak");
    let table: [(&[&str], Reason); 2] = [
        (&["--mode", "reset"], Reason::TunnelReset),
        (&["--mode", "noise"], Reason::TunnelBroken),
    ];
    let peers = peers(&mut mesh, table.map(|(behaviour, _)| behaviour));
    for (peer, (behaviour, reason)) in peers.iter().zip(table) {
        let line = talk(&mesh, peer);
        assert_eq!(line["end"], "ECONNRESET", "{behaviour:?}: {line}");
        let flow = ended(&mesh, peer, FlowEvent::Close);
        assert_eq!(
            (flow.reason, flow.destination.identity),
            (reason, identity("peer"))
        );
    }
}

#[test]
fn a_server_that_does_not_answer_or_read_is_given_up_and_holds_up_nobody_else() {
    let mut mesh = Mesh::new("pymute");
    let (_server, _) = serve(&mesh.c, ["echo-server", "--port", "7000"]);
    let [handshake, answer, deaf] = peers(
        &mut mesh,
        [
            &["--mode", "no-handshake"],
            &["--mode", "no-answer"],
            &["--mode", "deaf"],
        ],
    );
    let pid = mesh.agent(&mesh.a).pid();
    let before = memory(pid, "VmRSS");
    let timeout = LIMIT.as_millis().to_string();
    let waiting = [
        (handshake, Reason::HandshakeTimeout),
        (answer, Reason::ConnectTimeout),
    ]
    .map(|(peer, reason)| {
        let to = application(&peer);
        let client = mesh
            .a
            .testapp(["connect", &to, "--read-all", "--timeout-ms", &timeout]);
        (client.unwrap(), peer, reason)
    });
    // As much as anybody would take is sent to the one that reads nothing.
    let to = application(&deaf);
    let mut pushing = mesh
        .a
        .testapp(["bulk-client", &to, "--bytes", &(1_u64 << 30).to_string()])
        .unwrap();
    let _ = mesh.flow_where(&mesh.a, TrafficDirection::Egress, FlowEvent::Open, 7000, |flow| {
        flow.destination.address.ip() == deaf.pod.v4()
    });
    for (client, peer, reason) in waiting {
        let line = client.wait(LIMIT).unwrap().json().unwrap();
        assert_eq!(line["end"], "ECONNRESET", "{reason}: {line}");
        assert_eq!(ended(&mesh, &peer, FlowEvent::Refused).reason, reason);
        run(&mesh.a, ["echo-client", &format!("{}:7000", mesh.c.v4())])
            .success()
            .unwrap();
    }
    assert!(pushing.ended().unwrap().is_none());
    let grown = memory(pid, "VmHWM").saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes more");
}

/// Says something to a peer's application, and listens to the end.
fn talk(mesh: &Mesh, peer: &Peer) -> serde_json::Value {
    let to = application(peer);
    run(&mesh.a, ["connect", &to, "--send", "secret", "--read-all"])
        .json()
        .unwrap()
}

/// The record of a connection's end.
fn ended(mesh: &Mesh, peer: &Peer, event: FlowEvent) -> Flow {
    mesh.flow_where(&mesh.a, TrafficDirection::Egress, event, 7000, |flow| {
        flow.destination.address.ip() == peer.pod.v4()
    })
}
