//! Hostile clients on the HBONE port: what they can make the agent hold is bounded, and their neighbours go on.

use std::time::Duration;

use serde_json::Value;
use weir_e2e::{
    Mesh,
    peers::{client, json_lines, memory, python_with_ca},
    run, serve,
};
use weir_lab::{Pod, PodSpec, Process, Spawn as _};
use weir_types::Reason;

/// What an attack may make the agent hold. The half-open handshakes that are let in take the most: 64 from each of
/// ten addresses, up to 100 KiB each.
const GROWTH: u64 = 96 << 20;
/// An attack takes seconds; two busy cores in CI take longer.
const LONG: Duration = Duration::from_secs(120);

/// An attacker on one node, a victim on the other, and neighbours: a pod with an open tunnel, and one of other make
/// that opens new ones.
struct Scene {
    mesh: Mesh,
    attacker: Pod,
    neighbour: Pod,
    _servers: [Process; 2],
    hbone: String,
}

impl Scene {
    fn new(name: &str) -> Self {
        let mesh = Mesh::new(name);
        let [attacker, neighbour] = ["peer", "neighbour"].map(|name| {
            let spec = PodSpec::new("node1", "shop", name).outside_mesh();
            mesh.lab.add_pod(spec).unwrap()
        });
        let servers = [
            serve(&mesh.c, ["rr-server", "--port", "7000"]).0,
            serve(&mesh.c, ["echo-server", "--port", "7001"]).0,
        ];
        let hbone = format!("{}:15008", mesh.c.v4());
        let scene = Self {
            mesh,
            attacker,
            neighbour,
            _servers: servers,
            hbone,
        };
        // After this the agent has its usual size.
        scene.neighbours_go_on();
        scene
    }

    fn application(&self, port: u16) -> String {
        format!("{}:{port}", self.mesh.c.v4())
    }

    fn neighbours_go_on(&self) {
        run(
            &self.mesh.a,
            ["crr-client", &self.application(7000), "--seconds", "0.2"],
        )
        .success()
        .unwrap();
        let answers = client(
            &self.mesh.lab,
            &self.neighbour,
            &[
                "echo",
                "--to",
                &self.hbone,
                "--authority",
                &self.application(7001),
            ],
        );
        assert_eq!(answers[0]["intact"], true, "{answers:?}");
    }

    /// Attacks, and meanwhile looks after the neighbours. Gives what the attacker says.
    fn attack(&self, arguments: &[&str]) -> Value {
        let pid = self.mesh.agent(&self.mesh.c).pid();
        let before = memory(pid, "VmRSS");
        let mut command = python_with_ca(&self.mesh.lab, "attacks.py");
        command
            .args(arguments)
            .args(["--to", &self.hbone, "--authority", &self.application(7000)]);
        let mut attack = self.attacker.spawn(command).unwrap();
        while attack.ended().unwrap().is_none() {
            self.neighbours_go_on();
        }
        let finished = attack.wait(LONG).unwrap().success().unwrap();
        self.neighbours_go_on();
        let line = json_lines(&finished).pop().unwrap();
        let grown = memory(pid, "VmHWM").saturating_sub(before);
        assert!(grown < GROWTH, "{grown} bytes more: {line}");
        line
    }
}

#[test]
fn a_flood_of_frames_ends_the_connection_that_it_comes_on_and_no_other() {
    let scene = Scene::new("floods");
    // attack, frames or requests that it wants to send, connections that it may use, most that one may carry
    let table = [
        ("continuation", "100000", "10", 10_000),
        ("header-list", "10000", "10", 1000),
        ("rapid-reset", "1000000", "10", 50_000),
        ("empty-data", "10000000", "10000", 2_000_000),
    ];
    for (what, count, connections, most) in table {
        let line = scene.attack(&[what, "--count", count, "--connections", connections]);
        let longest = line["longest"].as_u64().unwrap();
        assert!(line["end"].is_string() && (1..most).contains(&longest), "{line}");
    }
    // No trace is left of any of them.
    let agent = scene.mesh.agent(&scene.mesh.c);
    weir_lab::poll(
        "the attacker's connections to be gone",
        weir_lab::PATIENCE,
        || {
            let attackers = scene.attacker.v4();
            let tunnels = agent.status()?.tunnels;
            let gone = tunnels.iter().all(|tunnel| tunnel.address.ip() != attackers);
            Ok(gone.then_some(()))
        },
    )
    .unwrap();
}

#[test]
fn answers_that_a_peer_does_not_read_are_not_kept_for_it() {
    let scene = Scene::new("unread");
    for what in ["settings", "ping"] {
        // However many the agent takes before it waits for the peer to read: what counts is its memory.
        scene.attack(&[what, "--count", "2000000"]);
    }
}

#[test]
fn ten_thousand_half_open_handshakes_are_bounded_for_each_address() {
    const FIRST: u8 = 100;
    const ADDRESSES: u8 = 10;
    let scene = Scene::new("halfopen");
    let hosts = FIRST..FIRST + ADDRESSES;
    let sources: Vec<String> = hosts.map(|host| format!("10.1.0.{host}")).collect();
    for source in &sources {
        let command = format!("addr add {source}/24 dev eth0");
        scene.attacker.ip(&[&command]).unwrap();
    }
    // 64 from each address may begin; they are given up after 10 s.
    let most = (64 * sources.len()).to_string();
    let mut arguments = vec!["half-open", "--count", "10000", "--let-in", &most, "--sources"];
    arguments.extend(sources.iter().map(String::as_str));
    let line = scene.attack(&arguments);
    assert!(line["ended"].as_u64().unwrap() >= 9000, "{line}");
    // The ring of flows may have gone round since, so the count of them all tells.
    let refusals = scene.mesh.agent(&scene.mesh.c).status().unwrap().refusals;
    let limited = refusals
        .iter()
        .find(|(reason, _)| *reason == Reason::HandshakeLimit);
    assert!(limited.is_some_and(|(_, count)| *count > 5000), "{refusals:?}");
}
