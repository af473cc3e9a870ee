//! What is to be written so that what is desired stands in the cluster.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::{
    Desired, ENROLLED, NOT_ENROLLED, Notice, PodState, PolicyState, Present, Wish,
    notice::cut,
    present::{PresentPod, PresentPolicy},
};
use crate::{
    cluster::ObjectName,
    compile::PolicyKey,
    crd::{ACCEPTED, PolicyStatus},
};

/// Longest message of a condition, in bytes; the definition allows as many characters.
const MAX_MESSAGE: usize = 32_768;

/// Something to be written.
#[derive(Debug, Clone, PartialEq)]
pub enum Write {
    /// The status of a policy of ours.
    Policy(Box<PolicyWrite>),
    /// Annotations of a pod.
    Pod {
        /// Its name.
        name: ObjectName,
        /// The pod of that name that is meant.
        uid: Arc<str>,
        /// What they become; `None` removes one.
        annotations: BTreeMap<&'static str, Option<String>>,
    },
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
        let annotations = annotations(state, present.pods.get(name));
        (!annotations.is_empty()).then(|| Write::Pod {
            name: name.clone(),
            uid: state.uid.clone(),
            annotations,
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

/// The annotations of a pod that are to change.
pub(super) fn annotations(
    state: &PodState,
    there: Option<&PresentPod>,
) -> BTreeMap<&'static str, Option<String>> {
    // Those of an earlier pod of this name are gone with it.
    let there = there.filter(|there| there.uid == state.uid);
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
            Self::Pod { uid, .. } => Target::Pod(uid.clone()),
            Self::Node { name, .. } => Target::Node(name.clone()),
            Self::Notice(notice) => Target::Notice(notice.clone()),
        }
    }
}
