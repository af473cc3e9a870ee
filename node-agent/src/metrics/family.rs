//! Families as the agent has them: handles of closed lists, made when first needed and then had without a lock.

use std::{fmt, sync::OnceLock};

use prometheus::{
    Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    core::Collector,
};

/// Makes families of one registry.
pub(super) struct Families<'a>(pub(super) &'a Registry);

/// Counters by labels from closed lists.
pub(super) struct Table {
    family: IntCounterVec,
    cells: Box<[OnceLock<IntCounter>]>,
}

// === impl Families ===

impl Families<'_> {
    pub(super) fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.register(IntCounter::new(name, help))
    }

    pub(super) fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.register(IntGauge::new(name, help))
    }

    /// A gauge that is no whole number.
    pub(super) fn ratio(&self, name: &str, help: &str) -> Gauge {
        self.register(Gauge::new(name, help))
    }

    pub(super) fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.register(IntCounterVec::new(Opts::new(name, help), labels))
    }

    pub(super) fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.register(IntGaugeVec::new(Opts::new(name, help), labels))
    }

    /// A table of `size` cells.
    pub(super) fn table(&self, name: &str, help: &str, labels: &[&str], size: usize) -> Table {
        Table {
            family: self.counters(name, help, labels),
            cells: (0..size).map(|_| OnceLock::new()).collect(),
        }
    }

    pub(super) fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        self.register(Histogram::with_opts(options))
    }

    /// A family of histograms by one label, with the handle of each value.
    pub(super) fn histograms<const N: usize>(
        &self,
        name: &str,
        help: &str,
        buckets: &[f64],
        label: &str,
        values: [&str; N],
    ) -> [Histogram; N] {
        let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        let family = self.register(prometheus::HistogramVec::new(options, &[label]));
        values.map(|value| family.with_label_values(&[value]))
    }

    /// Names are constants, each valid and used once: anything else is a mistake that the first test shows.
    pub(super) fn register<M: Collector + Clone + 'static>(&self, metric: prometheus::Result<M>) -> M {
        #[expect(clippy::expect_used, reason = "see above")]
        let metric = metric.expect("a valid name");
        #[expect(clippy::expect_used, reason = "see above")]
        self.0
            .register(Box::new(metric.clone()))
            .expect("a name used once");
        metric
    }
}

// === impl Table ===

impl Table {
    /// The counter in a cell, which always has the same labels.
    pub(super) fn cell(&self, index: usize, labels: &[&str]) -> &IntCounter {
        self.cells[index].get_or_init(|| self.family.with_label_values(labels))
    }
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table").finish_non_exhaustive()
    }
}
