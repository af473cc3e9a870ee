//! Who is first where there is more to write than may be written.
//!
//! An agent's word decides what is said of its node's pods, and as often as it likes: what is said of other nodes' pods must
//! not wait for that. Nor must policies, of which one says to how many pods it applies.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound,
    sync::Arc,
};

use super::Write;
use crate::cluster::ObjectName;

/// Whose turn it is. Nodes take turns, and so do policies; and both with each other.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// Who had the last turn.
    node: Option<Arc<str>>,
    policy: Option<ObjectName>,
    was_policy: bool,
}

/// For whom something is written.
enum Lane {
    /// For pods that wait for a node: one write each.
    First,
    Policy(ObjectName),
    Node(Arc<str>),
}

type Lanes<K> = BTreeMap<K, VecDeque<Write>>;

// === impl Turns ===

impl Turns {
    /// The first `most` of these. Of one node, or policy, they keep their order.
    pub(super) fn first(&self, writes: Vec<Write>, most: usize) -> Vec<Write> {
        let (mut first, mut policies, mut nodes) = (Vec::new(), Lanes::new(), Lanes::new());
        for write in writes {
            match lane(&write) {
                Lane::First => first.push(write),
                Lane::Policy(name) => policies.entry(name).or_default().push_back(write),
                Lane::Node(name) => nodes.entry(name).or_default().push_back(write),
            }
        }
        let mut policies = in_turn(policies, self.policy.clone());
        let mut nodes = in_turn(nodes, self.node.clone());
        let mut was_policy = self.was_policy;
        let alternating = std::iter::from_fn(|| {
            was_policy = !was_policy;
            if was_policy {
                policies.next().or_else(|| nodes.next())
            } else {
                nodes.next().or_else(|| policies.next())
            }
        });
        first.into_iter().chain(alternating).take(most).collect()
    }

    /// Takes down that a write is made.
    pub(super) fn had(&mut self, write: &Write) {
        match lane(write) {
            Lane::First => {}
            Lane::Policy(name) => {
                self.policy = Some(name);
                self.was_policy = true;
            }
            Lane::Node(name) => {
                self.node = Some(name);
                self.was_policy = false;
            }
        }
    }
}

fn lane(write: &Write) -> Lane {
    match write {
        Write::Node { .. } => Lane::First,
        Write::Policy(write) => Lane::Policy(write.key.name.clone()),
        Write::Pod(write) => Lane::Node(write.node.clone()),
        Write::Notice(notice) => match &notice.node {
            Some(node) => Lane::Node(node.clone()),
            None => Lane::Policy(notice.about.name.clone()),
        },
    }
}

/// One of each lane, beginning behind the last that had one, and again until nothing is left.
fn in_turn<K: Ord + Clone>(mut lanes: Lanes<K>, mut last: Option<K>) -> impl Iterator<Item = Write> {
    std::iter::from_fn(move || {
        let behind = last.as_ref().and_then(|last| {
            let mut range = lanes.range((Bound::Excluded(last), Bound::Unbounded));
            range.next().map(|(lane, _)| lane.clone())
        });
        let turn = behind.or_else(|| lanes.keys().next().cloned())?;
        let writes = lanes.get_mut(&turn)?;
        let write = writes.pop_front();
        if writes.is_empty() {
            lanes.remove(&turn);
        }
        last = Some(turn);
        write
    })
}
