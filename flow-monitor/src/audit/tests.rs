//! Reports of clusters that are made up.

use serde_json::{Value, json};
use weir_types::Flow;

use super::{
    Output,
    connections::{Connections, Records, Way},
    report::{Agent, Collected, Missing, Report},
    span, written,
};

const START: &str = "2026-01-01T00:00:00Z";

fn of<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

/// `shop/web` is somebody with an identity, `shop/web-0 -` a pod without, an address nobody that is known.
fn end(who: &str, port: u16) -> Value {
    if let Some(pod) = who.strip_suffix(" -") {
        let (namespace, pod) = pod.split_once('/').unwrap();
        return json!({"address": format!("10.0.0.9:{port}"), "namespace": namespace, "pod": pod});
    }
    match who.split_once('/') {
        Some((namespace, account)) => json!({
            "address": format!("10.0.0.1:{port}"), "namespace": namespace, "pod": format!("{account}-0"),
            "identity": format!("spiffe://cluster.local/ns/{namespace}/sa/{account}"),
        }),
        None => json!({"address": format!("{who}:{port}")}),
    }
}

/// A record at a minute.
fn flow(connection: u64, minute: u32, kind: &str, from: &str, to: &str, more: &Value) -> Flow {
    let (event, direction, path) = match kind.split(' ').collect::<Vec<_>>()[..] {
        [event, direction, path] => (event, direction, path),
        _ => panic!("{kind}"),
    };
    let mut flow = json!({
        "sequence": 1, "time": format!("2026-01-02T00:{minute:02}:00Z"), "node": "a", "connection": connection, "event": event,
        "verdict": "forwarded", "reason": "none", "direction": direction, "path": path, "source": end(from, 4000),
        "destination": end(to, 8080), "bytesSent": 100, "bytesReceived": 900, "durationUs": 1,
    });
    for (field, value) in more.as_object().unwrap() {
        flow[field] = value.clone();
    }
    of(flow)
}

fn connections(since: &str) -> Connections {
    Connections {
        since: since.parse().unwrap(),
        ..Connections::default()
    }
}

#[test]
fn a_connection_that_two_nodes_recorded_in_several_records_counts_once() {
    let tls = json!({"tls": "TLSv1.3 TLS_AES_128_GCM_SHA256", "service": "shop/api"});
    let none = json!({});
    let (web, api) = ("shop/web", "shop/api");
    let client = [
        // Opened before the oldest record.
        flow(1, 1, "close egress tunnel", web, api, &tls),
        flow(2, 2, "open egress tunnel", web, api, &tls),
        flow(2, 3, "close egress tunnel", web, api, &tls),
        flow(3, 4, "open egress tunnel", web, api, &tls),
    ];
    let server = [
        flow(7, 2, "open ingress tunnel", web, api, &none),
        flow(7, 3, "close ingress tunnel", web, api, &none),
        flow(8, 4, "open ingress tunnel", web, api, &none),
    ];
    let mut connections = connections("2026-01-02T00:00:00Z");
    for flows in [&client[..], &server] {
        let mut records = Records::default();
        flows.iter().for_each(|flow| connections.add(&mut records, flow));
        assert_eq!(records.count, flows.len() as u64);
        assert_eq!(records.oldest, Some(flows[0].time));
    }
    let (key, sums) = connections.made.first_key_value().unwrap();
    assert_eq!(
        connections.made.len(),
        1,
        "the service is not what tells them apart"
    );
    assert_eq!((key.way, sums.count(), sums.bytes()), (Way::MutualTls, 3, 2000));
    assert_eq!(sums.first, Some(client[0].time));
    assert_eq!(sums.last, Some(client[3].time));
    assert!(sums.tls.contains("TLSv1.3 TLS_AES_128_GCM_SHA256") && sums.services.contains("shop/api"));
}

#[test]
fn how_bytes_travelled_is_told_apart() {
    let none = json!({});
    let refused =
        json!({"verdict": "denied", "reason": "policy_denied", "policy": {"policy": "shop/deny", "rule": 1}});
    let failed = json!({"verdict": "failed", "reason": "connection_refused"});
    let rehearsed = json!({"dryRun": {"policy": "shop/soon"}});
    let mut connections = connections("2026-01-02T00:01:00Z");
    connections
        .observed
        .insert(("shop".to_owned(), "seen".to_owned()));
    let mut records = Records::default();
    for flow in [
        flow(1, 0, "open egress plaintext", "shop/web", "8.8.8.8", &none),
        flow(2, 1, "open egress direct", "shop/web", "shop/api", &none),
        flow(3, 1, "open ingress plaintext", "1.2.3.4", "shop/api", &rehearsed),
        flow(4, 1, "close ingress kernel", "1.2.3.4", "shop/api", &none),
        flow(5, 1, "open egress kernel", "shop/seen -", "8.8.8.8", &none),
        flow(6, 1, "refused ingress nowhere", "shop/job", "shop/api", &refused),
        flow(7, 1, "refused egress tunnel", "shop/job", "shop/api", &failed),
        flow(8, 2, "close ingress tunnel", "shop/job", "shop/api", &refused),
    ] {
        connections.add(&mut records, &flow);
    }
    let made: Vec<(Way, u64)> = connections
        .made
        .iter()
        .map(|(key, sums)| (key.way, sums.count()))
        .collect();
    let expected = [
        (Way::Plaintext, 2),
        (Way::PlaintextObserved, 1),
        (Way::SameNode, 1),
        (Way::MutualTls, 1),
    ];
    assert_eq!(made, expected, "the first was before the time");
    assert_eq!(connections.failed, 1);
    assert_eq!(connections.would_be_denied["shop/soon"], 1);
    let (key, sums) = connections.denied.first_key_value().unwrap();
    assert_eq!(
        (key.policy.as_deref(), sums.count()),
        (Some("shop/deny rule 1"), 2)
    );
    assert_eq!(records.count, 8);
}

#[test]
fn one_namespace_is_that_of_either_end() {
    let mut connections = connections(START);
    connections.namespaces = vec!["shop".to_owned()];
    let mut records = Records::default();
    for (number, (from, to)) in [
        ("shop/web", "a/b"),
        ("a/b", "shop/web"),
        ("a/b", "a/c"),
        ("1.2.3.4", "a/b"),
    ]
    .into_iter()
    .enumerate()
    {
        let flow = flow(number as u64, 1, "open egress tunnel", from, to, &json!({}));
        connections.add(&mut records, &flow);
    }
    assert_eq!((connections.made.len(), records.count), (2, 4));
}

fn status(node: &str, more: &Value) -> weir_types::api::Status {
    let mut status = json!({
        "node": node, "version": "0.1.0", "trustDomain": "cluster.local", "started": START, "ready": true,
        "config": {"file": "f", "generation": 1, "applied": START}, "tunnels": [], "refusals": [], "programs": [],
        "pods": [{
            "uid": "u", "namespace": "shop", "name": "web-0", "identity": "spiffe://cluster.local/ns/shop/sa/web", "addresses": [],
            "enrolled": true, "mode": "PERMISSIVE", "sameNode": "direct", "policies": 1, "connections": 0,
        }],
        "certificates": [{
            "identity": "spiffe://cluster.local/ns/shop/sa/web", "serial": "01", "notBefore": START, "notAfter": "2026-01-02T12:00:00Z",
            "renewAt": START, "problem": "the control plane is away",
        }],
        "roots": [{"subject": "CN=weir", "fingerprint": "ab12", "notAfter": "2036-01-01T00:00:00Z"}],
        "flowsRecorded": 4, "flowsLost": 0, "kernelConnections": 1, "warnings": [], "errors": [],
    });
    for (field, value) in more.as_object().unwrap() {
        status[field] = value.clone();
    }
    of(status)
}

fn collected() -> Collected {
    let mut connections = connections("2026-01-01T12:00:00Z");
    let mut records = Records::default();
    let tls = json!({"tls": "TLSv1.3 TLS_AES_256_GCM_SHA384", "service": "shop/api"});
    let refused = json!({"verdict": "denied", "reason": "not_allowed", "policy": {"policy": "shop/api"}});
    for flow in [
        flow(1, 1, "open egress tunnel", "shop/web", "shop/api", &tls),
        flow(1, 9, "close egress tunnel", "shop/web", "shop/api", &tls),
        flow(
            2,
            2,
            "open ingress plaintext",
            "old/cron|job<b> -",
            "shop/api",
            &json!({}),
        ),
        flow(3, 3, "refused ingress nowhere", "shop/job", "shop/api", &refused),
    ] {
        connections.add(&mut records, &flow);
    }
    let namespace = |name: &str, mesh: &str| {
        let value = json!({"metadata": {"name": name, "labels": {"weir.dev/mesh": mesh}}});
        (name.to_owned(), of(value))
    };
    let pod = |name: &str, namespace: &str, annotations: Value| {
        of(json!({"metadata": {"name": name, "namespace": namespace, "annotations": annotations}}))
    };
    let policy = json!({
        "apiVersion": "weir.dev/v1alpha1", "kind": "AuthorizationPolicy", "metadata": {"name": "api", "namespace": "shop"},
        "spec": {"dryRun": true}, "status": {"bound": 2, "conditions": [{"type": "Accepted", "status": "False", "message": "rules[0]: no"}]},
    });
    Collected {
        cluster: "production".to_owned(),
        root: "weir-system".to_owned(),
        api_server: "v1.34.0".to_owned(),
        now: "2026-01-02T00:30:00Z".parse().unwrap(),
        control_plane: Some(("weir/weir-control:0.1.0".to_owned(), 2)),
        kernels: [("a", "6.8.0"), ("b", "6.1.0")]
            .map(|(node, kernel)| (node.to_owned(), kernel.to_owned()))
            .into(),
        namespaces: [namespace("shop", "enabled"), namespace("old", "observe")].into(),
        pods: vec![
            pod("web-0", "shop", json!({"weir.dev/enrolled": "true"})),
            pod("db-0", "shop", json!({"weir.dev/not-enrolled": "hostNetwork"})),
            pod("off", "shop", json!({"weir.dev/mesh": "disabled"})),
            pod("cron", "old", json!({})),
        ],
        policies: vec![of(policy)],
        agents: vec![
            Agent {
                node: "a".to_owned(),
                status: status("a", &json!({})),
                records: records.count,
                oldest: records.oldest,
                lost: 0,
            },
            // Its ring is full.
            Agent {
                node: "b".to_owned(),
                status: status("b", &json!({"flowsRecorded": 99, "pods": [], "certificates": []})),
                records: 16,
                oldest: Some("2026-01-02T00:05:00Z".parse().unwrap()),
                lost: 3,
            },
        ],
        connections,
        missing: Vec::new(),
    }
}

#[test]
fn the_report_says_what_is_in_the_mesh_and_what_is_an_exception() {
    let report = Report::of(&collected());
    let (value, _) = report.json().unwrap();
    for (pointer, expected) in [
        ("/complete", json!(true)),
        ("/versions/agents", json!({"0.1.0": ["a", "b"]})),
        ("/versions/kernels", json!({"6.8.0": ["a"], "6.1.0": ["b"]})),
        ("/records/0/from", json!(START)),
        ("/records/0/whole", json!(true)),
        ("/records/1/from", json!("2026-01-02T00:05:00Z")),
        ("/records/1/whole", json!(false)),
        ("/records/1/lost", json!(3)),
        ("/enrolment/1/enrolled", json!(["web-0"])),
        ("/enrolment/1/wanted", json!({"db-0": "hostNetwork"})),
        ("/enrolment/0/observed", json!(["cron"])),
        ("/identities", json!(["spiffe://cluster.local/ns/shop/sa/web"])),
        ("/totals/mutualTls", json!(1)),
        ("/totals/plaintext", json!(1)),
        ("/totals/denied", json!(1)),
        ("/connections/0/way", json!("plaintext")),
        ("/connections/1/tls", json!(["TLSv1.3 TLS_AES_256_GCM_SHA384"])),
        ("/connections/1/bytes", json!(1000)),
        ("/connections/1/last", json!("2026-01-02T00:09:00Z")),
        (
            "/exceptions/plaintext/0/source",
            json!("old/cron|job<b> (no identity)"),
        ),
        ("/exceptions/denied/0/policy", json!("shop/api")),
        ("/exceptions/permissive", json!({"shop": ["web-0"]})),
        ("/exceptions/switched", json!({"shop/off": "disabled"})),
        ("/exceptions/sameNode", json!({"direct": 1})),
        ("/certificates/count", json!(1)),
        ("/certificates/firstExpiry", json!("2026-01-02T12:00:00Z")),
        ("/roots/0/nodes", json!(2)),
        ("/policies/0/accepted", json!("no: rules[0]: no")),
        ("/policies/0/bound", json!(2)),
        ("/policies/0/dryRun", json!(true)),
    ] {
        assert_eq!(value.pointer(pointer), Some(&expected), "{pointer}");
    }
    assert!(report.certificates.problems[0].contains("the control plane is away"));
}

#[test]
fn what_could_not_be_asked_is_said_first() {
    let mut collected = collected();
    collected.missing = vec![Missing {
        what: "node c".to_owned(),
        why: "the agent said nothing for 15s".to_owned(),
    }];
    let report = Report::of(&collected);
    assert!(!report.complete);
    let text = written(&report, Output::Markdown).unwrap();
    println!("{text}");
    let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
    assert_eq!(lines[0], "# Encryption and access in production");
    assert!(lines[1].starts_with("**This evidence is incomplete.**"));
    assert_eq!(lines[2], "- node c: the agent said nothing for 15s");
    assert!(text.contains("**Not all of the time is covered** on b"));
    // What others named themselves is text of one cell.
    assert!(text.contains("| old/cron\\|job&lt;b> (no identity) |"));
    assert!(!text.contains("<b>"));
}

#[test]
fn equal_reports_have_one_sum_and_others_another() {
    let sum = |collected: &Collected| Report::of(collected).json().unwrap().1;
    let first = sum(&collected());
    assert_eq!(first, sum(&collected()));
    let mut other = collected();
    other.cluster = "staging".to_owned();
    assert_ne!(first, sum(&other));
    let text = written(&Report::of(&collected()), Output::Json).unwrap();
    let json: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["sha256"], first);
    let again = sha2::Digest::finalize(sha2::Digest::chain_update(
        <sha2::Sha256 as sha2::Digest>::new(),
        json["report"].to_string(),
    ));
    let again: String = again.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(again, first, "as whoever reads the file computes it");
}

#[test]
fn times_are_minutes_hours_or_days() {
    assert_eq!(span("24h").unwrap().as_secs(), 86_400);
    assert_eq!(span("7d").unwrap().as_secs(), 604_800);
    assert_eq!(span("90m").unwrap().as_secs(), 5400);
    for wrong in ["24", "", "h", "-1h", "1y"] {
        assert!(span(wrong).is_err(), "{wrong}");
    }
}
