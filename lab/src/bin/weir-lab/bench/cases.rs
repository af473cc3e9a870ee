//! One measurement of one case.

use std::{fs, thread, time::Duration};

use anyhow::{Context as _, Result};
use serde_json::Value;
use weir_lab::{PATIENCE, Spawn as _};

use super::{Case, Metric, Path, system::System};

const HELD: usize = 5000;
/// Opening that many connections through a mesh may take this long.
const HOLD_PATIENCE: Duration = Duration::from_secs(120);
/// How long memory is given to settle once the connections are open.
const SETTLE: Duration = Duration::from_secs(1);
/// A machine that does more than this on its own spoils the measurement of CPU.
const BUSY: f64 = 0.05;

/// Runs a case once.
pub(crate) fn measure(
    system: &System,
    path: Path,
    case: Case,
    length: Duration,
) -> Result<Vec<(Metric, f64)>> {
    let bulk = |streams: u32| -> Result<Value> {
        run(
            system,
            length,
            &[
                "bulk-client",
                &system.bulk(path).to_string(),
                "--streams",
                &streams.to_string(),
            ],
        )
    };
    let rate = |clients: u32| -> Result<Vec<(Metric, f64)>> {
        Ok(vec![(
            Metric {
                name: "connections",
                unit: "1/s",
            },
            number(&crr(system, path, length, clients)?, "per_second")?,
        )])
    };
    match case {
        Case::Bulk1 => throughput(&bulk(1)?),
        Case::Bulk4 => throughput(&bulk(4)?),
        Case::Rr64 => {
            let seen = run(system, length, &["rr-client", &system.rr(path).to_string()])?;
            let quantiles = [("p50", "p50_us"), ("p99", "p99_us"), ("p99.9", "p999_us")];
            quantiles
                .iter()
                .map(|(name, field)| Ok((Metric { name, unit: "us" }, number(&seen, field)?)))
                .collect()
        }
        Case::Crr1 => rate(1),
        Case::Crr16 => rate(16),
        Case::Cpu => {
            let before = cpu_times()?;
            let seen = bulk(1)?;
            let busy = cpu_times()?.busy - before.busy;
            let gigabits = number(&seen, "bytes")? * 8.0 / 1e9;
            Ok(vec![(
                Metric {
                    name: "cpu",
                    unit: "s/Gb",
                },
                busy / gigabits,
            )])
        }
        Case::Memory => memory(system, path),
        // Not such figures: they are in `programs`, `control` and `flows`.
        Case::Programs | Case::Control | Case::Flows => Ok(Vec::new()),
    }
}

/// How many connections one client makes in that time.
pub(crate) fn connections(system: &System, path: Path, length: Duration) -> Result<f64> {
    // The client makes one before its clock runs.
    Ok(number(&crr(system, path, length, 1)?, "connections")? + 1.0)
}

fn crr(system: &System, path: Path, length: Duration, clients: u32) -> Result<Value> {
    let to = system.rr(path).to_string();
    run(
        system,
        length,
        &["crr-client", &to, "--clients", &clients.to_string()],
    )
}

/// Resident memory before any traffic and with many held connections.
pub(crate) fn memory(system: &System, path: Path) -> Result<Vec<(Metric, f64)>> {
    let mebi = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let idle = (
        Metric {
            name: "idle",
            unit: "MiB",
        },
        mebi(system.idle),
    );
    let to = system.rr(path).to_string();
    let holder = system
        .client
        .testapp(["hold-client", &to, "--connections", &HELD.to_string()])?;
    holder.wait_line(HOLD_PATIENCE, |line| line.contains("\"held\"").then_some(()))?;
    thread::sleep(SETTLE);
    let held = (
        Metric {
            name: "held-5000",
            unit: "MiB",
        },
        mebi(system.memory()?),
    );
    Ok(vec![idle, held])
}

/// A warning if the machine has something else to do.
pub(crate) fn busy_machine() -> Result<Option<String>> {
    let before = cpu_times()?;
    thread::sleep(SETTLE);
    let after = cpu_times()?;
    let share = (after.busy - before.busy) / (after.total - before.total).max(f64::MIN_POSITIVE);
    Ok((share > BUSY).then(|| {
        format!(
            "WARNING: this machine is {:.0} % busy with other things; numbers will be off",
            share * 100.0
        )
    }))
}

fn run(system: &System, length: Duration, arguments: &[&str]) -> Result<Value> {
    let seconds = length.as_secs_f64().to_string();
    let client = system
        .client
        .testapp(arguments.iter().copied().chain(["--seconds", &seconds]))?;
    let done = client.wait(length + PATIENCE)?.success();
    done.with_context(|| format!("{}: {}", system.kind.name(), arguments.join(" ")))?
        .json()
}

fn throughput(seen: &Value) -> Result<Vec<(Metric, f64)>> {
    Ok(vec![(
        Metric {
            name: "throughput",
            unit: "Gb/s",
        },
        number(seen, "gbps")?,
    )])
}

fn number(seen: &Value, field: &str) -> Result<f64> {
    seen[field]
        .as_f64()
        .with_context(|| format!("no {field} in {seen}"))
}

/// Seconds since boot, over all processors.
struct CpuTimes {
    busy: f64,
    total: f64,
}

/// The whole machine's times: user, nice, system, irq and softirq are work; idle and iowait are not, and steal is
/// another machine's.
fn cpu_times() -> Result<CpuTimes> {
    let stat = fs::read_to_string("/proc/stat").context("/proc/stat")?;
    let line = stat.lines().next().unwrap_or_default();
    let ticks: Vec<f64> = line
        .split_whitespace()
        .skip(1)
        .filter_map(|field| field.parse().ok())
        .collect();
    let [user, nice, system, idle, iowait, irq, softirq, ..] = ticks[..] else {
        anyhow::bail!("/proc/stat begins with {line:?}");
    };
    let per_second = rustix::param::clock_ticks_per_second() as f64;
    let busy = (user + nice + system + irq + softirq) / per_second;
    Ok(CpuTimes {
        busy,
        total: busy + (idle + iowait) / per_second,
    })
}
