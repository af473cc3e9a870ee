//! Agents whose control plane is not ours: it serves what istiod serves, and nothing else.

use std::{
    collections::BTreeMap,
    fs,
    net::IpAddr,
    sync::atomic::{AtomicU32, Ordering},
};

use serde_json::{Value, json};
use weir_lab::{
    Agent, Lab, PATIENCE, Pod, PodSpec, Process,
    config::{AgentConfig, ControlPlaneConfig},
    poll,
};

use crate::{
    cluster::{CONTROL, net::relay, pause},
    peers::python,
};

/// A UID that no other pod on this machine has: agents find pods by it among all processes.
fn new_uid() -> String {
    static MADE: AtomicU32 = AtomicU32::new(0);
    let number = MADE.fetch_add(1, Ordering::Relaxed);
    format!("{:08x}-0000-4000-8000-{number:012x}", std::process::id())
}

/// Two nodes with agents, and `tests/peers/istiod.py`.
#[derive(Debug)]
pub struct Istiod {
    /// The agents, dropped before the lab.
    pub agents: Vec<Agent>,
    pauses: BTreeMap<String, Process>,
    /// What it printed.
    pub control: Process,
    addresses: BTreeMap<String, Value>,
    policies: BTreeMap<String, Value>,
    /// The lab.
    pub lab: Lab,
}

// === impl Istiod ===

impl Istiod {
    /// With nothing in the mesh yet.
    ///
    /// # Panics
    /// When it cannot be made; the message says why.
    #[must_use]
    pub fn new(name: &str, change: impl Fn(&mut AgentConfig)) -> Self {
        let lab = Lab::builder(name).outside().build().expect("a lab");
        let (roots, token) = (lab.folder().join("istiod.pem"), lab.folder().join("token"));
        fs::write(&token, "of-the-agent").expect("a token");
        let state = lab.folder().join("istiod.json");
        fs::write(&state, "{}").expect("a state");
        let mut command = python("istiod.py");
        command.arg("--state").arg(&state).arg("--roots").arg(&roots);
        command.args(["--token", "of-the-agent"]);
        let log = lab.folder().join("log").join("istiod");
        let control = Process::beside("istiod", command, log).expect("a control plane");
        let port = control.wait_json("listening").expect("a port");
        let port = port
            .as_u64()
            .and_then(|port| u16::try_from(port).ok())
            .expect("a port");
        let mut agents = Vec::new();
        for node in lab.nodes() {
            relay(&lab, node.name(), port);
            let logs = lab.folder().join(format!("{}.logs", node.name()));
            fs::create_dir(&logs).expect("a folder of logs");
            let mut config: AgentConfig = lab.config(node.name()).expect("a configuration");
            config.follow(ControlPlaneConfig {
                address: CONTROL.to_owned(),
                roots: roots.clone(),
                token: token.clone(),
                kind: Some("istiod".to_owned()),
                pod_logs: Some(logs),
            });
            change(&mut config);
            agents.push(lab.launch_agent(config).expect("an agent"));
        }
        agents
            .iter()
            .try_for_each(Agent::wait_ready)
            .expect("agents that are ready");
        Self {
            agents,
            pauses: BTreeMap::new(),
            control,
            addresses: BTreeMap::new(),
            policies: BTreeMap::new(),
            lab,
        }
    }

    /// Does what the kubelet does to run a pod.
    fn run(&mut self, pod: &Pod) {
        let PodSpec {
            node,
            namespace,
            name,
            ..
        } = pod.spec();
        let uid = new_uid();
        let logs = self.lab.folder().join(format!("{node}.logs"));
        fs::create_dir(logs.join(format!("{namespace}_{name}_{uid}"))).expect("a folder of logs");
        let pause = pause(&self.lab, pod, &uid);
        self.pauses.insert(name.clone(), pause);
    }

    /// Runs a pod, as the kubelet does, of which the control plane says nothing yet.
    ///
    /// # Panics
    /// When it cannot be run.
    #[must_use]
    pub fn pod(&mut self, node: &str, name: &str) -> Pod {
        let spec = PodSpec::new(node, "shop", name);
        let pod = self.lab.add_pod(spec).expect("a pod");
        self.run(&pod);
        pod
    }

    /// Makes a pod anew in its network namespace under another UID. The logs of the one before stay a while.
    ///
    /// # Panics
    /// When it cannot be done.
    pub fn make_again(&mut self, pod: &Pod) {
        if let Some(mut pause) = self.pauses.remove(&pod.spec().name) {
            pause.kill().expect("the pause process to end");
        }
        self.run(pod);
    }

    /// Tells of a pod's workload: in the mesh or not, and with which policies.
    pub fn tell(&mut self, pod: &Pod, in_mesh: bool, policies: &[&str]) {
        let addresses: [IpAddr; 2] = [pod.v4().into(), pod.v6().into()];
        let name = &pod.spec().name;
        let uid = format!("Kubernetes//Pod/shop/{name}");
        let workload = json!({
            "uid": uid, "name": name, "namespace": "shop", "addresses": addresses, "node": pod.spec().node,
            "tunnelProtocol": if in_mesh { "HBONE" } else { "NONE" }, "trustDomain": "cluster.local",
            "serviceAccount": name, "canonicalName": name, "canonicalRevision": "latest", "workloadName": name,
            "clusterId": "Kubernetes", "status": "HEALTHY", "authorizationPolicies": policies,
        });
        self.addresses.insert(uid, json!({ "workload": workload }));
        self.write();
    }

    /// Sets or takes away a policy.
    pub fn policy(&mut self, name: &str, policy: Option<Value>) {
        match policy {
            Some(policy) => self.policies.insert(name.to_owned(), policy),
            None => self.policies.remove(name),
        };
        self.write();
    }

    fn write(&self) {
        let state = json!({ "addresses": self.addresses, "policies": self.policies });
        let file = self.lab.folder().join("istiod.json");
        weir_lab::replace_file(&file, state.to_string().as_bytes()).expect("a state");
    }

    /// The agent of a pod's node.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn agent(&self, pod: &Pod) -> &Agent {
        let mut agents = self.agents.iter();
        agents
            .find(|agent| agent.node() == pod.spec().node)
            .expect("an agent on the pod's node")
    }

    /// Waits until a pod's own agent has it enrolled, or not, and all know its tunnel.
    ///
    /// # Panics
    /// When that does not happen; with the agent's log.
    pub fn wait(&self, pod: &Pod, in_mesh: bool) {
        let name = &pod.spec().name;
        let tunnel = if in_mesh { "HBONE" } else { "NONE" };
        let known = poll("the agents to know the pod", PATIENCE, || {
            let own = self.agent(pod).status()?;
            if own.pods.iter().any(|own| own.name == *name && own.enrolled) != in_mesh {
                return Ok(None);
            }
            for agent in &self.agents {
                let all = agent.workloads()?;
                if !all.iter().any(|one| one.name == *name && one.tunnel == tunnel) {
                    return Ok(None);
                }
            }
            Ok(Some(()))
        });
        if let Err(error) = known {
            panic!("{name}: {error:#}\n{}", self.agent(pod).log());
        }
    }
}
