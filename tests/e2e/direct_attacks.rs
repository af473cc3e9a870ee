//! Pods of one node that try to keep, take over or race for a permission of the direct path which is not theirs, or no
//! longer.

use std::{
    io::Read as _,
    net::{IpAddr, SocketAddr, TcpStream},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use rustix::process::Signal;
use serde_json::Value;
use socket2::{Domain, Socket, Type};
use weir_e2e::{
    Mesh,
    direct::{self, at, client, from, from_to, policy},
    run, serve,
    sockets::sockets,
};
use weir_lab::{PATIENCE, Pod, PodSpec, Process, Spawn as _};
use weir_types::{FlowEvent, FlowPath, TrafficDirection};

/// How often a policy is put in force and taken back.
const FLIPS: usize = 10;

/// Answers with the pod's name.
fn named(pod: &Pod, port: &str) -> Process {
    let name = &pod.spec().name;
    serve(
        pod,
        ["name-server", "--name", name, "--port", port, "--dual-stack"],
    )
    .0
}

/// Milliseconds since 1970, as `many` logs them.
fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    since.as_millis().try_into().unwrap()
}

/// One connection of `many`.
struct Attempt {
    began: u64,
    ended: u64,
    name: Option<String>,
}

fn attempts(client: &Process) -> Vec<Attempt> {
    let text = client.stdout();
    let number = |line: &Value, field: &str| line[field].as_u64();
    let attempt = |line: &str| {
        let line: Value = serde_json::from_str(line).ok()?;
        Some(Attempt {
            began: number(&line, "began_ms")?,
            ended: number(&line, "ended_ms")?,
            name: line["name"].as_str().map(str::to_owned),
        })
    };
    String::from_utf8_lossy(&text)
        .lines()
        .filter_map(attempt)
        .collect()
}

/// Connects without an end, and logs each connection.
fn storm(pod: &Pod, to: &str) -> Process {
    let load = [
        "--threads",
        "16",
        "--pause-ms",
        "3",
        "--seconds",
        "60",
        "--timeout-ms",
        "3000",
    ];
    pod.testapp(["many", to, "--log-all"].iter().chain(&load))
        .unwrap()
}

/// Waits for some connections that began from this moment on.
fn wait_attempts(client: &Process, from: u64) {
    weir_lab::poll("connections", PATIENCE, || {
        let new = attempts(client)
            .iter()
            .filter(|attempt| attempt.began > from)
            .count();
        Ok((new > 100).then_some(()))
    })
    .unwrap();
}

/// Lets pod `a` connect without a pause while this policy comes and goes; others, whom it does not concern, too.
fn flip(mesh: &mut Mesh, policy: &Value, v6: bool) {
    let _servers = [named(&mesh.b, "7000"), named(&mesh.b, "7001")];
    let other = mesh.add(PodSpec::new("node1", "shop", "other"));
    let host = if v6 {
        IpAddr::from(mesh.b.v6())
    } else {
        mesh.b.v4().into()
    };
    let to = at(host, 7000);
    mesh.learn(&mesh.a, &to);
    let storm = storm(&mesh.a, &to);
    let bystander = [
        "many",
        &to,
        "--threads",
        "2",
        "--pause-ms",
        "2",
        "--seconds",
        "60",
        "--log-all",
    ];
    let bystander = other.testapp(bystander).unwrap();
    let (mut denied, mut allowed) = (Vec::new(), Vec::new());
    for _ in 0..FLIPS {
        let began = now_ms();
        wait_attempts(&storm, began);
        allowed.push((began, now_ms()));
        mesh.set_policies(std::slice::from_ref(policy));
        let began = now_ms();
        wait_attempts(&storm, began);
        denied.push((began, now_ms()));
        mesh.set_policies(&[]);
    }
    let all = attempts(&storm);
    let within = |(began, ended): (u64, u64)| {
        all.iter()
            .filter(move |attempt| attempt.began > began && attempt.ended < ended)
    };
    for window in denied {
        let (good, bad): (Vec<_>, Vec<_>) = within(window).partition(|attempt| attempt.name.is_some());
        assert!(!bad.is_empty(), "nobody tried");
        let first = good
            .first()
            .map(|attempt| (attempt.began - window.0, attempt.ended - attempt.began));
        assert_eq!(
            first,
            None,
            "{} succeeded; the first this long after, for so long (ms)",
            good.len()
        );
    }
    for window in allowed {
        let good = within(window).filter(|attempt| attempt.name.is_some()).count();
        let tried = within(window).count();
        assert!(
            good > 0 && good == tried,
            "{good} of {tried} under a policy that allows"
        );
    }
    let failed = attempts(&bystander)
        .iter()
        .filter(|attempt| attempt.name.is_none())
        .count();
    assert_eq!(
        failed,
        0,
        "of {}, whom no policy concerned",
        attempts(&bystander).len()
    );
}

#[test]
fn no_connection_that_begins_under_a_deny_succeeds_while_policies_come_and_go() {
    let mut mesh = direct::mesh("flip");
    flip(&mut mesh, &policy("DENY", "b", &from("a")), false);
}

#[test]
fn no_connection_that_begins_under_a_deny_of_its_port_succeeds_and_those_to_other_ports_do() {
    let mut mesh = direct::mesh("flipport");
    let other_port = at(mesh.b.v4(), 7001);
    let free = format!("many {other_port} --threads 2 --pause-ms 2 --seconds 60 --log-all");
    // Starts before its server does.
    let free = mesh.a.testapp(free.split(' ')).unwrap();
    flip(&mut mesh, &policy("DENY", "b", &from_to("a", 7000)), true);
    let all = attempts(&free);
    let first = all.iter().position(|attempt| attempt.name.is_some()).unwrap();
    let failed = all[first..]
        .iter()
        .filter(|attempt| attempt.name.is_none())
        .count();
    // The last may have met the server's end.
    assert!(
        failed <= 2,
        "{failed} of {} to a port that no policy names",
        all.len()
    );
}

/// Has `late` of direct.py connect under a policy that allows it, forbids it then, and lets it go on.
fn late(mesh: &mut Mesh, arguments: &[&str], meanwhile: impl FnOnce(&Mesh)) -> Value {
    let to = at(mesh.b.v4(), 7000);
    let held = client(&mesh.a, &[&["late", "--to", &to], arguments].concat());
    held.wait_json("connected").unwrap();
    mesh.set_policies(&[policy("DENY", "b", &from("a"))]);
    meanwhile(mesh);
    let mut held = held;
    held.signal(Signal::USR1).unwrap();
    held.wait(PATIENCE).unwrap().success().unwrap().json().unwrap()
}

#[test]
fn a_connect_that_holds_its_first_packet_back_is_judged_when_that_leaves() {
    let mut mesh = direct::mesh("defer");
    let (_server, _) = serve(&mesh.b, ["echo-server", "--port", "7000"]);
    let to = at(mesh.b.v4(), 7000);
    // TFO_CLIENT_ENABLE | TFO_CLIENT_NO_COOKIE (ip-sysctl.rst): `connect` returns before anything is sent.
    mesh.a.sysctl(&[("net/ipv4/tcp_fastopen", "5")]).unwrap();
    mesh.learn(&mesh.a, &to);
    let line = late(&mut mesh, &["--deferred"], |_| {});
    assert_ne!(line["end"], "x", "{line}");
    mesh.set_policies(&[]);
    mesh.learn(&mesh.a, &to);
}

#[test]
fn a_connect_that_holds_its_first_packet_back_while_others_connect_stays_permitted() {
    let mesh = direct::mesh("deferred");
    let (_server, _) = serve(&mesh.b, ["echo-server", "--port", "7000"]);
    let to = at(mesh.b.v4(), 7000);
    mesh.a.sysctl(&[("net/ipv4/tcp_fastopen", "5")]).unwrap();
    mesh.learn(&mesh.a, &to);
    let mut held = client(&mesh.a, &["late", "--to", &to, "--deferred"]);
    held.wait_json("connected").unwrap();
    // On every processor: what the kernel noted on one of them is written over.
    for processor in 0..std::thread::available_parallelism().unwrap().get() {
        let mut other = std::process::Command::new("taskset");
        let arguments = ["connect", &to, "--send", "x", "--read", "1"];
        other.args(["-c", &processor.to_string()]);
        other
            .arg(weir_lab::program("weir-testapp").unwrap())
            .args(arguments);
        let line = mesh.a.run(other).unwrap().success().unwrap().json().unwrap();
        assert_eq!(line["text"], "x", "{line}");
    }
    held.signal(Signal::USR1).unwrap();
    let line = held.wait(PATIENCE).unwrap().success().unwrap().json().unwrap();
    assert_eq!(line["end"], "x", "{line}");
    // Which process it was is what the kernel cannot tell any more.
    let flow = mesh.flow_where(
        &mesh.a,
        TrafficDirection::Egress,
        FlowEvent::Close,
        7000,
        |flow| flow.process.is_none(),
    );
    assert_eq!(flow.path, FlowPath::Direct);
}

#[test]
fn a_handshake_that_was_begun_with_permission_is_not_finished_without() {
    let mut mesh = direct::mesh("unfinished");
    let (server, _) = serve(&mesh.b, ["echo-server", "--port", "7000", "--print-peer"]);
    let to = at(mesh.b.v4(), 7000);
    mesh.learn(&mesh.a, &to);
    let nft = |mesh: &Mesh, rules: &str| {
        let mut nft = std::process::Command::new("nft");
        nft.arg(rules);
        mesh.a.run(nft).unwrap().success().unwrap();
    };
    // The third packet of the handshake and all later ones wait.
    let rules = "add table ip hold; add chain ip hold out { type filter hook output priority 0; }; \
                 add rule ip hold out tcp dport 7000 tcp flags & (syn | ack) == ack drop";
    nft(&mesh, rules);
    let before = String::from_utf8(server.stdout()).unwrap();
    let line = late(&mut mesh, &[], |mesh| nft(mesh, "delete table ip hold"));
    assert_ne!(line["end"], "x", "{line}");
    assert_eq!(
        String::from_utf8(server.stdout()).unwrap(),
        before,
        "nothing was accepted"
    );
}

#[test]
fn a_server_that_registers_over_a_forbidden_clients_connection_does_not_keep_it() {
    let mut mesh = direct::mesh("keep");
    let (_server, _) = serve(&mesh.b, ["echo-server", "--port", "7000"]);
    let (to, bind) = (at(mesh.b.v4(), 7000), at(mesh.a.v4(), 5000));
    mesh.learn(&mesh.a, &to);
    let line = late(&mut mesh, &["--bind", &bind], |_| {});
    assert_ne!(line["end"], "x", "an open connection ends: {line}");
    mesh.set_policies(&[]);
    mesh.learn(&mesh.a, &to);
    let mut held = client(&mesh.a, &["late", "--to", &to, "--bind", &bind]);
    held.wait_json("connected").unwrap();
    // The two may well be of one mind. To itself a pod may connect from any address.
    let lo = |what: &str| {
        let line = format!("addr {what} {}/32 dev lo", mesh.a.v4());
        mesh.b.ip(&[&line]).unwrap();
    };
    lo("add");
    // What it sends would be taken for the client's and answered with a reset.
    let mut nft = std::process::Command::new("nft");
    nft.arg(
        "add table ip hold; add chain ip hold out { type filter hook output priority 0; }; \
         add rule ip hold out tcp sport 5000 drop",
    );
    mesh.b.run(nft).unwrap().success().unwrap();
    let over = ["connect", &to, "--bind", &bind, "--timeout-ms", "20000"];
    let _over = mesh.b.testapp(over).unwrap();
    weir_lab::poll("its own SYN", PATIENCE, || {
        let sockets = sockets(&mesh.b);
        let own = sockets.iter().any(|socket| socket.local.to_string() == bind);
        Ok(own.then_some(()))
    })
    .unwrap();
    lo("del");
    mesh.set_policies(&[policy("DENY", "b", &from("a"))]);
    held.signal(Signal::USR1).unwrap();
    let line = held.wait(PATIENCE).unwrap().success().unwrap().json().unwrap();
    assert_ne!(line["end"], "x", "{line}");
}

/// Connects again and again from these ports of an address, and gives the ends by their name or error.
fn from_ports(pod: &Pod, bind: &str, to: &str, seconds: &str) -> Process {
    let ends = ["ports", "--to", to, "--bind", bind, "--seconds", seconds];
    client(pod, &[&ends[..], &["--first", "20000", "--count", "50"]].concat())
}

fn ends(client: Process) -> Value {
    client.wait(PATIENCE).unwrap().success().unwrap().json().unwrap()["ends"].clone()
}

/// The last byte of a pod's addresses.
fn host(pod: &Pod) -> u8 {
    pod.v4().octets()[3]
}

#[test]
fn who_gets_the_address_of_a_permitted_pod_does_not_get_its_permission() {
    let mut mesh = direct::mesh("heir");
    let allow = |account: &str| policy("ALLOW", "b", &from(account));
    mesh.set_policies(&[allow("a")]);
    let _server = named(&mesh.b, "7000");
    let (bind, to) = (mesh.a.v4().to_string(), at(mesh.b.v4(), 7000));
    mesh.learn(&mesh.a, &to);
    let before = ends(from_ports(&mesh.a, &bind, &to, "0.5"));
    assert!(
        before["b"].as_u64() > Some(50) && before.as_object().unwrap().len() == 1,
        "{before}"
    );
    // Open when the pod goes away, so that nobody says goodbye.
    let held = client(&mesh.a, &["late", "--to", &to]);
    held.wait_json("connected").unwrap();
    mesh.lab.remove_pod(&mesh.a).unwrap();
    let heir = PodSpec::new("node1", "shop", "heir").host(host(&mesh.a));
    let heir = mesh.lab.add_pod(heir).unwrap();
    assert_eq!(heir.v4(), mesh.a.v4());
    // The agent was told of neither.
    let unknown = ends(from_ports(&heir, &bind, &to, "0.5"));
    assert_eq!(unknown.get("b"), None, "{unknown}");
    mesh.change(|config| {
        config.workloads.retain(|workload| workload.uid != "shop-a");
        config.pods.retain(|pod| pod.uid != "shop-a");
        config.workloads.push(heir.workload());
        config.pods.push(heir.config());
    });
    let other = ends(from_ports(&heir, &bind, &to, "0.5"));
    assert_eq!(other.get("b"), None, "{other}");
    mesh.set_policies(&[allow("heir")]);
    let own = ends(from_ports(&heir, &bind, &to, "0.5"));
    assert!(
        own["b"].as_u64() > Some(50) && own.as_object().unwrap().len() == 1,
        "{own}"
    );
}

#[test]
fn a_permission_for_a_pod_is_none_for_the_next_pod_with_its_address() {
    let mut mesh = direct::mesh("tenant");
    let _server = named(&mesh.b, "7000");
    let to = at(mesh.b.v4(), 7000);
    mesh.set_policies(&[policy("DENY", "next", &from("a"))]);
    mesh.learn(&mesh.a, &to);
    let storm = storm(&mesh.a, &to);
    wait_attempts(&storm, now_ms());
    mesh.lab.remove_pod(&mesh.b).unwrap();
    let next = PodSpec::new("node1", "shop", "next").host(host(&mesh.b));
    let next = mesh.lab.add_pod(next).unwrap();
    // It is known before it serves: without a mesh around it, it would accept anybody.
    mesh.change(|config| {
        config.workloads.retain(|workload| workload.uid != "shop-b");
        config.pods.retain(|pod| pod.uid != "shop-b");
        config.workloads.push(next.workload());
        config.pods.push(next.config());
    });
    let _server = named(&next, "7000");
    wait_attempts(&storm, now_ms());
    let names: Vec<_> = attempts(&storm)
        .into_iter()
        .filter_map(|attempt| attempt.name)
        .collect();
    assert!(names.iter().all(|name| name == "b"), "{names:?}");
    mesh.set_policies(&[]);
    weir_lab::poll("the next pod's answer", PATIENCE, || {
        Ok(attempts(&storm)
            .pop()
            .filter(|last| last.name.as_deref() == Some("next")))
    })
    .unwrap();
}

#[test]
fn a_pod_whose_namespace_is_made_anew_is_reached_again() {
    let mesh = direct::mesh("anew");
    let _server = named(&mesh.b, "7000");
    let to = at(mesh.b.v4(), 7000);
    mesh.learn(&mesh.a, &to);
    mesh.lab.remove_pod(&mesh.b).unwrap();
    let again = PodSpec::new("node1", "shop", "b").host(host(&mesh.b));
    let again = mesh.lab.add_pod(again).unwrap();
    let _server = named(&again, "7000");
    let outside = mesh.lab.outside().unwrap();
    weir_lab::poll("its enrolment", PATIENCE, || {
        let line = outside.run_testapp(["connect", &to])?.json()?;
        Ok((line["connect"] == "ECONNREFUSED").then_some(()))
    })
    .unwrap();
    weir_lab::poll("an answer", PATIENCE / 3, || {
        let line = run(&mesh.a, ["connect", &to, "--read", "2"]).json()?;
        Ok((line["text"] == "b\n").then_some(()))
    })
    .unwrap();
}

#[test]
fn of_two_pods_that_race_for_a_server_from_the_same_ports_only_the_permitted_one_gets_in() {
    let mut mesh = direct::mesh("race");
    let _server = named(&mesh.b, "7000");
    let rival = mesh.add(PodSpec::new("node1", "shop", "rival"));
    mesh.set_policies(&[policy("ALLOW", "b", &from("a"))]);
    let to = at(mesh.b.v4(), 7000);
    mesh.learn(&mesh.a, &to);
    let racers = [&mesh.a, &rival].map(|pod| from_ports(pod, &pod.v4().to_string(), &to, "4"));
    let [permitted, forbidden] = racers.map(ends);
    assert!(permitted["b"].as_u64() > Some(1000), "{permitted}");
    assert_eq!(permitted.as_object().unwrap().len(), 1, "{permitted}");
    assert_eq!(forbidden.get("b"), None, "{forbidden}");
    assert!(forbidden["ECONNREFUSED"].as_u64() > Some(1000), "{forbidden}");
}

#[test]
fn a_source_port_used_again_at_once_does_not_carry_its_permission_elsewhere() {
    let mut mesh = direct::mesh("again");
    let next = mesh.add(PodSpec::new("node1", "shop", "next"));
    let _servers = [
        named(&mesh.b, "7000"),
        named(&mesh.b, "7001"),
        named(&next, "7000"),
    ];
    let [good, port, pod] = [at(mesh.b.v4(), 7000), at(mesh.b.v4(), 7001), at(next.v4(), 7000)];
    mesh.set_policies(&[
        policy("ALLOW", "b", &from_to("a", 7000)),
        policy("DENY", "next", &from("a")),
    ]);
    mesh.learn(&mesh.a, &good);
    let bind = mesh.a.v4().to_string();
    let clients = [&good, &port, &pod].map(|to| from_ports(&mesh.a, &bind, to, "3"));
    // The same 4-tuple, by a process of the pod's namespace that no hook sees: it has no identity.
    let unseen = mesh
        .a
        .inside(|| {
            let end = Instant::now() + Duration::from_secs(2);
            let (mut tries, mut answers) = (0, 0);
            for port in (20_000..20_050).cycle().take_while(|_| Instant::now() < end) {
                tries += 1;
                let own = SocketAddr::new(mesh.a.v4().into(), port);
                answers += u32::from(answer(own, good.parse()?).is_ok_and(|text| !text.is_empty()));
            }
            Ok((tries, answers))
        })
        .unwrap();
    let [good, port, pod] = clients.map(ends);
    assert!(good["b"].as_u64() > Some(500), "{good}");
    assert_eq!((port.get("b"), pod.get("next")), (None, None), "{port} {pod}");
    assert!(unseen.0 > 500 && unseen.1 == 0, "{unseen:?}");
}

/// What a server says to a socket with this address, reset afterwards.
fn answer(own: SocketAddr, to: SocketAddr) -> std::io::Result<String> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_linger(Some(Duration::ZERO))?;
    socket.bind(&own.into())?;
    socket.connect_timeout(&to.into(), PATIENCE)?;
    let mut text = String::new();
    TcpStream::from(socket).read_to_string(&mut text)?;
    Ok(text)
}
