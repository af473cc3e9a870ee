//! What `weir top` shows, without a terminal.

use clap::ValueEnum;
use jiff::Timestamp;
use weir_hubble::pairs::{Pair, Pairs, Party, Rates};
use weir_types::Flow;

/// A pair that was silent for this long is left out unless asked for, in seconds.
const SILENT: i64 = 60;

/// What the rows are ordered by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Sort {
    /// Connections a second.
    Rate,
    /// Connections that are open.
    Open,
    /// Connections that were opened.
    Opened,
    /// Connections that were refused or failed.
    Failures,
    /// Bytes, both ways.
    Bytes,
    /// Round-trip time.
    Rtt,
    /// Names.
    Name,
}

/// One pair, as it is shown.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) from: Party,
    pub(super) to: Party,
    pub(super) pair: Pair,
    pub(super) rates: Rates,
}

/// What there is to show, and how.
#[derive(Debug)]
pub(super) struct State {
    pub(super) pairs: Pairs,
    pub(super) sort: Sort,
    pub(super) is_reversed: bool,
    pub(super) search: String,
    pub(super) is_searching: bool,
    pub(super) shows_silent: bool,
    pub(super) has_details: bool,
    pub(super) is_asking_for_keys: bool,
    /// The stream ended.
    pub(super) ended: bool,
    /// What was said of nodes last.
    pub(super) notice: Option<String>,
    /// Agents that are asked; 0 where a server is.
    pub(super) nodes: usize,
    pub(super) flows: u64,
    /// The rows as they were when it was paused.
    paused: Option<Vec<Row>>,
    /// The row that is chosen, and how many fit.
    chosen: usize,
    height: usize,
    count: usize,
}

// === impl Sort ===

impl Sort {
    fn at(self, by: usize) -> Self {
        let all = Self::value_variants();
        let own = all.iter().position(|one| *one == self).unwrap_or_default();
        all[(own + by) % all.len()]
    }

    pub(super) fn next(self) -> Self {
        self.at(1)
    }

    pub(super) fn before(self) -> Self {
        self.at(Self::value_variants().len() - 1)
    }
}

// === impl State ===

impl State {
    pub(super) fn new(sort: Sort, nodes: usize) -> Self {
        Self {
            pairs: Pairs::default(),
            sort,
            is_reversed: false,
            search: String::new(),
            is_searching: false,
            shows_silent: false,
            has_details: false,
            is_asking_for_keys: false,
            ended: false,
            notice: None,
            nodes,
            flows: 0,
            paused: None,
            chosen: 0,
            height: 1,
            count: 0,
        }
    }

    pub(super) fn take(&mut self, flow: &Flow) {
        self.flows += 1;
        self.pairs.take(flow);
    }

    pub(super) fn is_paused(&self) -> bool {
        self.paused.is_some()
    }

    /// Holds what is shown, or lets it go on. Records are taken in meanwhile.
    pub(super) fn pause(&mut self) {
        self.paused = match self.paused {
            Some(_) => None,
            None => Some(self.all(Timestamp::now())),
        };
    }

    fn all(&self, now: Timestamp) -> Vec<Row> {
        let row = |((from, to), pair): (&(Party, Party), &Pair)| Row {
            from: from.clone(),
            to: to.clone(),
            rates: pair.rates(now),
            pair: pair.clone(),
        };
        self.pairs.iter().map(row).collect()
    }

    /// The rows, in their order.
    pub(super) fn rows(&mut self, now: Timestamp) -> Vec<Row> {
        let mut rows = match &self.paused {
            Some(rows) => rows.clone(),
            None => self.all(now),
        };
        let young = now.as_second() - SILENT;
        let wanted = self.search.to_lowercase();
        rows.retain(|row| {
            let is_loud = row.pair.open > 0 || row.pair.last.as_second() >= young;
            (self.shows_silent || is_loud)
                && (wanted.is_empty()
                    || row.from.to_string().to_lowercase().contains(&wanted)
                    || row.to.to_string().to_lowercase().contains(&wanted))
        });
        // Names first, so that rows that are alike keep their places.
        rows.sort_by(|a, b| (&a.from, &a.to).cmp(&(&b.from, &b.to)));
        let failures = |row: &Row| row.pair.denied + row.pair.failed;
        let bytes = |row: &Row| row.pair.sent + row.pair.received;
        match self.sort {
            Sort::Rate => rows.sort_by(|a, b| b.rates.opened.total_cmp(&a.rates.opened)),
            Sort::Open => rows.sort_by_key(|row| std::cmp::Reverse(row.pair.open)),
            Sort::Opened => rows.sort_by_key(|row| std::cmp::Reverse(row.pair.opened)),
            Sort::Failures => rows.sort_by_key(|row| std::cmp::Reverse(failures(row))),
            Sort::Bytes => rows.sort_by_key(|row| std::cmp::Reverse(bytes(row))),
            Sort::Rtt => rows.sort_by_key(|row| std::cmp::Reverse(row.pair.rtt_us)),
            Sort::Name => {}
        }
        if self.is_reversed {
            rows.reverse();
        }
        self.count = rows.len();
        self.chosen = self.chosen.min(self.count.saturating_sub(1));
        rows
    }

    pub(super) fn move_by(&mut self, by: isize) {
        let last = self.count.saturating_sub(1);
        self.chosen = self.chosen.saturating_add_signed(by).min(last);
    }

    /// The row that is chosen.
    pub(super) fn chosen(&self) -> usize {
        self.chosen
    }

    /// How many rows fit.
    pub(super) fn fits(&mut self, height: usize) {
        self.height = height;
    }

    pub(super) fn page(&self) -> isize {
        isize::try_from(self.height.max(1)).unwrap_or(1)
    }
}
