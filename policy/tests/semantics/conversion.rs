//! What is wrong with an AuthorizationPolicy, and where; what is only warned of; what becomes of the rest.

use crate::support::{ROOT, warnings};
use weir_policy::{
    Action, AuthorizationPolicy, Clause, Match, Rule, Scope, ServiceAccountMatch, StringMatch,
};

fn parse(yaml: &str) -> AuthorizationPolicy {
    serde_saphyr::from_str(yaml).unwrap_or_else(|error| panic!("{error}\n{yaml}"))
}

#[test]
fn a_wrong_field_is_named_with_what_was_expected() {
    let rows = [
        (
            "from: [{}]",
            "rules[0].from[0].source: expected at least one field",
        ),
        (
            "from: [{ source: {} }]",
            "rules[0].from[0].source: expected at least one field",
        ),
        (
            "from: [{ source: { namespaces: [a] } }, { source: { principals: [] } }]",
            "rules[0].from[1].source: expected at least one field",
        ),
        (
            "to: [{}]",
            "rules[0].to[0].operation: expected at least one field",
        ),
        (
            "to: [{ operation: {} }]",
            "rules[0].to[0].operation: expected at least one field",
        ),
        (
            "from: [{ source: { principals: [a, b, ''] } }]",
            "rules[0].from[0].source.principals[2]: expected a value that is not empty; '*' matches any",
        ),
        (
            "from: [{ source: { principals: ['spiffe://'] } }]",
            "rules[0].from[0].source.principals[0]: expected a value that is not empty; '*' matches any",
        ),
        (
            "from: [{ source: { notNamespaces: ['a*b'] } }]",
            "rules[0].from[0].source.notNamespaces[0]: expected '*' alone, first or last, once; Istio knows it nowhere else, as in 'a*b'",
        ),
        (
            "from: [{ source: { notPrincipals: ['*a*'] } }]",
            "rules[0].from[0].source.notPrincipals[0]: expected '*' alone, first or last, once; Istio knows it nowhere else, as in '*a*'",
        ),
        (
            "from: [{ source: { namespaces: ['**'] } }]",
            "rules[0].from[0].source.namespaces[0]: expected '*' alone, first or last, once; Istio knows it nowhere else, as in '**'",
        ),
        (
            "from: [{ source: { ipBlocks: [10.0.0.0/33] } }]",
            "rules[0].from[0].source.ipBlocks[0]: expected a prefix length of 0 to 32 after the /",
        ),
        (
            "from: [{ source: { notIpBlocks: [fd00::/8, example.org] } }]",
            "rules[0].from[0].source.notIpBlocks[1]: expected an address, as 10.0.0.1 or fd00::1, or a block, as 10.0.0.0/8 or fd00::/8",
        ),
        (
            "from: [{ source: { serviceAccounts: [a], namespaces: [b] } }]",
            "rules[0].from[0].source.serviceAccounts: expected no service accounts in a source that has principals or namespaces; Istio forbids it",
        ),
        (
            "from: [{ source: { notServiceAccounts: [a], notPrincipals: [b] } }]",
            "rules[0].from[0].source.notServiceAccounts: expected no service accounts in a source that has principals or namespaces; Istio forbids it",
        ),
        (
            "from: [{ source: { serviceAccounts: ['a*'] } }]",
            "rules[0].from[0].source.serviceAccounts[0]: expected <namespace>/<service account> or <service account>, without '*', not 'a*'",
        ),
        (
            "from: [{ source: { serviceAccounts: [a/b, a/b/c] } }]",
            "rules[0].from[0].source.serviceAccounts[1]: expected <namespace>/<service account> or <service account>, without '*', not 'a/b/c'",
        ),
        (
            "from: [{ source: { notServiceAccounts: [a/] } }]",
            "rules[0].from[0].source.notServiceAccounts[0]: expected <namespace>/<service account> or <service account>, without '*', not 'a/'",
        ),
        (
            "from: [{ source: { notServiceAccounts: [''] } }]",
            "rules[0].from[0].source.notServiceAccounts[0]: expected a value that is not empty; '*' matches any",
        ),
        (
            "to: [{ operation: { ports: ['80', http] } }]",
            "rules[0].to[0].operation.ports[1]: expected a port, 1 to 65535, as \"8080\", not 'http'",
        ),
        (
            "to: [{ operation: { notPorts: ['0'] } }]",
            "rules[0].to[0].operation.notPorts[0]: expected a port, 1 to 65535, as \"8080\", not '0'",
        ),
        (
            "to: [{ operation: { ports: ['*'] } }]",
            "rules[0].to[0].operation.ports[0]: expected a port, 1 to 65535, as \"8080\", not '*'",
        ),
        (
            "to: [{ operation: { ports: ['+80'] } }]",
            "rules[0].to[0].operation.ports[0]: expected a port, 1 to 65535, as \"8080\", not '+80'",
        ),
        (
            "when: [{ key: source.ip }]",
            "rules[0].when[0]: expected at least one of values and notValues",
        ),
        (
            "when: [{ key: request.auth.claims, values: [], notValues: [] }]",
            "rules[0].when[0]: expected at least one of values and notValues",
        ),
        (
            "when: [{ key: source.ip, values: [a] }]",
            "rules[0].when[0].values[0]: expected an address, as 10.0.0.1 or fd00::1, or a block, as 10.0.0.0/8 or fd00::/8",
        ),
        (
            "when: [{ key: destination.port, notValues: ['65536'] }]",
            "rules[0].when[0].notValues[0]: expected a port, 1 to 65535, as \"8080\", not '65536'",
        ),
        (
            "when: [{ key: source.labels, values: [a] }]",
            "rules[0].when[0].key: expected source.ip, source.namespace, source.principal, source.serviceAccount, destination.ip or destination.port, not 'source.labels'",
        ),
        (
            "when: [{ key: remote.ipx, values: [a] }]",
            "rules[0].when[0].key: expected source.ip, source.namespace, source.principal, source.serviceAccount, destination.ip or destination.port, not 'remote.ipx'",
        ),
    ];
    for (rule, expected) in rows {
        let policy = parse(&format!("{{ name: a, namespace: shop, rules: [{{ {rule} }}] }}"));
        let error = policy.compile(ROOT).unwrap_err().to_string();
        assert_eq!(error, expected, "{rule}");
    }
    let second = "{ name: a, namespace: shop, rules: [{}, { from: [{ source: { namespaces: [''] } }] }] }";
    let error = parse(second).compile(ROOT).unwrap_err();
    assert_eq!(error.field, "rules[1].from[0].source.namespaces[0]");
    for (field, yaml) in [
        ("name", "{ name: '', namespace: a }"),
        ("namespace", "{ name: a, namespace: '' }"),
    ] {
        let error = parse(yaml).compile(ROOT).unwrap_err().to_string();
        assert_eq!(error, format!("{field}: expected a name"));
    }
}

#[test]
fn what_is_not_supported_is_not_read() {
    let rows = [
        (
            "{ name: a, namespace: b, action: AUDIT }",
            "expected ALLOW or DENY, the actions that are supported, not 'AUDIT'",
        ),
        (
            "{ name: a, namespace: b, action: CUSTOM }",
            "expected ALLOW or DENY, the actions that are supported, not 'CUSTOM'",
        ),
        ("{ name: a, namespace: b, targetRefs: [] }", "targetRefs"),
        (
            "{ name: a, namespace: b, rules: [{ from: [{ source: { principal: [x] } }] }] }",
            "principal",
        ),
        (
            "{ name: a, namespace: b, rules: [{ when: [{ values: [x] }] }] }",
            "key",
        ),
        ("{ name: a }", "namespace"),
    ];
    for (yaml, expected) in rows {
        let error = serde_saphyr::from_str::<AuthorizationPolicy>(yaml)
            .unwrap_err()
            .to_string();
        assert!(error.contains(expected), "{yaml}: {error}");
    }
}

#[test]
fn the_schema_offers_the_actions_and_modes_that_are_read() {
    let authorization = schemars::schema_for!(AuthorizationPolicy).to_value().to_string();
    assert!(
        authorization.contains("\"ALLOW\"") && authorization.contains("\"DENY\""),
        "{authorization}"
    );
    assert!(authorization.contains("\"notRemoteIpBlocks\"") && authorization.contains("\"matchLabels\""));
    let peer = schemars::schema_for!(weir_policy::PeerAuthentication)
        .to_value()
        .to_string();
    assert!(
        peer.contains("\"portLevelMtls\"") && peer.contains("\"PERMISSIVE\""),
        "{peer}"
    );
}

#[test]
fn conditions_of_l7_are_warned_of_each_with_what_happens() {
    let rule = "
rules:
- from:
  - source: { namespaces: [a], requestPrincipals: ['*'], notRequestPrincipals: [x], remoteIpBlocks: [y], notRemoteIpBlocks: [z] }
  - source: { namespaces: [a] }
  to:
  - operation: { hosts: [a], notHosts: [a], methods: [a], notMethods: [a], paths: [a], notPaths: [a] }
  when:
  - { key: request.headers, values: [a] }
  - { key: 'request.auth.claims[iss]', notValues: [a] }
  - { key: remote.ip, values: [a] }
  - { key: connection.sni, values: [a] }
  - { key: experimental.envoy.filters.x, values: [a] }
";
    let found = |action: &str| {
        let policy = parse(&format!("name: a\nnamespace: shop\naction: {action}{rule}"));
        warnings(&policy.compile(ROOT).unwrap().1)
    };
    let fields = [
        "from[0].source.requestPrincipals",
        "from[0].source.notRequestPrincipals",
        "from[0].source.remoteIpBlocks",
        "from[0].source.notRemoteIpBlocks",
        "to[0].operation.hosts",
        "to[0].operation.notHosts",
        "to[0].operation.methods",
        "to[0].operation.notMethods",
        "to[0].operation.paths",
        "to[0].operation.notPaths",
        "when[0].key",
        "when[1].key",
        "when[2].key",
        "when[3].key",
        "when[4].key",
    ];
    let deny = "it counts as met, and the rest of the DENY rule alone decides";
    let expected = fields.map(|field| format!("shop/a: rules[0].{field}: cannot be decided at L4: {deny}"));
    assert_eq!(found("DENY"), expected);
    let allow = fields.map(|field| {
        let part = if field.starts_with("from") {
            "this part of the ALLOW rule"
        } else {
            "the ALLOW rule"
        };
        format!("shop/a: rules[0].{field}: cannot be decided at L4: {part} never matches")
    });
    assert_eq!(found("ALLOW"), allow);
}

#[test]
fn a_policy_becomes_clauses_of_its_sources_operations_and_conditions() {
    let (compiled, found) = parse(
        r#"
name: a
namespace: shop
dryRun: true
selector: { matchLabels: { app: web } }
rules:
- from:
  - source: { principals: ["*", "spiffe://d/*"], notPrincipals: ["*/sa/x"], namespaces: [n], notNamespaces: [m] }
  - source: { serviceAccounts: [own, other/theirs], ipBlocks: [10.0.0.0/8], notIpBlocks: [10.0.0.1] }
  to:
  - operation: { ports: ["80"], notPorts: ["81"] }
  when:
  - { key: source.ip, values: [fd00::1] }
  - { key: request.headers, values: [x] }
- {}
"#,
    )
    .compile(ROOT)
    .unwrap();
    let account = |namespace: &str, account: &str| ServiceAccountMatch {
        namespace: namespace.to_owned(),
        service_account: account.to_owned(),
    };
    let exact = |text: &str| StringMatch::Exact(text.to_owned());
    let first = Match {
        principals: vec![StringMatch::Presence, StringMatch::Prefix("d/".to_owned())],
        not_principals: vec![StringMatch::Suffix("/sa/x".to_owned())],
        namespaces: vec![exact("n")],
        not_namespaces: vec![exact("m")],
        ..Match::default()
    };
    let second = Match {
        service_accounts: vec![account("shop", "own"), account("other", "theirs")],
        source_ips: vec!["10.0.0.0/8".parse().unwrap()],
        not_source_ips: vec!["10.0.0.1".parse().unwrap()],
        ..Match::default()
    };
    let operation = Match {
        destination_ports: vec![80],
        not_destination_ports: vec![81],
        ..Match::default()
    };
    let address = Match {
        source_ips: vec!["fd00::1".parse().unwrap()],
        ..Match::default()
    };
    let header = Match {
        undecidable: true,
        ..Match::default()
    };
    let clauses = [vec![first, second], vec![operation], vec![address], vec![header]];
    let clauses = clauses.map(|matches| Clause { matches }).to_vec();
    assert_eq!(compiled.rules, [Rule { clauses }, Rule::default()]);
    assert_eq!((compiled.action, compiled.dry_run), (Action::Allow, true));
    assert!(matches!(&compiled.scope, Scope::Workload(selector) if selector.match_labels["app"] == "web"));
    assert_eq!(found.len(), 1);
}

#[test]
fn the_scope_follows_from_selector_and_namespace() {
    let scope = |yaml: &str| parse(yaml).compile(ROOT).unwrap().0.scope;
    assert_eq!(scope("{ name: a, namespace: root }"), Scope::Mesh);
    assert_eq!(scope("{ name: a, namespace: shop }"), Scope::Namespace);
    assert!(matches!(
        scope("{ name: a, namespace: root, selector: {} }"),
        Scope::Workload(_)
    ));
    assert!(matches!(
        scope("{ name: a, namespace: shop, selector: {} }"),
        Scope::Workload(_)
    ));
}
