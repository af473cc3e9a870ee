//! `weir`: what the mesh sees and does on a node or in a cluster, for people and scripts.
#![forbid(unsafe_code)]

mod advise;
mod agent;
mod audit;
mod check;
mod cluster;
mod explain;
mod flows;
mod install;
mod merge;
mod mesh;
mod migrate;
mod plugin;
mod relay;
mod rollback;
mod several;
mod status;
mod target;
mod top;
mod uninstall;
mod ways;
mod workloads;

use std::{io, process::ExitCode};

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use clap_complete::Shell;

use agent::{Agent, Unreachable};
use cluster::{Agents, Cluster};
use target::{Options, Surroundings, Target, Usage};

/// The command line is wrong, as clap has it.
const EXIT_USAGE: u8 = 2;
/// No agent could be reached.
const EXIT_NO_AGENT: u8 = 3;
/// The connection that was asked about would be refused.
const EXIT_REFUSED: u8 = 4;

/// Shows what the mesh does, on this node or in a cluster: who talks to whom, as whom, and why a connection was refused.
///
/// Asks the agent of this node if there is one; elsewhere, or as `kubectl weir`, the agents of the cluster that the
/// kubeconfig names, through its API server.
#[derive(Debug, Parser)]
#[command(
    name = "weir",
    version,
    after_help = "Examples:\n  \
        weir flows --last 20                      the last 20 flows\n  \
        weir flows --follow --verdict denied      refusals as they happen\n  \
        weir top                                  who talks to whom, live\n  \
        weir relay                                the flows of all nodes at one address, for Hubble's tools\n  \
        weir status                               pods, programs, certificates, tunnels, errors\n  \
        weir workloads                            every workload that the agent knows\n  \
        weir explain --from web --to api --port 80   what would become of a connection, and why\n  \
        weir check                                whether all is well, and what to do if not\n  \
        weir install                              into the cluster of the kubeconfig\n  \
        weir rollback shop                        one namespace back to plaintext\n  \
        weir audit                                evidence of what is encrypted, and who may do what\n  \
        weir advise                               what could go strict, the least policies, what it costs\n  \
        weir migrate                              policies of Istio and Linkerd as Weir's\n\n\
        Exit codes: 0 done, 1 failed, 2 wrong usage, 3 no agent could be reached, 4 explain: it would be refused."
)]
struct Arguments {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Flows(flows::Flows),
    Top(top::Top),
    Relay(relay::Relay),
    Status(status::Status),
    Explain(explain::Explain),
    Workloads(workloads::Workloads),
    Check(check::Check),
    Install(install::Install),
    Uninstall(uninstall::Uninstall),
    Rollback(rollback::Rollback),
    Audit(audit::Audit),
    Advise(advise::Advise),
    Migrate(migrate::Migrate),
    /// Prints a script that completes this command in a shell.
    #[command(after_help = "Example:\n  weir completion bash > /etc/bash_completion.d/weir")]
    Completion {
        /// The shell.
        shell: Shell,
    },
}

fn main() -> ExitCode {
    let plugin = plugin::is_plugin(std::env::args_os().next());
    let command = plugin::named(Arguments::command(), plugin);
    let matches = command.get_matches();
    let arguments = Arguments::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => {
            let result = runtime.block_on(run(arguments, plugin));
            // A name that is being looked up must not hold up the end.
            runtime.shutdown_background();
            result
        }
        Err(error) => Err(error.into()),
    };
    match result {
        Ok(code) => code,
        // Whoever read the output has enough: `weir flows | head`.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // It may quote what the agent sent.
            anstream::eprintln!("weir: {}", weir::style::clean(&format!("{error:#}")));
            if error.downcast_ref::<Unreachable>().is_some() {
                ExitCode::from(EXIT_NO_AGENT)
            } else if error.downcast_ref::<Usage>().is_some() {
                ExitCode::from(EXIT_USAGE)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

async fn run(arguments: Arguments, plugin: bool) -> anyhow::Result<ExitCode> {
    let options = arguments.options;
    let surroundings = Surroundings::look(plugin);
    match arguments.command {
        Command::Flows(flows) if flows.asks_agents() => {
            flows.run(agents(&options, &surroundings).await?).await?;
        }
        Command::Flows(flows) => flows.run_elsewhere().await?,
        Command::Top(top) => {
            let agents = match top.asks_agents() {
                true => Some(agents(&options, &surroundings).await?),
                false => None,
            };
            top.run(agents).await?;
        }
        Command::Relay(relay) => {
            let agents = match relay.asks_agents() {
                true => Some(agents(&options, &surroundings).await?),
                false => None,
            };
            relay.run(&options, agents).await?;
        }
        Command::Status(status) => status.run(agents(&options, &surroundings).await?).await?,
        Command::Workloads(workloads) => workloads.run(agents(&options, &surroundings).await?).await?,
        Command::Explain(explain) => {
            let agents = agents_for(&options, &surroundings, Some(explain.from())).await?;
            if !explain.run(agents).await? {
                return Ok(ExitCode::from(EXIT_REFUSED));
            }
        }
        Command::Check(check) => {
            if !check.run(&options).await? {
                return Ok(ExitCode::FAILURE);
            }
        }
        Command::Install(install) => install.run(&options).await?,
        Command::Uninstall(uninstall) => uninstall.run(&options).await?,
        Command::Rollback(rollback) => rollback.run(&options).await?,
        Command::Audit(audit) => {
            if !audit.run(&options).await? {
                return Ok(ExitCode::FAILURE);
            }
        }
        Command::Advise(advise) => {
            let agents = match advise.asks_agents(&options)? {
                true => Some(agents(&options, &surroundings).await?),
                false => None,
            };
            advise.run(&options.weir_namespace, agents).await?;
        }
        Command::Migrate(migrate) => migrate.run(&options).await?,
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Arguments::command(), "weir", &mut io::stdout());
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The agents that are meant.
async fn agents(options: &Options, surroundings: &Surroundings) -> anyhow::Result<Agents> {
    agents_for(options, surroundings, None).await
}

/// The agents that are meant, of a cluster that of a pod's node if there is one.
async fn agents_for(
    options: &Options,
    surroundings: &Surroundings,
    pod: Option<&str>,
) -> anyhow::Result<Agents> {
    let node = match options.target(surroundings)? {
        Target::Socket(socket) => return Ok(Agents::only(Agent::local(&socket))),
        Target::Cluster(node) => node,
    };
    let cluster = Cluster::new(options).await?;
    if let (Some(pod), None) = (pod, &node)
        && let Some(node) = cluster
            .node_of(pod)
            .await
            .map_err(|why| cluster.unreachable(why))?
    {
        match cluster.agents(Some(&node)).await {
            Ok(agents) if agents.missing.is_empty() => return Ok(agents),
            // Another's answer is as good, but for what only this one knows.
            Ok(mut agents) => agents.complain(),
            Err(why) => several::complain(None, &why.into()),
        }
    }
    Ok(cluster.agents(node.as_deref()).await?)
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
