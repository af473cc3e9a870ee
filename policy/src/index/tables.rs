//! From a request's values to ids. Hashing is the standard library's, with random keys: peers choose what is looked up.

use std::collections::HashMap;

use super::{
    number,
    request::{Blocks, Facts, Prepared},
};
use crate::{Cidr, ServiceAccountMatch, StringMatch, cidr::Address};

/// All values of a set of rules; ids are unique among all tables.
#[derive(Debug, Default)]
pub(super) struct Tables {
    pub(super) namespaces: Texts,
    pub(super) principals: Texts,
    accounts: HashMap<Box<[u8]>, u32>,
    ports: HashMap<u16, u32>,
    source_blocks: Networks,
    destination_blocks: Networks,
    /// By number.
    pub(super) patterns: Vec<Pattern>,
    ids: u32,
}

/// A prefix or suffix.
#[derive(Debug)]
pub(super) enum Pattern {
    Prefix { text: Box<[u8]>, id: u32 },
    Suffix { text: Box<[u8]>, id: u32 },
}

/// Texts of one field.
#[derive(Debug, Default)]
pub(super) struct Texts {
    exact: HashMap<Box<[u8]>, u32>,
    prefixes: Affixes,
    suffixes: Affixes,
}

/// Prefixes or suffixes of one field, found by trying each length that one has.
#[derive(Debug, Default)]
struct Affixes {
    lengths: Vec<usize>,
    /// Number and id.
    known: HashMap<Box<[u8]>, (u32, u32)>,
}

/// Blocks of addresses, found by trying each length that one has.
#[derive(Debug, Default)]
struct Networks {
    v4_lengths: Vec<u8>,
    v6_lengths: Vec<u8>,
    known: HashMap<(Address, u8), u32>,
}

/// What a value is in the tables.
pub(super) enum Interned {
    Id(u32),
    Pattern { number: u32 },
    Presence,
}

// === impl Tables ===

impl Tables {
    /// How many ids there are, from 0.
    pub(super) fn ids(&self) -> usize {
        self.ids as usize
    }

    pub(super) fn namespace(&mut self, value: &StringMatch) -> Interned {
        self.namespaces.intern(value, &mut self.ids, &mut self.patterns)
    }

    pub(super) fn principal(&mut self, value: &StringMatch) -> Interned {
        self.principals.intern(value, &mut self.ids, &mut self.patterns)
    }

    pub(super) fn account(&mut self, value: &ServiceAccountMatch) -> Interned {
        let text = format!("{}/{}", value.namespace, value.service_account);
        let text = text.into_bytes().into_boxed_slice();
        Interned::Id(*self.accounts.entry(text).or_insert_with(|| next(&mut self.ids)))
    }

    pub(super) fn port(&mut self, port: u16) -> Interned {
        Interned::Id(*self.ports.entry(port).or_insert_with(|| next(&mut self.ids)))
    }

    pub(super) fn source_block(&mut self, block: &Cidr) -> Interned {
        self.source_blocks.intern(block, &mut self.ids)
    }

    pub(super) fn destination_block(&mut self, block: &Cidr) -> Interned {
        self.destination_blocks.intern(block, &mut self.ids)
    }

    pub(super) fn facts<'a>(&self, request: &'a Prepared<'a>) -> Facts<'a> {
        let source = request.source.as_ref();
        let lookup = |table: &HashMap<Box<[u8]>, u32>, text: &[u8]| {
            if table.is_empty() {
                return None;
            }
            table.get(text).copied()
        };
        Facts {
            request,
            namespace: source.and_then(|s| lookup(&self.namespaces.exact, s.namespace())),
            principal: source.and_then(|s| lookup(&self.principals.exact, s.principal())),
            account: source.and_then(|s| lookup(&self.accounts, s.account())),
            port: self.ports.get(&request.port).copied(),
            source_blocks: self.source_blocks.around(request.source_ip),
            destination_blocks: self.destination_blocks.around(request.destination_ip),
        }
    }
}

// === impl Pattern ===

impl Pattern {
    pub(super) fn id(&self) -> u32 {
        match self {
            Self::Prefix { id, .. } | Self::Suffix { id, .. } => *id,
        }
    }
}

// === impl Texts ===

impl Texts {
    fn intern(&mut self, value: &StringMatch, ids: &mut u32, patterns: &mut Vec<Pattern>) -> Interned {
        match value {
            StringMatch::Exact(text) => Interned::Id(match self.exact.get(text.as_bytes()) {
                Some(id) => *id,
                None => *self.exact.entry(text.as_bytes().into()).or_insert(next(ids)),
            }),
            // Everything begins and ends with nothing.
            StringMatch::Prefix(text) | StringMatch::Suffix(text) if text.is_empty() => Interned::Presence,
            StringMatch::Prefix(text) => self
                .prefixes
                .intern(text, ids, patterns, |text, id| Pattern::Prefix { text, id }),
            StringMatch::Suffix(text) => self
                .suffixes
                .intern(text, ids, patterns, |text, id| Pattern::Suffix { text, id }),
            StringMatch::Presence => Interned::Presence,
        }
    }

    /// The ids of the prefixes and suffixes that a text has.
    pub(super) fn each_pattern(&self, text: &[u8], mut found: impl FnMut(u32)) {
        self.prefixes.each(text, |length| &text[..length], &mut found);
        self.suffixes
            .each(text, |length| &text[text.len() - length..], &mut found);
    }
}

// === impl Affixes ===

impl Affixes {
    fn intern(
        &mut self,
        text: &str,
        ids: &mut u32,
        patterns: &mut Vec<Pattern>,
        pattern: impl Fn(Box<[u8]>, u32) -> Pattern,
    ) -> Interned {
        let text: Box<[u8]> = text.as_bytes().into();
        if let Some((number, _)) = self.known.get(&text) {
            return Interned::Pattern { number: *number };
        }
        insert_sorted(&mut self.lengths, text.len());
        let (number, id) = (number(patterns.len()), next(ids));
        patterns.push(pattern(text.clone(), id));
        self.known.insert(text, (number, id));
        Interned::Pattern { number }
    }

    fn each<'t>(&self, text: &'t [u8], part: impl Fn(usize) -> &'t [u8], found: &mut impl FnMut(u32)) {
        for &length in self.lengths.iter().take_while(|length| **length <= text.len()) {
            if let Some((_, id)) = self.known.get(part(length)) {
                found(*id);
            }
        }
    }
}

// === impl Networks ===

impl Networks {
    fn intern(&mut self, block: &Cidr, ids: &mut u32) -> Interned {
        let (network, length) = block.parts();
        let lengths = if network.is_v4() {
            &mut self.v4_lengths
        } else {
            &mut self.v6_lengths
        };
        let id = self.known.entry((network, length)).or_insert_with(|| {
            insert_sorted(lengths, length);
            next(ids)
        });
        Interned::Id(*id)
    }

    fn around(&self, address: Address) -> Blocks {
        let lengths = if address.is_v4() {
            &self.v4_lengths
        } else {
            &self.v6_lengths
        };
        let mut blocks = Blocks::new();
        for &length in lengths {
            if let Some(id) = self.known.get(&(address.masked(length), length)) {
                blocks.push(*id);
            }
        }
        blocks
    }
}

fn next(ids: &mut u32) -> u32 {
    let id = *ids;
    *ids = number(id as usize + 1);
    id
}

fn insert_sorted<T: Ord>(sorted: &mut Vec<T>, value: T) {
    if let Err(place) = sorted.binary_search(&value) {
        sorted.insert(place, value);
    }
}
