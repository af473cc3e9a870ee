//! From who was seen at which port to the fewest rules that say exactly that.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::migrate::output::{MAX_RULES, MAX_VALUES};

/// Values of one policy: with the longest names it stays below the megabyte and a half that an API server takes.
const MAX_POLICY_VALUES: usize = 4096;

/// A client as a policy names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum From {
    /// `<trust domain>/ns/<namespace>/sa/<account>`.
    Principal(String),
    /// Addresses that come without an identity.
    Block(String),
}

/// What was seen of one client at one port.
#[derive(Debug, Clone, Default)]
pub(super) struct Atom {
    pub(super) connections: u64,
    pub(super) last: Option<Timestamp>,
    /// The pods that an address is of.
    pub(super) pods: BTreeSet<String>,
}

pub(super) type Atoms = BTreeMap<(From, u16), Atom>;

/// All of these clients, at all of these ports.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rule {
    pub(super) from: BTreeSet<From>,
    pub(super) ports: BTreeSet<u16>,
}

/// Rules that say what the atoms say, each atom in one of them; as many lists as there have to be policies.
pub(super) fn rules(atoms: &Atoms) -> Vec<Vec<Rule>> {
    let (mut principals, mut blocks) = (BTreeSet::new(), BTreeSet::new());
    for (from, port) in atoms.keys() {
        match from {
            From::Principal(_) => principals.insert((from.clone(), *port)),
            From::Block(_) => blocks.insert((from.clone(), *port)),
        };
    }
    let mut lists: Vec<Vec<Rule>> = Vec::new();
    let mut values = 0;
    for rule in [fewest(&principals), fewest(&blocks)].into_iter().flatten() {
        let size = rule.from.len() + rule.ports.len();
        match lists.last_mut() {
            Some(list) if list.len() < MAX_RULES && values + size <= MAX_POLICY_VALUES => {
                values += size;
                list.push(rule);
            }
            _ => {
                values = size;
                lists.push(vec![rule]);
            }
        }
    }
    lists
}

/// Either those clients together that were seen at the same ports, or those ports where the same clients were.
fn fewest(seen: &BTreeSet<(From, u16)>) -> Vec<Rule> {
    let (mut ports, mut clients) = (BTreeMap::new(), BTreeMap::new());
    for (from, port) in seen {
        ports
            .entry(from.clone())
            .or_insert_with(BTreeSet::new)
            .insert(*port);
        clients
            .entry(*port)
            .or_insert_with(BTreeSet::new)
            .insert(from.clone());
    }
    let (mut by_ports, mut by_clients) = (BTreeMap::new(), BTreeMap::new());
    for (from, ports) in ports {
        by_ports.entry(ports).or_insert_with(BTreeSet::new).insert(from);
    }
    for (port, clients) in clients {
        by_clients
            .entry(clients)
            .or_insert_with(BTreeSet::new)
            .insert(port);
    }
    let mut rules: Vec<Rule> = if by_ports.len() <= by_clients.len() {
        let rules = by_ports.into_iter().map(|(ports, from)| Rule { from, ports });
        rules.collect()
    } else {
        let rules = by_clients.into_iter().map(|(from, ports)| Rule { from, ports });
        rules.collect()
    };
    rules = rules.into_iter().flat_map(bounded).collect();
    rules.sort();
    rules
}

/// The same in rules whose fields take so many values.
fn bounded(rule: Rule) -> Vec<Rule> {
    let from: Vec<From> = rule.from.into_iter().collect();
    let ports: Vec<u16> = rule.ports.into_iter().collect();
    let pieces = from.chunks(MAX_VALUES).flat_map(|from| {
        ports.chunks(MAX_VALUES).map(|ports| Rule {
            from: from.iter().cloned().collect(),
            ports: ports.iter().copied().collect(),
        })
    });
    pieces.collect()
}

// === impl Rule ===

impl Rule {
    pub(super) fn principals(&self) -> Vec<String> {
        let principals = self.from.iter().filter_map(|from| match from {
            From::Principal(principal) => Some(principal.clone()),
            From::Block(_) => None,
        });
        principals.collect()
    }

    pub(super) fn blocks(&self) -> Vec<String> {
        let blocks = self.from.iter().filter_map(|from| match from {
            From::Block(block) => Some(block.clone()),
            From::Principal(_) => None,
        });
        blocks.collect()
    }

    /// As a policy has it.
    pub(super) fn value(&self) -> Value {
        let (principals, blocks) = (self.principals(), self.blocks());
        let source = if blocks.is_empty() {
            json!({"principals": principals})
        } else {
            // Who shows an identity from there is not meant.
            json!({"ipBlocks": blocks, "notPrincipals": ["*"]})
        };
        let ports: Vec<String> = self.ports.iter().map(ToString::to_string).collect();
        json!({"from": [{"source": source}], "to": [{"operation": {"ports": ports}}]})
    }
}
