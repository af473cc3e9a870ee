//! What the map knows: pairs, the last flows, nodes that are away.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;
use serde_json::{Value, json};
use weir_proto::relay::{NodeState, NodeStatusEvent};
use weir_types::{
    Flow, FlowPath, FlowPeer,
    explain::{ExplainRequest, Explanation},
};

use crate::{
    observer::Viewer,
    pairs::{Pair, Pairs, Party, Rates},
};

/// Flows that are kept: about 1 KiB each.
const KEPT: usize = 5_000;
/// Flows of a pair that are told.
const TOLD: usize = 50;
/// A pair that is silent for so many seconds, with nothing open, is shown no more.
const SILENT: i64 = 15 * 60;
/// Pairs that are shown, the busiest of late: a page with more cannot be read, and each costs it some 300 bytes a second.
const SHOWN: usize = 2_000;
/// A pair that had plaintext so many seconds ago is shown as one in plaintext, whatever came after.
const PLAINTEXT: i64 = 60;

/// What all pages show.
#[derive(Debug, Default)]
pub(super) struct Shared(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    pairs: Pairs,
    recent: VecDeque<Arc<Flow>>,
    away: BTreeSet<String>,
}

// === impl Shared ===

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // No holder leaves it half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn take(&self, flow: Flow) {
        let mut state = self.state();
        state.pairs.take(&flow);
        if state.recent.len() >= KEPT {
            state.recent.pop_front();
        }
        state.recent.push_back(Arc::new(flow));
    }

    pub(super) fn lose(&self, count: u64) {
        self.state().pairs.lose(count);
    }

    pub(super) fn node(&self, status: &NodeStatusEvent) {
        let mut state = self.state();
        for name in &status.node_names {
            match status.state_change() {
                NodeState::NodeUnavailable | NodeState::NodeError => {
                    state.away.insert(name.clone());
                }
                NodeState::NodeConnected | NodeState::NodeGone => {
                    state.away.remove(name);
                }
                NodeState::UnknownNodeState => {}
            }
        }
    }

    /// The graph, as JSON.
    pub(super) fn graph(&self, viewer: &Viewer, now: Timestamp) -> Arc<str> {
        let state = self.state();
        let since = now.as_second() - SILENT;
        let mut shown: Vec<_> = state
            .pairs
            .iter()
            .filter(|((from, to), _)| may_see(viewer, from, to))
            .filter(|(_, pair)| pair.open > 0 || pair.last.as_second() >= since)
            .collect();
        let left = shown.len().saturating_sub(SHOWN);
        if left > 0 {
            shown.sort_by_key(|(_, pair)| std::cmp::Reverse(pair.last));
            shown.truncate(SHOWN);
            shown.sort_by(|one, other| one.0.cmp(other.0));
        }
        let edges: Vec<Value> = shown
            .into_iter()
            .map(|(key, pair)| edge(key, pair, now))
            .collect();
        let graph = json!({
            "time": now.as_millisecond(),
            "away": state.away,
            "lost": state.pairs.lost(),
            "left": left,
            "limit": viewer.namespaces,
            "edges": edges,
        });
        graph.to_string().into()
    }

    /// The last flows of a pair, newest first, as JSON.
    pub(super) fn flows(&self, viewer: &Viewer, from: &str, to: &str) -> String {
        let flows = self.of_pair(viewer, from, to, TOLD);
        let flows: Vec<Value> = flows
            .iter()
            .map(|flow| json!({ "flow": **flow, "explanation": flow.reason.explanation() }))
            .collect();
        json!({ "flows": flows }).to_string()
    }

    /// What a node is to be asked of the last connection of a pair, and which. Of nobody but who may see everything.
    pub(super) fn question(&self, viewer: &Viewer, from: &str, to: &str) -> Option<(String, ExplainRequest)> {
        if viewer.namespaces.is_some() {
            return None;
        }
        let flows = self.of_pair(viewer, from, to, 1);
        let flow = flows.first()?;
        let name = |peer: &FlowPeer| match (&peer.namespace, &peer.pod) {
            (Some(namespace), Some(pod)) => format!("{namespace}/{pod}"),
            _ => peer.address.ip().to_string(),
        };
        let asked = flow.original_destination.unwrap_or(flow.destination.address);
        let to = match &flow.service {
            Some(service) => format!("svc/{service}"),
            None => name(&flow.destination),
        };
        let request = ExplainRequest {
            from: name(&flow.source),
            to,
            port: asked.port(),
        };
        Some((flow.node.clone(), request))
    }

    fn of_pair(&self, viewer: &Viewer, from: &str, to: &str, most: usize) -> Vec<Arc<Flow>> {
        let recent: Vec<Arc<Flow>> = self.state().recent.iter().rev().cloned().collect();
        let is_of = |flow: &Arc<Flow>| {
            viewer.may_see(flow)
                && Party::of(&flow.source).to_string() == from
                && Party::of(&flow.destination).to_string() == to
        };
        recent.into_iter().filter(is_of).take(most).collect()
    }
}

/// What a node said, or why it cannot be said, as JSON.
pub(super) fn explained(answer: Result<Explanation, String>) -> String {
    let answer = match answer {
        Ok(explanation) => json!({
            "text": explanation.reason.explanation(),
            "explanation": explanation,
        }),
        Err(problem) => json!({ "problem": problem }),
    };
    answer.to_string()
}

fn may_see(viewer: &Viewer, from: &Party, to: &Party) -> bool {
    viewer.namespaces.is_none()
        || [from, to]
            .into_iter()
            .filter_map(|party| party.namespace())
            .any(|namespace| viewer.knows(namespace))
}

fn edge((from, to): &(Party, Party), pair: &Pair, now: Timestamp) -> Value {
    let rates = pair.rates(now);
    json!({
        "from": party(from),
        "to": party(to),
        "kind": kind(pair, &rates, now),
        "rate": rates.opened,
        "failing": rates.failed,
        "bytes": rates.bytes,
        "open": pair.open,
        "opened": pair.opened,
        "denied": pair.denied,
        "failed": pair.failed,
        "sent": pair.sent,
        "received": pair.received,
        "rtt": pair.rtt_us,
        "ports": pair.ports,
        "problem": pair.problem,
        "paths": { "mtls": pair.paths.tunnel, "direct": pair.paths.direct, "plaintext": pair.paths.plaintext },
        "last": pair.last.as_millisecond(),
    })
}

fn party(party: &Party) -> Value {
    let name = match party {
        Party::Workload { name, .. } => name.clone(),
        Party::Address(address) => address.to_string(),
    };
    json!({ "id": party.to_string(), "namespace": party.namespace(), "name": name })
}

/// The one word for a pair: what somebody should look at comes first.
fn kind(pair: &Pair, rates: &Rates, now: Timestamp) -> &'static str {
    let was_plaintext = pair
        .plaintext
        .is_some_and(|last| last.as_second() > now.as_second() - PLAINTEXT);
    match pair.path {
        _ if rates.failed > 0.0 || (pair.path.is_none() && pair.denied + pair.failed > 0) => "failing",
        Some(FlowPath::Plaintext | FlowPath::Kernel) => "plaintext",
        _ if was_plaintext => "plaintext",
        Some(FlowPath::Direct) if pair.paths.tunnel == 0 => "direct",
        _ => "mtls",
    }
}
