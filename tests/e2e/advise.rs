//! The policies that `weir advise` makes of real traffic allow that traffic, and nothing else.

use std::{fs, process::Command};

use serde_json::Value;
use weir_e2e::{Mesh, direct::at, run, serve};
use weir_lab::{Agent, PATIENCE, Pod, PodSpec};
use weir_types::{
    Flow, FlowEvent, FlowPath, FlowVerdict,
    TrafficDirection::{Egress, Ingress},
};

/// The output of a command of an agent's node.
fn weir(agent: &Agent, arguments: &[&str]) -> String {
    let mut command = Command::new(weir_lab::program("weir").unwrap());
    command.arg("--socket").arg(&agent.config().api.socket);
    output(command.args(arguments))
}

fn output(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    String::from_utf8(output.stdout).unwrap()
}

/// Whether the server's word came back.
fn connects(pod: &Pod, to: &str) -> bool {
    let line = run(pod, ["connect", to, "--send", "x", "--read", "1"])
        .json()
        .unwrap();
    line["text"] == "x"
}

/// As the agents' configuration has policies: the fields of `spec` beside name and namespace.
fn flattened(manifests: &str) -> Vec<Value> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(manifests).unwrap();
    let policies = documents.into_iter().filter(Value::is_object).map(|document| {
        let mut policy = document["spec"].clone();
        policy["name"] = document["metadata"]["name"].clone();
        policy["namespace"] = document["metadata"]["namespace"].clone();
        policy
    });
    policies.collect()
}

fn recorded(mesh: &Mesh) -> Vec<Flow> {
    mesh.agents
        .iter()
        .flat_map(|agent| agent.flows().unwrap())
        .collect()
}

#[test]
fn policies_made_of_real_traffic_deny_nothing_of_it_and_everything_else() {
    let mut mesh = Mesh::new("advise");
    let plain = mesh
        .lab
        .add_pod(PodSpec::new("node1", "shop", "plain").outside_mesh())
        .unwrap();
    let _servers = [(&mesh.b, "7001"), (&mesh.c, "7000"), (&mesh.c, "7002")]
        .map(|(pod, port)| serve(pod, ["echo-server", "--port", port]));
    let (b, c) = (at(mesh.b.v4(), 7001), at(mesh.c.v4(), 7000));
    // Across nodes, on one, and in plaintext.
    let traffic = |mesh: &Mesh| {
        let clients = [(&mesh.a, &c), (&mesh.d, &b), (&mesh.a, &b), (&plain, &c)];
        clients.map(|(client, to)| (client.uid(), to.clone(), connects(client, to)))
    };
    let all_connect = |mesh: &Mesh| {
        for (client, to, connected) in traffic(mesh) {
            assert!(connected, "{client} to {to}");
        }
    };
    all_connect(&mesh);
    for (pod, port) in [(&mesh.a, 7000), (&mesh.a, 7001), (&mesh.d, 7001)] {
        let _ = mesh.flow(pod, Egress, FlowEvent::Open, port);
    }
    let plaintext = |flow: &Flow| flow.path == FlowPath::Plaintext;
    let _ = mesh.flow_where(&mesh.c, Ingress, FlowEvent::Open, 7000, plaintext);
    let _ = mesh.flow_where(&mesh.b, Ingress, FlowEvent::Open, 7001, |flow| {
        flow.path == FlowPath::Tunnel
    });

    let saved = tempfile::NamedTempFile::new().unwrap();
    let flows: String = mesh
        .agents
        .iter()
        .map(|agent| weir(agent, &["flows", "-o", "json"]))
        .collect();
    fs::write(saved.path(), flows).unwrap();
    let mut advise = Command::new(weir_lab::program("weir").unwrap());
    advise
        .args(["advise", "policy", "-o", "yaml", "--input-file"])
        .arg(saved.path());
    let manifests = output(&mut advise);
    let rehearsed = flattened(&manifests);
    assert_eq!(rehearsed.len(), 2, "{manifests}");
    assert!(
        rehearsed.iter().all(|policy| policy["dryRun"] == true),
        "{manifests}"
    );
    let mut enforced = rehearsed.clone();
    enforced
        .iter_mut()
        .for_each(|policy| policy["dryRun"] = false.into());

    // First as they are written, then in earnest.
    for policies in [&rehearsed, &enforced] {
        for agent in &mut mesh.agents {
            let status = agent
                .reload(|config| config.authorization_policies.clone_from(policies))
                .unwrap();
            assert_eq!(status.config.rejected, None, "{manifests}");
        }
        all_connect(&mesh);
    }
    // Each of them three times by now, of which the last to come are recorded too.
    weir_lab::poll("records of all", PATIENCE, || {
        let flows = recorded(&mesh);
        let opened = |client: Option<&str>, port, direction| {
            let opened = flows.iter().filter(|flow| {
                flow.event == FlowEvent::Open
                    && (flow.source.pod.as_deref(), flow.direction) == (client, direction)
                    && flow.destination.address.port() == port
            });
            opened.count()
        };
        let least = [
            opened(Some("a"), 7000, Egress),
            opened(Some("d"), 7001, Egress),
            opened(Some("a"), 7001, Egress),
            opened(None, 7000, Ingress),
        ];
        Ok((least.into_iter().min() >= Some(3)).then_some(()))
    })
    .unwrap();
    let wrong = |flow: &Flow| flow.verdict == FlowVerdict::Denied || flow.dry_run.is_some();
    let denied: Vec<Flow> = recorded(&mesh).into_iter().filter(wrong).collect();
    assert!(denied.is_empty(), "{denied:#?}\n{manifests}");

    // Others, and the same to elsewhere.
    let elsewhere = at(mesh.c.v4(), 7002);
    for (client, to) in [(&mesh.d, &c), (&mesh.b, &c), (&plain, &b), (&mesh.a, &elsewhere)] {
        assert!(!connects(client, to), "{} to {to}\n{manifests}", client.uid());
    }
    all_connect(&mesh);

    // What running agents are asked.
    let agent = mesh.agent(&mesh.c);
    let json: Value = serde_json::from_str(&weir(agent, &["advise", "-o", "json"])).unwrap();
    assert_eq!(json["strict"][0]["answer"], "clientsWouldBreak", "{json:#}");
    let workloads = json["strict"][0]["workloads"].as_array().unwrap().iter();
    let clients: Vec<&Value> = workloads
        .flat_map(|one| one["clients"].as_array().unwrap())
        .collect();
    assert_eq!(clients.len(), 1, "{json:#}");
    assert_eq!(clients[0]["client"], plain.v4().to_string(), "{json:#}");
    assert!(
        json["cost"]["nodes"][0]["residentBytes"].as_u64().unwrap() > 1 << 20,
        "{json:#}"
    );
    assert!(
        json["cost"]["nodes"][0]["connections"].as_u64().unwrap() > 0,
        "{json:#}"
    );
    assert_eq!(
        json["layers"]["workloads"][0]["answer"], "layer4IsEnough",
        "{json:#}"
    );
}
