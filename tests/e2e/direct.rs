//! Pods of one node that reach each other directly.

use weir_e2e::{Mesh, identity, run, serve};
use weir_lab::{
    Spawn as _,
    config::{AgentConfig, SameNodeMode, ServiceConfig},
};
use weir_types::{FlowEvent, FlowPath, TrafficDirection};

#[test]
fn the_first_connection_goes_by_the_agent_and_the_next_straight_to_the_other_pod() {
    let mesh = Mesh::with("direct", |config| {
        config.strict();
        config.same_node(SameNodeMode::Direct);
    });
    let (server, _) = serve(
        &mesh.b,
        ["echo-server", "--port", "7000", "--dual-stack", "--print-peer"],
    );
    for (host, port) in [
        (mesh.b.v4().to_string(), "5000"),
        (format!("[{}]", mesh.b.v6()), "5001"),
    ] {
        let to = format!("{host}:7000");
        run(&mesh.a, ["echo-client", &to]).success().unwrap();
        let own = if host.starts_with('[') {
            format!("[{}]:{port}", mesh.a.v6())
        } else {
            format!("{}:{port}", mesh.a.v4())
        };
        let line = run(
            &mesh.a,
            ["connect", &to, "--bind", &own, "--send", "x", "--read", "1"],
        )
        .json()
        .unwrap();
        assert_eq!(line["text"], "x", "{line}");
        let flow = mesh.flow_where(
            &mesh.a,
            TrafficDirection::Egress,
            FlowEvent::Close,
            7000,
            |flow| flow.source.address == own.parse().unwrap(),
        );
        assert_eq!(flow.path, FlowPath::Direct);
        assert_eq!(
            (flow.source.identity, flow.destination.identity),
            (identity("a"), identity("b"))
        );
        assert_eq!((flow.bytes_sent, flow.bytes_received), (1, 1));
        let mapped = own
            .strip_prefix("10.")
            .map(|rest| format!("[::ffff:10.{}", rest.replace(':', "]:")));
        let shown = mapped.unwrap_or(own);
        let lines = weir_e2e::lines(&server, "accept", 2);
        assert!(
            lines.iter().any(|line| line["accept"] == shown.as_str()),
            "{lines:?}"
        );
    }
}

#[test]
fn a_service_with_a_local_endpoint_is_reached_directly_and_shown_by_its_address() {
    let mesh = Mesh::with("vip", |config| {
        config.strict();
        config.same_node(SameNodeMode::Direct);
        config.services.push(ServiceConfig::new(
            "shop",
            "api",
            ["10.96.0.10".parse().unwrap(), "fd96::10".parse().unwrap()],
            (80, 7000),
            ["shop-b".to_owned()],
        ));
    });
    let (_server, _) = serve(&mesh.b, ["echo-server", "--port", "7000", "--dual-stack"]);
    for host in ["10.96.0.10", "[fd96::10]"] {
        let to = format!("{host}:80");
        run(&mesh.a, ["echo-client", &to]).success().unwrap();
        let line = run(&mesh.a, ["connect", &to, "--send", "x", "--read", "1"])
            .json()
            .unwrap();
        assert_eq!(
            (&line["text"], &line["getpeername"]),
            (&"x".into(), &to.as_str().into()),
            "{line}"
        );
        let flow = mesh.flow_where(
            &mesh.a,
            TrafficDirection::Egress,
            FlowEvent::Close,
            7000,
            |flow| flow.path == FlowPath::Direct && flow.original_destination == Some(to.parse().unwrap()),
        );
        assert_eq!(flow.service.as_deref(), Some("shop/api"));
    }
}

/// A client that has got one byte back and waits for another that never comes: only its end can be seen.
fn held(mesh: &Mesh, to: &str) -> weir_lab::Process {
    let client = mesh
        .a
        .testapp([
            "connect",
            to,
            "--send",
            "x",
            "--read",
            "2",
            "--timeout-ms",
            "4000",
        ])
        .unwrap();
    let port = to.rsplit_once(':').unwrap().1.parse().unwrap();
    let _ = mesh.flow_where(&mesh.a, TrafficDirection::Egress, FlowEvent::Open, port, |flow| {
        flow.path == FlowPath::Direct
    });
    client
}

fn reload(mesh: &mut Mesh, change: impl Fn(&mut AgentConfig)) {
    for agent in &mut mesh.agents {
        let status = agent.reload(|config| change(config)).unwrap();
        assert_eq!(status.config.rejected, None);
    }
}

#[test]
fn auto_on_a_bridge_is_direct_as_long_as_anybody_may_connect() {
    // The lab's pods hang on a bridge, and nobody has said how they reach each other.
    let mut mesh = Mesh::new("auto");
    let (_server, _) = serve(&mesh.b, ["echo-server", "--port", "7000"]);
    let to = format!("{}:7000", mesh.b.v4());
    let path = |mesh: &Mesh, own: &str| {
        let own = format!("{}:{own}", mesh.a.v4());
        run(
            &mesh.a,
            ["connect", &to, "--bind", &own, "--send", "x", "--read", "1"],
        )
        .success()
        .unwrap();
        let from_own = |flow: &weir_types::Flow| flow.source.address == own.parse().unwrap();
        mesh.flow_where(
            &mesh.a,
            TrafficDirection::Egress,
            FlowEvent::Close,
            7000,
            from_own,
        )
        .path
    };
    run(&mesh.a, ["echo-client", &to]).success().unwrap();
    assert_eq!(path(&mesh, "5000"), FlowPath::Direct);
    let open = held(&mesh, &to);
    // STRICT: whoever poses as a on the bridge would gain something.
    reload(&mut mesh, AgentConfig::strict);
    let line = open.wait(weir_lab::PATIENCE).unwrap().json().unwrap();
    assert_eq!(line["end"], "ECONNRESET", "{line}");
    for own in ["5001", "5002"] {
        assert_eq!(path(&mesh, own), FlowPath::Tunnel);
    }
    // And back, with a policy that asks who it is, and without.
    let from_a = serde_json::json!({
        "name": "a", "namespace": "shop", "selector": { "matchLabels": { "app": "b" } },
        "rules": [{ "from": [{ "source": { "serviceAccounts": ["a"] } }] }],
    });
    reload(&mut mesh, |config| {
        config.peer_authentications.clear();
        config.authorization_policies.push(from_a.clone());
    });
    for own in ["5003", "5004"] {
        assert_eq!(path(&mesh, own), FlowPath::Tunnel);
    }
    reload(&mut mesh, |config| config.authorization_policies.clear());
    assert_eq!(
        path(&mesh, "5005"),
        FlowPath::Tunnel,
        "the first, which the agent carries"
    );
    assert_eq!(path(&mesh, "5006"), FlowPath::Direct);
    let open = held(&mesh, &to);
    // A change that is no business of theirs ends nothing.
    reload(&mut mesh, |config| {
        config
            .authorization_policies
            .push(serde_json::json!({ "name": "x", "namespace": "elsewhere" }));
    });
    let line = open.wait(weir_lab::PATIENCE).unwrap().json().unwrap();
    assert_eq!(line["end"], "EAGAIN", "timed out, since nothing ended it: {line}");
}

#[test]
fn a_server_that_gets_another_identity_keeps_the_direct_connections_that_it_may_have() {
    for forbidden in [false, true] {
        let mut mesh = Mesh::with("renamed", |config| {
            config.strict();
            config.same_node(SameNodeMode::Direct);
        });
        let (_server, _) = serve(&mesh.b, ["echo-server", "--port", "7000"]);
        let to = format!("{}:7000", mesh.b.v4());
        run(&mesh.a, ["echo-client", &to]).success().unwrap();
        let open = held(&mesh, &to);
        // The same pod, enrolled anew: its sockets are still the old ones.
        reload(&mut mesh, |config| {
            let renamed = "other".to_owned();
            for workload in config
                .workloads
                .iter_mut()
                .filter(|workload| workload.name == "b")
            {
                workload.service_account.clone_from(&renamed);
            }
            for pod in config.pods.iter_mut().filter(|pod| pod.uid == "shop-b") {
                pod.service_account.clone_from(&renamed);
            }
            if forbidden {
                config.authorization_policies.push(serde_json::json!({
                    "name": "not-a", "namespace": "shop", "action": "DENY",
                    "rules": [{ "from": [{ "source": { "serviceAccounts": ["a"] } }] }],
                }));
            }
        });
        let line = open.wait(weir_lab::PATIENCE).unwrap().json().unwrap();
        let expected = if forbidden { "ECONNRESET" } else { "EAGAIN" };
        assert_eq!(line["end"], expected, "{line}");
    }
}

#[test]
fn auto_is_direct_between_pods_whose_routes_all_go_by_a_gateway() {
    let mesh = Mesh::with("routed", AgentConfig::strict);
    for pod in [&mesh.a, &mesh.b] {
        let (gateway, gateway6) = ("10.1.0.1", "fd00:1::1");
        for route in [
            "route del 10.1.0.0/24 dev eth0".to_owned(),
            format!("route add {gateway}/32 dev eth0"),
            format!("route replace default via {gateway} dev eth0"),
            "-6 route del fd00:1::/64 dev eth0".to_owned(),
            format!("-6 route add {gateway6}/128 dev eth0"),
            format!("-6 route replace default via {gateway6} dev eth0"),
        ] {
            let mut ip = std::process::Command::new("ip");
            ip.args(route.split(' '));
            pod.run(ip).unwrap().success().unwrap();
        }
    }
    // It is looked at when a pod is enrolled.
    mesh.agents[0].stop().unwrap();
    mesh.agents[0].restart().unwrap();
    let (_server, _) = serve(&mesh.b, ["echo-server", "--port", "7000"]);
    let to = format!("{}:7000", mesh.b.v4());
    for _ in 0..2 {
        run(&mesh.a, ["echo-client", &to]).success().unwrap();
    }
    let flow = mesh.flow_where(
        &mesh.a,
        TrafficDirection::Egress,
        FlowEvent::Close,
        7000,
        |flow| flow.path == FlowPath::Direct,
    );
    assert_eq!(flow.destination.identity, identity("b"));
    let status = mesh.agents[0].status().unwrap();
    let said: Vec<_> = status
        .pods
        .iter()
        .filter_map(|pod| pod.same_node.clone())
        .collect();
    assert!(
        said.iter().all(|said| said.contains("point-to-point")),
        "{said:?}"
    );
}
