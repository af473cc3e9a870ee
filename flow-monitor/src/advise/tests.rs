//! What is said of records that are made up.

use std::io::BufReader;

use jiff::Timestamp;
use serde_json::{Value, json};
use weir_types::{
    Flow,
    api::{Status, WorkloadStatus},
};

use super::{
    What, advice, input,
    record::Record,
    report::{Advice, LayerAnswer, StrictAnswer},
    state::State,
};

/// `shop/web` is a pod of that name, with a label `app` of it; an address is nobody that is known.
fn end(who: &str, port: u16, verified: bool) -> Value {
    let Some((namespace, name)) = who.split_once('/') else {
        return json!({"address": format!("{who}:{port}")});
    };
    let mut end = json!({
        "address": format!("10.0.0.9:{port}"), "namespace": namespace, "pod": name,
        "about": {"labels": {"app": name}, "workload": {"name": name, "kind": "Deployment"}},
    });
    if verified {
        end["identity"] = format!("spiffe://cluster.local/ns/{namespace}/sa/{name}").into();
    }
    end
}

/// `open ingress tunnel`, from, to, and what else is to be said.
fn flow(kind: &str, from: &str, to: &str, more: &Value) -> Flow {
    let [event, direction, path] = kind.split(' ').collect::<Vec<_>>()[..] else {
        panic!("{kind}")
    };
    let mut flow = json!({
        "sequence": 1, "time": "2026-01-02T00:00:00Z", "node": "a", "connection": 1, "event": event,
        "verdict": "forwarded", "reason": "none", "direction": direction, "path": path,
        "source": end(from, 4000, path == "tunnel"),
        "destination": end(to, 8080, direction == "ingress" || path == "tunnel"),
        "bytesSent": 1, "bytesReceived": 1, "durationUs": 1,
    });
    for (field, value) in more.as_object().unwrap() {
        flow[field] = value.clone();
    }
    serde_json::from_value(flow).unwrap()
}

fn numbered(sequence: u64, second: i64) -> Flow {
    let time = Timestamp::from_second(second).unwrap();
    let more = json!({"sequence": sequence, "time": time});
    flow("open ingress tunnel", "shop/web", "shop/api", &more)
}

fn record(flows: &[Flow]) -> Record {
    let mut record = Record::new(Timestamp::MIN, Vec::new());
    flows.iter().for_each(|flow| record.add(flow));
    record
}

fn of(record: &Record, state: &State) -> Advice {
    advice(record, state, "weir-system", None)
}

fn status(fields: &Value) -> Status {
    let mut status = json!({
        "node": "a", "version": "1", "trustDomain": "cluster.local", "started": "2026-01-01T00:00:00Z", "ready": true,
        "config": {"file": "f", "generation": 1, "applied": "2026-01-01T00:00:00Z"},
        "pods": [], "certificates": [], "tunnels": [], "refusals": [], "programs": [], "roots": [],
        "flowsRecorded": 1, "flowsLost": 0, "kernelConnections": 1, "warnings": [], "errors": [],
    });
    for (name, value) in fields.as_object().unwrap() {
        status[name] = value.clone();
    }
    serde_json::from_value(status).unwrap()
}

fn asked(statuses: Vec<Status>) -> State {
    State {
        asked: true,
        now: "2026-01-01T00:16:40Z".parse().unwrap(),
        statuses,
        ..State::default()
    }
}

fn pod(namespace: &str, mode: &str) -> Value {
    json!({
        "uid": mode, "namespace": namespace, "name": mode, "identity": "spiffe://cluster.local/ns/x/sa/y",
        "addresses": [], "enrolled": true, "mode": mode, "policies": 0, "connections": 0,
    })
}

#[test]
fn what_makes_a_record_weak_is_said() {
    let day = 24 * 3600;
    let whole = [numbered(1, 0), numbered(2, day)];
    assert_eq!(
        of(&record(&whole), &State::default()).basis.weak,
        Vec::<String>::new()
    );
    let weak = |flows: &[Flow]| of(&record(flows), &State::default()).basis.weak.join("\n");
    assert!(weak(&[]).contains("nothing was recorded"));
    assert!(weak(&[numbered(1, 0), numbered(2, 3600)]).contains("spans 1h00m"));
    assert!(
        weak(&[numbered(1, 0), numbered(5, day), numbered(6, day)]).contains("3 records of a are missing")
    );
    assert!(weak(&[numbered(9, 0), numbered(1, day)]).contains("began anew 1 times"));
    assert!(
        weak(&[numbered(1, day), numbered(2, 2 * day), numbered(1, day)])
            .contains("1 records of a came after")
    );
    let mut other = numbered(1, 0);
    other.node = "b".to_owned();
    assert!(weak(&[numbered(1, 0), numbered(2, day), other]).contains("records of b span 0s only"));
    let mut lossy = record(&whole);
    lossy.lost("a", 7);
    let missing = State {
        missing: vec!["node c: gone".to_owned()],
        ..State::default()
    };
    let weak = of(&lossy, &missing).basis.weak;
    assert_eq!(
        weak,
        [
            "7 events of a were lost, says its agent",
            "not asked: node c: gone"
        ]
    );
}

#[test]
fn a_connection_that_both_nodes_recorded_from_its_begin_to_its_end_counts_once() {
    let more = json!({});
    let kinds = [
        "open egress tunnel",
        "open ingress tunnel",
        "close egress tunnel",
        "close ingress tunnel",
    ];
    let flows = kinds.map(|kind| flow(kind, "shop/web", "shop/api", &more));
    let advice = of(&record(&flows), &State::default());
    let policy = advice.policy.unwrap();
    assert_eq!(
        (policy.connections, policy.policies[0].rules[0].connections),
        (1, 1)
    );
    assert_eq!(advice.strict.unwrap()[0].verified, 1);
}

#[test]
fn strict_breaks_who_comes_in_plaintext_and_nobody_else() {
    let more = json!({});
    let probe = json!({"process": {"pid": 1, "name": "kubelet"}});
    let flows = [
        flow("open ingress tunnel", "shop/web", "shop/api", &more),
        flow("open ingress plaintext", "192.0.2.1", "shop/api", &probe),
        flow("open ingress tunnel", "shop/web", "pay/card", &more),
        flow("open ingress plaintext", "batch/job", "pay/card", &more),
        flow("open ingress plaintext", "192.0.2.1", "pay/card", &more),
        // Its own node knows who it is, and the other is not told.
        flow(
            "open egress plaintext",
            "shop/web",
            "old/vm",
            &json!({"source": end("shop/web", 1, true)}),
        ),
        flow("open ingress plaintext", "192.0.2.1", "done/it", &more),
    ];
    let pods = json!({"pods": [pod("done", "STRICT"), pod("idle", "PERMISSIVE"), pod("shop", "PERMISSIVE")]});
    let advice = of(&record(&flows), &asked(vec![status(&pods)]));
    let strict = advice.strict.unwrap();
    let answers: Vec<_> = strict
        .iter()
        .map(|one| (one.namespace.as_str(), one.answer))
        .collect();
    assert_eq!(
        answers,
        [
            ("batch", StrictAnswer::NotInMesh),
            ("done", StrictAnswer::IsStrict),
            ("idle", StrictAnswer::NothingSeen),
            ("old", StrictAnswer::NotInMesh),
            ("pay", StrictAnswer::ClientsWouldBreak),
            ("shop", StrictAnswer::CouldGoStrict),
        ]
    );
    let clients = &strict[4].workloads[0].clients;
    let names: Vec<_> = clients.iter().map(|client| client.client.as_str()).collect();
    assert_eq!(names, ["192.0.2.1", "batch/job (Deployment)"]);
    assert_eq!(strict[5].probes, 1);
}

#[test]
fn layer_7_is_asked_for_where_a_policy_does_and_nowhere_else() {
    let more = json!({});
    let flows = ["shop/api", "pay/card"].map(|to| flow("open ingress tunnel", "shop/web", to, &more));
    let warning =
        "shop/p: rules[0].to[0].operation.methods: cannot be decided at L4: the ALLOW rule never matches";
    let other = "pay/q: mtls.mode: DISABLE accepts plaintext";
    let answers = |warnings: &[&str]| {
        let state = asked(vec![status(&json!({"warnings": warnings}))]);
        let layers = of(&record(&flows), &state).layers.unwrap();
        let workloads = layers.workloads.into_iter();
        (
            workloads.map(|one| one.answer).collect::<Vec<_>>(),
            layers.asks.len(),
        )
    };
    use LayerAnswer::{AsksForWaypoint, Layer4IsEnough};
    assert_eq!(answers(&[other]), (vec![Layer4IsEnough, Layer4IsEnough], 0));
    assert_eq!(
        answers(&[other, warning, warning]),
        (vec![Layer4IsEnough, AsksForWaypoint], 1)
    );
    let root = warning.replace("shop/p", "weir-system/p");
    assert_eq!(answers(&[&root]), (vec![AsksForWaypoint, AsksForWaypoint], 1));
}

#[test]
fn cost_is_per_node_and_for_what_was_carried() {
    let busy = json!({"process": {
        "cpuMs": 20_000, "residentBytes": 50_000_000, "bytes": 4_000_000_000_u64, "connections": 10_000,
    }});
    let idle =
        json!({"node": "b", "process": {"cpuMs": 1000, "residentBytes": 9, "bytes": 5, "connections": 1}});
    let old = json!({"node": "c"});
    let cost = of(
        &record(&[]),
        &asked([busy, idle, old].iter().map(status).collect()),
    )
    .cost
    .unwrap();
    let (a, b) = (&cost.nodes[0], &cost.nodes[1]);
    assert_eq!((a.up_seconds, a.cores), (1000.0, 0.02));
    assert_eq!(
        (a.cpu_seconds_per_gigabyte, a.cpu_ms_per_connection),
        (Some(5.0), Some(2.0))
    );
    assert_eq!(
        (b.cpu_seconds_per_gigabyte, b.cpu_ms_per_connection),
        (None, None),
        "of next to nothing"
    );
    let total = cost.total.unwrap();
    assert_eq!(
        (total.cpu_seconds, total.cores, total.connections),
        (21.0, 0.021, 10_001)
    );
    assert!(
        cost.notes
            .iter()
            .any(|note| note.contains("agent of c is too old"))
    );
}

#[test]
fn a_selector_chooses_its_workload_alone_also_among_pods_that_no_record_shows() {
    let flows = [flow("open ingress tunnel", "shop/web", "shop/api", &json!({}))];
    let selector = |others: &[Value]| {
        let others: Vec<WorkloadStatus> = others
            .iter()
            .map(|labels| {
                let status = json!({
                    "uid": "u", "namespace": "shop", "name": format!("other{labels}"), "node": "a", "tunnel": "HBONE",
                    "identity": "spiffe://cluster.local/ns/x/sa/y", "addresses": [], "services": [], "labels": labels,
                    "local": false,
                });
                serde_json::from_value(status).unwrap()
            })
            .collect();
        let mut record = Record::new(Timestamp::MIN, Vec::new());
        record.learn(&others);
        flows.iter().for_each(|flow| record.add(flow));
        let policy = of(&record, &State::default()).policy.unwrap();
        (policy.policies[0].name.clone(), policy.policies[0].selector.len())
    };
    let (chosen, whole) = (("advised-api".to_owned(), 1), ("advised".to_owned(), 0));
    assert_eq!(selector(&[]), chosen);
    assert_eq!(selector(&[json!({"app": "other"})]), chosen);
    // Another replica of it.
    assert_eq!(
        selector(&[json!({"app": "api", "pod-template-hash": "1"})]),
        chosen
    );
    assert_eq!(selector(&[json!({"app": "api", "tier": "x"})]), whole);
}

#[test]
fn what_is_refused_by_now_is_not_allowed_again() {
    let more = json!({});
    let later = json!({
        "time": "2026-01-03T00:00:00Z", "verdict": "denied", "reason": "not_allowed", "policy": {"policy": "shop/p"},
    });
    let flows = [
        flow("open ingress tunnel", "shop/web", "shop/api", &more),
        flow("open ingress tunnel", "shop/job", "shop/api", &more),
        flow("refused ingress tunnel", "shop/job", "shop/api", &later),
    ];
    let policy = of(&record(&flows), &State::default()).policy.unwrap();
    assert_eq!(
        policy.policies[0].rules[0].principals,
        ["cluster.local/ns/shop/sa/web"]
    );
    assert_eq!(policy.would_deny[0].client, "cluster.local/ns/shop/sa/job");
    assert!(policy.would_deny[0].why.contains("refused since"));
    let notes = policy.policies[0].notes.join("\n");
    assert!(
        notes.contains("shop/p (ALLOW) is in force"),
        "how they combine: {notes}"
    );
}

#[test]
fn very_many_addresses_become_blocks_and_very_many_clients_no_policy() {
    let plain = |number: u32, sa: Option<u32>| {
        let mut flow = flow("open ingress plaintext", "192.0.2.1", "shop/api", &json!({}));
        flow.source.address = (std::net::Ipv4Addr::from(0x0a00_0000 + number), 1).into();
        flow.source.identity = sa.map(|sa| format!("spiffe://t/ns/n/sa/s{sa}").parse().unwrap());
        if sa.is_some() {
            flow.path = weir_types::FlowPath::Tunnel;
        }
        flow
    };
    let many: Vec<Flow> = (0..10_000).map(|number| plain(number, None)).collect();
    let policy = of(&record(&many), &State::default()).policy.unwrap();
    let blocks = &policy.policies[0].rules[0].ip_blocks;
    assert_eq!((blocks.len(), blocks[0].as_str()), (40, "10.0.0.0/24"));
    assert_eq!(policy.connections, 10_000);

    let mut record = Record::new(Timestamp::MIN, Vec::new());
    (0..250_000).for_each(|number| record.add(&plain(1, Some(number))));
    assert!(record.pairs.len() <= 200_000);
    let advice = of(&record, &State::default());
    assert!(advice.basis.weak.join("\n").contains("records were not counted"));
    let policy = advice.policy.unwrap();
    assert!(policy.policies.is_empty() && policy.notes[0].contains("no policy is written"));
}

#[test]
fn many_rules_and_values_stay_within_what_the_definition_takes() {
    // Each client at ports of its own, each port with clients of its own: no two go together.
    let mut flows = Vec::new();
    for client in 0..150_u16 {
        for port in [client + 1, client + 2] {
            let mut flow = flow("open ingress tunnel", "shop/web", "shop/api", &json!({}));
            flow.source.identity = Some(format!("spiffe://t/ns/n/sa/s{client}").parse().unwrap());
            flow.destination.address.set_port(port);
            flows.push(flow);
        }
    }
    let policy = of(&record(&flows), &State::default()).policy.unwrap();
    let names: Vec<&str> = policy.policies.iter().map(|one| one.name.as_str()).collect();
    assert_eq!(names, ["advised-api", "advised-api--2", "advised-api--3"]);
    for one in &policy.policies {
        assert!(one.rules.len() <= 64);
        assert_eq!(
            crate::migrate::output::problem(&one.manifest, "weir-system"),
            None
        );
    }
    assert_eq!(
        policy.policies.iter().map(|one| one.rules.len()).sum::<usize>(),
        150
    );
}

#[test]
fn only_what_was_asked_for_is_said_and_only_of_that_time_and_namespace() {
    let flows = [numbered(1, 100), numbered(2, 200)];
    let only = advice(
        &record(&flows),
        &State::default(),
        "weir-system",
        Some(What::Layers),
    );
    assert!(only.layers.is_some() && only.strict.is_none() && only.policy.is_none() && only.cost.is_none());
    let mut since = Record::new(Timestamp::from_second(150).unwrap(), vec!["shop".to_owned()]);
    let mut elsewhere = Record::new(Timestamp::MIN, vec!["pay".to_owned()]);
    for flow in &flows {
        since.add(flow);
        elsewhere.add(flow);
    }
    assert_eq!(of(&since, &State::default()).policy.unwrap().connections, 1);
    assert_eq!(of(&elsewhere, &State::default()).policy.unwrap().connections, 0);
}

#[test]
fn a_line_that_is_no_flow_is_named() {
    let line = serde_json::to_string(&numbered(1, 0)).unwrap();
    let read = |text: &[u8]| {
        let mut record = Record::new(Timestamp::MIN, Vec::new());
        let read = input::lines("f", &mut BufReader::new(text), &mut record);
        read.map(|()| record.flows).map_err(|error| error.to_string())
    };
    assert_eq!(read(format!("{line}\n\n{line}").as_bytes()), Ok(2));
    let wrong = read(format!("{line}\n{}", &line[..40]).as_bytes()).unwrap_err();
    assert!(
        wrong.starts_with("f: line 2: no flow of 'weir flows -o json'"),
        "{wrong}"
    );
    let wrong = read(b"{\"flow\": 7}").unwrap_err();
    assert!(
        wrong.starts_with("f: line 1: no flow of 'hubble observe -o jsonpb'"),
        "{wrong}"
    );
    let wrong = read(b"\xff\n").unwrap_err();
    assert!(wrong.starts_with("f: line 1: no UTF-8"), "{wrong}");
    let wrong = read(&vec![b' '; 3 << 20]).unwrap_err();
    assert!(wrong.contains("line 1: longer than"), "{wrong}");
}
