//! What the values of rules match: texts, service accounts, addresses, ports, and their negations.

use crate::support::table;

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
