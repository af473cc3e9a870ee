//! The least policies that allow what was seen.

mod rules;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::{Map, Value};

use self::rules::{Atom, Atoms, From, Rule};
use super::{
    cost::rounded,
    record::{Client, Effect, Id, Pair, Record, Seen, Selection, Sum, address},
    report::{Advised, AdvisedRule, Attempt, Policy},
    state::State,
    text,
};
use crate::migrate::output::{Head, authorization};

/// What names begin with: nobody's own policy is replaced by one of these.
const PREFIX: &str = "advised";
/// Longest name that an object may have, less what is put behind it.
const MAX_NAME: usize = 200;

/// What one policy is for.
#[derive(Default)]
struct Group {
    workloads: BTreeSet<Id>,
    /// Why it concerns all of the namespace.
    whole: BTreeSet<String>,
    atoms: Atoms,
}

/// Of a namespace, with the labels of the selector; none for all of it.
type Place = (String, BTreeMap<String, String>);

/// From everything that was let through and is not refused by now. `root` is the namespace whose policies concern all.
pub(crate) fn policy(record: &Record, state: &State, root: &str) -> Policy {
    let mut result = Policy {
        connections: 0,
        policies: Vec::new(),
        would_deny: Vec::new(),
        not_covered: Vec::new(),
        notes: Vec::new(),
    };
    if record.left_out > 0 {
        result.notes.push(
            "no policy is written: not every record could be counted, and what was not would be denied; --namespace or \
             --since make fewer of them"
                .to_owned(),
        );
        return result;
    }
    let mut places: HashMap<Id, Place> = HashMap::new();
    let mut reasons: HashMap<Id, &str> = HashMap::new();
    let mut groups: BTreeMap<Place, Group> = BTreeMap::new();
    for (pair, seen) in &record.pairs {
        for (from, pod, sum, through) in clients(record, pair, seen) {
            if !through {
                continue;
            }
            let workload = record.workloads.get(pair.to);
            let why = if workload.namespace == root {
                "policies of this namespace concern the whole mesh: write one yourself"
            } else if workload.outside && !workload.in_mesh {
                "it is not in the mesh: no policy concerns it"
            } else if pair.port == 0 {
                "no policy can name port 0"
            } else {
                ""
            };
            if !why.is_empty() {
                result
                    .not_covered
                    .push(attempt(record, pair, &from, sum.connections(), sum, why));
                continue;
            }
            let place = places.entry(pair.to).or_insert_with(|| {
                let selector = match record.workloads.selection(pair.to) {
                    Selection::Labels(labels) => labels,
                    Selection::Namespace(why) => {
                        reasons.insert(pair.to, why);
                        BTreeMap::new()
                    }
                };
                (workload.namespace.clone(), selector)
            });
            let group = groups.entry(place.clone()).or_default();
            if let Some(why) = reasons.get(&pair.to) {
                group.whole.insert(format!("{}: {why}", workload.title()));
            }
            group.workloads.insert(pair.to);
            result.connections += sum.connections();
            let atom = group.atoms.entry((from, pair.port)).or_default();
            atom.add(sum.connections(), &sum, pod);
        }
    }
    widen(&mut groups);
    denied(record, &places, &groups, &mut result);
    let names = names(record, &groups);
    for (place, group) in &groups {
        let made = advised(record, state, place, group, &names[place], result.connections);
        result.policies.extend(made);
    }
    for attempts in [&mut result.would_deny, &mut result.not_covered] {
        attempts.sort_by(|a, b| (&a.workload, a.port, &a.client).cmp(&(&b.workload, b.port, &b.client)));
    }
    notes(record, &mut result);
    result
}

/// Each client of a pair: as a policy names it, the pod that it is, its sum, and whether it is let through.
fn clients(record: &Record, pair: &Pair, seen: &Seen) -> Vec<(From, Option<String>, Sum, bool)> {
    match (&pair.from, seen) {
        (Client::Verified(identity), seen) => {
            let uri = identity.to_string();
            let principal = uri.strip_prefix("spiffe://").unwrap_or(&uri).to_owned();
            let sum = seen.total();
            let through = sum.is_let_through();
            vec![(From::Principal(principal), None, sum, through)]
        }
        (from, Seen::Plain(blocks)) => {
            let pod = match from {
                Client::Plain(id) => Some(record.workloads.get(*id).title()),
                _ => None,
            };
            let clients = blocks.iter().map(|(block, sum)| {
                // Of a block it is not known whom of it was refused.
                let through = sum.is_let_through() || (blocks.is_wide() && sum.last.is_some());
                (From::Block(block), pod.clone(), sum.clone(), through)
            });
            clients.collect()
        }
        (_, Seen::Verified(_)) => Vec::new(),
    }
}

/// What a policy of a whole namespace allows needs no rule in those of its workloads.
fn widen(groups: &mut BTreeMap<Place, Group>) {
    let whole = groups.keys().filter(|(_, selector)| selector.is_empty());
    for whole in whole.cloned().collect::<Vec<_>>() {
        let Some(mut group) = groups.remove(&whole) else {
            continue;
        };
        for ((namespace, _), other) in groups.iter_mut() {
            if *namespace != whole.0 {
                continue;
            }
            let before = other.atoms.len();
            other.atoms.retain(|key, atom| match group.atoms.get_mut(key) {
                Some(own) => {
                    own.merge(atom);
                    false
                }
                None => true,
            });
            if other.atoms.len() < before {
                group.workloads.extend(&other.workloads);
            }
        }
        groups.insert(whole, group);
    }
    groups.retain(|_, group| !group.atoms.is_empty());
}

/// What was tried and would be denied, as no rule is for it.
fn denied(
    record: &Record,
    places: &HashMap<Id, Place>,
    groups: &BTreeMap<Place, Group>,
    result: &mut Policy,
) {
    for (pair, seen) in &record.pairs {
        let namespace = &record.workloads.get(pair.to).namespace;
        let whole = groups.get(&(namespace.clone(), BTreeMap::new()));
        let own = places.get(&pair.to).and_then(|place| groups.get(place));
        if whole.is_none() && own.is_none() {
            continue;
        }
        for (from, _, sum, through) in clients(record, pair, seen) {
            let key = (from, pair.port);
            let mut both = [whole, own].into_iter().flatten();
            if through || both.any(|group| group.atoms.contains_key(&key)) {
                continue;
            }
            let reason = sum.tried.map_or("not known", |(_, reason)| reason.as_str());
            let (count, why) = match (sum.last, sum.denied()) {
                (Some(_), _) => {
                    let why = format!("it was let through, and is refused since: {reason}");
                    (sum.connections() + sum.denied(), why)
                }
                (None, 0) => (sum.failed(), format!("it never reached anybody: {reason}")),
                (None, denied) => (denied + sum.failed(), format!("it is refused already: {reason}")),
            };
            result
                .would_deny
                .push(attempt(record, pair, &key.0, count, sum, &why));
        }
    }
}

fn attempt(record: &Record, pair: &Pair, from: &From, count: u64, sum: Sum, why: &str) -> Attempt {
    let client = match (from, &pair.from) {
        (From::Principal(principal), _) => principal.clone(),
        (From::Block(block), Client::Plain(id)) => {
            format!("{} at {}", record.workloads.get(*id).title(), address(block))
        }
        (From::Block(block), _) => address(block),
    };
    Attempt {
        client,
        workload: record.workloads.get(pair.to).title(),
        port: pair.port,
        count,
        last: sum.last.max(sum.tried.map(|(time, _)| time)),
        why: why.to_owned(),
    }
}

/// A name for each, the same from run to run: that of the workload, with its kind and a number where others have the same.
fn names(record: &Record, groups: &BTreeMap<Place, Group>) -> HashMap<Place, String> {
    let mut taken: BTreeSet<(String, String)> = BTreeSet::new();
    let mut names = HashMap::new();
    let mut places: Vec<(String, String, &Place)> = groups
        .iter()
        .map(|(place, group)| {
            let first = group.workloads.first().map(|id| record.workloads.get(*id));
            match first.filter(|_| !place.1.is_empty()) {
                Some(one) => (name(&one.name), name(&one.kind), place),
                None => (String::new(), String::new(), place),
            }
        })
        .collect();
    places.sort();
    for (name, kind, place) in places {
        let base = [PREFIX, &name].into_iter().filter(|part| !part.is_empty());
        let base = base.collect::<Vec<_>>().join("-");
        let kinds = (!kind.is_empty()).then(|| format!("{base}-{kind}"));
        let numbered = (2..).map(|number| format!("{base}-{number}"));
        let mut tries = [base.clone()].into_iter().chain(kinds).chain(numbered);
        let free = tries.find(|name| taken.insert((place.0.clone(), name.clone())));
        names.insert(place.clone(), free.unwrap_or(base));
    }
    names
}

/// As Kubernetes takes names, without two hyphens in a row.
fn name(text: &str) -> String {
    let mut name = String::new();
    for c in text.chars().map(|c| c.to_ascii_lowercase()) {
        if c.is_ascii_lowercase() || c.is_ascii_digit() {
            name.push(c);
        } else if !name.is_empty() && !name.ends_with('-') {
            name.push('-');
        }
        if name.len() == MAX_NAME {
            break;
        }
    }
    name.trim_end_matches('-').to_owned()
}

fn advised(
    record: &Record,
    state: &State,
    place: &Place,
    group: &Group,
    name: &str,
    all: u64,
) -> Vec<Advised> {
    let (namespace, selector) = place;
    let labels: Map<String, Value> = selector
        .iter()
        .map(|(key, value)| (key.clone(), value.as_str().into()))
        .collect();
    let mut workloads: Vec<String> = group
        .workloads
        .iter()
        .map(|id| record.workloads.get(*id).title())
        .collect();
    workloads.sort();
    let lists = rules::rules(&group.atoms);
    let several = lists.len() > 1;
    let made = (1..).zip(lists).map(|(number, list)| {
        let name = match number {
            1 => name.to_owned(),
            // No name of another: those have no two hyphens in a row.
            _ => format!("{name}--{number}"),
        };
        let values: Vec<Value> = list.iter().map(Rule::value).collect();
        let head = Head {
            namespace: namespace.clone(),
            name: name.clone(),
            labels: labels.clone(),
        };
        let rules: Vec<AdvisedRule> = list.iter().map(|rule| told(rule, &group.atoms, all)).collect();
        let connections = rules.iter().map(|rule| rule.connections).sum();
        let mut notes = about(record, state, namespace, group);
        if several {
            notes.push("one of several for the same: they add up".to_owned());
        }
        Advised {
            namespace: namespace.clone(),
            name,
            workloads: workloads.clone(),
            selector: selector.clone(),
            connections,
            share: share(connections, all),
            rules,
            notes,
            manifest: authorization(&head, "ALLOW", &values, true),
        }
    });
    made.collect()
}

fn told(rule: &Rule, atoms: &Atoms, all: u64) -> AdvisedRule {
    let mut sum = Atom::default();
    for from in &rule.from {
        for port in &rule.ports {
            if let Some(atom) = atoms.get(&(from.clone(), *port)) {
                sum.merge(atom);
            }
        }
    }
    AdvisedRule {
        principals: rule.principals(),
        ip_blocks: rule.blocks(),
        pods: sum.pods.into_iter().collect(),
        ports: rule.ports.iter().copied().collect(),
        connections: sum.connections,
        share: share(sum.connections, all),
        last: sum.last,
    }
}

fn share(part: u64, all: u64) -> f64 {
    if all == 0 {
        return 0.0;
    }
    rounded(part as f64 / all as f64)
}

/// What is to be known of one policy.
fn about(record: &Record, state: &State, namespace: &str, group: &Group) -> Vec<String> {
    let mut notes = Vec::new();
    if !group.whole.is_empty() {
        let why: Vec<&str> = group.whole.iter().map(String::as_str).collect();
        notes.push(format!(
            "it concerns all pods of the namespace, also those that nothing was seen of: {}",
            why.join("; ")
        ));
    }
    if group.atoms.keys().any(|(from, _)| matches!(from, From::Block(_))) {
        notes.push(
            "rules with ipBlocks are for who comes without an identity: a pod's address passes to another, so enrol the pod \
             instead where you can"
                .to_owned(),
        );
    }
    if !group.workloads.iter().any(|id| record.workloads.get(*id).in_mesh) {
        notes.push("no record shows that it is in the mesh: the policy does nothing until it is".to_owned());
    }
    let mut effects: BTreeMap<&String, Effect> = BTreeMap::new();
    let own = group.workloads.iter().filter_map(|id| record.policies.get(id));
    for (policy, effect) in own.flatten() {
        effects.entry(policy).or_default().merge(*effect);
    }
    let mut decided = 0;
    for (policy, effect) in effects {
        let allow = effect.allowed > 0 || effect.not_allowed > 0;
        if allow || effect.refused > 0 {
            decided += 1;
        }
        if allow {
            notes.push(format!(
                "{policy} (ALLOW) is in force: what it allows stays allowed, and while it is, a dry run of this says nothing"
            ));
        }
        if effect.refused > 0 {
            notes.push(format!(
                "{policy} (DENY) is in force, and refuses first whatever this allows"
            ));
        }
        if effect.would_refuse > 0 {
            notes.push(format!(
                "{policy} is a dry run that would have refused {} connections",
                effect.would_refuse
            ));
        }
    }
    let policies = state.policies(namespace);
    if policies > decided {
        notes.push(format!(
            "up to {policies} policies apply to pods of the namespace already: DENY goes first, ALLOW adds up, and beside an ALLOW \
             that is in force a dry run of this says nothing"
        ));
    }
    notes
}

fn notes(record: &Record, result: &mut Policy) {
    if result.policies.is_empty() {
        result
            .notes
            .push("no connection was seen that a policy could be made from".to_owned());
        return;
    }
    result.notes.push(
        "dryRun first: where 'weir flows' says 'would be denied' is what these lack; take it out when nothing is said any more"
            .to_owned(),
    );
    result.notes.push(
        "a workload with an ALLOW policy refuses all that none allows: what was not seen would be denied"
            .to_owned(),
    );
    let probes: u64 = record.probes.values().sum();
    if probes > 0 {
        result.notes.push(format!(
            "{} of the kubelet: no policy is asked about them, and none needs a rule",
            text::count(probes, "probe")
        ));
    }
}

// === impl Atom ===

impl Atom {
    fn add(&mut self, connections: u64, sum: &Sum, pod: Option<String>) {
        self.connections += connections;
        self.last = self.last.max(sum.last);
        self.pods.extend(pod);
    }

    fn merge(&mut self, other: &Self) {
        self.connections += other.connections;
        self.last = self.last.max(other.last);
        self.pods.extend(other.pods.iter().cloned());
    }
}
