use std::{
    io::{BufRead as _, BufReader},
    time::{Duration, Instant},
};

use kube::ResourceExt as _;
use serde_json::{Value, json};
use weir_types::api::Response;

use crate::observer::Said;
use crate::world::{Ran, World, flow, status, weir};

#[tokio::test]
async fn each_nodes_status_is_shown_and_who_cannot_be_asked_is_named() {
    let Some((world, first)) = World::in_memory().await else {
        return;
    };
    let (second, closed, pending) = (
        world.cluster.node("second").await,
        world.cluster.node("closed").await,
        world.cluster.node("pending").await,
    );
    let _agents = [
        world.agent(&second, |_| status("second", &json!({}))).await,
        world.agent(&first, |_| status("first", &json!({}))).await,
    ];
    world.agent_pod(&closed).await;
    let starting = world.cluster.pod(&world.namespace, "weir-agent-x").on(&pending);
    let starting = starting.labels(&[("app.kubernetes.io/name", "weir-agent")]);
    starting.create().await;
    let ran = world.run(&["status"]);
    assert_eq!(ran.code, 0, "two have answered");
    let at = |node: &str| ran.out.find(&format!("{node} ready  weir")).unwrap();
    assert!(at("first") < at("second"), "by name");
    let closed = format!("node {}: the agent cannot be reached: ", closed.name_any());
    assert!(ran.err.contains(&closed));
    let pending = format!(
        "node {}: the agent's pod weir-agent-x is Pending",
        pending.name_any()
    );
    assert!(ran.err.contains(&pending));
}

#[tokio::test]
async fn one_node_is_asked_alone() {
    let Some((world, first)) = World::in_memory().await else {
        return;
    };
    let second = world.cluster.node("second").await;
    let not_asked = world.agent(&first, |_| status("first", &json!({}))).await;
    let _asked = world.agent(&second, |_| status("second", &json!({}))).await;
    let ran = world.run(&["status", "--node", &second.name_any(), "-o", "json"]);
    assert_eq!(ran.code, 0);
    assert_eq!(serde_json::from_str::<Value>(&ran.out).unwrap()["node"], "second");
    assert!(not_asked.asked.try_recv().is_err());
    let ran = world.run(&["status", "--node", "nowhere"]);
    assert_eq!(ran.code, 3);
    assert!(ran.err.contains("node nowhere: no agent"));
}

#[tokio::test]
async fn recorded_flows_of_all_nodes_come_in_the_order_of_time() {
    let Some((world, first)) = World::in_memory().await else {
        return;
    };
    let second = world.cluster.node("second").await;
    let flows = |node: &'static str, seconds: [i64; 3]| seconds.map(|second| flow(node, second)).to_vec();
    let nothing = |_| vec![];
    let _agents = [
        world.agent_with(&first, flows("one", [1, 4, 5]), nothing).await,
        world
            .agent_with(&second, flows("other", [2, 3, 6]), nothing)
            .await,
    ];
    let times = |ran: &Ran| -> Vec<(String, String)> {
        let lines = ran
            .out
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap());
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        lines
            .map(|line| (text(&line["node"]), text(&line["time"])[17..19].to_owned()))
            .collect()
    };
    let expected = ["01", "02", "03", "04", "05", "06"]
        .into_iter()
        .zip(["one", "other", "other", "one", "one", "other"])
        .map(|(time, node)| (node.to_owned(), time.to_owned()));
    let expected: Vec<(String, String)> = expected.collect();
    let ran = world.run(&["flows", "-o", "json"]);
    assert_eq!((ran.code, times(&ran)), (0, expected.clone()));
    let ran = world.run(&["flows", "-o", "json", "--last", "2"]);
    assert_eq!(times(&ran), expected[4..]);
    let ran = world.run(&["flows"]);
    assert!(
        ran.out.lines().next().unwrap().starts_with("one   "),
        "each line says its node"
    );
}

#[tokio::test]
async fn who_follows_sees_all_nodes_and_leaves_nothing_when_interrupted() {
    let Some((world, first)) = World::in_memory().await else {
        return;
    };
    let second = world.cluster.node("second").await;
    let names = [first.name_any(), second.name_any()];
    let [one, other] = names.clone();
    let agents = [
        world.agent_with(&first, vec![flow(&one, 2)], |_| vec![]).await,
        world
            .agent_with(&second, vec![Said::Lost(7), flow(&other, 1)], |_| vec![])
            .await,
    ];
    let mut child = world
        .command(&["flows", "--follow", "--last", "5"])
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let lines: Vec<String> = lines.take(3).map(Result::unwrap).collect();
    assert!(lines[0].contains("7 flow events of second-"), "{lines:?}");
    assert!(
        lines[1].starts_with(&names[1]) && lines[2].starts_with(&names[0]),
        "{lines:?}"
    );
    // As Ctrl-C does.
    let killed = std::process::Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    assert!(killed.unwrap().success());
    child.wait().unwrap();
    for agent in agents {
        agent
            .left
            .recv_timeout(Duration::from_secs(5))
            .expect("the stream to the agent ends");
    }
}

#[tokio::test]
async fn the_agent_of_the_clients_node_explains() {
    let Some((world, first)) = World::in_memory().await else {
        return;
    };
    let second = world.cluster.node("second").await;
    let refuse = |_| vec![Response::Error("nobody is called api".to_owned())];
    let agents = [
        world.agent(&first, refuse).await,
        world.agent(&second, refuse).await,
    ];
    let shop = world.cluster.namespace("shop").await;
    let pod = world.cluster.pod(&shop, "web").on(&second);
    let pod = pod.addresses(&["10.9.9.9"]).create().await;
    for from in [
        format!("{shop}/web"),
        pod.uid().unwrap(),
        "10.9.9.9".to_owned(),
        format!("pod/{shop}/web"),
    ] {
        let ran = world.run(&["explain", "--from", &from, "--to", "api", "--port", "80"]);
        assert_eq!(ran.code, 1);
        assert!(ran.err.contains("the agent refused: nobody is called api"));
        assert!(agents[1].asked.try_recv().is_ok(), "{from}");
        assert!(agents[0].asked.try_recv().is_err(), "{from}");
    }
}

#[tokio::test]
async fn workloads_come_from_the_first_agent_that_answers() {
    let Some((world, closed)) = World::in_memory().await else {
        return;
    };
    let second = world.cluster.node("second").await;
    world.agent_pod(&closed).await;
    let workload = json!({
        "uid": "Kubernetes//Pod/shop/web", "namespace": "shop", "name": "web", "node": "elsewhere", "tunnel": "HBONE",
        "identity": "spiffe://cluster.local/ns/shop/sa/web", "addresses": ["10.0.0.1"], "services": [], "labels": {},
        "local": true,
    });
    let answer = move |_| {
        vec![Response::Workload(
            serde_json::from_value(workload.clone()).unwrap(),
        )]
    };
    let _agent = world.agent(&second, answer).await;
    let ran = world.run(&["workloads"]);
    assert_eq!(ran.code, 0);
    assert!(ran.out.contains("shop/web") && !ran.out.contains("(here)"));
    assert!(ran.err.contains(&closed.name_any()));
}

#[tokio::test]
async fn where_nobody_answers_the_exit_code_is_3_and_it_does_not_take_long() {
    let Some((world, first)) = World::in_memory().await else {
        return;
    };
    let ran = world.run(&["status"]);
    assert_eq!(ran.code, 3, "no agent at all");
    assert!(ran.err.contains("no agent runs in the namespace") && ran.err.contains("weir check"));
    world.agent_pod(&first).await;
    world.agent_pod(&world.cluster.node("second").await).await;
    for command in ["status", "flows", "workloads"] {
        assert_eq!(world.run(&[command]).code, 3, "{command}");
    }
    let nobody = tempfile::NamedTempFile::new().unwrap();
    let kubeconfig = world
        .cluster
        .kubeconfig()
        .replace(&world.server().address().to_string(), "127.0.0.1:1");
    std::fs::write(nobody.path(), kubeconfig).unwrap();
    let since = Instant::now();
    for (arguments, says) in [
        (
            ["--kubeconfig".as_ref(), nobody.path().as_os_str()],
            "Connection refused",
        ),
        (
            ["--kubeconfig".as_ref(), "/nonexistent".as_ref()],
            "kubeconfig cannot be used",
        ),
        (
            ["--socket".as_ref(), "/nonexistent".as_ref()],
            "is weir-agent running?",
        ),
    ] {
        let ran = Ran::of(weir().arg("status").args(arguments).output().unwrap());
        assert_eq!(ran.code, 3);
        assert!(ran.err.contains(says), "{says}");
    }
    let explain = ["explain", "--from", "web", "--to", "api", "--port", "80"];
    for arguments in [&["check"][..], &["rollback", "shop"], &explain] {
        let mut command = weir();
        command.args(arguments).arg("--kubeconfig").arg(nobody.path());
        let ran = Ran::of(command.output().unwrap());
        assert_eq!(ran.code, 3, "{arguments:?}");
        assert_eq!(
            ran.err.matches("Connection refused").count(),
            1,
            "said once: {arguments:?}"
        );
    }
    assert!(since.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn what_the_user_may_not_do_is_said() {
    let Some((world, first)) = World::in_memory().await else {
        return;
    };
    let agent = world.agent(&first, |_| status("first", &json!({}))).await;
    let pod = world.cluster.pod(&world.namespace, "user").create().await;
    let token = world.cluster.token(&pod, &[]).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    let user = world
        .cluster
        .kubeconfig()
        .replace("user: {}", &format!("user: {{token: {token}}}"));
    std::fs::write(file.path(), user).unwrap();
    let run = || {
        let mut command = weir();
        command.args(["status", "--weir-namespace", &world.namespace, "--kubeconfig"]);
        Ran::of(command.arg(file.path()).output().unwrap())
    };
    assert_eq!(run().code, 0);
    world.server().deny(weir_api_server::Denied {
        user: "*".to_owned(),
        verb: "create".to_owned(),
        group: String::new(),
        resource: "pods/portforward".to_owned(),
    });
    let ran = run();
    assert_eq!(ran.code, 3);
    assert!(ran.err.contains("pods/portforward"));
    assert_eq!(agent.asked.iter().take(1).count(), 1);
    assert!(agent.asked.try_recv().is_err());
}

#[test]
fn a_node_and_a_cluster_at_once_are_wrong_usage() {
    let ran = Ran::of(
        weir()
            .args(["status", "--socket", "/s", "--node", "n"])
            .output()
            .unwrap(),
    );
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("--socket") && ran.err.contains("--node"));
}

#[test]
fn as_a_plugin_of_kubectl_it_is_called_what_kubectl_calls_it() {
    let folder = tempfile::tempdir().unwrap();
    let link = folder.path().join("kubectl-weir");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_weir"), &link).unwrap();
    for arguments in [&["--help"][..], &["flows", "--help"], &["help", "explain"]] {
        let ran = Ran::of(
            std::process::Command::new(&link)
                .args(arguments)
                .output()
                .unwrap(),
        );
        assert!(ran.out.contains("Usage: kubectl weir"), "{arguments:?}");
        assert!(!ran.out.contains("\n  weir "), "{arguments:?}");
    }
}
