//! `weir`: what a node's agent sees and does, for people and scripts.
#![forbid(unsafe_code)]

mod client;
mod explain;
mod flows;
mod status;
mod workloads;

use std::{io, path::PathBuf, process::ExitCode};

use clap::{CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;

/// The agent could not be reached.
const EXIT_NO_AGENT: u8 = 3;
/// The connection that was asked about would be refused.
const EXIT_REFUSED: u8 = 4;

/// Shows what the mesh does on this node: who talks to whom, as whom, and why a connection was refused.
#[derive(Debug, Parser)]
#[command(
    name = "weir",
    version,
    after_help = "Examples:\n  \
        weir flows --last 20                      the last 20 flows of this node\n  \
        weir flows --follow --verdict denied      refusals as they happen\n  \
        weir status                               pods, programs, certificates, tunnels, errors\n  \
        weir workloads                            every workload that the agent knows\n  \
        weir explain --from web --to api --port 80   what would become of a connection, and why\n\n\
        Exit codes: 0 done, 1 failed, 2 wrong usage, 3 the agent is not there, 4 explain: it would be refused."
)]
struct Arguments {
    /// The agent's socket.
    #[arg(long, global = true, value_name = "PATH", env = "WEIR_SOCKET", default_value = weir_types::api::DEFAULT_SOCKET)]
    socket: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show recorded flows, and go on with new ones if asked.
    Flows(flows::Flows),
    /// Show the agent's state: pods, programs, certificates, tunnels, errors.
    Status(status::Status),
    /// Say what would become of a connection, and why, without sending anything.
    Explain(explain::Explain),
    /// Show the workloads that the agent knows.
    Workloads(workloads::Workloads),
    /// Print a script that completes this command in a shell.
    #[command(after_help = "Example:\n  weir completion bash > /etc/bash_completion.d/weir")]
    Completion {
        /// The shell.
        shell: Shell,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let agent = client::Agent::new(arguments.socket);
    let result = match arguments.command {
        Command::Flows(flows) => flows.run(&agent),
        Command::Status(status) => status.run(&agent),
        Command::Explain(explain) => match explain.run(&agent) {
            Ok(true) => Ok(()),
            Ok(false) => return ExitCode::from(EXIT_REFUSED),
            Err(error) => Err(error),
        },
        Command::Workloads(workloads) => workloads.run(&agent),
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Arguments::command(), "weir", &mut io::stdout());
            Ok(())
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read the output has enough: `weir flows | head`.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // It may quote what the agent sent.
            anstream::eprintln!("weir: {}", weir::style::clean(&format!("{error:#}")));
            let unreachable = error.downcast_ref::<client::NoAgent>().is_some();
            if unreachable {
                ExitCode::from(EXIT_NO_AGENT)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
