//! What AuthorizationPolicies decide: their actions, rules and lists, alone and together.

use crate::support::table;

#[test]
fn without_policies_everything_is_allowed() {
    table(
        " []",
        &[
            ("an identity", "shop/cart 10.0.0.1 -> 10.0.0.2:80", "allowed"),
            ("plaintext", "plaintext 10.0.0.1 -> 10.0.0.2:80", "allowed"),
        ],
    );
}

#[test]
fn without_rules_allow_denies_everything_and_deny_nothing() {
    table(
        "- { name: nothing, namespace: shop, action: ALLOW }",
        &[(
            "ALLOW",
            "shop/cart 10.0.0.1 -> 10.0.0.2:80",
            "not allowed by shop/nothing",
        )],
    );
    table(
        "- { name: nothing, namespace: shop, action: DENY }",
        &[("DENY", "shop/cart 10.0.0.1 -> 10.0.0.2:80", "allowed")],
    );
}

#[test]
fn an_empty_rule_matches_everything() {
    table(
        "- { name: all, namespace: shop, rules: [{}] }",
        &[
            (
                "ALLOW, with identity",
                "shop/cart 10.0.0.1 -> 10.0.0.2:80",
                "allowed by shop/all#0",
            ),
            (
                "ALLOW, plaintext",
                "plaintext fd00::1 -> [fd00::2]:1",
                "allowed by shop/all#0",
            ),
        ],
    );
    table(
        "- { name: all, namespace: shop, action: DENY, rules: [{}] }",
        &[
            (
                "DENY, with identity",
                "shop/cart 10.0.0.1 -> 10.0.0.2:80",
                "denied by shop/all#0",
            ),
            (
                "DENY, plaintext",
                "plaintext fd00::1 -> [fd00::2]:1",
                "denied by shop/all#0",
            ),
        ],
    );
}

#[test]
fn an_empty_from_is_no_condition() {
    table(
        r#"- { name: port, namespace: shop, rules: [{ from: [], to: [{ operation: { ports: ["80"] } }] }] }"#,
        &[
            (
                "the port matches",
                "plaintext 10.0.0.1 -> 10.0.0.2:80",
                "allowed by shop/port#0",
            ),
            (
                "the port does not",
                "plaintext 10.0.0.1 -> 10.0.0.2:81",
                "not allowed by shop/port",
            ),
        ],
    );
}

#[test]
fn sources_are_or_ed_and_their_fields_and_lists_and_ed() {
    table(
        r#"
- name: both
  namespace: shop
  rules:
  - from:
    - source: { namespaces: [shop, bank], ipBlocks: [10.0.0.0/8] }
    - source: { serviceAccounts: [till/boss] }
    to:
    - operation: { ports: ["80"] }
    - operation: { ports: ["443"] }
"#,
        &[
            (
                "first source, first port",
                "bank/a 10.0.0.1 -> 10.0.0.2:80",
                "allowed by shop/both#0",
            ),
            (
                "first source, second port",
                "shop/a 10.0.0.1 -> 10.0.0.2:443",
                "allowed by shop/both#0",
            ),
            (
                "second source",
                "till/boss 11.0.0.1 -> 10.0.0.2:443",
                "allowed by shop/both#0",
            ),
            (
                "half of the first source",
                "shop/a 11.0.0.1 -> 10.0.0.2:80",
                "not allowed by shop/both",
            ),
            (
                "another port",
                "till/boss 10.0.0.1 -> 10.0.0.2:81",
                "not allowed by shop/both",
            ),
        ],
    );
}

#[test]
fn deny_goes_before_allow_and_the_first_match_is_named() {
    table(
        r#"
- { name: allow-1, namespace: shop, rules: [{ to: [{ operation: { ports: ["1"] } }] }, { to: [{ operation: { ports: ["2"] } }] }] }
- { name: allow-2, namespace: shop, rules: [{ to: [{ operation: { ports: ["2", "3", "5"] } }] }] }
- { name: deny-1, namespace: shop, action: DENY, rules: [{ to: [{ operation: { ports: ["4"] } }] }, { from: [{ source: { namespaces: [bank] } }] }] }
- { name: deny-2, namespace: shop, action: DENY, rules: [{ to: [{ operation: { ports: ["4", "5"] } }] }] }
"#,
        &[
            (
                "first ALLOW",
                "shop/a 10.0.0.1 -> 10.0.0.2:1",
                "allowed by shop/allow-1#0",
            ),
            (
                "second rule of the first, not the second policy",
                "shop/a 10.0.0.1 -> 10.0.0.2:2",
                "allowed by shop/allow-1#1",
            ),
            (
                "second policy",
                "shop/a 10.0.0.1 -> 10.0.0.2:3",
                "allowed by shop/allow-2#0",
            ),
            (
                "both DENY",
                "shop/a 10.0.0.1 -> 10.0.0.2:4",
                "denied by shop/deny-1#0",
            ),
            (
                "DENY and ALLOW",
                "shop/a 10.0.0.1 -> 10.0.0.2:5",
                "denied by shop/deny-2#0",
            ),
            (
                "an earlier policy's second rule",
                "bank/a 10.0.0.1 -> 10.0.0.2:5",
                "denied by shop/deny-1#1",
            ),
            (
                "none",
                "shop/a 10.0.0.1 -> 10.0.0.2:9",
                "not allowed by shop/allow-1 shop/allow-2",
            ),
        ],
    );
}

#[test]
fn a_rule_of_l7_alone_denies_everything_in_deny_and_allows_nothing_in_allow() {
    for element in [
        "to: [{ operation: { methods: [GET] } }]",
        "to: [{ operation: { notPaths: [/admin] } }]",
        "from: [{ source: { requestPrincipals: ['*'] } }]",
        "from: [{ source: { notRemoteIpBlocks: [10.0.0.0/8] } }]",
        "when: [{ key: 'request.headers[x]', values: [a] }]",
    ] {
        let policy =
            |action| format!("- {{ name: l7, namespace: shop, action: {action}, rules: [{{ {element} }}] }}");
        let request = "shop/cart 10.0.0.1 -> 10.0.0.2:80";
        table(&policy("DENY"), &[("DENY", request, "denied by shop/l7#0")]);
        table(&policy("ALLOW"), &[("ALLOW", request, "not allowed by shop/l7")]);
    }
}

#[test]
fn beside_a_condition_of_l7_the_rest_of_a_deny_rule_decides() {
    let rule =
        r#"{ to: [{ operation: { ports: ["80"], methods: [GET] } }, { operation: { ports: ["81"] } }] }"#;
    table(
        &format!("- {{ name: l7, namespace: shop, action: DENY, rules: [{rule}] }}"),
        &[
            (
                "DENY: L4 matches",
                "a/b 10.0.0.1 -> 10.0.0.2:80",
                "denied by shop/l7#0",
            ),
            (
                "DENY: L4 of another operation matches",
                "a/b 10.0.0.1 -> 10.0.0.2:81",
                "denied by shop/l7#0",
            ),
            ("DENY: L4 does not", "a/b 10.0.0.1 -> 10.0.0.2:82", "allowed"),
        ],
    );
    table(
        &format!("- {{ name: l7, namespace: shop, rules: [{rule}] }}"),
        &[
            (
                "ALLOW: L4 matches",
                "a/b 10.0.0.1 -> 10.0.0.2:80",
                "not allowed by shop/l7",
            ),
            (
                "ALLOW: an operation without L7 matches",
                "a/b 10.0.0.1 -> 10.0.0.2:81",
                "allowed by shop/l7#0",
            ),
        ],
    );
}

#[test]
fn a_policy_in_dry_run_is_reported_and_changes_nothing() {
    let dry_deny = "- { name: dry, namespace: shop, dryRun: true, action: DENY, rules: [{ from: [{ source: { namespaces: [bank] } }] }] }";
    let dry_allow = |name| {
        format!(
            "- {{ name: {name}, namespace: shop, dryRun: true, rules: [{{ from: [{{ source: {{ namespaces: [shop] }} }}] }}] }}"
        )
    };
    let port_80 = r#"- { name: real, namespace: shop, rules: [{ to: [{ operation: { ports: ["80"] } }] }] }"#;
    table(
        dry_deny,
        &[
            (
                "matches",
                "bank/a 10.0.0.1 -> 10.0.0.2:80",
                "allowed; dry run: denied by shop/dry#0",
            ),
            ("does not", "shop/a 10.0.0.1 -> 10.0.0.2:80", "allowed"),
        ],
    );
    table(
        &format!("{}\n{}", dry_allow("one"), dry_allow("two")),
        &[
            ("matches", "shop/a 10.0.0.1 -> 10.0.0.2:80", "allowed"),
            (
                "does not",
                "bank/a 10.0.0.1 -> 10.0.0.2:80",
                "allowed; dry run: not allowed by shop/one shop/two",
            ),
        ],
    );
    table(
        &format!("{port_80}\n{dry_deny}\n{}", dry_allow("one")),
        &[
            (
                "an enforced ALLOW matches",
                "other/a 10.0.0.1 -> 10.0.0.2:80",
                "allowed by shop/real#0",
            ),
            (
                "dry-run DENY beside it",
                "bank/a 10.0.0.1 -> 10.0.0.2:80",
                "allowed by shop/real#0; dry run: denied by shop/dry#0",
            ),
            (
                "denied anyhow",
                "bank/a 10.0.0.1 -> 10.0.0.2:81",
                "not allowed by shop/real",
            ),
            (
                "only a dry-run ALLOW matches",
                "shop/a 10.0.0.1 -> 10.0.0.2:81",
                "not allowed by shop/real",
            ),
        ],
    );
}

#[test]
fn rules_that_differ_a_little_are_not_taken_for_each_other() {
    let rows = [
        (
            "from: [{ source: { namespaces: [bank] } }]",
            "from: [{ source: { notNamespaces: [bank] } }]",
        ),
        (
            "from: [{ source: { namespaces: [bank] } }]",
            "from: [{ source: { namespaces: ['*'] } }]",
        ),
        (
            "from: [{ source: { namespaces: ['bank*'] } }]",
            "from: [{ source: { namespaces: ['*shop'] } }]",
        ),
        (
            "from: [{ source: { serviceAccounts: [bank/a] } }]",
            "from: [{ source: { serviceAccounts: [shop/a] } }]",
        ),
        (
            "when: [{ key: source.ip, values: [10.9.9.9] }]",
            "when: [{ key: destination.ip, notValues: [10.9.9.9] }]",
        ),
        (
            "from: [{ source: { namespaces: [shop], ipBlocks: [10.9.9.9] } }]",
            "from: [{ source: { namespaces: [shop] } }, { source: { ipBlocks: [10.9.9.9] } }]",
        ),
        (
            "from: [{ source: { namespaces: [bank] } }]",
            "from: [{ source: { namespaces: [bank, '*'] } }]",
        ),
        (
            "from: [{ source: { namespaces: [shop], principals: [x] } }, { source: { ipBlocks: [10.9.9.9] } }]",
            "from: [{ source: { namespaces: [shop] } }, { source: { principals: [x], ipBlocks: [10.9.9.9] } }]",
        ),
    ];
    for (first, second) in rows {
        table(
            &format!(
                "- {{ name: two, namespace: shop, rules: [{{ {first} }}, {{ {second} }}, {{ {first} }}] }}"
            ),
            &[(
                "the second",
                "shop/a 10.0.0.1 -> 10.0.0.2:80",
                "allowed by shop/two#1",
            )],
        );
    }
}
