//! Compiling rules: leaving out what cannot matter, interning values, choosing what each rule is entered under.

use std::collections::HashSet;

use super::{Field, Origin, RuleSet, Span, Test, number, slice, tables::Interned, tables::Tables};
use crate::{Action, Clause, Match, Rule};

/// Collects rules in order.
pub(crate) struct Builder {
    action: Action,
    set: RuleSet,
    /// The rules so far: of equal ones only the first can ever be the first that matches.
    seen: HashSet<Box<[u32]>>,
}

/// Where the arrays of a set end, to go back to.
struct Mark {
    clauses: usize,
    matches: usize,
    tests: usize,
    values: usize,
}

// === impl Builder ===

impl Builder {
    pub(crate) fn new(action: Action) -> Self {
        Self {
            action,
            set: RuleSet::default(),
            seen: HashSet::new(),
        }
    }

    /// Adds a rule after all others.
    pub(crate) fn add(&mut self, rule: &Rule, origin: Origin) {
        let mark = self.mark();
        if !rule.clauses.iter().all(|clause| self.clause(clause)) {
            return self.back_to(&mark);
        }
        let clauses = Span::new(mark.clauses, self.set.clauses.len());
        let signature = self.signature(clauses);
        if !self.seen.insert(signature) {
            return self.back_to(&mark);
        }
        self.set.rules.push(clauses);
        self.set.origins.push(origin);
    }

    pub(crate) fn build(self) -> RuleSet {
        let mut set = self.set;
        let frequencies = frequencies(&set);
        let mut entries: Vec<(u32, u32)> = Vec::with_capacity(set.rules.len());
        for rule in 0..set.rules.len() {
            let rule = number(rule);
            if !enter(&set, rule, &frequencies, &mut entries) {
                set.linear.push(rule);
            }
        }
        entries.sort_unstable();
        entries.dedup();
        set.lists = vec![Span::default(); set.tables.ids()];
        for of_one in entries.chunk_by(|a, b| a.0 == b.0) {
            let start = set.candidates.len();
            set.candidates.extend(of_one.iter().map(|(_, rule)| rule));
            set.lists[of_one[0].0 as usize] = Span::new(start, set.candidates.len());
        }
        set.candidates.shrink_to_fit();
        set.values.shrink_to_fit();
        set.tests.shrink_to_fit();
        set
    }

    /// Adds a clause to the rule at hand, unless it always holds. False if it never does.
    fn clause(&mut self, clause: &Clause) -> bool {
        let mark = self.mark();
        for one in &clause.matches {
            let never = self.action == Action::Allow && one.undecidable;
            if never {
                continue;
            }
            let start = self.set.tests.len();
            self.tests(one);
            let tests = Span::new(start, self.set.tests.len());
            if tests.len() > 0 {
                self.set.matches.push(tests);
            } else if self.action == Action::Deny {
                // A match that says nothing matches everything, and so does the clause.
                self.back_to(&mark);
                return true;
            }
        }
        let matches = Span::new(mark.matches, self.set.matches.len());
        if matches.len() == 0 {
            // In DENY it had no match at all: others of no effect have returned above.
            return self.action == Action::Deny;
        }
        self.set.clauses.push(matches);
        true
    }

    fn tests(&mut self, one: &Match) {
        use Field::{DestinationIp, DestinationPort, Namespace, Principal, ServiceAccount, SourceIp};
        self.test(Namespace, false, &one.namespaces, Tables::namespace);
        self.test(Namespace, true, &one.not_namespaces, Tables::namespace);
        self.test(Principal, false, &one.principals, Tables::principal);
        self.test(Principal, true, &one.not_principals, Tables::principal);
        self.test(ServiceAccount, false, &one.service_accounts, Tables::account);
        self.test(ServiceAccount, true, &one.not_service_accounts, Tables::account);
        self.test(SourceIp, false, &one.source_ips, Tables::source_block);
        self.test(SourceIp, true, &one.not_source_ips, Tables::source_block);
        self.test(
            DestinationIp,
            false,
            &one.destination_ips,
            Tables::destination_block,
        );
        self.test(
            DestinationIp,
            true,
            &one.not_destination_ips,
            Tables::destination_block,
        );
        let port = |tables: &mut Tables, port: &u16| tables.port(*port);
        self.test(DestinationPort, false, &one.destination_ports, port);
        self.test(DestinationPort, true, &one.not_destination_ports, port);
    }

    fn test<T>(
        &mut self,
        field: Field,
        negated: bool,
        values: &[T],
        intern: impl Fn(&mut Tables, &T) -> Interned,
    ) {
        if values.is_empty() {
            return;
        }
        let set = &mut self.set;
        let start = set.values.len();
        let (mut presence, mut patterns) = (false, Vec::new());
        for value in values {
            match intern(&mut set.tables, value) {
                Interned::Id(id) => set.values.push(id),
                Interned::Pattern { number } => patterns.push(number),
                Interned::Presence => presence = true,
            }
        }
        let ids = Span::new(start, set.values.len());
        set.values[start..].sort_unstable();
        set.values.extend(patterns);
        set.tests.push(Test {
            field,
            negated,
            presence,
            ids,
            patterns: Span::new(ids.end as usize, set.values.len()),
        });
    }

    /// Equal for rules that are compiled alike.
    fn signature(&self, clauses: Span) -> Box<[u32]> {
        let set = &self.set;
        let mut signature = Vec::new();
        for clause in slice(&set.clauses, clauses) {
            signature.push(number(clause.len()));
            for one in slice(&set.matches, *clause) {
                signature.push(number(one.len()));
                for test in slice(&set.tests, *one) {
                    let flags = u32::from(test.negated) << 1 | u32::from(test.presence);
                    signature.push((test.field as u32) << 2 | flags);
                    for values in [test.ids, test.patterns] {
                        signature.push(number(values.len()));
                        signature.extend(slice(&set.values, values));
                    }
                }
            }
        }
        signature.into()
    }

    fn mark(&self) -> Mark {
        Mark {
            clauses: self.set.clauses.len(),
            matches: self.set.matches.len(),
            tests: self.set.tests.len(),
            values: self.set.values.len(),
        }
    }

    fn back_to(&mut self, mark: &Mark) {
        self.set.clauses.truncate(mark.clauses);
        self.set.matches.truncate(mark.matches);
        self.set.tests.truncate(mark.tests);
        self.set.values.truncate(mark.values);
    }
}

/// Per id: how many tests could enter a rule under it.
fn frequencies(set: &RuleSet) -> Vec<u32> {
    let mut frequencies = vec![0; set.tables.ids()];
    for test in set.tests.iter().filter(|test| can_be_looked_up(test)) {
        for id in lookups(set, test) {
            frequencies[id as usize] += 1;
        }
    }
    frequencies
}

fn can_be_looked_up(test: &Test) -> bool {
    !test.negated && !test.presence
}

/// The ids of a request one of which must be among these, if the test is to hold.
fn lookups<'a>(set: &'a RuleSet, test: &Test) -> impl Iterator<Item = u32> + 'a {
    let ids = slice(&set.values, test.ids).iter().copied();
    let patterns = slice(&set.values, test.patterns).iter();
    ids.chain(patterns.map(|number| set.tables.patterns[*number as usize].id()))
}

/// Enters a rule under the values of one clause. False if it has no clause that can be looked up.
///
/// A clause can if each of its matches has a test that can. The choice is the one whose values are rarest, counted
/// over the whole set: what is walked for a request is the lists of the values that it has.
fn enter(set: &RuleSet, rule: u32, frequencies: &[u32], entries: &mut Vec<(u32, u32)>) -> bool {
    let cost = |test: &Test| -> u64 {
        lookups(set, test)
            .map(|id| u64::from(frequencies[id as usize]))
            .sum()
    };
    let cheapest = |one: &Span| -> Option<(u64, Test)> {
        let tests = slice(&set.tests, *one)
            .iter()
            .filter(|test| can_be_looked_up(test));
        tests
            .map(|test| (cost(test), *test))
            .min_by_key(|(cost, _)| *cost)
    };
    let clauses = slice(&set.clauses, set.rules[rule as usize]).iter();
    let costed = clauses.filter_map(|clause| {
        let matches = slice(&set.matches, *clause).iter();
        let total: Option<u64> = matches.map(|one| cheapest(one).map(|(cost, _)| cost)).sum();
        Some((total?, clause))
    });
    let Some((_, clause)) = costed.min_by_key(|(cost, _)| *cost) else {
        return false;
    };
    for (_, test) in slice(&set.matches, *clause).iter().filter_map(cheapest) {
        entries.extend(lookups(set, &test).map(|id| (id, rule)));
    }
    true
}
