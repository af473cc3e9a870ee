//! How many certificates a node may ask for, without a clock.

use std::{collections::HashMap, sync::Arc, time::Duration};

/// A rate and a burst for each node (GCRA: of each it is noted when its burst will be whole again).
#[derive(Debug)]
pub(crate) struct Rates {
    interval: Duration,
    burst: Duration,
    most: usize,
    whole_at: HashMap<Arc<str>, Duration>,
}

impl Rates {
    /// `per_second` in the long run, `burst` at once, for at most `most` nodes that are not at rest.
    pub(crate) fn new(per_second: u32, burst: u32, most: usize) -> Self {
        let interval = Duration::from_secs(1) / per_second.max(1);
        Self {
            interval,
            burst: interval * burst,
            most,
            whole_at: HashMap::new(),
        }
    }

    /// Whether a node may have another at `now`, counted from any fixed moment.
    pub(crate) fn allow(&mut self, node: &Arc<str>, now: Duration) -> bool {
        if self.whole_at.len() >= self.most && !self.whole_at.contains_key(node) {
            // A node at rest is as one that was never seen.
            self.whole_at.retain(|_, whole_at| *whole_at > now);
            if self.whole_at.len() >= self.most {
                return false;
            }
        }
        let whole_at = self.whole_at.entry(node.clone()).or_default();
        let next = (*whole_at).max(now) + self.interval;
        if next > now + self.burst {
            return false;
        }
        *whole_at = next;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_node_has_a_burst_and_then_the_rate() {
        let mut rates = Rates::new(10, 3, 10);
        let (one, other) = (Arc::from("one"), Arc::from("other"));
        let start = Duration::from_secs(100);
        let at = |ms| start + Duration::from_millis(ms);
        let taken: Vec<bool> = (0..4).map(|_| rates.allow(&one, start)).collect();
        assert_eq!(taken, [true, true, true, false]);
        assert!(rates.allow(&other, start));
        assert!(!rates.allow(&one, at(99)));
        assert!(rates.allow(&one, at(100)));
        assert!(!rates.allow(&one, at(100)));
        let taken: Vec<bool> = (0..4).map(|_| rates.allow(&one, at(10_000))).collect();
        assert_eq!(
            taken,
            [true, true, true, false],
            "no more than a burst is saved up"
        );
    }

    #[test]
    fn nodes_at_rest_are_forgotten_and_more_than_there_is_room_for_refused() {
        let mut rates = Rates::new(10, 3, 2);
        for name in ["a", "b"] {
            assert!(rates.allow(&name.into(), Duration::ZERO));
        }
        assert!(!rates.allow(&"c".into(), Duration::ZERO));
        assert!(rates.allow(&"c".into(), Duration::from_secs(1)));
        assert_eq!(rates.whole_at.len(), 1);
    }
}
