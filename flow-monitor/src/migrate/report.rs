//! What became of each object, for a person.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use serde_json::Value;
use weir::style::{BAD, BOLD, DIM, GOOD, WARN, clean, paint};

use super::input::Item;

/// Objects that were made, and what became of those that were read.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) entries: Vec<Entry>,
    pub(crate) made: Vec<Made>,
    names: BTreeSet<(String, String, String)>,
}

/// An object of Weir's.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) object: Value,
    /// What it was made from.
    pub(crate) from: String,
}

/// What became of one object.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Kind, name, group.
    pub(crate) object: String,
    /// Where it was read.
    pub(crate) place: String,
    pub(crate) outcome: Outcome,
    pub(crate) notes: Vec<Note>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Outcome {
    Translated,
    InPart,
    NotNeeded,
    NoCounterpart,
}

#[derive(Debug)]
pub(crate) struct Note {
    pub(crate) effect: Effect,
    pub(crate) text: String,
}

/// What something that is different means for who may connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Nothing.
    Same,
    /// More is refused than was.
    Stricter,
    /// What it did, refusing or encrypting perhaps, nothing does: of objects that are not translated alone.
    Lost,
}

// === impl Report ===

impl Report {
    /// Adds what was made of an object, under a name that is free: `name` or `name-2`, ...
    pub(crate) fn make(&mut self, mut object: Value, from: &Item) {
        let text = |pointer: &str| {
            let found = object.pointer(pointer).and_then(Value::as_str);
            found.unwrap_or_default().to_owned()
        };
        let (kind, namespace, wanted) = (text("/kind"), text("/metadata/namespace"), text("/metadata/name"));
        let mut name = wanted.clone();
        let mut number = 2;
        while !self.names.insert((kind.clone(), namespace.clone(), name.clone())) {
            name = format!("{wanted}-{number}");
            number += 1;
        }
        object["metadata"]["name"] = name.into();
        self.made.push(Made {
            object,
            from: from.title(),
        });
    }

    pub(crate) fn add(&mut self, entry: Entry) {
        self.entries.push(entry);
    }

    /// Prints what became of everything.
    pub(crate) fn print(&self, out: &mut impl io::Write) -> io::Result<()> {
        let mut by_outcome: BTreeMap<Outcome, Vec<&Entry>> = BTreeMap::new();
        for entry in &self.entries {
            by_outcome.entry(entry.outcome).or_default().push(entry);
        }
        for (outcome, entries) in &by_outcome {
            writeln!(out, "{}", paint(BOLD, outcome.title()))?;
            for entry in entries {
                writeln!(
                    out,
                    "  {}  {}",
                    clean(&entry.object),
                    paint(DIM, clean(&entry.place))
                )?;
                for note in &entry.notes {
                    let effect = match note.effect {
                        Effect::Same => String::new(),
                        Effect::Stricter => format!("{} ", paint(WARN, "STRICTER")),
                        Effect::Lost => format!("{} ", paint(BAD, "LOST")),
                    };
                    writeln!(out, "    {effect}{}", clean(&note.text))?;
                }
            }
            writeln!(out)?;
        }
        let counts: Vec<String> = by_outcome
            .iter()
            .map(|(outcome, entries)| format!("{} {}", entries.len(), outcome.title()))
            .collect();
        let counts = if counts.is_empty() {
            "Nothing of Istio's or Linkerd's was found".to_owned()
        } else {
            counts.join(", ")
        };
        writeln!(
            out,
            "{counts}; {} policies for Weir written, nothing applied.",
            self.made.len()
        )?;
        let with = |effect| {
            let with = |entry: &&Entry| entry.notes.iter().any(|note| note.effect == effect);
            self.entries.iter().filter(with).count()
        };
        let (stricter, lost) = (with(Effect::Stricter), with(Effect::Lost));
        if stricter > 0 {
            let text =
                format!("{stricter} refuse more than before (STRICTER): try them with 'dryRun: true' first.");
            writeln!(out, "{}", paint(WARN, text))?;
        }
        if lost > 0 {
            let text = format!("{lost} did something that nothing here does (LOST): read each.");
            writeln!(out, "{}", paint(BAD, text))?;
        } else if !self.entries.is_empty() {
            let text = "What is written allows no connection that was refused.";
            writeln!(out, "{}", paint(GOOD, text))?;
        }
        Ok(())
    }
}

impl Outcome {
    fn title(self) -> &'static str {
        match self {
            Self::Translated => "translated",
            Self::InPart => "translated in part",
            Self::NotNeeded => "not needed",
            Self::NoCounterpart => "no counterpart",
        }
    }
}

// === impl Entry ===

impl Entry {
    /// Of an object that is translated unless something is noted.
    pub(crate) fn new(item: &Item) -> Self {
        Self {
            object: item.title(),
            place: item.place.clone(),
            outcome: Outcome::Translated,
            notes: Vec::new(),
        }
    }

    pub(crate) fn not_needed(item: &Item, text: impl Into<String>) -> Self {
        Self::new(item).with(Outcome::NotNeeded, Effect::Same, text)
    }

    /// Nothing of Weir does this, and nobody is let in for it.
    pub(crate) fn none(item: &Item, text: impl Into<String>) -> Self {
        Self::new(item).with(Outcome::NoCounterpart, Effect::Same, text)
    }

    /// Nothing of Weir does this, and it protected something.
    pub(crate) fn lost(item: &Item, text: impl Into<String>) -> Self {
        Self::new(item).with(Outcome::NoCounterpart, Effect::Lost, text)
    }

    pub(crate) fn with(mut self, outcome: Outcome, effect: Effect, text: impl Into<String>) -> Self {
        self.outcome = outcome;
        self.notes.push(Note {
            effect,
            text: text.into(),
        });
        self
    }

    /// Something is different, and refuses more.
    pub(crate) fn stricter(&mut self, text: impl Into<String>) {
        self.outcome = self.outcome.max(Outcome::InPart);
        self.note(Effect::Stricter, text);
    }

    /// Something was left out, and nobody's rights change.
    pub(crate) fn left_out(&mut self, text: impl Into<String>) {
        self.outcome = self.outcome.max(Outcome::InPart);
        self.note(Effect::Same, text);
    }

    pub(crate) fn say(&mut self, text: impl Into<String>) {
        self.note(Effect::Same, text);
    }

    fn note(&mut self, effect: Effect, text: impl Into<String>) {
        let text = text.into();
        if !self.notes.iter().any(|note| note.text == text) {
            self.notes.push(Note { effect, text });
        }
    }
}
