//! A Kubernetes cluster without Kubernetes: an API server in memory, the real control plane, and real agents on the lab's
//! nodes, whose pods are namespaces of the lab.

mod accounts;
pub(crate) mod net;
mod objects;

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process::Command,
};

use k8s_openapi::{
    api::core::v1::{ConfigMap, Node},
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::Api;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use weir_api_server::ApiServer;
use weir_lab::{
    Agent, Lab, PATIENCE, Pod, Process,
    config::{AgentConfig, ControlPlaneConfig},
    poll, program,
};

pub use objects::pause;

use net::{free_port, http_get, relay};

/// The namespace of control plane and agents.
pub const SYSTEM: &str = "weir-system";
/// Agents' service account and DaemonSet.
const AGENT: &str = "weir-agent";
/// Where agents find the control plane: on their own node's loopback, from where it is carried on.
pub(crate) const CONTROL: &str = "127.0.0.1:15012";
/// As they are installed.
const CRDS: [&str; 2] = [
    include_str!("../../../daemonset/chart/files/crds/authorizationpolicies.weir.dev.yaml"),
    include_str!("../../../daemonset/chart/files/crds/peerauthentications.weir.dev.yaml"),
];

/// A cluster of two nodes.
#[derive(Debug)]
pub struct Cluster {
    /// The agents, dropped before the lab.
    pub agents: Vec<Agent>,
    /// The control plane, unless it is away.
    control: Option<Process>,
    control_port: u16,
    metrics_port: u16,
    arguments: Vec<String>,
    pods: Vec<Process>,
    /// The API server.
    pub api: ApiServer,
    runtime: Runtime,
    /// The lab.
    pub lab: Lab,
}

/// A pod of the cluster.
#[derive(Debug)]
pub struct Member {
    /// In the lab.
    pub pod: Pod,
    /// Kubernetes' UID.
    pub uid: String,
}

impl std::ops::Deref for Member {
    type Target = Pod;

    fn deref(&self) -> &Pod {
        &self.pod
    }
}

// === impl Cluster ===

impl Cluster {
    /// Two nodes with agents, a control plane, and the namespace `shop`, which is in the mesh.
    ///
    /// # Panics
    /// When it cannot be made; the message says why.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self::with(name, &[], |_| {})
    }

    /// With more arguments for the control plane, and changes to the agents' configuration.
    ///
    /// # Panics
    /// As [`Cluster::new`].
    #[must_use]
    pub fn with(name: &str, arguments: &[&str], change: impl Fn(&mut AgentConfig)) -> Self {
        Self::with_agents_on(&["node1", "node2"], name, arguments, change)
    }

    /// As [`Cluster::with`], with agents on some nodes alone: others may have a node proxy of other make, or none.
    ///
    /// # Panics
    /// As [`Cluster::new`].
    #[must_use]
    pub fn with_agents_on(
        nodes: &[&str],
        name: &str,
        arguments: &[&str],
        change: impl Fn(&mut AgentConfig),
    ) -> Self {
        let lab = Lab::builder(name).outside().build().expect("a lab");
        let api = ApiServer::start().expect("an API server");
        let runtime = Runtime::new().expect("a runtime");
        let mut cluster = Self {
            agents: Vec::new(),
            control: None,
            control_port: free_port(),
            metrics_port: free_port(),
            arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
            pods: Vec::new(),
            api,
            runtime,
            lab,
        };
        cluster.furnish();
        cluster.start_control();
        for node in cluster.lab.nodes() {
            relay(&cluster.lab, node.name(), cluster.control_port);
        }
        cluster.start_agents(nodes, change);
        cluster
    }

    /// What every cluster has.
    fn furnish(&self) {
        for namespace in [SYSTEM, "weir-authority"] {
            self.namespace(namespace, None);
        }
        self.namespace("shop", Some("enabled"));
        for file in CRDS {
            let definition: Value = serde_saphyr::from_str(file).expect("YAML");
            self.create::<CustomResourceDefinition>(None, definition);
        }
        for (number, node) in (1..).zip(self.lab.nodes()) {
            self.create::<Node>(
                None,
                json!({
                    "metadata": { "name": node.name(), "labels": { "topology.kubernetes.io/zone": format!("zone{number}") } },
                    "spec": { "podCIDRs": [format!("10.{number}.0.0/24"), format!("fd00:{number}::/64")] },
                }),
            );
        }
        self.daemon_set(SYSTEM, AGENT);
    }

    /// Starts the control plane, and waits until it is ready.
    ///
    /// # Panics
    /// When it does not become so; with its log.
    pub fn start_control(&mut self) {
        let kubeconfig = self.lab.folder().join("kubeconfig");
        std::fs::write(&kubeconfig, self.api.kubeconfig()).expect("a kubeconfig");
        let mut command = Command::new(program("weir-control").expect("weir-control"));
        let address = |port: u16| SocketAddr::from(([127, 0, 0, 1], port)).to_string();
        command
            .env("KUBECONFIG", &kubeconfig)
            .env("WEIR_LOG", "info,weir_control=debug")
            .args([
                "--listen",
                &address(self.control_port),
                "--metrics",
                &address(self.metrics_port),
            ])
            .args(["--server-name", "127.0.0.1"])
            .args(&self.arguments);
        let control = Process::beside("weir-control", command, self.control_log()).expect("a control plane");
        self.control = Some(control);
        let ready = poll("the control plane to be ready", PATIENCE, || {
            Ok(self.is_control_ready().then_some(()))
        });
        if let Err(error) = ready {
            panic!(
                "{error:#}; its log:\n{}",
                std::fs::read_to_string(self.control_log()).unwrap_or_default()
            );
        }
    }

    fn is_control_ready(&self) -> bool {
        http_get(self.metrics_port, "/readyz").is_some_and(|text| text.starts_with("HTTP/1.1 200"))
    }

    /// The control plane's page of metrics; empty while it does not answer.
    #[must_use]
    pub fn control_page(&self) -> String {
        let answer = http_get(self.metrics_port, "/metrics").unwrap_or_default();
        let page = answer.split_once("\r\n\r\n");
        page.map_or_else(String::new, |(_, page)| page.to_owned())
    }

    /// A metric of the control plane, summed over its labels.
    #[must_use]
    pub fn control_metric(&self, name: &str) -> f64 {
        let text = self.control_page();
        let lines = text.lines().filter(|line| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with(['{', ' ']))
        });
        lines
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    /// What the control plane logged, over all restarts.
    #[must_use]
    pub fn control_log(&self) -> PathBuf {
        self.lab.folder().join("log").join("weir-control")
    }

    /// Ends the control plane.
    ///
    /// # Panics
    /// When it cannot be ended.
    pub fn stop_control(&mut self) {
        if let Some(mut control) = self.control.take() {
            control.kill().expect("the control plane to end");
        }
    }

    /// Brings the agents' file of the control plane's roots up to date, as the kubelet does with a ConfigMap that is mounted.
    /// Gives its path.
    ///
    /// # Panics
    /// When the control plane publishes none.
    pub fn fetch_roots(&self) -> PathBuf {
        let roots = self.lab.folder().join("roots.pem");
        let text = self.wait(|client| async move {
            let maps: Api<ConfigMap> = Api::namespaced(client, SYSTEM);
            let map = maps.get_opt("weir-ca-roots").await.ok()??;
            map.data?.remove("roots.pem")
        });
        weir_lab::replace_file(&roots, text.as_bytes()).expect("roots");
        roots
    }

    fn start_agents(&mut self, nodes: &[&str], change: impl Fn(&mut AgentConfig)) {
        let roots = self.fetch_roots();
        for name in nodes {
            let token = self.lab.folder().join(format!("{name}.token"));
            let mut config: AgentConfig = self.lab.config(name).expect("a configuration");
            config.follow(ControlPlaneConfig {
                address: CONTROL.to_owned(),
                roots: roots.clone(),
                token: token.clone(),
                kind: None,
                pod_logs: None,
            });
            change(&mut config);
            let text = self.node_token_at(SYSTEM, AGENT, name, "weir", config.pod_ip);
            std::fs::write(&token, text).expect("a token");
            self.agents.push(self.lab.launch_agent(config).expect("an agent"));
        }
        self.agents
            .iter()
            .try_for_each(Agent::wait_ready)
            .expect("agents that are ready");
    }

    /// The agent of a pod's node.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn agent(&self, pod: &Pod) -> &Agent {
        self.agents
            .iter()
            .find(|agent| agent.node() == pod.spec().node)
            .expect("an agent on the pod's node")
    }

    /// Waits until the agents of both nodes know each of these pods as one of the mesh, and its own has enrolled it.
    ///
    /// # Panics
    /// When that does not happen; with what they know.
    pub fn wait_enrolled(&self, pods: &[&Member]) {
        for pod in pods {
            self.wait_known(pod, |own, tunnel| own && tunnel == "HBONE");
            poll("the pod to be captured", PATIENCE, || {
                let status = self.agent(pod).status()?;
                let own = status.pods.iter().find(|own| own.name == pod.spec().name);
                Ok(own.filter(|own| own.enrolled && own.mode != "observe").map(drop))
            })
            .expect("an enrolled pod");
        }
    }

    /// Waits until the pod's own agent has it enrolled or not, and all agents know its tunnel, as `wanted` says.
    ///
    /// # Panics
    /// When that does not happen; with what they know.
    pub fn wait_known(&self, pod: &Member, wanted: impl Fn(bool, &str) -> bool) {
        let (namespace, name) = (&pod.spec().namespace, &pod.spec().name);
        let known = poll("the agents to know the pod", PATIENCE, || {
            let own = self.agent(pod).status()?;
            let enrolled = own
                .pods
                .iter()
                .any(|own| own.namespace == *namespace && own.name == *name && own.enrolled);
            for agent in &self.agents {
                let all = agent.workloads()?;
                let known = all
                    .iter()
                    .find(|one| one.namespace == *namespace && one.name == *name);
                let address = IpAddr::from(pod.v4());
                let tunnel = known
                    .filter(|one| one.addresses.contains(&address))
                    .map_or("", |one| &one.tunnel);
                if !wanted(enrolled, tunnel) {
                    return Ok(None);
                }
            }
            Ok(Some(()))
        });
        if let Err(error) = known {
            let logs: Vec<String> = self.agents.iter().map(Agent::log).collect();
            panic!(
                "{namespace}/{name}: {error:#}\n{}\n{}",
                logs.join("\n"),
                std::fs::read_to_string(self.control_log()).unwrap_or_default()
            );
        }
    }
}
