//! Who talks to whom, and how much: flows summed up by pairs of workloads.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    net::IpAddr,
};

use jiff::{Timestamp, Unit};
use weir_types::{Flow, FlowEvent, FlowPath, FlowPeer, FlowVerdict, TrafficDirection};

/// Pairs that are kept: the one that was silent longest goes when there are more.
const MOST: usize = 10_000;
/// Connections that are known as open, over all pairs.
const MOST_OPEN: usize = 200_000;
/// The span over which rates are told, in seconds.
pub const SPAN: i64 = 10;

/// One end of a pair.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Party {
    /// A workload, or a pod that no workload is known of.
    Workload {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// An address of which nothing is known.
    Address(IpAddr),
}

/// What two parties do.
#[derive(Debug, Clone, Default)]
pub struct Pair {
    /// Connections that were opened.
    pub opened: u64,
    /// Connections that are open now, as far as that is known.
    pub open: u64,
    /// Connections that Weir refused.
    pub denied: u64,
    /// Connections that failed for another cause.
    pub failed: u64,
    /// Bytes from client to server, of connections that ended.
    pub sent: u64,
    /// Bytes back.
    pub received: u64,
    /// Round-trip time of the last connection that had one, microseconds.
    pub rtt_us: Option<u32>,
    /// Connections by how they went.
    pub paths: Paths,
    /// How the last one went.
    pub path: Option<FlowPath>,
    /// When the last one in plaintext was seen.
    pub plaintext: Option<Timestamp>,
    /// The ports of the server, of the last few connections.
    pub ports: Vec<u16>,
    /// Why the last one was refused or failed.
    pub problem: Option<String>,
    /// When something happened last.
    pub last: Timestamp,
    /// Of the last seconds: second, opened, refused or failed, bytes.
    recent: VecDeque<(i64, u64, u64, u64)>,
}

/// Connections by how they went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Paths {
    /// By mutual TLS.
    pub tunnel: u64,
    /// In the clear between pods of one node, for both of which the kernel vouches.
    pub direct: u64,
    /// In plaintext.
    pub plaintext: u64,
}

/// What happens in a second, over the last [`SPAN`].
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Rates {
    /// Connections that are opened.
    pub opened: f64,
    /// Connections that are refused or fail.
    pub failed: f64,
    /// Bytes both ways, of connections that end.
    pub bytes: f64,
}

/// All pairs.
#[derive(Debug, Default)]
pub struct Pairs {
    all: BTreeMap<(Party, Party), Pair>,
    /// Those that are open, by node and number.
    open: HashMap<(String, u64), (Party, Party)>,
    lost: u64,
}

// === impl Party ===

impl Party {
    pub(crate) fn of(peer: &FlowPeer) -> Self {
        let workload = peer.about.as_ref().and_then(|about| about.workload.as_ref());
        let name = workload.map(|workload| &workload.name).or(peer.pod.as_ref());
        match (&peer.namespace, name) {
            (Some(namespace), Some(name)) => Self::Workload {
                namespace: namespace.clone(),
                name: name.clone(),
            },
            _ => Self::Address(peer.address.ip()),
        }
    }

    /// Its namespace, if one is known.
    #[must_use]
    pub fn namespace(&self) -> Option<&str> {
        match self {
            Self::Workload { namespace, .. } => Some(namespace),
            Self::Address(_) => None,
        }
    }
}

impl std::fmt::Display for Party {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Workload { namespace, name } => write!(f, "{namespace}/{name}"),
            Self::Address(address) => address.fmt(f),
        }
    }
}

// === impl Pairs ===

impl Pairs {
    /// Takes a record in. A connection that both its ends record counts once: the client's record does.
    pub fn take(&mut self, flow: &Flow) {
        let is_clients = flow.direction == TrafficDirection::Egress;
        if !is_clients && flow.source.identity.is_some() {
            return;
        }
        let key = (Party::of(&flow.source), Party::of(&flow.destination));
        let id = (flow.node.clone(), flow.connection);
        if !self.all.contains_key(&key) && self.all.len() >= MOST {
            self.forget_silent();
        }
        let pair = self.all.entry(key.clone()).or_default();
        pair.last = pair.last.max(flow.time);
        let port = flow
            .original_destination
            .unwrap_or(flow.destination.address)
            .port();
        if !pair.ports.contains(&port) {
            pair.ports.truncate(3);
            pair.ports.insert(0, port);
        }
        if flow.event != FlowEvent::Refused && flow.path != FlowPath::Nowhere {
            pair.path = Some(flow.path);
            if matches!(flow.path, FlowPath::Plaintext | FlowPath::Kernel) {
                pair.plaintext = pair.plaintext.max(Some(flow.time));
            }
        }
        let second = flow.time.as_second();
        match flow.event {
            FlowEvent::Open => {
                pair.opened += 1;
                match flow.path {
                    FlowPath::Tunnel => pair.paths.tunnel += 1,
                    FlowPath::Direct => pair.paths.direct += 1,
                    FlowPath::Plaintext | FlowPath::Kernel | FlowPath::Nowhere => pair.paths.plaintext += 1,
                }
                pair.count(second, 1, 0, 0);
                if self.open.len() < MOST_OPEN && self.open.insert(id, key).is_none() {
                    pair.open += 1;
                }
            }
            FlowEvent::Close => {
                pair.sent += flow.bytes_sent;
                pair.received += flow.bytes_received;
                pair.rtt_us = flow.rtt_us.or(pair.rtt_us);
                pair.count(second, 0, 0, flow.bytes_sent + flow.bytes_received);
                if let Some(pair) = self.open.remove(&id).and_then(|key| self.all.get_mut(&key)) {
                    pair.open = pair.open.saturating_sub(1);
                }
            }
            FlowEvent::Refused => {
                match flow.verdict {
                    FlowVerdict::Denied => pair.denied += 1,
                    FlowVerdict::Failed | FlowVerdict::Forwarded => pair.failed += 1,
                }
                pair.problem = Some(flow.reason.as_str().to_owned());
                pair.count(second, 0, 1, 0);
            }
        }
    }

    /// Counts records that were lost.
    pub fn lose(&mut self, count: u64) {
        self.lost += count;
    }

    /// Records that were lost.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// All pairs, ordered by their parties.
    pub fn iter(&self) -> impl Iterator<Item = (&(Party, Party), &Pair)> {
        self.all.iter()
    }

    /// Takes out what was silent longest: a tenth, so that it is not done each time.
    fn forget_silent(&mut self) {
        let mut times: Vec<Timestamp> = self.all.values().map(|pair| pair.last).collect();
        let (_, oldest, _) = times.select_nth_unstable(MOST / 10);
        let oldest = *oldest;
        self.all.retain(|_, pair| pair.last > oldest || pair.open > 0);
        if self.all.len() >= MOST {
            // All of them are busy: bounds count for more than what is still open.
            self.all.retain(|_, pair| pair.last > oldest);
        }
        let all = &self.all;
        self.open.retain(|_, key| all.contains_key(key));
    }
}

// === impl Pair ===

impl Pair {
    fn count(&mut self, second: i64, opened: u64, failed: u64, bytes: u64) {
        match self.recent.back_mut() {
            Some(last) if last.0 >= second => {
                last.1 += opened;
                last.2 += failed;
                last.3 += bytes;
            }
            _ => self.recent.push_back((second, opened, failed, bytes)),
        }
        while self.recent.front().is_some_and(|first| first.0 < second - SPAN) {
            self.recent.pop_front();
        }
    }

    /// What happens in a second.
    #[must_use]
    pub fn rates(&self, now: Timestamp) -> Rates {
        let now = now.round(Unit::Second).unwrap_or(now).as_second();
        let mut rates = Rates::default();
        for (_, opened, failed, bytes) in self.recent.iter().filter(|one| one.0 > now - SPAN) {
            rates.opened += *opened as f64;
            rates.failed += *failed as f64;
            rates.bytes += *bytes as f64;
        }
        let span = SPAN as f64;
        Rates {
            opened: rates.opened / span,
            failed: rates.failed / span,
            bytes: rates.bytes / span,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(second: i64, event: &str, more: serde_json::Value) -> Flow {
        let mut value = serde_json::json!({
            "sequence": 1, "time": Timestamp::from_second(second).unwrap(), "node": "n", "connection": 1, "event": event,
            "verdict": "forwarded", "reason": "none", "direction": "egress", "path": "tunnel",
            "source": {"address": "10.0.0.1:4000", "namespace": "shop", "pod": "web-1",
                "identity": "spiffe://cluster.local/ns/shop/sa/web",
                "about": {"workload": {"name": "web", "kind": "Deployment"}}},
            "destination": {"address": "10.0.1.1:80", "namespace": "shop", "pod": "api-0"},
            "bytesSent": 10, "bytesReceived": 90, "durationUs": 5,
        });
        for (name, own) in more.as_object().unwrap() {
            value[name] = own.clone();
        }
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_connection_counts_once_and_is_open_until_it_ends() {
        let mut pairs = Pairs::default();
        pairs.take(&flow(100, "open", serde_json::json!({})));
        // The server's record of the same.
        pairs.take(&flow(
            100,
            "open",
            serde_json::json!({ "direction": "ingress", "node": "m" }),
        ));
        let only = |pairs: &Pairs| {
            let all: Vec<_> = pairs
                .iter()
                .map(|(key, pair)| (key.clone(), pair.clone()))
                .collect();
            assert_eq!(all.len(), 1);
            all[0].clone()
        };
        let ((from, to), pair) = only(&pairs);
        assert_eq!(
            (from.to_string().as_str(), to.to_string().as_str()),
            ("shop/web", "shop/api-0")
        );
        assert_eq!((pair.opened, pair.open, pair.paths.tunnel), (1, 1, 1));
        pairs.take(&flow(103, "close", serde_json::json!({ "rttUs": 7 })));
        let refused = serde_json::json!({ "verdict": "denied", "reason": "not_allowed", "path": "nowhere" });
        pairs.take(&flow(104, "refused", refused));
        let (_, pair) = only(&pairs);
        assert_eq!(
            (pair.open, pair.sent, pair.received, pair.rtt_us),
            (0, 10, 90, Some(7))
        );
        assert_eq!((pair.denied, pair.problem.as_deref()), (1, Some("not_allowed")));
        let rates = pair.rates(Timestamp::from_second(105).unwrap());
        assert_eq!((rates.opened, rates.failed, rates.bytes), (0.1, 0.1, 10.0));
        assert_eq!(pair.rates(Timestamp::from_second(120).unwrap()), Rates::default());
    }

    #[test]
    fn however_many_there_are_the_silent_ones_go() {
        let mut pairs = Pairs::default();
        for number in 0..MOST + 5 {
            let second = 100 + i64::try_from(number).unwrap();
            let address = format!("10.{}.{}.{}:80", number >> 16, (number >> 8) & 255, number & 255);
            let more = serde_json::json!({ "destination": { "address": address }, "connection": number });
            pairs.take(&flow(second, "refused", more));
        }
        assert!(pairs.iter().count() <= MOST);
        let newest = pairs.iter().map(|(_, pair)| pair.last.as_second()).max().unwrap();
        assert_eq!(newest, 100 + i64::try_from(MOST).unwrap() + 4);
    }
}
