//! `weir relay`: two agents as one, by sockets and by mutual TLS.

use std::{collections::BTreeSet, time::Duration};

use super::*;

const RELAY: &str = "127.0.0.1:4245";

/// Starts a relay on the first node, and waits until it serves.
fn relay(mesh: &Mesh, arguments: &[String]) -> Process {
    let mut command = Command::new(program("weir").unwrap());
    command.arg("relay").args(arguments);
    let relay = mesh.lab.node("node1").unwrap().spawn(command).unwrap();
    let served = weir_lab::poll("the relay to serve", PATIENCE, || {
        Ok(relay.stderr().contains("serving the flows").then_some(()))
    });
    served.unwrap_or_else(|error| panic!("{error}: {}", relay.stderr()));
    relay
}

fn by_sockets(mesh: &Mesh) -> Vec<String> {
    let agents = (0..2).flat_map(|agent| {
        let socket = mesh.agents[agent].config().api.socket.display();
        ["--agent".to_owned(), format!("node{}=unix://{socket}", agent + 1)]
    });
    agents.collect()
}

#[test]
fn the_flows_of_two_agents_come_as_one_stream_in_order() {
    let (mesh, _servers) = traffic("hubrelay");
    let _relay = relay(&mesh, &by_sockets(&mesh));
    let all = flows(&mesh, RELAY, json!({}));
    let own: usize = [0, 1]
        .map(|agent| flows(&mesh, &socket(&mesh, agent), json!({})).len())
        .iter()
        .sum();
    assert_eq!(all.len(), own);
    for count in [1, 3, own - 1] {
        assert_eq!(
            flows(&mesh, RELAY, json!({ "number": count.to_string() })),
            all[own - count..]
        );
        let first = json!({ "number": count.to_string(), "first": true });
        assert_eq!(flows(&mesh, RELAY, first), all[..count]);
    }
    let answers = ask(
        &mesh,
        RELAY,
        &[],
        &[json!(["status"]), json!(["nodes"]), json!(["namespaces"])],
    );
    let status = &answers[0]["answer"];
    assert_eq!(
        (&status["num_connected_nodes"], &status["num_flows"]),
        (&json!(2), &json!(own.to_string()))
    );
    let nodes = answers[1]["answer"]["nodes"].as_array().unwrap();
    let names: Vec<_> = nodes
        .iter()
        .map(|node| (node["name"].clone(), node["state"].clone()))
        .collect();
    assert_eq!(
        names,
        ["node1", "node2"].map(|name| (json!(name), json!("NODE_CONNECTED")))
    );
    assert_eq!(
        answers[2]["answer"]["namespaces"],
        json!([{ "namespace": "shop" }])
    );
    // What a node refuses is refused.
    let refused = ask(&mesh, RELAY, &[], &[json!(["flows", "3203c83001"])]);
    assert_eq!(refused[0]["refused"]["code"], "INVALID_ARGUMENT");

    // `weir flows` by the relay.
    let mut command = Command::new(program("weir").unwrap());
    command.args(["flows", "--server", RELAY, "-o", "jsonpb"]);
    let ours = mesh
        .lab
        .node("node1")
        .unwrap()
        .run(command)
        .unwrap()
        .success()
        .unwrap();
    assert_eq!(json_lines(&ours), all);
}

/// What the map answers, as JSON.
fn map(mesh: &Mesh, path: &str) -> Value {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--fail", "--max-time", "10"])
        .arg(format!("http://127.0.0.1:4246{path}"));
    let answer = mesh.lab.node("node1").unwrap().run(curl).unwrap();
    serde_json::from_slice(&answer.success().unwrap().stdout).unwrap()
}

#[test]
fn the_map_shows_what_agents_record_and_asks_them_what_would_become_of_a_connection() {
    let (mut mesh, _servers) = traffic("hubmap");
    let arguments = [by_sockets(&mesh), vec!["--map".to_owned()]].concat();
    let _relay = relay(&mesh, &arguments);
    let edge = || {
        let graph = map(&mesh, "/graph");
        let edges = graph["edges"].as_array().unwrap();
        let own = |edge: &&Value| edge["from"]["id"] == "shop/a" && edge["to"]["id"] == "shop/c";
        edges.iter().find(own).cloned()
    };
    let shown = weir_lab::poll("the pair on the map", PATIENCE, || Ok(edge())).unwrap();
    assert!(
        shown["opened"].as_u64().unwrap() > 0 && shown["sent"].as_u64().unwrap() > 0,
        "{shown}"
    );
    let flows = map(&mesh, "/flows?from=shop/a&to=shop/c");
    assert!(!flows["flows"].as_array().unwrap().is_empty(), "{flows}");

    // The last one of the pair is what is asked about.
    connect(&mesh.a, &mesh.c, 7000);
    let answer = weir_lab::poll("an answer about the last connection", PATIENCE, || {
        let answer = map(&mesh, "/explain?from=shop/a&to=shop/c");
        let is_it = answer["explanation"]["verdict"] == "forwarded";
        Ok(is_it.then_some(answer))
    })
    .unwrap();
    assert_eq!(
        answer["explanation"]["candidates"][0]["path"], "tunnel",
        "{answer}"
    );
    // Nobody connects meanwhile: it is the agents that know of the policy.
    let deny = json!({ "name": "no-a", "namespace": "shop", "action": "DENY", "rules": [{ "from": [{ "source": {
        "principals": ["cluster.local/ns/shop/sa/a"] } }] }] });
    for agent in &mut mesh.agents {
        agent
            .reload(|config| config.authorization_policies.push(deny.clone()))
            .unwrap();
    }
    let answer = map(&mesh, "/explain?from=shop/a&to=shop/c");
    assert_eq!(answer["explanation"]["verdict"], "denied", "{answer}");
    let policy = &answer["explanation"]["candidates"][0]["policy"]["policy"];
    assert_eq!(policy, "shop/no-a", "{answer}");
    assert_eq!(map(&mesh, "/explain?from=shop/a&to=shop/nobody"), json!({}));
}

#[test]
fn a_node_that_is_away_is_named_and_comes_back_and_nothing_is_doubled() {
    let mesh = Mesh::new("hubaway");
    let (_server, _) = serve(&mesh.c, ["echo-server", "--port", "7000"]);
    let _relay = relay(&mesh, &by_sockets(&mesh));
    let mut command = Command::new(program("weir").unwrap());
    command.args(["flows", "--server", RELAY, "-o", "jsonpb", "--follow"]);
    let follower = mesh.lab.node("node1").unwrap().spawn(command).unwrap();
    let seen = || -> Vec<Value> {
        let out = text(&follower.stdout());
        out.lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    };
    let until = |what: &str, node: &str| {
        let count = |all: &[Value]| all.iter().filter(|one| one["node_name"] == node).count();
        let before = count(&seen());
        weir_lab::poll(what, 2 * PATIENCE, || {
            connect(&mesh.a, &mesh.c, 7000);
            Ok((count(&seen()) > before).then_some(()))
        })
        .unwrap_or_else(|error| panic!("{error}: {}", follower.stderr()));
    };
    until("a flow of the first node", "node1");
    until("a flow of the second node", "node2");
    mesh.agents[1].kill().unwrap();
    weir_lab::poll("the node to be named", PATIENCE, || {
        Ok(follower
            .stderr()
            .contains("cannot be reached: node2")
            .then_some(()))
    })
    .unwrap();
    let answers = ask(
        &mesh,
        RELAY,
        &[],
        &[json!(["status"]), json!(["nodes"]), json!(["flows", {}])],
    );
    assert_eq!(answers[0]["answer"]["unavailable_nodes"], json!(["node2"]));
    assert_eq!(answers[1]["answer"]["nodes"][1]["state"], "NODE_UNAVAILABLE");
    let said = answers[2]["answer"].as_array().unwrap();
    let status = said.iter().find_map(|one| one.get("node_status")).unwrap();
    assert_eq!(status["node_names"], json!(["node2"]));
    mesh.agents[1].restart().unwrap();
    until("a flow of the node that is back", "node2");
    // All that was recorded since the start is seen, also what was recorded before the node was reached again.
    let recorded = flows(&mesh, &socket(&mesh, 1), json!({}));
    let uuid = |one: &Value| one["flow"]["uuid"].to_string();
    let mut all = Vec::new();
    weir_lab::poll("all that the node recorded", PATIENCE, || {
        all = seen();
        let uuids: BTreeSet<String> = all.iter().map(uuid).collect();
        Ok(recorded
            .iter()
            .all(|one| uuids.contains(&uuid(one)))
            .then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error}: {recorded:#?}\n{all:#?}"));
    let uuids: BTreeSet<String> = all.iter().map(uuid).collect();
    assert_eq!(uuids.len(), all.len(), "nothing comes twice");
}

#[test]
fn a_follower_stays_while_all_agents_restart() {
    let mesh = Mesh::new("hubstay");
    let (_server, _) = serve(&mesh.b, ["echo-server", "--port", "7000"]);
    let mut command = Command::new(program("weir").unwrap());
    command.arg("--socket").arg(&mesh.agents[0].config().api.socket);
    command.args(["flows", "--follow", "-o", "json"]);
    let follower = mesh.lab.node("node1").unwrap().spawn(command).unwrap();
    // Nothing has been recorded when the agent goes.
    weir_lab::poll("the follower to be connected", PATIENCE, || {
        let metrics = mesh.agents[0].status()?;
        std::thread::sleep(Duration::from_millis(500));
        Ok(Some(metrics))
    })
    .unwrap();
    mesh.agents[0].kill().unwrap();
    mesh.agents[0].restart().unwrap();
    weir_lab::poll("a flow of the agent that is back", PATIENCE, || {
        connect(&mesh.a, &mesh.b, 7000);
        Ok((!follower.stdout().is_empty()).then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error}: {}", follower.stderr()));
}

#[test]
fn peers_are_found_by_mutual_tls() {
    let folder = tempfile::tempdir().unwrap();
    let own = port::authority(folder.path());
    own.issue("relay", &["ui.weir.dev"], false);
    let mesh = Mesh::with("hubpeers", |config| {
        if config.node == "node1" {
            config.hubble = Some(port::section(&own));
            config.hubble.as_mut().unwrap()["address"] = json!("127.0.0.1:4244");
        }
    });
    let mut arguments = [
        "--peers",
        "127.0.0.1:4244",
        "--agent-tls-server-name",
        "node1.hubble.weir.dev",
    ]
    .map(str::to_owned)
    .to_vec();
    for (option, file) in [("ca", "ca.pem"), ("cert", "relay.pem"), ("key", "relay.key")] {
        arguments.extend([format!("--agent-tls-{option}"), own.path(file)]);
    }
    let _relay = relay(&mesh, &arguments);
    connect(&mesh.a, &mesh.c, 7000);
    let _ = mesh.flow(&mesh.a, TrafficDirection::Egress, FlowEvent::Refused, 7000);
    assert!(!flows(&mesh, RELAY, json!({})).is_empty());
    let nodes = ask(&mesh, RELAY, &[], &[json!(["nodes"])]);
    assert_eq!(nodes[0]["answer"]["nodes"][0]["name"], "node1");
}

#[test]
fn wrong_options_end_with_code_two_and_one_line() {
    let pem = "/nowhere/x.pem";
    let table: [(&[&str], &str); 7] = [
        (
            &["relay", "--agent", "n=unix:///x", "--listen", "0.0.0.0:4245"],
            "without TLS the relay listens on loopback only",
        ),
        (
            &[
                "relay",
                "--agent",
                "n=unix:///x",
                "--tls-cert",
                pem,
                "--tls-key",
                pem,
                "--tls-client-ca",
                pem,
                "--client",
                "ui.weir.dev",
            ],
            "/nowhere/x.pem",
        ),
        (
            &["flows", "--server", "nonsense"],
            "expected HOST:PORT or unix:///PATH",
        ),
        (
            &["flows", "--server", "localhost:1", "--tls-ca", pem],
            "localhost",
        ),
        (
            &["flows", "--since", "1m", "--until", "2m"],
            "--until is before --since",
        ),
        (&["flows", "--last", "0"], "--last 0 asks for nothing"),
        (&["flows", "--input-file", "/nowhere/flows"], "/nowhere/flows"),
    ];
    for (arguments, said) in table {
        let mut command = Command::new(program("weir").unwrap());
        command.args(["--socket", "/nowhere/agent.sock"]).args(arguments);
        let output = command.output().unwrap();
        let err = text(&output.stderr);
        assert!(
            err.contains(said) && err.lines().count() == 1,
            "{arguments:?}: {err}"
        );
        // A server that is not there is no wrong option.
        let code = if arguments.contains(&"localhost:1") { 1 } else { 2 };
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {err}");
    }
}
