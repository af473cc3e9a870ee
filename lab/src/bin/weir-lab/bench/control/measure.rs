//! The phases: first push, single changes, and all agents at once again.

use std::{
    collections::HashMap,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use weir_lab::poll;

use super::{
    super::figures::Figure,
    Narrator, PATIENCE, Stage,
    plan::{Ask, Received, now},
};

/// Ten changes a second.
const BETWEEN_CHANGES: Duration = Duration::from_millis(100);
/// What is left to settle between phases: longer than the allocator keeps what was freed.
const SETTLE: Duration = Duration::from_secs(12);

/// The promises.
const FIRST_PUSH: f64 = 30.0;
const CHANGE: f64 = 100.0;
const MEMORY: f64 = 400.0;

/// How a pod changes, in turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Change {
    Labels,
    Readiness,
    New,
    Deleted,
}

/// What the kernel knows of a process.
#[derive(Debug, Clone, Copy)]
struct Usage {
    /// The most memory that it ever had, in MB.
    peak: f64,
    /// Its memory now.
    resident: f64,
    /// Seconds.
    cpu: f64,
}

/// All phases; gives their figures.
pub(super) fn all(stage: &mut Stage, tell: Narrator) -> Result<Vec<Figure>> {
    let mut figures = first_push(stage, tell)?;
    thread::sleep(SETTLE);
    figures.push(Figure::new(
        "memory, after the first push",
        stage.usage()?.resident,
        "MB",
    ));
    figures.extend(changes(stage, tell)?);
    thread::sleep(SETTLE);
    figures.push(Figure::new("memory, steady", stage.usage()?.resident, "MB").at_most(MEMORY));
    figures.extend(reconnection(stage, tell)?);
    figures.push(Figure::new("memory, peak of all", stage.usage()?.peak, "MB").at_most(MEMORY));
    Ok(figures)
}

fn first_push(stage: &mut Stage, tell: Narrator) -> Result<Vec<Figure>> {
    tell.say("weir-control starts, and the agents connect");
    stage.publish_roots()?;
    let metrics = stage.metrics;
    poll("weir-control to be in step with the API server", PATIENCE, || {
        Ok(get(metrics, "/readyz").filter(|text| text.starts_with("HTTP/1.1 200")))
    })?;
    let in_step = now();
    let before = stage.usage()?;
    let whole = stage.wait("all agents to have everything", Ask::Progress, |answer| {
        answer.whole
    })?;
    let after = stage.usage()?;
    let answer = stage.ask(Ask::Progress)?;
    let size = stage.cluster.size;
    let (received, on_demand) = (answer.received, answer.on_demand);
    // Pods of the agents themselves are workloads too.
    let expected = (size.pods + size.nodes + size.services) as u64 * size.nodes as u64;
    ensure!(
        received.addresses == expected && received.pods == size.pods as u64,
        "the agents have {} workloads and services instead of {expected}, and {} pods of their own",
        received.addresses,
        received.pods,
    );
    let seconds = |from: u64, to: u64| to.saturating_sub(from) as f64 / 1e6;
    let each = |received: &Received, count: u64| count as f64 / received.whole.max(1) as f64;
    Ok(vec![
        Figure::new(
            "in step with the API server, from start",
            seconds(stage.started, in_step),
            "s",
        ),
        Figure::new(
            "all agents have everything, from start",
            seconds(stage.started, whole),
            "s",
        )
        .at_most(FIRST_PUSH),
        Figure::new(
            "all agents have everything, from being in step",
            seconds(in_step, whole),
            "s",
        ),
        Figure::new("CPU until in step", before.cpu, "s"),
        Figure::new("CPU of the first push", after.cpu - before.cpu, "s"),
        Figure::new("memory when in step", before.resident, "MB"),
        Figure::new("memory, peak of the first push", after.peak, "MB").at_most(MEMORY),
        Figure::new(
            "first push, an agent",
            each(&received, received.bytes) / 1e6,
            "MB",
        ),
        Figure::new(
            "first push, resources of an agent",
            each(&received, received.addresses + received.policies + received.pods),
            "",
        ),
        Figure::new(
            "first push, an agent on demand",
            each(&on_demand, on_demand.bytes) / 1e6,
            "MB",
        ),
        Figure::new(
            "of which workloads and services",
            each(&on_demand, on_demand.address_bytes) / 1e3,
            "kB",
        ),
        Figure::new(
            "workloads and services of an agent on demand",
            each(&on_demand, on_demand.addresses),
            "",
        ),
        Figure::new(
            "attempts of agents that failed before",
            answer.failures.values().sum::<u32>().into(),
            "",
        ),
    ])
}

fn changes(stage: &mut Stage, tell: Narrator) -> Result<Vec<Figure>> {
    let (size, agents) = (stage.cluster.size, stage.cluster.size.nodes);
    tell.say(format!("{} pods change, ten a second", size.changes));
    let (before, pushed) = (stage.usage()?, pushed(stage.metrics)?);
    let mut written = HashMap::new();
    let began = Instant::now();
    for index in 0..size.changes {
        let change = [Change::Labels, Change::Readiness, Change::New, Change::Deleted][index % 4];
        // No pod twice, no two of a service.
        let number = index * 7;
        let pod = match change {
            Change::New => stage.cluster.pod(size.pods + number),
            _ => stage.cluster.pod(number),
        };
        match change {
            Change::Labels => stage.cluster.put_pod(pod, "2"),
            Change::New => stage.cluster.put_pod(pod, "1"),
            Change::Readiness => stage.cluster.put_unready(pod),
            Change::Deleted => ensure!(stage.cluster.remove_pod(pod), "no such pod: {}", pod.name()),
        }
        written.insert(pod.workload(), (change, now()));
        let next = began + BETWEEN_CHANGES * u32::try_from(index + 1)?;
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    let arrived = stage.wait("all agents to have all changes", Ask::Arrivals, |answer| {
        let complete = written.keys().all(|name| {
            answer
                .arrivals
                .get(name)
                .is_some_and(|times| times.len() >= agents)
        });
        complete.then(|| answer.arrivals.clone())
    })?;
    let (took, usage) = (began.elapsed(), stage.usage()?);
    let mut delays: HashMap<Option<Change>, Vec<f64>> = HashMap::new();
    for (name, (change, at)) in &written {
        for time in &arrived[name] {
            let delay = time.saturating_sub(*at) as f64 / 1e3;
            delays.entry(None).or_default().push(delay);
            delays.entry(Some(*change)).or_default().push(delay);
        }
    }
    delays
        .values_mut()
        .for_each(|delays| delays.sort_by(f64::total_cmp));
    let quantile = |of: Option<Change>, share: f64| {
        let delays = delays.get(&of).map_or(&[][..], Vec::as_slice);
        let index = (delays.len().saturating_sub(1) as f64 * share).round() as usize;
        delays.get(index).copied().unwrap_or(f64::NAN)
    };
    let count = size.changes as f64;
    let mut figures = vec![
        Figure::new("a pod's change at every agent, p50", quantile(None, 0.5), "ms"),
        Figure::new("a pod's change at every agent, p99", quantile(None, 0.99), "ms").at_most(CHANGE),
        Figure::new(
            "a pod's change at every agent, longest",
            quantile(None, 1.0),
            "ms",
        ),
    ];
    for (name, change) in [
        ("labels", Change::Labels),
        ("readiness", Change::Readiness),
        ("a new pod", Change::New),
        ("a deleted pod", Change::Deleted),
    ] {
        figures.push(Figure::new(
            format!("{name}, p99"),
            quantile(Some(change), 0.99),
            "ms",
        ));
    }
    let cpu = usage.cpu - before.cpu;
    let bytes = self::pushed(stage.metrics)? - pushed;
    figures.extend([
        Figure::new("CPU of a change", cpu / count * 1e3, "ms"),
        Figure::new(
            "CPU while they change",
            cpu / took.as_secs_f64() * 100.0,
            "% of a core",
        ),
        Figure::new("a change, bytes of an agent", bytes / count / agents as f64, "B"),
    ]);
    Ok(figures)
}

fn reconnection(stage: &mut Stage, tell: Narrator) -> Result<Vec<Figure>> {
    tell.say("all agents connect again, with what they know");
    let (before, pushed) = (stage.usage()?, pushed(stage.metrics)?);
    let began = now();
    stage.ask(Ask::Reconnect)?;
    let whole = stage.wait("all agents to be back", Ask::Progress, |answer| answer.whole)?;
    let (usage, answer) = (stage.usage()?, stage.ask(Ask::Progress)?);
    let bytes = self::pushed(stage.metrics)? - pushed;
    Ok(vec![
        Figure::new("all agents back", whole.saturating_sub(began) as f64 / 1e6, "s"),
        Figure::new("sent to all that are back", bytes / 1e3, "kB"),
        Figure::new("of which on demand", answer.on_demand.bytes as f64 / 1e3, "kB"),
        Figure::new(
            "resources sent to those that had everything",
            (answer.received.addresses + answer.received.policies + answer.received.pods) as f64,
            "",
        ),
        Figure::new("CPU of their return", usage.cpu - before.cpu, "s"),
    ])
}

// === impl Stage ===

impl Stage {
    /// What weir-control has taken so far.
    fn usage(&self) -> Result<Usage> {
        let pid = self.control.pid();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let megabytes = |field: &str| -> Result<f64> {
            let line = status.lines().find_map(|line| line.strip_prefix(field));
            let kib = line.context("no memory: weir-control has ended")?;
            let kib: f64 = kib.trim().trim_end_matches(" kB").parse()?;
            Ok(kib * 1024.0 / 1e6)
        };
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let (_, fields) = stat.rsplit_once(')').context("/proc/PID/stat")?;
        // proc_pid_stat(5): the fields 14 and 15, of which the third is the first here.
        let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<f64>);
        let ticks = ticks.sum::<Result<f64, _>>()?;
        Ok(Usage {
            peak: megabytes("VmHWM:")?,
            resident: megabytes("VmRSS:")?,
            cpu: ticks / rustix::param::clock_ticks_per_second() as f64,
        })
    }
}

/// Encoded bytes of all responses so far.
fn pushed(metrics: SocketAddr) -> Result<f64> {
    let text = get(metrics, "/metrics").context("weir-control has no metrics")?;
    let values = text.lines().filter_map(|line| {
        let rest = line.strip_prefix("weir_ads_push_bytes_total{")?;
        rest.rsplit(' ').next()?.parse::<f64>().ok()
    });
    Ok(values.sum())
}

fn get(from: SocketAddr, path: &str) -> Option<String> {
    const ANSWER: Duration = Duration::from_secs(5);
    let mut socket = TcpStream::connect(from).ok()?;
    socket.set_read_timeout(Some(ANSWER)).ok()?;
    write!(
        socket,
        "GET {path} HTTP/1.1\r\nHost: control\r\nConnection: close\r\n\r\n"
    )
    .ok()?;
    let mut text = String::new();
    socket.read_to_string(&mut text).ok()?;
    Some(text)
}
