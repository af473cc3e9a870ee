//! What was tried, and so when it may be tried again. Without clocks and chance: both are handed in.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    Pace,
    plan::{Target, Write},
};

/// So often a wait doubles, at most: a minute is reached long before.
const MOST_DOUBLINGS: u32 = 16;

/// How a write went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Attempt {
    /// It stands there.
    Done,
    /// The object is another by now, or gone: a watch will say.
    Outdated,
    /// The API server wants less to be asked of it.
    Overloaded,
    /// Refused, or nobody knows.
    Failed,
}

#[derive(Debug)]
pub(super) struct Ledger {
    pace: Pace,
    tried: HashMap<Target, Tried>,
    /// For all writes, where the API server wants less of them.
    pause: Option<Instant>,
    overloads: u32,
}

#[derive(Debug, Clone, Copy)]
struct Tried {
    not_before: Instant,
    failures: u32,
    done: bool,
}

// === impl Ledger ===

impl Ledger {
    pub(super) fn new(pace: Pace) -> Self {
        Self {
            pace,
            tried: HashMap::new(),
            pause: None,
            overloads: 0,
        }
    }

    /// Which of these writes are to be made now, and when to look again for the others.
    pub(super) fn due(&mut self, writes: Vec<Write>, now: Instant) -> (Vec<Write>, Option<Instant>) {
        let wanted: HashSet<Target> = writes.iter().map(Write::target).collect();
        // What is not to be written any more may be again, from the start: at once where it was written, since a watch has
        // brought it, else not before it has rested. An event is told for good.
        self.tried.retain(|target, tried| {
            let brought = tried.done && !matches!(target, Target::Notice(_));
            wanted.contains(target) || (tried.not_before > now && !brought)
        });
        let (mut due, mut next) = (Vec::new(), None::<Instant>);
        for write in writes {
            let tried = self.tried.get(&write.target());
            if matches!(write, Write::Notice(_)) && tried.is_some_and(|tried| tried.done) {
                // Told once is enough.
                continue;
            }
            let not_before = tried.map(|tried| tried.not_before).max(self.pause);
            match not_before.filter(|not_before| *not_before > now) {
                None => due.push(write),
                Some(later) => next = Some(next.map_or(later, |next| next.min(later))),
            }
        }
        (due, next)
    }

    /// Takes down how a write went. `chance` is from 0 to 1.
    pub(super) fn tried(&mut self, target: Target, attempt: Attempt, now: Instant, chance: f64) {
        let failures = match attempt {
            Attempt::Done => 0,
            _ => self.tried.get(&target).map_or(0, |tried| tried.failures) + 1,
        };
        if attempt == Attempt::Overloaded {
            self.overloads += 1;
            self.pause = Some(now + self.wait(self.overloads, chance));
        } else {
            self.overloads = 0;
            self.pause = None;
        }
        let wait = match attempt {
            Attempt::Done => self.pace.rest,
            _ => self.wait(failures, chance),
        };
        let tried = Tried {
            not_before: now + wait,
            failures,
            done: attempt == Attempt::Done,
        };
        self.tried.insert(target, tried);
    }

    /// From half of the whole wait to all of it, by chance.
    fn wait(&self, failures: u32, chance: f64) -> Duration {
        let doublings = failures.saturating_sub(1).min(MOST_DOUBLINGS);
        let whole = self
            .pace
            .retry
            .saturating_mul(1 << doublings)
            .min(self.pace.retry_most);
        whole.mul_f64(0.5 + chance.clamp(0.0, 1.0) / 2.0)
    }
}
