//! One pod's share of the kernel's tables: who takes all of it takes nothing from others.

use std::{net::SocketAddr, time::Duration};

use aya::maps::{Array, HashMap, Map, MapData};
use weir_abi::{Budget, LAYOUT_VERSION, Pod as PodEntry, slot};
use weir_e2e::{Mesh, identity, lines, peers::python, run, serve};
use weir_lab::{Agent, Pod, Spawn as _};
use weir_types::{Flow, FlowEvent, FlowPath, Reason, TrafficDirection};

/// Destinations whose verdict the kernel caches for one pod.
const VERDICTS: u16 = 4096;
const FIRST: u16 = 20_000;
const SCANNED: u16 = VERDICTS + 200;
/// Each port of a scan takes the agent about a millisecond; two busy cores in CI take longer.
const LONG: Duration = Duration::from_secs(120);

#[test]
fn a_port_scan_pushes_no_other_pods_decisions_out_of_the_kernel() {
    let mesh = Mesh::new("scan");
    let outside = mesh.lab.outside().unwrap();
    let server = outside.testapp(["echo-server", "--port", "7000"]).unwrap();
    server.wait_listening().unwrap();
    let host = mesh.lab.outside_addresses().0;
    let connect = |pod: &Pod, port: u16| {
        let to = SocketAddr::new(host.into(), port).to_string();
        drop(run(pod, ["connect", &to, "--send", "x", "--read", "1"]));
    };
    let went = |pod: &Pod, port: u16, event: FlowEvent, path: FlowPath| {
        let _ = mesh.flow_where(pod, TrafficDirection::Egress, event, port, |flow| {
            flow.path == path
        });
    };
    // The first goes through the agent, which lets the next pass in the kernel.
    connect(&mesh.b, 7000);
    went(&mesh.b, 7000, FlowEvent::Close, FlowPath::Plaintext);
    let mut scan = python("scan.py");
    scan.arg(host.to_string())
        .args(["--first", &FIRST.to_string(), "--count", &SCANNED.to_string()]);
    let ends = mesh
        .a
        .run_for(scan, LONG)
        .unwrap()
        .success()
        .unwrap()
        .json()
        .unwrap();
    assert_eq!(ends["ends"].get("data"), None, "{ends}");
    connect(&mesh.b, 7000);
    went(&mesh.b, 7000, FlowEvent::Close, FlowPath::Kernel);
    // The scanner's own last ports are remembered, its first ones no more: its share was full.
    let last = FIRST + SCANNED - 1;
    connect(&mesh.a, last);
    went(&mesh.a, last, FlowEvent::Refused, FlowPath::Kernel);
    connect(&mesh.a, FIRST);
    let through_agent =
        |flow: &Flow| flow.destination.address.port() == FIRST && flow.path == FlowPath::Plaintext;
    weir_lab::poll("both attempts in the agent", weir_lab::PATIENCE, || {
        let flows = mesh.agent(&mesh.a).flows()?;
        Ok((flows.iter().filter(|flow| through_agent(flow)).count() == 2).then_some(()))
    })
    .unwrap();
    run(&mesh.a, ["echo-client", &format!("{host}:7000")])
        .success()
        .unwrap();
}

#[test]
fn a_pod_with_as_many_connections_as_it_may_have_is_refused_more_and_others_are_not() {
    let mesh = Mesh::new("share");
    let (server, _) = serve(&mesh.c, ["echo-server", "--port", "7000", "--print-peer"]);
    let to = format!("{}:7000", mesh.c.v4());
    let held = mesh
        .a
        .testapp([
            "connect",
            &to,
            "--send",
            "x",
            "--read",
            "2",
            "--timeout-ms",
            "60000",
        ])
        .unwrap();
    let _ = lines(&server, "accept", 1);
    // Its real share is half of the ephemeral ports, which takes too long to use up.
    set_share(mesh.agent(&mesh.a), &mesh.a, 1);
    let line = run(&mesh.a, ["connect", &to, "--send", "x", "--read", "1"])
        .json()
        .unwrap();
    assert_eq!(line["connect"], "ECONNREFUSED", "{line}");
    let flow = mesh.flow(&mesh.a, TrafficDirection::Egress, FlowEvent::Refused, 7000);
    assert_eq!(flow.reason, Reason::TableFull);
    assert_eq!(flow.destination.address.to_string(), to);
    assert_eq!(flow.source.identity, identity("a"));
    run(&mesh.b, ["echo-client", &to]).success().unwrap();
    // What it gives back it may use again.
    drop(held);
    weir_lab::poll("room for another", weir_lab::PATIENCE, || {
        let line = run(&mesh.a, ["connect", &to, "--send", "x", "--read", "1"]).json()?;
        Ok((line["connect"] == "ok" && line["text"] == "x").then_some(()))
    })
    .unwrap();
}

/// Changes how many connections a pod may have.
fn set_share(agent: &Agent, pod: &Pod, limit: u64) {
    let pins = agent.config().pin_dir.join(format!("v{LAYOUT_VERSION}"));
    let map = |name: &str| MapData::from_pin(pins.join(name)).unwrap();
    let pods: HashMap<_, u64, PodEntry> = HashMap::try_from(Map::HashMap(map("PODS"))).unwrap();
    let own = u32::from_ne_bytes(pod.v4().octets());
    let (_, entry) = pods
        .iter()
        .filter_map(Result::ok)
        .find(|(_, entry)| entry.v4 == own)
        .unwrap();
    let mut budgets: Array<_, Budget> = Array::try_from(Map::Array(map("BUDGETS"))).unwrap();
    let own = slot(entry.handle);
    let budget = budgets.get(&own, 0).unwrap();
    budgets.set(own, Budget { limit, ..budget }, 0).unwrap();
}
