//! Pods of one node that reach each other directly.

use weir_e2e::{Mesh, identity, run, serve};
use weir_lab::config::{SameNodeMode, ServiceConfig};
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
