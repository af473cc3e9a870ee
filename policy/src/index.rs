//! Rules of one action, compiled for finding the first that matches among very many.
//!
//! Every value that rules compare with is interned, so that a request is turned into a handful of ids by a few
//! hash lookups, and comparing a rule's exact values, ports and blocks is comparing integers. Each rule is entered
//! under the values of one of its clauses, the rarest; a decision walks the lists of the request's ids only. Rules
//! that have no such clause are in a list that is always walked. Nothing here allocates once it is built.

mod build;
mod request;
mod tables;

pub(crate) use build::Builder;
pub(crate) use request::Prepared;

use request::{Facts, Source};
use tables::{Pattern, Tables};

/// What a test looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Namespace,
    Principal,
    ServiceAccount,
    SourceIp,
    DestinationIp,
    DestinationPort,
}

/// A range of another array.
#[derive(Debug, Clone, Copy, Default)]
struct Span {
    start: u32,
    end: u32,
}

/// One field of a match.
#[derive(Debug, Clone, Copy)]
struct Test {
    field: Field,
    negated: bool,
    /// Any identity will do.
    presence: bool,
    /// Ids in `values`, sorted.
    ids: Span,
    /// Patterns in `values`, by number.
    patterns: Span,
}

/// Where a rule comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Origin {
    /// The policy, as its compiler counts them.
    pub(crate) policy: u32,
    /// The rule's index in it.
    pub(crate) rule: u32,
}

/// Rules in order. A rule is known by its place in that order.
#[derive(Debug, Default)]
pub(crate) struct RuleSet {
    tables: Tables,
    /// Per id: the rules entered under it, in `candidates`, in order.
    lists: Vec<Span>,
    candidates: Vec<u32>,
    /// Rules that are entered nowhere, in order.
    linear: Vec<u32>,
    /// Per rule: its clauses.
    rules: Vec<Span>,
    /// Per clause: its matches.
    clauses: Vec<Span>,
    /// Per match: its tests.
    matches: Vec<Span>,
    tests: Vec<Test>,
    values: Vec<u32>,
    /// Per rule.
    origins: Vec<Origin>,
}

// === impl RuleSet ===

impl RuleSet {
    /// The first rule that matches.
    pub(crate) fn first(&self, request: &Prepared<'_>) -> Option<Origin> {
        if self.rules.is_empty() {
            return None;
        }
        let facts = self.tables.facts(request);
        // The order of the first rule that is known to match: what comes later need not be looked at.
        let mut best = u32::MAX;
        for id in facts.ids() {
            self.walk(id, &facts, &mut best);
        }
        if let Some(source) = &request.source {
            for (patterns, text) in [
                (&self.tables.namespaces, source.namespace()),
                (&self.tables.principals, source.principal()),
            ] {
                patterns.each_pattern(text, |id| self.walk(id, &facts, &mut best));
            }
        }
        for &rule in &self.linear {
            if rule >= best {
                break;
            }
            if self.rule_matches(rule, &facts) {
                best = rule;
            }
        }
        self.origins.get(best as usize).copied()
    }

    fn walk(&self, id: u32, facts: &Facts<'_>, best: &mut u32) {
        for &rule in slice(&self.candidates, self.lists[id as usize]) {
            if rule >= *best {
                return;
            }
            if self.rule_matches(rule, facts) {
                *best = rule;
                return;
            }
        }
    }

    fn rule_matches(&self, rule: u32, facts: &Facts<'_>) -> bool {
        let clauses = slice(&self.clauses, self.rules[rule as usize]);
        clauses.iter().all(|clause| {
            let matches = slice(&self.matches, *clause);
            matches.iter().any(|one| {
                let tests = slice(&self.tests, *one);
                tests.iter().all(|test| self.test_holds(test, facts))
            })
        })
    }

    fn test_holds(&self, test: &Test, facts: &Facts<'_>) -> bool {
        let ids = slice(&self.values, test.ids);
        let has = |id: Option<u32>| id.is_some_and(|id| contains(ids, id));
        let source = facts.request.source.as_ref();
        let text =
            |text: Option<&[u8]>| text.is_some_and(|text| test.presence || self.pattern_matches(test, text));
        let matched = match test.field {
            Field::Namespace => has(facts.namespace) || text(source.map(Source::namespace)),
            Field::Principal => has(facts.principal) || text(source.map(Source::principal)),
            Field::ServiceAccount => has(facts.account),
            Field::SourceIp => facts.source_blocks.iter().any(|id| contains(ids, id)),
            Field::DestinationIp => facts.destination_blocks.iter().any(|id| contains(ids, id)),
            Field::DestinationPort => has(facts.port),
        };
        matched != test.negated
    }

    fn pattern_matches(&self, test: &Test, text: &[u8]) -> bool {
        slice(&self.values, test.patterns).iter().any(|&number| {
            match &self.tables.patterns[number as usize] {
                Pattern::Prefix { text: prefix, .. } => text.starts_with(prefix),
                Pattern::Suffix { text: suffix, .. } => text.ends_with(suffix),
            }
        })
    }
}

// === impl Span ===

impl Span {
    fn new(start: usize, end: usize) -> Self {
        Self {
            start: number(start),
            end: number(end),
        }
    }

    fn len(self) -> usize {
        (self.end - self.start) as usize
    }
}

fn slice<T>(all: &[T], span: Span) -> &[T] {
    &all[span.start as usize..span.end as usize]
}

/// Most lists have one value or two, where searching costs more than looking.
fn contains(sorted: &[u32], id: u32) -> bool {
    const SHORT: usize = 8;
    if sorted.len() <= SHORT {
        sorted.contains(&id)
    } else {
        sorted.binary_search(&id).is_ok()
    }
}

/// Places are 32 bits, for half the memory. A set of 2^32 values would fill 100 GB.
fn number(place: usize) -> u32 {
    assert!(
        place < u32::MAX as usize,
        "a set of rules has fewer than 2^32 values"
    );
    place as u32
}
