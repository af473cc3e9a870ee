//! What PeerAuthentications decide, and which of them.

use crate::support::{File, decide, policies, warnings, workload};
use weir_policy::{MtlsMode, Problem};

const IDENTITY: &str = "a/b 10.0.0.1 -> 10.0.0.2:";
const PLAINTEXT: &str = "plaintext 10.0.0.1 -> 10.0.0.2:";

/// Asks for plaintext to a port of a workload; an identity must always be allowed.
fn table(yaml: &str, rows: &[(&str, &str, u16, &str)]) {
    let policies = policies(&format!("peerAuthentications:\n{yaml}"));
    for (sentence, name, port, expected) in rows {
        let workload = workload(&policies, name);
        assert_eq!(
            decide(&workload, &format!("{PLAINTEXT}{port}")),
            *expected,
            "{sentence}\n{yaml}"
        );
        assert_eq!(
            decide(&workload, &format!("{IDENTITY}{port}")),
            "allowed",
            "{sentence}\n{yaml}"
        );
        let mode = workload.mtls().mode(*port);
        assert_eq!(
            mode == MtlsMode::Strict,
            *expected != "allowed",
            "{sentence}\n{yaml}"
        );
        let source = workload
            .mtls()
            .source_of(*port)
            .map(|source| format!("plaintext, {source}"));
        if *expected != "allowed" {
            assert_eq!(source.as_deref(), Some(*expected), "{sentence}");
        }
    }
}

#[test]
fn without_any_plaintext_is_accepted() {
    table(" []", &[("nothing is set", "shop/web", 80, "allowed")]);
    let none = policies("{}");
    let web = workload(&none, "shop/web");
    assert!(!web.mtls().is_strict_anywhere() && !web.mtls().is_strict_everywhere());
    assert_eq!(web.mtls().source(), None);
}

#[test]
fn workload_goes_over_namespace_and_namespace_over_mesh() {
    table(
        "
- { name: mesh, namespace: root, mtls: { mode: STRICT } }
- { name: bank, namespace: bank, mtls: { mode: PERMISSIVE } }
- { name: vault, namespace: bank, selector: { matchLabels: { app: vault } }, mtls: { mode: STRICT } }
- { name: lax, namespace: shop, selector: { matchLabels: { app: lax } }, mtls: { mode: DISABLE } }
",
        &[
            ("mesh", "shop/web", 80, "plaintext, root/mesh"),
            (
                "the root namespace is of the mesh",
                "root/web",
                80,
                "plaintext, root/mesh",
            ),
            ("namespace over mesh", "bank/web", 80, "allowed"),
            (
                "workload over namespace",
                "bank/vault",
                80,
                "plaintext, bank/vault",
            ),
            (
                "workload over mesh; DISABLE accepts plaintext",
                "shop/lax",
                80,
                "allowed",
            ),
            (
                "a selector is of its namespace",
                "shop/vault",
                80,
                "plaintext, root/mesh",
            ),
        ],
    );
}

#[test]
fn unset_is_inherited_from_the_next_wider_scope() {
    table(
        "
- { name: mesh, namespace: root, mtls: { mode: STRICT } }
- { name: unset, namespace: shop, mtls: { mode: UNSET } }
- { name: web, namespace: shop, selector: { matchLabels: { app: web } }, mtls: {} }
- { name: absent, namespace: bank, selector: { matchLabels: { app: web } } }
- { name: bank, namespace: bank, mtls: { mode: PERMISSIVE } }
",
        &[
            ("over two scopes", "shop/web", 80, "plaintext, root/mesh"),
            ("over one", "shop/db", 80, "plaintext, root/mesh"),
            ("absent, from the namespace", "bank/web", 80, "allowed"),
        ],
    );
    table(
        "- { name: mesh, namespace: root, mtls: { mode: UNSET } }",
        &[("nothing to inherit", "shop/web", 80, "allowed")],
    );
}

#[test]
fn ports_of_a_workload_go_over_its_mode() {
    let yaml = r#"
- { name: shop, namespace: shop, mtls: { mode: STRICT } }
- name: web
  namespace: shop
  selector: { matchLabels: { app: web } }
  portLevelMtls: { 8080: { mode: PERMISSIVE }, "8081": { mode: DISABLE }, 8082: { mode: STRICT }, 8083: { mode: UNSET } }
- name: lax
  namespace: shop
  selector: { matchLabels: { app: lax } }
  mtls: { mode: PERMISSIVE }
  portLevelMtls: { 443: { mode: STRICT }, 444: {} }
"#;
    table(
        yaml,
        &[
            ("PERMISSIVE port", "shop/web", 8080, "allowed"),
            ("DISABLE port", "shop/web", 8081, "allowed"),
            ("STRICT port", "shop/web", 8082, "plaintext, shop/web"),
            (
                "UNSET port: the namespace's",
                "shop/web",
                8083,
                "plaintext, shop/shop",
            ),
            (
                "other port: the namespace's",
                "shop/web",
                80,
                "plaintext, shop/shop",
            ),
            (
                "STRICT port of a PERMISSIVE workload",
                "shop/lax",
                443,
                "plaintext, shop/lax",
            ),
            ("UNSET port: the workload's", "shop/lax", 444, "allowed"),
            ("other port: the workload's", "shop/lax", 80, "allowed"),
            (
                "another workload has no such ports",
                "shop/db",
                8080,
                "plaintext, shop/shop",
            ),
        ],
    );
    let policies = policies(&format!("peerAuthentications:{yaml}"));
    let rows = [
        ("shop/web", false, true),
        ("shop/lax", false, true),
        ("shop/db", true, true),
        ("bank/db", false, false),
    ];
    for (name, everywhere, anywhere) in rows {
        let workload = workload(&policies, name);
        assert_eq!(workload.mtls().is_strict_everywhere(), everywhere, "{name}");
        assert_eq!(workload.mtls().is_strict_anywhere(), anywhere, "{name}");
    }
}

#[test]
fn the_first_of_a_scope_counts_and_the_others_are_warned_of() {
    let yaml = "
- { name: one, namespace: shop, mtls: { mode: UNSET } }
- { name: two, namespace: shop, mtls: { mode: STRICT } }
- { name: mesh, namespace: root, mtls: { mode: PERMISSIVE } }
- { name: mesh-2, namespace: root, selector: {}, mtls: { mode: STRICT } }
- { name: web, namespace: bank, selector: { matchLabels: { app: web } }, mtls: { mode: STRICT } }
- { name: web-2, namespace: bank, selector: { matchLabels: { app: web } }, mtls: { mode: PERMISSIVE }, portLevelMtls: { 80: { mode: DISABLE } } }
";
    table(
        yaml,
        &[
            (
                "an UNSET one is not filled by the next of its scope",
                "shop/web",
                80,
                "allowed",
            ),
            ("the first of the mesh", "till/web", 80, "allowed"),
            (
                "the first that selects the workload, with its ports",
                "bank/web",
                80,
                "plaintext, bank/web",
            ),
        ],
    );
    let policies = policies(&format!("peerAuthentications:{yaml}"));
    assert_eq!(
        warnings(policies.warnings()),
        [
            "bank/web-2: portLevelMtls.80.mode: DISABLE accepts plaintext, as PERMISSIVE; mutual TLS is accepted too",
            "shop/two: name: has no effect where shop/one applies, which comes first",
            "root/mesh-2: name: has no effect where root/mesh applies, which comes first",
        ]
    );
    assert_eq!(
        warnings(workload(&policies, "bank/web").warnings()),
        ["bank/web-2: name: has no effect where bank/web applies, which comes first"]
    );
    assert!(workload(&policies, "bank/db").warnings().is_empty());
}

#[test]
fn a_selector_in_the_root_namespace_is_ignored_with_a_warning() {
    let yaml =
        "\n- { name: web, namespace: root, selector: { matchLabels: { app: web } }, mtls: { mode: STRICT } }";
    table(
        yaml,
        &[
            ("elsewhere", "shop/web", 80, "allowed"),
            ("in the root namespace", "root/web", 80, "allowed"),
        ],
    );
    let policies = policies(&format!("peerAuthentications:{yaml}"));
    assert_eq!(
        warnings(policies.warnings()),
        [
            "root/web: selector: has no effect: Istio ignores a PeerAuthentication with a selector in the root namespace"
        ]
    );
}

#[test]
fn plaintext_is_denied_before_any_authorization_policy_is_asked() {
    let policies = policies(
        "
peerAuthentications:
- { name: strict, namespace: shop, mtls: { mode: STRICT } }
authorizationPolicies:
- { name: nobody, namespace: root, action: DENY, rules: [{}] }
- { name: all, namespace: shop, rules: [{}] }
",
    );
    let web = workload(&policies, "shop/web");
    assert_eq!(decide(&web, &format!("{PLAINTEXT}80")), "plaintext, shop/strict");
    assert_eq!(decide(&web, &format!("{IDENTITY}80")), "denied by root/nobody#0");
    assert_eq!(
        web.names().count(),
        2,
        "the PeerAuthentication is not among the AuthorizationPolicies"
    );
}

#[test]
fn ports_need_a_selector_and_both_names_are_required() {
    let rows = [
        (
            "{ name: a, namespace: b, portLevelMtls: { 80: {} } }",
            "portLevelMtls",
            Problem::NoSelector,
        ),
        (
            "{ name: a, namespace: b, selector: {}, portLevelMtls: { 80: {} } }",
            "portLevelMtls",
            Problem::NoSelector,
        ),
        ("{ name: '', namespace: b }", "name", Problem::NoName),
        ("{ name: a, namespace: '' }", "namespace", Problem::NoName),
    ];
    for (peer, field, problem) in rows {
        let file: File = serde_saphyr::from_str(&format!("peerAuthentications: [{peer}]")).unwrap();
        let error = file.peer_authentications[0]
            .check(crate::support::ROOT)
            .unwrap_err();
        assert_eq!(
            (error.field.as_str(), &error.problem),
            (field, &problem),
            "{peer}"
        );
        let all = weir_policy::Policies::new(crate::support::ROOT, Vec::new(), &file.peer_authentications);
        assert_eq!(all.unwrap_err().field, format!("peerAuthentications[0].{field}"));
    }
}

#[test]
fn a_port_is_a_number_or_text_of_1_to_65535() {
    let parse = |key: &str| {
        let yaml =
            format!("peerAuthentications: [{{ name: a, namespace: b, portLevelMtls: {{ {key}: {{}} }} }}]");
        let parsed: Result<File, _> = serde_saphyr::from_str(&yaml);
        parsed.map(|file| {
            file.peer_authentications[0]
                .port_level_mtls
                .keys()
                .copied()
                .collect::<Vec<_>>()
        })
    };
    for (key, port) in [("1", 1), ("'80'", 80), ("65535", 65535), ("\"65535\"", 65535)] {
        assert_eq!(parse(key).unwrap(), [port], "{key}");
    }
    for key in [
        "0", "65536", "-1", "'0'", "'65536'", "'+80'", "http", "'80 '", "''", "1.5",
    ] {
        let error = parse(key).unwrap_err().to_string();
        assert!(error.contains("expected a port, 1 to 65535"), "{key}: {error}");
    }
    let json = r#"{ "name": "a", "namespace": "b", "portLevelMtls": { "80": { "mode": "STRICT" } } }"#;
    let peer: weir_policy::PeerAuthentication = serde_json::from_str(json).unwrap();
    assert!(peer.port_level_mtls.contains_key(&80));
    let error = parse("80: {}, '80'").unwrap_err().to_string();
    assert!(error.contains("expected port 80 once"), "{error}");
}
