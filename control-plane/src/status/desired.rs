//! What should stand in the cluster, from all that is known of it.

use std::{
    borrow::Borrow,
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use weir_policy::Selector;

use super::{
    Desired, Notice, PodState, PolicyState, Present, Regarding, TRUE, Wish, notice::cut, plan::differs,
    present::PresentPolicy,
};
use crate::{
    cluster::{ObjectName, PolicyApi, Switch},
    compile::{Compiler, PodView, PolicyKey, PolicyKind},
    reports::NodeState,
};

/// Longest reason in an annotation, in bytes: all annotations of an object share 256 KiB, and agents' words are in it.
const MAX_REASON: usize = 1024;

/// Labels that pods have.
type Labels = BTreeMap<String, String>;
/// Labels of enrolled pods by namespace, with how many have them: pods of one deployment count together.
type Enrolled = HashMap<Arc<str>, HashMap<Arc<Labels>, i64>>;

/// What should stand in the cluster, kept up pod by pod: looking at all of them for each one that changes would take a core in a
/// large cluster.
#[derive(Debug, Default)]
pub struct Wanted {
    /// Pods of which something else stands there.
    pods: BTreeMap<ObjectName, PodState>,
    notices: HashMap<ObjectName, Vec<Notice>>,
    enrolled: Enrolled,
    /// The labels under which a pod is counted there.
    counted: HashMap<ObjectName, Arc<Labels>>,
}

/// What should stand in the cluster, looked at as a whole.
///
/// Of a node that no report is of, nothing is known: its agent may speak to another replica.
#[must_use]
pub fn desired<S: Borrow<NodeState>>(
    compiler: &Compiler,
    reports: &HashMap<Arc<str>, S>,
    present: &Present,
    root_namespace: &str,
    taint_starting: bool,
) -> Desired {
    let mut wanted = Wanted::default();
    wanted.look(compiler, reports, present, compiler.pods());
    wanted.desired(compiler, reports, present, root_namespace, taint_starting)
}

// === impl Wanted ===

impl Wanted {
    /// Looks at pods anew: at each of which something changed since, be it the pod, what stands in the cluster of it, or what
    /// its node's agent says.
    pub fn look<'a, S: Borrow<NodeState>>(
        &mut self,
        compiler: &Compiler,
        reports: &HashMap<Arc<str>, S>,
        present: &Present,
        names: impl IntoIterator<Item = &'a ObjectName>,
    ) {
        for name in names {
            self.forget(name);
            let Some(view) = compiler.pod_view(name) else {
                continue;
            };
            let mut state = pod(&view, reports);
            let mut notices = Vec::new();
            if let Wish::Is(why) = &state.not_enrolled {
                notices.push(Notice::not_enrolled(name, view.pod, why));
            }
            let claims = view.refused.iter();
            let claims: Vec<Notice> = claims
                .filter_map(|(address, why)| Notice::claim(name, view.pod, *address, why))
                .collect();
            if !claims.is_empty() {
                let notes: Vec<&str> = claims.iter().map(|claim| &*claim.note).collect();
                state.refused = Some(notes.join("; "));
            }
            notices.extend(claims);
            if !notices.is_empty() {
                self.notices.insert(name.clone(), notices);
            }
            if differs(&state, present.pods.get(name)) {
                self.pods.insert(name.clone(), state);
            }
            // By the annotation, which every replica sees, and not by reports, of which each has its own.
            if view.switch == Switch::Enabled && view.pod.unfit.is_none() && view.pod.enrolled {
                self.count(name, &view.pod.labels);
            }
        }
    }

    /// All that should stand there.
    #[must_use]
    pub fn desired<S: Borrow<NodeState>>(
        &self,
        compiler: &Compiler,
        reports: &HashMap<Arc<str>, S>,
        present: &Present,
        root_namespace: &str,
        taint_starting: bool,
    ) -> Desired {
        let mut desired = Desired {
            nodes: nodes(reports, present, taint_starting),
            pods: self.pods.clone(),
            notices: self.notices.values().flatten().cloned().collect(),
            ..Desired::default()
        };
        for (key, outcome) in compiler.policies() {
            let Some(there) = present.policies.get(key) else {
                continue;
            };
            if let Some(problem) = &outcome.problem {
                desired
                    .notices
                    .push(Notice::policy(regarding(key, there), problem, outcome.dry_run));
            }
            // What others' policies say of themselves is their controllers' to write.
            if key.api == PolicyApi::Weir {
                let state = PolicyState {
                    problem: outcome.problem.clone(),
                    dry_run: outcome.dry_run,
                    warnings: outcome.warnings.clone(),
                    bound: bound(key, there, &self.enrolled, root_namespace),
                };
                desired.policies.insert(key.clone(), state);
            }
        }
        desired.notices.sort();
        desired
    }

    fn count(&mut self, name: &ObjectName, labels: &Labels) {
        let of_namespace = self.enrolled.entry(name.namespace.clone()).or_default();
        let shared = of_namespace
            .get_key_value(labels)
            .map(|(shared, _)| shared.clone());
        let shared = shared.unwrap_or_else(|| Arc::new(labels.clone()));
        *of_namespace.entry(shared.clone()).or_default() += 1;
        self.counted.insert(name.clone(), shared);
    }

    fn forget(&mut self, name: &ObjectName) {
        self.pods.remove(name);
        self.notices.remove(name);
        let Some(labels) = self.counted.remove(name) else {
            return;
        };
        if let Some(of_namespace) = self.enrolled.get_mut(&name.namespace) {
            if let Some(count) = of_namespace.get_mut(&labels) {
                *count -= 1;
                if *count == 0 {
                    of_namespace.remove(&labels);
                }
            }
            if of_namespace.is_empty() {
                self.enrolled.remove(&name.namespace);
            }
        }
    }
}

/// Which nodes bear the taint. It comes, if it is to come at all, while a node is not ready, and goes when it is, and its agent
/// too: since both hang on the node's own condition, replicas that hear of different agents do not undo each other's work.
fn nodes<S: Borrow<NodeState>>(
    reports: &HashMap<Arc<str>, S>,
    present: &Present,
    taint_starting: bool,
) -> BTreeMap<Arc<str>, bool> {
    let tainted = present.nodes.iter().filter_map(|(name, node)| {
        let has_agent = reports.get(name).is_some_and(|report| {
            let report: &NodeState = report.borrow();
            report.ready
        });
        match node.ready {
            true if has_agent => Some((name.clone(), false)),
            false if taint_starting => Some((name.clone(), true)),
            _ => None,
        }
    });
    tainted.collect()
}

fn pod<S: Borrow<NodeState>>(view: &PodView<'_>, reports: &HashMap<Arc<str>, S>) -> PodState {
    let state = |enrolled, not_enrolled| PodState {
        uid: view.pod.uid.clone(),
        node: view.pod.node.clone(),
        enrolled,
        not_enrolled,
        refused: None,
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
    let node: &NodeState = node.borrow();
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
fn bound(key: &PolicyKey, policy: &PresentPolicy, enrolled: &Enrolled, root: &str) -> i64 {
    let in_root = *key.name.namespace == *root;
    let selector = policy.selector.as_ref();
    let selects = selector.is_some_and(|selector| !selector.match_labels.is_empty());
    if key.kind == PolicyKind::PeerAuthentication && in_root && selects {
        // Without effect, as in Istio.
        return 0;
    }
    let matching = |of_namespace: &HashMap<Arc<Labels>, i64>| {
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
