//! Pods of one node that pretend to be another: with its address, its packets, its neighbours' memory, or any option that
//! a privileged socket can have.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use aya::maps::{HashMap, Map, MapData};
use serde_json::Value;
use socket2::{Domain, Socket, Type};
use weir_abi::{LAYOUT_VERSION, Verdict, VerdictKey, VerdictKind};
use weir_e2e::{
    Mesh,
    direct::{self, at, both, client, from, policy},
    identity, lines,
    packet::send_syn,
    run, serve,
};
use weir_lab::{PATIENCE, Pod, PodSpec, Process, Spawn as _, config::SameNodeMode};
use weir_types::{Flow, FlowEvent, FlowPath, Reason, TrafficDirection};

fn ends(client: Process) -> Value {
    client.wait(PATIENCE).unwrap().success().unwrap().json().unwrap()
}

/// A mesh in which `b` lets `a` in and nobody else, and a pod that wants to get in too.
fn stage(name: &str) -> (Mesh, Pod) {
    let mut mesh = direct::mesh(name);
    let thief = mesh.add(PodSpec::new("node1", "shop", "thief"));
    mesh.set_policies(&[policy("ALLOW", "b", &from("a"))]);
    (mesh, thief)
}

/// Gives a pod the addresses of another besides its own.
fn steal(thief: &Pod, of: &Pod) {
    let (v4, v6) = (of.v4(), of.v6());
    let lines = [
        format!("addr add {v4}/24 dev eth0"),
        format!("addr add {v6}/64 dev eth0 nodad"),
    ];
    thief.ip(&lines.each_ref().map(String::as_str)).unwrap();
}

/// What a pod's process sees that connects from this address.
fn connect(pod: &Pod, bind: &str, to: &str) -> Value {
    let arguments = [
        "connect",
        to,
        "--bind",
        bind,
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
fn a_pod_with_the_address_of_a_permitted_pod_is_refused_as_what_it_is() {
    let (mut mesh, thief) = stage("thief");
    let (server, _) = serve(
        &mesh.b,
        ["echo-server", "--port", "7000", "--dual-stack", "--print-peer"],
    );
    for host in both(&mesh.b) {
        mesh.learn(&mesh.a, &at(host, 7000));
    }
    steal(&thief, &mesh.a);
    for (own, host) in both(&mesh.a).into_iter().zip(both(&mesh.b)) {
        let to = at(host, 7000);
        for port in 5000..5005 {
            let line = connect(&thief, &at(own, port), &to);
            assert_eq!(line["text"], "", "{line}");
        }
        let refused = |flow: &Flow| flow.destination.address == to.parse().unwrap();
        let flow = mesh.flow_where(
            &thief,
            TrafficDirection::Egress,
            FlowEvent::Refused,
            7000,
            refused,
        );
        assert_eq!(flow.source.identity, identity("thief"), "{flow:?}");
        // Outside of the node's cgroup, so that no hook sees it.
        let (from, to) = (SocketAddr::new(own, 6000), SocketAddr::new(host, 7000));
        let unseen = thief.inside(|| {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
            socket.bind(&from.into())?;
            Ok(socket.connect_timeout(&to.into(), Duration::from_secs(2)))
        });
        assert!(unseen.unwrap().is_err());
    }
    // Where it may go as itself, it may as itself only: nobody is told that the other one came.
    mesh.set_policies(&[]);
    for ((own, stolen), host) in both(&thief).into_iter().zip(both(&mesh.a)).zip(both(&mesh.b)) {
        let to = at(host, 7000);
        // By its own choice the kernel might take the stolen address.
        assert_eq!(connect(&thief, &at(own, 5003), &to)["text"], "x");
        let seen = lines(&server, "accept", 0).len();
        let line = connect(&thief, &at(stolen, 5001), &to);
        assert_eq!(line["connect"], "ECONNREFUSED", "{line}");
        let foreign = |flow: &Flow| {
            flow.reason == Reason::ForeignSource && flow.destination.address == to.parse().unwrap()
        };
        let flow = mesh.flow_where(
            &thief,
            TrafficDirection::Egress,
            FlowEvent::Refused,
            7000,
            foreign,
        );
        assert_eq!(flow.source.identity, identity("thief"), "{flow:?}");
        assert_eq!(connect(&thief, &at(own, 5002), &to)["text"], "x");
        assert_eq!(lines(&server, "accept", seen + 1).len(), seen + 1);
    }
}

#[test]
fn who_takes_the_address_of_a_server_does_not_get_its_clients() {
    let (mut mesh, thief) = stage("fence");
    mesh.set_policies(&[]);
    let servers = [&mesh.b, &thief].map(|pod| {
        let arguments = ["echo-server", "--port", "7000", "--dual-stack", "--print-peer"];
        serve(pod, arguments).0
    });
    for host in both(&mesh.b) {
        mesh.learn(&mesh.a, &at(host, 7000));
    }
    steal(&thief, &mesh.b);
    for host in both(&mesh.b) {
        // As if forged replies had made it believe that.
        let line = format!("neigh replace {host} lladdr {} dev eth0", mac(&thief));
        mesh.a.ip(&[&line]).unwrap();
        let to = at(host, 7000);
        for port in 5000..5005 {
            let line = connect(
                &mesh.a,
                &SocketAddr::new(own(&mesh.a, host), port).to_string(),
                &to,
            );
            assert_eq!(line["text"], "", "{line}");
        }
        let wrong = |flow: &Flow| flow.destination.address == to.parse().unwrap();
        let flow = mesh.flow_where(&thief, TrafficDirection::Ingress, FlowEvent::Refused, 7000, wrong);
        assert_eq!(flow.reason, Reason::WrongIdentity);
    }
    assert!(lines(&servers[1], "accept", 0).is_empty());
}

/// A pod's address of the same family as another.
fn own(pod: &Pod, other: IpAddr) -> IpAddr {
    let [v4, v6] = both(pod);
    if other.is_ipv4() { v4 } else { v6 }
}

#[test]
fn two_pods_with_one_address_that_race_from_the_same_ports_are_told_apart() {
    let (mesh, thief) = stage("twins");
    let name = ["name-server", "--name", "b", "--port", "7000"];
    let (_server, _) = serve(&mesh.b, name);
    let to = at(mesh.b.v4(), 7000);
    mesh.learn(&mesh.a, &to);
    steal(&thief, &mesh.a);
    let bind = mesh.a.v4().to_string();
    let ports = [
        "ports",
        "--to",
        &to,
        "--bind",
        &bind,
        "--seconds",
        "4",
        "--first",
        "20000",
        "--count",
        "5",
    ];
    let [permitted, forbidden] = [&mesh.a, &thief].map(|pod| client(pod, &ports)).map(ends);
    assert!(permitted["ends"]["b"].as_u64() > Some(100), "{permitted}");
    assert_eq!(forbidden["ends"].get("b"), None, "{forbidden}");
    assert!(forbidden["rounds"].as_u64() > Some(20), "{forbidden}");
}

#[test]
fn a_forged_syn_of_a_connection_that_is_open_or_was_brings_nobody_in() {
    let (mesh, thief) = stage("forged");
    let (server, _) = serve(
        &mesh.b,
        ["echo-server", "--port", "7000", "--dual-stack", "--print-peer"],
    );
    for (own, host) in both(&mesh.a).into_iter().zip(both(&mesh.b)) {
        let (from, to) = (SocketAddr::new(own, 5000), SocketAddr::new(host, 7000));
        mesh.learn(&mesh.a, &to.to_string());
        let (bind, at) = (from.to_string(), to.to_string());
        let ends = ["connect", &at, "--bind", &bind, "--send", "x", "--read", "2"];
        // By its port: what the server printed of other connections may still be on its way here.
        let accepted = || {
            let all = lines(&server, "accept", 0);
            let shown = |line: &&serde_json::Value| {
                line["accept"]
                    .as_str()
                    .is_some_and(|peer| peer.ends_with(":5000"))
            };
            all.iter().filter(shown).count()
        };
        let before = accepted();
        let held = mesh
            .a
            .testapp(ends.iter().chain(&["--timeout-ms", "60000"]))
            .unwrap();
        weir_lab::poll("the server to accept it", PATIENCE, || {
            Ok((accepted() > before).then_some(()))
        })
        .unwrap();
        // From the same node, and from another.
        for sender in [&thief, &mesh.c] {
            for _ in 0..100 {
                sender.inside(|| send_syn(from, to)).unwrap();
            }
        }
        // Still the same connection: it ends with its client.
        let mut held = held;
        assert!(held.ended().unwrap().is_none());
        held.kill().unwrap();
        weir_lab::poll("its end in the kernel", PATIENCE, || {
            let status = mesh.agent(&mesh.a).status()?;
            Ok((status.kernel_connections == 0).then_some(()))
        })
        .unwrap();
        for sender in [&thief, &mesh.c] {
            sender.inside(|| send_syn(from, to)).unwrap();
            let refused = |flow: &Flow| flow.source.address == from && flow.destination.address == to;
            let flow = mesh.flow_where(
                &mesh.b,
                TrafficDirection::Ingress,
                FlowEvent::Refused,
                7000,
                refused,
            );
            assert_eq!(
                (flow.reason, flow.source.identity),
                (Reason::PlaintextToStrict, None)
            );
        }
        assert_eq!(accepted(), before + 1, "nothing else was accepted");
    }
}

#[test]
fn no_option_of_a_privileged_socket_opens_what_policy_closed() {
    let (mut mesh, thief) = stage("options");
    let (_server, _) = serve(&mesh.b, ["echo-server", "--port", "7000", "--dual-stack"]);
    let tried = |pod: &Pod, to: &str, bind: IpAddr| {
        let line = ends(client(pod, &["options", "--to", to, "--bind", &bind.to_string()]));
        let ends = line["ends"].as_object().unwrap().clone();
        assert!(ends.len() > 10, "{line}");
        ends
    };
    for ((stolen, own), host) in both(&mesh.a).into_iter().zip(both(&thief)).zip(both(&mesh.b)) {
        let to = at(host, 7000);
        mesh.learn(&mesh.a, &to);
        let first = connect(&thief, &at(own, 5000), &to);
        assert_eq!(first["text"], "", "{first}");
        for (option, end) in tried(&thief, &to, stolen) {
            assert_ne!(end, "x", "{option} to {to}");
        }
        // Whoever may get in gets in with each of them, but not in another's name.
        for (option, end) in tried(&mesh.a, &to, own) {
            assert_eq!(
                end == "x",
                !option.ends_with("as another"),
                "{option} to {to}: {end}"
            );
        }
    }
    // Nor does it help the one who tries while the kernel does not know yet that it is denied.
    mesh.set_policies(&[policy("DENY", "b", &from("thief"))]);
    for (option, end) in tried(&thief, &at(mesh.b.v4(), 7000), mesh.a.v4().into()) {
        assert_ne!(end, "x", "{option}");
    }
}

/// The link address of a pod.
fn mac(pod: &Pod) -> String {
    let [ten, node, zero, host] = pod.v4().octets();
    format!("02:00:{ten:02x}:{node:02x}:{zero:02x}:{host:02x}")
}

/// Lets a neighbour with raw sockets pose as `b` to `a` and as `a` to `b` while `a` connects; gives what it got.
fn takeover(mesh: &Mesh, thief: &Pod, to: &str) -> Value {
    let [a, own, b] = [&mesh.a, thief, &mesh.b].map(mac);
    let victim = mesh.a.v4().to_string();
    let ends = ["takeover", "--to", to, "--client", &victim, "--seconds", "4"];
    let macs = ["--mac", &own, "--client-mac", &a, "--server-mac", &b];
    let thief = client(thief, &[&ends[..], &macs].concat());
    thief.wait_json("ready").unwrap();
    // The kernel believes no other reply within a second of the one before.
    let end = std::time::Instant::now() + Duration::from_secs(4);
    while std::time::Instant::now() < end {
        let line = run(
            &mesh.a,
            ["connect", to, "--send", "x", "--read", "1", "--timeout-ms", "500"],
        );
        drop(line);
    }
    self::ends(thief)
}

#[test]
fn a_neighbour_who_forges_arp_replies_is_not_let_in_by_a_strict_pod_on_a_bridge() {
    let mut mesh = Mesh::with("arp", |config| config.strict());
    let thief = mesh.add(PodSpec::new("node1", "shop", "thief"));
    mesh.set_policies(&[policy("ALLOW", "b", &from("a"))]);
    let (_server, _) = serve(&mesh.b, ["echo-server", "--port", "7000"]);
    let to = at(mesh.b.v4(), 7000);
    for _ in 0..2 {
        run(&mesh.a, ["echo-client", &to]).success().unwrap();
        let flow = mesh.flow(&mesh.a, TrafficDirection::Egress, FlowEvent::Close, 7000);
        assert_eq!(flow.path, FlowPath::Tunnel, "on a shared segment: {flow:?}");
    }
    let line = takeover(&mesh, &thief, &to);
    assert!(
        line["seen"]["from the client"].as_u64() > Some(0),
        "it stood in between: {line}"
    );
    assert_eq!(line["answer"], "", "{line}");
}

#[test]
fn a_neighbour_who_forges_arp_replies_is_not_taken_for_a_permitted_pod_where_plaintext_is_accepted() {
    let mut mesh = Mesh::new("arpperm");
    let thief = mesh.add(PodSpec::new("node1", "shop", "thief"));
    mesh.change(|config| config.same_node(SameNodeMode::Auto));
    mesh.set_policies(&[policy("ALLOW", "b", &from("a"))]);
    let (_server, _) = serve(&mesh.b, ["echo-server", "--port", "7000"]);
    let to = at(mesh.b.v4(), 7000);
    run(&mesh.a, ["echo-client", &to]).success().unwrap();
    let line = takeover(&mesh, &thief, &to);
    assert!(
        line["seen"]["from the client"].as_u64() > Some(0),
        "it stood in between: {line}"
    );
    assert_eq!(
        line["answer"], "",
        "it spoke to the application as another: {line}"
    );
}

#[test]
fn a_verdict_whose_memory_has_become_anothers_is_not_followed() {
    let (mesh, _thief) = stage("reused");
    let (_server, _) = serve(&mesh.b, ["echo-server", "--port", "7000"]);
    let to = at(mesh.b.v4(), 7000);
    mesh.learn(&mesh.a, &to);
    let path = |own: u16| {
        let own = at(mesh.a.v4(), own);
        assert_eq!(connect(&mesh.a, &own, &to)["text"], "x");
        let wanted = |flow: &Flow| flow.source.address == own.parse().unwrap();
        mesh.flow_where(&mesh.a, TrafficDirection::Egress, FlowEvent::Close, 7000, wanted)
            .path
    };
    assert_eq!(path(5100), FlowPath::Direct);
    // What a program reads that found the verdict a moment before it was removed, and another took its place.
    let agent = mesh.agent(&mesh.a);
    let pin = agent.config().pin_dir.join(format!("v{LAYOUT_VERSION}/VERDICTS"));
    let map = Map::HashMap(MapData::from_pin(pin).unwrap());
    let mut verdicts: HashMap<_, VerdictKey, Verdict> = HashMap::try_from(map).unwrap();
    let (key, verdict) = verdicts
        .iter()
        .filter_map(Result::ok)
        .find(|(_, verdict)| verdict.kind == VerdictKind::DIRECT)
        .unwrap();
    let mut other = verdict;
    other.key.dst.port += 1;
    verdicts.insert(key, other, 0).unwrap();
    assert_eq!(path(5101), FlowPath::Tunnel, "sent to the agent");
    verdicts.insert(key, verdict, 0).unwrap();
    assert_eq!(path(5102), FlowPath::Direct, "it was for the key alone");
}
