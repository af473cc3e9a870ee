//! Bounds on handshakes that are under way, which cost memory and CPU before anybody is authenticated.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

/// Handshakes under way in total unless configured otherwise: each holds up to 100 KiB, so about 200 MB.
pub const DEFAULT_TOTAL: usize = 2048;

/// Handshakes under way from one address unless configured otherwise: a client of ours opens one for each
/// hundred streams, so even thousands of connections at once need far fewer.
pub const DEFAULT_PER_SOURCE: usize = 64;

/// Counts handshakes under way. Cheap to clone.
#[derive(Debug, Clone)]
pub struct HandshakeLimiter {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    total: usize,
    per_source: usize,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    total: usize,
    /// Only sources with a handshake under way, so at most `total` entries.
    sources: HashMap<IpAddr, usize>,
}

/// The right to one handshake, given back when dropped.
#[derive(Debug)]
pub struct HandshakePermit {
    limiter: HandshakeLimiter,
    source: IpAddr,
}

// === impl HandshakeLimiter ===

impl HandshakeLimiter {
    /// A limiter with these bounds.
    #[must_use]
    pub fn new(total: usize, per_source: usize) -> Self {
        Self {
            inner: Arc::new(Inner {
                total,
                per_source,
                counts: Mutex::default(),
            }),
        }
    }

    /// A permit for a handshake with this address, unless there are too many.
    #[must_use]
    pub fn acquire(&self, source: IpAddr) -> Option<HandshakePermit> {
        let mut counts = self.counts();
        if counts.total >= self.inner.total {
            return None;
        }
        let count = counts.sources.entry(source).or_default();
        if *count >= self.inner.per_source {
            return None;
        }
        *count += 1;
        counts.total += 1;
        Some(HandshakePermit {
            limiter: self.clone(),
            source,
        })
    }

    fn counts(&self) -> std::sync::MutexGuard<'_, Counts> {
        // Each critical section leaves the counts right, so a panic elsewhere does not spoil them.
        self.inner.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for HandshakeLimiter {
    fn default() -> Self {
        Self::new(DEFAULT_TOTAL, DEFAULT_PER_SOURCE)
    }
}

// === impl HandshakePermit ===

impl Drop for HandshakePermit {
    fn drop(&mut self) {
        let mut counts = self.limiter.counts();
        counts.total -= 1;
        if let Some(count) = counts.sources.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                counts.sources.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permits_are_bounded_for_each_source_and_in_total() {
        let limiter = HandshakeLimiter::new(3, 2);
        let (a, b) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let first = limiter.acquire(a);
        let second = limiter.acquire(a);
        assert!(first.is_some() && second.is_some());
        assert!(limiter.acquire(a).is_none(), "two for one source");
        let third = limiter.acquire(b);
        assert!(third.is_some(), "another source is not affected");
        assert!(limiter.acquire(b).is_none(), "three in total");
        drop(first);
        assert!(limiter.acquire(b).is_some(), "given back");
        drop((second, third));
        assert!(
            limiter.counts().sources.is_empty(),
            "nothing is kept of a source without handshakes"
        );
    }
}
