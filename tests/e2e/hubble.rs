//! Flows by Hubble's API, as a client sees them that shares no code with ours.

mod hostile;
mod port;
mod relay;

use std::{
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _},
        process::CommandExt as _,
    },
    path::Path,
    process::{Command, Output},
};

use serde_json::{Value, json};
use weir_e2e::{
    Mesh,
    peers::{json_lines, python},
    run, serve,
};
use weir_lab::{Finished, PATIENCE, PodSpec, Process, Spawn as _, program};
use weir_types::{FlowEvent, TrafficDirection};

/// A group that nobody else here is in.
const GROUP: u32 = 61_234;

/// Calls of `tests/peers/hubble.py`, as arguments.
fn calls(calls: &[Value]) -> Vec<String> {
    calls.iter().map(Value::to_string).collect()
}

fn client(to: &str, options: &[&str], asked: &[Value]) -> Command {
    let mut command = python("hubble.py");
    command.args(["--to", to]).args(options).args(calls(asked));
    command
}

fn socket(mesh: &Mesh, agent: usize) -> String {
    format!("unix:{}", mesh.agents[agent].config().api.socket.display())
}

fn start(mesh: &Mesh, to: &str, options: &[&str], asked: &[Value]) -> Process {
    let node = mesh.lab.node("node1").unwrap();
    node.spawn(client(to, options, asked)).unwrap()
}

/// The answers to calls, in their order.
fn ask(mesh: &Mesh, to: &str, options: &[&str], asked: &[Value]) -> Vec<Value> {
    let finished: Finished = start(mesh, to, options, asked).wait(2 * PATIENCE).unwrap();
    let lines = json_lines(&finished.success().unwrap());
    let is_answer = |line: &Value| line.get("answer").is_some() || line.get("refused").is_some();
    lines.into_iter().filter(is_answer).collect()
}

/// The flows of one call.
fn flows(mesh: &Mesh, to: &str, request: Value) -> Vec<Value> {
    let answers = ask(mesh, to, &[], &[json!(["flows", request])]);
    let all = answers[0]["answer"].as_array();
    all.unwrap_or_else(|| panic!("{}", answers[0])).clone()
}

fn weir(socket: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(program("weir").unwrap());
    command.arg("--socket").arg(socket).args(arguments);
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn connect(from: &weir_lab::Pod, to: &weir_lab::Pod, port: u16) -> Value {
    let to = format!("{}:{port}", to.v4());
    run(from, ["connect", &to, "--send", "x", "--read", "1"])
        .json()
        .unwrap()
}

/// Of a list of flows the one of this event, port and direction.
#[track_caller]
fn one<'a>(all: &'a [Value], event: &str, port: u16, direction: &str) -> &'a Value {
    let is_it = |flow: &&Value| {
        flow["extensions"]["value"]["event"] == event
            && flow["l4"]["TCP"]["destination_port"] == port
            && flow["traffic_direction"] == direction
    };
    let mut found = all.iter().map(|response| &response["flow"]).filter(is_it);
    found
        .next()
        .unwrap_or_else(|| panic!("{event} {port} {direction}: {all:#?}"))
}

/// A tunnel from `a` to `c`, one that a policy refuses, plaintext to STRICT, and a port where nobody listens.
fn traffic(name: &str) -> (Mesh, Vec<Process>) {
    let mesh = Mesh::with(name, |config| {
        config.strict_workload("shop", "d");
        config.authorization_policies.push(json!({
            "name": "not-7001", "namespace": "shop", "action": "DENY",
            "selector": { "matchLabels": { "app": "c" } },
            "rules": [{ "to": [{ "operation": { "ports": ["7001"] } }] }],
        }));
    });
    let plain = mesh
        .lab
        .add_pod(PodSpec::new("node1", "shop", "plain").outside_mesh())
        .unwrap();
    let servers = [(&mesh.c, "7000"), (&mesh.c, "7001"), (&mesh.d, "7000")];
    let servers = servers.map(|(pod, port)| serve(pod, ["echo-server", "--port", port]).0);
    for (from, to, port) in [
        (&mesh.a, &mesh.c, 7000),
        (&mesh.a, &mesh.c, 7001),
        (&plain, &mesh.d, 7000),
        (&mesh.b, &mesh.c, 7002),
    ] {
        connect(from, to, port);
    }
    use TrafficDirection::{Egress, Ingress};
    let _ = mesh.flow(&mesh.a, Egress, FlowEvent::Close, 7000);
    let _ = mesh.flow(&mesh.c, Ingress, FlowEvent::Close, 7000);
    let _ = mesh.flow(&mesh.c, Ingress, FlowEvent::Refused, 7001);
    let _ = mesh.flow(&mesh.d, Ingress, FlowEvent::Refused, 7000);
    let _ = mesh.flow(&mesh.b, Egress, FlowEvent::Refused, 7002);
    (mesh, servers.into())
}

#[test]
fn another_client_sees_the_traffic_that_there_was() {
    let (mesh, _servers) = traffic("hubsee");
    let all = flows(&mesh, &socket(&mesh, 1), json!({}));
    let open = one(&all, "EVENT_OPEN", 7000, "INGRESS");
    assert_eq!(
        (&open["verdict"], &open["IP"]["encrypted"]),
        (&json!("FORWARDED"), &json!(true))
    );
    assert_eq!(
        (&open["IP"]["source"], &open["auth_type"]),
        (&json!(mesh.a.v4()), &json!("SPIRE"))
    );
    assert_eq!(open["node_name"], "node2");
    for (end, name) in [("source", "a"), ("destination", "c")] {
        let end = &open[end];
        assert_eq!(
            (&end["namespace"], &end["pod_name"]),
            (&json!("shop"), &json!(name)),
            "{end}"
        );
        assert!(end["identity"].as_u64().unwrap() > 255, "{end}");
        let labels = end["labels"].as_array().unwrap();
        for label in [
            format!("k8s:app={name}"),
            "k8s:io.kubernetes.pod.namespace=shop".to_owned(),
            format!("k8s:io.cilium.k8s.policy.serviceaccount={name}"),
        ] {
            assert!(labels.contains(&json!(label)), "{end}");
        }
    }
    assert!(open["Summary"].as_str().unwrap().contains("mTLS"), "{open}");
    let close = one(&all, "EVENT_CLOSE", 7000, "INGRESS");
    assert!(
        close["Summary"]
            .as_str()
            .unwrap()
            .contains("1 B sent, 1 B received"),
        "{close}"
    );
    assert_eq!(close["l4"]["TCP"]["flags"], json!({ "FIN": true, "ACK": true }));

    let denied = one(&all, "EVENT_REFUSED", 7001, "INGRESS");
    assert_eq!(
        (
            &denied["verdict"],
            &denied["drop_reason_desc"],
            &denied["event_type"]["type"]
        ),
        (&json!("DROPPED"), &json!("POLICY_DENY"), &json!(5)),
        "{denied}"
    );
    let by = &denied["ingress_denied_by"][0];
    assert_eq!(
        (&by["name"], &by["namespace"], &by["kind"]),
        (&json!("not-7001"), &json!("shop"), &json!("AuthorizationPolicy")),
        "{denied}"
    );
    let strict = one(&all, "EVENT_REFUSED", 7000, "INGRESS");
    assert_eq!(
        (
            &strict["verdict"],
            &strict["drop_reason_desc"],
            &strict["IP"].get("encrypted")
        ),
        (&json!("DROPPED"), &json!("UNENCRYPTED_TRAFFIC"), &None),
        "{strict}"
    );
    // Without an identity: one of the reserved numbers.
    assert!(strict["source"]["identity"].as_u64().unwrap() < 256, "{strict}");

    let failed = flows(
        &mesh,
        &socket(&mesh, 0),
        json!({ "whitelist": [{ "verdict": ["ERROR"] }] }),
    );
    assert!(
        failed.iter().all(|one| one["flow"]["verdict"] == "ERROR"),
        "{failed:?}"
    );
    let failed = one(&failed, "EVENT_REFUSED", 7002, "EGRESS");
    assert_eq!(failed["extensions"]["value"]["reason"], "connection_refused");

    // `weir flows` says the same, line by line.
    for agent in 0..2 {
        let ours = weir(
            &mesh.agents[agent].config().api.socket,
            &["flows", "-o", "jsonpb"],
        );
        let lines: Vec<Value> = text(&ours.stdout)
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let theirs = flows(&mesh, &socket(&mesh, agent), json!({}));
        assert_eq!(lines, theirs, "{}", text(&ours.stderr));
    }
}

#[test]
fn another_client_asks_for_a_part_and_for_all_else_that_is_served() {
    let (mesh, _servers) = traffic("hubask");
    let to = socket(&mesh, 1);
    let all = flows(&mesh, &to, json!({}));
    let uuids = |all: &[Value]| {
        all.iter()
            .map(|one| one["flow"]["uuid"].clone())
            .collect::<Vec<_>>()
    };
    let (time, count) = (all[1]["time"].clone(), all.len());
    assert!(count >= 4, "{all:?}");
    let dropped = all.iter().filter(|one| one["flow"]["verdict"] == "DROPPED");
    let dropped: Vec<Value> = dropped.cloned().collect();
    let others: Vec<Value> = all.iter().filter(|one| !dropped.contains(one)).cloned().collect();
    for (request, wanted) in [
        (json!({ "number": "2" }), &all[count - 2..]),
        (json!({ "number": "2", "first": true }), &all[..2]),
        (json!({ "since": time }), &all[1..]),
        (json!({ "until": time }), &all[..2]),
        (json!({ "since": time, "until": time }), &all[1..2]),
        (json!({ "whitelist": [{ "verdict": ["DROPPED"] }] }), &dropped[..]),
        (json!({ "blacklist": [{ "verdict": ["DROPPED"] }] }), &others[..]),
        (
            json!({ "whitelist": [{ "source_label": ["app in (nobody)"] }] }),
            &[],
        ),
    ] {
        assert_eq!(
            uuids(&flows(&mesh, &to, request.clone())),
            uuids(wanted),
            "{request}"
        );
    }
    let mask = json!({ "number": "1", "field_mask": "verdict,source.podName" });
    let masked = &flows(&mesh, &to, mask)[0]["flow"];
    let names: Vec<&String> = masked.as_object().unwrap().keys().collect();
    assert!(
        names.iter().all(|name| *name == "verdict" || *name == "source"),
        "{masked}"
    );

    let answers = ask(
        &mesh,
        &to,
        &[],
        &[
            json!(["status"]),
            json!(["nodes"]),
            json!(["namespaces"]),
            json!(["health", "hubble.server.Observer"]),
            json!(["health", "nobody"]),
        ],
    );
    let status = &answers[0]["answer"];
    assert_eq!(status["num_flows"], status["seen_flows"], "{status}");
    assert!(
        status["uptime_ns"].as_str().unwrap().parse::<u64>().unwrap() > 0,
        "{status}"
    );
    let node = &answers[1]["answer"]["nodes"][0];
    assert_eq!(
        (&node["name"], &node["state"]),
        (&json!("node2"), &json!("NODE_CONNECTED"))
    );
    assert_eq!(
        answers[2]["answer"]["namespaces"],
        json!([{ "namespace": "shop" }])
    );
    // SERVING.
    assert_eq!(answers[3]["answer"], json!([8, 1]));
    assert_eq!(answers[4]["refused"]["code"], "NOT_FOUND");

    // What is new comes as it happens, and nothing else.
    let asked = json!(["flows", { "follow": true, "whitelist": [{ "destination_port": ["7001"] }] }, 1]);
    let follower = start(&mesh, &to, &[], &[asked]);
    let answer = weir_lab::poll("a flow that is followed", PATIENCE, || {
        connect(&mesh.a, &mesh.c, 7001);
        let out = text(&follower.stdout());
        Ok(out
            .lines()
            .last()
            .and_then(|line| serde_json::from_str::<Value>(line).ok()))
    });
    let flow = answer.unwrap()["answer"][0]["flow"].clone();
    assert_eq!(flow["l4"]["TCP"]["destination_port"], 7001);
    assert!(!uuids(&all).contains(&flow["uuid"]), "{flow}");
}

#[test]
fn the_socket_is_for_root_and_for_the_members_of_the_group() {
    // Somewhere that everybody can reach.
    let folder = tempfile::tempdir_in("/run").unwrap();
    set_mode(folder.path(), 0o755);
    let mesh = Mesh::with("hubgroup", |config| {
        config.api.socket = folder.path().join(format!("{}.sock", config.node));
        if config.node == "node1" {
            config.api.group = Some(GROUP);
        }
    });
    let modes = [0, 1].map(|agent| {
        let meta = std::fs::metadata(&mesh.agents[agent].config().api.socket).unwrap();
        (meta.mode() & 0o7777, meta.gid())
    });
    assert_eq!(modes, [(0o660, GROUP), (0o600, 0)]);
    let weir = folder.path().join("weir");
    std::fs::copy(program("weir").unwrap(), &weir).unwrap();
    set_mode(&weir, 0o755);
    for (agent, gid, extra, lets) in [
        (0, 2000, None, false),
        (0, GROUP, None, true),
        (0, 2000, Some(GROUP), true),
        (1, GROUP, None, false),
    ] {
        let socket = &mesh.agents[agent].config().api.socket;
        // Also where the mode lets everybody in, the agent does not.
        for mode in [modes[agent].0, 0o666] {
            set_mode(socket, mode);
            for what in ["flows", "status"] {
                let mut command = Command::new(&weir);
                command.arg("--socket").arg(socket).arg(what);
                let output = as_user(command, gid, extra).output().unwrap();
                assert_eq!(
                    output.status.success(),
                    lets,
                    "{agent} {gid} {extra:?} {mode:o} {what}: {}",
                    text(&output.stderr)
                );
            }
            set_mode(socket, modes[agent].0);
        }
    }
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// As somebody who is not root, of this group and perhaps another.
#[allow(unsafe_code, reason = "groups cannot be set otherwise")]
fn as_user(mut command: Command, gid: u32, extra: Option<u32>) -> Command {
    let change = move || {
        use rustix::{
            process::{Gid, Uid},
            thread,
        };
        let extra = extra.map(Gid::from_raw);
        thread::set_thread_groups(extra.as_slice())?;
        thread::set_thread_gid(Gid::from_raw(gid))?;
        thread::set_thread_uid(Uid::from_raw(2000))?;
        Ok(())
    };
    // SAFETY: system calls that neither allocate nor lock.
    unsafe { command.pre_exec(change) };
    command
}
