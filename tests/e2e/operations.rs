//! What an operator meets: the command line, exit codes, a machine that lacks something, a restart.

use std::process::{Command, Output};

use weir_e2e::{Mesh, run, serve};
use weir_lab::Spawn as _;
use weir_types::{FlowEvent, TrafficDirection};

fn weir(mesh: &Mesh, arguments: &[&str]) -> Output {
    let socket = &mesh.agents[0].config().api.socket;
    Command::new(weir_lab::program("weir").unwrap())
        .arg("--socket")
        .arg(socket)
        .args(arguments)
        .output()
        .unwrap()
}

fn text(output: &[u8]) -> String {
    String::from_utf8_lossy(output).into_owned()
}

#[test]
fn the_command_line_shows_flows_status_and_workloads() {
    let mesh = Mesh::new("cli");
    let (_server, _) = serve(&mesh.c, ["echo-server", "--port", "7000"]);
    run(&mesh.a, ["echo-client", &format!("{}:7000", mesh.c.v4())])
        .success()
        .unwrap();
    run(
        &mesh.b,
        ["connect", &format!("{}:7001", mesh.c.v4()), "--read-all"],
    )
    .success()
    .unwrap();
    let _ = mesh.flow(&mesh.a, TrafficDirection::Egress, FlowEvent::Close, 7000);
    let _ = mesh.flow(&mesh.b, TrafficDirection::Egress, FlowEvent::Refused, 7001);

    let flows = weir(&mesh, &["flows"]);
    let lines = text(&flows.stdout);
    assert!(
        flows.status.success() && !lines.contains('\x1b'),
        "no colour into a pipe: {lines}"
    );
    assert!(
        lines
            .lines()
            .any(|l| l.contains("CLOSE") && l.contains("shop/a:") && l.contains("sa/c)  mTLS")),
        "{lines}"
    );
    assert!(
        lines
            .lines()
            .any(|l| l.contains("FAILED") && l.contains("connection_refused")),
        "{lines}"
    );
    // options, number of flows
    let table: [(&[&str], usize); 8] = [
        (&["--last", "1"], 1),
        (&["--pod", "shop/a"], 2),
        (&["--pod", "a", "--pod", "b"], 3),
        (&["--pod", "elsewhere/a"], 0),
        (&["--namespace", "shop"], 3),
        (&["--verdict", "failed"], 1),
        (&["--port", "7000", "--verdict", "failed"], 0),
        (&["--port", "7001"], 1),
    ];
    for (options, count) in table {
        let output = weir(&mesh, &[&["flows", "-o", "json"], options].concat());
        let lines = text(&output.stdout);
        assert_eq!(lines.lines().count(), count, "{options:?}: {lines}");
        assert!(
            lines
                .lines()
                .all(|line| serde_json::from_str::<weir_types::Flow>(line).is_ok()),
            "{lines}"
        );
    }

    let status = text(&weir(&mesh, &["status"]).stdout);
    for part in [
        "ready",
        "shop/a",
        "PERMISSIVE",
        "weir_connect4",
        "spiffe://cluster.local/ns/shop/sa/a",
        "Tunnels",
    ] {
        assert!(status.contains(part), "{part} in {status}");
    }
    let json: weir_types::api::Status =
        serde_json::from_slice(&weir(&mesh, &["status", "-o", "json"]).stdout).unwrap();
    assert_eq!(json.pods.len(), 2);
    let workloads = text(&weir(&mesh, &["workloads"]).stdout);
    assert!(
        workloads.contains("shop/d") && workloads.contains("node1 (here)"),
        "{workloads}"
    );
    assert!(weir(&mesh, &["completion", "bash"]).stdout.starts_with(b"_weir"));
}

#[test]
fn following_shows_new_flows_and_ends_with_its_reader() {
    let mesh = Mesh::new("follow");
    let (_server, _) = serve(&mesh.c, ["echo-server", "--port", "7000"]);
    let mut flows = mesh.agents[0].follow().unwrap();
    run(&mesh.a, ["echo-client", &format!("{}:7000", mesh.c.v4())])
        .success()
        .unwrap();
    let events: Vec<_> = flows.by_ref().take(2).map(|flow| flow.unwrap().event).collect();
    assert_eq!(events, [FlowEvent::Open, FlowEvent::Close]);
}

#[test]
fn without_an_agent_the_command_line_says_so_with_a_code_of_its_own() {
    let output = Command::new(weir_lab::program("weir").unwrap())
        .args(["--socket", "/run/weir-nowhere/agent.sock", "status"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(3));
    let error = text(&output.stderr);
    assert!(
        error.contains("/run/weir-nowhere/agent.sock") && error.contains("is weir-agent running?"),
        "{error}"
    );
}

fn agent(arguments: &[&str]) -> Output {
    Command::new(weir_lab::program("weir-agent").unwrap())
        .args(arguments)
        .output()
        .unwrap()
}

#[test]
fn a_wrong_file_ends_the_agent_with_2_before_anything_is_attached() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("weir.yaml");
    std::fs::write(
        &file,
        "node: n1\ntrustDomain: cluster.local\nca: { dir: /tmp }\npods: 7\n",
    )
    .unwrap();
    let output = agent(&["--config", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    let error = text(&output.stderr);
    assert!(
        error.contains(&format!("{}:4:7: pods: ", file.display())),
        "{error}"
    );
    assert_eq!(error.lines().count(), 1, "{error}");
    let output = agent(&["--config", "/nowhere.yaml"]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
}

#[test]
fn a_machine_that_lacks_something_ends_the_agent_with_3_and_is_told_what_why_and_how() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("weir.yaml");
    let head = format!(
        "node: n1\ntrustDomain: cluster.local\nca: {{ dir: {}/ca }}\n",
        folder.path().display()
    );
    let pins = folder.path().display();
    // lines of the file, command in front of the agent, what is missing
    let drop_all = [
        "setpriv",
        "--bounding-set=-net_admin",
        "--inh-caps=-net_admin",
        "--",
    ];
    let table: [(String, &[&str], &str); 3] = [
        (format!("pinDir: {pins}/pins\n"), &[], "bpffs"),
        (format!("cgroup: {pins}\n"), &[], "cgroup v2"),
        (String::new(), &drop_all, "capability CAP_NET_ADMIN"),
    ];
    for (lines, front, missing) in table {
        std::fs::write(&file, format!("{head}{lines}")).unwrap();
        let program = weir_lab::program("weir-agent").unwrap();
        let mut words: Vec<&str> = front.to_vec();
        words.extend([
            program.to_str().unwrap(),
            "--config",
            file.to_str().unwrap(),
            "--check",
        ]);
        let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{missing}: {error}");
        assert!(error.contains(&format!("missing {missing}")), "{error}");
        assert!(
            error.contains("needed for: ") && error.contains("how to get it: "),
            "{error}"
        );
    }
    assert!(!folder.path().join("ca").exists(), "nothing was made");
}

#[test]
fn an_agent_that_is_killed_and_started_again_carries_on_with_the_same_links() {
    let mesh = Mesh::new("restart");
    let (_server, _) = serve(&mesh.c, ["echo-server", "--port", "7000"]);
    let to = format!("{}:7000", mesh.c.v4());
    run(&mesh.a, ["echo-client", &to]).success().unwrap();
    let agent = mesh.agent(&mesh.a);
    let links = |status: weir_types::api::Status| -> Vec<_> {
        status
            .programs
            .into_iter()
            .map(|program| (program.name, program.link_id))
            .collect()
    };
    let before = links(agent.status().unwrap());
    agent.kill().unwrap();
    // Enrolled pods fail closed while it is away.
    let line = run(&mesh.a, ["connect", &to]).json().unwrap();
    assert_eq!(line["connect"], "ECONNREFUSED", "{line}");
    agent.restart().unwrap();
    assert_eq!(links(agent.status().unwrap()), before);
    run(&mesh.a, ["echo-client", &to]).success().unwrap();
}

#[test]
fn an_agent_that_stands_by_takes_over_without_one_connection_refused() {
    let mut mesh = Mesh::new("standby");
    let (_server, _) = serve(&mesh.c, ["echo-server", "--port", "7000"]);
    let to = format!("{}:7000", mesh.c.v4());
    for agent in &mesh.agents {
        assert!(agent.stop().unwrap().success());
        agent.restart_standby().unwrap();
    }
    // Fails at the first connection that fails; some are open when the agent changes, others come meanwhile.
    let endless = ["echo-client", &to, "--connections", "1000000", "--pause-ms", "2"];
    let mut traffic = mesh.a.testapp(endless).unwrap();
    for agent in mesh.agents.iter_mut().take(2) {
        for _ in 0..2 {
            assert!(agent.replace().unwrap().success());
        }
    }
    run(&mesh.a, ["echo-client", &to]).success().unwrap();
    assert!(
        traffic.ended().unwrap().is_none(),
        "a connection failed: {}",
        traffic.stderr()
    );
    for agent in mesh.agents.iter().take(2) {
        assert_eq!(
            agent.status().unwrap().errors,
            Vec::<String>::new(),
            "{}",
            agent.log()
        );
    }
}

#[test]
fn a_stopped_agent_can_be_detached_and_its_pods_are_untouched_again() {
    let mesh = Mesh::new("detach");
    let (_server, _) = serve(&mesh.d, ["echo-server", "--port", "7000"]);
    for stopped in &mesh.agents {
        assert!(stopped.stop().unwrap().success());
        let output = agent(&["--config", stopped.config_file().to_str().unwrap(), "--detach"]);
        assert!(output.status.success(), "{}", text(&output.stderr));
    }
    run(&mesh.a, ["echo-client", &format!("{}:7000", mesh.d.v4())])
        .success()
        .unwrap();
}

#[test]
fn an_agent_outside_of_its_cgroup_does_not_start() {
    let mesh = Mesh::new("astray");
    let stopped = &mesh.agents[0];
    assert!(stopped.stop().unwrap().success());
    // From here it is in the cgroup of the test, not of the node.
    let output = agent(&["--config", stopped.config_file().to_str().unwrap()]);
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{error}");
    assert!(
        error.contains("the agent itself is in ") && error.contains("how to get it: "),
        "{error}"
    );
}
