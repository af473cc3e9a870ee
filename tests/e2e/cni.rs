//! The CNI plugin, run as a container runtime runs it: pods that start wait until the kernel has them.

mod runtime;

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::Pod as KubePod;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};
use weir_e2e::{
    cluster::{Cluster, Member},
    direct::at,
    identity, run, serve,
};
use weir_lab::{PATIENCE, Pod, PodSpec, Spawn as _, poll, program};
use weir_types::{FlowEvent, FlowPath, TrafficDirection};

use runtime::{In, LATER, Runtime, Starting};

/// Anybody but root.
const NOBODY: u32 = 65534;

/// A pod that was bound to its node, and whose network is there, and nothing else yet: no process, no address in its status.
fn starting(cluster: &mut Cluster, node: &str, namespace: &str, name: &str) -> (Member, Starting) {
    cluster.service_account(namespace, name);
    let made: KubePod = cluster.create(
        Some(namespace),
        json!({
            "metadata": { "name": name, "labels": { "app": name } },
            "spec": {
                "nodeName": node, "serviceAccountName": name,
                "containers": [{ "name": "app", "image": "app" }],
            },
        }),
    );
    let uid = made.metadata.uid.unwrap();
    let pod = cluster.lab.add_pod(PodSpec::new(node, namespace, name)).unwrap();
    let starting = Starting::new(&pod, &uid);
    (Member { pod, uid }, starting)
}

/// What the kubelet says once the pod runs.
fn set_running(cluster: &Cluster, pod: &Member) {
    let status = json!({ "status": {
        "phase": "Running", "podIP": pod.v4(), "podIPs": [{ "ip": pod.v4() }, { "ip": pod.v6() }],
        "conditions": [{ "type": "Ready", "status": "True" }],
    }});
    let (namespace, name) = (pod.spec().namespace.clone(), pod.spec().name.clone());
    cluster.block(async move |client| {
        let pods: Api<KubePod> = Api::namespaced(client, &namespace);
        pods.patch_status(&name, &PatchParams::default(), &Patch::Merge(status))
            .await
    });
}

fn asks(pod: &Pod, to: &str) -> String {
    let arguments = [
        "connect",
        to,
        "--send",
        "x",
        "--read",
        "1",
        "--timeout-ms",
        "3000",
    ];
    let line = run(pod, arguments).json().unwrap();
    line["text"].as_str().unwrap_or_default().to_owned()
}

fn strict(cluster: &Cluster) {
    cluster.policy(
        "PeerAuthentication",
        "shop",
        "default",
        &json!({ "mtls": { "mode": "STRICT" } }),
    );
}

fn times_enrolled(cluster: &Cluster, pod: &Member) -> usize {
    let log = cluster.agents[0].log();
    let of_pod = format!("/{}/{}", pod.spec().namespace, pod.spec().name);
    log.lines()
        .filter(|line| line.contains("pod enrolled") && line.contains(&of_pod))
        .count()
}

fn wait_state(runtime: &Runtime, wanted: impl Fn(&Value) -> bool) {
    poll("the state file to say it", PATIENCE, || {
        let state = fs::read(runtime.state()).unwrap_or_default();
        let state: Value = serde_json::from_slice(&state).unwrap_or_default();
        Ok(wanted(&state).then_some(()))
    })
    .unwrap();
}

fn names(state: &Value, list: &str, name: &str) -> bool {
    state[list]
        .as_array()
        .is_some_and(|all| all.contains(&name.into()))
}

#[test]
fn the_very_first_connection_of_a_pod_that_starts_goes_by_mutual_tls() {
    let mut cluster = Cluster::new("cni-add");
    let server = cluster.pod("node2", "shop", "c");
    cluster.wait_enrolled(&[&server]);
    let _server = serve(&server, ["echo-server", "--port", "7000", "--dual-stack"]);
    // Plaintext would be refused.
    strict(&cluster);
    let runtime = Runtime::new(&cluster, "");
    let (pod, about) = starting(&mut cluster, "node1", "shop", "a");
    let handed_on = runtime.run("ADD", &about).unwrap();
    assert_eq!(handed_on, runtime.input(&about)["prevResult"]);
    assert_eq!(asks(&pod, &at(server.v4(), 7000)), "x");
    assert_eq!(asks(&pod, &at(server.v6(), 7000)), "x");
    let flow = cluster
        .agent(&server)
        .wait_flow("the connection by mutual TLS", |flow| {
            flow.direction == TrafficDirection::Ingress && flow.event == FlowEvent::Close
        })
        .unwrap();
    assert_eq!(
        (flow.path, flow.source.identity),
        (FlowPath::Tunnel, identity("a"))
    );
    assert_eq!(runtime.run("CHECK", &about), Ok(Value::Null));
    // The control plane hears of the addresses later: nothing changes for the pod.
    let mut open = pod
        .testapp([
            "connect",
            &at(server.v4(), 7000),
            "--send",
            "x",
            "--read",
            "2",
            "--timeout-ms",
            "60000",
        ])
        .unwrap();
    set_running(&cluster, &pod);
    poll("the other agent to know its addresses", PATIENCE, || {
        let all = cluster.agents[1].workloads()?;
        Ok(all
            .iter()
            .any(|one| one.name == "a" && one.addresses.contains(&pod.v4().into()) && one.tunnel == "HBONE")
            .then_some(()))
    })
    .unwrap();
    assert_eq!(times_enrolled(&cluster, &pod), 1);
    assert_eq!(open.ended().unwrap(), None);
    // Its sandbox goes.
    assert_eq!(runtime.run("DEL", &about), Ok(Value::Null));
    poll("the agent to let go of it", PATIENCE, || {
        let status = cluster.agents[0].status()?;
        Ok((!status.pods.iter().any(|own| own.name == "a" && own.enrolled)).then_some(()))
    })
    .unwrap();
    assert_eq!(runtime.run("CHECK", &about).unwrap_err()["code"], LATER);
}

#[test]
fn a_sandbox_that_is_made_anew_takes_the_place_of_the_old_one_and_outlives_its_end() {
    let mut cluster = Cluster::new("cni-again");
    let server = cluster.pod("node2", "shop", "c");
    cluster.wait_enrolled(&[&server]);
    let _server = serve(&server, ["echo-server", "--port", "7000", "--dual-stack"]);
    strict(&cluster);
    let runtime = Runtime::new(&cluster, "");
    let (first, about) = starting(&mut cluster, "node1", "shop", "a");
    runtime.run("ADD", &about).unwrap();
    set_running(&cluster, &first);
    assert_eq!(asks(&first, &at(server.v4(), 7000)), "x");
    // The same pod in another namespace, at other addresses.
    let second = cluster
        .lab
        .add_pod(PodSpec::new("node1", "shop", "second"))
        .unwrap();
    let again = Starting {
        name: about.name.clone(),
        ..Starting::new(&second, &about.uid)
    };
    runtime.run("ADD", &again).unwrap();
    assert_eq!(asks(&second, &at(server.v4(), 7000)), "x");
    // The old one's end comes late.
    assert_eq!(runtime.run("DEL", &about), Ok(Value::Null));
    assert_eq!(runtime.run("CHECK", &again), Ok(Value::Null));
    assert_eq!(asks(&second, &at(server.v4(), 7000)), "x");
}

#[test]
fn an_agent_that_starts_again_finds_by_its_processes_a_pod_that_the_plugin_told_of() {
    let mut cluster = Cluster::new("cni-restart");
    let server = cluster.pod("node2", "shop", "c");
    cluster.wait_enrolled(&[&server]);
    let _server = serve(&server, ["echo-server", "--port", "7000", "--dual-stack"]);
    strict(&cluster);
    let runtime = Runtime::new(&cluster, "");
    let (pod, about) = starting(&mut cluster, "node1", "shop", "a");
    runtime.run("ADD", &about).unwrap();
    let node = cluster.lab.node("node1").unwrap().cgroup().to_owned();
    let place = pod
        .place()
        .in_cgroup(node.join(format!("kubepods/burstable/pod{}", pod.uid)));
    let mut pause = Command::new("sleep");
    pause.arg("infinity");
    let _pause = In(place.unwrap()).spawn(pause).unwrap();
    set_running(&cluster, &pod);
    cluster.wait_enrolled(&[&pod]);
    cluster.agents[0].kill().unwrap();
    cluster.agents[0].restart().unwrap();
    cluster.wait_enrolled(&[&pod]);
    assert_eq!(asks(&pod, &at(server.v4(), 7000)), "x");
    assert_eq!(runtime.run("CHECK", &about), Ok(Value::Null));
}

#[test]
fn a_pod_that_starts_waits_until_the_control_plane_has_told_of_it() {
    let mut cluster = Cluster::new("cni-wait");
    cluster.namespace("legacy", None);
    let runtime = Runtime::new(&cluster, "");
    let pod = cluster
        .lab
        .add_pod(PodSpec::new("node1", "shop", "late"))
        .unwrap();
    // Nobody ever tells of it.
    let started = Instant::now();
    runtime.refuses(&Starting::unheard(&pod, "shop"), "has not told");
    assert!(started.elapsed() < Duration::from_secs(20));
    // Pods outside of the mesh start.
    let (outsider, about) = starting(&mut cluster, "node1", "legacy", "o");
    assert!(runtime.run("ADD", &about).is_ok());
    assert_eq!(runtime.run("CHECK", &about), Ok(Value::Null));
    assert_eq!(times_enrolled(&cluster, &outsider), 0);
    // Without the control plane nobody knows what is wanted of a new pod.
    cluster.stop_control();
    let (_, about) = starting(&mut cluster, "node1", "shop", "new");
    thread::scope(|scope| {
        let (runtime, about) = (&runtime, &about);
        let waits = scope.spawn(move || runtime.run("ADD", about));
        cluster.start_control();
        assert!(waits.join().unwrap().is_ok());
    });
    let status = cluster.agents[0].status().unwrap();
    assert!(status.pods.iter().any(|own| own.name == "new" && own.enrolled));
}

#[test]
fn without_the_agent_pods_of_the_mesh_wait_and_others_start() {
    let mut cluster = Cluster::new("cni-away");
    cluster.namespace("legacy", None);
    let own = cluster.pod("node1", "shop", "a");
    let outsider = cluster.pod("node1", "legacy", "o");
    cluster.wait_enrolled(&[&own]);
    let runtime = Runtime::new(&cluster, "");
    wait_state(&runtime, |state| {
        names(state, "enabled", "shop") && names(state, "disabled", "legacy")
    });
    let mode = fs::metadata(runtime.state()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    cluster.agents[0].kill().unwrap();
    let of = |namespace: &str| Starting::unheard(&outsider, namespace);
    let away = "weir-agent is not running on this node";
    runtime.refuses(&of("shop"), away);
    assert!(runtime.run("ADD", &of("legacy")).is_ok());
    runtime.refuses(&of("brand-new"), "nothing says whether");
    assert!(runtime.run("ADD", &of("kube-system")).is_ok());
    // The pod's own word goes before its namespace's.
    let switch = "weir.dev/mesh";
    assert!(
        runtime
            .run("ADD", &of("shop").annotated(switch, "disabled"))
            .is_ok()
    );
    runtime.refuses(&of("legacy").annotated(switch, "enabled"), away);
    runtime.refuses(
        &of("legacy").annotated("istio.io/dataplane-mode", "ambient"),
        away,
    );
    // Without the file nothing is known of any.
    fs::remove_file(runtime.state()).unwrap();
    runtime.refuses(&of("legacy"), "nothing says whether");
    for command in ["DEL", "GC", "STATUS"] {
        assert_eq!(runtime.run(command, &of("shop")), Ok(Value::Null), "{command}");
    }
    cluster.agents[0].restart().unwrap();
    wait_state(&runtime, |state| names(state, "enabled", "shop"));
}

#[test]
fn who_is_not_root_and_what_is_no_pods_namespace_is_refused() {
    let mut cluster = Cluster::new("cni-refuse");
    let runtime = Runtime::new(&cluster, "");
    let (_, about) = starting(&mut cluster, "node1", "shop", "a");
    let as_nobody = || {
        let mut command = runtime.command("ADD", &about);
        command.uid(NOBODY).gid(NOBODY);
        let error = runtime.call(command, &runtime.input(&about)).unwrap_err();
        error["msg"].as_str().unwrap().to_owned()
    };
    assert_eq!(
        fs::metadata(runtime.socket()).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let text = as_nobody();
    assert!(text.contains("Permission denied"), "{text}");
    fs::set_permissions(runtime.socket(), fs::Permissions::from_mode(0o666)).unwrap();
    let text = as_nobody();
    assert!(text.contains("only root may ask"), "{text}");
    let with = |netns: &Path| Starting {
        namespace: about.namespace.clone(),
        name: about.name.clone(),
        uid: about.uid.clone(),
        container: about.container.clone(),
        netns: netns.to_owned(),
        addresses: about.addresses.clone(),
        annotations: json!({}),
    };
    let node = cluster.lab.node("node1").unwrap().place().netns_path();
    runtime.refuses(&with(&node), "that is the node's own network namespace");
    runtime.refuses(
        &with(Path::new("/proc/self/ns/mnt")),
        "not one of a network namespace",
    );
    runtime.refuses(&with(Path::new("/dev/null")), "not one of a network namespace");
    assert!(runtime.run("ADD", &about).is_ok(), "the agent goes on");
}

#[test]
fn the_agent_keeps_the_plugin_in_the_nodes_configuration_and_takes_it_out_when_it_is_detached() {
    let cluster = Cluster::new("cni-install");
    let folder = tempfile::tempdir().unwrap();
    let (bin, conf) = (folder.path().join("bin"), folder.path().join("net.d"));
    for folder in [&bin, &conf] {
        fs::create_dir(folder).unwrap();
    }
    let list =
        json!({ "cniVersion": "0.3.1", "name": "kindnet", "plugins": [{ "type": "ptp", "mtu": 1500 }] });
    let path = conf.join("10-kindnet.conflist");
    let write = || fs::write(&path, list.to_string()).unwrap();
    write();
    let more = format!("  binDir: {}\n  confDir: {}\n", bin.display(), conf.display());
    let runtime = Runtime::new(&cluster, &more);
    let read = || -> Value { serde_json::from_slice(&fs::read(&path).unwrap()).unwrap_or_default() };
    let wait_in = || {
        poll("the plugin to be in the list", PATIENCE, || {
            Ok((read()["plugins"][1]["type"] == "weir-cni").then(&read))
        })
        .unwrap()
    };
    let with = wait_in();
    assert_eq!(with["plugins"][0], list["plugins"][0]);
    assert_eq!(with["plugins"][1]["socket"], json!(runtime.socket()));
    let version = Command::new(bin.join("weir-cni"))
        .env("CNI_COMMAND", "VERSION")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(version.status.success());
    // The network's own installer writes its list anew.
    write();
    wait_in();
    let agent = &cluster.agents[0];
    agent.stop().unwrap();
    let detached = Command::new(program("weir-agent").unwrap())
        .arg("--config")
        .arg(agent.config_file())
        .arg("--detach")
        .status()
        .unwrap();
    assert!(detached.success());
    assert_eq!(read(), list);
    assert!(!bin.join("weir-cni").exists());
    assert!(!runtime.state().exists());
}
