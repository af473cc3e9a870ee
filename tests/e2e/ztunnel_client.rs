//! A real ztunnel follows the control plane on the second node; on the first one is an agent.

use std::net::SocketAddrV4;

use serde_json::{Value, json};
use weir_e2e::{
    cluster::{Cluster, Member},
    direct::at,
    identity, run, serve,
    ztunnel::{self, ACCOUNT, AUDIENCE, Ztunnel},
};
use weir_lab::{PATIENCE, Pod, Process, poll};
use weir_types::{FlowEvent, FlowPath, TrafficDirection};

/// It renews certificates at half of the time between their two dates, of which the first lies two minutes back for the sake of
/// clocks: five seconds from now.
const RENEWS_AT_ONCE: (&str, &str) = ("SECRET_TTL", "130s");

/// A cluster with an agent on the first node, which lets ztunnel in on the second.
fn cluster(name: &str) -> Cluster {
    let trusted = format!("{}/{}", ACCOUNT.0, ACCOUNT.1);
    let arguments = ["--trusted-node-account", &trusted];
    let audiences = ["--audience", "weir", "--audience", AUDIENCE];
    let arguments = [&arguments[..], &audiences].concat();
    let cluster = Cluster::with_agents_on(&["node1"], name, &arguments, |_| {});
    cluster.namespace(ACCOUNT.0, None);
    cluster.daemon_set(ACCOUNT.0, ACCOUNT.1);
    cluster
}

/// A pod of the second node. That it is enrolled there is said by whoever leads its connections to ztunnel.
fn enrolled(cluster: &mut Cluster, name: &str) -> Member {
    let annotations = json!({ "metadata": { "annotations": { "weir.dev/enrolled": "true" } } });
    cluster.pod_with("node2", "shop", name, annotations)
}

fn echo(pod: &Member) -> Process {
    serve(pod, ["echo-server", "--port", "7000", "--dual-stack"]).0
}

/// What comes back from a pod by way of the agent of the one that asks.
fn asks(pod: &Pod, to: &Pod) -> String {
    let to = at(to.v4(), 7000);
    let arguments = [
        "connect",
        &to,
        "--send",
        "x",
        "--read",
        "1",
        "--timeout-ms",
        "3000",
    ];
    let line = run(pod, arguments).json().unwrap();
    line["text"].as_str().unwrap_or_default().to_owned()
}

fn wait_answer(pod: &Pod, to: &Pod, wanted: &str) {
    poll("the answer", PATIENCE, || {
        Ok((asks(pod, to) == wanted).then_some(()))
    })
    .unwrap();
}

/// What comes back by way of the ztunnel of the one that asks.
fn asks_by_ztunnel(pod: &Pod, to: &Pod) -> Vec<u8> {
    ztunnel::asks(pod, SocketAddrV4::new(to.v4(), 7000))
}

/// An entry of a list in what ztunnel knows.
fn entry<'a>(dump: &'a Value, list: &str, key: &str, value: &str) -> Option<&'a Value> {
    dump[list].as_array()?.iter().find(|entry| entry[key] == value)
}

fn workload<'a>(dump: &'a Value, name: &str) -> Option<&'a Value> {
    entry(dump, "workloads", "name", name)
}

/// The certificate that it asked for, or what became of that.
fn certificate(dump: &Value, account: &str) -> Option<Value> {
    let name = identity(account).unwrap().to_string();
    let certificate = entry(dump, "certificates", "identity", &name)?;
    (certificate["state"] != "Initializing").then(|| certificate.clone())
}

/// That a connection between these came by mutual TLS, as the agent saw it that took it or opened it.
fn wait_tunnel(cluster: &Cluster, agents: &Member, direction: TrafficDirection, peer: &str) {
    let what = format!("a tunnel with {peer}");
    let flow = cluster.agent(agents).wait_flow(&what, |flow| {
        let end = match direction {
            TrafficDirection::Egress => &flow.destination,
            TrafficDirection::Ingress => &flow.source,
        };
        flow.event == FlowEvent::Close && flow.direction == direction && end.pod.as_deref() == Some(peer)
    });
    let flow = flow.unwrap();
    assert_eq!(flow.path, FlowPath::Tunnel, "{flow:?}");
    let end = match direction {
        TrafficDirection::Egress => flow.destination,
        TrafficDirection::Ingress => flow.source,
    };
    assert_eq!(end.identity, identity(peer));
}

#[test]
fn ztunnel_knows_what_is_in_the_mesh_what_changes_and_what_goes_also_after_a_restart() {
    let Some(program) = ztunnel::program() else {
        return;
    };
    let mut cluster = cluster("ztstate");
    let a = cluster.pod("node1", "shop", "a");
    let c = enrolled(&mut cluster, "c");
    cluster.service("shop", "api", [10, 96, 0, 10].into(), (80, 7000), &[&a, &c]);
    cluster.wait_enrolled(&[&a]);
    let ztunnel = Ztunnel::start(&cluster, &program, "node2", &[]);
    let dump = ztunnel.wait(&cluster, "all there is", |dump| {
        let service = entry(dump, "services", "name", "api")?;
        (service["endpoints"].as_object()?.len() == 2).then(|| dump.clone())
    });
    for (name, pod, node) in [("a", &a, "node1"), ("c", &c, "node2")] {
        let said = workload(&dump, name).unwrap();
        let addresses = json!([pod.v4(), pod.v6()]);
        for (key, value) in [
            ("namespace", json!("shop")),
            ("serviceAccount", json!(name)),
            ("node", json!(node)),
            ("protocol", json!("HBONE")),
            ("workloadIps", addresses),
        ] {
            assert_eq!(said[key], value, "{key}: {said}");
        }
    }
    let service = entry(&dump, "services", "name", "api").unwrap();
    assert_eq!(service["hostname"], "api.shop.svc.cluster.local", "{service}");
    assert_eq!(service["vips"], json!(["/10.96.0.10"]), "{service}");
    assert_eq!(service["ports"], json!({ "80": 7000 }), "{service}");
    assert_eq!(dump["policies"], json!([]));

    let spec = json!({ "selector": { "matchLabels": { "app": "c" } }, "action": "DENY", "rules": [{}] });
    cluster.policy("AuthorizationPolicy", "shop", "nobody", &spec);
    let policy = ztunnel.wait(&cluster, "the policy at its workload", |dump| {
        let named = workload(dump, "c")?["authorizationPolicies"] == json!(["shop/nobody"]);
        entry(dump, "policies", "name", "nobody")
            .filter(|_| named)
            .cloned()
    });
    assert_eq!(
        (&policy["namespace"], &policy["action"], &policy["scope"]),
        (&json!("shop"), &json!("Deny"), &json!("WorkloadSelector")),
        "{policy}"
    );
    cluster.remove_policy("AuthorizationPolicy", "shop", "nobody");
    ztunnel.wait(&cluster, "the policy to go", |dump| {
        (dump["policies"] == json!([])).then_some(())
    });
    // What ztunnel knows of a PeerAuthentication is a policy too.
    let strict = json!({ "mtls": { "mode": "STRICT" } });
    cluster.policy("PeerAuthentication", "shop", "default", &strict);
    let name = "converted_peer_authentication_default";
    let policy = ztunnel.wait(&cluster, "its pod to be strict", |dump| {
        let named = workload(dump, "c")?["authorizationPolicies"] == json!([format!("shop/{name}")]);
        entry(dump, "policies", "name", name).filter(|_| named).cloned()
    });
    let plaintext = json!([[[{ "notPrincipals": [{ "Presence": [] }] }]]]);
    assert_eq!(
        (&policy["action"], &policy["rules"]),
        (&json!("Deny"), &plaintext),
        "{policy}"
    );

    let d = enrolled(&mut cluster, "d");
    ztunnel.wait(&cluster, "a new pod", |dump| workload(dump, "d").map(drop));
    cluster.stop_control();
    cluster.remove_pod(&d);
    let _e = enrolled(&mut cluster, "e");
    cluster.start_control();
    let dump = ztunnel.wait(&cluster, "what happened meanwhile", |dump| {
        (workload(dump, "e").is_some() && workload(dump, "d").is_none()).then(|| dump.clone())
    });
    assert!(workload(&dump, "c").is_some(), "{dump:#}");
    // The last one by the control plane that started again.
    for name in ["c", "e"] {
        let found = ztunnel.wait(&cluster, "a certificate", |dump| certificate(dump, name));
        assert_eq!(found["state"], "Available", "{found}");
        let length = |list: &str| found[list].as_array().map(Vec::len);
        assert_eq!(
            (length("certChain"), length("rootCerts")),
            (Some(1), Some(1)),
            "{found}"
        );
    }
    // Nobody asks for those of another node's pods.
    assert_eq!(certificate(&ztunnel.dump(&cluster), "a"), None);
    // It rejected nothing of all that.
    let nacks = cluster.control_metric("weir_ads_nacks_total");
    assert!(nacks.abs() < f64::EPSILON, "{nacks}: {}", ztunnel.log());
}

#[test]
fn a_ztunnel_that_says_it_is_on_another_node_gets_no_certificates_of_that_one() {
    let Some(program) = ztunnel::program() else {
        return;
    };
    let mut cluster = cluster("ztcert");
    let a = cluster.pod("node1", "shop", "a");
    cluster.wait_enrolled(&[&a]);
    // It asks for certificates of all pods of the node that it takes for its own.
    let ztunnel = Ztunnel::start(&cluster, &program, "node2", &[("NODE_NAME", "node1")]);
    let refused = ztunnel.wait(&cluster, "a refusal", |dump| certificate(dump, "a"));
    let state = refused["state"].as_str().unwrap();
    assert!(state.starts_with("Unavailable"), "{refused}");
    assert_eq!(refused["certChain"], json!([]), "{refused}");
    let log = std::fs::read_to_string(cluster.control_log()).unwrap();
    let a = identity("a").unwrap().to_string();
    let mut refusals = log
        .lines()
        .filter(|line| line.contains("a certificate is refused"));
    assert!(
        refusals.any(|line| line.contains(&a) && line.contains("node node2")),
        "{log}"
    );
}

#[test]
fn a_pod_of_ztunnel_and_one_of_an_agent_talk_over_mutual_tls_and_ztunnel_enforces_our_policies() {
    let Some(program) = ztunnel::program() else {
        return;
    };
    let mut cluster = cluster("zttalk");
    let [a, b] = ["a", "b"].map(|name| cluster.pod("node1", "shop", name));
    let c = enrolled(&mut cluster, "c");
    cluster.wait_enrolled(&[&a, &b]);
    let ztunnel = Ztunnel::start(&cluster, &program, "node2", &[RENEWS_AT_ONCE]);
    ztunnel.add(&c, "c");
    let _servers = [echo(&a), echo(&c)];
    assert_eq!(asks(&a, &c), "x", "{}", ztunnel.log());
    wait_tunnel(&cluster, &a, TrafficDirection::Egress, "c");
    assert_eq!(asks_by_ztunnel(&c, &a), b"x", "{}", ztunnel.log());
    wait_tunnel(&cluster, &a, TrafficDirection::Ingress, "c");
    let serial = |dump: &Value| Some(certificate(dump, "c")?["certChain"][0]["serialNumber"].clone());
    let before = serial(&ztunnel.dump(&cluster)).unwrap();
    ztunnel.wait(&cluster, "another certificate", |dump| {
        (serial(dump)? != before).then_some(())
    });
    assert_eq!(asks(&a, &c), "x", "{}", ztunnel.log());

    let spec = json!({
        "selector": { "matchLabels": { "app": "c" } },
        "rules": [{ "from": [{ "source": { "principals": ["cluster.local/ns/shop/sa/a"] } }] }],
    });
    cluster.policy("AuthorizationPolicy", "shop", "only-a", &spec);
    wait_answer(&b, &c, "");
    assert_eq!(asks(&a, &c), "x", "{}", ztunnel.log());
    cluster.remove_policy("AuthorizationPolicy", "shop", "only-a");
    wait_answer(&b, &c, "x");
}
