//! Slows down who fails again and again, without a clock.
//!
//! Slowed and not shut out: a pod may share its address with the agent of its node, and must not be able to keep that
//! agent from the control plane by failing in its place.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

/// Failures that are free: a token that just expired, an agent that started before its pod was seen.
const FREE: u32 = 5;
/// The first delay; it doubles with each failure.
const FIRST_DELAY: Duration = Duration::from_millis(100);
/// The longest delay: a client's patience is often 10 s.
const LONGEST_DELAY: Duration = Duration::from_secs(3);
/// How often the count of failures halves.
const HALF_LIFE: Duration = Duration::from_secs(30);
/// Callers of one address that may be waiting out a delay.
const MOST_WAITING: u32 = 8;

/// Failures by source address. Moments are counted from any fixed one.
#[derive(Debug)]
pub(super) struct Throttle {
    most: usize,
    sources: HashMap<Source, State>,
}

/// A source: an IPv4 address, or an IPv6 network of 64 bits, within which a host takes what address it likes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Source(Option<IpAddr>);

#[derive(Debug, Clone, Copy)]
struct State {
    failures: u32,
    last: Duration,
    waiting: u32,
}

/// Too many of one source wait already.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Crowded;

// === impl Source ===

impl Source {
    pub(super) fn new(address: Option<IpAddr>) -> Self {
        Self(address.map(|address| match address.to_canonical() {
            IpAddr::V4(address) => address.into(),
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into(),
        }))
    }
}

// === impl Throttle ===

impl Throttle {
    pub(super) fn new(most: usize) -> Self {
        Self {
            most: most.max(1),
            sources: HashMap::new(),
        }
    }

    /// How long a caller has to wait. If that is not zero, [`Self::waited`] must follow.
    pub(super) fn enter(&mut self, source: Source, now: Duration) -> Result<Duration, Crowded> {
        let Some(state) = self.sources.get_mut(&source) else {
            return Ok(Duration::ZERO);
        };
        let Some(beyond) = state.failures_at(now).checked_sub(FREE) else {
            return Ok(Duration::ZERO);
        };
        if state.waiting >= MOST_WAITING {
            return Err(Crowded);
        }
        state.waiting += 1;
        // 2^8 times the first delay is beyond the longest.
        Ok((FIRST_DELAY * (1 << beyond.min(8))).min(LONGEST_DELAY))
    }

    /// A caller has waited.
    pub(super) fn waited(&mut self, source: Source) {
        if let Some(state) = self.sources.get_mut(&source) {
            state.waiting = state.waiting.saturating_sub(1);
        }
    }

    /// A caller was not believed.
    pub(super) fn failed(&mut self, source: Source, now: Duration) {
        if self.sources.len() >= self.most && !self.sources.contains_key(&source) {
            self.sources
                .retain(|_, state| state.waiting > 0 || state.failures_at(now) > 0);
        }
        if self.sources.len() >= self.most && !self.sources.contains_key(&source) {
            let oldest = self
                .sources
                .iter()
                .min_by_key(|(_, state)| state.last)
                .map(|(source, _)| *source);
            if let Some(oldest) = oldest {
                self.sources.remove(&oldest);
            }
        }
        let state = self.sources.entry(source).or_insert(State {
            failures: 0,
            last: now,
            waiting: 0,
        });
        state.failures = state.failures_at(now).saturating_add(1);
        state.last = now;
    }
}

impl State {
    fn failures_at(&self, now: Duration) -> u32 {
        let halvings = now.saturating_sub(self.last).as_secs() / HALF_LIFE.as_secs();
        u32::try_from(halvings)
            .ok()
            .and_then(|halvings| self.failures.checked_shr(halvings))
            .unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(address: &str) -> Source {
        Source::new(Some(address.parse().unwrap()))
    }

    #[test]
    fn some_failures_are_free_and_then_it_takes_ever_longer() {
        let mut throttle = Throttle::new(10);
        let now = Duration::from_secs(1);
        let (bad, good) = (source("10.0.0.1"), source("10.0.0.2"));
        let mut delays = Vec::new();
        for _ in 0..12 {
            let delay = throttle.enter(bad, now).unwrap();
            if !delay.is_zero() {
                throttle.waited(bad);
            }
            delays.push(delay.as_millis());
            throttle.failed(bad, now);
        }
        assert_eq!(delays, [0, 0, 0, 0, 0, 100, 200, 400, 800, 1_600, 3_000, 3_000]);
        assert_eq!(throttle.enter(good, now), Ok(Duration::ZERO));
        assert_eq!(
            throttle.enter(bad, now + HALF_LIFE * 2),
            Ok(Duration::ZERO),
            "12 failures are 3 by then"
        );
    }

    #[test]
    fn only_some_of_a_source_may_wait() {
        let mut throttle = Throttle::new(10);
        let bad = source("10.0.0.1");
        (0..20).for_each(|_| throttle.failed(bad, Duration::ZERO));
        for _ in 0..MOST_WAITING {
            assert_eq!(throttle.enter(bad, Duration::ZERO), Ok(LONGEST_DELAY));
        }
        assert_eq!(throttle.enter(bad, Duration::ZERO), Err(Crowded));
        throttle.waited(bad);
        assert_eq!(throttle.enter(bad, Duration::ZERO), Ok(LONGEST_DELAY));
    }

    #[test]
    fn a_network_of_ipv6_is_one_source_and_v4_mapped_is_ipv4() {
        assert_eq!(source("2001:db8::1"), source("2001:db8::ffff:1"));
        assert_ne!(source("2001:db8::1"), source("2001:db8:0:1::1"));
        assert_eq!(source("::ffff:10.0.0.1"), source("10.0.0.1"));
        assert_ne!(source("10.0.0.1"), source("10.0.0.2"));
    }

    #[test]
    fn the_table_does_not_grow() {
        let mut throttle = Throttle::new(4);
        for number in 0..100_u32 {
            let source = Source::new(Some(std::net::Ipv4Addr::from_bits(number).into()));
            throttle.failed(source, Duration::from_secs(number.into()));
        }
        assert_eq!(throttle.sources.len(), 4);
    }
}
