//! Hostile clients on the HBONE port: what they can make the agent hold is bounded, and their neighbours go on.

use std::time::Duration;

use serde_json::Value;
use weir_e2e::{
    Mesh,
    peers::{client, json_lines, memory, python},
    run, serve,
};
use weir_lab::{Pod, PodSpec, Spawn as _};

const MIB: u64 = 1 << 20;
/// An attack of so many frames takes seconds; two busy cores in CI take longer.
const LONG: Duration = Duration::from_secs(120);

struct Scene {
    mesh: Mesh,
    attacker: Pod,
    _server: weir_lab::Process,
    application: String,
    hbone: String,
}

/// How an attack went.
struct Ended {
    line: Value,
    /// Highest growth of the agent's memory, in bytes.
    grown: u64,
}

impl Scene {
    fn new(name: &str) -> Self {
        let mesh = Mesh::new(name);
        let attacker = PodSpec::new("node1", "shop", "peer").outside_mesh();
        let attacker = mesh.lab.add_pod(attacker).unwrap();
        let (server, _) = serve(&mesh.c, ["rr-server", "--port", "7000"]);
        let application = format!("{}:7000", mesh.c.v4());
        let hbone = format!("{}:15008", mesh.c.v4());
        // The neighbour's tunnel is open before, and the agent has its usual size.
        run(&mesh.a, ["crr-client", &application, "--seconds", "0.2"])
            .success()
            .unwrap();
        Self {
            mesh,
            attacker,
            _server: server,
            application,
            hbone,
        }
    }

    /// Attacks, and meanwhile looks after the neighbours.
    fn attack(&self, what: &str, count: u64, more: &[&str]) -> Ended {
        let pid = self.mesh.agent(&self.mesh.c).pid();
        let before = memory(pid, "VmRSS");
        let mut command = python(&self.mesh.lab, "attacks.py");
        command.args([what, "--to", &self.hbone, "--authority", &self.application]);
        command.args(["--count", &count.to_string()]).args(more);
        let mut attack = self.attacker.spawn(command).unwrap();
        let mut rounds = 0;
        while attack.ended().unwrap().is_none() || rounds == 0 {
            run(
                &self.mesh.a,
                ["crr-client", &self.application, "--seconds", "0.2"],
            )
            .success()
            .unwrap();
            rounds += 1;
        }
        let finished = attack.wait(LONG).unwrap().success().unwrap();
        let line = json_lines(&finished).pop().unwrap();
        let grown = memory(pid, "VmHWM").saturating_sub(before);
        eprintln!("{line}: {} MiB more, {rounds} rounds of neighbours", grown / MIB);
        assert_eq!(self.mesh.agent(&self.mesh.c).pid(), pid);
        Ended { line, grown }
    }
}

#[test]
fn floods() {
    let scene = Scene::new("floods");
    for (what, count) in [
        ("continuation", 100_000),
        ("header-list", 10_000),
        ("rapid-reset", 1_000_000),
        ("settings", 2_000_000),
        ("ping", 2_000_000),
        ("empty-data", 10_000_000),
    ] {
        let started = std::time::Instant::now();
        let ended = scene.attack(what, count, &[]);
        eprintln!("{:?} {} {}", started.elapsed(), ended.line, ended.grown);
    }
}

#[test]
fn half() {
    let scene = Scene::new("halfopen");
    let lines: Vec<String> = (100..110)
        .map(|host| format!("addr add 10.1.0.{host}/24 dev eth0"))
        .collect();
    scene
        .attacker
        .ip(&lines.iter().map(String::as_str).collect::<Vec<_>>())
        .unwrap();
    let sources: Vec<String> = (100..110).map(|host| format!("10.1.0.{host}")).collect();
    let mut more = vec!["--sources"];
    more.extend(sources.iter().map(String::as_str));
    let _ = scene.attack("half-open", 10_000, &more);
    let _ = client(
        &scene.mesh.lab,
        &scene.attacker,
        &["echo", "--to", &scene.hbone, "--authority", &scene.application],
    );
}
