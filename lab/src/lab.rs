//! The lab: nodes, pods, and their life.

use std::{
    fs,
    net::{Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    Agent, AgentConfig, Capture, Place, Pod, PodSpec, Spawn, cgroup,
    config::{ApiConfig, CaConfig, MetricsConfig},
    netns, places, require_root,
    run::{self, Run},
    signal, topology,
};

/// Nodes of a lab unless told otherwise.
const NODES: usize = 2;
/// Node numbers are the second byte of pod addresses, where 255 is the link between nodes and 96 the services.
const MAX_NODES: usize = 90;
/// Pods' last address byte begins here; 1 is the node.
const FIRST_HOST: u8 = 2;

/// A mesh in this machine. Dropping it removes all of it.
#[derive(Debug)]
pub struct Lab {
    run: Run,
    nodes: Vec<Node>,
    outside: Option<Place>,
    pods: Mutex<Vec<Pod>>,
    kept: AtomicBool,
}

/// What a lab shall have.
#[derive(Debug, Clone)]
pub struct Builder {
    name: String,
    nodes: usize,
    outside: bool,
}

/// A node: a network namespace with a bridge that its pods hang on. Processes spawned in it are host processes.
#[derive(Debug, Clone)]
pub struct Node {
    number: u8,
    place: Place,
    cgroup: PathBuf,
}

// === impl Builder ===

impl Builder {
    /// This many nodes, `node1` and so on.
    #[must_use]
    pub fn nodes(mut self, nodes: usize) -> Self {
        self.nodes = nodes;
        self
    }

    /// With a host outside of the mesh that nodes and pods reach.
    #[must_use]
    pub fn outside(mut self) -> Self {
        self.outside = true;
        self
    }

    /// Makes it, and removes first what dead runs have left.
    ///
    /// # Errors
    /// When the caller is not root or something cannot be made.
    pub fn build(self) -> Result<Lab> {
        require_root()?;
        ensure!(
            (1..=MAX_NODES).contains(&self.nodes),
            "a lab has 1 to {MAX_NODES} nodes"
        );
        raise_open_files();
        run::sweep()?;
        let run = Run::new(&self.name)?;
        signal::watch(run.clone());
        // From here on the drop of the lab removes what was made.
        let mut lab = Lab {
            run,
            nodes: Vec::new(),
            outside: None,
            pods: Mutex::default(),
            kept: AtomicBool::new(false),
        };
        lab.build(&self)?;
        Ok(lab)
    }
}

// === impl Lab ===

impl Lab {
    /// Two nodes. The name is part of the run's id and should be short.
    ///
    /// # Errors
    /// As [`Builder::build`].
    pub fn new(name: &str) -> Result<Self> {
        Self::builder(name).build()
    }

    /// A lab with more to it.
    #[must_use]
    pub fn builder(name: &str) -> Builder {
        Builder {
            name: name.to_owned(),
            nodes: NODES,
            outside: false,
        }
    }

    /// The run's id.
    #[must_use]
    pub fn id(&self) -> &str {
        self.run.id()
    }

    /// The run's folder: configurations, sockets, logs. Removed with the lab.
    #[must_use]
    pub fn folder(&self) -> PathBuf {
        self.run.folder()
    }

    /// Its nodes.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// A node by its name.
    ///
    /// # Errors
    /// When there is none.
    pub fn node(&self, name: &str) -> Result<&Node> {
        let node = self.nodes.iter().find(|node| node.name() == name);
        node.with_context(|| format!("the lab has no node {name}"))
    }

    /// The host outside of the mesh.
    ///
    /// # Errors
    /// When the lab was built without.
    pub fn outside(&self) -> Result<&Place> {
        self.outside
            .as_ref()
            .context("the lab was built without a host outside: Lab::builder(..).outside()")
    }

    /// Addresses of the host outside.
    #[must_use]
    pub fn outside_addresses(&self) -> (Ipv4Addr, Ipv6Addr) {
        (
            topology::link_v4(topology::OUTSIDE),
            topology::link_v6(topology::OUTSIDE),
        )
    }

    /// Its pods.
    #[must_use]
    pub fn pods(&self) -> Vec<Pod> {
        self.lock().clone()
    }

    /// Makes a pod. Agents hear of it through [`Lab::config`] and [`Agent::reload`].
    ///
    /// # Errors
    /// When its name is taken or something cannot be made.
    pub fn add_pod(&self, spec: PodSpec) -> Result<Pod> {
        let node = self.node(&spec.node)?;
        let uid = spec.uid();
        let mut pods = self.lock();
        ensure!(pods.iter().all(|pod| pod.uid() != uid), "the lab has a pod {uid}");
        let taken = |host: u8| pods.iter().any(|pod| pod.node == node.number && pod.host == host);
        let host = match spec.host {
            Some(host) => host,
            None => (FIRST_HOST..topology::OUTSIDE)
                .find(|host| !taken(*host))
                .context("the node is full")?,
        };
        ensure!(
            !taken(host),
            "{} is another pod's",
            topology::pod_v4(node.number, host)
        );
        let place = self.new_place(&uid, node.cgroup.join("pods").join(&uid))?;
        topology::wire_pod(
            &node.place.netns,
            &place.netns,
            node.number,
            host,
            &format!("v{host}"),
        )?;
        let pod = Pod {
            spec,
            host,
            node: node.number,
            place,
        };
        pods.push(pod.clone());
        self.record(&pods)?;
        Ok(pod)
    }

    /// Removes a pod with all of its processes.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove_pod(&self, pod: &Pod) -> Result<()> {
        let mut pods = self.lock();
        cgroup::remove(&pod.place.cgroup)?;
        netns::ip(None, &[format!("netns del {}", pod.place.netns)])?;
        pods.retain(|other| other.uid() != pod.uid());
        self.record(&pods)?;
        drop(pods);
        // The kernel deletes a namespace's links some time later, and a next pod may want the same name.
        let node = &self.nodes[usize::from(pod.node) - 1];
        let port = format!("v{}", pod.host);
        crate::poll("the removed pod's link to be gone", crate::PATIENCE, || {
            let there =
                node.inside(|| Ok(rustix::net::netdevice::name_to_index(socket()?, &port).is_ok()))?;
            Ok((!there).then_some(()))
        })
    }

    /// The configuration of a node's agent for the pods that the lab has now, without services.
    ///
    /// # Errors
    /// When the lab has no such node.
    pub fn config(&self, node: &str) -> Result<AgentConfig> {
        let node = self.node(node)?;
        let folder = self.folder();
        let pods = self.lock();
        let members = || pods.iter().filter(|pod| pod.spec.in_mesh);
        Ok(AgentConfig {
            node: node.name().to_owned(),
            trust_domain: "cluster.local".to_owned(),
            ca: Some(CaConfig::Dir {
                dir: folder.join("ca"),
            }),
            control_plane: None,
            certificates: None,
            cgroup: node.cgroup.clone(),
            pin_dir: self.run.bpffs().join(node.name()),
            api: ApiConfig {
                socket: folder.join(format!("{}.sock", node.name())),
                group: None,
            },
            hubble: None,
            pod_ip: None,
            metrics: MetricsConfig {
                address: ([127, 0, 0, 1], 15020).into(),
            },
            root_namespace: None,
            authorization_policies: Vec::new(),
            peer_authentications: Vec::new(),
            same_node: None,
            verdict_lease: None,
            kubelet_cgroup: None,
            flows: None,
            pods: members()
                .filter(|pod| pod.node == node.number)
                .map(Pod::config)
                .collect(),
            workloads: members().map(Pod::workload).collect(),
            services: Vec::new(),
        })
    }

    /// Starts a node's agent with this configuration and waits until it is ready.
    ///
    /// # Errors
    /// When it does not become ready; with its log.
    pub fn start_agent(&self, config: AgentConfig) -> Result<Agent> {
        let agent = self.launch_agent(config)?;
        agent.wait_ready()?;
        Ok(agent)
    }

    /// Starts a node's agent and does not wait.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn launch_agent(&self, config: AgentConfig) -> Result<Agent> {
        let place = self.node(&config.node)?.place.clone();
        Agent::launch(place, &self.folder(), config)
    }

    /// Starts every node's agent for the pods that the lab has now, and waits until all are ready.
    ///
    /// # Errors
    /// When one does not become ready; with its log.
    pub fn start_agents(&self) -> Result<Vec<Agent>> {
        self.start_agents_with(|_| {})
    }

    /// As [`Lab::start_agents`], with changes to each configuration.
    ///
    /// # Errors
    /// When one does not become ready; with its log.
    pub fn start_agents_with(&self, mut change: impl FnMut(&mut AgentConfig)) -> Result<Vec<Agent>> {
        let mut agents = Vec::new();
        for node in &self.nodes {
            let mut config = self.config(node.name())?;
            change(&mut config);
            agents.push(self.launch_agent(config)?);
        }
        agents.iter().try_for_each(Agent::wait_ready)?;
        Ok(agents)
    }

    /// Captures what passes a node's link to the other nodes, and looks for these canaries in it.
    ///
    /// # Errors
    /// When the capture cannot be opened.
    pub fn capture(&self, node: &str, canaries: &[&[u8]]) -> Result<Capture> {
        Capture::start(&self.node(node)?.place.netns_path(), topology::UPLINK, canaries)
    }

    /// Leaves everything in place when dropped, for someone to look at; the next run sweeps it once this process ended.
    pub fn keep(&self) {
        self.kept.store(true, Ordering::Relaxed);
    }

    /// Removes everything now.
    ///
    /// # Errors
    /// When something could not be removed, which the drop could not tell.
    pub fn close(self) -> Result<()> {
        self.keep();
        self.tear_down()
    }

    fn tear_down(&self) -> Result<()> {
        let removed = self.run.remove();
        signal::forget(&self.run);
        removed
    }

    fn build(&mut self, wanted: &Builder) -> Result<()> {
        let root = self.run.cgroup()?;
        for number in (1..).take(wanted.nodes) {
            let name = format!("node{number}");
            let cgroup = root.join(&name);
            fs::create_dir_all(cgroup.join("pods"))?;
            let place = self.new_place(&name, cgroup.join("host"))?;
            self.nodes.push(Node {
                number,
                place,
                cgroup,
            });
        }
        if wanted.outside {
            self.outside = Some(self.new_place("outside", root.join("outside"))?);
        }
        let switch = if wanted.outside || wanted.nodes > NODES {
            Some(self.new_place("switch", root.join("switch"))?.netns)
        } else {
            None
        };
        let nodes: Vec<_> = self.nodes.iter().map(|node| node.place.netns.clone()).collect();
        let outside = self.outside.as_ref().map(|place| place.netns.as_str());
        topology::wire_nodes(&nodes, outside, switch.as_deref())?;
        self.record(&self.lock())
    }

    fn new_place(&self, name: &str, cgroup: PathBuf) -> Result<Place> {
        let netns = self.run.netns(name);
        Run::add_netns(std::slice::from_ref(&netns))?;
        topology::prepare(&netns::path(&netns))?;
        fs::create_dir_all(&cgroup).with_context(|| cgroup.display().to_string())?;
        Ok(Place {
            name: name.to_owned(),
            netns,
            cgroup,
            logs: self.folder().join("log"),
        })
    }

    fn record(&self, pods: &[Pod]) -> Result<()> {
        let hosts = self.nodes.iter().map(|node| &node.place).chain(&self.outside);
        places::record(&self.folder(), hosts.chain(pods.iter().map(|pod| &pod.place)))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Pod>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.kept.load(Ordering::Relaxed)
            && let Err(error) = self.tear_down()
        {
            eprintln!("the lab {} could not be removed wholly: {error:#}", self.id());
        }
    }
}

// === impl Node ===

impl Node {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.place.name
    }

    /// Its cgroup, with those of its pods and of its host processes below.
    #[must_use]
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// Its addresses on the link between the nodes.
    #[must_use]
    pub fn addresses(&self) -> (Ipv4Addr, Ipv6Addr) {
        (topology::link_v4(self.number), topology::link_v6(self.number))
    }

    /// Its interface towards the other nodes.
    #[must_use]
    pub fn uplink(&self) -> &'static str {
        topology::UPLINK
    }
}

impl Spawn for Node {
    fn place(&self) -> &Place {
        &self.place
    }
}

/// Writes a file so that a reader sees the old contents or the new.
///
/// # Errors
/// When the folder cannot be written to.
pub fn replace_file(path: &Path, contents: &[u8]) -> Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, contents).with_context(|| new.display().to_string())?;
    fs::rename(&new, path).with_context(|| path.display().to_string())
}

fn socket() -> Result<rustix::fd::OwnedFd> {
    Ok(rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        None,
    )?)
}

/// Thousands of connections are held open in tests and by the benchmark; children inherit the limit.
fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    );
}
