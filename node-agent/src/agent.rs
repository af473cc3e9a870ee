//! The agent as a whole: starts its parts, applies configurations, tells its state, stops.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use aya::maps::{MapData, RingBuf};
use jiff::Timestamp;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinSet,
};
use weir_hubble::{observer::Source as _, serve::Connections};
use weir_tunnel::{
    ca::{CertificateAuthority, Issuer},
    certs::{CertificateStore, Settings},
};
use weir_types::{TrafficDirection, api::ConfigStatus};

use crate::{
    api, cni,
    config::{self, ConfigFile, SameNodeConfig},
    control::{self, ControlPlane, RemoteIssuer, State},
    datapath::{Datapath, Pins, events, sock_diag},
    enrol::Enrolment,
    export,
    flows::FlowLog,
    hubble::{self, OwnCertificate},
    kubelet,
    mesh::{Change, Mesh},
    metrics::Metrics,
    netns::NetNs,
    node::Node,
    observe, reload, revalidate,
    serve::Serve,
    takeover,
};

/// The agent renews the lease of its decisions this many times in the lease.
const HEARTBEATS: u32 = 5;
/// How often entries of connections are looked for that nobody else removes.
const SWEEP: Duration = Duration::from_secs(60);
/// How often events that the kernel lost are counted.
const LOST_INTERVAL: Duration = Duration::from_secs(1);
/// How long open connections may take to end when the agent stops.
const DRAIN: Duration = Duration::from_secs(10);
/// How often it is looked whether they have.
const DRAIN_INTERVAL: Duration = Duration::from_millis(50);

/// The agent.
pub struct Agent {
    /// The state of the node.
    pub node: Arc<Node>,
    /// Pods coming and going.
    pub enrolment: Enrolment,
    pub(crate) trust_domain: String,
    pub(crate) started: Timestamp,
    ready: AtomicBool,
    config: Mutex<ConfigStatus>,
    pub(crate) faults: Mutex<BTreeMap<&'static str, String>>,
    /// What is known of the connection to the control plane, if there is one.
    pub(crate) control: Option<Arc<State>>,
    /// That of the port for flows, if the control plane gives it.
    pub(crate) flows_certificate: Option<OwnCertificate>,
    /// How pods of this node reach each other, as the file says it.
    same_node: watch::Sender<SameNodeConfig>,
}

/// Runs the agent until it is told to stop.
///
/// # Errors
/// When it cannot start.
pub async fn run(
    source: config::Source,
    config: ConfigFile,
    ca: Option<CertificateAuthority>,
    seen: reload::Seen,
    cgroup: PathBuf,
    standby: bool,
) -> anyhow::Result<()> {
    let port = weir_admin::bind(config.metrics.address)
        .await
        .with_context(|| format!("the metrics port {} cannot be opened", config.metrics.address))?;
    let control_plane = config
        .control_plane
        .as_ref()
        .map(|own| ControlPlane::new(&own.value));
    let pins = if standby {
        takeover::stand_by(&config.pin_dir, &port, control_plane.as_ref()).await?
    } else {
        Pins::claim_soon(&config.pin_dir)?
    };
    let metrics = Metrics::new();
    let lifetime = config.certificates.lifetime.value.0;
    let flows_certificate = match (&config.hubble, &control_plane) {
        (Some(own), Some(control_plane)) if own.value.files().is_none() => {
            let node = &config.node.value;
            Some(OwnCertificate::keep(control_plane, node, lifetime, &metrics))
        }
        _ => None,
    };
    let hubble_port = match &config.hubble {
        Some(own) => Some(hubble::open(&own.value, flows_certificate.as_ref()).await?),
        None => None,
    };
    let socket = api::bind_for(&config.api.socket, config.api.group)
        .with_context(|| format!("the API socket {} cannot be opened", config.api.socket.display()))?;
    let cni = config.cni.as_ref().map(|own| own.value.clone());
    let cni_socket = match &cni {
        Some(cni) => Some(
            cni::server::bind(&cni.socket)
                .with_context(|| format!("the CNI socket {} cannot be opened", cni.socket.display()))?,
        ),
        None => None,
    };
    let api_port = match config.api.address {
        Some(address) => Some(
            tokio::net::TcpListener::bind(address)
                .await
                .with_context(|| format!("the API port {address} cannot be opened"))?,
        ),
        None => None,
    };
    let settings = Settings {
        trust_domain_aliases: config.trust_domain_aliases.clone(),
        lifetime,
        observer: Arc::new(metrics.clone()),
        ..Settings::new(config.trust_domain.clone())
    };
    let issuer: Arc<dyn Issuer> = match (ca, &control_plane) {
        (Some(ca), _) => Arc::new(ca),
        (None, Some(control_plane)) => Arc::new(RemoteIssuer::new(control_plane.clone())),
        (None, None) => anyhow::bail!("there is nobody to sign certificates"),
    };
    let certificates = CertificateStore::new(issuer, settings);
    let records = config.flows.value.record;
    let (datapath, ring) = Datapath::load(pins, &cgroup, config.verdict_lease.value.0, records)?;
    let home =
        NetNs::open("/proc/thread-self/ns/net".as_ref()).context("the agent's own network namespace")?;
    // Until it is found: what an earlier agent knew of it may not be true any more.
    datapath.set_kubelet(None, home.cookie())?;
    let no_destroy = sock_diag::check(&home).err().map(|error| error.to_string());
    if let Some(problem) = &no_destroy {
        tracing::warn!(
            problem,
            "this kernel does not end connections on request: pods of this node use mutual TLS"
        );
    }
    let capacity = config.flows.value.capacity as usize;
    let flows = FlowLog::new(&config.node.value, capacity, metrics.clone())
        .recording(records)
        .tracing(config.flows.value.tracing());
    let node = Arc::new(Node::new(
        config.node.value.clone(),
        datapath,
        flows,
        metrics,
        certificates,
        no_destroy,
    ));
    let serve = Serve::new(node.clone());
    let enrolment = Enrolment::new(node.clone(), serve)?;
    let agent = Arc::new(Agent {
        node,
        enrolment,
        trust_domain: config.trust_domain.to_string(),
        started: Timestamp::now(),
        ready: AtomicBool::new(false),
        config: Mutex::new(ConfigStatus {
            file: source.file.display().to_string(),
            applied: Timestamp::now(),
            generation: 0,
            rejected: None,
        }),
        faults: Mutex::default(),
        control: control_plane
            .as_ref()
            .map(|own| Arc::new(State::new(&own.address().to_string()))),
        flows_certificate,
        same_node: watch::Sender::new(config.same_node.value.clone()),
    });
    if agent.control.is_none() {
        agent.apply(&config)?;
        agent.start();
    }
    // All that may not go on once another agent has taken over.
    let mut tasks = JoinSet::new();
    // Once the pods are known: events that waited are then told with their names.
    tasks.spawn(record_events(agent.clone(), ring));
    tasks.spawn(heartbeat(
        agent.clone(),
        config.verdict_lease.value.0 / HEARTBEATS,
    ));
    tasks.spawn(look_after_kernel(agent.clone()));
    if let Some(place) = &config.kubelet_cgroup {
        tasks.spawn(kubelet::look_for(agent.clone(), place.clone(), home.cookie()));
    }
    let records = hubble::Records::new(&agent, config.hubble.as_ref().map(|own| &own.value));
    export::start(
        &config.flows.value,
        &agent.node.flows,
        &agent.node.metrics,
        records.origin(),
        export::About {
            node: agent.node.name.clone(),
            cluster: config.control_plane.as_ref().map(|own| own.value.cluster.clone()),
        },
    )
    .context("flows cannot be written")?;
    let (connections, serving) = Connections::serve(Arc::new(records));
    tasks.spawn(async move {
        if let Err(error) = serving.await {
            tracing::error!(%error, "flows are served no more by gRPC");
        }
    });
    let socket = api::Socket {
        listener: socket,
        group: config.api.group,
    };
    tasks.spawn(api::serve(socket, agent.clone(), connections.clone()));
    if let Some(port) = api_port {
        tasks.spawn(api::serve(port, agent.clone(), connections.clone()));
    }
    if let Some(port) = hubble_port {
        tasks.spawn(hubble::serve(port, connections));
    }
    tokio::spawn(weir_admin::serve(port, agent.clone()));
    if let (Some(cni), Some(socket)) = (cni.clone(), cni_socket) {
        tasks.spawn(cni::server::serve(socket, agent.clone()));
        tasks.spawn(cni::state::keep(agent.clone(), cni.state_file.clone()));
        tasks.spawn(cni::install::keep(agent.clone(), cni));
    }
    let mut following = JoinSet::new();
    if let (Some(control_plane), Some(state)) = (control_plane, &agent.control) {
        let same_node = agent.same_node.subscribe();
        let domain = config.trust_domain.clone();
        if control_plane.takes_reports() {
            following.spawn(control::report(agent.clone(), control_plane.clone()));
        }
        following.spawn(control::follow(
            agent.clone(),
            control_plane,
            state.clone(),
            domain,
            same_node,
        ));
    }
    let (socket_path, pins) = (config.api.socket.clone(), config.pin_dir.clone());
    tasks.spawn(reload::watch(agent.clone(), source, config, seen));
    tokio::select! {
        signal = stop_signal() => signal?,
        // Neither ends by itself. Without them the agent would go stale in silence.
        Some(ended) = following.join_next() => anyhow::bail!("following the control plane ended: {ended:?}"),
    }
    if let Some(cni) = &cni {
        // A pod that starts from now on waits for the next agent, instead of being enrolled by one that stops.
        let _ = std::fs::remove_file(&cni.socket);
    }
    if standby {
        // What is known from here on grows old: nobody is told that a pod is outside of the mesh.
        agent.ready.store(false, Ordering::Release);
        if let Some(state) = &agent.control {
            state.disconnected("this agent stops".to_owned());
        }
        following.shutdown().await;
        tasks.shutdown().await;
        let _ = std::fs::remove_file(&socket_path);
        agent.node.datapath.give_up();
        takeover::handed_over(&pins, &socket_path).await;
    }
    agent.drain().await;
    if !standby {
        let _ = std::fs::remove_file(socket_path);
    }
    Ok(())
}

pub(crate) async fn stop_signal() -> anyhow::Result<()> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

async fn record_events(agent: Arc<Agent>, ring: RingBuf<MapData>) {
    let node = agent.node.clone();
    if let Err(error) = events::read(ring, |event| observe::record(&node, event)).await {
        tracing::error!(%error, "kernel events can no longer be read");
        agent.fault(
            "kernel events",
            Some(format!(
                "no longer read, flows past the agent are missing: {error}"
            )),
        );
    }
}

/// Tells the kernel that the agent lives.
async fn heartbeat(agent: Arc<Agent>, interval: Duration) {
    let mut ticks = tokio::time::interval(interval);
    loop {
        ticks.tick().await;
        if let Err(error) = agent.node.datapath.heartbeat() {
            tracing::error!(%error, "the lease of the kernel's verdicts cannot be renewed");
        }
    }
}

/// Counts events that the kernel lost, and removes what is left over in its tables.
async fn look_after_kernel(agent: Arc<Agent>) {
    let mut ticks = tokio::time::interval(LOST_INTERVAL);
    let mut lost = agent.node.datapath.lost_events();
    let mut last = tokio::time::Instant::now();
    loop {
        ticks.tick().await;
        let now = agent.node.datapath.lost_events();
        if now > lost {
            agent.node.flows.lose(now - lost);
            agent.node.metrics.kernel_events_lost.inc_by(now - lost);
            lost = now;
        }
        if last.elapsed() >= SWEEP {
            last = tokio::time::Instant::now();
            let node = &agent.node;
            tokio::task::block_in_place(|| node.datapath.sweep(|pod| node.pod_by_handle(pod).is_some()));
        }
    }
}

impl weir_admin::Admin for Agent {
    fn metrics(&self) -> Vec<u8> {
        self.refresh_metrics();
        self.node.metrics.render()
    }

    fn not_ready(&self) -> Option<String> {
        self.unready().map(str::to_owned)
    }
}

impl Agent {
    /// Puts a configuration in force. Connections that it does not concern go on.
    ///
    /// # Errors
    /// When the kernel refuses it; the old one stays in force.
    pub fn apply(&self, config: &ConfigFile) -> anyhow::Result<()> {
        if self.control.is_some() {
            // All else comes from there.
            self.same_node.send_replace(config.same_node.value.clone());
            return Ok(());
        }
        let previous = self.node.mesh.load_full();
        let (mesh, change) = Mesh::new(config, &previous)?;
        self.put(mesh, &change, &previous)?;
        tracing::info!(generation = self.config().generation, "configuration applied");
        Ok(())
    }

    /// Says that what there is is known: what an earlier agent left of it is kept, all else goes, and traffic is taken.
    pub fn start(&self) {
        tokio::task::block_in_place(|| {
            self.enrolment.reap();
            if let Err(error) = self.node.datapath.remove_other_versions() {
                tracing::error!(%error, "the programs of another version are still in place");
            }
        });
        self.ready.store(true, Ordering::Release);
        tracing::info!(node = self.node.name, pods = self.node.pods().len(), "ready");
    }

    /// Puts a mesh in force.
    ///
    /// # Errors
    /// When the kernel refuses it; the old one stays in force.
    pub fn put(&self, mesh: Mesh, change: &Change, previous: &Mesh) -> anyhow::Result<()> {
        let mesh = Arc::new(mesh);
        // First the kernel, which forgets what was decided before: a verdict is written only if the configuration that it
        // was decided under is the one that the kernel knew when the connection was made.
        if change.is_everything() {
            self.node.datapath.set_generation(mesh.generation())?;
        }
        self.node.mesh.store(mesh.clone());
        if let Change::Addresses(addresses) = change {
            self.node.datapath.forget(addresses.iter().copied());
        }
        tokio::task::block_in_place(|| {
            self.enrolment.reconcile();
            if change.is_everything() {
                revalidate::all(&self.node);
                self.warn(&mesh, previous);
            }
        });
        let generation = mesh.version();
        let identities = self
            .node
            .mesh
            .load()
            .local()
            .values()
            .filter(|pod| !pod.observed)
            .map(|pod| pod.workload.identity.clone())
            .collect();
        self.node.certificates.retain(&identities);
        for identity in identities {
            let certificates = self.node.certificates.clone();
            // Early, so that the first connection does not wait for it. A failure shows in the status.
            tokio::spawn(async move { certificates.certificate(&identity).await.map(drop) });
        }
        let mut status = self.config();
        status.generation = generation;
        status.applied = Timestamp::now();
        status.rejected = None;
        self.node.metrics.generation.set(i64::from(generation));
        self.node.metrics.config_rejected.set(0);
        Ok(())
    }

    /// Says what of the policies may not do what was meant, when that changed.
    fn warn(&self, mesh: &Mesh, previous: &Mesh) {
        for warning in mesh.warnings() {
            if !previous.warnings().contains(warning) {
                tracing::warn!("{warning}");
            }
        }
    }

    /// Notes that the file's newest contents are not in force.
    pub fn reject(&self, problem: String) {
        self.config().rejected = Some(problem);
        self.node.metrics.config_rejected.set(1);
    }

    /// Notes what is wrong with a part of the agent, or that nothing is any more.
    pub fn fault(&self, part: &'static str, problem: Option<String>) {
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        match problem {
            Some(problem) => drop(faults.insert(part, problem)),
            None => drop(faults.remove(part)),
        }
    }

    /// Why the agent is not ready to take traffic, if it is not.
    #[must_use]
    pub fn unready(&self) -> Option<&'static str> {
        if self.node.drain.is_cancelled() {
            Some("stopping")
        } else if !self.ready.load(Ordering::Acquire) {
            Some("starting")
        } else {
            None
        }
    }

    /// Takes no new connections and waits for the open ones, a while.
    async fn drain(&self) {
        self.node.drain.cancel();
        let open = || {
            self.node
                .pods()
                .iter()
                .map(|pod| pod.connections.load(Ordering::Relaxed))
                .sum::<u64>()
        };
        tracing::info!(connections = open(), "stopping");
        let deadline = tokio::time::Instant::now() + DRAIN;
        // A peer's tunnel also where it carries nothing: it has been told, but may just have asked for something.
        let tunnels = || {
            let mut tunnels = self.node.tunnels.open().into_iter();
            tunnels.any(|tunnel| tunnel.direction == TrafficDirection::Ingress)
        };
        while (open() > 0 || tunnels()) && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(DRAIN_INTERVAL).await;
        }
    }

    pub(crate) fn config(&self) -> MutexGuard<'_, ConfigStatus> {
        // Its fields stand for themselves, so a panic elsewhere does not spoil it.
        self.config.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
