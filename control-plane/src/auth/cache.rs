//! Tokens that the API server has believed, without a clock.

use std::{collections::HashMap, time::Duration};

use super::claims::BoundPod;

/// Bounded; holds digests, never tokens. Moments are counted from any fixed one.
#[derive(Debug)]
pub(super) struct Reviewed {
    most: usize,
    entries: HashMap<[u8; 32], Entry>,
}

#[derive(Debug)]
struct Entry {
    pod: BoundPod,
    fresh_until: Duration,
    expires: Duration,
}

impl Reviewed {
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            entries: HashMap::new(),
        }
    }

    /// The pod of a token that was believed a moment ago.
    pub(super) fn fresh(&self, token: &[u8; 32], now: Duration) -> Option<BoundPod> {
        let entry = self.entries.get(token)?;
        (now < entry.fresh_until && now < entry.expires).then(|| entry.pod.clone())
    }

    /// Whether a token was believed at any time, and has not expired: it may be bad by now, but whoever sends it does
    /// not guess.
    pub(super) fn known(&self, token: &[u8; 32], now: Duration) -> bool {
        self.entries.get(token).is_some_and(|entry| now < entry.expires)
    }

    /// A token was not believed any more.
    pub(super) fn forget(&mut self, token: &[u8; 32]) {
        self.entries.remove(token);
    }

    /// A token was believed at `now`. The first to expire goes where there is no room.
    pub(super) fn put(
        &mut self,
        token: [u8; 32],
        pod: BoundPod,
        now: Duration,
        fresh: Duration,
        expires: Duration,
    ) {
        if expires <= now || self.most == 0 {
            return;
        }
        if self.entries.len() >= self.most {
            self.entries.retain(|_, entry| now < entry.expires);
        }
        if self.entries.len() >= self.most && !self.entries.contains_key(&token) {
            let first = self
                .entries
                .iter()
                .min_by_key(|(_, entry)| entry.expires)
                .map(|(token, _)| *token);
            if let Some(first) = first {
                self.entries.remove(&first);
            }
        }
        let entry = Entry {
            pod,
            fresh_until: now + fresh,
            expires,
        };
        self.entries.insert(token, entry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::claims::Holder;

    const FRESH: Duration = Duration::from_secs(10);

    fn pod(name: &str) -> BoundPod {
        BoundPod {
            holder: Holder::Node(0),
            name: name.to_owned(),
            uid: "u".to_owned(),
            node: None,
        }
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_review_counts_for_its_time_and_never_beyond_the_tokens_expiry() {
        let mut reviewed = Reviewed::new(4);
        reviewed.put([1; 32], pod("a"), at(0), FRESH, at(100));
        reviewed.put([2; 32], pod("b"), at(0), FRESH, at(5));
        reviewed.put([3; 32], pod("c"), at(5), FRESH, at(5));
        assert_eq!(reviewed.fresh(&[1; 32], at(9)), Some(pod("a")));
        assert_eq!(reviewed.fresh(&[1; 32], at(10)), None);
        assert_eq!(reviewed.fresh(&[2; 32], at(4)), Some(pod("b")));
        assert_eq!(reviewed.fresh(&[2; 32], at(5)), None);
        let known = |byte, now| reviewed.known(&[byte; 32], at(now));
        assert!(known(1, 99) && !known(1, 100) && !known(2, 5));
        assert!(!known(3, 5), "expired from the first");
        reviewed.forget(&[1; 32]);
        assert!(!reviewed.known(&[1; 32], at(1)));
    }

    #[test]
    fn where_there_is_no_room_the_first_to_expire_goes() {
        let mut reviewed = Reviewed::new(2);
        for (byte, expires) in [(1, 12), (2, 11), (3, 13)] {
            reviewed.put([byte; 32], pod("a"), at(1), FRESH, at(expires));
        }
        let there: Vec<bool> = (1..=3).map(|byte| reviewed.known(&[byte; 32], at(2))).collect();
        assert_eq!(there, [true, false, true]);
    }
}
