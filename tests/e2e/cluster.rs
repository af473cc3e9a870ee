//! Agents that follow the control plane, which watches a Kubernetes API server.

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use weir_e2e::{
    cluster::{Cluster, Member},
    direct::at,
    identity, run, serve,
};
use weir_lab::{PATIENCE, Pod, Process, Spawn as _, poll};
use weir_types::{FlowEvent, FlowPath, Reason, TrafficDirection};

/// Pods that nobody talks to.
const MANY: usize = 150;
/// A change must be in force after this long.
const IN_FORCE: Duration = Duration::from_secs(1);

/// One connection: what came back.
pub(crate) fn asks(pod: &Pod, to: &str) -> String {
    let line = run(
        pod,
        [
            "connect",
            to,
            "--send",
            "x",
            "--read",
            "1",
            "--timeout-ms",
            "3000",
        ],
    )
    .json()
    .unwrap();
    line["text"].as_str().unwrap_or_default().to_owned()
}

/// Connects until what comes back is this, and sees that it took no longer than a change may.
fn wait_answer(pod: &Pod, to: &str, wanted: &str) {
    let started = Instant::now();
    let found = poll("the change to be in force", PATIENCE, || {
        Ok((asks(pod, to) == wanted).then_some(()))
    });
    found.unwrap();
    // A connection may have begun just before the change, and waits for its answer.
    let took = started.elapsed();
    assert!(took < IN_FORCE + Duration::from_secs(1), "{took:?}");
}

/// A connection that stays open, and says what comes back when it is told to go on.
fn held(pod: &Pod, to: &str) -> Process {
    let client = pod.testapp([
        "connect",
        to,
        "--send",
        "x",
        "--read",
        "2",
        "--timeout-ms",
        "60000",
    ]);
    client.unwrap()
}

pub(crate) fn echo(pod: &Member) -> Process {
    serve(pod, ["echo-server", "--port", "7000", "--dual-stack"]).0
}

#[test]
fn pods_of_an_enabled_namespace_talk_over_mutual_tls_by_certificates_of_the_control_plane() {
    let mut cluster = Cluster::new("control");
    let client = cluster.pod("node1", "shop", "a");
    let server = cluster.pod("node2", "shop", "c");
    cluster.service("shop", "api", [10, 96, 0, 10].into(), (80, 7000), &[&server]);
    cluster.wait_enrolled(&[&client, &server]);
    let _server = echo(&server);
    for to in [
        at(server.v4(), 7000),
        at(server.v6(), 7000),
        "10.96.0.10:80".to_owned(),
    ] {
        assert_eq!(asks(&client, &to), "x", "{to}");
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
    let through = |flow: &weir_types::Flow| flow.service.as_deref() == Some("shop/api");
    cluster
        .agent(&client)
        .wait_flow("the service's name", through)
        .unwrap();
    let status = cluster.agent(&client).status().unwrap();
    let control = status.control_plane.unwrap();
    assert!(control.connected, "{control:?}");
    assert_eq!((status.certificates.len(), status.errors), (1, Vec::new()));
}

#[test]
fn a_policy_of_the_cluster_is_in_force_within_a_second_and_named_where_it_refuses() {
    let mut cluster = Cluster::new("crd");
    let [a, d] = ["a", "d"].map(|name| cluster.pod("node1", "shop", name));
    let server = cluster.pod("node2", "shop", "c");
    // Not in the mesh: what it sends is plaintext.
    cluster.namespace("legacy", None);
    let outsider = cluster.pod("node1", "legacy", "o");
    cluster.wait_enrolled(&[&a, &d, &server]);
    cluster.wait_known(&outsider, |enrolled, tunnel| !enrolled && tunnel == "NONE");
    let _server = echo(&server);
    let to = at(server.v4(), 7000);
    for pod in [&a, &d, &outsider] {
        assert_eq!(asks(pod, &to), "x");
    }
    cluster.policy(
        "PeerAuthentication",
        "shop",
        "default",
        &json!({ "mtls": { "mode": "STRICT" } }),
    );
    wait_answer(&outsider, &to, "");
    // That one may have been open when the change came: this one is refused.
    assert_eq!(asks(&outsider, &to), "");
    assert_eq!(asks(&a, &to), "x");
    let refused = |pod: &str, reason: Reason| {
        let what = format!("a refusal of {pod}");
        cluster
            .agent(&server)
            .wait_flow(&what, |flow| {
                flow.event == FlowEvent::Refused
                    && flow.reason == reason
                    && flow.source.pod.as_deref() == Some(pod)
            })
            .unwrap()
    };
    let flow = refused("o", Reason::PlaintextToStrict);
    assert_eq!(flow.policy.unwrap().policy.as_ref(), "shop/default");
    let open = held(&d, &to);
    let spec = json!({
        "selector": { "matchLabels": { "app": "c" } },
        "rules": [{ "from": [{ "source": { "principals": ["cluster.local/ns/shop/sa/a"] } }] }],
    });
    cluster.policy("AuthorizationPolicy", "shop", "only-a", &spec);
    wait_answer(&d, &to, "");
    assert_eq!(asks(&d, &to), "");
    assert_eq!(asks(&a, &to), "x");
    let flow = refused("d", Reason::NotAllowed);
    assert_eq!(flow.policy.unwrap().policy.as_ref(), "shop/only-a");
    // What was open before ended too.
    let line = open.wait(PATIENCE).unwrap().json().unwrap();
    assert_eq!(line["text"], "x", "{line}");
    cluster.remove_policy("AuthorizationPolicy", "shop", "only-a");
    wait_answer(&d, &to, "x");
    cluster.remove_policy("PeerAuthentication", "shop", "default");
    wait_answer(&outsider, &to, "x");
}

#[test]
fn pods_come_and_go_with_their_namespaces_switch_and_others_connections_stay() {
    let mut cluster = Cluster::new("switch");
    cluster.namespace("other", None);
    let [a, b] = ["a", "b"].map(|name| cluster.pod("node1", "shop", name));
    let server = cluster.pod("node2", "shop", "c");
    let late = cluster.pod("node2", "other", "late");
    cluster.wait_enrolled(&[&a, &b, &server]);
    cluster.wait_known(&late, |enrolled, tunnel| !enrolled && tunnel == "NONE");
    let (_server, _late) = (echo(&server), echo(&late));
    let to = at(late.v4(), 7000);
    assert_eq!(asks(&a, &to), "x");
    let mut open = held(&b, &at(server.v4(), 7000));
    // A pod that exists is enrolled without a restart.
    cluster.switch("other", Some("enabled"));
    cluster.wait_enrolled(&[&late]);
    assert_eq!(asks(&a, &to), "x");
    cluster
        .agent(&late)
        .wait_flow("its first connection over mutual TLS", |flow| {
            flow.path == FlowPath::Tunnel && flow.destination.pod.as_deref() == Some("late")
        })
        .unwrap();
    cluster.switch("other", None);
    cluster.wait_known(&late, |enrolled, tunnel| !enrolled && tunnel == "NONE");
    assert_eq!(asks(&a, &to), "x");
    assert_eq!(
        open.ended().unwrap(),
        None,
        "a connection between other pods goes on"
    );
}

#[test]
fn a_pod_that_is_made_again_at_the_address_of_another_has_its_own_identity() {
    let mut cluster = Cluster::new("again");
    let client = cluster.pod("node1", "shop", "a");
    let first = cluster.pod("node2", "shop", "c");
    cluster.wait_enrolled(&[&client, &first]);
    let to = at(first.v4(), 7000);
    let address = first.v4();
    let spec = json!({
        "selector": { "matchLabels": { "app": "e" } }, "action": "DENY",
        "rules": [{ "from": [{ "source": { "principals": ["cluster.local/ns/shop/sa/a"] } }] }],
    });
    cluster.policy("AuthorizationPolicy", "shop", "not-e", &spec);
    {
        let _server = echo(&first);
        assert_eq!(asks(&client, &to), "x");
    }
    cluster.remove_pod(&first);
    let second = cluster.pod("node2", "shop", "e");
    assert_eq!(second.v4(), address);
    cluster.wait_enrolled(&[&second]);
    let _server = echo(&second);
    wait_answer(&client, &to, "");
    assert_eq!(asks(&client, &to), "");
    let flow = cluster
        .agent(&second)
        .wait_flow("the refusal", |flow| flow.event == FlowEvent::Refused)
        .unwrap();
    assert_eq!(flow.destination.pod.as_deref(), Some("e"));
    assert_eq!(flow.policy.unwrap().policy.as_ref(), "shop/not-e");
}

#[test]
fn agents_work_on_while_the_control_plane_is_away_say_so_and_catch_up() {
    let mut cluster = Cluster::new("away");
    let client = cluster.pod("node1", "shop", "a");
    let server = cluster.pod("node2", "shop", "c");
    cluster.service(
        "shop",
        "api",
        Ipv4Addr::new(10, 96, 0, 10),
        (80, 7000),
        &[&server],
    );
    cluster.wait_enrolled(&[&client, &server]);
    let _server = echo(&server);
    assert_eq!(asks(&client, "10.96.0.10:80"), "x");
    let mut open = held(&client, &at(server.v4(), 7000));
    cluster.stop_control();
    let said = poll("the agents to say so", PATIENCE, || {
        let status = cluster.agents[0].status()?;
        let control = status.control_plane.clone().unwrap();
        Ok((!control.connected && !status.errors.is_empty()).then_some(status))
    })
    .unwrap();
    assert!(said.ready, "it works on");
    assert!(said.errors[0].contains("control plane"), "{:?}", said.errors);
    assert_eq!(asks(&client, "10.96.0.10:80"), "x");
    // What happens meanwhile is caught up with.
    let new = cluster.pod("node2", "shop", "d");
    cluster.remove_pod(&new);
    let newer = cluster.pod("node2", "shop", "e");
    let deny: Value =
        json!({ "action": "DENY", "rules": [{}], "selector": { "matchLabels": { "app": "e" } } });
    cluster.policy("AuthorizationPolicy", "shop", "nobody", &deny);
    cluster.start_control();
    cluster.wait_enrolled(&[&newer]);
    let _newer = echo(&newer);
    wait_answer(&client, &at(newer.v4(), 7000), "");
    assert_eq!(asks(&client, "10.96.0.10:80"), "x");
    let status = cluster.agents[0].status().unwrap();
    assert_eq!(
        (status.control_plane.unwrap().connected, status.errors),
        (true, Vec::new())
    );
    assert_eq!(open.ended().unwrap(), None, "an open connection noticed nothing");
}

#[test]
fn an_agent_that_starts_again_enrols_its_pods_again_and_open_connections_in_the_kernel_go_on() {
    let mut cluster = Cluster::new("restart");
    let client = cluster.pod("node1", "shop", "a");
    let server = cluster.pod("node2", "shop", "c");
    cluster.wait_enrolled(&[&client, &server]);
    let _server = echo(&server);
    let to = at(server.v4(), 7000);
    assert_eq!(asks(&client, &to), "x");
    for agent in &cluster.agents {
        agent.kill().unwrap();
    }
    assert_ne!(asks(&client, &to), "x", "without an agent nothing passes");
    for agent in &mut cluster.agents {
        agent.restart().unwrap();
    }
    cluster.wait_enrolled(&[&client, &server]);
    wait_answer(&client, &to, "x");
}

#[test]
fn a_policy_says_what_became_of_it_and_one_that_is_not_understood_denies() {
    let mut cluster = Cluster::new("status");
    let client = cluster.pod("node1", "shop", "a");
    let server = cluster.pod("node2", "shop", "c");
    cluster.wait_enrolled(&[&client, &server]);
    let _server = echo(&server);
    let to = at(server.v4(), 7000);
    let status = |name: &str, wanted: &dyn Fn(&Value) -> bool| {
        let mut last = Value::Null;
        let found = poll("the policy's status", PATIENCE, || {
            last = cluster.policy_status("AuthorizationPolicy", "shop", name);
            Ok(wanted(&last).then(|| last.clone()))
        });
        found.unwrap_or_else(|error| panic!("{error:#}: {last}"))
    };
    let selector = json!({ "matchLabels": { "app": "c" } });
    let from = json!([{ "source": { "namespaces": ["shop"] } }]);
    cluster.policy(
        "AuthorizationPolicy",
        "shop",
        "good",
        &json!({ "selector": selector, "rules": [{ "from": from }] }),
    );
    let good = status("good", &|status| status["bound"] == 1);
    assert_eq!(good["conditions"][0]["type"], "Accepted", "{good}");
    assert_eq!(good["conditions"][0]["status"], "True", "{good}");
    assert_eq!(asks(&client, &to), "x");
    // The definition cannot say that this is no prefix length.
    let wrong = json!([{ "when": [{ "key": "source.ip", "values": ["10.0.0.0/99"] }] }]);
    cluster.policy(
        "AuthorizationPolicy",
        "shop",
        "wrong",
        &json!({ "action": "DENY", "rules": wrong }),
    );
    wait_answer(&client, &to, "");
    assert_eq!(asks(&client, &to), "");
    let refused = status("wrong", &|status| status["conditions"][0]["status"] == "False");
    let message = refused["conditions"][0]["message"].as_str().unwrap();
    assert!(message.contains("rules[0].when[0].values[0]"), "{message}");
    let flow = cluster
        .agent(&server)
        .wait_flow("the refusal", |flow| flow.event == FlowEvent::Refused)
        .unwrap();
    assert_eq!(flow.policy.unwrap().policy.as_ref(), "shop/wrong");
    cluster.remove_policy("AuthorizationPolicy", "shop", "wrong");
    wait_answer(&client, &to, "x");
    // As a dry run it denies nothing, and says so.
    cluster.policy(
        "AuthorizationPolicy",
        "shop",
        "rehearsed",
        &json!({ "action": "DENY", "dryRun": true, "rules": wrong }),
    );
    let rehearsed = status("rehearsed", &|status| {
        status["conditions"][0]["status"] == "False"
    });
    let message = rehearsed["conditions"][0]["message"].as_str().unwrap();
    assert!(
        message.contains("as it is a dry run, nothing is denied"),
        "{message}"
    );
    poll("the record of what it would refuse", PATIENCE, || {
        assert_eq!(asks(&client, &to), "x");
        let flows = cluster.agent(&server).flows()?;
        let mut would = flows.iter().filter_map(|flow| flow.dry_run.as_ref());
        Ok(would
            .any(|would| would.policy.as_ref() == "shop/rehearsed")
            .then_some(()))
    })
    .unwrap();
}

#[test]
fn a_control_plane_that_starts_again_sends_agents_only_what_changed() {
    let mut cluster = Cluster::new("resume");
    for number in 0..MANY {
        cluster.idle_pod("node1", "shop", &format!("idle{number}"));
    }
    let known = |cluster: &Cluster| {
        poll("the agents to know all pods", PATIENCE, || {
            for agent in &cluster.agents {
                let control = agent.status()?.control_plane.unwrap();
                if !control.connected || control.workloads < MANY {
                    return Ok(None);
                }
            }
            Ok(Some(()))
        })
        .unwrap();
    };
    known(&cluster);
    cluster.stop_control();
    // Long enough for several attempts that find nobody.
    poll("the agents to try in vain", PATIENCE, || {
        let failed = "no stream from the control plane";
        let tries = |agent: &weir_lab::Agent| agent.log().matches(failed).count();
        Ok(cluster.agents.iter().all(|agent| tries(agent) >= 4).then_some(()))
    })
    .unwrap();
    cluster.start_control();
    known(&cluster);
    // All of it would be some 300 bytes for each pod and agent.
    let sent = cluster.control_metric("weir_ads_push_bytes_total");
    assert!(sent > 0.0 && sent < 10_000.0, "{sent} bytes");
}
