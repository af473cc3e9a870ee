//! A system to measure: a lab with a client, a server near and one far, and the mesh, if any.

use std::{
    fs,
    net::SocketAddr,
    process::Command,
    sync::{Mutex, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde_json::json;
use weir_lab::{Agent, Lab, PATIENCE, Pod, PodSpec, Process, Spawn as _, cgroup, config::SameNodeMode, poll};
use weir_types::FlowPath;

use super::{
    Path, SystemKind,
    load::{self, Load},
};

/// The namespace of all pods.
pub(crate) const NAMESPACE: &str = "bench";
/// The client's name.
pub(crate) const CLIENT: &str = "client";
/// What tells the servers from the client.
pub(crate) const SERVER_LABEL: (&str, &str) = ("role", "server");

const BULK: u16 = 5001;
const RR: u16 = 5002;

/// Fields are dropped in this order: what runs in the lab before the lab.
pub(crate) struct System {
    pub(crate) kind: SystemKind,
    _servers: Vec<Process>,
    agents: Vec<Agent>,
    load: Option<Mutex<Load>>,
    peers: Vec<(Pod, Process)>,
    pub(crate) client: Pod,
    near: Pod,
    far: Pod,
    /// Resident memory of the mesh before any traffic, in bytes.
    pub(crate) idle: u64,
    _lab: Lab,
}

impl System {
    pub(crate) fn start(kind: SystemKind, peer: Option<&str>, peer_wait: f64) -> Result<Self> {
        let lab = Lab::new(kind.name())?;
        let pod = |node, name| PodSpec::new(node, NAMESPACE, name);
        let (label, value) = SERVER_LABEL;
        let client = lab.add_pod(pod("node1", CLIENT))?;
        let near = lab.add_pod(pod("node1", "near").label(label, value))?;
        let far = lab.add_pod(pod("node2", "far").label(label, value))?;
        for pod in [&client, &near, &far] {
            widen_ports(pod)?;
        }
        let mut servers = Vec::new();
        for pod in [&near, &far] {
            for (program, port) in [("bulk-server", BULK), ("rr-server", RR)] {
                let server = pod.testapp([program, "--port", &port.to_string()])?;
                server.wait_listening()?;
                servers.push(server);
            }
        }
        let mut agents = Vec::new();
        let mut peers = Vec::new();
        match (kind, peer) {
            (SystemKind::None, _) => {}
            (SystemKind::Peer, Some(command)) => {
                for pod in [&client, &near, &far] {
                    peers.push((pod.clone(), start_peer(&lab, pod, command)?));
                }
                thread::sleep(Duration::from_secs_f64(peer_wait));
            }
            (SystemKind::Peer, None) => anyhow::bail!("the system `peer` needs --peer-cmd"),
            _ => {
                agents = lab.start_agents_with(|config| {
                    if let Some(mode) = kind.same_node() {
                        config.same_node(mode);
                    }
                    if kind.is_loaded() {
                        load::add(config);
                    }
                    if !kind.records() {
                        config.flows = Some(json!({ "record": false }));
                    }
                })?;
            }
        }
        let load = if kind.is_loaded() {
            Some(Load::new(&agents)?.into())
        } else {
            None
        };
        let mut system = Self {
            kind,
            _servers: servers,
            agents,
            load,
            peers,
            client,
            near,
            far,
            idle: 0,
            _lab: lab,
        };
        system.idle = system.memory()?;
        system.check()?;
        Ok(system)
    }

    pub(crate) fn bulk(&self, path: Path) -> SocketAddr {
        (self.server(path).v4(), BULK).into()
    }

    pub(crate) fn rr(&self, path: Path) -> SocketAddr {
        (self.server(path).v4(), RR).into()
    }

    pub(crate) fn agents(&self) -> &[Agent] {
        &self.agents
    }

    /// The client and the servers.
    pub(crate) fn pods(&self) -> [&Pod; 3] {
        [&self.client, &self.near, &self.far]
    }

    /// Does some work, while the configuration of the agents on the path changes, if this system has to bear that.
    pub(crate) fn under_load<T>(&self, path: Path, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let Some(load) = &self.load else {
            return work();
        };
        // The other node's agent would be on another machine.
        let concerned = match path {
            Path::CrossNode => self.agents.len(),
            Path::SameNode => 1,
        };
        let mut load = load.lock().unwrap_or_else(PoisonError::into_inner);
        load.during(&self.agents[..concerned], work)
    }

    /// Resident memory of the mesh's processes on both nodes, in bytes.
    pub(crate) fn memory(&self) -> Result<u64> {
        let mut pids: Vec<_> = self.agents.iter().map(Agent::pid).collect();
        for (pod, peer) in &self.peers {
            let members = cgroup::processes(pod.place().cgroup())?;
            pids.extend(members.into_iter().filter(|pid| group(*pid) == Some(peer.pid())));
        }
        pids.into_iter().map(resident).sum()
    }

    /// That traffic arrives on both paths, and through the mesh: a benchmark of something else would look splendid.
    fn check(&self) -> Result<()> {
        // The first connection to a pod of the same node goes through the agent also where the next ones do not.
        for path in [Path::CrossNode, Path::SameNode, Path::SameNode] {
            let to = self.rr(path).to_string();
            let what = format!("{}: a first answer, {}", self.kind.name(), path.name());
            poll(&what, PATIENCE, || {
                let done =
                    self.client
                        .run_testapp(["rr-client", &to, "--seconds", "0.01", "--warm-up", "0"])?;
                Ok(done.status.success().then_some(()))
            })?;
        }
        // What records nothing has nothing to tell of the way either.
        let Some(agent) = self.agents.first().filter(|_| self.kind.records()) else {
            return Ok(());
        };
        let flow = |what: &str, path: Path, travels: FlowPath| {
            let to = self.rr(path);
            agent.wait_flow(what, |flow| {
                flow.destination.address == to && flow.path == travels
            })
        };
        flow(
            "a tunnelled flow between the nodes",
            Path::CrossNode,
            FlowPath::Tunnel,
        )?;
        if self.kind.is_direct() {
            flow(
                "a direct flow between pods of one node",
                Path::SameNode,
                FlowPath::Direct,
            )?;
        } else if self.kind.same_node() == Some(SameNodeMode::Mtls) {
            flow(
                "a tunnelled flow between pods of one node",
                Path::SameNode,
                FlowPath::Tunnel,
            )?;
        }
        Ok(())
    }

    fn server(&self, path: Path) -> &Pod {
        match path {
            Path::CrossNode => &self.far,
            Path::SameNode => &self.near,
        }
    }
}

/// Once half of the ephemeral ports are in TIME_WAIT, finding a free one takes milliseconds instead of microseconds,
/// and the connection rate measured is that of the search.
fn widen_ports(pod: &Pod) -> Result<()> {
    pod.sysctl(&[
        ("net/ipv4/ip_local_port_range", "1024 65535"),
        ("net/ipv4/ip_local_reserved_ports", "5001-5002,15000-15100"),
        ("net/ipv4/tcp_tw_reuse", "1"),
        ("net/ipv4/tcp_max_tw_buckets", "1000"),
    ])
}

fn start_peer(lab: &Lab, pod: &Pod, command: &str) -> Result<Process> {
    let workloads = lab.folder().join("workloads.yaml");
    let config = lab.config(&pod.spec().node)?;
    let text = serde_saphyr::to_string(&config.workloads).context("the workloads as YAML")?;
    fs::write(&workloads, text)?;
    let node = lab.node(&pod.spec().node)?;
    let mut shell = Command::new("sh");
    shell.args(["-c", command]);
    shell.env("POD_NAME", &pod.spec().name).env("POD_UID", pod.uid());
    shell
        .env("POD_NAMESPACE", &pod.spec().namespace)
        .env("POD_SERVICE_ACCOUNT", &pod.spec().service_account);
    shell
        .env("POD_IP", pod.v4().to_string())
        .env("POD_IP6", pod.v6().to_string());
    shell
        .env("POD_NETNS", pod.place().netns_path())
        .env("NODE", node.name());
    shell
        .env("NODE_NETNS", node.place().netns_path())
        .env("LAB_DIR", lab.folder())
        .env("WORKLOADS", workloads);
    pod.spawn(shell)
}

/// A process's group.
fn group(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(2)?.parse().ok()
}

pub(super) fn resident(pid: u32) -> Result<u64> {
    let status =
        fs::read_to_string(format!("/proc/{pid}/status")).context("a process of the mesh has ended")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .context("no VmRSS: it is a zombie")?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib * 1024)
}
