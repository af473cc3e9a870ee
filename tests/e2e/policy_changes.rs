//! What a change of policy does to connections that are open.

use std::{
    net::IpAddr,
    process::Command,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use weir_e2e::{Mesh, run, serve};
use weir_lab::{AgentConfig, PATIENCE, Pod, PodSpec, Process, Spawn, config::SameNodeMode, replace_file};
use weir_types::{Flow, FlowEvent, FlowPath, FlowVerdict, Reason, TrafficDirection};

/// A policy is in force within a second; this is for busy machines.
const DEADLINE: Duration = Duration::from_secs(3);
/// Says a line and waits for its echo, over and over, in one connection; a line of output for each.
const TALK: &str = r#"exec 3<>"/dev/tcp/$0/$1" || exit
while echo x >&3 && read -r <&3; do echo '{"said":1}'; sleep 0.02; done"#;

/// A connection in which both sides go on talking.
struct Talk {
    name: String,
    process: Process,
}

// === impl Talk ===

impl Talk {
    fn start(from: &impl Spawn, name: &str, to: impl Into<IpAddr>, port: u16) -> Self {
        let mut command = Command::new("bash");
        command.args(["-c", TALK, &to.into().to_string(), &port.to_string()]);
        let talk = Self {
            name: format!("{name} to {port}"),
            process: from.spawn(command).unwrap(),
        };
        talk.goes_on();
        talk
    }

    /// Both sides have said something more.
    fn goes_on(&self) {
        let said = || {
            self.process
                .stdout()
                .iter()
                .filter(|byte| **byte == b'\n')
                .count()
        };
        // One line may have been under way.
        let enough = said() + 2;
        weir_lab::poll(&format!("{} to go on", self.name), PATIENCE, || {
            Ok((said() >= enough).then_some(()))
        })
        .unwrap_or_else(|error| panic!("{error}: {}", self.process.stderr()));
    }

    /// It is reset, in time.
    fn expect_reset(mut self, since: Instant) {
        let ended = self.process.wait_status(DEADLINE.saturating_sub(since.elapsed()));
        ended.unwrap_or_else(|error| panic!("{}: {error:#}", self.name));
        eprintln!("{} was reset after {:?}", self.name, since.elapsed());
        let how = self.process.stderr();
        assert!(how.contains("Connection reset by peer"), "{}: {how}", self.name);
    }
}

/// Two nodes, where pods of one node reach each other directly.
fn direct_mesh(name: &str) -> Mesh {
    Mesh::with(name, |config| config.same_node(SameNodeMode::Direct))
}

/// Another pod.
fn enrolled(mesh: &mut Mesh, node: &str, name: &str) -> Pod {
    let pod = mesh.lab.add_pod(PodSpec::new(node, "shop", name)).unwrap();
    reload(mesh, |config| {
        config.workloads.push(pod.workload());
        if config.node == node {
            config.pods.push(pod.config());
        }
    });
    pod
}

fn outsider(mesh: &Mesh, node: &str, name: &str) -> Pod {
    let spec = PodSpec::new(node, "shop", name).outside_mesh();
    mesh.lab.add_pod(spec).unwrap()
}

/// Changes both agents' configurations at once; says when that began.
fn reload(mesh: &mut Mesh, change: impl Fn(&mut AgentConfig) + Sync) -> Instant {
    let began = Instant::now();
    std::thread::scope(|scope| {
        for agent in &mut mesh.agents {
            scope.spawn(|| {
                let status = agent.reload(&change).unwrap();
                assert_eq!(status.config.rejected, None);
            });
        }
    });
    began
}

/// A policy of the namespace with one rule about sources.
fn about(name: &str, action: &str, source: Value) -> Value {
    let rules = json!([{ "from": [{ "source": source }] }]);
    json!({ "name": name, "namespace": "shop", "action": action, "rules": rules })
}

/// Makes the kernel of a pod's node remember that the pod may connect there.
fn remembered(pod: &Pod, to: IpAddr, port: u16) {
    let to = std::net::SocketAddr::new(to, port).to_string();
    run(pod, ["echo-client", &to]).success().unwrap();
}

/// The only record, on the node of the mesh's `c`, of the end of a connection that a change forbids.
fn ended(mesh: &Mesh, from: IpAddr) -> Flow {
    let agent = mesh.agent(&mesh.c);
    let is_it = |flow: &Flow| flow.reason == Reason::PolicyChanged && flow.source.address.ip() == from;
    let what = format!("the end of the connection from {from}");
    agent.wait_flow(&what, is_it).unwrap();
    let all = agent.flows().unwrap().into_iter().filter(is_it);
    let [one] = <[Flow; 1]>::try_from(all.collect::<Vec<_>>()).expect("one record");
    one
}

fn named(flow: &Flow) -> String {
    flow.policy.as_ref().map(ToString::to_string).unwrap_or_default()
}

fn address(pod: &Pod, v6: bool) -> IpAddr {
    if v6 { pod.v6().into() } else { pod.v4().into() }
}

#[test]
fn a_policy_that_forbids_one_connection_ends_that_one_within_a_second_and_no_other() {
    let mut mesh = direct_mesh("exactly");
    let (e, f) = (
        enrolled(&mut mesh, "node2", "e"),
        enrolled(&mut mesh, "node2", "f"),
    );
    let (p, q) = (outsider(&mesh, "node1", "p"), outsider(&mesh, "node1", "q"));
    let (_server, _) = serve(&mesh.c, ["echo-server", "--port", "7000", "--dual-stack"]);
    for v6 in [false, true] {
        let to = address(&mesh.c, v6);
        for pod in [&mesh.d, &e] {
            remembered(pod, to, 7000);
        }
        let talk = |pod: &Pod| Talk::start(pod, &pod.spec().name, to, 7000);
        let [a, b, d] = [&mesh.a, &mesh.b, &mesh.d].map(talk);
        // The first of `f` goes through the agent, though on one node.
        let others = [b, talk(&q), talk(&e)];
        let address_of_p = address(&p, v6);
        let account = |name: &str| json!({ "serviceAccounts": [name] });
        // Whose, which, what it forbids, and how its end is recorded.
        let table = [
            (
                a,
                address(&mesh.a, v6),
                about("no-a", "DENY", account("a")),
                "shop/no-a rule 0",
                FlowPath::Tunnel,
            ),
            (
                talk(&p),
                address_of_p,
                about("no-p", "DENY", json!({ "ipBlocks": [address_of_p.to_string()] })),
                "shop/no-p rule 0",
                FlowPath::Plaintext,
            ),
            (
                d,
                address(&mesh.d, v6),
                about(
                    "no-d",
                    "DENY",
                    json!({ "principals": ["cluster.local/ns/shop/sa/d"] }),
                ),
                "shop/no-d rule 0",
                FlowPath::Direct,
            ),
            (
                talk(&f),
                address(&f, v6),
                about("not-f", "ALLOW", json!({ "notServiceAccounts": ["f"] })),
                "shop/not-f",
                FlowPath::Tunnel,
            ),
        ];
        let mut would = about("would", "DENY", json!({ "notPrincipals": ["nobody"] }));
        would["dryRun"] = json!(true);
        reload(&mut mesh, |config| {
            config.authorization_policies.push(would.clone());
        });
        let mut talks: Vec<_> = table.into_iter().collect();
        while !talks.is_empty() {
            let (victim, from, policy, name, path) = talks.remove(0);
            victim.goes_on();
            let began = reload(&mut mesh, |config| {
                config.authorization_policies.push(policy.clone());
            });
            victim.expect_reset(began);
            talks
                .iter()
                .map(|(talk, ..)| talk)
                .chain(&others)
                .for_each(Talk::goes_on);
            let flow = ended(&mesh, from);
            assert_eq!(
                (flow.event, flow.verdict, flow.path, named(&flow).as_str()),
                (FlowEvent::Close, FlowVerdict::Denied, path, name),
                "{flow:?}"
            );
            assert!(flow.bytes_sent >= 4 && flow.bytes_received >= 4, "{flow:?}");
            let direction = match path {
                FlowPath::Direct => TrafficDirection::Egress,
                _ => TrafficDirection::Ingress,
            };
            assert_eq!(flow.direction, direction, "{flow:?}");
        }
        let all = mesh.agent(&mesh.c).flows().unwrap();
        let changed = all.iter().filter(|flow| flow.reason == Reason::PolicyChanged);
        assert_eq!(
            changed.count(),
            if v6 { 8 } else { 4 },
            "each is recorded once: {all:?}"
        );
        reload(&mut mesh, |config| config.authorization_policies.clear());
    }
}

#[test]
fn a_plaintext_connection_from_before_enrolment_ends_when_the_pod_becomes_strict() {
    for (dual_stack, at_once) in [(false, false), (true, true)] {
        let mut mesh = Mesh::new("before");
        let outside = mesh.lab.outside().unwrap();
        let (outside_v4, _) = mesh.lab.outside_addresses();
        let world = outside.testapp(["echo-server", "--port", "7000"]).unwrap();
        world.wait_listening().unwrap();
        let (_c, _) = serve(&mesh.c, ["echo-server", "--port", "7000"]);
        let late = mesh.lab.add_pod(PodSpec::new("node2", "shop", "late")).unwrap();
        let p = outsider(&mesh, "node1", "p");
        let family = if dual_stack {
            "--dual-stack"
        } else {
            "--address=0.0.0.0"
        };
        let (_server, _) = serve(&late, ["echo-server", "--port", "7000", family]);
        let mut inbound = vec![
            Talk::start(outside, "outside", late.v4(), 7000),
            Talk::start(&p, "p", late.v4(), 7000),
        ];
        if dual_stack {
            inbound.push(Talk::start(&p, "p by IPv6", late.v6(), 7000));
        }
        let outbound = [
            Talk::start(&late, "late to outside", outside_v4, 7000),
            Talk::start(&late, "late to c", mesh.c.v4(), 7000),
        ];
        let enrol = |config: &mut AgentConfig| {
            config.workloads.push(late.workload());
            if config.node == "node2" {
                config.pods.push(late.config());
            }
        };
        if !at_once {
            reload(&mut mesh, enrol);
            inbound.iter().chain(&outbound).for_each(Talk::goes_on);
        }
        let began = reload(&mut mesh, |config| {
            if at_once {
                enrol(config);
            }
            config.strict_workload("shop", "late");
        });
        inbound.into_iter().for_each(|talk| talk.expect_reset(began));
        outbound.iter().for_each(Talk::goes_on);
        let flow = ended(&mesh, p.v4().into());
        assert_eq!(
            (flow.event, flow.direction, flow.path, named(&flow).as_str()),
            (
                FlowEvent::Close,
                TrafficDirection::Ingress,
                FlowPath::Kernel,
                "shop/late"
            ),
            "{flow:?}"
        );
    }
}

#[test]
fn a_port_that_becomes_strict_ends_its_plaintext_connections_only() {
    // Of the workload, of port 7001; which of the two ports becomes strict.
    for (workload, port, strict) in [("STRICT", "PERMISSIVE", 7000), ("PERMISSIVE", "STRICT", 7001)] {
        let mut mesh = direct_mesh("ports");
        let p = outsider(&mesh, "node1", "p");
        let _servers = ["7000", "7001"].map(|port| serve(&mesh.c, ["echo-server", "--port", port]));
        let (c, open) = (mesh.c.v4(), if strict == 7000 { 7001 } else { 7000 });
        remembered(&mesh.d, c.into(), strict);
        let victim = Talk::start(&p, "p", c, strict);
        let others = [
            Talk::start(&p, "p", c, open),
            Talk::start(&mesh.a, "a", c, strict),
            Talk::start(&mesh.d, "d", c, strict),
        ];
        let mode = json!({
            "name": "modes", "namespace": "shop", "selector": { "matchLabels": { "app": "c" } },
            "mtls": { "mode": workload }, "portLevelMtls": { "7001": { "mode": port } },
        });
        let began = reload(&mut mesh, |config| config.peer_authentications.push(mode.clone()));
        victim.expect_reset(began);
        others.iter().for_each(Talk::goes_on);
        let flow = ended(&mesh, p.v4().into());
        assert_eq!(
            (flow.event, flow.path),
            (FlowEvent::Close, FlowPath::Plaintext),
            "{flow:?}"
        );
        assert_eq!(
            (flow.destination.address.port(), named(&flow).as_str()),
            (strict, "shop/modes")
        );

        let line = run(&p, ["connect", &format!("{c}:{strict}"), "--read", "1"])
            .json()
            .unwrap();
        assert_eq!(
            (&line["connect"], &line["end"]),
            (&"ok".into(), &"ECONNRESET".into()),
            "{line}"
        );
        let flow = mesh.flow(&mesh.c, TrafficDirection::Ingress, FlowEvent::Refused, strict);
        assert_eq!(
            (flow.reason, named(&flow).as_str()),
            (Reason::PlaintextToStrict, "shop/modes")
        );
        run(&p, ["echo-client", &format!("{c}:{open}")])
            .success()
            .unwrap();
        for pod in [&mesh.a, &mesh.d] {
            run(pod, ["echo-client", &format!("{c}:{strict}")])
                .success()
                .unwrap();
        }
    }
}

#[test]
fn without_the_policy_connections_pass_again() {
    let mut mesh = direct_mesh("again");
    let p = outsider(&mesh, "node1", "p");
    let (_server, _) = serve(&mesh.c, ["echo-server", "--port", "7000"]);
    let to = format!("{}:7000", mesh.c.v4());
    let everybody = || about("nobody", "DENY", json!({ "notPrincipals": ["nobody"] }));
    for _ in 0..2 {
        reload(&mut mesh, |config| {
            config.authorization_policies.push(everybody());
        });
        for pod in [&mesh.a, &p, &mesh.d] {
            let line = run(pod, ["connect", &to, "--read", "1"]).json().unwrap();
            assert_eq!(line["end"], "ECONNRESET", "{line}");
        }
        let line = run(&mesh.d, ["connect", &to]).json().unwrap();
        assert_eq!(line["connect"], "ECONNREFUSED", "by the kernel: {line}");
        reload(&mut mesh, |config| config.authorization_policies.clear());
        for pod in [&mesh.a, &p, &mesh.d, &mesh.d] {
            run(pod, ["echo-client", &to]).success().unwrap();
        }
    }
    let _ = mesh.flow_where(
        &mesh.d,
        TrafficDirection::Egress,
        FlowEvent::Close,
        7000,
        |flow| flow.path == FlowPath::Direct && flow.verdict == FlowVerdict::Forwarded,
    );
}

#[test]
fn an_agent_that_starts_again_ends_direct_connections_that_are_now_forbidden_and_no_others() {
    let mut mesh = direct_mesh("restarts");
    let e = enrolled(&mut mesh, "node2", "e");
    let (_server, _) = serve(&mesh.c, ["echo-server", "--port", "7000"]);
    let to = IpAddr::from(mesh.c.v4());
    let [d, e] = [&mesh.d, &e].map(|pod| {
        remembered(pod, to, 7000);
        let talk = Talk::start(pod, &pod.spec().name, to, 7000);
        let _ = mesh.flow_where(pod, TrafficDirection::Egress, FlowEvent::Open, 7000, |flow| {
            flow.path == FlowPath::Direct
        });
        talk
    });
    let agent = mesh.agent(&mesh.c);
    let still = || [&d, &e].map(Talk::goes_on);
    agent.kill().unwrap();
    still();
    agent.restart().unwrap();
    still();
    assert!(agent.stop().unwrap().success());
    still();
    let mut config = agent.config().clone();
    let policy = about("no-e", "DENY", json!({ "serviceAccounts": ["e"] }));
    config.authorization_policies.push(policy);
    // JSON is YAML.
    let text = serde_json::to_string(&config).unwrap();
    replace_file(agent.config_file(), text.as_bytes()).unwrap();
    still();
    agent.restart().unwrap();
    e.expect_reset(Instant::now());
    d.goes_on();
    let flow = agent
        .wait_flow("the end", |flow| flow.reason == Reason::PolicyChanged)
        .unwrap();
    assert_eq!(
        (
            flow.event,
            flow.path,
            flow.source.pod.as_deref(),
            named(&flow).as_str()
        ),
        (FlowEvent::Close, FlowPath::Direct, Some("e"), "shop/no-e rule 0"),
        "{flow:?}"
    );
}

#[test]
fn a_label_by_which_a_policy_selects_the_pod_ends_its_connections() {
    let mut mesh = direct_mesh("labels");
    let p = outsider(&mesh, "node1", "p");
    let _servers = [&mesh.b, &mesh.c].map(|pod| serve(pod, ["echo-server", "--port", "7000"]));
    let mut policy = about("no-db", "DENY", json!({ "notPrincipals": ["nobody"] }));
    policy["selector"] = json!({ "matchLabels": { "tier": "db" } });
    reload(&mut mesh, |config| {
        config.authorization_policies.push(policy.clone());
    });
    let (b, c) = (IpAddr::from(mesh.b.v4()), IpAddr::from(mesh.c.v4()));
    remembered(&mesh.d, c, 7000);
    let talks = [&mesh.a, &p, &mesh.d].map(|pod| Talk::start(pod, &pod.spec().name, c, 7000));
    let others = [&mesh.a, &p, &mesh.d].map(|pod| Talk::start(pod, &pod.spec().name, b, 7000));
    let label = |mesh: &mut Mesh, tier: &str| {
        reload(mesh, |config| {
            let workload = config
                .workloads
                .iter_mut()
                .find(|workload| workload.uid == "shop-c");
            workload
                .unwrap()
                .labels
                .insert("tier".to_owned(), tier.to_owned());
        })
    };
    let began = label(&mut mesh, "db");
    talks.into_iter().for_each(|talk| talk.expect_reset(began));
    others.iter().for_each(Talk::goes_on);
    for pod in [&mesh.a, &p, &mesh.d] {
        let flow = ended(&mesh, pod.v4().into());
        assert_eq!(
            (flow.event, named(&flow).as_str()),
            (FlowEvent::Close, "shop/no-db rule 0"),
            "{flow:?}"
        );
    }
    label(&mut mesh, "cache");
    for pod in [&mesh.a, &p, &mesh.d] {
        remembered(pod, c, 7000);
    }
}
