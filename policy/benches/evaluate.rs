//! What a decision costs where 10,000 policies of 10 rules apply to a workload; at most 20 µs is the aim.
//!
//! Beside each case stands the obvious way, which tries every rule, and which must decide alike.
#![expect(missing_docs, reason = "criterion's macros make items without")]
#![expect(clippy::unwrap_used, reason = "the values are written here")]

use std::{collections::BTreeMap, hint::black_box, time::Duration};

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use weir_policy::{
    Action, Authorization, Clause, Match, Policies, Request, Rule, Scope, ServiceAccountMatch, StringMatch,
};
use weir_types::Identity;

#[path = "../tests/naive/mod.rs"]
mod naive;

use naive::{Naive, Outcome};

const POLICIES: usize = 10_000;
const RULES: usize = 10;
/// Names as a large mesh has them.
const NAMESPACES: usize = 1000;
const ACCOUNTS: usize = 40;
const PORTS: [u16; 12] = [
    80, 443, 3000, 3306, 5432, 6379, 8000, 8080, 8443, 9090, 9092, 15020,
];

fn exact(text: String) -> Vec<StringMatch> {
    vec![StringMatch::Exact(text)]
}

fn namespace(number: usize) -> String {
    format!("team-{:03}", number % NAMESPACES)
}

fn account(number: usize) -> String {
    format!("service-{:02}", number % ACCOUNTS)
}

fn principal(number: usize) -> String {
    let (namespace, account) = (namespace(number), account(number / NAMESPACES));
    format!("cluster.local/ns/{namespace}/sa/{account}")
}

/// Who, by exact values.
fn ordinary(number: usize) -> Match {
    // Some numbers that have nothing to do with each other.
    let other = number.wrapping_mul(7919);
    match number % 4 {
        0 => Match {
            principals: exact(principal(other)),
            ..Match::default()
        },
        1 => Match {
            namespaces: exact(namespace(other)),
            ..Match::default()
        },
        2 => Match {
            service_accounts: vec![ServiceAccountMatch {
                namespace: namespace(other),
                service_account: account(number),
            }],
            ..Match::default()
        },
        _ => Match {
            source_ips: vec![
                format!("10.{}.{}.{}", other % 200, other / 200 % 250, number % 250)
                    .parse()
                    .unwrap(),
            ],
            ..Match::default()
        },
    }
}

/// Who, by patterns and blocks and negations.
fn unusual(number: usize) -> Match {
    let spread = number / 100;
    match spread % 5 {
        0 => Match {
            principals: vec![StringMatch::Suffix(format!("/sa/operator-{spread}"))],
            ..Match::default()
        },
        1 => Match {
            principals: vec![StringMatch::Prefix(format!("partner-{spread}.example/ns/"))],
            ..Match::default()
        },
        2 => Match {
            source_ips: vec![
                format!("172.{}.{}.0/{}", 16 + spread % 16, spread % 250, 20 + spread % 8)
                    .parse()
                    .unwrap(),
            ],
            ..Match::default()
        },
        3 => Match {
            namespaces: vec![StringMatch::Prefix(format!("tenant-{spread}-"))],
            not_principals: vec![StringMatch::Suffix("/sa/default".to_owned())],
            ..Match::default()
        },
        _ => negations(number),
    }
}

/// What no index helps with: it holds for nobody of `team-*` and has an exception of its own.
fn negations(number: usize) -> Match {
    Match {
        not_service_accounts: vec![ServiceAccountMatch {
            namespace: namespace(number),
            service_account: format!("only-{number}"),
        }],
        not_namespaces: vec![StringMatch::Prefix("team-".to_owned())],
        ..Match::default()
    }
}

/// Each rule says who may come and to which port.
fn policies(who: impl Fn(usize) -> Match) -> Vec<Authorization> {
    let rule = |number: usize| {
        let port = Match {
            destination_ports: vec![PORTS[number % PORTS.len()]],
            ..Match::default()
        };
        let who = who(number);
        let negative = who.namespaces.is_empty() && !who.not_namespaces.is_empty();
        let mut clauses = vec![Clause { matches: vec![who] }];
        if !negative {
            clauses.push(Clause { matches: vec![port] });
        }
        Rule { clauses }
    };
    let policy = |number: usize| Authorization {
        name: format!("policy-{number}"),
        namespace: "shop".to_owned(),
        scope: Scope::Namespace,
        action: Action::Allow,
        rules: (0..RULES).map(|index| rule(number * RULES + index)).collect(),
        dry_run: false,
    };
    let mut policies: Vec<_> = (0..POLICIES).map(policy).collect();
    let last = Match {
        principals: exact("cluster.local/ns/team-001/sa/last".to_owned()),
        ..Match::default()
    };
    if let Some(rule) = policies.last_mut().and_then(|policy| policy.rules.last_mut()) {
        rule.clauses[0].matches = vec![last];
        rule.clauses.truncate(1);
    }
    policies
}

fn request<'a>(identity: &'a Identity, source_ip: &str) -> Request<'a> {
    Request {
        source: Some(identity),
        source_ip: source_ip.parse().unwrap(),
        destination_ip: "10.0.0.2".parse().unwrap(),
        destination_port: 8081,
    }
}

fn decisions(c: &mut Criterion) {
    let labels = BTreeMap::new();
    let mostly_exact = policies(|number| {
        if number % 100 == 99 {
            unusual(number)
        } else {
            ordinary(number)
        }
    });
    let mixed = policies(|number| {
        if number % 10 == 9 {
            unusual(number * 10)
        } else {
            ordinary(number)
        }
    });
    let negative = policies(|number| {
        if number % 100 == 99 {
            negations(number)
        } else {
            ordinary(number)
        }
    });
    let identity = |text: &str| text.parse::<Identity>().unwrap();
    let somebody = identity("spiffe://cluster.local/ns/team-001/sa/service-07");
    let last = identity("spiffe://cluster.local/ns/team-001/sa/last");
    let operator = identity("spiffe://cluster.local/ns/team-001/sa/operator-99995");
    let cases = [
        ("no match", &mostly_exact, request(&somebody, "10.0.0.1")),
        (
            "no match, a known port",
            &mostly_exact,
            Request {
                destination_port: 8080,
                ..request(&somebody, "10.0.0.1")
            },
        ),
        ("the last matches", &mostly_exact, request(&last, "10.0.0.1")),
        (
            "no match, one in ten with patterns",
            &mixed,
            request(&somebody, "172.17.1.1"),
        ),
        (
            "a suffix matches, one in ten with patterns",
            &mixed,
            Request {
                destination_port: 8080,
                ..request(&operator, "172.17.1.1")
            },
        ),
        (
            "no match, one in a hundred of negations alone",
            &negative,
            request(&somebody, "10.0.0.1"),
        ),
    ];
    for (name, authorization, request) in cases {
        let policies = Policies::new("root", authorization.clone(), &[]).unwrap();
        let compiled = policies.for_workload("shop", &labels);
        let naive = Naive::for_workload("root", authorization, &[], "shop", &labels);
        assert_eq!(
            Outcome::from(compiled.decide(&request)),
            naive.decide(&request),
            "{name}"
        );
        let mut group = c.benchmark_group(name);
        group.bench_function("indexed", |b| {
            b.iter(|| black_box(compiled.decide(black_box(&request)).verdict));
        });
        // A decision of some 10 ms needs no 100 samples.
        group.sample_size(10).measurement_time(Duration::from_secs(2));
        group.bench_function("every rule", |b| b.iter(|| naive.decide(black_box(&request))));
        group.finish();
    }
}

fn compiling(c: &mut Criterion) {
    let authorization = policies(|number| {
        if number % 100 == 99 {
            unusual(number)
        } else {
            ordinary(number)
        }
    });
    let labels = BTreeMap::new();
    let mut group = c.benchmark_group("compiling 100,000 rules");
    group.sample_size(10);
    group.bench_function("new and for_workload", |b| {
        let compile = |authorization| {
            let policies = Policies::new("root", authorization, &[]).unwrap();
            let workload = policies.for_workload("shop", &labels);
            (policies, workload)
        };
        b.iter_batched(|| authorization.clone(), compile, BatchSize::PerIteration);
    });
    group.finish();
}

/// 1,000 policies of one namespace with selectors, and 10,000 workloads of 500 applications.
fn selecting(c: &mut Criterion) {
    let policy = |number: usize| {
        let selector = BTreeMap::from([
            (
                "app.kubernetes.io/name".to_owned(),
                format!("app-{}", number % 500),
            ),
            ("app.kubernetes.io/part-of".to_owned(), "shop".to_owned()),
        ]);
        Authorization {
            name: format!("policy-{number}"),
            namespace: "shop".to_owned(),
            scope: Scope::Workload(weir_policy::Selector {
                match_labels: selector,
            }),
            action: Action::Allow,
            rules: vec![Rule::default()],
            dry_run: false,
        }
    };
    let authorization: Vec<_> = (0..1000).map(policy).collect();
    let labels = |number: usize| -> BTreeMap<String, String> {
        let mut labels = BTreeMap::from([
            (
                "app.kubernetes.io/name".to_owned(),
                format!("app-{}", number % 500),
            ),
            ("app.kubernetes.io/part-of".to_owned(), "shop".to_owned()),
        ]);
        labels.extend((0..6).map(|index| (format!("label-{index}"), format!("value-{number}"))));
        labels
    };
    let workloads: Vec<_> = (0..10_000).map(labels).collect();
    let mut group = c.benchmark_group("selecting for 10,000 workloads among 1,000 policies");
    group.sample_size(10);
    group.bench_function("new and for_workload", |b| {
        let select = |authorization| {
            let policies = Policies::new("root", authorization, &[]).unwrap();
            workloads
                .iter()
                .map(|labels| policies.for_workload("shop", labels))
                .collect::<Vec<_>>()
        };
        b.iter_batched(|| authorization.clone(), select, BatchSize::PerIteration);
    });
    group.finish();
}

criterion_group!(benches, decisions, compiling, selecting);
criterion_main!(benches);
