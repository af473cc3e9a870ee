//! The attacks that the design names, each refused and recorded: somebody who has an address, a port or a mark of
//! another, or who was there first.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use socket2::{Domain, Socket, Type};
use weir_e2e::{
    Mesh,
    direct::both,
    identity, lines,
    packet::send_syn,
    run, serve,
    sockets::{ESTABLISHED, LISTEN, sockets},
};
use weir_lab::{Pod, PodSpec, Process, Spawn as _};
use weir_types::{Flow, FlowEvent, FlowPath, Reason, TrafficDirection};

/// Long enough for an answer on one machine, short where none is expected.
const ANSWER: Duration = Duration::from_secs(2);

/// Connects from a pod's namespace, but from outside of the node's cgroup: no hook sees it.
fn unseen(pod: &Pod, from: SocketAddr, to: SocketAddr) -> io::Result<()> {
    pod.inside(|| {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&from.into())?;
        Ok(socket.connect_timeout(&to.into(), ANSWER))
    })
    .unwrap()
}

/// Waits for the record at a pod that this SYN was refused.
fn refused(mesh: &Mesh, pod: &Pod, from: SocketAddr, to: SocketAddr, reason: Reason) -> Flow {
    let flow = mesh.flow_where(
        pod,
        TrafficDirection::Ingress,
        FlowEvent::Refused,
        to.port(),
        |flow| flow.source.address == from && flow.destination.address == to && flow.reason == reason,
    );
    assert_eq!(flow.source.identity, None, "an address is no identity: {flow:?}");
    flow
}

/// Starts a client that stays connected.
fn hold(pod: &Pod, from: SocketAddr, to: SocketAddr) -> Process {
    let (from, to) = (from.to_string(), to.to_string());
    let ends = ["connect", &to, "--bind", &from];
    let manners = ["--send", "x", "--read", "2", "--timeout-ms", "60000"];
    pod.testapp(ends.iter().chain(&manners)).unwrap()
}

fn assert_refused(result: io::Result<()>) {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{error}");
}

#[test]
fn a_source_port_does_not_pass_again_after_the_connection_that_was_allowed() {
    let mesh = Mesh::new("reuse");
    let (_c, _) = serve(&mesh.c, ["echo-server", "--port", "7000", "--dual-stack"]);
    let (_a, _) = serve(&mesh.a, ["echo-server", "--port", "7000", "--dual-stack"]);
    let (c, a) = (both(&mesh.c), both(&mesh.a));
    // To another pod: the connection stands in the table as from the pod to itself. Then one that really is.
    for (port, (own, to)) in (5000..).zip([(a[0], c[0]), (a[1], c[1]), (a[0], a[0]), (a[1], a[1])]) {
        let from = SocketAddr::new(own, port);
        let to = SocketAddr::new(to, 7000).to_string();
        let line = run(
            &mesh.a,
            [
                "connect",
                &to,
                "--bind",
                &from.to_string(),
                "--send",
                "x",
                "--read",
                "1",
                "--reset",
            ],
        );
        assert_eq!(line.json().unwrap()["text"], "x", "{from} to {to}");
        let same = SocketAddr::new(own, 7000);
        assert_refused(unseen(&mesh.a, from, same));
        refused(&mesh, &mesh.a, from, same, Reason::UnregisteredOwnAddress);
    }
}

#[test]
fn a_source_port_does_not_pass_again_while_the_agent_is_busy_with_the_connection_that_was_allowed() {
    let mesh = Mesh::new("busy");
    let (_c, _) = serve(&mesh.c, ["echo-server", "--port", "7000", "--dual-stack"]);
    for (own, to) in both(&mesh.a).into_iter().zip(both(&mesh.c)) {
        let from = SocketAddr::new(own, 5000);
        let to = SocketAddr::new(to, 7000);
        let (bind, at) = (from.to_string(), to.to_string());
        let ends = ["connect", &at, "--bind", &bind, "--send", "x", "--read", "1"];
        let held = mesh
            .a
            .testapp(ends.iter().chain(&["--hold-ms", "1000", "--reset"]))
            .unwrap();
        let _ = mesh.flow_where(&mesh.a, TrafficDirection::Egress, FlowEvent::Open, 7000, |flow| {
            flow.source.address == from
        });
        // Nobody but the kernel can know now that the pod's socket is gone.
        let agent = Pid::from_raw(mesh.agent(&mesh.a).pid().try_into().unwrap()).unwrap();
        kill_process(agent, Signal::STOP).unwrap();
        held.wait(weir_lab::PATIENCE).unwrap().success().unwrap();
        let same = SocketAddr::new(own, 7000);
        let result = unseen(&mesh.a, from, same);
        kill_process(agent, Signal::CONT).unwrap();
        assert_refused(result);
        refused(&mesh, &mesh.a, from, same, Reason::UnregisteredOwnAddress);
    }
}

#[test]
fn a_masquerade_that_keeps_an_allowed_source_port_gives_no_identity() {
    let mesh = Mesh::with("masq", |config| config.strict_workload("shop", "c"));
    let plain = |node, name| {
        let spec = PodSpec::new(node, "shop", name).outside_mesh();
        mesh.lab.add_pod(spec).unwrap()
    };
    let (near, far) = (plain("node1", "near"), plain("node2", "far"));
    let (_c, _) = serve(&mesh.c, ["echo-server", "--port", "7000"]);
    let (_d, _) = serve(&mesh.d, ["echo-server", "--port", "7001"]);
    let (_a, _) = serve(&mesh.a, ["echo-server", "--port", "7000", "--dual-stack"]);
    for (node, family, from, to) in [
        ("node1", "ip", IpAddr::from(near.v4()), IpAddr::from(mesh.a.v4())),
        ("node2", "ip6", IpAddr::from(far.v6()), IpAddr::from(mesh.a.v6())),
    ] {
        let rules = format!(
            "add table {family} weir; \
             add chain {family} weir out {{ type nat hook postrouting priority 100; }}; \
             add rule {family} weir out {family} saddr {from} snat to {to}"
        );
        let mut nft = std::process::Command::new("nft");
        nft.arg(rules);
        mesh.lab.node(node).unwrap().run(nft).unwrap().success().unwrap();
    }
    // The pod's own connections from this port are allowed, and open all the while.
    let from = SocketAddr::new(mesh.a.v4().into(), 5000);
    let [c, d] = [(&mesh.c, 7000), (&mesh.d, 7001)].map(|(pod, port)| SocketAddr::new(pod.v4().into(), port));
    let _held = [(&mesh.c, c), (&mesh.d, d)].map(|(pod, to)| {
        let held = hold(&mesh.a, from, to);
        let flow = mesh.flow(pod, TrafficDirection::Ingress, FlowEvent::Open, to.port());
        assert_eq!((flow.source.address, flow.source.identity), (from, identity("a")));
        held
    });
    let bind = format!("{}:5000", near.v4());
    let connect = |to: SocketAddr| {
        let to = to.to_string();
        let arguments = ["connect", &to, "--bind", &bind, "--send", "x", "--read", "1"];
        run(&near, arguments).json().unwrap()
    };
    assert_eq!(connect(c)["connect"], "ECONNREFUSED");
    refused(&mesh, &mesh.c, from, c, Reason::PlaintextToStrict);
    // A PERMISSIVE pod takes it as what it is: plaintext from nobody.
    assert_eq!(connect(d)["text"], "x");
    let flow = mesh.flow(&mesh.d, TrafficDirection::Ingress, FlowEvent::Close, 7001);
    assert_eq!(
        (flow.source.address, flow.source.identity, flow.path),
        (from, None, FlowPath::Plaintext)
    );
    // And to the pod whose address it is: the same addresses and ports as its own redirected connection has.
    let own = |port| SocketAddr::new(mesh.a.v6().into(), port);
    let bind = format!("[{}]:5001", far.v6());
    let line = run(
        &far,
        [
            "connect",
            &own(7000).to_string(),
            "--bind",
            &bind,
            "--timeout-ms",
            "300",
        ],
    );
    assert_ne!(line.json().unwrap()["connect"], "ok");
    refused(
        &mesh,
        &mesh.a,
        own(5001),
        own(7000),
        Reason::UnregisteredOwnAddress,
    );
}

#[test]
fn a_syn_with_the_pods_own_address_that_no_socket_of_the_pod_sent_is_dropped() {
    let mesh = Mesh::new("ownsyn");
    let (_server, _) = serve(&mesh.a, ["echo-server", "--port", "7000", "--dual-stack"]);
    // Without this the kernel itself drops such IPv4 packets from a neighbour. It never does for IPv6.
    mesh.a.sysctl(&[("net/ipv4/conf/all/accept_local", "1")]).unwrap();
    let mut ports = 5000..;
    for sender in [&mesh.a, &mesh.b] {
        for address in both(&mesh.a) {
            for target in [7000, 15008] {
                let from = SocketAddr::new(address, ports.next().unwrap());
                let to = SocketAddr::new(address, target);
                sender.inside(|| send_syn(from, to)).unwrap();
                refused(&mesh, &mesh.a, from, to, Reason::UnregisteredOwnAddress);
            }
        }
    }
    let status = mesh.agent(&mesh.a).status().unwrap();
    assert_eq!(status.kernel_connections, 0);
}

#[test]
fn a_pod_that_takes_anothers_address_or_any_mark_keeps_its_own_identity() {
    let mesh = Mesh::with("steal", |config| config.strict_workload("shop", "c"));
    let (_server, _) = serve(&mesh.c, ["echo-server", "--port", "7000", "--dual-stack"]);
    let (a4, a6) = (mesh.a.v4(), mesh.a.v6());
    // The second address of a device is not what the kernel chooses by itself.
    mesh.b
        .ip(&[
            &format!("addr add {a4}/24 dev eth0"),
            &format!("addr add {a6}/64 dev eth0 nodad"),
        ])
        .unwrap();
    let as_itself = |port: u16| {
        for (pod, direction) in [
            (&mesh.b, TrafficDirection::Egress),
            (&mesh.c, TrafficDirection::Ingress),
        ] {
            let flow = mesh.flow_where(pod, direction, FlowEvent::Close, 7000, |flow| {
                flow.source.address.port() == port
            });
            assert_eq!(flow.path, FlowPath::Tunnel, "{flow:?}");
            assert_eq!(flow.source.identity, identity("b"), "{flow:?}");
        }
    };
    // Marks that other meshes, kube-proxy and CNIs let pass.
    for (port, mark) in (5000..).zip([0, 1, 0x539, 0xe00, 0x4000, 0x8000, u32::MAX]) {
        let (to, mark) = (format!("{}:7000", mesh.c.v4()), mark.to_string());
        let bind = format!("{}:{port}", mesh.b.v4());
        let line = run(
            &mesh.b,
            [
                "connect", &to, "--bind", &bind, "--mark", &mark, "--send", "x", "--read", "1",
            ],
        );
        assert_eq!(line.json().unwrap()["text"], "x", "mark {mark}");
        as_itself(port);
    }
    // With the stolen address as source, captured or not: never as its owner, and not at all to a STRICT pod.
    for (stolen, server) in [
        (IpAddr::from(a4), IpAddr::from(mesh.c.v4())),
        (a6.into(), mesh.c.v6().into()),
    ] {
        let to = SocketAddr::new(server, 7000);
        let from = SocketAddr::new(stolen, 6000);
        assert!(unseen(&mesh.b, from, to).is_err());
        refused(&mesh, &mesh.c, from, to, Reason::PlaintextToStrict);
        // Through its own agent it gets where it may go as itself.
        let bind = SocketAddr::new(stolen, 6001).to_string();
        let arguments = [
            "connect",
            &to.to_string(),
            "--bind",
            &bind,
            "--send",
            "x",
            "--read",
            "1",
        ];
        assert_eq!(run(&mesh.b, arguments).json().unwrap()["text"], "x");
        let flow = mesh.flow_where(
            &mesh.b,
            TrafficDirection::Egress,
            FlowEvent::Close,
            7000,
            |flow| flow.source.address == SocketAddr::new(stolen, 6001),
        );
        assert_eq!(
            (flow.path, flow.source.identity),
            (FlowPath::Tunnel, identity("b"))
        );
    }
    for agent in &mesh.agents {
        for flow in agent.flows().unwrap() {
            assert_ne!(flow.source.identity, identity("a"), "{flow:?}");
        }
    }
}

#[test]
fn an_application_that_bound_15008_first_sees_no_tunnel() {
    let mut mesh = Mesh::new("first");
    let late = mesh.lab.add_pod(PodSpec::new("node2", "shop", "late")).unwrap();
    let bound = |pod: &Pod| {
        let one = |address: &str| {
            serve(
                pod,
                [
                    "echo-server",
                    "--port",
                    "15008",
                    "--address",
                    address,
                    "--print-peer",
                ],
            )
            .0
        };
        [one("0.0.0.0"), one("::")]
    };
    let before = bound(&late);
    for agent in &mut mesh.agents {
        let status = agent
            .reload(|config| {
                config.workloads.push(late.workload());
                if config.node == "node2" {
                    config.pods.push(late.config());
                }
            })
            .unwrap();
        assert_eq!(status.config.rejected, None);
    }
    let after = bound(&mesh.c);
    for (pod, applications) in [(&late, before), (&mesh.c, after)] {
        let (_server, _) = serve(pod, ["echo-server", "--port", "7000", "--dual-stack"]);
        for host in both(pod) {
            let to = SocketAddr::new(host, 7000).to_string();
            run(&mesh.a, ["echo-client", &to]).success().unwrap();
        }
        let flow = mesh.flow(pod, TrafficDirection::Ingress, FlowEvent::Close, 7000);
        assert_eq!(
            (flow.path, flow.source.identity),
            (FlowPath::Tunnel, identity("a"))
        );
        for application in applications {
            let text = String::from_utf8(application.stdout()).unwrap();
            assert!(!text.contains("accept"), "{text}");
        }
    }
}

#[test]
fn a_local_client_on_a_port_that_a_remote_client_had_is_not_taken_for_it() {
    let mesh = Mesh::new("twice");
    let (server, _) = serve(
        &mesh.c,
        ["echo-server", "--port", "7000", "--dual-stack", "--print-peer"],
    );
    let mut seen = 0;
    for (client, own) in both(&mesh.a).into_iter().zip(both(&mesh.c)) {
        let to = SocketAddr::new(own, 7000).to_string();
        let bind = SocketAddr::new(client, 5000).to_string();
        // Ends with a reset, which leaves the ports free at once.
        let ends = ["connect", &to, "--bind", &bind, "--send", "x", "--read", "1"];
        let held = mesh
            .a
            .testapp(ends.iter().chain(&["--hold-ms", "1000", "--reset"]))
            .unwrap();
        seen += 1;
        assert_eq!(
            peer(&lines(&server, "accept", seen)[seen - 1]),
            bind.parse().unwrap()
        );
        // The agent's side of it, which only the kernel's list shows.
        let agents = established(&mesh.c, 7000, own);
        held.wait(weir_lab::PATIENCE).unwrap().success().unwrap();
        let kernel = || mesh.agent(&mesh.c).status().unwrap().kernel_connections;
        weir_lab::poll("the remote client's end", weir_lab::PATIENCE, || {
            Ok((kernel() == 0).then_some(()))
        })
        .unwrap();
        for port in [agents, 5000] {
            let bind = SocketAddr::new(own, port);
            let line = run(
                &mesh.c,
                [
                    "connect",
                    &to,
                    "--bind",
                    &bind.to_string(),
                    "--send",
                    "x",
                    "--read",
                    "1",
                ],
            );
            assert_eq!(line.json().unwrap()["text"], "x");
            seen += 1;
            assert_eq!(peer(&lines(&server, "accept", seen)[seen - 1]), bind);
        }
    }
}

/// What accept and getpeername gave, which must agree.
fn peer(line: &serde_json::Value) -> SocketAddr {
    assert_eq!(line["accept"], line["getpeername"], "{line}");
    let address: SocketAddr = line["accept"].as_str().unwrap().parse().unwrap();
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[test]
fn who_finds_the_agents_listeners_from_inside_the_pod_is_turned_away() {
    let mesh = Mesh::new("inside");
    let listeners: Vec<SocketAddr> = sockets(&mesh.a)
        .into_iter()
        .filter(|socket| socket.state == LISTEN)
        .map(|socket| socket.local)
        .collect();
    assert_eq!(listeners.len(), 6, "three in each family: {listeners:?}");
    for to in listeners {
        assert!(to.ip().is_loopback(), "{to}");
        let line = run(
            &mesh.a,
            [
                "connect",
                &to.to_string(),
                "--send",
                "GET / HTTP/1.1\r\n\r\n",
                "--read-all",
            ],
        )
        .json()
        .unwrap();
        assert_eq!(
            (&line["connect"], &line["received"]),
            (&"ok".into(), &0.into()),
            "{line}"
        );
        assert_ne!(line["end"], "EAGAIN", "{to}: {line}");
        let flow = mesh.flow(&mesh.a, TrafficDirection::Ingress, FlowEvent::Refused, to.port());
        assert_eq!(
            (flow.reason, flow.destination.address),
            (Reason::Unregistered, to)
        );
    }
}

#[test]
fn a_process_outside_the_nodes_cgroup_has_no_identity() {
    let mesh = Mesh::with("cgroup", |config| config.strict_workload("shop", "c"));
    let (_a, _) = serve(&mesh.a, ["echo-server", "--port", "7000", "--dual-stack"]);
    let (_c, _) = serve(&mesh.c, ["echo-server", "--port", "7000", "--dual-stack"]);
    let (_d, _) = serve(&mesh.d, ["echo-server", "--port", "7000", "--dual-stack"]);
    let hosts = both(&mesh.c).into_iter().zip(both(&mesh.d)).zip(both(&mesh.a));
    for ((c, d), own) in hosts {
        let from = SocketAddr::new(own, 5000);
        // The pod's own connection of the same two ports is open, and in the table.
        let captured = SocketAddr::new(own, 5001);
        let to = SocketAddr::new(d, 7000);
        let _held = hold(&mesh.a, captured, to);
        let open_from = |from: SocketAddr| {
            let wanted = |flow: &Flow| flow.source.address == from;
            mesh.flow_where(&mesh.d, TrafficDirection::Ingress, FlowEvent::Open, 7000, wanted)
        };
        assert_eq!(open_from(captured).source.identity, identity("a"));
        let strict = SocketAddr::new(c, 7000);
        assert_refused(unseen(&mesh.a, from, strict));
        refused(&mesh, &mesh.c, from, strict, Reason::PlaintextToStrict);
        unseen(&mesh.a, from, to).unwrap();
        let flow = open_from(from);
        assert_eq!((flow.path, flow.source.identity), (FlowPath::Plaintext, None));
        let itself = SocketAddr::new(own, 7000);
        assert_refused(unseen(&mesh.a, from, itself));
        refused(&mesh, &mesh.a, from, itself, Reason::UnregisteredOwnAddress);
    }
    let flows = mesh.agent(&mesh.a).flows().unwrap();
    let captured = flows
        .iter()
        .find(|flow| flow.direction == TrafficDirection::Egress && flow.source.address.port() == 5000);
    assert!(captured.is_none(), "{captured:?}");
}

/// The port from which the agent is connected to an application of a pod.
fn established(pod: &Pod, port: u16, own: IpAddr) -> u16 {
    let to = SocketAddr::new(own, port);
    let found = sockets(pod)
        .into_iter()
        .find(|socket| socket.state == ESTABLISHED && socket.remote == to);
    found.unwrap().local.port()
}
