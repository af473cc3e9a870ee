//! Flow records summed up: who connected to whom, how.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use jiff::Timestamp;
use serde::Serialize;
use weir_types::{Flow, FlowEvent, FlowPath, FlowPeer, FlowVerdict, TrafficDirection};

/// Sums of flow records. Which agent said what does not matter, but for how far back its records go.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    /// Earlier records are not counted.
    pub(crate) since: Timestamp,
    /// Only of these namespaces, at either end; of all if there are none.
    pub(crate) namespaces: Vec<String>,
    /// Pods that are only observed: plaintext is what they are to speak.
    pub(crate) observed: HashSet<(String, String)>,
    pub(crate) made: BTreeMap<Key, Both>,
    pub(crate) denied: BTreeMap<DeniedKey, Both>,
    /// Connections that a policy in dry run would have refused.
    pub(crate) would_be_denied: BTreeMap<String, u64>,
    pub(crate) failed: u64,
}

/// What connections are told apart by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) way: Way,
    pub(crate) source: String,
    pub(crate) destination: String,
    pub(crate) port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct DeniedKey {
    pub(crate) source: String,
    pub(crate) destination: String,
    pub(crate) port: u16,
    pub(crate) reason: String,
    pub(crate) policy: Option<String>,
}

/// How bytes travelled. What a reader is to look at first comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Way {
    /// In the clear.
    Plaintext,
    /// In the clear, of pods that are only observed.
    PlaintextObserved,
    /// Within a node, authenticated by its kernel, in the clear.
    SameNode,
    /// Through a tunnel with mutual TLS.
    MutualTls,
}

/// Sums by the side that recorded: a connection between two nodes is recorded by both.
#[derive(Debug, Default)]
pub(crate) struct Both {
    client: Sum,
    server: Sum,
    pub(crate) services: BTreeSet<String>,
    pub(crate) tls: BTreeSet<String>,
    pub(crate) first: Option<Timestamp>,
    pub(crate) last: Option<Timestamp>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Sum {
    count: u64,
    bytes: u64,
}

/// The records of one agent.
#[derive(Debug, Default)]
pub(crate) struct Records {
    open: HashSet<u64>,
    pub(crate) count: u64,
    pub(crate) oldest: Option<Timestamp>,
}

// === impl Connections ===

impl Connections {
    /// Counts a record of an agent. `records` are that agent's.
    pub(crate) fn add(&mut self, records: &mut Records, flow: &Flow) {
        records.count += 1;
        records.oldest = Some(records.oldest.map_or(flow.time, |oldest| oldest.min(flow.time)));
        if flow.time < self.since || !self.concerns(flow) {
            return;
        }
        if let Some(policy) = &flow.dry_run
            && flow.event != FlowEvent::Close
        {
            *self.would_be_denied.entry(policy.policy.to_string()).or_default() += 1;
        }
        if flow.verdict == FlowVerdict::Denied {
            let key = DeniedKey {
                source: who(&flow.source),
                destination: who(&flow.destination),
                port: flow.destination.address.port(),
                reason: flow.reason.to_string(),
                policy: flow.policy.as_ref().map(ToString::to_string),
            };
            self.denied.entry(key).or_default().add(flow, true, 0);
        }
        let way = match (flow.event, flow.path) {
            (FlowEvent::Refused, _) => {
                self.failed += u64::from(flow.verdict == FlowVerdict::Failed);
                return;
            }
            (_, FlowPath::Tunnel) => Way::MutualTls,
            (_, FlowPath::Direct) => Way::SameNode,
            (_, FlowPath::Plaintext | FlowPath::Kernel) if self.is_observed(flow) => Way::PlaintextObserved,
            (_, FlowPath::Plaintext | FlowPath::Kernel) => Way::Plaintext,
            (_, FlowPath::Nowhere) => return,
        };
        let key = Key {
            way,
            source: who(&flow.source),
            destination: who(&flow.destination),
            port: flow.destination.address.port(),
        };
        let (new, bytes) = match flow.event {
            FlowEvent::Open => (records.open.insert(flow.connection), 0),
            // One that was opened before the oldest record.
            _ => (
                !records.open.remove(&flow.connection),
                flow.bytes_sent.saturating_add(flow.bytes_received),
            ),
        };
        self.made.entry(key).or_default().add(flow, new, bytes);
    }

    fn concerns(&self, flow: &Flow) -> bool {
        let ends = [&flow.source, &flow.destination];
        let mut namespaces = ends.into_iter().filter_map(|end| {
            let identity = end.identity.as_ref().map(|identity| identity.namespace());
            end.namespace.as_deref().or(identity)
        });
        self.namespaces.is_empty() || namespaces.any(|one| self.namespaces.iter().any(|wanted| wanted == one))
    }

    /// Whether the pod of which this is the record is only observed.
    fn is_observed(&self, flow: &Flow) -> bool {
        let end = match flow.direction {
            TrafficDirection::Egress => &flow.source,
            TrafficDirection::Ingress => &flow.destination,
        };
        let pod = end.namespace.clone().zip(end.pod.clone());
        pod.is_some_and(|pod| self.observed.contains(&pod))
    }
}

// === impl Both ===

impl Both {
    fn add(&mut self, flow: &Flow, new: bool, bytes: u64) {
        let sum = match flow.direction {
            TrafficDirection::Egress => &mut self.client,
            TrafficDirection::Ingress => &mut self.server,
        };
        sum.count += u64::from(new);
        sum.bytes = sum.bytes.saturating_add(bytes);
        self.services.extend(flow.service.clone());
        self.tls.extend(flow.tls.clone());
        self.first = Some(self.first.map_or(flow.time, |first| first.min(flow.time)));
        self.last = Some(self.last.map_or(flow.time, |last| last.max(flow.time)));
    }

    /// Connections, each once.
    pub(crate) fn count(&self) -> u64 {
        self.client.count.max(self.server.count)
    }

    /// Bytes both ways, of connections that have ended.
    pub(crate) fn bytes(&self) -> u64 {
        self.client.bytes.max(self.server.bytes)
    }
}

/// One end, by what is known of it.
fn who(peer: &FlowPeer) -> String {
    if let Some(identity) = &peer.identity {
        return identity.to_string();
    }
    match (&peer.namespace, &peer.pod) {
        (Some(namespace), Some(pod)) => format!("{namespace}/{pod} (no identity)"),
        _ => format!("{} (no identity)", peer.address.ip().to_canonical()),
    }
}
