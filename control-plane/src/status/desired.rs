//! What should stand in the cluster, from all that is known of it.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use weir_policy::Selector;

use super::{
    Desired, Notice, PodState, PolicyState, Present, Regarding, TRUE, Wish, notice::cut,
    present::PresentPolicy,
};
use crate::{
    cluster::{PolicyApi, Switch},
    compile::{Compiler, PodView, PolicyKey, PolicyKind},
    reports::NodeState,
};

/// Longest reason in an annotation, in bytes: all annotations of an object share 256 KiB, and agents' words are in it.
const MAX_REASON: usize = 1024;

/// Labels of enrolled pods by namespace, with how many have them: pods of one deployment count together.
type Enrolled<'a> = HashMap<&'a str, HashMap<&'a BTreeMap<String, String>, i64>>;

/// What should stand in the cluster.
///
/// Of a node that no report is of, nothing is known: its agent may speak to another replica.
#[must_use]
pub fn desired(
    compiler: &Compiler,
    reports: &HashMap<Arc<str>, NodeState>,
    present: &Present,
    root_namespace: &str,
    taint_starting: bool,
) -> Desired {
    let mut desired = Desired {
        nodes: nodes(reports, present, taint_starting),
        ..Desired::default()
    };
    let mut enrolled = Enrolled::new();
    for name in compiler.pods() {
        let Some(view) = compiler.pod_view(name) else {
            continue;
        };
        let state = pod(&view, reports);
        if let Wish::Is(why) = &state.not_enrolled {
            desired
                .notices
                .push(Notice::not_enrolled(name, &view.pod.uid, why));
        }
        let claims = view.refused.iter();
        let claims = claims.filter_map(|(address, why)| Notice::claim(name, &view.pod.uid, *address, why));
        desired.notices.extend(claims);
        desired.pods.insert(name.clone(), state);
        // By the annotation, which every replica sees, and not by reports, of which each has its own.
        if view.switch == Switch::Enabled && view.pod.unfit.is_none() && view.pod.enrolled {
            let of_namespace = enrolled.entry(&name.namespace).or_default();
            *of_namespace.entry(&view.pod.labels).or_default() += 1;
        }
    }
    for (key, outcome) in compiler.policies() {
        let Some(there) = present.policies.get(key) else {
            continue;
        };
        if let Some(problem) = &outcome.problem {
            desired
                .notices
                .push(Notice::policy(regarding(key, there), problem));
        }
        // What others' policies say of themselves is their controllers' to write.
        if key.api == PolicyApi::Weir {
            let state = PolicyState {
                problem: outcome.problem.clone(),
                warnings: outcome.warnings.clone(),
                bound: bound(key, there, &enrolled, root_namespace),
            };
            desired.policies.insert(key.clone(), state);
        }
    }
    desired.notices.sort();
    desired
}

/// Which nodes bear the taint. It comes, if it is to come at all, while a node is not ready, and goes when it is, and its agent
/// too: since both hang on the node's own condition, replicas that hear of different agents do not undo each other's work.
fn nodes(
    reports: &HashMap<Arc<str>, NodeState>,
    present: &Present,
    taint_starting: bool,
) -> BTreeMap<Arc<str>, bool> {
    let tainted = present.nodes.iter().filter_map(|(name, node)| {
        let has_agent = reports.get(name).is_some_and(|report| report.ready);
        match node.ready {
            true if has_agent => Some((name.clone(), false)),
            false if taint_starting => Some((name.clone(), true)),
            _ => None,
        }
    });
    tainted.collect()
}

fn pod(view: &PodView<'_>, reports: &HashMap<Arc<str>, NodeState>) -> PodState {
    let state = |enrolled, not_enrolled| PodState {
        uid: view.pod.uid.clone(),
        enrolled,
        not_enrolled,
    };
    let because = |why: &str| Wish::Is(cut(why, MAX_REASON).to_owned());
    if view.switch != Switch::Enabled {
        return state(Wish::Absent, Wish::Absent);
    }
    if let Some(why) = &view.pod.unfit {
        return state(Wish::Absent, because(&why.to_string()));
    }
    // An agent's word counts for pods of its own node only.
    let Some(node) = reports.get(&view.pod.node) else {
        return state(Wish::Any, Wish::Any);
    };
    if !node.ready {
        // It starts, or stops: what the kernel has of its pods stays.
        return state(Wish::Any, Wish::Any);
    }
    match node.pods.get(&view.pod.uid) {
        // It is at it.
        Some(Err(why)) if why.is_empty() => state(Wish::Any, Wish::Any),
        Some(Ok(())) => state(Wish::Is(TRUE.to_owned()), Wish::Absent),
        Some(Err(why)) => state(Wish::Absent, because(why)),
        None => state(Wish::Absent, Wish::Absent),
    }
}

/// How many enrolled pods a policy applies to.
fn bound(key: &PolicyKey, policy: &PresentPolicy, enrolled: &Enrolled<'_>, root: &str) -> i64 {
    let in_root = *key.name.namespace == *root;
    let selector = policy.selector.as_ref();
    let selects = selector.is_some_and(|selector| !selector.match_labels.is_empty());
    if key.kind == PolicyKind::PeerAuthentication && in_root && selects {
        // Without effect, as in Istio.
        return 0;
    }
    let matching = |of_namespace: &HashMap<&BTreeMap<String, String>, i64>| {
        let selected = of_namespace
            .iter()
            .filter(|(labels, _)| selector.is_none_or(|selector: &Selector| selector.selects(labels)));
        selected.map(|(_, count)| count).sum::<i64>()
    };
    if in_root {
        enrolled.values().map(matching).sum()
    } else {
        enrolled.get(&*key.name.namespace).map_or(0, matching)
    }
}

fn regarding(key: &PolicyKey, policy: &PresentPolicy) -> Regarding {
    Regarding {
        api_version: policy.api_version.clone(),
        kind: match key.kind {
            PolicyKind::Authorization => "AuthorizationPolicy",
            PolicyKind::PeerAuthentication => "PeerAuthentication",
        },
        name: key.name.clone(),
        uid: policy.uid.clone(),
        generation: policy.generation,
    }
}
