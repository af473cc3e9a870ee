//! A control plane that is not ours, and knows nothing of `weir.node.v1`, in place of weir-control.

use std::{fs, net::SocketAddr};

use serde_json::{Value, json};
use weir_e2e::{identity, istiod::Istiod, lines, serve};
use weir_lab::{PATIENCE, Pod, Process, Spawn, poll};
use weir_types::{Flow, FlowEvent, FlowPath, Reason, TrafficDirection::Ingress};

const PORT: u16 = 7000;
/// As istiod names it, which sends what PeerAuthentication means as policies.
const STRICT: &str = "istio-system/istio_converted_static_strict";

fn connect(place: &impl Spawn, to: SocketAddr) -> Value {
    let to = to.to_string();
    let arguments = ["connect", &to, "--read", "2", "--timeout-ms", "3000"];
    place.run_testapp(arguments).unwrap().json().unwrap()
}

#[track_caller]
fn assert_reaches(place: &impl Spawn, to: SocketAddr) {
    let line = connect(place, to);
    assert_eq!(line["text"], "c\n", "{line}");
}

#[track_caller]
fn assert_refused(place: &impl Spawn, to: SocketAddr) {
    let line = connect(place, to);
    assert_eq!(line["text"].as_str().unwrap_or_default(), "", "{line}");
}

/// Says its name to whoever connects.
fn named(pod: &Pod) -> (Process, SocketAddr) {
    let port = PORT.to_string();
    let (server, _) = serve(
        pod,
        ["name-server", "--name", "c", "--port", &port, "--dual-stack"],
    );
    (server, (pod.v4(), PORT).into())
}

fn flow(mesh: &Istiod, pod: &Pod, wanted: impl Fn(&Flow) -> bool) -> Flow {
    let wanted = |flow: &Flow| {
        let own = flow.destination.pod.as_deref() == Some(pod.spec().name.as_str());
        flow.direction == Ingress && own && wanted(flow)
    };
    mesh.agent(pod)
        .wait_flow("a record of the connection", wanted)
        .unwrap()
}

fn policy(name: &str, rules: &Value) -> Value {
    let (namespace, name) = name.split_once('/').unwrap();
    json!({ "name": name, "namespace": namespace, "scope": "WORKLOAD_SELECTOR", "action": "DENY", "rules": rules })
}

#[test]
fn pods_are_enrolled_encrypted_and_judged_by_what_istiod_tells() {
    let mut mesh = Istiod::new("istiod", |_| {});
    let (a, c) = (mesh.pod("node1", "a"), mesh.pod("node2", "c"));
    for pod in [&a, &c] {
        mesh.tell(pod, true, &[]);
    }
    for pod in [&a, &c] {
        mesh.wait(pod, true);
    }
    let (_server, to) = named(&c);
    assert_reaches(&a, to);
    let opened = flow(&mesh, &c, |flow| flow.event == FlowEvent::Open);
    assert_eq!(
        (opened.source.identity, opened.path),
        (identity("a"), FlowPath::Tunnel)
    );

    let deny = json!([{ "clauses": [{ "matches": [{ "principals": [{ "exact": "cluster.local/ns/shop/sa/a" }] }] }] }]);
    mesh.policy("shop/no-a", Some(policy("shop/no-a", &deny)));
    mesh.tell(&c, true, &["shop/no-a"]);
    poll("the policy to count", PATIENCE, || {
        Ok((connect(&a, to)["text"] != "c\n").then_some(()))
    })
    .unwrap();
    let refused = flow(&mesh, &c, |flow| flow.event == FlowEvent::Refused);
    assert_eq!(refused.source.identity, identity("a"));
    mesh.tell(&c, true, &[]);
    mesh.policy("shop/no-a", None);
    poll("the policy to count no more", PATIENCE, || {
        Ok((connect(&a, to)["text"] == "c\n").then_some(()))
    })
    .unwrap();

    // Who asked is in the form that istiod knows, and asked for nothing that istiod has not.
    let nodes = lines(&mesh.control, "node", 2);
    for line in nodes {
        let (node, name) = (line["node"].as_str().unwrap(), line["name"].as_str().unwrap());
        assert!(
            node.starts_with("ztunnel~") && node.split('~').count() == 4,
            "{line}"
        );
        assert!(["node1", "node2"].contains(&name), "{line}");
    }
    let said = mesh.control.stdout();
    let said = String::from_utf8_lossy(&said);
    assert!(!said.contains("unknown") && !said.contains("nack"), "{said}");
}

#[test]
fn a_strict_pod_of_istiods_is_reached_by_the_kubelet_alone_in_plaintext() {
    let mut mesh = Istiod::new("istiodstrict", |config| {
        let folder = config.cgroup.join("kubelet");
        fs::create_dir(&folder).unwrap();
        config.kubelet_cgroup = Some(folder);
    });
    let (a, c, plain) = (
        mesh.pod("node1", "a"),
        mesh.pod("node2", "c"),
        mesh.pod("node1", "plain"),
    );
    let strict = json!([{ "clauses": [{ "matches": [{ "notPrincipals": [{ "presence": {} }] }] }] }]);
    mesh.policy(STRICT, Some(policy(STRICT, &strict)));
    mesh.tell(&a, true, &[]);
    mesh.tell(&plain, false, &[]);
    mesh.tell(&c, true, &[STRICT]);
    mesh.wait(&a, true);
    mesh.wait(&c, true);
    let (_server, to) = named(&c);
    assert_reaches(&a, to);
    assert_refused(&plain, to);
    let refused = flow(&mesh, &c, |flow| flow.event == FlowEvent::Refused);
    assert_eq!(refused.reason, Reason::PlaintextToStrict);
    let node = mesh.lab.node("node2").unwrap();
    assert_refused(node, to);
    let kubelet = node.place().in_cgroup(node.cgroup().join("kubelet")).unwrap();
    assert_reaches(&kubelet, to);
}

#[test]
fn a_pod_that_istiod_takes_out_of_the_mesh_or_that_is_made_again_is_followed() {
    let mut mesh = Istiod::new("istiodagain", |_| {});
    let (a, c) = (mesh.pod("node1", "a"), mesh.pod("node2", "c"));
    for pod in [&a, &c] {
        mesh.tell(pod, true, &[]);
    }
    for pod in [&a, &c] {
        mesh.wait(pod, true);
    }
    let (_server, to) = named(&c);
    assert_reaches(&a, to);
    mesh.tell(&c, false, &[]);
    mesh.wait(&c, false);
    assert_reaches(&a, to);
    mesh.tell(&c, true, &[]);
    mesh.wait(&c, true);
    assert_reaches(&a, to);

    // The control plane says nothing new of one that is made again under its name: only the kubelet does.
    mesh.make_again(&c);
    let enrolled = poll("the younger pod to be enrolled", PATIENCE, || {
        let log = mesh.agent(&c).log();
        Ok((log.matches("pod enrolled").count() > 2).then_some(()))
    });
    enrolled.unwrap_or_else(|error| panic!("{error:#}\n{}", mesh.agent(&c).log()));
    mesh.wait(&c, true);
    assert_reaches(&a, to);
}
