//! Scenarios on a real cluster: installs Weir, uses it as its users do, breaks it, and takes it out again.
//!
//! One scenario after the other, each on what the one before left; all that it makes is in namespaces `weir-test-*`, in
//! `weir-system` and in `weir-authority`, and goes at the end.
#![forbid(unsafe_code)]

mod cluster;
mod pods;
mod scenarios;

use std::{
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Parser;

use cluster::Cluster;

/// Runs the scenarios on the cluster of a kubeconfig. Two nodes or more; the images must be there.
#[derive(Debug, Clone, Parser)]
#[command(
    version,
    after_help = "Examples:\n  \
        weir-kube-tests --kubeconfig ~/.kube/config --registry registry.example/weir --tag 0.1.0\n  \
        weir-kube-tests --list\n  \
        weir-kube-tests --kubeconfig F --only install,enrol,policy --keep\n\n\
        It installs Weir and uninstalls it: not for a cluster that uses it already."
)]
struct Arguments {
    /// The cluster.
    #[arg(
        long,
        value_name = "FILE",
        env = "KUBECONFIG",
        required_unless_present = "list"
    )]
    kubeconfig: Option<PathBuf>,
    /// The command line that is tested.
    #[arg(long, value_name = "FILE", default_value = "target/debug/weir")]
    weir: PathBuf,
    /// Where the images weir-agent, weir-control and weir-testapp are.
    #[arg(long, default_value = "weir")]
    registry: String,
    /// Their tag.
    #[arg(long, default_value = env!("CARGO_PKG_VERSION"))]
    tag: String,
    /// As of a pod.
    #[arg(long, default_value = "IfNotPresent")]
    pull_policy: String,
    /// The folder of each node's own cgroup, where several nodes share a kernel; $(WEIR_NODE) is the node's name.
    #[arg(long, value_name = "PATH")]
    agent_cgroup: Option<String>,
    /// Only these scenarios, with commas; those that need an installation need `install` or one that is there.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Leave everything as it is at the end, or after the first failure.
    #[arg(long)]
    keep: bool,
    /// Print the scenarios.
    #[arg(long)]
    list: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.list {
        for scenario in scenarios::ALL {
            println!("{:18} {}", scenario.name, scenario.what);
        }
        return ExitCode::SUCCESS;
    }
    for name in &arguments.only {
        if !scenarios::ALL.iter().any(|scenario| scenario.name == name) {
            eprintln!("weir-kube-tests: there is no scenario '{name}'; --list prints them");
            return ExitCode::from(2);
        }
    }
    match run(arguments).await {
        Ok(0) => ExitCode::SUCCESS,
        Ok(failed) => {
            println!("{failed} failed");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("weir-kube-tests: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// No scenario takes as long as this.
const PATIENCE: Duration = Duration::from_secs(600);

async fn run(arguments: Arguments) -> anyhow::Result<usize> {
    let mut cluster = Cluster::new(&arguments).await?;
    println!("a real API server: {}", cluster.describe().await?);
    let chosen = |name: &str| arguments.only.is_empty() || arguments.only.iter().any(|only| only == name);
    let mut failed = 0;
    for scenario in scenarios::ALL.iter().filter(|scenario| chosen(scenario.name)) {
        let start = Instant::now();
        let result = tokio::time::timeout(PATIENCE, (scenario.run)(&mut cluster)).await;
        let result = result.unwrap_or_else(|_| Err(anyhow::anyhow!("not done after {PATIENCE:?}")));
        let seconds = start.elapsed().as_secs_f64();
        match result {
            Ok(said) => {
                println!("ok      {:18} {seconds:6.1} s  {}", scenario.name, scenario.what);
                for line in said {
                    println!("        {:18}           {line}", "");
                }
            }
            Err(error) => {
                failed += 1;
                println!(
                    "FAILED  {:18} {seconds:6.1} s  {}\n        {error:#}",
                    scenario.name, scenario.what
                );
                if arguments.keep {
                    return Ok(failed);
                }
            }
        }
    }
    if !arguments.keep {
        cluster.clean_up().await?;
    }
    Ok(failed)
}
