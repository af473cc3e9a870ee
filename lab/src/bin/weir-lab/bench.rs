//! `weir-lab bench`: what a mesh costs, measured against the same pods without one.
//!
//! Every system has a lab of its own, all of them at once; rounds take the systems in turn for each case, so that a
//! machine whose speed drifts does not favour one. Medians over the rounds, and their ratio to no mesh.

mod cases;
mod report;
mod system;

use std::{collections::BTreeMap, process::ExitCode, time::Duration};

use anyhow::Result;
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::narrator::Narrator;
use system::System;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cargo xtask bench --quick
  cargo xtask bench --case bulk-1 --case crr-1 --path cross-node
  cargo xtask bench --peer-cmd 'exec /opt/proxy --address $POD_IP' --json

The peer's command is run by `sh -c`, once in each pod's network namespace, and killed at the end. Its environment:
POD_NAME, POD_UID, POD_NAMESPACE, POD_SERVICE_ACCOUNT, POD_IP, POD_IP6, POD_NETNS (a path), NODE, NODE_NETNS, LAB_DIR (a
folder for its files) and WORKLOADS (a YAML file with all workloads, in the form of the agent's configuration).

CPU is that of the whole machine, from /proc/stat: the kernel does most of the work of a transfer in soft interrupts,
which it charges to whatever process happens to run, or to none. So the machine must have nothing else to do.
Memory is resident memory of the mesh's processes on both nodes together.")]
pub(crate) struct Bench {
    /// Print JSON on standard output, and all else on standard error.
    #[arg(long)]
    json: bool,
    /// Command that starts another proxy in a pod, to compare with.
    #[arg(long, value_name = "CMD")]
    peer_cmd: Option<String>,
    /// Seconds that the peer gets to start.
    #[arg(long, default_value_t = 3.0, value_name = "SECONDS")]
    peer_wait: f64,
    /// Two short rounds: a first impression.
    #[arg(long)]
    quick: bool,
    /// Only these cases.
    #[arg(long = "case", value_enum)]
    cases: Vec<Case>,
    /// Only these paths.
    #[arg(long = "path", value_enum)]
    paths: Vec<Path>,
    /// Only these systems; `none` is always measured.
    #[arg(long = "system", value_enum)]
    systems: Vec<SystemKind>,
    /// Rounds.
    #[arg(long)]
    rounds: Option<u32>,
    /// Seconds of each measurement.
    #[arg(long)]
    seconds: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Case {
    /// Throughput of one stream.
    #[value(name = "bulk-1")]
    #[serde(rename = "bulk-1")]
    Bulk1,
    /// Throughput of four streams.
    #[value(name = "bulk-4")]
    #[serde(rename = "bulk-4")]
    Bulk4,
    /// Latency of 64 bytes there and back.
    #[value(name = "rr-64")]
    #[serde(rename = "rr-64")]
    Rr64,
    /// New connections of one client.
    #[value(name = "crr-1")]
    #[serde(rename = "crr-1")]
    Crr1,
    /// New connections of sixteen clients.
    #[value(name = "crr-16")]
    #[serde(rename = "crr-16")]
    Crr16,
    /// CPU seconds of the whole machine for a gigabit.
    Cpu,
    /// Resident memory idle and with 5,000 held connections.
    Memory,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Path {
    /// Between pods of two nodes.
    CrossNode,
    /// Between pods of one node.
    SameNode,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum SystemKind {
    /// No mesh.
    None,
    /// Weir.
    Weir,
    /// The command of `--peer-cmd`.
    Peer,
}

/// What is measured: the name and the unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Metric {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
}

type Key = (Path, Case, Metric, SystemKind);

impl Bench {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let tell = Narrator { json: self.json };
        weir_lab::require_root()?;
        let (rounds, seconds) = if self.quick { (2, 0.5) } else { (5, 2.0) };
        let rounds = self.rounds.unwrap_or(rounds).max(1);
        let length = Duration::from_secs_f64(self.seconds.unwrap_or(seconds).max(0.1));
        if let Some(warning) = cases::busy_machine()? {
            tell.say(warning);
        }

        let mut systems = Vec::new();
        for kind in self.kinds() {
            tell.say(format!("starting: {}", kind.name()));
            systems.push(System::start(kind, self.peer_cmd.as_deref(), self.peer_wait)?);
        }
        let paths = chosen(&self.paths);
        let all_cases = chosen(&self.cases);
        let mut samples = BTreeMap::<Key, Vec<f64>>::new();
        for round in 1..=rounds {
            for &path in &paths {
                for &case in all_cases.iter().filter(|case| **case != Case::Memory) {
                    for system in &systems {
                        let measured = cases::measure(system, path, case, length)?;
                        for (metric, value) in measured {
                            samples
                                .entry((path, case, metric, system.kind))
                                .or_default()
                                .push(value);
                        }
                    }
                }
                tell.say(format!("round {round} of {rounds}, {}: done", path.name()));
            }
        }
        // Last: the memory that many connections took does not always go back to the kernel.
        if all_cases.contains(&Case::Memory) {
            for &path in &paths {
                for system in &systems {
                    tell.say(format!("memory, {}, {}", path.name(), system.kind.name()));
                    for (metric, value) in cases::memory(system, path)? {
                        samples
                            .entry((path, Case::Memory, metric, system.kind))
                            .or_default()
                            .push(value);
                    }
                }
            }
        }
        drop(systems);

        let rows = report::rows(&samples);
        tell.say(report::table(&rows));
        if self.json {
            println!("{}", serde_json::to_string(&rows)?);
        }
        Ok(ExitCode::SUCCESS)
    }

    fn kinds(&self) -> Vec<SystemKind> {
        let wanted = chosen(&self.systems);
        let mut kinds = vec![SystemKind::None];
        if wanted.contains(&SystemKind::Weir) {
            kinds.push(SystemKind::Weir);
        }
        if self.peer_cmd.is_some() && wanted.contains(&SystemKind::Peer) {
            kinds.push(SystemKind::Peer);
        }
        kinds
    }
}

impl Path {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::CrossNode => "cross-node",
            Self::SameNode => "same-node",
        }
    }
}

impl SystemKind {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Weir => "weir",
            Self::Peer => "peer",
        }
    }
}

/// What was asked for, or all there is.
fn chosen<T: ValueEnum + Copy>(asked: &[T]) -> Vec<T> {
    if asked.is_empty() {
        T::value_variants().to_vec()
    } else {
        asked.to_vec()
    }
}
