use super::{Outcome, Row, check, migrated, migrated_with, outcomes, said};

const IP: &str = "10.1.0.1";

fn policy(spec: &str) -> String {
    format!(
        "{{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {{name: p, namespace: shop}}, spec: {spec}}}"
    )
}

#[test]
fn what_layer_4_decides_is_decided_alike() {
    let table: &[(&str, &[Row])] = &[
        (
            "{selector: {matchLabels: {app: api}}, rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}], to: [{operation: {ports: ['80']}}]}]}",
            &[
                ("shop/web", IP, "shop/api", 80, true, true),
                ("shop/web", IP, "shop/api", 81, false, false),
                ("other/x", IP, "shop/api", 80, false, false),
                ("-", IP, "shop/api", 80, false, false),
                ("-", IP, "shop/db", 80, true, true),
            ],
        ),
        ("{}", &[("shop/web", IP, "shop/api", 80, false, false)]),
        (
            "{action: ALLOW, rules: [{}]}",
            &[("-", IP, "shop/api", 80, true, true)],
        ),
        ("{action: DENY}", &[("-", IP, "shop/api", 80, true, true)]),
        (
            "{action: DENY, rules: [{from: [{source: {notNamespaces: [shop]}}, {source: {ipBlocks: [10.2.0.0/16]}}]}]}",
            &[
                ("shop/web", IP, "shop/api", 80, true, true),
                ("shop/web", "10.2.0.1", "shop/api", 80, false, false),
                ("other/x", IP, "shop/api", 80, false, false),
                ("-", IP, "shop/api", 80, false, false),
            ],
        ),
        (
            "{rules: [{from: [{source: {serviceAccounts: [web, other/x]}}], when: [{key: destination.port, notValues: ['81']}]}]}",
            &[
                ("shop/web", IP, "shop/api", 80, true, true),
                ("other/x", IP, "shop/api", 80, true, true),
                ("other/x", IP, "shop/api", 81, false, false),
                ("other/web", IP, "shop/api", 80, false, false),
            ],
        ),
    ];
    for (spec, rows) in table {
        let report = migrated(&policy(spec));
        assert_eq!(outcomes(&report)[0].1, Outcome::Translated, "{spec}");
        check(&report, rows);
    }
}

#[test]
fn what_has_no_counterpart_makes_it_stricter() {
    // Of requests GET and /x the original lets some through: then the connection counts as let through.
    let table: &[(&str, &str, &[Row])] = &[
        (
            "{rules: [{to: [{operation: {methods: [GET]}}, {operation: {ports: ['80']}}]}, {from: [{source: {requestPrincipals: ['*']}}]}]}",
            "operation.methods is of layer 7",
            &[
                ("shop/web", IP, "shop/api", 80, true, true),
                ("shop/web", IP, "shop/api", 81, true, false),
            ],
        ),
        (
            "{rules: [{when: [{key: 'request.headers[x]', values: [y]}]}]}",
            "no rule is left",
            &[("shop/web", IP, "shop/api", 80, true, false)],
        ),
        (
            "{action: DENY, rules: [{from: [{source: {namespaces: [other]}}], to: [{operation: {paths: [/admin]}}]}]}",
            "counts as met",
            &[
                ("shop/web", IP, "shop/api", 80, true, true),
                ("other/x", IP, "shop/api", 80, true, false),
            ],
        ),
        (
            "{action: DENY, rules: [{to: [{operation: {notMethods: [GET]}}]}]}",
            "denies everything",
            &[("shop/web", IP, "shop/api", 80, true, false)],
        ),
        // Another trust domain: in DENY any, lest nobody be denied.
        (
            "{action: DENY, rules: [{from: [{source: {principals: [old.example/ns/a/sa/b]}}]}]}",
            "whatever trust domain",
            &[
                ("a/b", IP, "shop/api", 80, true, false),
                ("old.example/ns/a/sa/b", IP, "shop/api", 80, false, false),
                ("a/c", IP, "shop/api", 80, true, true),
            ],
        ),
        (
            "{rules: [{from: [{source: {notPrincipals: ['old.example/ns/a/*']}}]}, {from: [{source: {principals: ['spiffe://cluster.local/ns/a/sa/b', cluster.local/ns/a/sa/c]}}]}]}",
            "of another trust domain",
            &[
                ("a/b", IP, "shop/api", 80, true, false),
                ("a/c", IP, "shop/api", 80, true, true),
            ],
        ),
        // What is wrong, as an old API server may have let it in.
        (
            "{rules: [{from: [{source: {ipBlocks: [nowhere, 10.1.0.0/16]}}]}]}",
            "left out: 'nowhere'",
            &[
                ("-", IP, "shop/api", 80, true, true),
                ("-", "10.3.0.1", "shop/api", 80, false, false),
            ],
        ),
        (
            "{action: DENY, rules: [{from: [{source: {ipBlocks: [nowhere, 10.1.0.0/16]}}]}]}",
            "'nowhere' is no address",
            &[("-", "10.3.0.1", "shop/api", 80, true, false)],
        ),
        (
            "{action: DENY, rules: [{from: [{source: {notPorts: ['1']}}]}, 7, {with: x}]}",
            "rules[1] is not understood",
            &[("-", IP, "shop/api", 80, true, false)],
        ),
        (
            "{action: PERHAPS}",
            "action is not understood",
            &[("-", IP, "shop/api", 80, true, false)],
        ),
        (
            "{rules: {}}",
            "rules is not understood",
            &[("-", IP, "shop/api", 80, true, false)],
        ),
        (
            "{selector: {matchExpressions: []}, rules: [{}]}",
            "its whole namespace",
            &[("-", IP, "shop/db", 80, true, false)],
        ),
        (
            "{rules: [{from: [{source: {}}]}]}",
            "says nothing",
            &[("-", IP, "shop/api", 80, false, false)],
        ),
        (
            "{rules: [{from: [{source: {serviceAccounts: [web], namespaces: [shop]}}]}]}",
            "forbidden beside",
            &[("shop/web", IP, "shop/api", 80, true, false)],
        ),
    ];
    for (spec, note, rows) in table {
        let report = migrated(&policy(spec));
        assert_eq!(outcomes(&report)[0].1, Outcome::InPart, "{spec}");
        let said = said(&report);
        assert!(said.contains(note) && said.contains("Stricter"), "{spec}: {said}");
        check(&report, rows);
    }
}

#[test]
fn what_nothing_here_enforces_is_said_to_be_lost() {
    for (spec, note) in [
        (
            "{action: CUSTOM, provider: {name: x}, rules: [{}]}",
            "Lost CUSTOM",
        ),
        (
            "{targetRefs: [{kind: Service, name: api}], rules: [{}]}",
            "Lost it is for Service api",
        ),
        (
            "{targetRef: {kind: Gateway, name: g}}",
            "Lost it is for Gateway g",
        ),
        ("{action: AUDIT}", "Same AUDIT"),
    ] {
        let report = migrated(&policy(spec));
        assert!(report.made.is_empty(), "{spec}");
        assert_eq!(outcomes(&report)[0].1, Outcome::NoCounterpart);
        assert!(said(&report).starts_with(note), "{}", said(&report));
    }
}

#[test]
fn the_root_namespace_and_the_trust_domain_are_weirs() {
    let yaml = "
apiVersion: security.istio.io/v1beta1
kind: AuthorizationPolicy
metadata: {name: all, namespace: istio-system, annotations: {istio.io/dry-run: 'true'}}
spec: {rules: [{from: [{source: {serviceAccounts: [web]}}]}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: all, namespace: weir-system}
spec: {rules: [{from: [{source: {principals: [cluster.local/ns/a/sa/b]}}]}]}
";
    let report = migrated_with(yaml, &["--trust-domain", "example.org"]);
    let first = &report.made[0].object;
    assert_eq!(first["metadata"]["namespace"], "weir-system");
    assert_eq!(first["spec"]["dryRun"], true);
    assert_eq!(
        first["spec"]["rules"][0]["from"][0]["source"]["serviceAccounts"][0],
        "istio-system/web"
    );
    let second = &report.made[1].object;
    assert_eq!(second["metadata"]["name"], "all-2", "both are of one name now");
    check(
        &report,
        &[("example.org/ns/a/sa/b", "10.1.0.1", "shop/api", 80, true, true)],
    );
    assert!(!super::allowed(&report, "a/b", "10.1.0.1", "shop/api", 80));
}

fn peer(name: &str, namespace: &str, more: &str, spec: &str) -> String {
    format!(
        "---\n{{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {{name: {name}, namespace: {namespace}{more}}}, spec: {spec}}}\n"
    )
}

#[test]
fn modes_are_as_they_were() {
    let mesh = peer("default", "istio-system", "", "{mtls: {mode: STRICT}}");
    let shop = peer("default", "shop", "", "{mtls: {mode: UNSET}}");
    let api = peer(
        "api",
        "shop",
        "",
        "{selector: {matchLabels: {app: api}}, portLevelMtls: {9100: {mode: PERMISSIVE}, '9200': {mode: STRICT}}}",
    );
    let report = migrated(&format!("{mesh}{shop}{api}"));
    assert!(
        outcomes(&report)
            .iter()
            .all(|(_, outcome)| *outcome == Outcome::Translated)
    );
    check(
        &report,
        &[
            ("-", IP, "shop/api", 80, false, false),
            ("-", IP, "shop/api", 9100, true, true),
            ("-", IP, "shop/api", 9200, false, false),
            ("-", IP, "other/x", 80, false, false),
            ("a/b", IP, "other/x", 80, true, true),
        ],
    );
    let disable = peer(
        "default",
        "shop",
        "",
        "{mtls: {mode: DISABLE}, portLevelMtls: {80: {mode: STRICT}}}",
    );
    let report = migrated(&format!("{mesh}{disable}"));
    assert!(
        said(&report).contains("DISABLE is written as PERMISSIVE")
            && said(&report).contains("selector alone")
    );
    check(
        &report,
        &[
            ("-", IP, "shop/api", 80, true, true),
            ("-", IP, "a/api", 80, false, false),
        ],
    );
    for wrong in [
        "{mtls: {mode: 7}}",
        "{mtls: true}",
        "{selector: 7}",
        "{mtls: {mode: Strict}}",
        "{mode: STRICT}",
    ] {
        let report = migrated(&peer("default", "shop", "", wrong));
        check(&report, &[("-", IP, "shop/api", 80, true, false)]);
    }
}

#[test]
fn of_several_of_one_scope_the_oldest_counts_and_else_the_strict_one() {
    let (old, young) = (
        ", creationTimestamp: '2024-01-01T00:00:00Z'",
        ", creationTimestamp: '2025-01-01T00:00:00Z'",
    );
    let (strict, permissive) = ("{mtls: {mode: STRICT}}", "{mtls: {mode: PERMISSIVE}}");
    for (first, second, lets_in) in [
        ((young, strict), (old, permissive), true),
        ((old, strict), (young, permissive), false),
        (("", permissive), ("", strict), false),
        (("", permissive), ("", "{mtls: {mode: DISABLE}}"), false),
        (("", permissive), ("", permissive), true),
    ] {
        let report = migrated(&format!(
            "{}{}",
            peer("a", "shop", first.0, first.1),
            peer("b", "shop", second.0, second.1)
        ));
        assert_eq!(report.made.len(), 1);
        assert_eq!(super::allowed(&report, "-", "10.1.0.1", "shop/api", 80), lets_in);
    }
    let report = migrated(&peer(
        "x",
        "istio-system",
        "",
        "{selector: {matchLabels: {app: api}}, mtls: {mode: STRICT}}",
    ));
    assert_eq!(outcomes(&report)[0].1, Outcome::NotNeeded);
}

#[test]
fn what_is_no_policy_is_told_by_what_it_does() {
    use Outcome::{NoCounterpart, NotNeeded};
    let object = |kind: &str, spec: &str| {
        format!(
            "{{apiVersion: networking.istio.io/v1, kind: {kind}, metadata: {{name: x, namespace: shop}}, spec: {spec}}}"
        )
    };
    for (kind, spec, outcome, note) in [
        (
            "DestinationRule",
            "{host: api, trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}}",
            NotNeeded,
            "Same between pods",
        ),
        (
            "DestinationRule",
            "{host: api, trafficPolicy: {tls: {mode: DISABLE}}}",
            NotNeeded,
            "clients sent plaintext to api",
        ),
        (
            "DestinationRule",
            "{host: api, trafficPolicy: {portLevelSettings: [{tls: {mode: SIMPLE}}]}}",
            NoCounterpart,
            "Lost trafficPolicy.portLevelSettings[0].tls SIMPLE",
        ),
        (
            "DestinationRule",
            "{host: api, subsets: [{name: v1, trafficPolicy: {loadBalancer: {simple: RANDOM}}}]}",
            NoCounterpart,
            "make a Service for each",
        ),
        (
            "VirtualService",
            "{hosts: [api], tcp: [{route: [{destination: {host: api}, weight: 100}]}]}",
            NotNeeded,
            "by themselves",
        ),
        (
            "VirtualService",
            "{hosts: [api], tcp: [{route: [{destination: {host: db}}]}]}",
            NoCounterpart,
            "elsewhere",
        ),
        (
            "VirtualService",
            "{hosts: [api], tcp: [{route: [{destination: {host: api}, weight: 50}, {destination: {host: b}, weight: 50}]}]}",
            NoCounterpart,
            "several",
        ),
        (
            "VirtualService",
            "{hosts: [api], http: [{}]}",
            NoCounterpart,
            "waypoint",
        ),
        (
            "VirtualService",
            "{hosts: [api], gateways: [g], http: [{}]}",
            NoCounterpart,
            "gateway",
        ),
        ("Sidecar", "{}", NotNeeded, "sidecar"),
        ("EnvoyFilter", "{}", NoCounterpart, "Lost"),
        ("Unheard", "{}", NoCounterpart, "Lost this kind is not known"),
    ] {
        let report = migrated(&object(kind, spec));
        assert_eq!(outcomes(&report)[0].1, outcome, "{kind} {spec}");
        assert!(said(&report).contains(note), "{}", said(&report));
    }
    let report = migrated(
        "{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}}",
    );
    assert!(said(&report).contains("kubectl label --overwrite namespace shop weir.dev/mesh=enabled"));
    let report = migrated(
        "{apiVersion: v1, kind: Namespace, metadata: {name: shop, annotations: {config.linkerd.io/default-inbound-policy: deny}}}",
    );
    assert!(said(&report).contains("Lost config.linkerd.io"));
    let report = migrated(
        "{apiVersion: v1, kind: Namespace, metadata: {name: shop}}\n---\n{apiVersion: v1, kind: Service}",
    );
    assert!(report.entries.is_empty());
}

#[test]
fn lists_json_and_several_documents_are_read() {
    let one = r#"{"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": {"name": "a"}, "spec": {}}"#;
    for text in [
        format!("[{one}, {one}]"),
        format!("{one}\n{one}"),
        format!("{{\"kind\": \"List\", \"items\": [{one}, {one}]}}"),
        format!("{{\"kind\": \"AuthorizationPolicyList\", \"items\": [{one}, {one}]}}"),
        format!("# first\n---\n{one}\n---\n{one}\n---\n"),
    ] {
        let report = migrated(&text);
        assert_eq!(report.made.len(), 2, "{text}");
        assert_eq!(report.made[0].object["metadata"]["namespace"], "default");
    }
}

#[test]
fn where_selectors_may_meet_an_older_one_is_not_hidden_by_what_is_written_anew() {
    let (old, young) = (
        ", creationTimestamp: '2024-01-01T00:00:00Z'",
        ", creationTimestamp: '2025-01-01T00:00:00Z'",
    );
    let spec = |label: &str, mode: &str| {
        format!("{{selector: {{matchLabels: {{{label}}}}}, mtls: {{mode: {mode}}}}}")
    };
    // A pod of app api alone; the second selects it, the first may.
    for (first, ages, lets_in) in [
        ("tier: x", (old, young), false),
        ("tier: x", ("", ""), false),
        ("tier: x", (young, old), true),
        ("app: db", (old, young), true),
    ] {
        let report = migrated(&format!(
            "{}{}",
            peer("a", "shop", ages.0, &spec(first, "STRICT")),
            peer("b", "shop", ages.1, &spec("app: api", "PERMISSIVE"))
        ));
        assert_eq!(report.made.len(), 2);
        check(&report, &[("-", IP, "shop/api", 80, true, lets_in)]);
    }
}
