//! What a wrong configuration file is told: one error, with file, line, field and what was expected.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is its result")]

use weir_agent::config;

const GOOD: &str = "\
node: n1
trustDomain: cluster.local
ca: { dir: /ca }
pods:
- { uid: w1, namespace: a, serviceAccount: x, netns: /run/netns/w1 }
workloads:
- { uid: w1, namespace: a, serviceAccount: x, addresses: [10.0.0.1], node: n1 }
- { uid: w2, namespace: a, serviceAccount: y, addresses: [10.0.0.2], node: n2 }
services:
- name: s
  namespace: a
  addresses: [10.96.0.1]
  ports: [{ port: 80 }]
  endpoints:
  - { workload: w1 }
";

#[test]
fn a_right_file_is_accepted() {
    config::parse("weir.yaml".as_ref(), GOOD).unwrap();
}

#[test]
fn a_wrong_file_is_told_where_and_what_was_expected() {
    // replaced, by, line, field, in the message
    let table = [
        ("node: n1\n", "node: 7: 8\n", 1, "", ""),
        ("node: n1\n", "", 0, "node", "the node's name, here or by --node"),
        ("node: n1\n", "nodes: n1\n", 1, "nodes", "unknown field"),
        (
            "trustDomain: cluster.local",
            "trustDomain: Cluster",
            2,
            "trustDomain",
            "a trust domain is",
        ),
        (
            "ca: { dir: /ca }",
            "ca: {}",
            3,
            "ca",
            "expected 'dir', or 'certificate' and 'key'",
        ),
        ("ca: { dir: /ca }", "ca: { certificate: /c }", 3, "ca", "both"),
        (
            "ca: { dir: /ca }",
            "ca: { dir: /ca }\ncertificates: { lifetime: 1s }",
            4,
            "certificates.lifetime",
            "10s to 7d",
        ),
        (
            "ca: { dir: /ca }",
            "ca: { dir: /ca }\ncertificates: { lifetime: soon }",
            4,
            "certificates.lifetime",
            "24h",
        ),
        (
            "ca: { dir: /ca }",
            "ca: { dir: /ca }\npeerAuthentications: [{ name: p, namespace: a, mtls: { mode: LAX } }]",
            4,
            "peerAuthentications[0].mtls.mode",
            "STRICT",
        ),
        (
            "ca: { dir: /ca }",
            "ca: { dir: /ca }\nmtls: { mode: STRICT }",
            4,
            "mtls",
            "unknown field",
        ),
        (
            "ca: { dir: /ca }",
            "ca: { dir: /ca }\nauthorizationPolicies:\n- { name: p, namespace: a }\n- { name: p, namespace: a }",
            6,
            "authorizationPolicies[1].name",
            "'a/p' stands above",
        ),
        (
            "ca: { dir: /ca }",
            "ca: { dir: /ca }\nauthorizationPolicies: [{ name: p, namespace: a, action: AUDIT }]",
            4,
            "authorizationPolicies[0].action",
            "ALLOW or DENY",
        ),
        (
            "ca: { dir: /ca }",
            "ca: { dir: /ca }\nauthorizationPolicies:\n- { name: p, namespace: a, rules: [{ to: [{ operation: { ports: [http] } }] }] }",
            5,
            "authorizationPolicies[0].rules[0].to[0].operation.ports[0]",
            "1 to 65535",
        ),
        (
            "ca: { dir: /ca }",
            "ca: { dir: /ca }\nauthorizationPolicies: [{ name: p, namespace: a, targetRefs: [] }]",
            4,
            "targetRefs",
            "unknown field",
        ),
        (
            "ca: { dir: /ca }",
            "ca: { dir: /ca }\npeerAuthentications: [{ name: p, namespace: a, portLevelMtls: { 80: { mode: STRICT } } }]",
            4,
            "peerAuthentications[0].portLevelMtls",
            "selector",
        ),
        (
            "ca: { dir: /ca }",
            "ca: { dir: /ca }\nsameNode: { workloads: { nobody: direct } }",
            4,
            "sameNode.workloads.nobody",
            "the uid of a workload",
        ),
        (
            "ca: { dir: /ca }",
            "ca: { dir: /ca }\nverdictLease: 1s",
            4,
            "verdictLease",
            "5s to 1h",
        ),
        (
            "ca: { dir: /ca }",
            "ca: { dir: /ca }\napi: { address: \"0.0.0.0:1\" }",
            0,
            "api.address",
            "expected an address on loopback",
        ),
        (
            "ca: { dir: /ca }",
            "ca: { dir: /ca }\nkubeletCgroup: kubelet",
            4,
            "kubeletCgroup",
            "expected 'auto' or an absolute path",
        ),
        (
            "uid: w1, namespace: a, serviceAccount: x, netns",
            "uid: w9, namespace: a, serviceAccount: x, netns",
            5,
            "pods[0].uid",
            "'w9'",
        ),
        (
            "namespace: a, serviceAccount: x, netns",
            "namespace: b, serviceAccount: x, netns",
            5,
            "pods[0].namespace",
            "'a'",
        ),
        (
            "uid: w1, namespace: a, serviceAccount: x, netns",
            "uid: w2, namespace: a, serviceAccount: y, netns",
            5,
            "pods[0].uid",
            "of node 'n1'",
        ),
        (
            "addresses: [10.0.0.2]",
            "addresses: [10.0.0.1]",
            8,
            "workloads[1].addresses",
            "10.0.0.1 is also w1's",
        ),
        (
            "addresses: [10.0.0.2]",
            "addresses: [10.0.0]",
            8,
            "workloads[1].addresses",
            "IP address",
        ),
        (
            "addresses: [10.0.0.2]",
            "addresses: []",
            8,
            "workloads[1].addresses",
            "at least one",
        ),
        (
            "addresses: [10.0.0.2]",
            "addresses: [127.0.0.1]",
            8,
            "workloads[1].addresses",
            "unicast",
        ),
        ("uid: w2", "uid: w1", 8, "workloads[1].uid", "stands above"),
        (
            "serviceAccount: y",
            "serviceAccount: Y",
            8,
            "workloads[1].namespace, serviceAccount",
            "service account",
        ),
        ("port: 80", "port: 0", 13, "services[0].ports[0].port", "nonzero"),
        ("port: 80", "port: 70000", 13, "services[0].ports[0].port", "u16"),
        (
            "{ workload: w1 }",
            "{ workload: w9 }",
            15,
            "services[0].endpoints[0]",
            "'w9'",
        ),
        (
            "{ workload: w1 }",
            "{ }",
            15,
            "services[0].endpoints[0]",
            "either 'workload' or 'address'",
        ),
        (
            "addresses: [10.96.0.1]",
            "addresses: [10.0.0.1]",
            10,
            "services[0].addresses",
            "10.0.0.1",
        ),
    ];
    for (old, new, line, field, message) in table {
        assert!(GOOD.contains(old), "{old}");
        let text = GOOD.replacen(old, new, 1);
        let error = config::parse("weir.yaml".as_ref(), &text)
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with(&format!("weir.yaml:{line}:")),
            "{new}: line {line} in: {error}"
        );
        assert!(
            error.contains(field) && error.contains(message),
            "{new}: {field}, {message} in: {error}"
        );
        assert!(!error.contains('\n'), "one line: {error}");
    }
}

#[test]
fn the_schema_names_every_top_level_field() {
    let schema = config::schema();
    for field in [
        "node",
        "trustDomain",
        "ca",
        "rootNamespace",
        "authorizationPolicies",
        "peerAuthentications",
        "sameNode",
        "verdictLease",
        "kubeletCgroup",
        "pods",
        "workloads",
        "services",
        "flows",
        "metrics",
        "api",
    ] {
        assert!(schema["properties"][field].is_object(), "{field} in {schema:#}");
    }
    assert_eq!(schema["additionalProperties"], false);
}

#[test]
fn the_schema_and_the_reference_in_docs_are_those_of_the_types() {
    let docs = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    let stored = std::fs::read_to_string(docs.join("agent.schema.json")).unwrap();
    let stored: serde_json::Value = serde_json::from_str(&stored).unwrap();
    assert_eq!(
        stored,
        config::schema(),
        "run: weir-agent --schema > docs/agent.schema.json"
    );
    let reference = std::fs::read_to_string(docs.join("configuration.md")).unwrap();
    let definitions = config::schema()["$defs"].clone();
    let types = definitions.as_object().unwrap().values().chain([&stored]);
    for field in types
        .filter_map(|t| t["properties"].as_object())
        .flat_map(|fields| fields.keys())
    {
        assert!(
            reference.contains(field.as_str()),
            "docs/configuration.md lacks '{field}'"
        );
    }
}
