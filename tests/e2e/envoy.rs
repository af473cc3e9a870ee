//! A real Envoy, as HBONE server for our client and as HBONE client of our server.

use std::{net::TcpStream, process::Command};

use weir_e2e::{
    Mesh, identity,
    peers::{envoy, python_with_ca},
    run, serve,
};
use weir_lab::{Pod, PodSpec, Process, Spawn as _};
use weir_types::{FlowEvent, FlowPath, Reason, TrafficDirection};

const TEMPLATE: &str = include_str!("../peers/envoy.yaml");
/// Envoy's own server, which answers when its configuration is in force.
const ADMIN: &str = "127.0.0.1:9901";

/// Envoy in a pod of its own on the second node, which no agent captures and all take for a workload.
struct Envoy {
    pod: Pod,
    /// Prints a line of JSON for each request.
    program: Process,
}

impl Envoy {
    /// `server` is the pod that it is a client of, `client` the one that it is a server for.
    fn start(mesh: &mut Mesh, client: &str, server: &Pod) -> Self {
        let spec = PodSpec::new("node2", "shop", "envoy").outside_mesh();
        let pod = mesh.lab.add_pod(spec).unwrap();
        for agent in &mut mesh.agents {
            let status = agent
                .reload(|config| config.workloads.push(pod.workload()))
                .unwrap();
            assert_eq!(status.config.rejected, None);
        }
        let file = |name: &str| mesh.lab.folder().join(name).display().to_string();
        let (certificate, key) = (file("envoy.crt"), file("envoy.key"));
        let mut make: Command = python_with_ca(&mesh.lab, "certificates.py");
        make.args([
            "--identity",
            "shop/envoy",
            "--certificate",
            &certificate,
            "--key",
            &key,
        ]);
        pod.run(make).unwrap().success().unwrap();
        let name = |account: &str| identity(account).unwrap().to_string();
        let mut config = TEMPLATE.to_owned();
        for (key, value) in [
            ("@CERTIFICATE@", certificate),
            ("@KEY@", key),
            ("@ROOT@", file("ca/ca.crt")),
            ("@CLIENT@", name(client)),
            ("@SERVER@", name(&server.spec().service_account)),
            ("@AUTHORITY@", format!("{}:7000", server.v4())),
            ("@PEER@", server.v4().to_string()),
        ] {
            config = config.replace(key, &value);
        }
        let program = pod.spawn(envoy(&mesh.lab, "envoy", &config)).unwrap();
        weir_lab::poll("Envoy to be there", weir_lab::PATIENCE, || {
            Ok(pod.inside(|| Ok(TcpStream::connect(ADMIN)?)).ok())
        })
        .unwrap_or_else(|error| panic!("{error}: {}", program.stderr()));
        Self { pod, program }
    }
}

#[test]
fn envoy_is_a_server_for_our_client() {
    let mut mesh = Mesh::new("envoysrv");
    let c = mesh.c.clone();
    let envoy = Envoy::start(&mut mesh, "a", &c);
    let (_echo, _) = serve(&envoy.pod, ["echo-server", "--port", "7000", "--dual-stack"]);
    let (_reverse, _) = serve(&envoy.pod, ["echo-server", "--port", "7001", "--reverse"]);
    for host in [envoy.pod.v4().to_string(), format!("[{}]", envoy.pod.v6())] {
        let to = format!("{host}:7000");
        run(
            &mesh.a,
            ["echo-client", &to, "--bytes", "5000000", "--connections", "3"],
        )
        .success()
        .unwrap();
        let flow = mesh.flow_where(
            &mesh.a,
            TrafficDirection::Egress,
            FlowEvent::Close,
            7000,
            |flow| flow.destination.address.to_string() == to,
        );
        assert_eq!(
            (flow.path, flow.destination.identity),
            (FlowPath::Tunnel, identity("envoy"))
        );
        assert_eq!((flow.bytes_sent, flow.bytes_received), (5_000_000, 5_000_000));
    }
    // The whole answer after a half-close, and a refusal.
    let to = format!("{}:7001", envoy.pod.v4());
    let line = run(
        &mesh.a,
        ["connect", &to, "--send", "abc", "--half-close", "--read-all"],
    )
    .json()
    .unwrap();
    assert!(
        line["end"] == "eof" && line["text"].as_str().unwrap().contains("ba7816bf"),
        "{line}"
    );
    let line = run(
        &mesh.a,
        ["connect", &format!("{}:9", envoy.pod.v4()), "--read-all"],
    )
    .json()
    .unwrap();
    assert_eq!(line["end"], "ECONNRESET", "{line}");
    let flow = mesh.flow(&mesh.a, TrafficDirection::Egress, FlowEvent::Refused, 9);
    assert_eq!(flow.reason, Reason::ConnectionRefused);
    // Another pod is not the client that it lets in.
    let line = run(&mesh.b, ["connect", &to, "--read-all"]).json().unwrap();
    assert_eq!(line["end"], "ECONNRESET", "{line}");
    let flow = mesh.flow(&mesh.b, TrafficDirection::Egress, FlowEvent::Refused, 7001);
    assert_eq!(flow.reason, Reason::BadCertificate, "as its alert says: {flow:?}");
    // What Envoy itself saw of it.
    let seen = |line: &str| serde_json::from_str::<serde_json::Value>(line).ok();
    let seen = envoy.program.wait_line(weir_lab::PATIENCE, seen).unwrap();
    assert_eq!(seen["peer"], identity("a").unwrap().to_string(), "{seen}");
    assert!(
        seen["status"] == 200
            && seen["forwarded"]
                .as_str()
                .unwrap()
                .contains(&mesh.a.v4().to_string()),
        "{seen}"
    );
}

#[test]
fn envoy_is_a_client_of_our_server() {
    let mut mesh = Mesh::new("envoycli");
    let c = mesh.c.clone();
    let envoy = Envoy::start(&mut mesh, "a", &c);
    let (server, _) = serve(&mesh.c, ["echo-server", "--port", "7000", "--print-peer"]);
    run(
        &envoy.pod,
        [
            "echo-client",
            "127.0.0.1:7100",
            "--bytes",
            "5000000",
            "--connections",
            "3",
        ],
    )
    .success()
    .unwrap();
    let flow = mesh.flow(&mesh.c, TrafficDirection::Ingress, FlowEvent::Close, 7000);
    assert_eq!(
        (flow.path, flow.source.identity),
        (FlowPath::Tunnel, identity("envoy"))
    );
    assert_eq!((flow.bytes_sent, flow.bytes_received), (5_000_000, 5_000_000));
    let accepted = weir_e2e::lines(&server, "accept", 3);
    for line in accepted {
        let peer: std::net::SocketAddr = line["accept"].as_str().unwrap().parse().unwrap();
        assert_eq!(peer.ip(), envoy.pod.v4(), "{line}");
    }
}
