//! What the mesh takes: the agents' own CPU time and memory.

use jiff::Timestamp;
use weir_types::api::{ProcessStatus, Status};

use super::{
    report::{Cost, NodeCost},
    state::State,
};

/// Bytes of a gigabyte.
const GIGABYTE: f64 = 1e9;
/// Below this a share of a gigabyte says nothing: what the agent does besides is most of it.
const FEW_BYTES: u64 = 10_000_000;
/// And below this one of a connection.
const FEW_CONNECTIONS: u64 = 100;

/// Of every agent that says it.
pub(crate) fn cost(state: &State) -> Cost {
    let mut notes = Vec::new();
    if !state.asked {
        notes.push("records do not say what agents take: ask running ones".to_owned());
    }
    let mut nodes = Vec::new();
    let mut all = ProcessStatus {
        cpu_ms: 0,
        resident_bytes: 0,
        bytes: 0,
        connections: 0,
    };
    let mut up = 0.0;
    for status in &state.statuses {
        let Some(process) = &status.process else {
            notes.push(format!(
                "the agent of {} is too old to say what it takes",
                status.node
            ));
            continue;
        };
        all.cpu_ms += process.cpu_ms;
        all.resident_bytes += process.resident_bytes;
        all.bytes += process.bytes;
        all.connections += process.connections;
        let seconds = age(status, state.now);
        up += seconds;
        nodes.push(of(&status.node, process, seconds));
    }
    notes.extend(state.missing.clone());
    let total = (!nodes.is_empty()).then(|| NodeCost {
        // Of all nodes at once, and not of one on average.
        cores: rounded(nodes.iter().map(|node| node.cores).sum()),
        ..of("all", &all, up)
    });
    if !nodes.is_empty() {
        notes.push(
            "since each agent started; bytes and connections are those it recorded, also between pods of a node, which cost it \
             the first connection only; one between two nodes is in the counts of both"
                .to_owned(),
        );
    }
    if nodes
        .iter()
        .any(|node| node.bytes < FEW_BYTES || node.connections < FEW_CONNECTIONS)
    {
        notes.push(format!(
            "no share is told of less than {} MB or {FEW_CONNECTIONS} connections: it would be of what the agent does without any",
            FEW_BYTES / 1_000_000
        ));
    }
    Cost { nodes, total, notes }
}

fn age(status: &Status, now: Timestamp) -> f64 {
    let ms = now.as_millisecond() - status.started.as_millisecond();
    ms.max(0) as f64 / 1e3
}

fn of(node: &str, process: &ProcessStatus, up: f64) -> NodeCost {
    let cpu = process.cpu_ms as f64 / 1e3;
    NodeCost {
        node: node.to_owned(),
        up_seconds: rounded(up),
        cpu_seconds: rounded(cpu),
        cores: if up > 0.0 { rounded(cpu / up) } else { 0.0 },
        resident_bytes: process.resident_bytes,
        bytes: process.bytes,
        connections: process.connections,
        cpu_seconds_per_gigabyte: (process.bytes >= FEW_BYTES)
            .then(|| rounded(cpu / (process.bytes as f64 / GIGABYTE))),
        cpu_ms_per_connection: (process.connections >= FEW_CONNECTIONS)
            .then(|| rounded(cpu * 1e3 / process.connections as f64)),
    }
}

/// To three digits: more are none that were measured.
pub(crate) fn rounded(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return 0.0;
    }
    let digits = 2 - value.abs().log10().floor() as i32;
    let scale = 10_f64.powi(digits.clamp(-300, 300));
    (value * scale).round() / scale
}
