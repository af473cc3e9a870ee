//! What AuthorizationPolicies decide.

use crate::support::{decide, policies, workload};

/// Asks of one workload, `shop/web`; the policies' names are unique where it matters.
fn table(yaml: &str, rows: &[(&str, &str, &str)]) {
    let policies = policies(&format!("authorizationPolicies:\n{yaml}"));
    let policies = workload(&policies, "shop/web");
    for (sentence, request, expected) in rows {
        assert_eq!(
            decide(&policies, request),
            *expected,
            "{sentence}: {request}\n{yaml}"
        );
    }
}

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
fn a_negation_alone_matches_all_others_and_plaintext() {
    let rows = [
        ("notNamespaces: [bank]", "bank/teller", "shop/cart"),
        (
            "notPrincipals: [cluster.local/ns/bank/sa/teller]",
            "bank/teller",
            "bank/boss",
        ),
        ("notServiceAccounts: [cart]", "shop/cart", "bank/cart"),
        ("notPrincipals: ['*/sa/cart']", "shop/cart", "shop/cart-2"),
        ("notNamespaces: ['ba*']", "bazaar/cart", "shop/bank"),
    ];
    for (source, excluded, other) in rows {
        let request = |source| format!("{source} 10.0.0.1 -> 10.0.0.2:80");
        table(
            &format!(
                "- {{ name: not, namespace: shop, action: DENY, rules: [{{ from: [{{ source: {{ {source} }} }}] }}] }}"
            ),
            &[
                ("the excluded", &request(excluded), "allowed"),
                ("another", &request(other), "denied by shop/not#0"),
                ("plaintext", &request("plaintext"), "denied by shop/not#0"),
            ],
        );
    }
    table(
        "- { name: not, namespace: shop, action: DENY, rules: [{ from: [{ source: { notPrincipals: ['*'] } }] }] }",
        &[
            (
                "any identity is excluded",
                "a/b 10.0.0.1 -> 10.0.0.2:80",
                "allowed",
            ),
            (
                "plaintext is what is left",
                "plaintext 10.0.0.1 -> 10.0.0.2:80",
                "denied by shop/not#0",
            ),
        ],
    );
}

#[test]
fn plaintext_matches_no_positive_value_of_an_identity() {
    for source in [
        "namespaces: ['*']",
        "namespaces: [shop]",
        "namespaces: ['s*']",
        "principals: ['*']",
        "principals: ['*/sa/cart']",
        "principals: [cluster.local/ns/shop/sa/cart]",
        "serviceAccounts: [cart]",
    ] {
        table(
            &format!(
                "- {{ name: who, namespace: shop, rules: [{{ from: [{{ source: {{ {source} }} }}] }}] }}"
            ),
            &[
                (
                    "an identity",
                    "shop/cart 10.0.0.1 -> 10.0.0.2:80",
                    "allowed by shop/who#0",
                ),
                (
                    "plaintext",
                    "plaintext 10.0.0.1 -> 10.0.0.2:80",
                    "not allowed by shop/who",
                ),
            ],
        );
    }
}

#[test]
fn texts_match_whole_by_beginning_or_by_end() {
    let rows = [
        (
            "principals: [cluster.local/ns/shop/sa/cart]",
            "shop/cart",
            "shop/cart2",
        ),
        (
            "principals: ['spiffe://cluster.local/ns/shop/sa/cart']",
            "shop/cart",
            "shop/car",
        ),
        (
            "principals: ['cluster.local/ns/shop/*']",
            "shop/cart",
            "shopping/cart",
        ),
        (
            "principals: ['spiffe://cluster.local/ns/shop/*']",
            "shop/cart",
            "bank/cart",
        ),
        ("principals: ['*/sa/cart']", "bank/cart", "bank/my-cart"),
        (
            "principals: ['cluster.local/ns/shop/sa/cart*']",
            "shop/cart",
            "shop/car",
        ),
        ("principals: ['*cart']", "shop/my-cart", "shop/cart-1"),
        (
            "principals: ['other.domain/ns/shop/sa/cart']",
            "spiffe://other.domain/ns/shop/sa/cart",
            "shop/cart",
        ),
        ("namespaces: [shop]", "shop/a", "shop2/a"),
        ("namespaces: ['shop*']", "shop2/a", "my-shop/a"),
        ("namespaces: ['*shop']", "my-shop/a", "shop2/a"),
    ];
    for (source, yes, no) in rows {
        table(
            &format!(
                "- {{ name: who, namespace: shop, rules: [{{ from: [{{ source: {{ {source} }} }}] }}] }}"
            ),
            &[
                (
                    "matches",
                    &format!("{yes} 10.0.0.1 -> 10.0.0.2:80"),
                    "allowed by shop/who#0",
                ),
                (
                    "does not",
                    &format!("{no} 10.0.0.1 -> 10.0.0.2:80"),
                    "not allowed by shop/who",
                ),
            ],
        );
    }
}

#[test]
fn a_service_account_is_of_the_policys_namespace_or_of_the_one_named_in_any_trust_domain() {
    table(
        "- { name: who, namespace: shop, rules: [{ from: [{ source: { serviceAccounts: [cart, bank/teller] } }] }] }",
        &[
            (
                "its own",
                "shop/cart 10.0.0.1 -> 10.0.0.2:80",
                "allowed by shop/who#0",
            ),
            (
                "named",
                "bank/teller 10.0.0.1 -> 10.0.0.2:80",
                "allowed by shop/who#0",
            ),
            (
                "in another domain",
                "spiffe://x/ns/shop/sa/cart 10.0.0.1 -> 10.0.0.2:80",
                "allowed by shop/who#0",
            ),
            (
                "of another namespace",
                "bank/cart 10.0.0.1 -> 10.0.0.2:80",
                "not allowed by shop/who",
            ),
            (
                "swapped",
                "shop/teller 10.0.0.1 -> 10.0.0.2:80",
                "not allowed by shop/who",
            ),
        ],
    );
}

#[test]
fn addresses_match_by_block_and_family() {
    let rows = [
        ("10.0.0.0/8", "10.255.0.1", "11.0.0.1"),
        ("10.1.2.3/8", "10.255.0.1", "11.0.0.1"),
        ("10.0.0.1", "10.0.0.1", "10.0.0.2"),
        ("10.0.0.1", "::ffff:10.0.0.1", "::ffff:10.0.0.2"),
        ("::ffff:10.0.0.0/104", "10.9.9.9", "11.0.0.1"),
        ("0.0.0.0/0", "192.168.0.1", "fd00::1"),
        ("::/0", "fd00::1", "192.168.0.1"),
        ("::/0", "::1", "::ffff:192.168.0.1"),
        ("fd00::/8", "fdff::1", "fe80::1"),
        ("fd00::1/127", "fd00::", "fd00::2"),
        ("fd00::1", "fd00::1", "fd00::2"),
    ];
    for (block, yes, no) in rows {
        table(
            &format!(
                "- {{ name: from, namespace: shop, rules: [{{ from: [{{ source: {{ ipBlocks: ['{block}'] }} }}] }}] }}"
            ),
            &[
                (
                    "source matches",
                    &format!("a/b {yes} -> 1.1.1.1:80"),
                    "allowed by shop/from#0",
                ),
                (
                    "source does not",
                    &format!("a/b {no} -> 1.1.1.1:80"),
                    "not allowed by shop/from",
                ),
            ],
        );
        table(
            &format!(
                "- {{ name: to, namespace: shop, action: DENY, rules: [{{ when: [{{ key: destination.ip, notValues: ['{block}'] }}] }}] }}"
            ),
            &[
                (
                    "destination matches",
                    &format!("a/b 1.1.1.1 -> [{yes}]:80"),
                    "allowed",
                ),
                (
                    "destination does not",
                    &format!("a/b 1.1.1.1 -> [{no}]:80"),
                    "denied by shop/to#0",
                ),
            ],
        );
    }
}

#[test]
fn conditions_of_l4_are_those_of_sources_and_operations() {
    table(
        r#"
- name: when
  namespace: shop
  rules:
  - when:
    - { key: source.namespace, values: ["*"], notValues: [bank] }
    - { key: source.principal, notValues: ["*/sa/evil"] }
    - { key: source.serviceAccount, notValues: [evil2, shop/evil3] }
    - { key: source.ip, values: [10.0.0.0/8] }
    - { key: destination.ip, values: [10.0.0.2] }
    - { key: destination.port, values: ["80", "81"], notValues: ["81"] }
"#,
        &[
            (
                "all hold",
                "shop/cart 10.0.0.1 -> 10.0.0.2:80",
                "allowed by shop/when#0",
            ),
            (
                "the namespace does not",
                "bank/cart 10.0.0.1 -> 10.0.0.2:80",
                "not allowed by shop/when",
            ),
            (
                "the principal does not",
                "shop/evil 10.0.0.1 -> 10.0.0.2:80",
                "not allowed by shop/when",
            ),
            (
                "the service account does not",
                "shop/evil2 10.0.0.1 -> 10.0.0.2:80",
                "not allowed by shop/when",
            ),
            (
                "nor this one",
                "shop/evil3 10.0.0.1 -> 10.0.0.2:80",
                "not allowed by shop/when",
            ),
            (
                "the source does not",
                "shop/cart 11.0.0.1 -> 10.0.0.2:80",
                "not allowed by shop/when",
            ),
            (
                "the destination does not",
                "shop/cart 10.0.0.1 -> 10.0.0.3:80",
                "not allowed by shop/when",
            ),
            (
                "the port is excluded",
                "shop/cart 10.0.0.1 -> 10.0.0.2:81",
                "not allowed by shop/when",
            ),
            (
                "the port is another",
                "shop/cart 10.0.0.1 -> 10.0.0.2:82",
                "not allowed by shop/when",
            ),
            (
                "plaintext has no namespace",
                "plaintext 10.0.0.1 -> 10.0.0.2:80",
                "not allowed by shop/when",
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
