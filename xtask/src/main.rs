//! The repository's own commands: `cargo xtask setup | build | dist | test | demo | bench`.
#![forbid(unsafe_code)]

mod dependencies;
mod dist;
mod setup;
mod steps;
mod test;

use std::{
    ffi::OsString,
    os::unix::process::CommandExt as _,
    process::{Command, ExitCode},
};

use anyhow::Result;
use clap::{Parser, Subcommand};

use steps::{cargo, root, run, step};

/// Sets up, builds, tests and shows Weir.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

const EXAMPLES: &str = "Examples:
  cargo xtask demo                          two nodes, four pods, real traffic, live flows
  cargo xtask demo --keep                   the same, left running to look around in
  cargo xtask test                          everything that CI runs
  cargo xtask bench --quick                 a first impression of the cost, in about two minutes
  cargo xtask bench --load                  the whole benchmark, also with a large and changing mesh
  cargo xtask bench --case programs         what the kernel programs take for a connection
  cargo xtask bench --json > bench.json     the whole benchmark, for a program to read";

#[derive(Debug, Subcommand)]
enum Task {
    /// Installs what building needs: the component rust-src, and bpf-linker into target/tools.
    Setup,
    /// Builds the agent with its kernel programs, the command line and the lab.
    Build {
        /// With optimizations.
        #[arg(long)]
        release: bool,
    },
    /// Builds static binaries into target/dist, as the images hold them. Needs musl-gcc.
    Dist,
    /// Formatting, clippy, unit tests, eBPF tests, end-to-end tests.
    Test {
        /// Only tests whose name contains this; no formatting, no clippy.
        filter: Option<String>,
    },
    /// Builds all and shows a mesh of two nodes at work. See `cargo xtask demo -- --help`.
    Demo {
        /// Passed on: `--keep`, `--json`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Builds all for release and measures it. See `cargo xtask bench -- --help`.
    Bench {
        /// Passed on: `--json`, `--quick`, `--case`, `--path`, `--system`, `--load`, `--rounds`, `--peer-cmd`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    // Not returned from here: with RUST_BACKTRACE set the message would drown in a backtrace.
    match run_task() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run_task() -> Result<()> {
    match Arguments::parse().task {
        Task::Setup => setup::for_building(),
        Task::Build { release } => build(release),
        Task::Dist => dist::build(),
        Task::Test { filter } => test::run_all(filter.as_deref()),
        Task::Demo { arguments } => {
            setup::require_root()?;
            build(false)?;
            become_lab("debug", "demo", &arguments)
        }
        Task::Bench { arguments } => {
            setup::require_root()?;
            build(true)?;
            become_lab("release", "bench", &arguments)
        }
    }
}

fn build(release: bool) -> Result<()> {
    setup::for_building()?;
    step("building", || {
        let mut command = cargo("build");
        command.args(steps::SELECTION);
        if release {
            command.arg("--release");
        }
        run(&mut command)
    })
}

/// Replaces this process, so that Ctrl-C and the terminal are the lab's alone.
fn become_lab(profile: &str, task: &str, arguments: &[OsString]) -> Result<()> {
    let program = steps::target().join(profile).join("weir-lab");
    let error = Command::new(&program)
        .arg(task)
        .args(arguments)
        .current_dir(root())
        .exec();
    Err(anyhow::Error::new(error).context(program.display().to_string()))
}
