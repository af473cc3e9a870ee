//! Bounds on what peers cost before, and after, anybody is authenticated: handshakes under way, and connections.

use std::{
    collections::HashMap,
    hash::Hash,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError},
};

use crate::connection::PodKey;

/// Handshakes under way in total unless configured otherwise: each holds up to 100 KiB, so about 200 MB.
pub const DEFAULT_TOTAL: usize = 2048;

/// Handshakes under way with one pod of ours unless configured otherwise: half, so that those who flood one pod
/// leave the others of the node reachable.
pub const DEFAULT_PER_POD: usize = DEFAULT_TOTAL / 2;

/// Handshakes under way from one address unless configured otherwise: a client of ours opens one for each
/// hundred streams, so even thousands of connections at once need far fewer.
pub const DEFAULT_PER_SOURCE: usize = 64;

/// How many addresses' share an IPv6 network of /64 gets: a host may have all its addresses, but so may a node
/// whose pods share it.
const NETWORK_SHARES: usize = 4;

/// Connections that one address may have open with one pod of ours: a client of ours opens one for each hundred
/// streams, so these carry 25,600. Each costs two tasks, descriptors and buffers.
pub const PEER_CONNECTIONS: usize = 256;

/// Counts handshakes under way. Cheap to clone.
#[derive(Debug, Clone)]
pub struct HandshakeLimiter {
    limits: Limits,
    counts: Counts<Share>,
}

#[derive(Debug, Clone, Copy)]
struct Limits {
    total: usize,
    per_pod: usize,
    per_source: usize,
}

/// What a handshake counts for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Share {
    Total,
    Pod(PodKey),
    Address(IpAddr),
    /// The first half of an IPv6 address.
    Network(u64),
}

/// The right to one handshake, given back when dropped.
#[derive(Debug)]
pub struct HandshakePermit {
    _counted: Counted<Share>,
}

/// Counts open connections by the pod that they lead to and the peer's address. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct PeerConnections(Counts<(PodKey, IpAddr)>);

/// Counts by key; only keys that are in use have an entry.
#[derive(Debug)]
struct Counts<K>(Arc<Mutex<HashMap<K, usize>>>);

/// Counted under some keys until it is dropped.
#[derive(Debug)]
pub(super) struct Counted<K: Hash + Eq> {
    counts: Counts<K>,
    keys: Vec<K>,
}

// === impl HandshakeLimiter ===

impl HandshakeLimiter {
    /// A limiter with these bounds: in total, for each pod of ours, and for each source address.
    #[must_use]
    pub fn new(total: usize, per_pod: usize, per_source: usize) -> Self {
        Self {
            limits: Limits {
                total,
                per_pod,
                per_source,
            },
            counts: Counts::default(),
        }
    }

    /// A permit for a handshake of this address with this pod, unless there are too many.
    #[must_use]
    pub fn acquire(&self, source: IpAddr, pod: PodKey) -> Option<HandshakePermit> {
        let Limits {
            total,
            per_pod,
            per_source,
        } = self.limits;
        let source = source.to_canonical();
        let mut shares = vec![
            (Share::Address(source), per_source),
            (Share::Pod(pod), per_pod),
            (Share::Total, total),
        ];
        if let IpAddr::V6(address) = source {
            shares.push((Share::Network(network(address)), per_source * NETWORK_SHARES));
        }
        let _counted = self.counts.add(shares)?;
        Some(HandshakePermit { _counted })
    }
}

impl Default for HandshakeLimiter {
    fn default() -> Self {
        Self::new(DEFAULT_TOTAL, DEFAULT_PER_POD, DEFAULT_PER_SOURCE)
    }
}

fn network(address: Ipv6Addr) -> u64 {
    (address.to_bits() >> 64) as u64
}

// === impl PeerConnections ===

impl PeerConnections {
    /// A place for a connection of this address to this pod, unless it has too many.
    pub(super) fn add(&self, pod: PodKey, peer: IpAddr) -> Option<Counted<(PodKey, IpAddr)>> {
        let key = (pod, peer.to_canonical());
        self.0.add(vec![(key, PEER_CONNECTIONS)])
    }
}

// === impl Counts ===

impl<K: Hash + Eq + Copy> Counts<K> {
    /// Counts one more under each key, unless one has reached its limit.
    fn add(&self, limits: Vec<(K, usize)>) -> Option<Counted<K>> {
        let mut counts = self.lock();
        let full = |(key, limit): &(K, usize)| counts.get(key).copied().unwrap_or(0) >= *limit;
        if limits.iter().any(full) {
            return None;
        }
        let keys: Vec<K> = limits.into_iter().map(|(key, _)| key).collect();
        for key in &keys {
            *counts.entry(*key).or_default() += 1;
        }
        Some(Counted {
            counts: self.clone(),
            keys,
        })
    }
}

impl<K> Counts<K> {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<K, usize>> {
        // Each critical section leaves the counts right, so a panic elsewhere does not spoil them.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K> Clone for Counts<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K> Default for Counts<K> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

// === impl Counted ===

impl<K: Hash + Eq> Drop for Counted<K> {
    fn drop(&mut self) {
        let mut counts = self.counts.lock();
        for key in &self.keys {
            if let Some(count) = counts.get_mut(key) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(key);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: PodKey = PodKey(1);

    fn acquire(limiter: &HandshakeLimiter, source: &str, pod: PodKey) -> Option<HandshakePermit> {
        limiter.acquire(source.parse().unwrap(), pod)
    }

    #[test]
    fn permits_are_bounded_for_each_source_and_in_total() {
        let limiter = HandshakeLimiter::new(3, 3, 2);
        let first = acquire(&limiter, "10.0.0.1", POD);
        let second = acquire(&limiter, "::ffff:10.0.0.1", POD);
        assert!(first.is_some() && second.is_some());
        assert!(
            acquire(&limiter, "10.0.0.1", POD).is_none(),
            "two for one source, however written"
        );
        let third = acquire(&limiter, "10.0.0.2", POD);
        assert!(third.is_some(), "another source is not affected");
        assert!(acquire(&limiter, "10.0.0.2", POD).is_none(), "three in total");
        drop(first);
        assert!(acquire(&limiter, "10.0.0.2", POD).is_some(), "given back");
        drop((second, third));
        assert!(
            limiter.counts.lock().is_empty(),
            "nothing is kept of a source without handshakes"
        );
    }

    #[test]
    fn one_pod_cannot_use_up_the_permits_of_the_others() {
        let limiter = HandshakeLimiter::new(4, 2, 2);
        let held: Vec<_> = (1..9)
            .filter_map(|host| acquire(&limiter, &format!("10.0.0.{host}"), POD))
            .collect();
        assert_eq!(held.len(), 2);
        assert!(acquire(&limiter, "10.0.0.1", PodKey(2)).is_some());
    }

    #[test]
    fn an_ipv6_network_has_the_share_of_a_few_addresses() {
        let limiter = HandshakeLimiter::new(100, 100, 2);
        let held: Vec<_> = (0..99)
            .filter_map(|host| acquire(&limiter, &format!("fd00::{host}"), POD))
            .collect();
        assert_eq!(held.len(), 2 * NETWORK_SHARES);
        let other: Vec<_> = (0..9)
            .filter_map(|_| acquire(&limiter, "fd00:0:0:1::1", POD))
            .collect();
        assert_eq!(other.len(), 2, "another network, one address");
    }
}
