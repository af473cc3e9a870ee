//! A cluster with agents that say what a test wants, and the command that asks them.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpListener},
    process::{Command, Output, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
};

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt as _;
use serde_json::{Value, json};
use weir_api_server::{ApiServer, TestCluster};
use weir_types::api::{Request, Response};

use crate::observer::{self, Said};

/// The port that agents listen on.
const PORT: u16 = 15021;

pub(crate) struct World {
    pub(crate) cluster: TestCluster,
    /// Where Weir is.
    pub(crate) namespace: String,
    kubeconfig: tempfile::NamedTempFile,
}

/// What came of the command.
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl World {
    pub(crate) async fn new() -> Self {
        let cluster = TestCluster::new().await;
        let namespace = cluster.namespace("weir").await;
        let mut kubeconfig = tempfile::NamedTempFile::new().unwrap();
        kubeconfig.write_all(cluster.kubeconfig().as_bytes()).unwrap();
        Self {
            cluster,
            namespace,
            kubeconfig,
        }
    }

    /// For what a real cluster has no agents for.
    pub(crate) async fn in_memory() -> Option<(Self, Node)> {
        let world = Self::new().await;
        if world.cluster.stand_in().is_none() {
            eprintln!("no agents run here: not tried");
            return None;
        }
        let node = world.cluster.node("first").await;
        Some((world, node))
    }

    pub(crate) fn server(&self) -> &ApiServer {
        self.cluster.stand_in().unwrap()
    }

    /// The pod of an agent, running and reached by nobody yet.
    pub(crate) async fn agent_pod(&self, node: &Node) -> Pod {
        let name = format!("weir-agent-{}", node.name_any());
        let pod = self.cluster.pod(&self.namespace, &name).on(node);
        pod.labels(&[("app.kubernetes.io/name", "weir-agent")])
            .addresses(&["10.0.0.1"])
            .create()
            .await
    }

    /// An agent that answers with what `answer` says.
    pub(crate) async fn agent(
        &self,
        node: &Node,
        answer: impl Fn(Request) -> Vec<Response> + Send + 'static,
    ) -> Agent {
        self.agent_with(node, vec![], answer).await
    }

    /// As [`World::agent`], with flows.
    pub(crate) async fn agent_with(
        &self,
        node: &Node,
        flows: Vec<Said>,
        answer: impl Fn(Request) -> Vec<Response> + Send + 'static,
    ) -> Agent {
        let pod = self.agent_pod(node).await;
        let agent = Agent::start(flows, answer);
        self.server()
            .forward(&self.namespace, &pod.name_any(), PORT, agent.address);
        agent
    }

    /// The command, with this cluster's kubeconfig.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = weir();
        command
            .args(arguments)
            .arg("--kubeconfig")
            .arg(self.kubeconfig.path())
            .args(["--weir-namespace", &self.namespace]);
        command
    }

    /// Runs the command where Weir is, or is to be, installed by itself.
    pub(crate) fn run_installed(&self, arguments: &[&str]) -> Ran {
        let mut command = weir();
        command
            .args(arguments)
            .arg("--kubeconfig")
            .arg(self.kubeconfig.path());
        Ran::of(command.output().unwrap())
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Ran {
        Ran::of(self.command(arguments).output().unwrap())
    }
}

/// The command, in no surroundings but the test's.
pub(crate) fn weir() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
    command
        .env_remove("WEIR_SOCKET")
        .env_remove("WEIR_NAMESPACE")
        .env("TZ", "UTC")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

impl Ran {
    pub(crate) fn of(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let ran = Self {
            code: output.status.code().unwrap_or(-1),
            out: text(output.stdout),
            err: text(output.stderr),
        };
        // Shown where a test fails.
        println!("{}\n{}exit code {}", ran.out, ran.err, ran.code);
        ran
    }
}

/// An agent's API on a port of loopback.
pub(crate) struct Agent {
    address: SocketAddr,
    /// What it was asked.
    pub(crate) asked: Receiver<Request>,
    /// One for each client that followed flows and went away.
    pub(crate) left: Receiver<()>,
}

impl Agent {
    fn start(flows: Vec<Said>, answer: impl Fn(Request) -> Vec<Response> + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let ((asked, questions), (left, leaving)) = (channel(), channel());
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut first = [0];
                if stream.peek(&mut first).unwrap() == 1 && first == *b"P" {
                    observer::serve(stream, flows.clone(), left.clone());
                    continue;
                }
                let mut line = String::new();
                BufReader::new(stream.try_clone().unwrap())
                    .read_line(&mut line)
                    .unwrap();
                let request: Request = serde_json::from_str(&line).unwrap();
                for response in answer(request.clone()) {
                    writeln!(stream, "{}", serde_json::to_string(&response).unwrap()).unwrap();
                }
                let _ = asked.send(request);
            }
        });
        Self {
            address,
            asked: questions,
            left: leaving,
        }
    }
}

/// A status of an agent, with these fields instead of its own.
pub(crate) fn status(node: &str, fields: &Value) -> Vec<Response> {
    let now = jiff::Timestamp::now();
    let mut status = json!({
        "node": node, "version": env!("CARGO_PKG_VERSION"), "trustDomain": "cluster.local", "started": now, "ready": true,
        "config": {"file": "/etc/weir/agent.yaml", "generation": 1, "applied": now},
        "controlPlane": {
            "address": "weir-control.weir-system.svc:15012", "connected": true, "since": now, "workloads": 3,
            "services": 1, "policies": 0,
        },
        "pods": [], "certificates": [], "tunnels": [], "refusals": [], "programs": [], "roots": [],
        "flowsRecorded": 1, "flowsLost": 0, "kernelConnections": 1, "warnings": [], "errors": [],
    });
    for (name, value) in fields.as_object().unwrap() {
        status[name] = value.clone();
    }
    vec![Response::Status(serde_json::from_value(status).unwrap())]
}

/// A flow that a node recorded at a second.
pub(crate) fn flow(node: &str, second: i64) -> Said {
    let time = jiff::Timestamp::from_second(second).unwrap();
    Said::Flow(Box::new(
        serde_json::from_value(json!({
            "sequence": 1, "time": time, "node": node, "connection": 1, "event": "open",
            "verdict": "forwarded", "reason": "none", "direction": "egress", "path": "tunnel",
            "source": {"address": "10.0.0.1:4000", "namespace": "shop", "pod": "web"},
            "destination": {"address": "10.0.1.1:80"},
            "bytesSent": 0, "bytesReceived": 0, "durationUs": 0,
        }))
        .unwrap(),
    ))
}
