//! What is to be written so that what is desired stands in the cluster.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::PodCondition,
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
};

use super::{
    ADDRESS, Desired, ENROLLED, NOT_ENROLLED, Notice, PodState, PolicyState, Present, Wish,
    notice::{MAX_NOTE, REFUSED, REHEARSED, cut},
    present::{PresentPod, PresentPolicy},
};
use crate::{
    cluster::ObjectName,
    compile::PolicyKey,
    crd::{ACCEPTED, PolicyStatus},
};

/// Longest message of a condition, in bytes; the definition allows as many characters.
const MAX_MESSAGE: usize = 32_768;
/// Longest message of a pod's, in bytes: that of the event which says the same.
const MAX_REFUSED: usize = MAX_NOTE;

/// Something to be written.
#[derive(Debug, Clone, PartialEq)]
pub enum Write {
    /// The status of a policy of ours.
    Policy(Box<PolicyWrite>),
    /// What is said of a pod.
    Pod(Box<PodWrite>),
    /// Whether a node bears [`super::NODE_TAINT`].
    Node {
        /// Its name.
        name: Arc<str>,
        /// Whether it does.
        tainted: bool,
    },
    /// An event.
    Notice(Notice),
}

/// The status of a policy of ours.
#[derive(Debug, Clone, PartialEq)]
pub struct PolicyWrite {
    /// The policy.
    pub key: PolicyKey,
    /// Which of that name.
    pub uid: String,
    /// The version that this was planned for: of another, nothing is written.
    pub version: String,
    /// The status, as far as it is ours.
    pub status: PolicyStatus,
}

/// What is said of a pod.
#[derive(Debug, Clone, PartialEq)]
pub struct PodWrite {
    /// Its name.
    pub name: ObjectName,
    /// The pod of that name that is meant.
    pub uid: Arc<str>,
    /// Its node.
    pub node: Arc<str>,
    /// What its annotations become; `None` removes one.
    pub annotations: BTreeMap<&'static str, Option<String>>,
    /// What its condition [`ADDRESS`] becomes, if something else.
    pub address: Option<AddressWrite>,
}

/// What the condition [`ADDRESS`] of a pod becomes.
#[derive(Debug, Clone, PartialEq)]
pub enum AddressWrite {
    /// It goes: the pod has all its addresses.
    Settled,
    /// This.
    Refused(Box<PodCondition>),
}

/// What of a write names its object, so that it is known when it comes again.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Target {
    Policy(PolicyKey),
    Pod(Arc<str>),
    Node(Arc<str>),
    Notice(Notice),
}

/// What is to be written now. What stands there already is not; nodes that wait for pods come first, conditions before
/// annotations, and events last.
#[must_use]
pub fn plan(desired: &Desired, present: &Present, now: Timestamp) -> Vec<Write> {
    let policies = desired.policies.iter().filter_map(|(key, state)| {
        let there = present.policies.get(key)?;
        let status = status(state, there, now)?;
        Some(Write::Policy(Box::new(PolicyWrite {
            key: key.clone(),
            uid: there.uid.clone(),
            version: there.version.clone(),
            status,
        })))
    });
    let pods = desired.pods.iter().filter_map(|(name, state)| {
        let there = present.pods.get(name);
        differs(state, there).then(|| {
            Write::Pod(Box::new(PodWrite {
                name: name.clone(),
                uid: state.uid.clone(),
                node: state.node.clone(),
                annotations: annotations(state, there),
                address: address(state, there, now),
            }))
        })
    });
    let nodes = desired.nodes.iter().filter_map(|(name, tainted)| {
        let there = present.nodes.get(name)?;
        (there.tainted != *tainted).then(|| Write::Node {
            name: name.clone(),
            tainted: *tainted,
        })
    });
    let notices = desired.notices.iter().cloned().map(Write::Notice);
    nodes.chain(policies).chain(pods).chain(notices).collect()
}

/// The status that a policy should have; `None` if it has it.
fn status(state: &PolicyState, there: &PresentPolicy, now: Timestamp) -> Option<PolicyStatus> {
    let generation = Some(there.generation);
    if there.status.observed_generation > generation {
        // Whoever wrote it has seen more of the policy.
        return None;
    }
    let (holds, reason, message) = match &state.problem {
        Some(problem) if state.dry_run => ("False", "Invalid", format!("{problem} ({REHEARSED})")),
        Some(problem) => ("False", "Invalid", problem.clone()),
        None if state.warnings.is_empty() => ("True", "Accepted", String::new()),
        None => ("True", "AcceptedWithWarnings", state.warnings.join("; ")),
    };
    let before = there.status.conditions.iter().find(|one| one.type_ == ACCEPTED);
    let unchanged = before.filter(|before| before.status == holds);
    let condition = Condition {
        type_: ACCEPTED.to_owned(),
        status: holds.to_owned(),
        reason: reason.to_owned(),
        message: cut(&message, MAX_MESSAGE).to_owned(),
        observed_generation: generation,
        last_transition_time: unchanged.map_or(Time(now), |before| before.last_transition_time.clone()),
    };
    let same = before == Some(&condition)
        && there.status.observed_generation == generation
        && there.status.bound == Some(state.bound);
    (!same).then(|| PolicyStatus {
        observed_generation: generation,
        bound: Some(state.bound),
        conditions: vec![condition],
    })
}

/// Whether anything is to be written of a pod.
pub(super) fn differs(state: &PodState, there: Option<&PresentPod>) -> bool {
    !annotations(state, there).is_empty() || address(state, there, Timestamp::UNIX_EPOCH).is_some()
}

/// What is to become of a pod's condition; nothing if it may stay.
fn address(state: &PodState, there: Option<&PresentPod>, now: Timestamp) -> Option<AddressWrite> {
    let there = own(state, there).and_then(|there| there.address.as_deref());
    let Some(refused) = &state.refused else {
        return there.map(|_| AddressWrite::Settled);
    };
    let message = cut(refused, MAX_REFUSED);
    let before = there.filter(|there| there.status == "False");
    let same = before.is_some_and(|before| {
        before.reason.as_deref() == Some(REFUSED) && before.message.as_deref() == Some(message)
    });
    (!same).then(|| {
        AddressWrite::Refused(Box::new(PodCondition {
            type_: ADDRESS.to_owned(),
            status: "False".to_owned(),
            reason: Some(REFUSED.to_owned()),
            message: Some(message.to_owned()),
            last_transition_time: before
                .and_then(|before| before.last_transition_time.clone())
                .or(Some(Time(now))),
            ..PodCondition::default()
        }))
    })
}

/// What stands there of the pod: what is of an earlier one of its name is gone with it.
fn own<'a>(state: &PodState, there: Option<&'a PresentPod>) -> Option<&'a PresentPod> {
    there.filter(|there| there.uid == state.uid)
}

/// The annotations of a pod that are to change.
fn annotations(state: &PodState, there: Option<&PresentPod>) -> BTreeMap<&'static str, Option<String>> {
    let there = own(state, there);
    let wishes = [
        (
            ENROLLED,
            &state.enrolled,
            there.and_then(|pod| pod.enrolled.as_ref()),
        ),
        (
            NOT_ENROLLED,
            &state.not_enrolled,
            there.and_then(|pod| pod.not_enrolled.as_ref()),
        ),
    ];
    let changes = wishes.into_iter().filter_map(|(key, wish, there)| {
        let wanted = match wish {
            Wish::Any => return None,
            Wish::Absent => None,
            Wish::Is(text) => Some(text),
        };
        (wanted != there).then(|| (key, wanted.cloned()))
    });
    changes.collect()
}

// === impl Write ===

impl Write {
    pub(super) fn target(&self) -> Target {
        match self {
            Self::Policy(write) => Target::Policy(write.key.clone()),
            Self::Pod(write) => Target::Pod(write.uid.clone()),
            Self::Node { name, .. } => Target::Node(name.clone()),
            Self::Notice(notice) => Target::Notice(notice.clone()),
        }
    }
}
