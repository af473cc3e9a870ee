//! The control plane as a whole: starts its parts, and stops them.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use jiff::Timestamp;
use kube::Client;
use prometheus::{IntGaugeVec, Opts, Registry};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::{Notify, mpsc},
    task::JoinSet,
};
use tonic::transport::Server;
use weir_types::{Identity, TrustDomain};

use crate::{
    ads::{Ads, Authenticate, Limits, Store},
    auth::{AgentAccount, AuthLimits, KubePods, TokenAuthenticator},
    ca::{AuthoritySecret, CaLimits, CertificateService, Entitlements, Keys, Scope, SecretName, Source},
    compile::{Settings, Unentitled},
    engine::Engine,
    flows::{self, FlowLimits, FlowService},
    overview::{Overview, Parts},
    publish,
    reports::{ReportService, Reports},
    server::{self, OwnCertificate},
    status::{Pace, Wanted, Writer, plan},
    watch::{self as watches, QUEUE},
};

/// How often a silent agent is asked whether it is there, and how long it may take to say so: HBONE's figures.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(20));
/// What an agent may send before it is read: its requests are small, and many come back at once.
const WINDOW: u32 = 65_535;
/// Calls of one agent at once: a stream of each kind, and certificates for the pods of its node.
const CALLS: u32 = 256;
/// How fast is written to the cluster: others wait for the annotation of a pod that was enrolled, and a namespace that joins
/// the mesh may have a thousand.
const PACE: Pace = Pace {
    coalesce: Duration::from_millis(50),
    per_second: 50,
    rest: Duration::from_secs(3),
    retry: Duration::from_millis(500),
    retry_most: Duration::from_secs(60),
    timeout: Duration::from_secs(15),
};
/// How long open streams may take to end when the process stops.
const DRAIN: Duration = Duration::from_secs(5);

/// What the control plane is to be.
#[derive(Debug)]
pub struct Options {
    /// Where agents connect to.
    pub listen: SocketAddr,
    /// Where metrics and readiness are served.
    pub metrics: SocketAddr,
    /// Names in the certificate of that port.
    pub server_names: Vec<String>,
    /// What holds for the whole cluster.
    pub settings: Settings,
    /// The mesh's trust domain.
    pub trust_domain: TrustDomain,
    /// Who agents are.
    pub account: AgentAccount,
    /// The Secret of the authority.
    pub authority: SecretName,
    /// Where what is in it comes from.
    pub source: Source,
    /// The Secret of the authority of the flows' certificates, in the same namespace.
    pub flows_authority: String,
    /// Whether Istio's policies count.
    pub istio_policies: bool,
    /// Whether nodes that are not ready get the taint that keeps pods off until their agent is ready.
    pub taint_starting_nodes: bool,
    /// This replica's name, for events.
    pub instance: String,
}

/// Grants the identities of pods that are to be enrolled on a node.
struct Pods {
    engine: Arc<Engine>,
    trust_domain: TrustDomain,
}

impl Entitlements for Pods {
    fn entitled(&self, node: &str, identity: &Identity) -> Result<(), Unentitled> {
        if *identity.trust_domain() != self.trust_domain {
            return Err(Unentitled::NoPod);
        }
        let compiler = self.engine.compiler();
        compiler.entitled(node, identity.namespace(), identity.service_account())
    }
}

/// Runs the control plane until it is told to stop.
///
/// # Errors
/// When it cannot start.
pub fn run(options: Options) -> anyhow::Result<()> {
    // Before there are keys in memory: no core dumps, no ptrace by other processes of the same user.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .context("core dumps cannot be switched off")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(serve(options));
    runtime.shutdown_background();
    result
}

async fn serve(options: Options) -> anyhow::Result<()> {
    let client = Client::try_default()
        .await
        .context("the API server cannot be found: no service account, and no KUBECONFIG")?;
    let port = weir_admin::bind(options.metrics)
        .await
        .with_context(|| format!("--metrics: {} cannot be opened", options.metrics))?;
    let listener = TcpListener::bind(options.listen)
        .await
        .with_context(|| format!("--listen: {} cannot be opened", options.listen))?;
    let registry = Registry::new();
    let flows_secret = SecretName {
        namespace: options.authority.namespace.clone(),
        name: options.flows_authority,
    };
    let flows_secret = AuthoritySecret::new(client.clone(), flows_secret, Scope::Flows);
    let flows_keys = Keys::new(flows_secret, Source::Own, &registry)?;
    let secret = AuthoritySecret::new(client.clone(), options.authority, options.trust_domain.clone());
    let keys = Keys::new(secret, options.source, &registry)?;
    let store = Arc::new(Store::new());
    let root_namespace = options.settings.root_namespace.clone();
    let engine = Arc::new(Engine::new(options.settings, store.clone()));
    let reports = Arc::new(Reports::default());
    let agent_namespace = options.account.namespace.clone();
    let callers = Arc::new(TokenAuthenticator::new(
        client.clone(),
        options.account,
        Arc::new(KubePods::new(client.clone())),
        AuthLimits::default(),
        &registry,
    )?);
    let authenticate: Arc<dyn Authenticate> = callers.clone();
    let flows_authority = flows::Authority::new(&flows_keys);
    let flow_certificates =
        FlowService::new(callers, flows_authority.clone(), FlowLimits::default(), &registry)?;
    let entitlements = Arc::new(Pods {
        engine: engine.clone(),
        trust_domain: options.trust_domain.clone(),
    });
    let certificates = CertificateService::new(
        options.trust_domain,
        authenticate.clone(),
        entitlements,
        keys.in_force(),
        CaLimits::default(),
        &registry,
    )?;
    let ads = Ads::new(store.clone(), authenticate.clone(), Limits::default(), &registry)?;

    let mut tasks = JoinSet::new();
    {
        let keys = keys.clone();
        tasks.spawn(async move { keys.run().await });
    }
    tasks.spawn(async move { flows_authority.run(&flows_keys).await });
    let own = Arc::new(OwnCertificate::default());
    {
        let (own, in_force, names) = (own.clone(), keys.in_force(), options.server_names);
        tasks.spawn(async move { own.keep(in_force, &names).await });
    }
    tasks.spawn(publish::revocations(
        store.clone(),
        keys.in_force(),
        keys.revocation_lists(),
    ));
    tasks.spawn(publish::roots(client.clone(), agent_namespace, keys.in_force()));
    let help = "1 while changes of a kind do not arrive from the API server.";
    let failing = IntGaugeVec::new(Opts::new("weir_watch_failing", help), &["kind"])?;
    registry.register(Box::new(failing.clone()))?;
    let (batches, incoming) = mpsc::channel(QUEUE);
    let kinds = watches::start(&client, options.istio_policies, &failing, &batches, &mut tasks);
    let waiting = batches.downgrade();
    drop(batches);
    {
        let engine = engine.clone();
        tasks.spawn(async move { engine.run(incoming, &kinds).await });
    }
    tasks.spawn(write_status(
        Writer::new(client, options.instance, PACE),
        engine.clone(),
        reports.clone(),
        root_namespace,
        options.taint_starting_nodes,
    ));
    let parts = Parts {
        synced: engine.synced(),
        in_force: keys.in_force(),
        keys,
        store,
        reports: reports.clone(),
        batches: waiting,
    };
    let overview = Overview::new(registry, parts)?;
    tasks.spawn(weir_admin::serve(port, Arc::new(overview)));
    let connections = server::accept(listener, server::tls(own)?);
    let router = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE.0))
        .http2_keepalive_timeout(Some(KEEPALIVE.1))
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_concurrent_streams(CALLS)
        .add_service(ads.service())
        .add_service(certificates.service())
        .add_service(flow_certificates.service())
        .add_service(ReportService::new(reports, authenticate));
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = tokio::spawn(router.serve_with_incoming_shutdown(connections, async {
        let _ = stopped.await;
    }));
    tracing::info!(listen = %options.listen, "started");
    tokio::select! {
        signal = stop_signal() => signal?,
        ended = tasks.join_next() => {
            // None of them ends by itself.
            anyhow::bail!("a part of the control plane ended: {ended:?}");
        }
    }
    tracing::info!("stopping");
    ads.drain();
    let _ = stop.send(());
    // Agents connect to another replica meanwhile.
    let _ = tokio::time::timeout(DRAIN, serving).await;
    Ok(())
}

/// Writes to the cluster what it should say, whenever that may be something else than before.
async fn write_status(
    writer: Writer,
    engine: Arc<Engine>,
    reports: Arc<Reports>,
    root_namespace: String,
    taint_starting: bool,
) {
    let changed = Arc::new(Notify::new());
    let (mut revisions, mut said) = (engine.revisions(), reports.changes());
    let mut synced = engine.synced();
    // What is not known yet would be taken back.
    if synced.wait_for(|synced| *synced).await.is_err() {
        return;
    }
    changed.notify_one();
    let mut wanted = Wanted::default();
    let plans = move || {
        // Before anything is looked at: what changes meanwhile is looked at again.
        let (mut pods, nodes) = (engine.take_touched(), reports.take_touched());
        let (reports, present) = (reports.all(), engine.present());
        let compiler = engine.compiler();
        let of_nodes = nodes.iter().flat_map(|node| compiler.pods_of_node(node));
        pods.extend(of_nodes.cloned());
        wanted.look(&compiler, &reports, &present, &pods);
        let desired = wanted.desired(&compiler, &reports, &present, &root_namespace, taint_starting);
        plan(&desired, &present, Timestamp::now())
    };
    let watch = async {
        loop {
            let alive = tokio::select! {
                changed = revisions.changed() => changed.is_ok(),
                changed = said.changed() => changed.is_ok(),
            };
            if !alive {
                return;
            }
            changed.notify_one();
        }
    };
    tokio::select! {
        () = watch => {}
        () = writer.run(changed.clone(), plans) => {}
    }
}

async fn stop_signal() -> anyhow::Result<()> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}
