//! Policies by chance, and what they mean said a second time, plainly.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::{policies, settings};
use crate::migrate::{input, translate};

/// Numbers that are the same each time (Knuth's MMIX).
struct Chance(u64);

impl Chance {
    fn below(&mut self, most: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % most
    }

    fn one<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.below(of.len())]
    }

    fn some(&mut self, of: &[&str]) -> Vec<String> {
        let count = 1 + self.below(2);
        (0..count).map(|_| self.one(of).to_owned()).collect()
    }
}

const WHO: [Option<(&str, &str)>; 5] = [
    None,
    Some(("shop", "web")),
    Some(("shop", "job")),
    Some(("far", "web")),
    Some(("far", "job")),
];
const FROM: [&str; 6] = [
    "10.0.0.1",
    "10.0.1.1",
    "10.0.1.77",
    "10.1.0.1",
    "8.8.8.8",
    "fd00::1",
];
const PORTS: [u16; 3] = [80, 81, 82];

/// Asks what was translated about every connection.
fn each(objects: &[Value], original: impl Fn(Option<(&str, &str)>, &str, u16) -> (bool, bool)) {
    let text = serde_json::to_string(objects).unwrap();
    let items = input::parse(&text, "", "shop").unwrap();
    let report = translate(&items, &settings(&[]));
    let policies = policies(&report).for_workload("shop", &[("app".to_owned(), "api".to_owned())].into());
    for who in WHO {
        let identity = who.map(|(namespace, account)| {
            let uri = format!("spiffe://cluster.local/ns/{namespace}/sa/{account}");
            uri.parse().unwrap()
        });
        for from in FROM {
            for port in PORTS {
                let decision = policies.decide(&weir_policy::Request {
                    source: identity.as_ref(),
                    source_ip: from.parse().unwrap(),
                    destination_ip: IpAddr::from([10, 9, 9, 9]),
                    destination_port: port,
                });
                let translated = matches!(decision.verdict, weir_policy::Verdict::Allowed(_));
                let (expected, exact) = original(who, from, port);
                let made: Vec<&Value> = report.made.iter().map(|made| &made.object).collect();
                let about = || format!("{text}\n{made:?}\n{who:?} from {from} to {port}");
                assert!(expected || !translated, "more than the original: {}", about());
                assert!(
                    !exact || expected == translated,
                    "less, without need: {}",
                    about()
                );
            }
        }
    }
}

type Names = Vec<String>;
/// Blocks, each with those that are excepted.
type Networks = Vec<(String, Vec<String>)>;

fn within(block: &str, address: &str) -> bool {
    let block: weir_policy::Cidr = block.parse().unwrap();
    block.contains(address.parse().unwrap())
}

#[test]
fn servers_let_in_whom_their_authorizations_name_and_nobody_else() {
    let blocks = [
        "10.0.0.0/16",
        "10.0.1.0/24",
        "10.0.1.64/26",
        "0.0.0.0/0",
        "::/0",
        "10.1.0.0/16",
    ];
    let identities = ["*", "web.shop", "job.shop", "web.far", "*.shop", "*.far"];
    let suffix = "serviceaccount.identity.linkerd.cluster.local";
    let mut chance = Chance(1);
    for _ in 0..300 {
        let server = |name: &str, port: u16| {
            json!({
                "apiVersion": "policy.linkerd.io/v1beta1", "kind": "Server", "metadata": {"name": name},
                "spec": {"podSelector": {"matchLabels": {"app": "api"}}, "port": port},
            })
        };
        let mut objects = vec![server("a", 80), server("b", 81)];
        // For which Server, identities if any, networks if any.
        let mut authorizations: Vec<(&str, Option<Names>, Option<Networks>)> = Vec::new();
        for number in 0..chance.below(5) {
            let target = chance.one(&["a", "b"]);
            let who = (chance.below(3) > 0).then(|| chance.some(&identities));
            let from = (chance.below(2) > 0).then(|| {
                let networks = chance.some(&blocks).into_iter();
                let networks: Vec<_> = networks
                    .map(|block| {
                        let except = if chance.below(2) > 0 {
                            chance.some(&blocks)
                        } else {
                            Vec::new()
                        };
                        (block, except)
                    })
                    .collect();
                networks
            });
            let mut client = json!({});
            match &who {
                None => client["unauthenticated"] = true.into(),
                Some(who) => {
                    let full = |one: &String| {
                        if one == "*" {
                            one.clone()
                        } else {
                            format!("{one}.{suffix}")
                        }
                    };
                    client["meshTLS"] = json!({"identities": who.iter().map(full).collect::<Vec<_>>()});
                }
            }
            if let Some(from) = &from {
                let networks = from
                    .iter()
                    .map(|(cidr, except)| json!({"cidr": cidr, "except": except}));
                client["networks"] = networks.collect::<Vec<_>>().into();
            }
            objects.push(json!({
                "apiVersion": "policy.linkerd.io/v1beta1", "kind": "ServerAuthorization",
                "metadata": {"name": format!("s{number}")}, "spec": {"server": {"name": target}, "client": client},
            }));
            authorizations.push((target, who, from));
        }
        each(&objects, |client, address, port| {
            let server = match port {
                80 => "a",
                81 => "b",
                _ => return (true, true),
            };
            let allowed = authorizations.iter().any(|(target, who, from)| {
                let known = who.as_ref().is_none_or(|who| {
                    client.is_some_and(|(namespace, account)| {
                        let full = format!("{account}.{namespace}");
                        who.iter().any(|one| match one.strip_prefix('*') {
                            Some(end) => full.ends_with(end),
                            None => *one == full,
                        })
                    })
                });
                let near = from.as_ref().is_none_or(|from| {
                    from.iter().any(|(block, except)| {
                        within(block, address) && !except.iter().any(|block| within(block, address))
                    })
                });
                *target == server && known && near
            });
            (allowed, true)
        });
    }
}

/// Whether a source, operation or condition matches; `seven` is what is taken for what layer 7 would say.
fn matches(fields: &Value, who: Option<(&str, &str)>, from: &str, port: u16, seven: bool) -> bool {
    fields.as_object().unwrap().iter().all(|(field, values)| {
        let values = || {
            values
                .as_array()
                .unwrap()
                .iter()
                .map(|value| value.as_str().unwrap())
        };
        let text = |found: Option<String>| {
            values().any(|value| {
                found
                    .as_ref()
                    .is_some_and(|found| match (value.strip_suffix('*'), value.strip_prefix('*')) {
                        (Some(begin), _) => found.starts_with(begin),
                        (_, Some(end)) => found.ends_with(end),
                        _ => found == value,
                    })
            })
        };
        let principal = who.map(|(namespace, account)| format!("cluster.local/ns/{namespace}/sa/{account}"));
        let namespace = who.map(|(namespace, _)| namespace.to_owned());
        match field.as_str() {
            "principals" => text(principal),
            "notPrincipals" => !text(principal),
            "namespaces" => text(namespace),
            "notNamespaces" => !text(namespace),
            "ipBlocks" => values().any(|block| within(block, from)),
            "notIpBlocks" => !values().any(|block| within(block, from)),
            "ports" => values().any(|value| value == port.to_string()),
            "notPorts" => !values().any(|value| value == port.to_string()),
            _ => seven,
        }
    })
}

#[test]
fn istios_rules_never_let_in_more_whatever_requests_are_like() {
    let sources: [(&str, &[&str]); 4] = [
        (
            "rincipals",
            &[
                "cluster.local/ns/shop/sa/web",
                "cluster.local/ns/far/*",
                "*/sa/job",
                "old.example/ns/shop/sa/web",
                "*",
            ],
        ),
        ("amespaces", &["shop", "fa*", "*"]),
        ("pBlocks", &["10.0.0.0/16", "10.0.1.77", "::/0"]),
        ("equestPrincipals", &["*"]),
    ];
    let operations: [(&str, &[&str]); 2] = [("orts", &["80", "81"]), ("aths", &["/x"])];
    let first = |field: &str| match field {
        "rincipals" | "orts" | "aths" => ("p", "P"),
        "amespaces" => ("n", "N"),
        "pBlocks" => ("i", "I"),
        _ => ("r", "R"),
    };
    let mut chance = Chance(2);
    for _ in 0..600 {
        let mut list = |part: &str, of: &[(&str, &[&str])]| -> Vec<Value> {
            let count = chance.below(3);
            let mut made = Vec::new();
            for _ in 0..count {
                let mut fields = json!({});
                for _ in 0..=chance.below(2) {
                    let (field, values) = of[chance.below(of.len())];
                    let (small, large) = first(field);
                    let positive = chance.below(3) > 0;
                    let name = if positive {
                        format!("{small}{field}")
                    } else {
                        format!("not{large}{field}")
                    };
                    fields[name] = chance.some(values).into();
                }
                made.push(json!({part: fields}));
            }
            made
        };
        let mut rules = Vec::new();
        for _ in 0..2 {
            rules.push((list("source", &sources), list("operation", &operations)));
        }
        let action = chance.one(&["ALLOW", "DENY"]);
        let written: Vec<Value> = rules
            .iter()
            .map(|(from, to)| json!({"from": from, "to": to}))
            .collect();
        let object = json!({
            "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": {"name": "p"},
            "spec": {"action": action, "rules": written},
        });
        let whole = !object.to_string().contains("equestPrincipals") && !object.to_string().contains("aths");
        let whole = whole && !object.to_string().contains("old.example");
        each(&[object], |who, address, port| {
            let met = |seven: bool| {
                rules.iter().any(|(from, to)| {
                    let any = |list: &[Value], part: &str| {
                        list.is_empty()
                            || list
                                .iter()
                                .any(|one| matches(&one[part], who, address, port, seven))
                    };
                    any(from, "source") && any(to, "operation")
                })
            };
            // As the request that is let in the least.
            let allowed = if action == "ALLOW" { met(false) } else { !met(true) };
            (allowed, whole)
        });
    }
}
