//! A client that shares no code with ours, against our agent: what it may do, and how it is refused.

use std::net::SocketAddr;

use serde_json::Value;
use weir_e2e::{
    Mesh, identity, lines,
    peers::{client, memory, python_with_ca},
    run, serve,
};
use weir_lab::{Pod, PodSpec, Spawn as _};
use weir_types::{Flow, FlowEvent, FlowPath, Reason, TrafficDirection};

/// A pod that no agent knows; what it presents is its own business.
fn stranger(mesh: &Mesh) -> Pod {
    mesh.lab
        .add_pod(PodSpec::new("node1", "shop", "peer").outside_mesh())
        .unwrap()
}

/// Address of a pod's application, and of its HBONE port.
fn addresses(pod: &Pod, port: u16) -> (String, String) {
    (format!("{}:{port}", pod.v4()), format!("{}:15008", pod.v4()))
}

fn ingress(mesh: &Mesh, what: &str, event: FlowEvent, wanted: impl Fn(&Flow) -> bool) -> Flow {
    let wanted =
        |flow: &Flow| flow.direction == TrafficDirection::Ingress && flow.event == event && wanted(flow);
    mesh.agent(&mesh.c).wait_flow(what, wanted).unwrap()
}

fn port(line: &Value) -> u16 {
    u16::try_from(line["port"].as_u64().unwrap()).unwrap()
}

/// Value of a counter of refused connections.
fn counter(mesh: &Mesh, reason: Reason) -> u64 {
    let start = format!("weir_connections_refused_total{{direction=\"ingress\",reason=\"{reason}\"}} ");
    let metrics = mesh.agent(&mesh.c).metrics().unwrap();
    metrics
        .lines()
        .find_map(|line| line.strip_prefix(&start)?.parse().ok())
        .unwrap_or(0)
}

#[test]
fn a_client_of_other_make_is_served_and_its_hint_counts_only_for_its_own_address() {
    let mesh = Mesh::new("pyecho");
    let peer = stranger(&mesh);
    let (server, _) = serve(&mesh.c, ["echo-server", "--port", "7000", "--print-peer"]);
    let (application, hbone) = addresses(&mesh.c, 7000);
    let (own, foreign) = (format!("{}:1234", peer.v4()), format!("{}:1234", mesh.a.v4()));
    let mut arguments = vec!["echo", "--to", &hbone, "--authority", &application];
    arguments.extend(["--forwarded", "", &own, &foreign, "nonsense"]);
    let answers = client(&mesh.lab, &peer, &arguments);
    let seen = lines(&server, "accept", answers.len());
    assert_eq!(answers.len(), 4);
    for (answer, seen) in answers.iter().zip(seen) {
        assert_eq!(
            (&answer["status"], &answer["intact"]),
            (&200.into(), &true.into()),
            "{answer}"
        );
        let expected = if answer["forwarded"] == own.as_str() {
            own.parse().unwrap()
        } else {
            SocketAddr::new(peer.v4().into(), port(answer))
        };
        assert_eq!(seen["accept"], expected.to_string(), "{answer}");
        let flow = ingress(&mesh, "its record", FlowEvent::Close, |flow| {
            flow.source.address == expected
        });
        assert_eq!(
            (
                flow.source.identity,
                flow.path,
                flow.bytes_sent,
                flow.bytes_received
            ),
            (identity("peer"), FlowPath::Tunnel, 1 << 18, 1 << 18)
        );
    }
}

#[test]
fn each_bad_certificate_is_refused_in_the_handshake_and_recorded_with_its_reason() {
    let mesh = Mesh::new("pycert");
    let peer = stranger(&mesh);
    let (server, _) = serve(&mesh.c, ["echo-server", "--port", "7000", "--print-peer"]);
    let (application, hbone) = addresses(&mesh.c, 7000);
    let reasons = [
        ("none", Reason::NoCertificate),
        ("other-root", Reason::UntrustedRoot),
        ("other-trust-domain", Reason::WrongTrustDomain),
        ("expired", Reason::CertificateExpired),
        ("not-yet-valid", Reason::CertificateExpired),
        ("two-uris", Reason::BadCertificate),
        ("no-name", Reason::BadCertificate),
        ("dns-only", Reason::BadCertificate),
        ("not-spiffe", Reason::BadCertificate),
        ("wrong-usage", Reason::BadCertificate),
        ("tls-1.2", Reason::HandshakeFailed),
        ("no-alpn", Reason::HandshakeFailed),
        ("http/1.1", Reason::HandshakeFailed),
    ];
    let answers = client(
        &mesh.lab,
        &peer,
        &["handshakes", "--to", &hbone, "--authority", &application],
    );
    assert_eq!(answers.len(), reasons.len() + 1);
    let (good, bad) = answers.split_last().unwrap();
    assert_eq!((&good["fault"], &good["status"]), (&"good".into(), &200.into()));
    for (answer, (fault, reason)) in bad.iter().zip(reasons) {
        assert_eq!(answer["fault"], fault);
        assert!(answer["refused"].is_string(), "{answer}");
        let from = SocketAddr::new(peer.v4().into(), port(answer));
        let flow = ingress(&mesh, fault, FlowEvent::Refused, |flow| {
            flow.source.address == from
        });
        assert_eq!(flow.reason, reason, "{fault}: {flow:?}");
        assert_eq!(flow.source.identity, None, "{fault}: {flow:?}");
        assert_eq!(flow.destination.address.to_string(), hbone, "{fault}: {flow:?}");
    }
    for (_, reason) in reasons {
        let times = reasons.iter().filter(|(_, other)| *other == reason).count();
        assert_eq!(counter(&mesh, reason), times as u64, "{reason}");
    }
    // Nothing of them reached the application: it saw the good one alone.
    let flow = ingress(&mesh, "the good one", FlowEvent::Close, |_| true);
    assert_eq!(flow.source.address, SocketAddr::new(peer.v4().into(), port(good)));
    assert_eq!(lines(&server, "accept", 1).len(), 1);
}

#[test]
fn a_request_that_is_no_connect_to_the_pods_own_address_gets_the_status_that_says_so() {
    let mesh = Mesh::new("pyreq");
    let peer = stranger(&mesh);
    let (server, _) = serve(&mesh.c, ["echo-server", "--port", "7000", "--print-peer"]);
    let (_d, _) = serve(&mesh.d, ["echo-server", "--port", "7000"]);
    let (application, hbone) = addresses(&mesh.c, 7000);
    let other = mesh.d.v4().to_string();
    let answers = client(
        &mesh.lab,
        &peer,
        &[
            "requests",
            "--to",
            &hbone,
            "--authority",
            &application,
            "--other",
            &other,
        ],
    );
    let table = [
        ("get", 400, Reason::BadRequest),
        ("no authority", 400, Reason::BadRequest),
        ("no port", 400, Reason::BadAuthority),
        ("port 0", 400, Reason::BadAuthority),
        ("no number", 400, Reason::BadAuthority),
        ("user", 400, Reason::BadAuthority),
        ("mapped", 400, Reason::BadAuthority),
        ("other address", 400, Reason::BadAuthority),
        ("loopback", 400, Reason::BadAuthority),
        ("name", 400, Reason::BadAuthority),
        ("closed port", 503, Reason::ConnectionRefused),
        ("loop 15001", 503, Reason::LoopPort),
        ("loop 15006", 503, Reason::LoopPort),
        ("loop 15008", 503, Reason::LoopPort),
    ];
    // Its support is not announced, so that to HTTP/2 it is malformed (RFC 8441 section 4), and never a request.
    let (extended, answers) = answers.split_last().unwrap();
    assert_eq!(
        (&extended["request"], &extended["answer"]),
        (&"extended".into(), &"reset 1".into())
    );
    assert_eq!(answers.len(), table.len());
    for (answer, (request, status, reason)) in answers.iter().zip(table) {
        assert_eq!(
            (&answer["request"], &answer["answer"]),
            (&request.into(), &status.into())
        );
        // Each connection goes on after the request that it was refused.
        assert_eq!(answer["neighbour"], 200, "{answer}");
        let from = SocketAddr::new(peer.v4().into(), port(answer));
        let flow = ingress(&mesh, request, FlowEvent::Refused, |flow| {
            flow.source.address == from
        });
        assert_eq!(
            (flow.reason, flow.source.identity),
            (reason, identity("peer")),
            "{request}"
        );
    }
    // The application saw the good request of each connection, and no other.
    let closed = |mesh: &Mesh| {
        let flows = mesh.agent(&mesh.c).flows().unwrap();
        flows.iter().filter(|flow| flow.event == FlowEvent::Close).count()
    };
    weir_lab::poll("the good requests' end", weir_lab::PATIENCE, || {
        Ok((closed(&mesh) == answers.len() + 1).then_some(()))
    })
    .unwrap();
    assert_eq!(lines(&server, "accept", answers.len()).len(), answers.len() + 1);
}

#[test]
fn garbage_on_the_hbone_port_is_refused_and_recorded() {
    let mesh = Mesh::new("pynoise");
    let peer = stranger(&mesh);
    let (_, hbone) = addresses(&mesh.c, 7000);
    for answer in client(&mesh.lab, &peer, &["garbage", "--to", &hbone]) {
        let from = SocketAddr::new(peer.v4().into(), port(&answer));
        let flow = ingress(&mesh, "its record", FlowEvent::Refused, |flow| {
            flow.source.address == from
        });
        assert_eq!(flow.reason, Reason::HandshakeFailed, "{answer}: {flow:?}");
    }
    assert_eq!(counter(&mesh, Reason::HandshakeFailed), 3);
}

#[test]
fn a_peer_that_does_not_read_one_stream_goes_on_with_another_on_the_same_connection() {
    let mesh = Mesh::new("pystall");
    let peer = stranger(&mesh);
    let (_server, _) = serve(&mesh.c, ["echo-server", "--port", "7000"]);
    let (application, hbone) = addresses(&mesh.c, 7000);
    let pid = mesh.agent(&mesh.c).pid();
    let before = memory(pid, "VmRSS");
    let mut command = python_with_ca(&mesh.lab, "client.py");
    command.args(["stall", "--hold", "--to", &hbone, "--authority", &application]);
    let stalling = peer.spawn(command).unwrap();
    let stalled = stalling.wait_json("stalled").unwrap().as_u64().unwrap();
    let grown = memory(pid, "VmHWM").saturating_sub(before);
    assert!(
        stalled > 0 && grown < 64 << 20,
        "{stalled} bytes, {grown} more in memory"
    );
    run(&mesh.a, ["echo-client", &application]).success().unwrap();
}
