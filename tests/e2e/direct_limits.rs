//! The direct path at its limits: an agent that is silent or gone, and tables of the kernel that are full. Connections may
//! become slower or fail then, but none passes that policy forbids.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aya::maps::{Array, HashMap, Map, MapData};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use weir_abi::{
    Budget, Conn, ConnKind, Endpoint, FlowKey, LAYOUT_VERSION, Pending, Pod as PodEntry, Verdict, VerdictKey,
    VerdictKind, slot,
};
use weir_e2e::{
    Mesh,
    direct::{self, at, client, from, from_to, policy},
    identity, lines,
    peers::python,
    run, serve,
};
use weir_lab::{
    Agent, PATIENCE, Pod, PodSpec, Process, Spawn as _, config::ServiceConfig, poll, replace_file,
};
use weir_types::{FlowEvent, FlowPath, Reason, TrafficDirection};

/// How long decisions hold without a sign of the agent, milliseconds; it gives one five times in that.
const LEASE_MS: u64 = 5000;
/// No pod's handle.
const NOBODY: u32 = u32::MAX;
/// Entries of the tables of connections, of those about to be sent, and of verdicts (weir-ebpf, maps.rs).
const MAX_CONNECTIONS: u32 = 131_072;
/// As above.
const MAX_PENDING: u32 = 8192;
/// As above.
const MAX_VERDICTS: u32 = 131_072;
/// Destinations whose verdict the kernel caches for one pod.
const VERDICTS_OF_POD: u16 = 4096;

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    since.as_millis().try_into().unwrap()
}

fn wait_until(ms: u64) {
    std::thread::sleep(Duration::from_millis(ms.saturating_sub(now_ms())));
}

/// Connects without an end, and logs each connection.
fn storm(pod: &Pod, to: &str) -> Process {
    let load = [
        "--threads",
        "2",
        "--pause-ms",
        "5",
        "--seconds",
        "60",
        "--timeout-ms",
        "700",
    ];
    pod.testapp(["many", to, "--log-all"].iter().chain(&load))
        .unwrap()
}

/// When the connections of a storm began, and whether they succeeded.
fn attempts(storm: &Process) -> Vec<(u64, bool)> {
    let text = storm.stdout();
    let attempt = |line: &str| {
        let line: Value = serde_json::from_str(line).ok()?;
        Some((line["began_ms"].as_u64()?, line["outcome"] == "success"))
    };
    String::from_utf8_lossy(&text)
        .lines()
        .filter_map(attempt)
        .collect()
}

/// Waits for connections that began after this moment and had this outcome.
fn wait_outcome(storm: &Process, after: u64, success: bool) {
    weir_lab::poll("connections", PATIENCE, || {
        let all = attempts(storm);
        let found = all
            .iter()
            .filter(|(began, good)| *began > after && *good == success)
            .count();
        Ok((found >= 2).then_some(()))
    })
    .unwrap();
}

/// How many connections that began in this time succeeded, and how many failed.
fn outcomes(storm: &Process, began: u64, ended: u64) -> (usize, usize) {
    let all = attempts(storm);
    let within = all.iter().filter(|(at, _)| (began..ended).contains(at));
    within.fold((0, 0), |(good, bad), (_, success)| {
        if *success {
            (good + 1, bad)
        } else {
            (good, bad + 1)
        }
    })
}

/// A mesh in which `b` lets `a` in and not the rival, each of whom tries without a pause, `a` directly.
struct Lease {
    permitted: Process,
    forbidden: Process,
    _server: Process,
    mesh: Mesh,
}

impl Lease {
    fn new(name: &str) -> Self {
        let lease = format!("{}s", LEASE_MS / 1000);
        let mut mesh = direct::mesh_with(name, |config| config.verdict_lease = Some(lease.clone()));
        let rival = mesh.add(PodSpec::new("node1", "shop", "rival"));
        mesh.set_policies(&[policy("ALLOW", "b", &from("a"))]);
        let (_server, _) = serve(&mesh.b, ["name-server", "--name", "b", "--port", "7000"]);
        let to = at(mesh.b.v4(), 7000);
        mesh.learn(&mesh.a, &to);
        let [permitted, forbidden] = [&mesh.a, &rival].map(|pod| storm(pod, &to));
        for (storm, success) in [(&permitted, true), (&forbidden, false)] {
            wait_outcome(storm, 0, success);
        }
        Self {
            permitted,
            forbidden,
            _server,
            mesh,
        }
    }

    /// Waits until a lease without an agent since `silent` is over, and sees that it held and ended. Gives the time.
    fn runs_out(&self, silent: u64) -> u64 {
        // Long enough for connections of after it to fail: who waits for a silent agent gives up after 700 ms.
        let end = silent + LEASE_MS + 2000;
        wait_until(end);
        // The last sign of life may have been a fifth of it earlier.
        let (good, bad) = outcomes(&self.permitted, silent, silent + LEASE_MS * 7 / 10);
        assert!(
            good > 50 && bad == 0,
            "within the lease {good} succeeded and {bad} failed"
        );
        let (good, bad) = outcomes(&self.permitted, silent + LEASE_MS + 100, end);
        assert!(
            good == 0 && bad > 0,
            "after the lease {good} succeeded and {bad} failed"
        );
        end
    }

    fn assert_forbidden(&self) {
        let (good, bad) = outcomes(&self.forbidden, 0, u64::MAX);
        assert!(
            good == 0 && bad > 0,
            "{good} of the rival's connections succeeded"
        );
    }
}

#[test]
fn a_permission_outlives_a_silent_agent_for_the_lease_and_no_longer() {
    let stage = Lease::new("silent");
    let agent = Pid::from_raw(stage.mesh.agents[0].pid().try_into().unwrap()).unwrap();
    kill_process(agent, Signal::STOP).unwrap();
    stage.runs_out(now_ms());
    kill_process(agent, Signal::CONT).unwrap();
    wait_outcome(&stage.permitted, now_ms(), true);
    stage.assert_forbidden();
}

#[test]
fn a_permission_outlives_a_killed_agent_for_the_lease_and_the_next_one_asks_the_new_policy() {
    let mut stage = Lease::new("killed");
    stage.mesh.set_policies(&[]);
    wait_outcome(&stage.forbidden, now_ms(), true);
    stage.mesh.set_policies(&[policy("ALLOW", "b", &from("a"))]);
    wait_outcome(&stage.permitted, now_ms(), true);
    let began = now_ms();
    wait_outcome(&stage.forbidden, began, false);
    let agent = &stage.mesh.agents[0];
    agent.kill().unwrap();
    let killed = now_ms();
    let end = stage.runs_out(killed);
    let (good, _) = outcomes(&stage.forbidden, began, end);
    assert_eq!(good, 0, "the rival's");
    // The next one reads another policy: JSON is YAML too.
    let text = std::fs::read_to_string(agent.config_file()).unwrap();
    let denied = policy("DENY", "b", &from("a"));
    let (head, _) = text.split_once("\nauthorizationPolicies:").unwrap();
    let rest = text[head.len() + 1..].lines().skip(1);
    let rest: Vec<_> = rest.skip_while(|line| line.starts_with([' ', '-'])).collect();
    let text = format!("{head}\nauthorizationPolicies: [{denied}]\n{}\n", rest.join("\n"));
    replace_file(agent.config_file(), text.as_bytes()).unwrap();
    let restarted = now_ms();
    agent.restart().unwrap();
    wait_outcome(&stage.permitted, now_ms(), false);
    let (good, _) = outcomes(&stage.permitted, restarted, u64::MAX);
    assert_eq!(good, 0, "of a pod that the new policy denies");
    stage.mesh.set_policies(&[]);
    wait_outcome(&stage.permitted, now_ms(), true);
}

#[test]
fn a_connect_that_holds_its_first_packet_back_does_not_outlive_the_lease() {
    let stage = Lease::new("stashed");
    let mesh = &stage.mesh;
    // TFO_CLIENT_ENABLE | TFO_CLIENT_NO_COOKIE (ip-sysctl.rst): `connect` returns before anything is sent.
    mesh.a.sysctl(&[("net/ipv4/tcp_fastopen", "5")]).unwrap();
    let to = at(mesh.b.v4(), 7000);
    let mut stashed = client(&mesh.a, &["late", "--to", &to, "--deferred"]);
    stashed.wait_json("connected").unwrap();
    mesh.agents[0].kill().unwrap();
    stage.runs_out(now_ms());
    stashed.signal(Signal::USR1).unwrap();
    let line = stashed.wait(PATIENCE).unwrap().success().unwrap().json().unwrap();
    assert_ne!(line["end"], "b", "{line}");
}

/// A table of a node's agent.
fn table<K: aya::Pod, V: aya::Pod>(agent: &Agent, name: &str) -> HashMap<MapData, K, V> {
    let pins = agent.config().pin_dir.join(format!("v{LAYOUT_VERSION}"));
    let data = MapData::from_pin(pins.join(name)).expect(name);
    HashMap::try_from(Map::HashMap(data)).unwrap()
}

/// Fills a table with what nobody needs; gives that.
fn fill<K: aya::Pod, V: aya::Pod>(
    table: &mut HashMap<MapData, K, V>,
    max: u32,
    entry: impl Fn(u32) -> (K, V),
) -> Vec<K> {
    let mut filled = Vec::new();
    for number in 0..=max {
        let (key, value) = entry(number);
        if table.insert(key, value, 0).is_err() {
            return filled;
        }
        filled.push(key);
    }
    panic!("it has more than {max} entries");
}

fn empty<K: aya::Pod, V: aya::Pod>(table: &mut HashMap<MapData, K, V>, filled: &[K]) {
    for key in filled {
        table.remove(key).unwrap();
    }
}

/// An address and port of no pod.
fn nowhere(number: u32) -> Endpoint {
    Endpoint::from(SocketAddr::new(
        IpAddr::from((0xfd99_u128 << 112 | u128::from(number)).to_be_bytes()),
        1,
    ))
}

/// The entry of a pod's share of the table of connections.
fn share(agent: &Agent, pod: &Pod) -> (Array<MapData, Budget>, u32) {
    let pods = table::<u64, PodEntry>(agent, "PODS");
    let own = u32::from_ne_bytes(pod.v4().octets());
    let mut entries = pods.iter().filter_map(Result::ok);
    let (_, entry) = entries.find(|(_, entry)| entry.v4 == own).unwrap();
    let pins = agent.config().pin_dir.join(format!("v{LAYOUT_VERSION}"));
    let data = MapData::from_pin(pins.join("BUDGETS")).unwrap();
    (Array::try_from(Map::Array(data)).unwrap(), slot(entry.handle))
}

fn connect(pod: &Pod, to: &str) -> Value {
    let arguments = [
        "connect",
        to,
        "--send",
        "x",
        "--read",
        "1",
        "--timeout-ms",
        "3000",
    ];
    run(pod, arguments).json().unwrap()
}

#[test]
fn a_pod_with_its_share_of_connections_reaches_nobody_directly_and_others_go_on() {
    let mut mesh = direct::mesh("fullshare");
    let other = mesh.add(PodSpec::new("node1", "shop", "other"));
    let (server, _) = serve(&mesh.b, ["echo-server", "--port", "7000", "--print-peer"]);
    let to = at(mesh.b.v4(), 7000);
    for pod in [&mesh.a, &other] {
        mesh.learn(pod, &to);
    }
    let before = lines(&server, "accept", 0).len() + 1;
    let held = format!("connect {to} --send x --read 2 --timeout-ms 60000");
    let held = mesh.a.testapp(held.split(" ")).unwrap();
    let agent = mesh.agent(&mesh.a);
    let (mut shares, handle) = share(agent, &mesh.a);
    let used = |shares: &Array<MapData, Budget>| shares.get(&handle, 0).unwrap().used;
    weir_lab::poll("its connection alone in the table", PATIENCE, || {
        Ok((used(&shares) == 1).then_some(()))
    })
    .unwrap();
    let _ = lines(&server, "accept", before);
    let budget = shares.get(&handle, 0).unwrap();
    shares.set(handle, Budget { limit: 1, ..budget }, 0).unwrap();
    for _ in 0..5 {
        let line = connect(&mesh.a, &to);
        assert_eq!(line["connect"], "ECONNREFUSED", "{line}");
    }
    let full = mesh.flow(&mesh.a, TrafficDirection::Egress, FlowEvent::Refused, 7000);
    assert_eq!(
        (full.reason, full.source.identity),
        (Reason::TableFull, identity("a"))
    );
    assert_eq!(
        lines(&server, "accept", 0).len(),
        before,
        "nothing was let in unregistered"
    );
    mesh.learn(&other, &to);
    drop(held);
    weir_lab::poll("room for another", PATIENCE, || {
        Ok((connect(&mesh.a, &to)["text"] == "x").then_some(()))
    })
    .unwrap();
    weir_lab::poll("nothing counted twice", PATIENCE, || {
        Ok((used(&shares) == 0).then_some(()))
    })
    .unwrap();
}

#[test]
fn a_server_that_registers_over_the_connections_of_its_clients_takes_nothing_from_their_share() {
    let mesh = direct::mesh("leak");
    let (server, _) = serve(&mesh.b, ["echo-server", "--port", "7000", "--print-peer"]);
    let to = at(mesh.b.v4(), 7000);
    mesh.learn(&mesh.a, &to);
    let before = lines(&server, "accept", 0).len();
    let (shares, handle) = share(mesh.agent(&mesh.a), &mesh.a);
    let used = || shares.get(&handle, 0).unwrap().used;
    let (bind, v4) = (at(mesh.a.v4(), 5000), mesh.a.v4());
    let ends = ["connect", &to, "--bind", &bind, "--send", "x", "--read", "1"];
    let held = ends.iter().chain(&["--hold-ms", "2000", "--reset"]);
    let held = mesh.a.testapp(held).unwrap();
    let _ = lines(&server, "accept", before + 1);
    // To itself a pod may connect from any address: here from its client's, and from the very port.
    mesh.b.ip(&[&format!("addr add {v4}/32 dev lo")]).unwrap();
    let arguments = ["connect", &to, "--bind", &bind, "--timeout-ms", "500"];
    let line = run(&mesh.b, arguments).json().unwrap();
    assert_ne!(line["connect"], "EADDRNOTAVAIL", "{line}");
    mesh.b.ip(&[&format!("addr del {v4}/32 dev lo")]).unwrap();
    assert_eq!(used(), 1, "the client is still connected");
    held.wait(PATIENCE).unwrap().success().unwrap();
    let given_back = || Ok((used() == 0).then_some(()));
    weir_lab::poll("its share given back", PATIENCE / 6, given_back).unwrap();
}

#[test]
fn a_full_table_of_connections_refuses_and_lets_nothing_in_unregistered() {
    let mesh = direct::mesh("fulltable");
    let (server, _) = serve(&mesh.b, ["echo-server", "--port", "7000", "--print-peer"]);
    let to = at(mesh.b.v4(), 7000);
    mesh.learn(&mesh.a, &to);
    let mut connections = table::<FlowKey, Conn>(mesh.agent(&mesh.a), "CONNECTIONS");
    let filled = fill(&mut connections, MAX_CONNECTIONS, |number| {
        let key = FlowKey {
            src: nowhere(number),
            dst: nowhere(number),
        };
        let conn = Conn {
            kind: ConnKind::DIRECT,
            pod: NOBODY,
            dest_pod: NOBODY,
            ..Conn::default()
        };
        (key, conn)
    });
    let before = lines(&server, "accept", 0).len();
    for _ in 0..5 {
        let line = connect(&mesh.a, &to);
        assert_eq!(line["connect"], "ECONNREFUSED", "{line}");
    }
    let flow = mesh.flow(&mesh.a, TrafficDirection::Egress, FlowEvent::Refused, 7000);
    assert_eq!(flow.reason, Reason::TableFull);
    assert_eq!(lines(&server, "accept", 0).len(), before);
    empty(&mut connections, &filled);
    assert_eq!(connect(&mesh.a, &to)["text"], "x");
}

#[test]
fn a_service_is_reached_directly_without_room_among_those_about_to_be_sent() {
    let mesh = direct::mesh_with("fullpending", |config| {
        let (vip, endpoints) = ("10.96.0.10".parse().unwrap(), ["shop-b".to_owned()]);
        let service = ServiceConfig::new("shop", "api", [vip], (80, 7000), endpoints);
        config.services.push(service);
    });
    let (_server, _) = serve(&mesh.b, ["echo-server", "--port", "7000"]);
    let direct = |least: usize| {
        poll("direct connections", PATIENCE, || {
            assert_eq!(connect(&mesh.a, "10.96.0.10:80")["text"], "x");
            let flows = mesh.agent(&mesh.a).flows()?;
            let direct = flows.iter().filter(|flow| {
                flow.direction == TrafficDirection::Egress
                    && flow.path == FlowPath::Direct
                    && flow.event == FlowEvent::Close
            });
            let count = direct.count();
            Ok((count >= least).then_some(count))
        })
        .unwrap()
    };
    let before = direct(1);
    let mut pending = table::<u64, Pending>(mesh.agent(&mesh.a), "PENDING");
    let cookie = |number: u32| (u64::MAX - u64::from(number), Pending::default());
    let filled = fill(&mut pending, MAX_PENDING, cookie);
    let full = direct(before + 2);
    empty(&mut pending, &filled);
    direct(full + 2);
}

#[test]
fn with_a_full_table_of_verdicts_the_agent_decides_each_connection() {
    let mut mesh = direct::mesh("fullverdicts");
    let rival = mesh.add(PodSpec::new("node1", "shop", "rival"));
    let (_server, _) = serve(&mesh.b, ["echo-server", "--port", "7000"]);
    let to = at(mesh.b.v4(), 7000);
    mesh.set_policies(&[policy("ALLOW", "b", &from("a"))]);
    let mut verdicts = table::<VerdictKey, Verdict>(mesh.agent(&mesh.a), "VERDICTS");
    let filled = fill(&mut verdicts, MAX_VERDICTS, |number| {
        let key = VerdictKey {
            pod: NOBODY,
            dst: nowhere(number),
        };
        (
            key,
            Verdict {
                kind: VerdictKind::DENY,
                ..Verdict::default()
            },
        )
    });
    for _ in 0..5 {
        assert_eq!(connect(&mesh.a, &to)["text"], "x");
        assert_eq!(connect(&rival, &to)["text"], "");
    }
    mesh.set_policies(&[policy("ALLOW", "b", &from("rival"))]);
    for _ in 0..5 {
        assert_eq!(connect(&mesh.a, &to)["text"], "");
        assert_eq!(connect(&rival, &to)["text"], "x");
    }
    let flows = mesh.agent(&mesh.a).flows().unwrap();
    assert!(
        flows.iter().all(|flow| flow.path != FlowPath::Direct),
        "nothing was remembered"
    );
    empty(&mut verdicts, &filled);
    mesh.learn(&rival, &to);
    assert_eq!(connect(&mesh.a, &to)["text"], "");
}

#[test]
fn a_pod_with_thousands_of_destinations_is_still_denied_those_that_it_may_not_reach() {
    let mut mesh = direct::mesh("manydest");
    let (_server, _) = serve(&mesh.b, ["echo-server", "--port", "7000"]);
    let (_forbidden, _) = serve(&mesh.b, ["echo-server", "--port", "7001"]);
    mesh.set_policies(&[policy("DENY", "b", &from_to("a", 7001))]);
    let [good, bad] = [7000, 7001].map(|port| at(mesh.b.v4(), port));
    mesh.learn(&mesh.a, &good);
    for _ in 0..2 {
        assert_eq!(connect(&mesh.a, &bad)["text"], "");
    }
    let mut scan = python("scan.py");
    let count = (VERDICTS_OF_POD + 100).to_string();
    scan.arg(mesh.b.v4().to_string())
        .args(["--first", "20000", "--count", &count]);
    let ends = mesh
        .a
        .run_for(scan, PATIENCE * 4)
        .unwrap()
        .success()
        .unwrap()
        .json()
        .unwrap();
    assert_eq!(ends["ends"].get("data"), None, "{ends}");
    let cached = table::<VerdictKey, Verdict>(mesh.agent(&mesh.a), "VERDICTS");
    assert_eq!(
        cached.keys().filter_map(Result::ok).count(),
        usize::from(VERDICTS_OF_POD)
    );
    for _ in 0..2 {
        let line = connect(&mesh.a, &bad);
        assert_eq!(line["text"], "", "{line}");
        assert_eq!(connect(&mesh.a, &good)["text"], "x");
    }
}
