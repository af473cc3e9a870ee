//! Agents that follow the control plane, which watches a Kubernetes API server.

use weir_e2e::{cluster::Cluster, identity, run, serve};
use weir_types::{FlowEvent, FlowPath, TrafficDirection};

#[test]
fn pods_of_an_enabled_namespace_talk_over_mutual_tls_by_certificates_of_the_control_plane() {
    let mut cluster = Cluster::new("control");
    let client = cluster.pod("node1", "shop", "a");
    let server = cluster.pod("node2", "shop", "c");
    cluster.service("shop", "api", [10, 96, 0, 10].into(), (80, 7000), &[&server]);
    cluster.wait_enrolled(&[&client, &server]);
    let (_server, _) = serve(&server, ["echo-server", "--port", "7000"]);
    for to in [format!("{}:7000", server.v4()), "10.96.0.10:80".to_owned()] {
        let line = run(&client, ["connect", &to, "--send", "hello", "--read", "5"])
            .json()
            .unwrap();
        assert_eq!(line["text"], "hello", "{line}");
    }
    let flow = cluster
        .agent(&server)
        .wait_flow("the server's record", |flow| {
            flow.direction == TrafficDirection::Ingress && flow.event == FlowEvent::Close
        })
        .unwrap();
    assert_eq!(flow.path, FlowPath::Tunnel);
    assert_eq!(
        (flow.source.identity, flow.destination.identity),
        (identity("a"), identity("c"))
    );
    let status = cluster.agent(&client).status().unwrap();
    let control = status.control_plane.unwrap();
    assert!(control.connected, "{control:?}");
}
