//! `weir-agent`: the node agent of Weir.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::Parser;
use weir_admin::LogOptions;
use weir_agent::{agent, cni, config, datapath, reload, takeover};
use weir_tunnel::ca::CertificateAuthority;

/// Measured to matter for TLS bulk transfer: buffers of all sizes come and go on every thread.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// The configuration is wrong.
const EXIT_CONFIG: u8 = 2;
/// The machine lacks something.
const EXIT_MACHINE: u8 = 3;

/// Carries the connections of this node's pods over mutual TLS, and records them.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:\n  \
        weir-agent --config /etc/weir/agent.yaml\n  \
        weir-agent --config agent.yaml --check      check the file and the machine, attach nothing\n  \
        weir-agent --schema > agent.schema.json     the file's JSON schema, for an editor\n  \
        weir-agent --config agent.yaml --detach     take the kernel programs and the CNI plugin of a stopped agent out\n\n\
        Exit codes: 0 stopped when asked, 1 failed, 2 the configuration is wrong, 3 the machine lacks something."
)]
struct Arguments {
    /// The configuration file; applied again whenever it changes.
    #[arg(long, value_name = "FILE", required_unless_present = "schema")]
    config: Option<PathBuf>,
    /// Check the configuration and the machine, then exit.
    #[arg(long)]
    check: bool,
    /// Print the JSON schema of the configuration file, then exit.
    #[arg(long)]
    schema: bool,
    /// Detach the kernel programs, remove the pinned maps and take the CNI plugin out that an agent with this configuration left, then exit.
    #[arg(long, conflicts_with = "check")]
    detach: bool,
    /// After detaching wait until stopped, and answer at /readyz: so that a DaemonSet can detach on every node.
    #[arg(long, requires = "detach")]
    hold: bool,
    /// The node's name, in place of the file's: for a file that all nodes share.
    #[arg(long, value_name = "NAME", env = "WEIR_NODE")]
    node: Option<String>,
    /// Folder of the cgroup v2 tree whose processes are seen, in place of the file's.
    #[arg(long, value_name = "PATH", env = "WEIR_CGROUP")]
    cgroup: Option<PathBuf>,
    /// If another agent is at work on this node, wait until it stops, and take over from it without a gap.
    #[arg(long, conflicts_with_all = ["check", "detach"])]
    standby: bool,
    #[command(flatten)]
    log: LogOptions,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.schema {
        println!("{:#}", config::schema());
        return ExitCode::SUCCESS;
    }
    if let Err(error) = arguments.log.start() {
        eprintln!("weir-agent: {error:#}");
        return ExitCode::from(EXIT_CONFIG);
    }
    // Required unless the schema was asked for.
    let source = config::Source {
        file: arguments.config.clone().unwrap_or_default(),
        // An empty variable says nothing.
        node: arguments.node.clone().filter(|node| !node.is_empty()),
        cgroup: arguments
            .cgroup
            .clone()
            .filter(|path| !path.as_os_str().is_empty()),
    };
    let file = &source.file;
    let mut seen = reload::Seen::file(file);
    let config = match source.load() {
        Ok(config) => config,
        Err(error) => {
            eprintln!("weir-agent: {error}");
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    if arguments.detach {
        // First the plugin: it would let no pod start any more.
        let removed = config
            .cni
            .as_ref()
            .map_or(Ok(()), |own| cni::install::remove(&own.value));
        let detached = datapath::detach(&config.pin_dir).context("the programs cannot be detached");
        let done = removed.context("the CNI plugin cannot be removed").and(detached);
        if arguments.hold && done.is_ok() {
            return report(hold(config.metrics.address));
        }
        return report(done);
    }
    let cgroup = match datapath::preflight::check(config.cgroup.as_deref(), &config.pin_dir) {
        Ok(cgroup) => cgroup,
        Err(missing) => {
            eprintln!("weir-agent: {missing}");
            return ExitCode::from(EXIT_MACHINE);
        }
    };
    let own_cgroup = datapath::preflight::own_cgroup(&cgroup);
    if let Err(missing) = own_cgroup
        && !arguments.check
    {
        eprintln!("weir-agent: {missing}");
        return ExitCode::from(EXIT_MACHINE);
    }
    // Keys are in this process's memory from here on: no core dumps, no ptrace by other processes of the same user.
    let undumpable = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
    if let Err(error) = undumpable {
        return report(Err(error).context("core dumps cannot be switched off"));
    }
    let mut ca = None;
    if let Some(own) = &config.ca {
        seen.ca(&own.value);
        match reload::open_ca(&own.value, &config.trust_domain, !arguments.check) {
            Ok(opened) => ca = Some(opened),
            // It would be made now.
            Err(_) if arguments.check && own.value.dir.as_ref().is_some_and(|dir| !dir.exists()) => {}
            Err(error) => {
                eprintln!("weir-agent: {}: ca: {error}", file.display());
                return ExitCode::from(EXIT_CONFIG);
            }
        }
    }
    if arguments.check {
        println!(
            "{}: the configuration is right, and this machine has what it takes",
            file.display()
        );
        return ExitCode::SUCCESS;
    }
    report(run(source, config, ca, seen, cgroup, arguments.standby))
}

fn report(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weir-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn hold(address: std::net::SocketAddr) -> anyhow::Result<()> {
    tracing::info!("detached: nothing of the agent is left in the kernel and in the CNI's configuration");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(takeover::hold(address))
}

fn run(
    source: config::Source,
    config: config::ConfigFile,
    ca: Option<CertificateAuthority>,
    seen: reload::Seen,
    cgroup: PathBuf,
    standby: bool,
) -> anyhow::Result<()> {
    raise_descriptor_limit()?;
    let threads = config
        .worker_threads
        .map_or_else(default_threads, |count| usize::from(count.get()));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()?;
    runtime.block_on(agent::run(source, config, ca, seen, cgroup, standby))?;
    runtime.shutdown_background();
    Ok(())
}

/// Half of the processors: the other half runs the applications. With more threads than that a connection's tasks
/// move between processors, which costs more than it gains (two processors, two agents: the median of a 64-byte
/// request and response rises by a quarter).
fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(1, |count| (count.get() / 2).max(1))
}

/// Two to three descriptors a connection: take what the machine allows.
fn raise_descriptor_limit() -> anyhow::Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    )
    .context("raising the limit of open files")
}
