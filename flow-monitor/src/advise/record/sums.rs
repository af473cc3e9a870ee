//! Counts of connections, and of addresses that are too many to be told apart.

use std::{collections::BTreeMap, net::IpAddr};

use jiff::Timestamp;
use weir_policy::Cidr;
use weir_types::{Flow, FlowEvent, FlowVerdict, Reason, TrafficDirection};

/// Addresses of one client, at one port of one workload, that are kept apart: what a field of a policy takes.
pub(crate) const MAX_ADDRESSES: usize = 512;
/// What addresses are widened to where there are more: prefix lengths for IPv4 and IPv6.
const PREFIXES: [(u8, u8); 5] = [(32, 128), (24, 64), (16, 48), (8, 32), (0, 0)];

/// What was seen of the connections from one client to one port of a workload.
///
/// A connection between two nodes is recorded by both, and each of its ends may be missing: the largest count is how many there
/// were at least.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sum {
    /// At the client's node and at the server's.
    opened: [u64; 2],
    closed: [u64; 2],
    denied: [u64; 2],
    failed: [u64; 2],
    /// When one was let through last.
    pub(crate) last: Option<Timestamp>,
    /// When a policy refused one last.
    refused: Option<Timestamp>,
    /// When one was tried in vain last, and why.
    pub(crate) tried: Option<(Timestamp, Reason)>,
}

/// Sums by address, or by blocks of addresses where these are many. Which, does not depend on the order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Blocks {
    /// Index into [`PREFIXES`].
    level: usize,
    sums: BTreeMap<(IpAddr, u8), Sum>,
}

// === impl Sum ===

impl Sum {
    pub(crate) fn add(&mut self, flow: &Flow) {
        let side = match flow.direction {
            TrafficDirection::Egress => 0,
            TrafficDirection::Ingress => 1,
        };
        let denied = flow.verdict == FlowVerdict::Denied;
        match flow.event {
            FlowEvent::Open => self.opened[side] += 1,
            FlowEvent::Close if !denied => self.closed[side] += 1,
            _ if denied => self.denied[side] += 1,
            _ => self.failed[side] += 1,
        }
        if flow.event == FlowEvent::Open || (flow.event == FlowEvent::Close && !denied) {
            self.last = self.last.max(Some(flow.time));
            return;
        }
        self.try_again(Some((flow.time, flow.reason)));
        // A refusal for a change that no policy made sends the client another way.
        let changed = flow.reason == Reason::PolicyChanged && flow.policy.is_some();
        let refused = matches!(
            flow.reason,
            Reason::PolicyDenied | Reason::NotAllowed | Reason::PlaintextToStrict
        );
        if changed || refused {
            self.refused = self.refused.max(Some(flow.time));
        }
    }

    /// Connections that were let through, at least.
    pub(crate) fn connections(&self) -> u64 {
        let sides = self.opened.iter().chain(&self.closed);
        sides.copied().max().unwrap_or_default()
    }

    /// Attempts that were refused.
    pub(crate) fn denied(&self) -> u64 {
        self.denied[0].max(self.denied[1])
    }

    /// Attempts that were let through and reached nobody.
    pub(crate) fn failed(&self) -> u64 {
        self.failed[0].max(self.failed[1])
    }

    /// Whether it was let through, and was not refused by a policy since.
    pub(crate) fn is_let_through(&self) -> bool {
        self.last.is_some() && self.refused <= self.last
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        for (own, other) in [
            (&mut self.opened, &other.opened),
            (&mut self.closed, &other.closed),
            (&mut self.denied, &other.denied),
            (&mut self.failed, &other.failed),
        ] {
            for (own, other) in own.iter_mut().zip(other) {
                *own = own.saturating_add(*other);
            }
        }
        self.last = self.last.max(other.last);
        self.refused = self.refused.max(other.refused);
        self.try_again(other.tried);
    }

    /// Of two at one time, whichever comes first, the same is kept.
    fn try_again(&mut self, tried: Option<(Timestamp, Reason)>) {
        let rank = |tried: Option<(Timestamp, Reason)>| tried.map(|(time, reason)| (time, reason as u32));
        if rank(tried) > rank(self.tried) {
            self.tried = tried;
        }
    }
}

// === impl Blocks ===

impl Blocks {
    /// Counts a record of an address; how many more blocks there are now.
    pub(crate) fn add(&mut self, address: IpAddr, flow: &Flow) -> isize {
        let before = self.sums.len() as isize;
        let key = block(address.to_canonical(), self.level);
        self.sums.entry(key).or_default().add(flow);
        while self.sums.len() > MAX_ADDRESSES && self.level + 1 < PREFIXES.len() {
            self.level += 1;
            let narrow = std::mem::take(&mut self.sums);
            for ((address, _), sum) in narrow {
                self.sums
                    .entry(block(address, self.level))
                    .or_default()
                    .merge(&sum);
            }
        }
        self.sums.len() as isize - before
    }

    /// Each block, as policies write it: a single address without its length.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (String, &Sum)> {
        self.sums.iter().map(|((address, length), sum)| {
            let whole = *length == if address.is_ipv4() { 32 } else { 128 };
            let text = if whole {
                address.to_string()
            } else {
                format!("{address}/{length}")
            };
            (text, sum)
        })
    }

    /// Whether addresses were widened to blocks.
    pub(crate) fn is_wide(&self) -> bool {
        self.level > 0
    }

    /// All together.
    pub(crate) fn total(&self) -> Sum {
        self.sums.values().fold(Sum::default(), |mut all, sum| {
            all.merge(sum);
            all
        })
    }
}

fn block(address: IpAddr, level: usize) -> (IpAddr, u8) {
    let (v4, v6) = PREFIXES[level];
    let length = if address.is_ipv4() { v4 } else { v6 };
    // The lengths above are none that an address of its family has not.
    let network = Cidr::new(address, length).map_or(address, |block| block.network());
    (network, length)
}
