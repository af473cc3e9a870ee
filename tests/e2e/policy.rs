//! What policies do to new connections: each row of the tables over each path, seen by the client and in the records.

mod stage;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use stage::{Family, Outcome, Row, Stage};
use weir_e2e::{Mesh, identity, run, serve};
use weir_lab::{
    PATIENCE, Spawn as _,
    config::{SameNodeMode, ServiceConfig},
};
use weir_types::{FlowEvent, FlowPath, FlowVerdict, Reason, TrafficDirection::Egress};

/// No ALLOW policy applies.
const FREE: Outcome = Outcome::of(Reason::None, "");
const ALLOWED: Outcome = by("shop/p rule 0");
const DENIED: Outcome = denied("shop/p rule 0");
const NOT_ALLOWED: Outcome = not_allowed("shop/p");

const fn by(policy: &'static str) -> Outcome {
    Outcome::of(Reason::None, policy)
}

const fn denied(policy: &'static str) -> Outcome {
    Outcome::of(Reason::PolicyDenied, policy)
}

const fn not_allowed(policy: &'static str) -> Outcome {
    Outcome::of(Reason::NotAllowed, policy)
}

/// A policy of the server's namespace.
fn policy(name: &str, action: &str, rules: Value) -> Value {
    json!({ "name": name, "namespace": "shop", "action": action, "rules": rules })
}

fn allow(rules: Value) -> Vec<Value> {
    vec![policy("p", "ALLOW", rules)]
}

fn deny(rules: Value) -> Vec<Value> {
    vec![policy("p", "DENY", rules)]
}

/// The same with one more field.
fn with(mut policy: Value, field: &str, value: Value) -> Value {
    policy[field] = value;
    policy
}

fn source(source: Value) -> Value {
    json!([{ "from": [{ "source": source }] }])
}

fn operation(operation: Value) -> Value {
    json!([{ "to": [{ "operation": operation }] }])
}

fn when(key: &str, field: &str, values: Value) -> Value {
    json!([{ "when": [{ "key": key, field: values }] }])
}

/// `name: policies => what becomes of connections of [web, job, a client in plaintext];`
macro_rules! rows {
    ($($name:literal: $policies:expr => $expected:expr;)*) => {
        [$(Row { name: $name, policies: $policies, expected: $expected, warns: false }),*]
    };
}

#[test]
fn a_source_is_matched_by_its_identity_and_plaintext_has_none() {
    let web = "cluster.local/ns/shop/sa/web";
    let all = |outcome| [outcome; 3];
    let rows = rows! {
        "principal": allow(source(json!({ "principals": [web] }))) => [ALLOWED, NOT_ALLOWED, NOT_ALLOWED];
        "principal as a URI": allow(source(json!({ "principals": ["spiffe://cluster.local/ns/shop/sa/web"] })))
            => [ALLOWED, NOT_ALLOWED, NOT_ALLOWED];
        "part of a principal": allow(source(json!({ "principals": ["cluster.local/ns/shop/sa/we"] })))
            => all(NOT_ALLOWED);
        "other trust domain": allow(source(json!({ "principals": ["elsewhere/ns/shop/sa/web"] })))
            => all(NOT_ALLOWED);
        "prefix": allow(source(json!({ "principals": ["cluster.local/ns/shop/*"] })))
            => [ALLOWED, NOT_ALLOWED, NOT_ALLOWED];
        "suffix": allow(source(json!({ "principals": ["*/sa/job"] }))) => [NOT_ALLOWED, ALLOWED, NOT_ALLOWED];
        "presence": allow(source(json!({ "principals": ["*"] }))) => [ALLOWED, ALLOWED, NOT_ALLOWED];
        "DENY principal": deny(source(json!({ "principals": [web] }))) => [DENIED, FREE, FREE];
        "notPrincipals alone": allow(source(json!({ "notPrincipals": [web] })))
            => [NOT_ALLOWED, ALLOWED, ALLOWED];
        "DENY notPrincipals": deny(source(json!({ "notPrincipals": [web] }))) => [FREE, DENIED, DENIED];
        "DENY without identity": deny(source(json!({ "notPrincipals": ["*"] }))) => [FREE, FREE, DENIED];
        "namespace": allow(source(json!({ "namespaces": ["batch"] }))) => [NOT_ALLOWED, ALLOWED, NOT_ALLOWED];
        "namespace by prefix": allow(source(json!({ "namespaces": ["ba*"] })))
            => [NOT_ALLOWED, ALLOWED, NOT_ALLOWED];
        "namespace by suffix": allow(source(json!({ "namespaces": ["*op"] })))
            => [ALLOWED, NOT_ALLOWED, NOT_ALLOWED];
        "any namespace": allow(source(json!({ "namespaces": ["*"] }))) => [ALLOWED, ALLOWED, NOT_ALLOWED];
        "notNamespaces alone": allow(source(json!({ "notNamespaces": ["batch"] })))
            => [ALLOWED, NOT_ALLOWED, ALLOWED];
        "DENY notNamespaces": deny(source(json!({ "notNamespaces": ["shop"] }))) => [FREE, DENIED, DENIED];
        "service account": allow(source(json!({ "serviceAccounts": ["batch/job"] })))
            => [NOT_ALLOWED, ALLOWED, NOT_ALLOWED];
        "service account of the policy's namespace": allow(source(json!({ "serviceAccounts": ["web", "job"] })))
            => [ALLOWED, NOT_ALLOWED, NOT_ALLOWED];
        "notServiceAccounts alone": allow(source(json!({ "notServiceAccounts": ["web"] })))
            => [NOT_ALLOWED, ALLOWED, ALLOWED];
        "fields of a source are AND-ed": allow(source(json!({ "namespaces": ["shop"], "notPrincipals": [web] })))
            => all(NOT_ALLOWED);
        "sources are OR-ed": allow(json!([{ "from": [
            { "source": { "principals": [web] } }, { "source": { "namespaces": ["batch"] } },
        ] }]))
            => [ALLOWED, ALLOWED, NOT_ALLOWED];
        "source.principal": allow(when("source.principal", "values", json!([web])))
            => [ALLOWED, NOT_ALLOWED, NOT_ALLOWED];
        "source.principal not": deny(when("source.principal", "notValues", json!([web])))
            => [FREE, DENIED, DENIED];
        "source.namespace": deny(when("source.namespace", "values", json!(["batch"])))
            => [FREE, DENIED, FREE];
        "source.serviceAccount": allow(when("source.serviceAccount", "values", json!(["shop/web"])))
            => [ALLOWED, NOT_ALLOWED, NOT_ALLOWED];
    };
    Stage::new("identity").play(Family::V4, &rows);
}

#[test]
fn a_connection_is_matched_by_its_ports_and_addresses_in_both_families() {
    let mut stage = Stage::new("address");
    let all = |outcome| [outcome; 3];
    for family in [Family::V4, Family::V6] {
        let [web, plain, others, everyone, server] = match family {
            Family::V4 => [
                ["10.1.0.2", "10.2.0.3/32"],
                ["10.1.0.4/31", "192.0.2.1"],
                ["fd00::/8", "192.0.2.0/24"],
                ["10.0.0.0/9", "192.0.2.1"],
                ["10.2.0.2", "192.0.2.1"],
            ],
            Family::V6 => [
                ["fd00:1::2", "fd00:2::3/128"],
                ["fd00:1::4/127", "2001:db8::1"],
                ["10.0.0.0/8", "2001:db8::/32"],
                ["fd00::/8", "2001:db8::1"],
                ["fd00:2::2", "2001:db8::1"],
            ],
        };
        let rows = rows! {
            "port": allow(operation(json!({ "ports": ["80", "7000"] }))) => all(ALLOWED);
            "other port": allow(operation(json!({ "ports": ["7001"] }))) => all(NOT_ALLOWED);
            "notPorts alone": allow(operation(json!({ "notPorts": ["7001"] }))) => all(ALLOWED);
            "notPorts of this port": allow(operation(json!({ "notPorts": ["7000"] }))) => all(NOT_ALLOWED);
            "DENY port": deny(operation(json!({ "ports": ["7000"] }))) => all(DENIED);
            "DENY notPorts": deny(operation(json!({ "notPorts": ["7001"] }))) => all(DENIED);
            "DENY notPorts of this port": deny(operation(json!({ "notPorts": ["7000"] }))) => all(FREE);
            "address": allow(source(json!({ "ipBlocks": web }))) => [ALLOWED, NOT_ALLOWED, NOT_ALLOWED];
            "addresses of others": allow(source(json!({ "ipBlocks": others }))) => all(NOT_ALLOWED);
            "all addresses": allow(source(json!({ "ipBlocks": everyone }))) => all(ALLOWED);
            "notIpBlocks alone": allow(source(json!({ "notIpBlocks": web })))
                => [NOT_ALLOWED, ALLOWED, ALLOWED];
            "DENY address": deny(source(json!({ "ipBlocks": plain }))) => [FREE, FREE, DENIED];
            "DENY notIpBlocks": deny(source(json!({ "notIpBlocks": plain }))) => [DENIED, DENIED, FREE];
            "source.ip": deny(when("source.ip", "values", json!(web))) => [DENIED, FREE, FREE];
            "source.ip not": allow(when("source.ip", "notValues", json!(web)))
                => [NOT_ALLOWED, ALLOWED, ALLOWED];
            "destination.ip": allow(when("destination.ip", "values", json!(server))) => all(ALLOWED);
            "destination.ip not": allow(when("destination.ip", "notValues", json!(server)))
                => all(NOT_ALLOWED);
            "destination.port": deny(when("destination.port", "values", json!(["7000"]))) => all(DENIED);
            "destination.port not": deny(when("destination.port", "notValues", json!(["7000"]))) => all(FREE);
            "from and to": deny(json!([{
                "from": [{ "source": { "namespaces": ["batch"] } }], "to": [{ "operation": { "ports": ["7000"] } }],
            }]))
                => [FREE, DENIED, FREE];
            "from and another to": deny(json!([{
                "from": [{ "source": { "namespaces": ["batch"] } }], "to": [{ "operation": { "ports": ["7001"] } }],
            }]))
                => all(FREE);
            "conditions are AND-ed": allow(json!([{ "when": [
                { "key": "source.ip", "values": web }, { "key": "source.namespace", "notValues": ["batch"] },
                { "key": "destination.port", "values": ["7000"] },
            ] }]))
                => [ALLOWED, NOT_ALLOWED, NOT_ALLOWED];
        };
        stage.play(family, &rows);
    }
}

#[test]
fn policies_are_combined_by_action_and_chosen_by_scope() {
    let all = |outcome| [outcome; 3];
    let everything = || json!([{}]);
    let web = || source(json!({ "namespaces": ["shop"] }));
    let job = || source(json!({ "namespaces": ["batch"] }));
    let of = |namespace: &str, policy: Value| with(policy, "namespace", json!(namespace));
    let selects =
        |app: &str, policy: Value| with(policy, "selector", json!({ "matchLabels": { "app": app } }));
    let root = |action: &str, rules: Value| of("weir-system", policy("m", action, rules));
    let no_rules = |action: &str| vec![json!({ "name": "p", "namespace": "shop", "action": action })];
    let rows = rows! {
        "no policy": vec![] => all(FREE);
        "ALLOW with no rules": allow(json!([])) => all(NOT_ALLOWED);
        "DENY with no rules": deny(json!([])) => all(FREE);
        "ALLOW without the field": no_rules("ALLOW") => all(NOT_ALLOWED);
        "DENY without the field": no_rules("DENY") => all(FREE);
        "ALLOW with an empty rule": allow(everything()) => all(ALLOWED);
        "DENY with an empty rule": deny(everything()) => all(DENIED);
        "the action is ALLOW unless set": vec![json!({ "name": "p", "namespace": "shop", "rules": web() })]
            => [ALLOWED, NOT_ALLOWED, NOT_ALLOWED];
        "the rule that matches is named": allow(json!([
            { "from": [{ "source": { "namespaces": ["nobody"] } }] },
            { "from": [{ "source": { "namespaces": ["batch"] } }] },
            { "from": [{ "source": { "namespaces": ["shop"] } }] },
        ]))
            => [by("shop/p rule 2"), by("shop/p rule 1"), NOT_ALLOWED];
        "DENY over ALLOW": vec![policy("q", "ALLOW", everything()), policy("p", "DENY", web())]
            => [DENIED, by("shop/q rule 0"), by("shop/q rule 0")];
        "DENY beside ALLOW": vec![policy("p", "ALLOW", web()), policy("q", "DENY", job())]
            => [ALLOWED, denied("shop/q rule 0"), NOT_ALLOWED];
        "one of several ALLOW": vec![policy("p", "ALLOW", web()), policy("q", "ALLOW", job())]
            => [ALLOWED, by("shop/q rule 0"), NOT_ALLOWED];
        "one of several DENY": vec![policy("p", "DENY", web()), policy("q", "DENY", job())]
            => [DENIED, denied("shop/q rule 0"), FREE];
        "selector that selects": vec![selects("server", policy("p", "DENY", everything()))] => all(DENIED);
        "empty selector": vec![with(policy("p", "DENY", everything()), "selector", json!({}))] => all(DENIED);
        "selector of others": vec![selects("other", policy("p", "DENY", everything()))] => all(FREE);
        "ALLOW for others": vec![selects("other", policy("p", "ALLOW", json!([])))] => all(FREE);
        "selector that wants more": vec![with(policy("p", "DENY", everything()), "selector",
            json!({ "matchLabels": { "app": "server", "tier": "db" } }))]
            => all(FREE);
        "other namespace": vec![of("batch", policy("p", "DENY", everything()))] => all(FREE);
        "other namespace with selector": vec![of("batch", selects("server", policy("p", "DENY", everything())))]
            => all(FREE);
        "mesh": vec![root("DENY", web())] => [denied("weir-system/m rule 0"), FREE, FREE];
        "mesh with selector": vec![selects("server", root("DENY", web()))]
            => [denied("weir-system/m rule 0"), FREE, FREE];
        "mesh with selector of others": vec![selects("other", root("DENY", web()))] => all(FREE);
        "ALLOW of each scope": vec![
            selects("server", policy("w", "ALLOW", json!([]))), policy("p", "ALLOW", web()), root("ALLOW", job()),
        ]
            => [ALLOWED, by("weir-system/m rule 0"), not_allowed("weir-system/m")];
        "DENY of each scope: the widest is named": vec![
            selects("server", policy("w", "DENY", everything())), policy("p", "DENY", web()), root("DENY", job()),
        ]
            => [DENIED, denied("weir-system/m rule 0"), denied("shop/w rule 0")];
        "DENY of the workload over ALLOW of the mesh": vec![
            root("ALLOW", everything()), selects("server", policy("w", "DENY", job())),
        ]
            => [by("weir-system/m rule 0"), denied("shop/w rule 0"), by("weir-system/m rule 0")];
        "no policy again": vec![] => all(FREE);
    };
    Stage::new("scope").play(Family::V4, &rows);
}

#[test]
fn what_layer_4_cannot_see_closes_and_is_warned_of() {
    let all = |outcome| [outcome; 3];
    let beside = json!([{
        "from": [{ "source": { "namespaces": ["shop"] } }], "to": [{ "operation": { "methods": ["GET"] } }],
    }]);
    let mut rows = rows! {
        "ALLOW methods": allow(operation(json!({ "methods": ["GET"] }))) => all(NOT_ALLOWED);
        "ALLOW notPaths": allow(operation(json!({ "notPaths": ["/admin"] }))) => all(NOT_ALLOWED);
        "ALLOW hosts beside ports": allow(operation(json!({ "hosts": ["a.example"], "ports": ["7000"] })))
            => all(NOT_ALLOWED);
        "ALLOW requestPrincipals": allow(source(json!({ "requestPrincipals": ["*"] }))) => all(NOT_ALLOWED);
        "ALLOW remoteIpBlocks": allow(source(json!({ "remoteIpBlocks": ["10.0.0.0/8"] })))
            => all(NOT_ALLOWED);
        "ALLOW request.headers": allow(when("request.headers[x]", "values", json!(["1"])))
            => all(NOT_ALLOWED);
        "ALLOW with a source beside": allow(beside.clone()) => all(NOT_ALLOWED);
        "ALLOW with another rule": allow(json!([
            { "to": [{ "operation": { "paths": ["/"] } }] }, { "from": [{ "source": { "namespaces": ["shop"] } }] },
        ]))
            => [by("shop/p rule 1"), NOT_ALLOWED, NOT_ALLOWED];
        "DENY methods": deny(operation(json!({ "methods": ["DELETE"] }))) => all(DENIED);
        "DENY notRequestPrincipals": deny(source(json!({ "notRequestPrincipals": ["*"] }))) => all(DENIED);
        "DENY request.auth": deny(when("request.auth.claims[a]", "notValues", json!(["b"]))) => all(DENIED);
        "DENY with a source beside": deny(beside) => [DENIED, FREE, FREE];
        "DENY hosts beside another port": deny(operation(json!({ "hosts": ["a.example"], "ports": ["7001"] })))
            => all(FREE);
        "nothing to warn of": deny(source(json!({ "namespaces": ["shop"] }))) => [DENIED, FREE, FREE];
    };
    let (last, others) = rows.split_last_mut().unwrap();
    others.iter_mut().for_each(|row| row.warns = true);
    let mut stage = Stage::new("layer7");
    stage.play(Family::V4, &others[..1]);
    let status = stage.command_line("status");
    let warning = "shop/p: rules[0].to[0].operation.methods: cannot be decided at L4";
    assert!(status.contains(warning), "{status}");
    stage.play(Family::V4, &others[1..]);
    stage.play(Family::V4, std::slice::from_ref(last));
    let status = stage.command_line("status");
    assert!(!status.contains("cannot be decided"), "{status}");
}

#[test]
fn a_dry_run_policy_lets_pass_and_records_what_it_would_refuse() {
    let all = |outcome| [outcome; 3];
    let dry =
        |name: &str, action: &str, rules: Value| with(policy(name, action, rules), "dryRun", json!(true));
    let web = || source(json!({ "namespaces": ["shop"] }));
    let would = |outcome: Outcome, policy| Outcome {
        dry_run: policy,
        ..outcome
    };
    let rows = rows! {
        "DENY": vec![dry("p", "DENY", web())] => [would(FREE, "shop/p rule 0"), FREE, FREE];
        "ALLOW": vec![dry("p", "ALLOW", web())] => [FREE, would(FREE, "shop/p"), would(FREE, "shop/p")];
        "ALLOW without rules": vec![dry("p", "ALLOW", json!([]))] => all(would(FREE, "shop/p"));
        "DENY of another namespace": vec![with(dry("p", "DENY", web()), "namespace", json!("batch"))]
            => all(FREE);
        "DENY beside ALLOW": vec![policy("p", "ALLOW", json!([{}])), dry("q", "DENY", web())]
            => [would(ALLOWED, "shop/q rule 0"), ALLOWED, ALLOWED];
        "DENY beside an ALLOW that does not match": vec![policy("p", "ALLOW", json!([])), dry("q", "DENY", web())]
            => all(NOT_ALLOWED);
        "DENY beside DENY": vec![policy("p", "DENY", web()), dry("q", "DENY", json!([{}]))]
            => [DENIED, would(FREE, "shop/q rule 0"), would(FREE, "shop/q rule 0")];
        "ALLOW beside ALLOW": vec![policy("p", "ALLOW", json!([{}])), dry("q", "ALLOW", web())]
            => all(ALLOWED);
        "ALLOW and DENY": vec![dry("p", "ALLOW", web()), dry("q", "DENY", web())]
            => [would(FREE, "shop/q rule 0"), would(FREE, "shop/p"), would(FREE, "shop/p")];
    };
    Stage::new("dryrun").play(Family::V4, &rows);
}

#[test]
fn what_the_kernel_refuses_fails_at_once_and_is_recorded_with_policy_and_process() {
    for mode in [SameNodeMode::Direct, SameNodeMode::Mtls] {
        let mesh = Mesh::with("kerneldeny", |config| {
            config.same_node(mode);
            let rules = json!([
                { "from": [{ "source": { "namespaces": ["batch"] } }] },
                { "from": [{ "source": { "serviceAccounts": ["a"] } }] },
            ]);
            config.authorization_policies.push(policy("p", "DENY", rules));
            let addresses = ["10.96.0.10".parse().unwrap(), "fd96::10".parse().unwrap()];
            let endpoints = ["shop-b".to_owned()];
            config.services.push(ServiceConfig::new(
                "shop",
                "api",
                addresses,
                (80, 7000),
                endpoints,
            ));
        });
        let (server, _) = serve(
            &mesh.b,
            ["echo-server", "--port", "7000", "--dual-stack", "--print-peer"],
        );
        // Where to, how else, and the service that the record names.
        let table = [
            (format!("{}:7000", mesh.b.v4()), "--read-all", None),
            (format!("[{}]:7000", mesh.b.v6()), "--read-all", None),
            (format!("{}:7000", mesh.b.v4()), "--mapped", None),
            (format!("{}:7000", mesh.b.v4()), "--non-blocking", None),
            ("10.96.0.10:80".to_owned(), "--read-all", Some("shop/api")),
            ("[fd96::10]:80".to_owned(), "--read-all", Some("shop/api")),
        ];
        for (to, option, service) in table {
            // What the kernel remembers may be of another row.
            let first = run(&mesh.a, ["connect", &to, "--read", "1"]).json().unwrap();
            let refused = [&first["connect"], &first["end"]];
            assert!(
                refused
                    .iter()
                    .any(|end| **end == "ECONNRESET" || **end == "ECONNREFUSED"),
                "{first}"
            );
            for _ in 0..2 {
                let began = Instant::now();
                let process = mesh.a.testapp(["connect", &to, option]).unwrap();
                let pid = process.pid();
                let line = process.wait(PATIENCE).unwrap().json().unwrap();
                assert_eq!(
                    (&line["connect"], &line["errno"]),
                    (&"ECONNREFUSED".into(), &111.into()),
                    "{to}: {line}"
                );
                // No packet was lost and sent again: that takes a second.
                assert!(
                    began.elapsed() < Duration::from_secs(1),
                    "{to}: {:?}",
                    began.elapsed()
                );
                let flow = mesh.flow_where(&mesh.a, Egress, FlowEvent::Refused, 7000, |flow| {
                    flow.process.as_ref().is_some_and(|process| process.pid == pid)
                });
                assert_eq!(
                    (flow.verdict, flow.reason, flow.path),
                    (FlowVerdict::Denied, Reason::PolicyDenied, FlowPath::Nowhere),
                    "{to}: {flow:?}"
                );
                assert_eq!(flow.policy.unwrap().to_string(), "shop/p rule 1", "{to}");
                assert_eq!(flow.process.unwrap().name, "weir-testapp", "{to}");
                assert_eq!(
                    (flow.source.identity, flow.destination.identity),
                    (identity("a"), identity("b")),
                    "{to}"
                );
                assert_eq!(flow.service.as_deref(), service, "{to}");
            }
        }
        assert!(
            !String::from_utf8_lossy(&server.stdout()).contains("accept"),
            "nobody reached the server"
        );
    }
}
