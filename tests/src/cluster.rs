//! A Kubernetes cluster without Kubernetes: an API server in memory, the real control plane, and real agents on the lab's
//! nodes, whose pods are namespaces of the lab.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::Command,
    thread,
    time::Duration,
};

use k8s_openapi::{
    api::{
        apps::v1::DaemonSet,
        authentication::v1::TokenRequest,
        core::v1::{ConfigMap, Namespace, Node, Pod as KubePod, Service, ServiceAccount},
        discovery::v1::EndpointSlice,
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{
    Api, Client,
    api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams},
    core::GroupVersionKind,
};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use weir_api_server::{ApiServer, object};
use weir_lab::{
    Agent, Lab, PATIENCE, Pod, PodSpec, Process, Spawn as _,
    config::{AgentConfig, ControlPlaneConfig},
    poll, program,
};

/// The namespace of control plane and agents.
pub const SYSTEM: &str = "weir-system";
/// Agents' service account and DaemonSet.
const AGENT: &str = "weir-agent";
/// Where agents find the control plane: on their own node's loopback, from where it is carried on.
const CONTROL: &str = "127.0.0.1:15012";
/// As they are installed.
const CRDS: [&str; 2] = [
    include_str!("../../daemonset/crds/authorizationpolicies.weir.dev.yaml"),
    include_str!("../../daemonset/crds/peerauthentications.weir.dev.yaml"),
];
/// How long a token is valid that nobody replaces: longer than any test.
const TOKEN_SECONDS: i64 = 3600;

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
        Self::with(name, &[])
    }

    /// With more arguments for the control plane.
    ///
    /// # Panics
    /// As [`Cluster::new`].
    #[must_use]
    pub fn with(name: &str, arguments: &[&str]) -> Self {
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
        cluster.start_agents();
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
        self.service_account(SYSTEM, AGENT);
        self.create::<DaemonSet>(
            Some(SYSTEM),
            json!({
                "metadata": { "name": AGENT },
                "spec": {
                    "selector": { "matchLabels": { "app": AGENT } },
                    "template": {
                        "metadata": { "labels": { "app": AGENT } },
                        "spec": { "containers": [{ "name": AGENT, "image": AGENT }] },
                    },
                },
            }),
        );
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

    /// A metric of the control plane, summed over its labels.
    #[must_use]
    pub fn control_metric(&self, name: &str) -> f64 {
        let text = http_get(self.metrics_port, "/metrics").unwrap_or_default();
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

    fn start_agents(&mut self) {
        let roots = self.lab.folder().join("roots.pem");
        let text = self.wait(|client| async move {
            let maps: Api<ConfigMap> = Api::namespaced(client, SYSTEM);
            let map = maps.get_opt("weir-ca-roots").await.ok()??;
            map.data?.remove("roots.pem")
        });
        std::fs::write(&roots, text).expect("roots");
        let names: Vec<String> = self
            .lab
            .nodes()
            .iter()
            .map(|node| node.name().to_owned())
            .collect();
        for name in &names {
            relay(&self.lab, name, self.control_port);
            let token = self.lab.folder().join(format!("{name}.token"));
            std::fs::write(&token, self.agent_token(name)).expect("a token");
            let mut config: AgentConfig = self.lab.config(name).expect("a configuration");
            config.follow(ControlPlaneConfig {
                address: CONTROL.to_owned(),
                roots: roots.clone(),
                token,
            });
            self.agents.push(self.lab.launch_agent(config).expect("an agent"));
        }
        self.agents
            .iter()
            .try_for_each(Agent::wait_ready)
            .expect("agents that are ready");
    }

    /// A token of the agent's pod on a node, which is made if it is not there.
    fn agent_token(&self, node: &str) -> String {
        let name = format!("{AGENT}-{node}");
        let owner = self.block(async |client| {
            let sets: Api<DaemonSet> = Api::namespaced(client, SYSTEM);
            sets.get(AGENT).await
        });
        let owner = OwnerReference {
            api_version: "apps/v1".to_owned(),
            kind: "DaemonSet".to_owned(),
            name: AGENT.to_owned(),
            uid: owner.metadata.uid.expect("a UID"),
            controller: Some(true),
            ..OwnerReference::default()
        };
        let pod: KubePod = self.create(
            Some(SYSTEM),
            json!({
                "metadata": { "name": name, "labels": { "app": AGENT }, "ownerReferences": [owner] },
                "spec": {
                    "nodeName": node, "serviceAccountName": AGENT, "hostNetwork": true,
                    "containers": [{ "name": AGENT, "image": AGENT }],
                },
            }),
        );
        let request: TokenRequest = object(json!({ "spec": {
            "audiences": ["weir"],
            "expirationSeconds": TOKEN_SECONDS,
            "boundObjectRef": { "apiVersion": "v1", "kind": "Pod", "name": name, "uid": pod.metadata.uid },
        }}));
        let token = self.block(async move |client| {
            let accounts: Api<ServiceAccount> = Api::namespaced(client, SYSTEM);
            accounts
                .create_token_request(AGENT, &PostParams::default(), &request)
                .await
        });
        token.status.expect("a token").token
    }

    /// Makes a namespace, with this for its switch `weir.dev/mesh`.
    pub fn namespace(&self, name: &str, switch: Option<&str>) {
        let labels = switch.map(|switch| json!({ "weir.dev/mesh": switch }));
        self.create::<Namespace>(None, json!({ "metadata": { "name": name, "labels": labels } }));
    }

    /// Sets or takes away a namespace's switch.
    pub fn switch(&self, namespace: &str, switch: Option<&str>) {
        let patch = json!({ "metadata": { "labels": { "weir.dev/mesh": switch } } });
        let namespace = namespace.to_owned();
        self.block(async move |client| {
            let namespaces: Api<Namespace> = Api::all(client);
            namespaces
                .patch(&namespace, &PatchParams::default(), &Patch::Merge(patch))
                .await
        });
    }

    /// Makes a service account.
    pub fn service_account(&self, namespace: &str, name: &str) {
        self.create::<ServiceAccount>(Some(namespace), json!({ "metadata": { "name": name } }));
    }

    /// Makes a pod with a service account of its own name, in the lab and at the API server, as scheduler and kubelet would.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn pod(&mut self, node: &str, namespace: &str, name: &str) -> Member {
        self.pod_with(node, namespace, name, json!({}))
    }

    /// As [`Cluster::pod`], with more in its object.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn pod_with(&mut self, node: &str, namespace: &str, name: &str, more: Value) -> Member {
        let accounts = format!("{namespace}/{name}");
        let exists = {
            let (namespace, name) = (namespace.to_owned(), name.to_owned());
            self.block(async move |client| {
                Api::<ServiceAccount>::namespaced(client, &namespace)
                    .get_opt(&name)
                    .await
            })
            .is_some()
        };
        if !exists {
            self.service_account(namespace, name);
        }
        let mut object = json!({
            "metadata": { "name": name, "labels": { "app": name }, "annotations": { "weir.dev/enrolled": "true" } },
            "spec": {
                "nodeName": node, "serviceAccountName": name,
                "containers": [{ "name": "app", "image": "app" }],
            },
        });
        merge(&mut object, more);
        let made: KubePod = self.create(Some(namespace), object);
        let uid = made.metadata.uid.expect("a UID");
        let pod = self
            .lab
            .add_pod(PodSpec::new(node, namespace, name))
            .expect(&accounts);
        // What holds the pod's namespace, in the cgroup that the kubelet would have made.
        let cgroup = self
            .lab
            .node(node)
            .expect("a node")
            .cgroup()
            .join("kubepods/burstable");
        let place = pod
            .place()
            .in_cgroup(cgroup.join(format!("pod{uid}")))
            .expect("a cgroup");
        let mut pause = Command::new("sleep");
        pause.arg("infinity");
        self.pods
            .push(PauseIn(place).spawn(pause).expect("a pause process"));
        self.set_running(&pod, Some(&uid));
        Member { pod, uid }
    }

    /// Says in a pod's status that it runs, and where.
    fn set_running(&self, pod: &Pod, _uid: Option<&str>) {
        let addresses: [IpAddr; 2] = [pod.v4().into(), pod.v6().into()];
        let ips: Vec<Value> = addresses.iter().map(|ip| json!({ "ip": ip })).collect();
        let status = json!({ "status": {
            "phase": "Running", "podIP": addresses[0], "podIPs": ips,
            "conditions": [{ "type": "Ready", "status": "True" }],
        }});
        let (namespace, name) = (pod.spec().namespace.clone(), pod.spec().name.clone());
        self.block(async move |client| {
            let pods: Api<KubePod> = Api::namespaced(client, &namespace);
            pods.patch_status(&name, &PatchParams::default(), &Patch::Merge(status))
                .await
        });
    }

    /// Removes a pod.
    ///
    /// # Panics
    /// When it cannot be removed.
    pub fn remove_pod(&mut self, member: &Member) {
        let (namespace, name) = (member.spec().namespace.clone(), member.spec().name.clone());
        self.block(async move |client| {
            let pods: Api<KubePod> = Api::namespaced(client, &namespace);
            let gone = DeleteParams {
                grace_period_seconds: Some(0),
                ..DeleteParams::default()
            };
            pods.delete(&name, &gone).await.map(drop)
        });
        let folder = format!("pod{}", member.uid);
        self.pods.retain_mut(|process| {
            let cgroup =
                std::fs::read_to_string(format!("/proc/{}/cgroup", process.pid())).unwrap_or_default();
            if cgroup.contains(&folder) {
                process.kill().expect("the pause process to end");
                return false;
            }
            true
        });
        self.lab.remove_pod(&member.pod).expect("the pod to be removed");
    }

    /// Makes a service with one port, served by these pods.
    pub fn service(
        &self,
        namespace: &str,
        name: &str,
        address: Ipv4Addr,
        ports: (u16, u16),
        pods: &[&Member],
    ) {
        let (port, target) = ports;
        self.create::<Service>(
            Some(namespace),
            json!({
                "metadata": { "name": name },
                "spec": {
                    "clusterIP": address, "clusterIPs": [address],
                    "ports": [{ "name": "tcp", "port": port, "targetPort": target, "protocol": "TCP" }],
                },
            }),
        );
        let endpoints: Vec<Value> = pods
            .iter()
            .map(|pod| {
                json!({
                    "addresses": [pod.v4()],
                    "conditions": { "ready": true, "serving": true },
                    "nodeName": pod.spec().node,
                    "targetRef": {
                        "kind": "Pod", "namespace": namespace, "name": pod.spec().name, "uid": pod.uid,
                    },
                })
            })
            .collect();
        self.create::<EndpointSlice>(
            Some(namespace),
            json!({
                "metadata": {
                    "name": format!("{name}-1"), "labels": { "kubernetes.io/service-name": name },
                },
                "addressType": "IPv4",
                "ports": [{ "name": "tcp", "port": target, "protocol": "TCP" }],
                "endpoints": endpoints,
            }),
        );
    }

    /// Makes an object.
    ///
    /// # Panics
    /// When it is refused.
    pub fn create<K>(&self, namespace: Option<&str>, value: Value) -> K
    where
        K: kube::Resource<DynamicType = ()>
            + Clone
            + std::fmt::Debug
            + serde::de::DeserializeOwned
            + serde::Serialize,
        K: MaybeNamespaced,
    {
        let object: K = object(value);
        let namespace = namespace.map(str::to_owned);
        self.block(async move |client| {
            K::api(client, namespace.as_deref())
                .create(&PostParams::default(), &object)
                .await
        })
    }

    /// Makes a policy of `weir.dev`, or replaces it.
    pub fn policy(&self, kind: &str, namespace: &str, name: &str, spec: &Value) {
        let (api, name, kind) = (policies(kind, namespace), name.to_owned(), kind.to_owned());
        let object = json!({
            "apiVersion": "weir.dev/v1alpha1", "kind": kind, "metadata": { "name": name }, "spec": spec,
        });
        self.block(async move |client| {
            let params = PatchParams::apply("test").force();
            api(client).patch(&name, &params, &Patch::Apply(object)).await
        });
    }

    /// Takes a policy away.
    pub fn remove_policy(&self, kind: &str, namespace: &str, name: &str) {
        let (api, name) = (policies(kind, namespace), name.to_owned());
        self.block(async move |client| {
            api(client)
                .delete(&name, &DeleteParams::default())
                .await
                .map(drop)
        });
    }

    /// Waits for an answer of the API server.
    ///
    /// # Panics
    /// When it does not come.
    pub fn wait<T, F: Future<Output = Option<T>>>(&self, ask: impl Fn(Client) -> F) -> T {
        poll("the API server to show it", PATIENCE, || {
            let client = self.runtime.block_on(async { self.api.client() })?;
            Ok(self.runtime.block_on(ask(client)))
        })
        .expect("an answer")
    }

    /// Asks the API server.
    ///
    /// # Panics
    /// When it refuses.
    pub fn block<T>(&self, ask: impl AsyncFnOnce(Client) -> kube::Result<T>) -> T {
        self.runtime
            .block_on(async { ask(self.api.client()?).await })
            .expect("the API server to do it")
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

fn policies(kind: &str, namespace: &str) -> impl FnOnce(Client) -> Api<DynamicObject> {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("weir.dev", "v1alpha1", kind));
    let namespace = namespace.to_owned();
    move |client| Api::namespaced_with(client, &namespace, &resource)
}

/// A place where a pod's first process runs.
struct PauseIn(weir_lab::Place);

impl weir_lab::Spawn for PauseIn {
    fn place(&self) -> &weir_lab::Place {
        &self.0
    }
}

/// Objects in a namespace, or of the whole cluster.
pub trait MaybeNamespaced: Sized {
    /// Where they are.
    fn api(client: Client, namespace: Option<&str>) -> Api<Self>;
}

macro_rules! namespaced {
    ($($kind:ty),*) => {
        $(impl MaybeNamespaced for $kind {
            fn api(client: Client, namespace: Option<&str>) -> Api<Self> {
                Api::namespaced(client, namespace.unwrap_or("default"))
            }
        })*
    };
}

macro_rules! of_the_cluster {
    ($($kind:ty),*) => {
        $(impl MaybeNamespaced for $kind {
            fn api(client: Client, _namespace: Option<&str>) -> Api<Self> {
                Api::all(client)
            }
        })*
    };
}

namespaced!(
    DaemonSet,
    KubePod,
    Service,
    ServiceAccount,
    EndpointSlice,
    ConfigMap
);
of_the_cluster!(CustomResourceDefinition, Namespace, Node);

fn merge(into: &mut Value, more: Value) {
    match (into, more) {
        (Value::Object(into), Value::Object(more)) => {
            for (key, value) in more {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, more) => *into = more,
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    listener.local_addr().expect("an address").port()
}

fn http_get(port: u16, path: &str) -> Option<String> {
    use io::{Read as _, Write as _};
    let mut socket = TcpStream::connect(("127.0.0.1", port)).ok()?;
    socket.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    write!(
        socket,
        "GET {path} HTTP/1.1\r\nHost: control\r\nConnection: close\r\n\r\n"
    )
    .ok()?;
    let mut text = String::new();
    socket.read_to_string(&mut text).ok()?;
    Some(text)
}

/// Carries connections from a node's loopback to the control plane, which runs beside the lab.
fn relay(lab: &Lab, node: &str, port: u16) {
    let node = lab.node(node).expect("a node");
    let listener = node
        .inside(|| Ok(TcpListener::bind(CONTROL)?))
        .expect("a listener on the node");
    thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let Ok(server) = TcpStream::connect(("127.0.0.1", port)) else {
                // The control plane is away.
                continue;
            };
            let pairs = [
                (client.try_clone(), server.try_clone()),
                (server.try_clone(), client.try_clone()),
            ];
            for (from, to) in pairs {
                let (Ok(mut from), Ok(mut to)) = (from, to) else {
                    continue;
                };
                thread::spawn(move || {
                    let _ = io::copy(&mut from, &mut to);
                    let _ = to.shutdown(Shutdown::Write);
                    let _ = from.shutdown(Shutdown::Read);
                });
            }
        }
    });
}
