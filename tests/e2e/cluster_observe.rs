//! Pods whose connections are recorded and left alone, by the word of a control plane.

use serde_json::json;
use weir_e2e::{cluster::Cluster, direct::at};
use weir_lab::{PATIENCE, poll};
use weir_types::{FlowEvent, FlowPath};

use crate::cluster::{asks, echo};

#[test]
fn a_whole_mesh_is_observed_by_one_label_and_left_alone_when_it_goes() {
    let mut cluster = Cluster::new("observe-all");
    cluster.namespace("quiet", None);
    cluster.namespace("out", Some("disabled"));
    let (client, out) = (
        cluster.pod("node1", "quiet", "q"),
        cluster.pod("node1", "out", "o"),
    );
    let server = cluster.pod("node2", "shop", "c");
    cluster.wait_enrolled(&[&server]);
    let _server = echo(&server);
    let to = at(server.v4(), 7000);
    let pods = || cluster.agent(&client).status().unwrap().pods;
    assert_eq!(asks(&client, &to), "x");
    assert_eq!(pods(), []);

    cluster.observe_all(true);
    cluster.wait_known(&client, |enrolled, tunnel| enrolled && tunnel == "NONE");
    for pod in [&client, &out] {
        assert_eq!(asks(pod, &to), "x");
    }
    cluster
        .agent(&client)
        .wait_flow("its connection", |flow| {
            flow.event == FlowEvent::Close
                && flow.path == FlowPath::Kernel
                && flow.source.pod.as_deref() == Some("q")
        })
        .unwrap();
    let modes: Vec<_> = pods().into_iter().map(|pod| (pod.name, pod.mode)).collect();
    let observed = ("q".to_owned(), "observe".to_owned());
    assert_eq!(modes, [observed], "who is disabled stays out");
    assert_eq!(cluster.agent(&client).status().unwrap().certificates, []);
    // Those that are in the mesh are that as before.
    let status = cluster.agent(&server).status().unwrap();
    assert_eq!(status.pods[0].mode, "PERMISSIVE");

    cluster.observe_all(false);
    poll("nobody is observed", PATIENCE, || {
        Ok(pods().is_empty().then_some(()))
    })
    .unwrap();
    assert_eq!(asks(&client, &to), "x");
}

#[test]
fn a_pod_that_is_only_observed_is_recorded_and_left_alone() {
    let mut cluster = Cluster::new("observe");
    cluster.namespace("quiet", Some("observe"));
    let observed = cluster.pod("node1", "quiet", "q");
    let server = cluster.pod("node2", "shop", "c");
    cluster.wait_enrolled(&[&server]);
    cluster.wait_known(&observed, |enrolled, tunnel| enrolled && tunnel == "NONE");
    let (_server, _quiet) = (echo(&server), echo(&observed));
    // A policy that would refuse it, were it in the mesh.
    cluster.policy(
        "PeerAuthentication",
        "quiet",
        "default",
        &json!({ "mtls": { "mode": "STRICT" } }),
    );
    assert_eq!(asks(&observed, &at(server.v4(), 7000)), "x");
    let flow = cluster
        .agent(&observed)
        .wait_flow("its connection", |flow| {
            flow.event == FlowEvent::Close && flow.source.pod.as_deref() == Some("q")
        })
        .unwrap();
    assert_eq!(flow.path, FlowPath::Kernel);
    assert_eq!((flow.bytes_sent, flow.bytes_received), (1, 1));
    assert_eq!(
        asks(&server, &at(observed.v4(), 7000)),
        "x",
        "plaintext reaches it"
    );
    let status = cluster.agent(&observed).status().unwrap();
    let pod = status.pods.iter().find(|pod| pod.name == "q").unwrap();
    assert_eq!((pod.enrolled, pod.mode.as_str()), (true, "observe"));
    assert!(
        status.certificates.is_empty(),
        "nobody asks for a certificate for it"
    );
    // Then in earnest.
    cluster.switch("quiet", Some("enabled"));
    cluster.wait_enrolled(&[&observed]);
    assert_eq!(asks(&observed, &at(server.v4(), 7000)), "x");
    cluster
        .agent(&server)
        .wait_flow("its connection by mutual TLS", |flow| {
            flow.path == FlowPath::Tunnel
                && flow.source.identity.is_some()
                && flow.source.pod.as_deref() == Some("q")
        })
        .unwrap();
}
