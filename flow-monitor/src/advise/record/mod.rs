//! Flow records summed up by pair of workloads: as much memory as there are pairs, however many records.

mod sums;
mod workloads;

use std::{collections::BTreeMap, net::IpAddr};

use jiff::Timestamp;
use weir_types::{
    Flow, FlowEvent, FlowPath, FlowPeer, FlowVerdict, Identity, PolicyMatch, Reason, TrafficDirection,
    api::WorkloadStatus,
};

pub(crate) use sums::{Blocks, Sum};
pub(crate) use workloads::{Id, Selection, Workloads};

/// Pairs, addresses and workloads that are kept apart: some hundred bytes each.
const MAX_ENTRIES: usize = 200_000;
/// Policies that are remembered of a workload.
const MAX_POLICIES: usize = 32;

/// What was seen.
#[derive(Debug)]
pub(crate) struct Record {
    /// Earlier records are not counted.
    since: Timestamp,
    /// Only connections to these namespaces; to all if there are none.
    pub(crate) namespaces: Vec<String>,
    pub(crate) nodes: BTreeMap<String, NodeRecord>,
    pub(crate) workloads: Workloads,
    pub(crate) pairs: BTreeMap<Pair, Seen>,
    /// Policies that decided about connections to a workload.
    pub(crate) policies: BTreeMap<Id, BTreeMap<String, Effect>>,
    /// Probes of the kubelet, by workload.
    pub(crate) probes: BTreeMap<Id, u64>,
    /// Records that are counted.
    pub(crate) flows: u64,
    /// Connections to what is in no namespace, at least: nothing of the mesh concerns them.
    pub(crate) outside: Sum,
    /// Records of other things than connections of TCP.
    pub(crate) others: u64,
    /// Records that were not counted, for there were too many different ones.
    pub(crate) left_out: u64,
    entries: usize,
}

/// What one agent recorded.
#[derive(Debug, Default)]
pub(crate) struct NodeRecord {
    pub(crate) flows: u64,
    pub(crate) from: Option<Timestamp>,
    pub(crate) until: Option<Timestamp>,
    /// Events that the agent says were lost.
    pub(crate) lost: u64,
    /// Numbers that no record bears, between the first and the last.
    pub(crate) missing: u64,
    /// Times that the numbers began anew.
    pub(crate) restarts: u64,
    /// Records that came after later ones: the same twice, or files in disorder.
    pub(crate) disordered: u64,
    newest: Option<(u64, Timestamp)>,
}

/// A client, and one port of a workload.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Pair {
    pub(crate) to: Id,
    pub(crate) port: u16,
    pub(crate) from: Client,
}

/// Who a server sees.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Client {
    /// Somebody whose identity is verified.
    Verified(Identity),
    /// A pod that comes without an identity.
    Plain(Id),
    /// An address that is no pod's.
    Unknown,
}

/// The connections of a pair.
#[derive(Debug)]
pub(crate) enum Seen {
    Verified(Sum),
    /// By address.
    Plain(Blocks),
}

/// What a policy did to connections.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Effect {
    /// One of its rules allowed.
    pub(crate) allowed: u64,
    /// One of its rules refused: it is a DENY.
    pub(crate) refused: u64,
    /// None of its rules allowed: it is an ALLOW.
    pub(crate) not_allowed: u64,
    /// It is in dry run, and would have refused.
    pub(crate) would_refuse: u64,
}

// === impl Record ===

impl Record {
    pub(crate) fn new(since: Timestamp, namespaces: Vec<String>) -> Self {
        Self {
            since,
            namespaces,
            nodes: BTreeMap::new(),
            workloads: Workloads::default(),
            pairs: BTreeMap::new(),
            policies: BTreeMap::new(),
            probes: BTreeMap::new(),
            flows: 0,
            outside: Sum::default(),
            others: 0,
            left_out: 0,
            entries: 0,
        }
    }

    /// Takes over what agents know of pods. Before any record is counted.
    pub(crate) fn learn(&mut self, workloads: &[WorkloadStatus]) {
        workloads.iter().for_each(|one| self.workloads.learn(one));
    }

    /// Counts that an agent lost events.
    pub(crate) fn lost(&mut self, node: &str, count: u64) {
        if self.nodes.len() < MAX_ENTRIES || self.nodes.contains_key(node) {
            let node = self.nodes.entry(node.to_owned()).or_default();
            node.lost = node.lost.saturating_add(count);
        }
    }

    /// Counts a record.
    pub(crate) fn add(&mut self, flow: &Flow) {
        if flow.time < self.since {
            return;
        }
        if self.entries >= MAX_ENTRIES {
            self.left_out += 1;
            return;
        }
        self.entries += usize::from(!self.nodes.contains_key(&flow.node));
        self.nodes.entry(flow.node.clone()).or_default().add(flow);
        self.flows += 1;
        // Clients too: whether a selector chooses one workload alone depends on all others.
        let from = self.workloads.of_peer(&flow.source);
        let to = self.workloads.of_peer(&flow.destination);
        self.entries += [from, to]
            .into_iter()
            .flatten()
            .map(|(_, added)| added)
            .sum::<usize>();
        let Some((to, _)) = to else {
            self.outside.add(flow);
            return;
        };
        let namespace = &self.workloads.get(to).namespace;
        if !self.namespaces.is_empty() && !self.namespaces.contains(namespace) {
            return;
        }
        if is_probe(flow) {
            *self.probes.entry(to).or_default() += u64::from(flow.event != FlowEvent::Close);
            return;
        }
        self.decided(to, flow);
        let from = match (shown(flow), from) {
            (Some(identity), _) => Client::Verified(identity.clone()),
            (None, Some((from, _))) => Client::Plain(from),
            (None, None) => Client::Unknown,
        };
        let plain = !matches!(from, Client::Verified(_));
        let port = flow.destination.address.port();
        let entries = &mut self.entries;
        let seen = self.pairs.entry(Pair { to, port, from }).or_insert_with(|| {
            *entries += 1;
            if plain {
                Seen::Plain(Blocks::default())
            } else {
                Seen::Verified(Sum::default())
            }
        });
        match seen {
            Seen::Verified(sum) => sum.add(flow),
            Seen::Plain(blocks) => {
                let more = blocks.add(flow.source.address.ip(), flow);
                *entries = entries.saturating_add_signed(more);
            }
        }
    }

    fn decided(&mut self, to: Id, flow: &Flow) {
        // Its end says the same again.
        if flow.event == FlowEvent::Close && flow.verdict != FlowVerdict::Denied {
            return;
        }
        let refused = flow.verdict == FlowVerdict::Denied;
        let decided = [(&flow.policy, false), (&flow.dry_run, true)];
        for (PolicyMatch { policy, rule }, dry_run) in decided
            .into_iter()
            .filter_map(|(policy, dry)| Some((policy.as_ref()?, dry)))
        {
            let policies = self.policies.entry(to).or_default();
            if policies.len() == MAX_POLICIES && !policies.contains_key(&**policy) {
                continue;
            }
            let effect = policies.entry(policy.to_string()).or_default();
            match (dry_run, refused) {
                (true, _) => effect.would_refuse += 1,
                (false, true) if rule.is_some() => effect.refused += 1,
                (false, true) if flow.reason == Reason::NotAllowed => effect.not_allowed += 1,
                // A PeerAuthentication's.
                (false, true) => {}
                (false, false) => effect.allowed += 1,
            }
        }
    }

    /// From the first to the last record.
    pub(crate) fn span(&self) -> Option<(Timestamp, Timestamp)> {
        let from = self.nodes.values().filter_map(|node| node.from).min()?;
        let until = self.nodes.values().filter_map(|node| node.until).max()?;
        Some((from, until))
    }
}

// === impl NodeRecord ===

impl NodeRecord {
    fn add(&mut self, flow: &Flow) {
        self.flows += 1;
        self.from = Some(self.from.map_or(flow.time, |from| from.min(flow.time)));
        self.until = self.until.max(Some(flow.time));
        match self.newest {
            Some((newest, time)) if flow.sequence <= newest && flow.time > time => self.restarts += 1,
            Some((newest, _)) if flow.sequence <= newest => {
                self.disordered += 1;
                return;
            }
            Some((newest, _)) => {
                self.missing = self.missing.saturating_add(flow.sequence - newest - 1);
            }
            None => {}
        }
        self.newest = Some((flow.sequence, flow.time));
    }
}

// === impl Seen ===

impl Seen {
    pub(crate) fn total(&self) -> Sum {
        match self {
            Self::Verified(sum) => sum.clone(),
            Self::Plain(blocks) => blocks.total(),
        }
    }
}

// === impl Effect ===

impl Effect {
    pub(crate) fn merge(&mut self, other: Self) {
        self.allowed += other.allowed;
        self.refused += other.refused;
        self.not_allowed += other.not_allowed;
        self.would_refuse += other.would_refuse;
    }
}

/// The identity that the server is shown: a client's node knows it also where nobody else is told.
fn shown(flow: &Flow) -> Option<&Identity> {
    match flow.path {
        FlowPath::Tunnel | FlowPath::Direct | FlowPath::Nowhere => flow.source.identity.as_ref(),
        FlowPath::Plaintext | FlowPath::Kernel => None,
    }
}

/// A probe of the kubelet: of what comes in plaintext it is all that an agent knows a process of.
fn is_probe(flow: &Flow) -> bool {
    let FlowPeer { identity, pod, .. } = &flow.source;
    flow.direction == TrafficDirection::Ingress
        && flow.path == FlowPath::Plaintext
        && flow.process.is_some()
        && identity.is_none()
        && pod.is_none()
}

/// A client's address, for a person.
pub(crate) fn address(text: &str) -> String {
    match text.parse::<IpAddr>() {
        Ok(address) => address.to_string(),
        Err(_) => format!("addresses of {text}"),
    }
}
