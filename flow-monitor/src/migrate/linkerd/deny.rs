//! All clients but some, as the sources of one DENY rule.

use serde_json::{Map, Value, json};

use super::clients::{Clients, Who};
use crate::migrate::{
    addresses::Addresses,
    output::{MAX_ALTERNATIVES, MAX_VALUES},
};

/// Parts of the address space that are kept apart: each set of networks may double them.
const MAX_REGIONS: usize = 256;

/// Whom a rule is to deny.
#[derive(Debug)]
pub(super) struct Denied {
    /// Sources; everybody if there are none.
    sources: Vec<Map<String, Value>>,
}

impl Denied {
    /// All others than these; nothing if these are everybody.
    pub(super) fn others_than(clients: &[Clients]) -> Option<Self> {
        let Some(regions) = regions(clients) else {
            return Some(Self { sources: Vec::new() });
        };
        let mut sources = Vec::new();
        for (addresses, who) in regions {
            let mut source = Map::new();
            match who {
                Who::Anybody => continue,
                Who::Identified => drop(source.insert("notPrincipals".to_owned(), json!(["*"]))),
                Who::These(principals) if principals.is_empty() => {}
                Who::These(principals) if principals.len() > MAX_VALUES => {
                    return Some(Self { sources: Vec::new() });
                }
                Who::These(principals) => {
                    drop(source.insert("notPrincipals".to_owned(), json!(principals)));
                }
            }
            if !addresses.is_all() {
                let (blocks, others) = (addresses.blocks(), addresses.complement().blocks());
                let (field, blocks) = if blocks.len() <= others.len() {
                    ("ipBlocks", blocks)
                } else {
                    ("notIpBlocks", others)
                };
                if blocks.len() > MAX_VALUES {
                    return Some(Self { sources: Vec::new() });
                }
                source.insert(field.to_owned(), json!(blocks));
            }
            if source.is_empty() {
                return Some(Self { sources: Vec::new() });
            }
            sources.push(source);
        }
        if sources.len() > MAX_ALTERNATIVES {
            sources.clear();
            return Some(Self { sources });
        }
        (!sources.is_empty()).then_some(Self { sources })
    }

    pub(super) fn is_everybody(&self) -> bool {
        self.sources.is_empty()
    }

    /// The rule, for every port.
    pub(super) fn rule(&self) -> Value {
        if self.sources.is_empty() {
            return json!({});
        }
        let from: Vec<Value> = self
            .sources
            .iter()
            .map(|source| json!({"source": source}))
            .collect();
        json!({"from": from})
    }
}

/// The whole address space, by who is let in from there. Nothing if that is too much.
fn regions(clients: &[Clients]) -> Option<Vec<(Addresses, Who)>> {
    let mut regions = vec![(Addresses::all(), Who::nobody())];
    for client in clients {
        let mut split = Vec::with_capacity(regions.len() * 2);
        for (addresses, who) in regions {
            let (inside, outside) = (addresses.and(&client.from), addresses.without(&client.from));
            if !inside.is_empty() {
                split.push((inside, who.clone().or(client.who.clone())));
            }
            if !outside.is_empty() {
                split.push((outside, who));
            }
        }
        regions = split;
        if regions.len() > MAX_REGIONS {
            return None;
        }
    }
    let mut merged: Vec<(Addresses, Who)> = Vec::new();
    for (addresses, who) in regions {
        match merged.iter_mut().find(|(_, other)| *other == who) {
            Some((all, _)) => *all = all.or(&addresses),
            None => merged.push((addresses, who)),
        }
    }
    Some(merged)
}
