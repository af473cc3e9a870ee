//! The compiled policies decide as the obvious way does, whatever the policies.
#![allow(clippy::unwrap_used, reason = "a failed assertion is what a test is for")]

mod naive;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use naive::{Answer, Naive, Outcome};
use proptest::{
    collection::vec,
    option,
    prelude::*,
    sample::select,
    strategy::ValueTree as _,
    test_runner::{Config, TestRunner},
};
use weir_policy::{
    Action, Authorization, CONVERTED, Cidr, Clause, Decision, Denial, Match, MtlsMode, PeerAuthentication,
    Policies, Request, Rule, Scope, Selector, ServiceAccountMatch, StringMatch, Verdict,
    istio::{Mtls, PeerMode},
};
use weir_types::Identity;

const ROOT: &str = "root";
/// Small alphabets with values that are parts of each other, so that matches happen often and wrongly.
const NAMESPACES: [&str; 4] = ["a", "ab", "b", ROOT];
const ACCOUNTS: [&str; 3] = ["x", "xy", "y"];
const LABELS: [&str; 2] = ["app", "tier"];
const ADDRESSES: [&str; 8] = [
    "10.0.0.1",
    "10.0.0.2",
    "10.1.0.1",
    "192.168.0.1",
    "::ffff:10.0.0.1",
    "fd00::1",
    "fd00::2",
    "::1",
];
const BLOCKS: [&str; 12] = [
    "10.0.0.0/8",
    "10.0.0.0/30",
    "10.0.0.1",
    "10.0.0.2/32",
    "0.0.0.0/0",
    "::ffff:10.0.0.0/104",
    "192.168.0.0/16",
    "fd00::/8",
    "fd00::1",
    "fd00::/127",
    "::/0",
    "::/1",
];

#[derive(Debug, Clone)]
struct Case {
    authorization: Vec<Authorization>,
    peer: Vec<PeerAuthentication>,
    workloads: Vec<(String, BTreeMap<String, String>)>,
    connections: Vec<Connection>,
}

#[derive(Debug, Clone)]
struct Connection {
    source: Option<Identity>,
    source_ip: IpAddr,
    destination_ip: IpAddr,
    port: u16,
}

impl Connection {
    fn request(&self) -> Request<'_> {
        Request {
            source: self.source.as_ref(),
            source_ip: self.source_ip,
            destination_ip: self.destination_ip,
            destination_port: self.port,
        }
    }
}

fn texts(
    exact: &'static [&'static str],
    parts: &'static [&'static str],
) -> impl Strategy<Value = StringMatch> {
    prop_oneof![
        4 => select(exact).prop_map(|text| StringMatch::Exact(text.to_owned())),
        1 => select(parts).prop_map(|text| StringMatch::Prefix(text.to_owned())),
        1 => select(parts).prop_map(|text| StringMatch::Suffix(text.to_owned())),
        1 => Just(StringMatch::Presence),
    ]
}

fn namespaces() -> impl Strategy<Value = StringMatch> {
    texts(&["a", "ab", "b", ROOT, ""], &["a", "b", "ab", "", "abc"])
}

fn principals() -> impl Strategy<Value = StringMatch> {
    texts(
        &[
            "td/ns/a/sa/x",
            "td/ns/a/sa/xy",
            "td/ns/ab/sa/y",
            "t/ns/b/sa/x",
            "t/ns/a/sa/x",
        ],
        &[
            "td/ns/a",
            "td/ns/a/",
            "t",
            "y",
            "/sa/x",
            "/sa/xy",
            "td/ns/a/sa/x",
            "",
        ],
    )
}

fn accounts() -> impl Strategy<Value = ServiceAccountMatch> {
    (select(&NAMESPACES[..]), select(&ACCOUNTS[..])).prop_map(|(namespace, account)| ServiceAccountMatch {
        namespace: namespace.to_owned(),
        service_account: account.to_owned(),
    })
}

fn blocks() -> impl Strategy<Value = Cidr> {
    select(&BLOCKS[..]).prop_map(|block| block.parse().unwrap())
}

/// Mostly nothing, sometimes a few values, rarely more than are compared one by one.
fn field<T: std::fmt::Debug + Clone + 'static>(
    value: impl Strategy<Value = T> + Clone + 'static,
) -> impl Strategy<Value = Vec<T>> {
    prop_oneof![
        18 => Just(Vec::new()),
        5 => vec(value.clone(), 1..=2),
        1 => vec(value, 9..=14),
    ]
}

fn matches() -> impl Strategy<Value = Match> {
    let ports = || field(select(&[80, 81, 443, 8080, 1, 2, 3, 4, 5, 6, 7, 65535][..]));
    let sources = (
        field(namespaces().boxed()),
        field(namespaces().boxed()),
        field(principals().boxed()),
        field(principals().boxed()),
        field(accounts().boxed()),
        field(accounts().boxed()),
    );
    let rest = (
        field(blocks().boxed()),
        field(blocks().boxed()),
        field(blocks().boxed()),
        field(blocks().boxed()),
        ports(),
        ports(),
        proptest::bool::weighted(0.1),
    );
    (sources, rest).prop_map(|(sources, rest)| Match {
        namespaces: sources.0,
        not_namespaces: sources.1,
        principals: sources.2,
        not_principals: sources.3,
        service_accounts: sources.4,
        not_service_accounts: sources.5,
        source_ips: rest.0,
        not_source_ips: rest.1,
        destination_ips: rest.2,
        not_destination_ips: rest.3,
        destination_ports: rest.4,
        not_destination_ports: rest.5,
        undecidable: rest.6,
    })
}

fn rules() -> impl Strategy<Value = Vec<Rule>> {
    let clause = vec(matches(), 0..=2).prop_map(|matches| Clause { matches });
    vec(vec(clause, 0..=2).prop_map(|clauses| Rule { clauses }), 0..=3)
}

fn labels() -> impl Strategy<Value = BTreeMap<String, String>> {
    let label = |values: &'static [&'static str]| option::of(select(values));
    (label(&["web", "db"]), label(&["1", "2"])).prop_map(|(app, tier)| {
        let values = LABELS.into_iter().zip([app, tier]);
        let labels = values.filter_map(|(key, value)| Some((key.to_owned(), value?.to_owned())));
        labels.collect()
    })
}

fn selector() -> impl Strategy<Value = Selector> {
    labels().prop_map(|match_labels| Selector { match_labels })
}

fn namespace() -> impl Strategy<Value = String> {
    select(&NAMESPACES[..]).prop_map(str::to_owned)
}

fn authorization(most: usize) -> impl Strategy<Value = Vec<Authorization>> {
    let scope = prop_oneof![
        Just(Scope::Mesh),
        Just(Scope::Namespace),
        selector().prop_map(Scope::Workload)
    ];
    let action = prop_oneof![Just(Action::Allow), Just(Action::Deny)];
    let one = (
        namespace(),
        scope,
        action,
        rules(),
        proptest::bool::weighted(0.25),
    );
    vec(one, 0..=most).prop_map(|all| {
        let policies = all.into_iter().enumerate();
        let policy = policies.map(
            |(number, (namespace, scope, action, rules, dry_run))| Authorization {
                name: format!("p{number}"),
                namespace,
                scope,
                action,
                rules,
                dry_run,
            },
        );
        policy.collect()
    })
}

fn peer() -> impl Strategy<Value = Vec<PeerAuthentication>> {
    let mode = select(
        &[
            PeerMode::Unset,
            PeerMode::Disable,
            PeerMode::Permissive,
            PeerMode::Strict,
        ][..],
    );
    let mtls = mode.prop_map(|mode| Mtls { mode });
    let ports = proptest::collection::btree_map(select(&[80, 443, 8080][..]), mtls.clone(), 0..=2);
    let one = (namespace(), option::of(selector()), option::of(mtls), ports);
    vec(one, 0..=3).prop_map(|all| {
        let peers = all.into_iter().enumerate();
        let peer = peers.map(|(number, (namespace, selector, mtls, ports))| {
            let selects = selector
                .as_ref()
                .is_some_and(|selector| !selector.match_labels.is_empty());
            PeerAuthentication {
                name: format!("m{number}"),
                namespace,
                selector,
                mtls,
                port_level_mtls: if selects { ports } else { BTreeMap::new() },
            }
        });
        peer.collect()
    })
}

fn connection() -> impl Strategy<Value = Connection> {
    let identity = (
        select(&["td", "t"][..]),
        select(&NAMESPACES[..]),
        select(&ACCOUNTS[..]),
    )
        .prop_map(|(domain, namespace, account)| format!("spiffe://{domain}/ns/{namespace}/sa/{account}"));
    let identity = identity.prop_map(|identity| identity.parse().unwrap());
    let address = || select(&ADDRESSES[..]).prop_map(|address| address.parse().unwrap());
    (
        option::weighted(0.8, identity),
        address(),
        address(),
        select(&[80, 443, 8080][..]),
    )
        .prop_map(|(source, source_ip, destination_ip, port)| Connection {
            source,
            source_ip,
            destination_ip,
            port,
        })
}

fn case(most: usize) -> impl Strategy<Value = Case> {
    let workloads = vec((namespace(), labels()), 2);
    (authorization(most), peer(), workloads, vec(connection(), 6)).prop_map(
        |(authorization, peer, workloads, connections)| Case {
            authorization,
            peer,
            workloads,
            connections,
        },
    )
}

/// Decides on all connections to all workloads, both ways.
fn check(case: &Case, mut seen: impl FnMut(Outcome)) -> Result<(), TestCaseError> {
    let policies = Policies::new(ROOT, case.authorization.clone(), &case.peer).unwrap();
    for (namespace, labels) in &case.workloads {
        let compiled = policies.for_workload(namespace, labels);
        let naive = Naive::for_workload(ROOT, &case.authorization, &case.peer, namespace, labels);
        for connection in &case.connections {
            let request = connection.request();
            let expected = naive.decide(&request);
            prop_assert_eq!(Outcome::from(compiled.decide(&request)), expected.clone());
            seen(expected);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(Config { cases: 8192, failure_persistence: None, ..Config::default() })]

    #[test]
    fn few_policies_decide_as_the_obvious_way(case in case(4)) {
        check(&case, |_| {})?;
    }
}

/// Decides on all connections with the policies as they are, and as they come over the wire.
fn check_wire(case: &Case) -> Result<(), TestCaseError> {
    let policies = Policies::new(ROOT, case.authorization.clone(), &case.peer).unwrap();
    let wire = policies.to_wire();
    let nothing_left_out = wire.values().flat_map(|policy| &policy.rules);
    for matched in nothing_left_out
        .flat_map(|rule| &rule.clauses)
        .flat_map(|clause| &clause.matches)
    {
        prop_assert!(!matched.undecidable, "nothing on the wire says this");
    }
    let received = Policies::received(wire.into_iter().collect(), Default::default());
    let kind = |decision: Decision<'_>| {
        let verdict = match decision.verdict {
            Verdict::Allowed(by) => ("allowed", by.map(|by| by.policy.clone())),
            // Of several that deny, which one is named depends on their order.
            Verdict::Denied(Denial::Plaintext { policy }) => ("plaintext", policy.cloned()),
            Verdict::Denied(Denial::Rule(_)) => ("denied", None),
            Verdict::Denied(Denial::NoAllow { .. }) => ("no allow", None),
        };
        (verdict, decision.dry_run.is_some())
    };
    for (namespace, labels) in &case.workloads {
        let own = policies.for_workload(namespace, labels);
        let listed = policies.listed(namespace, labels);
        let others = received.for_listed(namespace, listed.iter());
        for connection in &case.connections {
            let request = connection.request();
            let (expected, dry_run) = kind(own.decide(&request));
            let (decided, other_dry_run) = kind(others.decide(&request));
            // An AuthorizationPolicy may refuse plaintext just as a PeerAuthentication does.
            if (decided.0, expected.0) != ("plaintext", "denied") {
                prop_assert_eq!((decided.0, other_dry_run), (expected.0, dry_run));
            }
            if connection.source.is_none() && others.mtls().mode(connection.port) == MtlsMode::Strict {
                prop_assert_ne!(decided.0, "allowed");
            }
        }
        for port in [80, 443, 8080] {
            if own.mtls().mode(port) == MtlsMode::Strict {
                prop_assert_eq!(others.mtls().mode(port), MtlsMode::Strict);
                let named = listed.iter().any(|name| name.contains(CONVERTED));
                prop_assert!(named, "{listed:?}");
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(Config { cases: 8192, failure_persistence: None, ..Config::default() })]

    #[test]
    fn policies_decide_alike_on_both_ends_of_the_wire(case in case(4)) {
        check_wire(&case)?;
    }
}

#[test]
fn a_policy_that_was_never_seen_denies_and_one_that_was_removed_does_not() {
    let names: [std::sync::Arc<str>; 2] = ["a/never".into(), "a/removed".into()];
    let policies = Policies::received(Vec::new(), [names[1].clone()].into());
    let request = Request {
        source: None,
        source_ip: ADDRESSES[0].parse().unwrap(),
        destination_ip: ADDRESSES[1].parse().unwrap(),
        destination_port: 80,
    };
    let verdict = |listed: &[std::sync::Arc<str>]| {
        let policies = policies.for_listed("a", listed.iter());
        match policies.decide(&request).verdict {
            Verdict::Allowed(_) => None,
            Verdict::Denied(Denial::Rule(by)) => Some(by.policy.clone()),
            Verdict::Denied(other) => panic!("{other:?}"),
        }
    };
    assert_eq!(verdict(&[]), None);
    assert_eq!(verdict(&names[1..]), None);
    assert_eq!(verdict(&names), Some(names[0].clone()));
}

proptest! {
    #![proptest_config(Config { cases: 48, failure_persistence: None, max_shrink_iters: 512, ..Config::default() })]

    #[test]
    fn many_policies_decide_as_the_obvious_way(case in case(150)) {
        check(&case, |_| {})?;
    }
}

#[test]
fn the_random_policies_lead_to_every_kind_of_verdict() {
    fn kind(answer: &Answer) -> &'static str {
        match answer {
            Answer::Allowed => "allowed",
            Answer::AllowedBy { .. } => "allowed by",
            Answer::DeniedBy { .. } => "denied by",
            Answer::NoneAllows { .. } => "none allows",
            Answer::Plaintext { .. } => "plaintext",
        }
    }
    let mut counts: BTreeMap<(&str, &str), u32> = BTreeMap::new();
    let mut later = BTreeSet::new();
    let mut runner = TestRunner::deterministic();
    for _ in 0..1000 {
        let case = case(4).new_tree(&mut runner).unwrap().current();
        let count = |outcome: Outcome| {
            let dry_run = outcome.dry_run.as_ref().map_or("-", kind);
            *counts.entry((kind(&outcome.verdict), dry_run)).or_default() += 1;
            if let Answer::AllowedBy { rule, .. } | Answer::DeniedBy { rule, .. } = outcome.verdict {
                later.insert(rule);
            }
        };
        check(&case, count).unwrap();
    }
    // Of 12,000 decisions.
    let rare = 40;
    let kinds = [
        ("allowed", "-"),
        ("allowed", "denied by"),
        ("allowed", "none allows"),
        ("allowed by", "-"),
        ("allowed by", "denied by"),
        ("denied by", "-"),
        ("none allows", "-"),
        ("plaintext", "-"),
    ];
    for kind in kinds {
        assert!(
            counts.get(&kind).is_some_and(|count| *count >= rare),
            "{kind:?} of {counts:?}"
        );
    }
    assert_eq!(later, BTreeSet::from([0, 1, 2]));
}
