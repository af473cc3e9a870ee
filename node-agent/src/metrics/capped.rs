//! Counters whose labels name things of the cluster: never more series than a cap.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use prometheus::{IntCounter, IntCounterVec};

/// Series that a family may have besides those of [`OTHER`]: some megabytes at a Prometheus that scrapes a hundred nodes.
pub const SERIES: usize = 1000;

/// The label value of what finds no room. No name in Kubernetes has an underscore, so nothing is called so.
pub const OTHER: &str = "_other";

/// A series that nothing was counted in for so long, and that no open connection counts in, is forgotten: what it names may be
/// gone from the cluster, and another needs the room.
pub const IDLE: Duration = Duration::from_secs(3600);

/// How often a full family is searched for series that are idle.
const SEARCH: Duration = Duration::from_secs(10);

/// A family with a cap.
///
/// The first of its labels name things of the cluster, the others are from closed lists. What finds no room is counted under
/// [`OTHER`] in the former, and under its own values in the latter.
#[derive(Debug)]
pub(super) struct Capped {
    family: IntCounterVec,
    /// How many labels name things.
    names: usize,
    cap: usize,
    hashes: RandomState,
    known: Mutex<Known>,
}

#[derive(Debug)]
struct Known {
    /// By the hash of their labels, so that nothing is allocated to look one up. Two with one hash are as good as never: the
    /// hash has 64 bits, and a key that nobody knows. The second would be counted under [`OTHER`].
    series: HashMap<u64, Entry>,
    searched: Option<Instant>,
}

#[derive(Debug)]
struct Entry {
    labels: Box<[String]>,
    series: Arc<Series>,
    asked: Instant,
}

/// A series, for as long as it is held.
#[derive(Debug)]
pub(super) struct Series(IntCounter);

// === impl Capped ===

impl Capped {
    pub(super) fn new(family: IntCounterVec, names: usize, cap: usize) -> Self {
        Self {
            family,
            names,
            cap,
            hashes: RandomState::new(),
            known: Mutex::new(Known {
                series: HashMap::new(),
                searched: None,
            }),
        }
    }

    /// The series with these labels, or the one for what finds no room. To be asked for once a connection, and held.
    pub(super) fn series(&self, labels: &[&str], now: Instant) -> Arc<Series> {
        let hash = self.hashes.hash_one(labels);
        let mut known = self.known();
        if let Some(entry) = known.series.get_mut(&hash) {
            if *entry.labels == *labels {
                entry.asked = now;
                return entry.series.clone();
            }
            return self.other(labels);
        }
        if known.series.len() >= self.cap {
            self.make_room(&mut known, now);
        }
        if known.series.len() >= self.cap {
            return self.other(labels);
        }
        let series = Arc::new(Series(self.family.with_label_values(labels)));
        let entry = Entry {
            labels: labels.iter().map(|label| (*label).to_owned()).collect(),
            series: series.clone(),
            asked: now,
        };
        known.series.insert(hash, entry);
        series
    }

    /// Where what finds no room is counted.
    fn other(&self, labels: &[&str]) -> Arc<Series> {
        let mut labels = labels.to_vec();
        labels[..self.names].fill(OTHER);
        Arc::new(Series(self.family.with_label_values(&labels)))
    }

    /// Forgets the series whose labels are of something that is gone.
    pub(super) fn forget(&self, is_gone: impl Fn(&[String]) -> bool) {
        self.retain(&mut self.known(), |entry| !is_gone(&entry.labels));
    }

    /// Forgets the series that are idle.
    pub(super) fn forget_idle(&self, now: Instant) {
        self.retain(&mut self.known(), |entry| !entry.is_idle(now));
    }

    fn make_room(&self, known: &mut Known, now: Instant) {
        let is_due = |last: Instant| now.saturating_duration_since(last) >= SEARCH;
        if known.searched.is_none_or(is_due) {
            known.searched = Some(now);
            self.retain(known, |entry| !entry.is_idle(now));
        }
    }

    fn retain(&self, known: &mut Known, stays: impl Fn(&Entry) -> bool) {
        known.series.retain(|_, entry| {
            let stays = stays(entry);
            if !stays {
                let labels: Vec<&str> = entry.labels.iter().map(String::as_str).collect();
                // An error: it was not there, which is as well.
                let _ = self.family.remove_label_values(&labels);
            }
            stays
        });
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Each change is one of the map, so a panic elsewhere does not spoil it.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn is_idle(&self, now: Instant) -> bool {
        Arc::strong_count(&self.series) == 1 && now.saturating_duration_since(self.asked) >= IDLE
    }
}

impl Series {
    pub(super) fn add(&self, count: u64) {
        if count > 0 {
            self.0.inc_by(count);
        }
    }
}

#[cfg(test)]
mod tests {
    use prometheus::{Opts, core::Collector as _};

    use super::*;

    fn capped(cap: usize) -> Capped {
        let labels = ["namespace", "workload", "reason"];
        let family = IntCounterVec::new(Opts::new("test_total", "A test."), &labels).unwrap();
        Capped::new(family, 2, cap)
    }

    /// The series as they would be scraped: workload, reason, count.
    fn scraped(capped: &Capped) -> Vec<(String, String, u64)> {
        let families = capped.family.collect();
        let mut rows: Vec<_> = families
            .iter()
            .flat_map(|family| family.get_metric())
            .map(|metric| {
                let label = |name: &str| {
                    let labels = metric.get_label().iter();
                    labels
                        .filter(|label| label.name() == name)
                        .map(|label| label.value().to_owned())
                        .collect()
                };
                (
                    label("workload"),
                    label("reason"),
                    metric.get_counter().get_value() as u64,
                )
            })
            .collect();
        rows.sort();
        rows
    }

    fn row(workload: &str, reason: &str, count: u64) -> (String, String, u64) {
        (workload.to_owned(), reason.to_owned(), count)
    }

    #[test]
    fn what_finds_no_room_is_counted_under_one_name_and_by_its_closed_labels() {
        let (capped, now) = (capped(2), Instant::now());
        for (workload, reason) in [
            ("a", "x"),
            ("b", "x"),
            ("c", "x"),
            ("d", "x"),
            ("e", "y"),
            ("a", "x"),
        ] {
            capped.series(&["shop", workload, reason], now).add(1);
        }
        let expected = [
            row(OTHER, "x", 2),
            row(OTHER, "y", 1),
            row("a", "x", 2),
            row("b", "x", 1),
        ];
        assert_eq!(scraped(&capped), expected);
    }

    #[test]
    fn churn_of_a_million_names_stays_within_the_cap() {
        let (capped, now) = (capped(100), Instant::now());
        for number in 0..1_000_000 {
            capped
                .series(&["shop", &format!("pod-{number}"), "x"], now)
                .add(1);
        }
        let rows = scraped(&capped);
        assert_eq!(rows.len(), 101);
        assert_eq!(
            rows.iter().map(|row| row.2).sum::<u64>(),
            1_000_000,
            "nothing is uncounted"
        );
    }

    #[test]
    fn what_is_gone_frees_its_room() {
        let (capped, now) = (capped(2), Instant::now());
        for workload in ["a", "b"] {
            capped.series(&["shop", workload, "x"], now).add(1);
        }
        capped.forget(|labels| labels[1] == "a");
        capped.series(&["shop", "c", "x"], now).add(1);
        assert_eq!(scraped(&capped), [row("b", "x", 1), row("c", "x", 1)]);
    }

    #[test]
    fn an_idle_series_gives_way_unless_a_connection_still_counts_in_it() {
        let (capped, start) = (capped(2), Instant::now());
        let held = capped.series(&["shop", "held", "x"], start);
        capped.series(&["shop", "idle", "x"], start).add(1);
        capped.series(&["shop", "early", "x"], start + IDLE / 2).add(1);
        let late = start + IDLE;
        capped.series(&["shop", "late", "x"], late).add(1);
        held.add(5);
        assert_eq!(
            scraped(&capped),
            [row(OTHER, "x", 1), row("held", "x", 5), row("late", "x", 1)]
        );
        drop(held);
        capped.forget_idle(late);
        assert_eq!(scraped(&capped), [row(OTHER, "x", 1), row("late", "x", 1)]);
    }
}
