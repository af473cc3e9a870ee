//! Events of connections that never were, put into an agent's ring buffer by a kernel program of the bench's own.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::{HashMap, Map, MapData},
    programs::{SchedClassifier, TestRun as _, TestRunOptions},
};
use weir_abi::{ConnKind, Endpoint, Event, FlowKey, LAYOUT_VERSION, Pod as PodEntry};
use weir_lab::{Agent, Pod};
use weir_types::FlowEvent;

use crate::bench::{Path, system::System};

/// Where the build leaves it, beside the agent's folder.
const OBJECT: &str = "../ebpf/bpfel-unknown-none/release/weir-synthesize";
const PROGRAM: &str = "weir_synthesize";
/// The process's name in them.
const MADE_UP: &str = "made-up";
/// Events come in bursts of this length, as they do from a busy node.
const BURST: Duration = Duration::from_millis(2);

/// Makes events.
pub(super) struct Source {
    ebpf: Ebpf,
    event: Vec<u8>,
}

/// What was made.
pub(super) struct Made {
    pub(super) connections: u64,
    pub(super) took: Duration,
}

/// What an agent says of its records, and what it took.
pub(super) struct Counters {
    pub(super) recorded: u64,
    pub(super) lost: u64,
    /// Seconds.
    pub(super) cpu: f64,
}

// === impl Source ===

impl Source {
    /// For the first agent of a system: direct connections of its client to the server that is near.
    pub(super) fn new(system: &System) -> Result<Self> {
        let agent = system.agents().first().context("no agent")?;
        let program = weir_lab::program("weir-agent")?;
        let object = program.parent().context("the agent's folder")?.join(OBJECT);
        let bytes =
            fs::read(&object).with_context(|| format!("{}: build the agent first", object.display()))?;
        let pins = pins(agent);
        let mut loader = EbpfLoader::new();
        for map in ["EVENTS", "LOST"] {
            loader.map_pin_path(map, pins.join(map));
        }
        let mut ebpf = loader.load(&bytes)?;
        classifier(&mut ebpf)?.load()?;
        let mut source = Self {
            ebpf,
            event: event(agent, system)?,
        };
        source.check(agent, &system.client)?;
        Ok(source)
    }

    /// Makes so many connections a second, each opened and closed at once.
    pub(super) fn run(&mut self, per_second: u32, length: Duration) -> Result<Made> {
        let started = Instant::now();
        let mut connections = 0;
        while started.elapsed() < length {
            let due = (started.elapsed().as_secs_f64() * f64::from(per_second)) as u64;
            self.make(u32::try_from(due - connections)?)?;
            connections = due;
            thread::sleep(BURST);
        }
        Ok(Made {
            connections,
            took: started.elapsed(),
        })
    }

    fn make(&mut self, connections: u32) -> Result<()> {
        if connections == 0 {
            return Ok(());
        }
        let options = TestRunOptions {
            data_in: Some(&self.event),
            repeat: connections,
            ..TestRunOptions::new()
        };
        let ran = classifier(&mut self.ebpf)?.test_run(options)?;
        ensure!(ran.return_value == 0, "{PROGRAM} returned {}", ran.return_value);
        Ok(())
    }

    /// That they are taken for connections of these pods: others would be passed over, and cost nothing.
    fn check(&mut self, agent: &Agent, client: &Pod) -> Result<()> {
        self.make(1)?;
        agent.wait_flow("the record of a made-up connection", |flow| {
            let process = flow.process.as_ref();
            process.is_some_and(|process| process.name == MADE_UP)
                && flow.event == FlowEvent::Close
                && flow.source.pod.as_deref() == Some(client.spec().name.as_str())
        })?;
        Ok(())
    }
}

fn classifier(ebpf: &mut Ebpf) -> Result<&mut SchedClassifier> {
    let program = ebpf.program_mut(PROGRAM).context(PROGRAM)?;
    Ok(program.try_into()?)
}

fn pins(agent: &Agent) -> PathBuf {
    agent.config().pin_dir.join(format!("v{LAYOUT_VERSION}"))
}

/// The event of a direct connection, as bytes.
fn event(agent: &Agent, system: &System) -> Result<Vec<u8>> {
    let data = MapData::from_pin(pins(agent).join("PODS"))?;
    let pods: HashMap<MapData, u64, PodEntry> = HashMap::try_from(Map::HashMap(data))?;
    let handle = |address: IpAddr| {
        let v4 = PodEntry::new(0, &[address]).v4;
        let mut entries = pods.iter().filter_map(Result::ok);
        let found = entries.find(|(_, entry)| entry.v4 == v4);
        found
            .map(|(_, entry)| entry.handle)
            .with_context(|| format!("{address} is not enrolled"))
    };
    let from = SocketAddr::new(system.client.v4().into(), 40_000);
    let to = system.rr(Path::SameNode);
    let mut comm = [0; 16];
    comm[..MADE_UP.len()].copy_from_slice(MADE_UP.as_bytes());
    let event = Event {
        duration_ns: 1_000_000,
        bytes_sent: 64,
        bytes_received: 64,
        key: FlowKey {
            src: Endpoint::from(from),
            dst: Endpoint::from(to),
        },
        conn_kind: ConnKind::DIRECT,
        pod: handle(from.ip())?,
        dest_pod: handle(to.ip())?,
        established: 1,
        rtt_us: 50,
        pid: std::process::id(),
        orig: Endpoint::from(to),
        comm,
        ..Event::default()
    };
    Ok(event.to_bytes().to_vec())
}

/// What an agent says now.
pub(super) fn counters(agent: &Agent) -> Result<Counters> {
    let status = agent.status()?;
    let stat = fs::read_to_string(format!("/proc/{}/stat", agent.pid()))?;
    let (_, fields) = stat.rsplit_once(')').context("/proc/PID/stat")?;
    let mut ticks = 0;
    for field in fields.split_whitespace().skip(11).take(2) {
        ticks += field.parse::<u64>()?;
    }
    Ok(Counters {
        recorded: status.flows_recorded,
        lost: status.flows_lost,
        cpu: ticks as f64 / rustix::param::clock_ticks_per_second() as f64,
    })
}
