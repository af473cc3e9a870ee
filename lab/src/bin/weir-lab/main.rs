//! The lab's command line: a demonstration and a benchmark on a mesh in this machine, and a way into its pods.
#![forbid(unsafe_code)]

mod bench;
mod demo;
mod narrator;

use std::{ffi::OsString, process::Command, process::ExitCode};

use anyhow::Result;
use clap::{Parser, Subcommand};
use weir_lab::{places, run};

/// A mesh in this machine: nodes and pods as network namespaces and cgroups.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Two nodes, four pods, real traffic; live flows and a summary.
    Demo(demo::Demo),
    /// Measures what the mesh costs.
    Bench(bench::Bench),
    /// Runs a command in a pod, a node or the host outside of a running lab.
    #[command(after_help = "Examples:
  weir-lab enter shop-frontend -- curl http://10.96.0.10/
  weir-lab enter node1 -- ip addr")]
    Enter {
        /// Uid of a pod, or name of a node.
        place: String,
        /// Which lab, if several run.
        #[arg(long)]
        lab: Option<String>,
        /// The command; a shell unless given.
        #[arg(last = true)]
        command: Vec<OsString>,
    },
    /// Removes what dead runs have left.
    Sweep,
}

fn main() -> ExitCode {
    // Not returned from here: with RUST_BACKTRACE set the message would drown in a backtrace.
    run_task().unwrap_or_else(|error| {
        eprintln!("weir-lab: {error:#}");
        ExitCode::FAILURE
    })
}

fn run_task() -> Result<ExitCode> {
    match Arguments::parse().command {
        Task::Demo(demo) => demo.run(),
        Task::Bench(bench) => bench.run(),
        Task::Enter { place, lab, command } => {
            weir_lab::require_root()?;
            let place = places::find(&place, lab.as_deref())?;
            let shell = std::env::var_os("SHELL").unwrap_or_else(|| "sh".into());
            let mut words = command.into_iter();
            let mut command = Command::new(words.next().unwrap_or(shell));
            Err(place.exec(command.args(words)))
        }
        Task::Sweep => {
            weir_lab::require_root()?;
            for id in run::sweep()? {
                println!("removed what {id} left");
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}
