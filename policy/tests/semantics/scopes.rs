//! Which policies apply to a workload, in which order, and what is shared.

use std::collections::BTreeMap;

use crate::support::{decide, policies, workload};
use weir_policy::{Action, Policies, Problem};

/// One policy for each scope, each about another port, besides port 80, which all are about.
const ALL_SCOPES: &str = r#"
authorizationPolicies:
- { name: own, namespace: shop, selector: { matchLabels: { app: web } }, action: DENY, rules: [{ to: [{ operation: { ports: ["80", "1"] } }] }] }
- { name: everywhere, namespace: root, selector: { matchLabels: { app: web } }, action: DENY, rules: [{ to: [{ operation: { ports: ["80", "2"] } }] }] }
- { name: shop, namespace: shop, action: DENY, rules: [{ to: [{ operation: { ports: ["80", "3"] } }] }] }
- { name: mesh, namespace: root, action: DENY, rules: [{ to: [{ operation: { ports: ["80", "4"] } }] }] }
- { name: all-of-shop, namespace: shop, selector: {}, action: DENY, rules: [{ to: [{ operation: { ports: ["80", "5"] } }] }] }
- { name: all, namespace: root, selector: {}, action: DENY, rules: [{ to: [{ operation: { ports: ["80", "6"] } }] }] }
- { name: two-labels, namespace: shop, selector: { matchLabels: { app: web, tier: front } }, action: DENY, rules: [{ to: [{ operation: { ports: ["7"] } }] }] }
"#;

#[test]
fn a_policy_applies_to_the_mesh_to_its_namespace_or_to_what_it_selects() {
    let policies = policies(ALL_SCOPES);
    let names = |name: &str| -> Vec<String> {
        let workload = workload(&policies, name);
        workload.names().map(|policy| policy.name.to_string()).collect()
    };
    let rows = [
        (
            "shop/web",
            vec![
                "root/mesh",
                "shop/shop",
                "shop/own",
                "root/everywhere",
                "shop/all-of-shop",
                "root/all",
            ],
        ),
        (
            "shop/db",
            vec!["root/mesh", "shop/shop", "shop/all-of-shop", "root/all"],
        ),
        ("bank/web", vec!["root/mesh", "root/everywhere", "root/all"]),
        ("bank/db", vec!["root/mesh", "root/all"]),
        ("root/web", vec!["root/mesh", "root/everywhere", "root/all"]),
    ];
    for (workload, expected) in rows {
        assert_eq!(names(workload), expected, "{workload}");
    }
    let both = [("app", "web"), ("tier", "front"), ("more", "x")];
    let labels = both.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    let two = policies.for_workload("shop", &labels);
    assert!(two.names().any(|policy| &**policy.name == "shop/two-labels"));
}

#[test]
fn mesh_goes_before_namespace_and_namespace_before_workload() {
    let policies = policies(ALL_SCOPES);
    let rows = [
        ("mesh first", "shop/web", "80", "denied by root/mesh#0"),
        ("workload", "shop/web", "1", "denied by shop/own#0"),
        (
            "workload, from the root namespace",
            "bank/web",
            "2",
            "denied by root/everywhere#0",
        ),
        ("namespace", "shop/db", "3", "denied by shop/shop#0"),
        ("not of this namespace", "bank/web", "3", "allowed"),
        ("not selected", "shop/db", "1", "allowed"),
        ("half selected", "shop/web", "7", "allowed"),
    ];
    for (sentence, name, port, expected) in rows {
        let workload = workload(&policies, name);
        let decided = decide(&workload, &format!("a/b 10.0.0.1 -> 10.0.0.2:{port}"));
        assert_eq!(decided, expected, "{sentence}");
    }
}

#[test]
fn allow_policies_of_all_scopes_add_up() {
    let policies = policies(
        r#"
authorizationPolicies:
- { name: web, namespace: shop, selector: { matchLabels: { app: web } }, rules: [{ to: [{ operation: { ports: ["1", "3"] } }] }] }
- { name: shop, namespace: shop, rules: [{ to: [{ operation: { ports: ["2", "3"] } }] }] }
- { name: mesh, namespace: root, dryRun: true, rules: [{}] }
"#,
    );
    let web = workload(&policies, "shop/web");
    for (port, expected) in [
        (1, "allowed by shop/web#0"),
        (2, "allowed by shop/shop#0"),
        (3, "allowed by shop/shop#0"),
        (4, "not allowed by shop/shop shop/web"),
    ] {
        assert_eq!(
            decide(&web, &format!("a/b 10.0.0.1 -> 10.0.0.2:{port}")),
            expected
        );
    }
    let listed: Vec<_> = web
        .names()
        .map(|one| (&**one.name, one.action, one.dry_run))
        .collect();
    let allow = Action::Allow;
    assert_eq!(
        listed,
        [
            ("root/mesh", allow, true),
            ("shop/shop", allow, false),
            ("shop/web", allow, false)
        ]
    );
}

#[test]
fn workloads_to_which_the_same_applies_share_it() {
    let policies = policies(ALL_SCOPES);
    let of = |name| workload(&policies, name);
    assert!(of("shop/web").same_as(&of("shop/web")));
    assert!(
        of("shop/db").same_as(&of("shop/cache")),
        "none of the two is selected"
    );
    assert!(
        of("bank/db").same_as(&of("till/db")),
        "neither namespace has policies"
    );
    assert!(!of("shop/web").same_as(&of("shop/db")));
    assert!(!of("shop/db").same_as(&of("bank/db")));
    let again = crate::support::policies(ALL_SCOPES);
    assert!(
        !of("shop/web").same_as(&workload(&again, "shop/web")),
        "of other policies"
    );
}

#[test]
fn a_name_is_used_once_in_a_namespace_and_kind() {
    let file = |yaml: &str| serde_saphyr::from_str::<crate::support::File>(yaml).unwrap();
    let file = file(
        "
authorizationPolicies: [{ name: a, namespace: shop }, { name: a, namespace: bank }, { name: a, namespace: shop }]
peerAuthentications: [{ name: a, namespace: shop }]
",
    );
    let compiled = file
        .authorization_policies
        .iter()
        .map(|policy| policy.compile(crate::support::ROOT).unwrap().0);
    let compiled: Vec<_> = compiled.collect();
    assert!(
        Policies::new(
            crate::support::ROOT,
            compiled[..2].to_vec(),
            &file.peer_authentications
        )
        .is_ok()
    );
    let error = Policies::new(crate::support::ROOT, compiled, &[]).unwrap_err();
    assert_eq!(error.field, "authorizationPolicies[2].name");
    let policy = "shop/a".to_owned();
    assert_eq!(error.problem, Problem::Duplicate { policy });
    let twice = [
        file.peer_authentications[0].clone(),
        file.peer_authentications[0].clone(),
    ];
    let error = Policies::new(crate::support::ROOT, Vec::new(), &twice).unwrap_err();
    assert_eq!(error.field, "peerAuthentications[1].name");
}

#[test]
fn a_workload_without_labels_is_selected_by_empty_selectors_only() {
    let policies = policies(ALL_SCOPES);
    let bare = policies.for_workload("shop", &BTreeMap::new());
    let names: Vec<_> = bare.names().map(|policy| &**policy.name).collect();
    assert_eq!(names, ["root/mesh", "shop/shop", "shop/all-of-shop", "root/all"]);
}
