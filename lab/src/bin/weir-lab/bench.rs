//! `weir-lab bench`: what a mesh costs, measured against the same pods without one.
//!
//! Every system has a lab of its own, all of them at once; rounds take the systems in turn for each case, so that a
//! machine whose speed drifts does not favour one. Medians over the rounds, and their ratio to no mesh.

mod cases;
mod control;
mod figures;
mod flows;
mod kinds;
mod load;
mod programs;
mod report;
mod system;

use std::{collections::BTreeMap, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};

use crate::narrator::Narrator;
use kinds::{Case, Key, Metric, Path, SystemKind};
use programs::Usage;
use system::System;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cargo xtask bench --quick
  cargo xtask bench --case bulk-1 --case crr-1 --path cross-node
  cargo xtask bench --path same-node --system direct --load
  cargo xtask bench --case programs --system direct
  cargo xtask bench --case control
  cargo xtask bench --case flows
  cargo xtask bench --peer-cmd 'exec /opt/proxy --address $POD_IP' --json

Between nodes there is mutual TLS only, so `direct` is measured between pods of one node.

With --load, the columns `mtls-loaded` and `direct-loaded` stand beside those without. Their agents
have 1,000 authorization policies, 600 of which concern the measured servers, and know 10,000 more
workloads. While something is measured, the configuration of the agents on the path is replaced once
a second, each time with 20 new addresses.

The case `programs` lets the kernel count what its programs do for the connections of one client
(crr-1) between pods of one node. Counting takes time itself, part of which is in the figures, so it
is on for this case alone.

The case `control` is of the control plane alone, and measured only when asked for: weir-control
against an API server in memory with 20,000 pods and 2,000 services, and 200 agents in a process of
their own that count what they receive. It takes two minutes; with --quick a tenth of all that.

The case `flows`, also only when asked for and alone, is of what recording costs: each figure against
the same mesh with `flows.record: false`, in turns, while a follower reads all records; then 50,000
connections a second that never were, put into the ring buffer by a kernel program of its own; then
the same with a follower that stopped reading.

The peer's command is run by `sh -c`, once in each pod's network namespace, and killed at the end. Its
environment: POD_NAME, POD_UID, POD_NAMESPACE, POD_SERVICE_ACCOUNT, POD_IP, POD_IP6, POD_NETNS (a
path), NODE, NODE_NETNS, LAB_DIR (a folder for its files) and WORKLOADS (a YAML file with all
workloads, in the form of the agent's configuration).

CPU is that of the whole machine, from /proc/stat: the kernel does most of the work of a transfer in
soft interrupts, which it charges to whatever process happens to run, or to none. So the machine must
have nothing else to do. Memory is resident memory of the mesh's processes on both nodes together.")]
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
    /// Systems besides `none`, which is always measured.
    #[arg(long = "system", value_enum)]
    systems: Vec<SystemKind>,
    /// Measure `mtls` and `direct` also with a large and changing mesh.
    #[arg(long)]
    load: bool,
    /// Rounds.
    #[arg(long)]
    rounds: Option<u32>,
    /// Seconds of each measurement.
    #[arg(long)]
    seconds: Option<f64>,
    /// Be the agents of the case `control`, by the plan in this folder.
    #[arg(long, hide = true, value_name = "FOLDER")]
    agents_of: Option<PathBuf>,
}

impl Bench {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let tell = Narrator { json: self.json };
        if let Some(folder) = &self.agents_of {
            control::run_agents(folder)?;
            return Ok(ExitCode::SUCCESS);
        }
        if let Some(case) = self.cases.iter().find(|case| case.is_alone()) {
            return self.run_alone(*case, tell);
        }
        weir_lab::require_root()?;
        let (rounds, seconds) = if self.quick { (2, 0.5) } else { (5, 2.0) };
        let rounds = self.rounds.unwrap_or(rounds).max(1);
        let length = Duration::from_secs_f64(self.seconds.unwrap_or(seconds).max(0.1));
        if let Some(warning) = cases::busy_machine()? {
            tell.say(warning);
        }

        let mut systems = Vec::new();
        for kind in self.kinds()? {
            tell.say(format!("starting: {}", kind.name()));
            systems.push(System::start(kind, self.peer_cmd.as_deref(), self.peer_wait)?);
        }
        let paths = chosen(&self.paths);
        let all_cases = chosen(&self.cases);
        let on = |path: Path| systems.iter().filter(move |system| system.kind.has(path));
        let mut samples = BTreeMap::<Key, Vec<f64>>::new();
        let mut add = |path, case, kind, measured: Vec<(Metric, f64)>| {
            for (metric, value) in measured {
                samples.entry((path, case, metric, kind)).or_default().push(value);
            }
        };
        let in_rounds: Vec<_> = all_cases.iter().filter(|case| case.in_rounds()).collect();
        let rounds = if in_rounds.is_empty() { 0 } else { rounds };
        for round in 1..=rounds {
            for &path in &paths {
                for &&case in &in_rounds {
                    for system in on(path) {
                        let measured =
                            system.under_load(path, || cases::measure(system, path, case, length))?;
                        add(path, case, system.kind, measured);
                    }
                }
                tell.say(format!("round {round} of {rounds}, {}: done", path.name()));
            }
        }
        let mut usages = Vec::new();
        if all_cases.contains(&Case::Programs) && paths.contains(&Path::SameNode) {
            for system in systems.iter().filter(|system| system.kind.is_weir()) {
                tell.say(format!("programs, {}", system.kind.name()));
                usages.push(Usage::measure(system, length)?);
            }
        }
        // Last: the memory that many connections took does not always go back to the kernel.
        if all_cases.contains(&Case::Memory) {
            for &path in &paths {
                for system in on(path) {
                    tell.say(format!("memory, {}, {}", path.name(), system.kind.name()));
                    add(path, Case::Memory, system.kind, cases::memory(system, path)?);
                }
            }
        }
        drop(systems);

        let mut rows = report::rows(&samples);
        if !rows.is_empty() {
            tell.say(report::table(&rows));
        }
        if !usages.is_empty() {
            tell.say(format!("\n{}", report::programs_table(&usages)));
        }
        if self.json {
            rows.extend(report::programs_rows(&usages));
            println!("{}", serde_json::to_string(&rows)?);
        }
        Ok(ExitCode::SUCCESS)
    }

    fn run_alone(&self, case: Case, tell: Narrator) -> Result<ExitCode> {
        ensure!(
            self.cases.len() == 1,
            "the cases `control` and `flows` are measured alone"
        );
        if let Some(warning) = cases::busy_machine()? {
            tell.say(warning);
        }
        let (name, title, figures) = match case {
            Case::Flows => {
                let rounds = self.rounds.unwrap_or(if self.quick { 2 } else { 9 }).max(1);
                let seconds = self.seconds.unwrap_or(if self.quick { 0.5 } else { 2.0 });
                let length = Duration::from_secs_f64(seconds.max(0.1));
                ("flows", "recorded flows", flows::run(rounds, length, tell)?)
            }
            _ => ("control", "control plane", control::run(self.quick, tell)?),
        };
        tell.say(figures::table(title, &figures));
        if self.json {
            println!("{}", serde_json::to_string(&figures::rows(name, &figures))?);
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Each system's loaded twin follows it, so that rounds measure them one after the other.
    fn kinds(&self) -> Result<Vec<SystemKind>> {
        let asked = |kind| self.systems.contains(&kind);
        let any = self.systems.is_empty();
        let mut kinds = vec![SystemKind::None];
        for kind in [SystemKind::Mtls, SystemKind::Direct, SystemKind::Auto] {
            if asked(kind) || (any && kind != SystemKind::Auto) {
                kinds.push(kind);
                kinds.extend(kind.loaded().filter(|_| self.load));
            }
        }
        if self.peer_cmd.is_some() && (any || asked(SystemKind::Peer)) {
            kinds.push(SystemKind::Peer);
        }
        ensure!(
            !self.load || kinds.iter().any(|kind| kind.is_loaded()),
            "--load is for the systems `mtls` and `direct`"
        );
        Ok(kinds)
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

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        bench: Bench,
    }

    fn kinds(arguments: &str) -> Result<Vec<&'static str>> {
        let line = Line::try_parse_from(["bench"].into_iter().chain(arguments.split_whitespace()))?;
        Ok(line.bench.kinds()?.iter().map(|kind| kind.name()).collect())
    }

    #[test]
    fn no_mesh_is_always_measured_and_load_adds_to_what_is_asked_for() {
        for (arguments, expected) in [
            ("", "none mtls direct"),
            ("--load", "none mtls mtls-loaded direct direct-loaded"),
            ("--load --system direct", "none direct direct-loaded"),
            ("--load --system auto --system mtls", "none mtls mtls-loaded auto"),
            ("--system auto", "none auto"),
            ("--peer-cmd true", "none mtls direct peer"),
            ("--peer-cmd true --system peer", "none peer"),
            ("--system peer", "none"),
        ] {
            assert_eq!(kinds(arguments).unwrap().join(" "), expected, "{arguments}");
        }
        assert!(kinds("--load --system auto").is_err(), "a load that nobody bears");
        assert!(kinds("--system direct-loaded").is_err(), "asked for by --load");
    }

    #[test]
    fn direct_is_between_pods_of_one_node() {
        use SystemKind::{Auto, Direct, DirectLoaded, Mtls, MtlsLoaded, None, Peer};
        for (kinds, between_nodes) in [
            (&[Direct, DirectLoaded][..], false),
            (&[None, Mtls, MtlsLoaded, Auto, Peer], true),
        ] {
            for kind in kinds {
                assert!(kind.has(Path::SameNode), "{kind:?}");
                assert_eq!(kind.has(Path::CrossNode), between_nodes, "{kind:?}");
            }
        }
    }
}
