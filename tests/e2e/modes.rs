//! STRICT and PERMISSIVE.

use weir_e2e::{Mesh, identity, run, serve};
use weir_lab::{PodSpec, Spawn as _, config::AgentConfig};
use weir_types::{FlowEvent, FlowPath, FlowVerdict, Reason, TrafficDirection};

#[test]
fn permissive_accepts_plaintext_and_shows_the_application_its_client() {
    let mesh = Mesh::new("permissive");
    let plain = mesh
        .lab
        .add_pod(PodSpec::new("node1", "shop", "plain").outside_mesh())
        .unwrap();
    let (server, _) = serve(&mesh.c, ["echo-server", "--port", "7000", "--print-peer"]);
    let bind = format!("{}:5000", plain.v4());
    let to = format!("{}:7000", mesh.c.v4());
    let line = run(
        &plain,
        ["connect", &to, "--bind", &bind, "--send", "x", "--read", "1"],
    )
    .json()
    .unwrap();
    assert_eq!(line["text"], "x", "{line}");
    assert_eq!(weir_e2e::lines(&server, "accept", 1)[0]["accept"], bind.as_str());
    let flow = mesh.flow(&mesh.c, TrafficDirection::Ingress, FlowEvent::Close, 7000);
    assert_eq!(
        (flow.path, flow.verdict),
        (FlowPath::Plaintext, FlowVerdict::Forwarded)
    );
    assert_eq!(
        (flow.source.identity, flow.destination.identity),
        (None, identity("c"))
    );
}

#[test]
fn strict_refuses_plaintext_with_a_reset_at_each_scope_and_still_accepts_mutual_tls() {
    type Change = fn(&mut AgentConfig);
    let scopes: [(&str, &str, Change); 3] = [
        ("mesh", "weir-system/default", AgentConfig::strict),
        ("namespace", "shop/default", |config| {
            config.strict_namespace("shop");
        }),
        ("workload", "shop/c", |config| config.strict_workload("shop", "c")),
    ];
    for (scope, policy, change) in scopes {
        let mesh = Mesh::with("strict", change);
        let plain = mesh
            .lab
            .add_pod(PodSpec::new("node1", "shop", "plain").outside_mesh())
            .unwrap();
        let (_server, _) = serve(&mesh.c, ["echo-server", "--port", "7000", "--dual-stack"]);
        for host in [mesh.c.v4().to_string(), format!("[{}]", mesh.c.v6())] {
            let to = format!("{host}:7000");
            let line = run(&plain, ["connect", &to]).json().unwrap();
            assert_eq!(line["connect"], "ECONNREFUSED", "{scope}: {line}");
            run(&mesh.a, ["echo-client", &to]).success().unwrap();
        }
        let flow = mesh.flow(&mesh.c, TrafficDirection::Ingress, FlowEvent::Refused, 7000);
        assert_eq!(
            (flow.reason, flow.verdict),
            (Reason::PlaintextToStrict, FlowVerdict::Denied),
            "{scope}: {flow:?}"
        );
        assert_eq!(flow.source.identity, None);
        assert_eq!(
            flow.policy.map(|by| by.to_string()).as_deref(),
            Some(policy),
            "{scope}"
        );
    }
}

#[test]
fn the_narrower_scope_wins() {
    let mesh = Mesh::with("narrow", |config| {
        config.strict();
        config.peer_authentication("c", "shop", Some("c"), "PERMISSIVE");
    });
    let plain = mesh
        .lab
        .add_pod(PodSpec::new("node1", "shop", "plain").outside_mesh())
        .unwrap();
    let (_c, _) = serve(&mesh.c, ["echo-server", "--port", "7000"]);
    let (_d, _) = serve(&mesh.d, ["echo-server", "--port", "7000"]);
    run(&plain, ["echo-client", &format!("{}:7000", mesh.c.v4())])
        .success()
        .unwrap();
    let line = run(&plain, ["connect", &format!("{}:7000", mesh.d.v4())])
        .json()
        .unwrap();
    assert_eq!(line["connect"], "ECONNREFUSED", "{line}");
}

#[test]
fn a_pod_that_becomes_strict_ends_its_plaintext_connections_and_keeps_the_others() {
    let mut mesh = Mesh::new("becomes");
    let plain = mesh
        .lab
        .add_pod(PodSpec::new("node1", "shop", "plain").outside_mesh())
        .unwrap();
    let (_server, _) = serve(&mesh.c, ["echo-server", "--port", "7000"]);
    let to = format!("{}:7000", mesh.c.v4());
    // Both wait for a byte that never comes: only the plaintext one is ended.
    let held = |pod: &weir_lab::Pod| {
        pod.testapp([
            "connect",
            &to,
            "--send",
            "x",
            "--read",
            "2",
            "--timeout-ms",
            "3000",
        ])
        .unwrap()
    };
    let (plaintext, tunnelled) = (held(&plain), held(&mesh.a));
    for path in [FlowPath::Plaintext, FlowPath::Tunnel] {
        let _ = mesh.flow_where(
            &mesh.c,
            TrafficDirection::Ingress,
            FlowEvent::Open,
            7000,
            |flow| flow.path == path,
        );
    }
    let agent = mesh
        .agents
        .iter_mut()
        .find(|agent| agent.node() == "node2")
        .unwrap();
    let status = agent.reload(|config| config.strict()).unwrap();
    assert_eq!(status.config.rejected, None);
    let line = plaintext.wait(weir_lab::PATIENCE).unwrap().json().unwrap();
    assert_eq!(line["end"], "ECONNRESET", "{line}");
    let line = tunnelled.wait(weir_lab::PATIENCE).unwrap().json().unwrap();
    assert_eq!(line["end"], "EAGAIN", "timed out, since nothing ended it: {line}");
}
