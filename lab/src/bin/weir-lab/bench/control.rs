//! What the control plane takes in a large cluster: weir-control as it is installed, against an API server in memory, with the
//! agents of all nodes in a process of their own.

mod agents;
mod client;
mod cluster;
mod measure;
mod plan;

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};
use tempfile::TempDir;
use weir_lab::{Process, poll, program, signal::INTERRUPTED};

use super::{Narrator, figures::Figure};
use cluster::Cluster;
use plan::{Answer, Ask, Plan};

/// In the folder that this process and that of the agents share.
const PLAN: &str = "plan.json";
const SOCKET: &str = "socket";
/// Agents that ask for a few names, besides those that subscribe to everything.
const ON_DEMAND: usize = 20;
/// How long anything may take that is waited for.
const PATIENCE: Duration = Duration::from_secs(180);
/// How long the agents' process may take for an answer: it is as busy as weir-control.
const ANSWER: Duration = Duration::from_secs(60);

/// How large the cluster is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size {
    pods: usize,
    services: usize,
    nodes: usize,
    policies: usize,
    /// Single pods that change.
    changes: usize,
}

/// The processes.
struct Stage {
    cluster: Cluster,
    control: Process,
    metrics: SocketAddr,
    /// When weir-control was started.
    started: u64,
    agents: Process,
    socket: BufReader<UnixStream>,
    folder: TempDir,
}

/// Measures the control plane.
pub(super) fn run(quick: bool, tell: Narrator) -> Result<Vec<Figure>> {
    let size = if quick { Size::SMALL } else { Size::PROMISED };
    tell.say(format!(
        "filling an API server: {} pods, {} services, {} nodes",
        size.pods, size.services, size.nodes
    ));
    let mut stage = Stage::new(size)?;
    let measured = measure::all(&mut stage, tell);
    measured.with_context(|| {
        let log = stage.control.stderr();
        let last: Vec<&str> = log.lines().rev().take(10).collect();
        format!(
            "weir-control's last words, the latest first:\n{}\nthe agents':\n{}",
            last.join("\n"),
            stage.agents.stderr()
        )
    })
}

/// The process of the agents, of which the benchmark starts one.
pub(super) fn run_agents(folder: &Path) -> Result<()> {
    agents::run(folder)
}

// === impl Size ===

impl Size {
    const PROMISED: Self = Self {
        pods: 20_000,
        services: 2_000,
        nodes: 200,
        policies: 300,
        changes: 300,
    };
    const SMALL: Self = Self {
        pods: 2_000,
        services: 200,
        nodes: 20,
        policies: 50,
        changes: 40,
    };

    fn pods_of_node(self) -> usize {
        self.pods / self.nodes
    }
}

// === impl Stage ===

impl Stage {
    fn new(size: Size) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("weir-bench-").tempdir()?;
        remove_at_signal(folder.path().to_owned())?;
        let path = |name: &str| folder.path().join(name);
        let cluster = Cluster::new(size, &path("kubeconfig"))?;
        let (control, metrics) = (free_address()?, free_address()?);
        let tokens = cluster.agents()?;
        let on_demand = tokens.iter().take(ON_DEMAND).enumerate();
        let plan = Plan {
            control,
            roots: path("roots.pem"),
            on_demand: on_demand
                .map(|(number, agent)| cluster.on_demand(number, agent))
                .collect(),
            agents: tokens,
        };
        std::fs::write(path(PLAN), serde_json::to_vec(&plan)?)?;
        let listener = UnixListener::bind(path(SOCKET))?;
        listener.set_nonblocking(true)?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["bench", "--agents-of"]).arg(folder.path());
        let mut agents = Process::beside("the agents", command, path("agents.log"))?;
        let socket = poll("the agents' process", PATIENCE, || {
            ensure!(
                agents.ended()?.is_none(),
                "the agents' process ended: {}",
                agents.stderr()
            );
            match listener.accept() {
                Ok((socket, _)) => Ok(Some(socket)),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
                Err(error) => Err(error.into()),
            }
        })?;
        socket.set_nonblocking(false)?;
        socket.set_read_timeout(Some(ANSWER))?;
        let mut command = Command::new(program("weir-control")?);
        command
            .env("KUBECONFIG", path("kubeconfig"))
            .args([
                "--listen",
                &control.to_string(),
                "--metrics",
                &metrics.to_string(),
            ])
            .args(["--server-name", &control.ip().to_string()]);
        let started = plan::now();
        let control = Process::beside("weir-control", command, path("control.log"))?;
        Ok(Self {
            cluster,
            control,
            metrics,
            started,
            agents,
            socket: BufReader::new(socket),
            folder,
        })
    }

    /// Hands the roots on, as the kubelet does with a ConfigMap that is mounted.
    fn publish_roots(&mut self) -> Result<()> {
        let roots = poll("the roots of weir-control", PATIENCE, || {
            self.check()?;
            self.cluster.roots()
        })?;
        weir_lab::replace_file(&self.folder.path().join("roots.pem"), roots.as_bytes())
    }

    fn ask(&mut self, ask: Ask) -> Result<Answer> {
        self.check()?;
        writeln!(self.socket.get_mut(), "{}", serde_json::to_string(&ask)?)?;
        let mut line = String::new();
        self.socket
            .read_line(&mut line)
            .context("the agents' process does not answer")?;
        Ok(serde_json::from_str(&line)?)
    }

    /// That both processes still run.
    fn check(&mut self) -> Result<()> {
        for process in [&mut self.control, &mut self.agents] {
            if let Some(status) = process.ended()? {
                anyhow::bail!("a process ended: {status}");
            }
        }
        Ok(())
    }

    /// Waits until something holds that the agents tell.
    fn wait<T>(&mut self, what: &str, ask: Ask, wanted: impl Fn(&Answer) -> Option<T>) -> Result<T> {
        /// Often enough for figures in seconds: times are the agents' own.
        const PAUSE: Duration = Duration::from_millis(250);
        let end = Instant::now() + PATIENCE;
        loop {
            let answer = self.ask(ask)?;
            if let Some(wanted) = wanted(&answer) {
                return Ok(wanted);
            }
            ensure!(
                Instant::now() < end,
                "not within {PATIENCE:?}: {what}; agents that have everything: {} and {}; failures: {:?}",
                answer.received.whole,
                answer.on_demand.whole,
                answer.failures,
            );
            thread::sleep(PAUSE);
        }
    }
}

fn free_address() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    Ok(listener.local_addr()?)
}

/// The processes die with this one; the folder would stay.
fn remove_at_signal(folder: PathBuf) -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    thread::spawn(move || {
        if signals.forever().next().is_some() {
            let _ = std::fs::remove_dir_all(&folder);
            std::process::exit(INTERRUPTED);
        }
    });
    Ok(())
}
