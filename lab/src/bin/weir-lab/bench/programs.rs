//! What the kernel programs cost a connection, by the kernel's own statistics of them. Counting costs time itself, so
//! nothing else is measured meanwhile.

use std::{
    collections::BTreeMap,
    fs,
    os::{
        fd::{AsFd as _, AsRawFd as _},
        unix::fs::MetadataExt as _,
    },
    path::{Path as FilePath, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use aya::{
    programs::{
        links::{FdLink, PinnedLink},
        loaded_programs,
    },
    sys::{Stats, enable_stats},
};
use weir_lab::{Agent, Pod, Spawn as _};

use super::{Path, SystemKind, cases, system::System};

/// The pod's own program, of which each pod has one.
const SK_LOOKUP: &str = "weir_sk_lookup";
/// What a run of a program on a connection that the kernel passes on may take, in nanoseconds.
const TARGETS: [(&str, f64); 3] = [
    ("weir_connect4", 500.0),
    ("weir_connect6", 500.0),
    (SK_LOOKUP, 400.0),
];
/// What all programs together may take over such a connection's life, in nanoseconds.
const TARGET_OF_ALL: f64 = 3000.0;

/// What the programs of a system did for a connection.
pub(crate) struct Usage {
    pub(crate) system: SystemKind,
    pub(crate) programs: Vec<Program>,
    /// Nanoseconds of all programs.
    pub(crate) all: f64,
    pub(crate) target_of_all: Option<f64>,
}

/// A program's part in it.
pub(crate) struct Program {
    /// Its name; that of a pod's own program with the pod's.
    pub(crate) name: String,
    /// Runs for a connection.
    pub(crate) runs: f64,
    /// Nanoseconds of a run.
    pub(crate) run: f64,
    /// Nanoseconds of a run that are wanted at most.
    pub(crate) target: Option<f64>,
}

/// The kernel's statistics of a program since it was loaded.
#[derive(Debug, Clone, Copy, Default)]
struct Counters {
    runs: u64,
    nanoseconds: u64,
}

// === impl Usage ===

impl Usage {
    /// Makes connections between pods of one node for some time.
    pub(crate) fn measure(system: &System, length: Duration) -> Result<Self> {
        let programs = programs(system)?;
        // Ends when it is dropped, and with this process however that ends.
        let counting = enable_stats(Stats::RunTime).context("BPF_ENABLE_STATS (kernel 5.8)")?;
        let before = counters(&programs)?;
        let connections = system.under_load(Path::SameNode, || {
            cases::connections(system, Path::SameNode, length)
        })?;
        let after = counters(&programs)?;
        drop(counting);
        let mut by_name = BTreeMap::<&str, Counters>::new();
        for (id, name) in &programs {
            let counters = by_name.entry(name).or_default();
            counters.runs += after[id].runs - before[id].runs;
            counters.nanoseconds += after[id].nanoseconds - before[id].nanoseconds;
        }
        let direct = system.kind.is_direct();
        Ok(Self::new(system.kind, &by_name, connections, direct))
    }

    fn new(system: SystemKind, counters: &BTreeMap<&str, Counters>, connections: f64, targets: bool) -> Self {
        let ran = counters.iter().filter(|(_, counters)| counters.runs > 0);
        let programs = ran.map(|(name, counters)| Program {
            name: (*name).to_owned(),
            runs: counters.runs as f64 / connections,
            run: counters.nanoseconds as f64 / counters.runs as f64,
            target: target(name).filter(|_| targets),
        });
        let all: u64 = counters.values().map(|counters| counters.nanoseconds).sum();
        Self {
            system,
            programs: programs.collect(),
            all: all as f64 / connections,
            target_of_all: targets.then_some(TARGET_OF_ALL),
        }
    }
}

/// That of a program, which may have the name of a pod behind its own.
fn target(name: &str) -> Option<f64> {
    let name = name.split(' ').next()?;
    let (_, target) = TARGETS.iter().find(|(known, _)| *known == name)?;
    Some(*target)
}

/// Ids of the programs of a system's agents, and their names.
fn programs(system: &System) -> Result<BTreeMap<u32, String>> {
    let mut programs = BTreeMap::new();
    for agent in system.agents() {
        for program in agent.status()?.programs {
            let name = if program.name.starts_with(SK_LOOKUP) {
                let pod = pod_of(agent, &program.name, system.pods())
                    .with_context(|| format!("whose {} is", program.name))?;
                format!("{SK_LOOKUP} of {pod}")
            } else {
                program.name
            };
            programs.insert(program.program_id, name);
        }
    }
    ensure!(
        !programs.is_empty(),
        "{} has no kernel programs",
        system.kind.name()
    );
    Ok(programs)
}

/// The pod whose network namespace a pinned link is attached to.
fn pod_of<'a>(agent: &Agent, pin: &str, pods: [&'a Pod; 3]) -> Result<&'a str> {
    let path = find(&agent.config().pin_dir, pin)?.with_context(|| format!("no pin {pin}"))?;
    let link = FdLink::from(PinnedLink::from_pin(path)?);
    let id = link.info()?.id().to_string();
    // The link is one of this process's descriptors, whose information says more than the system call's.
    for entry in fs::read_dir("/proc/self/fdinfo")? {
        let Ok(text) = fs::read_to_string(entry?.path()) else {
            // A descriptor of another thread, closed meanwhile.
            continue;
        };
        if field(&text, "link_id") != Some(&id) {
            continue;
        }
        let inode = field(&text, "netns_ino").context("not a link to a network namespace")?;
        for pod in pods {
            if fs::metadata(pod.place().netns_path())?.ino().to_string() == inode {
                return Ok(&pod.spec().name);
            }
        }
        return Ok("another pod");
    }
    anyhow::bail!("the kernel does not tell of link {id}")
}

fn find(folder: &FilePath, name: &str) -> Result<Option<PathBuf>> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            if let Some(found) = find(&entry.path(), name)? {
                return Ok(Some(found));
            }
        } else if entry.file_name() == name {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}

fn counters(programs: &BTreeMap<u32, String>) -> Result<BTreeMap<u32, Counters>> {
    let mut all = BTreeMap::new();
    // A program of somebody else's may end while they are gone through.
    for info in loaded_programs().flatten() {
        if programs.contains_key(&info.id()) {
            let program = info.fd()?;
            let path = format!("/proc/self/fdinfo/{}", program.as_fd().as_raw_fd());
            let text = fs::read_to_string(&path).context(path)?;
            all.insert(info.id(), Counters::parse(&text)?);
        }
    }
    for (id, name) in programs {
        ensure!(all.contains_key(id), "the kernel has no program {id} ({name})");
    }
    Ok(all)
}

// === impl Counters ===

impl Counters {
    fn parse(text: &str) -> Result<Self> {
        let number = |name: &str| -> Result<u64> {
            let value = field(text, name).with_context(|| format!("no {name} of a program (kernel 5.1)"))?;
            Ok(value.parse()?)
        };
        Ok(Self {
            runs: number("run_cnt")?,
            nanoseconds: number("run_time_ns")?,
        })
    }
}

/// A line's value: `name:<tab>value`.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines()
        .find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connections_share_is_that_of_all_runs() {
        let text = "pos:\t0\nprog_type:\t9\nrun_time_ns:\t120000\nrun_cnt:\t300\nrecursion_misses:\t0\n";
        let sk_lookup = Counters::parse(text).unwrap();
        let counters = BTreeMap::from([
            (
                "weir_connect4",
                Counters {
                    runs: 100,
                    nanoseconds: 45_000,
                },
            ),
            ("weir_connect6", Counters::default()),
            ("weir_sk_lookup of near", sk_lookup),
        ]);
        let usage = Usage::new(SystemKind::Direct, &counters, 100.0, true);
        let seen: Vec<_> = usage
            .programs
            .iter()
            .map(|program| (program.name.as_str(), program.runs, program.run, program.target))
            .collect();
        assert_eq!(
            seen,
            [
                ("weir_connect4", 1.0, 450.0, Some(500.0)),
                ("weir_sk_lookup of near", 3.0, 400.0, Some(400.0)),
            ]
        );
        assert_eq!((usage.all, usage.target_of_all), (1650.0, Some(3000.0)));
        let mtls = Usage::new(SystemKind::Mtls, &counters, 100.0, false);
        assert!(mtls.programs.iter().all(|program| program.target.is_none()));
    }
}
