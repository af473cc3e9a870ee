//! The ways that a connection can take.

use std::net::{IpAddr, SocketAddr};

use serde_json::Value;
use weir_e2e::{Mesh, identity, run, serve};
use weir_lab::{
    PodSpec, Spawn as _,
    config::{EndpointConfig, PortConfig, ServiceConfig},
};
use weir_types::{FlowEvent, FlowPath, FlowVerdict, Reason, TrafficDirection};

#[test]
fn pods_on_two_nodes_talk_through_a_tunnel_and_both_agents_record_both_identities() {
    let mesh = Mesh::new("cross");
    let (_server, _) = serve(&mesh.c, ["http-server", "--port", "8080", "--dual-stack"]);
    for host in [mesh.c.v4().to_string(), format!("[{}]", mesh.c.v6())] {
        run(&mesh.a, ["http-client", &format!("http://{host}:8080/")])
            .success()
            .unwrap();
    }
    for (pod, direction) in [
        (&mesh.a, TrafficDirection::Egress),
        (&mesh.c, TrafficDirection::Ingress),
    ] {
        for v4 in [true, false] {
            let flow = mesh.flow_where(pod, direction, FlowEvent::Close, 8080, |flow| {
                flow.destination.address.is_ipv4() == v4
            });
            assert_eq!(
                (flow.path, flow.verdict),
                (FlowPath::Tunnel, FlowVerdict::Forwarded),
                "{flow:?}"
            );
            assert_eq!(flow.source.identity, identity("a"), "{flow:?}");
            assert_eq!(flow.destination.identity, identity("c"), "{flow:?}");
            assert!(
                flow.bytes_sent > 0 && flow.bytes_received > 0 && flow.rtt_us.is_some(),
                "{flow:?}"
            );
            assert!(
                flow.tls
                    .as_deref()
                    .is_some_and(|tls| tls.contains("TLS1.3") && tls.contains("MLKEM")),
                "{flow:?}"
            );
        }
    }
    let flow = mesh.flow(&mesh.a, TrafficDirection::Egress, FlowEvent::Open, 8080);
    let process = flow.process.unwrap();
    assert_eq!(process.name, "weir-testapp");
    assert!(process.pid > 0);
}

#[test]
fn pods_on_one_node_talk_as_verified_identities() {
    let mesh = Mesh::new("same");
    let (_server, _) = serve(&mesh.b, ["echo-server", "--port", "7000", "--dual-stack"]);
    for host in [IpAddr::from(mesh.b.v4()), IpAddr::from(mesh.b.v6())] {
        run(&mesh.a, ["echo-client", &SocketAddr::new(host, 7000).to_string()])
            .success()
            .unwrap();
    }
    for direction in [TrafficDirection::Egress, TrafficDirection::Ingress] {
        let pod = if direction == TrafficDirection::Egress {
            &mesh.a
        } else {
            &mesh.b
        };
        let flow = mesh.flow(pod, direction, FlowEvent::Close, 7000);
        assert_eq!(flow.source.identity, identity("a"));
        assert_eq!(flow.destination.identity, identity("b"));
        assert_eq!((flow.bytes_sent, flow.bytes_received), (64, 64), "{flow:?}");
    }
}

/// Addresses of a service of the lab, and how it stands in the configuration.
fn service(name: &str, port: u16, target: u16, endpoints: Vec<EndpointConfig>) -> ServiceConfig {
    ServiceConfig {
        name: name.to_owned(),
        namespace: "shop".to_owned(),
        addresses: vec!["10.96.0.10".parse().unwrap(), "fd00:96::10".parse().unwrap()],
        ports: vec![PortConfig {
            port,
            target_port: target,
        }],
        endpoints,
        subject_alt_names: Vec::new(),
        traffic_distribution: None,
    }
}

fn workload(uid: &str) -> EndpointConfig {
    EndpointConfig {
        workload: uid.to_owned(),
    }
}

#[test]
fn a_service_address_leads_to_its_endpoints_and_one_that_refuses_is_skipped() {
    let mesh = Mesh::with("vip", |config| {
        config.services.push(service(
            "echo",
            80,
            7000,
            vec![workload("shop-b"), workload("shop-c"), workload("shop-d")],
        ));
    });
    // Nothing listens on d: each connection that picks it first goes on to another endpoint.
    let (_b, _) = serve(&mesh.b, ["echo-server", "--port", "7000", "--dual-stack"]);
    let (_c, _) = serve(&mesh.c, ["echo-server", "--port", "7000", "--dual-stack"]);
    for host in ["10.96.0.10:80", "[fd00:96::10]:80"] {
        run(&mesh.a, ["echo-client", host, "--connections", "20"])
            .success()
            .unwrap();
    }
    let flow = mesh.flow(&mesh.a, TrafficDirection::Egress, FlowEvent::Close, 7000);
    assert_eq!(flow.service.as_deref(), Some("shop/echo"));
    assert!(
        flow.original_destination
            .is_some_and(|address| address.port() == 80),
        "{flow:?}"
    );
    for server in ["b", "c"] {
        let _ = mesh.flow_where(
            &mesh.a,
            TrafficDirection::Egress,
            FlowEvent::Close,
            7000,
            |flow| {
                flow.destination.pod.as_deref() == Some(server)
                    && flow.destination.identity == identity(server)
            },
        );
    }
    let refused = run(&mesh.a, ["connect", "10.96.0.10:81", "--read-all"])
        .json()
        .unwrap();
    assert_eq!(refused["end"], "ECONNRESET", "{refused}");
    let flow = mesh.flow(&mesh.a, TrafficDirection::Egress, FlowEvent::Refused, 81);
    assert_eq!(flow.reason, Reason::UnknownPort);
}

#[test]
fn a_service_that_leads_back_to_the_pod_itself_stays_in_the_pod() {
    let mesh = Mesh::with("self", |config| {
        config
            .services
            .push(service("self", 80, 7000, vec![workload("shop-a")]));
    });
    let (_a, _) = serve(&mesh.a, ["echo-server", "--port", "7000"]);
    run(&mesh.a, ["echo-client", "10.96.0.10:80"]).success().unwrap();
    // By its own address and by loopback: untouched.
    run(&mesh.a, ["echo-client", &format!("{}:7000", mesh.a.v4())])
        .success()
        .unwrap();
    run(&mesh.a, ["echo-client", "127.0.0.1:7000"]).success().unwrap();
}

#[test]
fn an_application_sees_the_original_client_and_the_client_the_address_that_it_asked_for() {
    let mesh = Mesh::with("source", |config| {
        config
            .services
            .push(service("peer", 80, 7000, vec![workload("shop-c")]));
    });
    let (v4, _) = serve(&mesh.c, ["echo-server", "--port", "7000", "--print-peer"]);
    let (dual, _) = serve(
        &mesh.c,
        ["echo-server", "--port", "7001", "--dual-stack", "--print-peer"],
    );
    // server, address asked for, address of the client that the server must see
    let (c4, c6) = (mesh.c.v4(), mesh.c.v6());
    let (a4, a6) = (mesh.a.v4().to_string(), mesh.a.v6().to_string());
    let table = [
        (&v4, format!("{c4}:7000"), "5001", a4.clone(), false),
        (&v4, "10.96.0.10:80".to_owned(), "5002", a4.clone(), false),
        (&dual, format!("{c4}:7001"), "5003", a4.clone(), false),
        (&dual, format!("{c4}:7001"), "5004", a4, true),
        (&dual, format!("[{c6}]:7001"), "5005", a6, false),
    ];
    let mut seen = [0, 0];
    for (server, to, port, client, mapped) in table {
        let bind = if client.contains(':') {
            format!("[{client}]:{port}")
        } else {
            format!("{client}:{port}")
        };
        let mut arguments = vec!["connect", &to, "--send", "x", "--read", "1", "--bind"];
        let bind_mapped = format!("[::ffff:{client}]:{port}");
        arguments.push(if mapped { &bind_mapped } else { &bind });
        if mapped {
            arguments.push("--mapped");
        }
        let line = mesh.a.run_testapp(arguments).unwrap().json().unwrap();
        assert_eq!(line["connect"], "ok", "{line}");
        assert_eq!(address(&line["getpeername"]), to.parse().unwrap(), "{line}");
        let index = usize::from(std::ptr::eq(server, &dual));
        seen[index] += 1;
        let peers = weir_e2e::lines(server, "accept", seen[index]);
        let last = peers.last().unwrap();
        for call in ["accept", "getpeername"] {
            assert_eq!(address(&last[call]), bind.parse().unwrap(), "{call}: {last}");
        }
    }
}

/// An address as text, v4-mapped ones as IPv4.
fn address(value: &Value) -> SocketAddr {
    let address: SocketAddr = value.as_str().unwrap().parse().unwrap();
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[test]
fn a_server_may_speak_first() {
    let mesh = Mesh::new("greet");
    let (_server, _) = serve(
        &mesh.c,
        [
            "echo-server",
            "--port",
            "2525",
            "--greeting",
            "220 mail.example ESMTP",
        ],
    );
    let line = run(
        &mesh.a,
        ["connect", &format!("{}:2525", mesh.c.v4()), "--read", "24"],
    )
    .json()
    .unwrap();
    assert_eq!(line["text"], "220 mail.example ESMTP\r\n", "{line}");
}

#[test]
fn a_client_that_closed_its_write_side_still_gets_the_whole_answer() {
    let mesh = Mesh::new("half");
    let (_server, _) = serve(&mesh.c, ["echo-server", "--port", "7000", "--reverse"]);
    let to = format!("{}:7000", mesh.c.v4());
    let line = run(
        &mesh.a,
        ["connect", &to, "--send", "abc", "--half-close", "--read-all"],
    )
    .json()
    .unwrap();
    assert_eq!(line["end"], "eof", "{line}");
    let answer: Value = serde_json::from_str(line["text"].as_str().unwrap()).unwrap();
    assert_eq!(answer["bytes"], 3);
    assert_eq!(
        answer["sha256"],
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    );
}

#[test]
fn a_reset_on_one_side_is_a_reset_on_the_other() {
    let mesh = Mesh::new("reset");
    let (_server, _) = serve(&mesh.c, ["echo-server", "--port", "7000", "--reset-after", "4"]);
    let to = format!("{}:7000", mesh.c.v4());
    let line = run(&mesh.a, ["connect", &to, "--send", "abcd", "--read-all"])
        .json()
        .unwrap();
    assert_eq!(line["end"], "ECONNRESET", "{line}");
    for (pod, direction) in [
        (&mesh.a, TrafficDirection::Egress),
        (&mesh.c, TrafficDirection::Ingress),
    ] {
        let flow = mesh.flow(pod, direction, FlowEvent::Close, 7000);
        let expected = if direction == TrafficDirection::Egress {
            Reason::TunnelReset
        } else {
            Reason::ApplicationReset
        };
        assert_eq!(flow.reason, expected, "{flow:?}");
    }
    // The client's reset reaches the server: its side of the connection ends as reset too.
    let (_server, _) = serve(&mesh.c, ["echo-server", "--port", "7001"]);
    let to = format!("{}:7001", mesh.c.v4());
    run(&mesh.a, ["connect", &to, "--send", "x", "--read", "1", "--reset"])
        .success()
        .unwrap();
    let flow = mesh.flow(&mesh.c, TrafficDirection::Ingress, FlowEvent::Close, 7001);
    assert_eq!(flow.reason, Reason::TunnelReset, "{flow:?}");
}

#[test]
fn a_port_that_nobody_listens_on_refuses_and_says_so_on_both_nodes() {
    let mesh = Mesh::new("refuse");
    let line = run(&mesh.a, ["connect", &format!("{}:9", mesh.c.v4()), "--read-all"])
        .json()
        .unwrap();
    assert_eq!(line["end"], "ECONNRESET", "{line}");
    for (pod, direction) in [
        (&mesh.a, TrafficDirection::Egress),
        (&mesh.c, TrafficDirection::Ingress),
    ] {
        let flow = mesh.flow(pod, direction, FlowEvent::Refused, 9);
        assert_eq!(
            (flow.reason, flow.verdict),
            (Reason::ConnectionRefused, FlowVerdict::Failed),
            "{flow:?}"
        );
    }
}

#[test]
fn destinations_outside_the_mesh_get_plaintext_first_through_the_agent_then_in_the_kernel() {
    let mesh = Mesh::new("outside");
    let outside = mesh.lab.outside().unwrap();
    let server = outside
        .testapp(["echo-server", "--port", "7000", "--dual-stack", "--print-peer"])
        .unwrap();
    server.wait_listening().unwrap();
    let (v4, v6) = mesh.lab.outside_addresses();
    for host in [IpAddr::from(v4), IpAddr::from(v6)] {
        let to = SocketAddr::new(host, 7000).to_string();
        run(&mesh.a, ["echo-client", &to, "--connections", "2"])
            .success()
            .unwrap();
        for path in [FlowPath::Plaintext, FlowPath::Kernel] {
            let flow = mesh.flow_where(
                &mesh.a,
                TrafficDirection::Egress,
                FlowEvent::Close,
                7000,
                |flow| flow.path == path && flow.destination.address.ip() == host,
            );
            assert_eq!(flow.source.identity, identity("a"), "{flow:?}");
            assert_eq!((flow.bytes_sent, flow.bytes_received), (64, 64), "{flow:?}");
            assert!(flow.process.is_some() && flow.tls.is_none(), "{flow:?}");
        }
    }
    let peers = weir_e2e::lines(&server, "accept", 4);
    for peer in peers {
        let ip = address(&peer["accept"]).ip();
        assert!(
            ip == IpAddr::from(mesh.a.v4()) || ip == IpAddr::from(mesh.a.v6()),
            "{peer}"
        );
    }
}

#[test]
fn a_pod_that_is_not_enrolled_is_untouched() {
    let mesh = Mesh::new("unmeshed");
    let plain = mesh
        .lab
        .add_pod(PodSpec::new("node1", "shop", "plain").outside_mesh())
        .unwrap();
    let other = mesh
        .lab
        .add_pod(PodSpec::new("node2", "shop", "other").outside_mesh())
        .unwrap();
    let (server, _) = serve(&other, ["echo-server", "--port", "7000", "--print-peer"]);
    run(&plain, ["echo-client", &format!("{}:7000", other.v4())])
        .success()
        .unwrap();
    let peers = weir_e2e::lines(&server, "accept", 1);
    assert_eq!(address(&peers[0]["accept"]).ip(), IpAddr::from(plain.v4()));
    // To be sure that a record would be there by now, make one.
    run(&mesh.a, ["echo-client", &format!("{}:7000", other.v4())])
        .success()
        .unwrap();
    let _ = mesh.flow(&mesh.a, TrafficDirection::Egress, FlowEvent::Close, 7000);
    for agent in &mesh.agents {
        let flows = agent.flows().unwrap();
        let foreign = flows
            .iter()
            .find(|flow| flow.source.address.ip() == IpAddr::from(plain.v4()));
        assert!(foreign.is_none(), "{foreign:?}");
    }
}

#[test]
fn the_link_carries_tls_on_15008_and_never_the_plaintext() {
    const CANARY: &str = "canary-6f1d2b";
    let mesh = Mesh::new("canary");
    let capture = mesh.lab.capture("node1", &[CANARY.as_bytes()]).unwrap();
    let (_server, _) = serve(&mesh.c, ["echo-server", "--port", "7000"]);
    let to = format!("{}:7000", mesh.c.v4());
    run(
        &mesh.a,
        ["echo-client", &to, "--bytes", "100000", "--text", CANARY],
    )
    .success()
    .unwrap();
    let findings = capture.stop().unwrap();
    assert!(findings.tls_bytes > 200_000, "{findings:?}");
    assert!(findings.canaries.iter().all(|hits| *hits == 0), "{findings:?}");
    assert_eq!(findings.dropped, 0, "{findings:?}");

    // The same without the mesh, to know that the capture would have seen it.
    let capture = mesh.lab.capture("node1", &[CANARY.as_bytes()]).unwrap();
    let plain = mesh
        .lab
        .add_pod(PodSpec::new("node1", "shop", "plain").outside_mesh())
        .unwrap();
    run(
        &plain,
        ["echo-client", &to, "--bytes", "100000", "--text", CANARY],
    )
    .success()
    .unwrap();
    assert!(capture.stop().unwrap().canaries[0] > 0);
}

#[test]
fn the_agents_own_connections_are_not_captured() {
    let mesh = Mesh::new("own");
    let (_server, _) = serve(&mesh.c, ["echo-server", "--port", "7000"]);
    run(&mesh.a, ["echo-client", &format!("{}:7000", mesh.c.v4())])
        .success()
        .unwrap();
    let _ = mesh.flow(&mesh.a, TrafficDirection::Egress, FlowEvent::Close, 7000);
    for agent in &mesh.agents {
        for flow in agent.flows().unwrap() {
            assert_eq!(flow.destination.address.port(), 7000, "{flow:?}");
        }
    }
    // One connection crossed the link, from pod to pod.
    let status = mesh.agent(&mesh.a).status().unwrap();
    assert_eq!(status.tunnels.len(), 1, "{:?}", status.tunnels);
    assert_eq!(
        status.tunnels[0].address.to_string(),
        format!("{}:15008", mesh.c.v4())
    );
}
