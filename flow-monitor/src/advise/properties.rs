//! Whatever was seen: the policies made from it allow it, and nothing else, as the evaluator of the agents has it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use jiff::Timestamp;
use proptest::{collection::vec, prelude::*, sample::select};
use serde_json::{Value, json};
use weir_policy::{Authorization, AuthorizationPolicy, Policies, Request, Verdict};
use weir_types::{Flow, FlowEvent, FlowPath, FlowVerdict, Identity, Reason};

use super::{policy::policy, record::Record, report::Policy, state::State};

const ROOT: &str = "weir-system";
/// Namespace, pod, labels (`-` where nobody knows them), what runs it: workloads that look like one another, and pods that are not known.
const PODS: [(&str, &str, &str, &str); 12] = [
    ("shop", "api-0", "app=api,pod-template-hash=1", "api"),
    ("shop", "api-1", "app=api,pod-template-hash=2", "api"),
    ("shop", "web-0", "app=web,tier=front", "web"),
    ("shop", "old-0", "app=web,tier=back", "old"),
    ("shop", "db-0", "statefulset.kubernetes.io/pod-name=db-0", "db"),
    ("pay", "one", "app=card", ""),
    ("pay", "two", "app=card,tier=front", "card"),
    ("pay", "three", "-", ""),
    ("pay", "four", "app=bank,x=1", "bank"),
    ("pay", "five", "app=bank,y=2", "bank"),
    (ROOT, "weir-control", "app=control", "control"),
    ("batch", "job", "", "job"),
];
const PORTS: [u16; 4] = [80, 8080, 9090, 5432];
const ACCOUNTS: [&str; 3] = ["web", "job", "api"];
const STRANGERS: [&str; 4] = ["192.0.2.1", "192.0.2.2", "2001:db8::1", "::ffff:192.0.2.1"];

fn identity(account: &str) -> String {
    format!("spiffe://cluster.local/ns/shop/sa/{account}")
}

fn labels(text: &str) -> BTreeMap<String, String> {
    let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
    pairs
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

fn address(pod: usize) -> IpAddr {
    IpAddr::from([10, 0, 0, 1 + pod as u8])
}

fn end(pod: usize, port: u16) -> Value {
    let (namespace, name, text, runs) = PODS[pod];
    let mut end = json!({
        "address": SocketAddr::new(address(pod), port), "namespace": namespace, "pod": name,
    });
    if text != "-" {
        end["about"] = json!({"labels": labels(text)});
        if !runs.is_empty() {
            end["about"]["workload"] = json!({"name": runs, "kind": "Deployment"});
        }
    }
    end
}

/// One record: client, pod, port, how and what became of it, when.
fn flows() -> impl Strategy<Value = Vec<Flow>> {
    let client = prop_oneof![
        4 => (0..ACCOUNTS.len()).prop_map(|account| (Some(account), None)),
        2 => (0..PODS.len()).prop_map(|pod| (None, Some(pod))),
        2 => Just((None, None)),
    ];
    let event = select(vec![
        "open",
        "open",
        "open",
        "close",
        "refused denied",
        "refused failed",
        "close denied",
    ]);
    let one = (
        client,
        0..PODS.len(),
        select(&PORTS[..]),
        select(&STRANGERS[..]),
        event,
        0..50_i64,
        any::<[bool; 2]>(),
    );
    let one = one.prop_map(|((account, pod), to, port, stranger, event, second, [first, second_way])| {
        let (direction, path) = match (account, first, second_way) {
            (Some(_), true, true) => ("egress", "tunnel"),
            (Some(_), true, false) => ("egress", "direct"),
            (Some(_), false, _) => ("ingress", "tunnel"),
            (None, true, _) => ("ingress", "plaintext"),
            (None, false, _) => ("egress", "kernel"),
        };
        let mut source = match pod {
            Some(pod) => end(pod, 4000),
            None => json!({"address": SocketAddr::new(stranger.parse().unwrap(), 4000)}),
        };
        if let Some(account) = account {
            source["identity"] = identity(ACCOUNTS[account]).into();
        } else if !first && pod.is_some() {
            // Its own node knows it, and shows it to nobody.
            source["identity"] = identity("plain").into();
        }
        let (event, verdict, reason) = match event {
            "refused denied" => ("refused", "denied", "not_allowed"),
            "refused failed" => ("refused", "failed", "connection_refused"),
            "close denied" => ("close", "denied", "policy_changed"),
            event => (event, "forwarded", "none"),
        };
        let mut to = end(to, port);
        if direction == "ingress" {
            to["identity"] = identity("server").into();
        }
        let flow = json!({
            "sequence": second, "time": Timestamp::from_second(second).unwrap(), "node": "n", "connection": 1,
            "event": event, "verdict": verdict, "reason": reason, "direction": direction, "path": path,
            "source": source, "destination": to, "bytesSent": 1, "bytesReceived": 1, "durationUs": 1,
            "policy": (reason != "none").then(|| json!({"policy": "shop/x"})),
        });
        serde_json::from_value::<Flow>(flow).unwrap()
    });
    vec(one, 0..60)
}

fn shown(flow: &Flow) -> Option<&Identity> {
    matches!(flow.path, FlowPath::Tunnel | FlowPath::Direct)
        .then_some(flow.source.identity.as_ref())
        .flatten()
}

fn pod_of(flow: &Flow) -> usize {
    let ip = flow.destination.address.ip();
    (0..PODS.len()).find(|pod| address(*pod) == ip).unwrap()
}

fn is_made(flow: &Flow) -> bool {
    flow.event != FlowEvent::Refused && flow.verdict == FlowVerdict::Forwarded
}

/// Those that policies are made from, as one would say it without sums.
fn basis(flows: &[Flow]) -> Vec<&Flow> {
    let key = |flow: &Flow| {
        let (namespace, pod, text, runs) = PODS[pod_of(flow)];
        let workload = match (runs, labels(text)) {
            ("", labels) if labels.is_empty() => pod.to_owned(),
            ("", labels) => format!("{labels:?}"),
            (runs, _) => runs.to_owned(),
        };
        let client = match shown(flow) {
            Some(identity) => identity.to_string(),
            None => {
                // A pod and its address are one.
                let pod = flow.source.pod.clone().unwrap_or_default();
                let workload = PODS.iter().find(|one| one.1 == pod).map(|one| (one.0, one.3));
                format!("{workload:?} {}", flow.source.address.ip().to_canonical())
            }
        };
        (namespace, workload, flow.destination.address.port(), client)
    };
    let refusal = |flow: &Flow| matches!(flow.reason, Reason::NotAllowed | Reason::PolicyChanged);
    let mut last: BTreeMap<_, (Option<Timestamp>, Option<Timestamp>)> = BTreeMap::new();
    for flow in flows {
        let entry = last.entry(key(flow)).or_default();
        if is_made(flow) {
            entry.0 = entry.0.max(Some(flow.time));
        } else if refusal(flow) {
            entry.1 = entry.1.max(Some(flow.time));
        }
    }
    let made = flows.iter().filter(|flow| {
        let (made, refused) = last[&key(flow)];
        is_made(flow) && made >= refused && PODS[pod_of(flow)].0 != ROOT
    });
    made.collect()
}

fn advised(flows: &[Flow]) -> Policy {
    let mut record = Record::new(Timestamp::MIN, Vec::new());
    flows.iter().for_each(|flow| record.add(flow));
    policy(&record, &State::default(), ROOT)
}

/// As the agent has them.
fn compiled(policy: &Policy) -> Vec<Authorization> {
    let compiled = policy.policies.iter().map(|one| {
        let mut fields = one.manifest["spec"].clone();
        fields["name"] = one.manifest["metadata"]["name"].clone();
        fields["namespace"] = one.manifest["metadata"]["namespace"].clone();
        let policy: AuthorizationPolicy = serde_json::from_value(fields).unwrap();
        let (authorization, warnings) = policy.compile(ROOT).unwrap();
        assert_eq!(warnings, []);
        assert!(authorization.dry_run, "rehearsed first");
        authorization
    });
    compiled.collect()
}

fn enforced(mut policies: Vec<Authorization>) -> Policies {
    policies.iter_mut().for_each(|policy| policy.dry_run = false);
    Policies::new(ROOT, policies, &[]).unwrap()
}

/// Whether a connection is let through, and is by dry runs too.
fn allows(policies: &Policies, pod: usize, port: u16, source: Option<&Identity>, source_ip: IpAddr) -> bool {
    let (namespace, _, text, _) = PODS[pod];
    let of = policies.for_workload(namespace, &labels(text));
    let request = Request {
        source,
        source_ip,
        destination_ip: address(pod),
        destination_port: port,
    };
    let decision = of.decide(&request);
    matches!(decision.verdict, Verdict::Allowed(_)) && decision.dry_run.is_none()
}

fn allows_flow(policies: &Policies, flow: &Flow) -> bool {
    let port = flow.destination.address.port();
    allows(
        policies,
        pod_of(flow),
        port,
        shown(flow),
        flow.source.address.ip(),
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn of_the_flows_that_policies_were_made_from_nothing_is_denied(flows in flows()) {
        let policy = advised(&flows);
        let rehearsed = Policies::new(ROOT, compiled(&policy), &[]).unwrap();
        let enforced = enforced(compiled(&policy));
        for flow in basis(&flows) {
            prop_assert!(allows_flow(&rehearsed, flow), "rehearsed: {flow:?}\n{policy:#?}");
            prop_assert!(allows_flow(&enforced, flow), "{flow:?}\n{policy:#?}");
        }
    }

    #[test]
    fn without_any_of_their_rules_a_flow_would_be_denied(flows in flows()) {
        let policy = advised(&flows);
        let basis = basis(&flows);
        let all = compiled(&policy);
        for index in 0..all.len() {
            prop_assert!(!all[index].rules.is_empty());
            for rule in 0..all[index].rules.len() {
                let mut fewer = all.clone();
                fewer[index].rules.remove(rule);
                let fewer = enforced(fewer);
                prop_assert!(
                    basis.iter().any(|flow| !allows_flow(&fewer, flow)),
                    "rule {rule} of {} is for nothing\n{policy:#?}", all[index].name
                );
            }
        }
    }

    #[test]
    fn whoever_was_not_seen_is_denied_where_a_policy_is(flows in flows()) {
        let policies = enforced(compiled(&advised(&flows)));
        let stranger: Identity = identity("stranger").parse().unwrap();
        let basis = basis(&flows);
        let seen: BTreeSet<(usize, u16)> = basis.iter().map(|flow| (pod_of(flow), flow.destination.address.port())).collect();
        for (pod, port) in seen {
            // Not even from where somebody came without an identity.
            for from in basis.iter().map(|flow| flow.source.address.ip()) {
                prop_assert!(!allows(&policies, pod, port, Some(&stranger), from));
            }
            prop_assert!(!allows(&policies, pod, port, None, "198.51.100.1".parse().unwrap()));
        }
        for flow in basis {
            prop_assert!(!allows(&policies, pod_of(flow), 9999, shown(flow), flow.source.address.ip()));
        }
    }

    #[test]
    fn the_order_of_records_does_not_matter(flows in flows()) {
        let told = |flows: &[Flow]| serde_json::to_value(advised(flows)).unwrap();
        let backwards: Vec<Flow> = flows.iter().rev().cloned().collect();
        prop_assert_eq!(told(&flows), told(&backwards));
    }
}
