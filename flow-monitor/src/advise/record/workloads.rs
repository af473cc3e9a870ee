//! Which pods are one workload, and the labels that choose it and nobody else.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use weir_types::{About, FlowPeer, api::WorkloadStatus};

/// Labels that differ from pod to pod, or from one roll-out to the next: no policy is to name them.
const PASSING: [&str; 10] = [
    "apps.kubernetes.io/pod-index",
    "batch.kubernetes.io/controller-uid",
    "batch.kubernetes.io/job-completion-index",
    "batch.kubernetes.io/job-name",
    "controller-revision-hash",
    "controller-uid",
    "job-name",
    "pod-template-generation",
    "pod-template-hash",
    "statefulset.kubernetes.io/pod-name",
];
/// Labels that are there to tell workloads apart, the best first.
const TELLING: [&str; 6] = [
    "app.kubernetes.io/name",
    "app",
    "k8s-app",
    "app.kubernetes.io/instance",
    "app.kubernetes.io/component",
    "name",
];
/// Labels of a pod that are looked at, and values of one label: more is taken for any.
const MAX_LABELS: usize = 64;
const MAX_VALUES: usize = 16;
/// Longest value of a label (Kubernetes' own bound).
const MAX_VALUE: usize = 63;

/// A workload's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Id(u32);

/// All that were seen.
#[derive(Debug, Default)]
pub(crate) struct Workloads {
    numbers: HashMap<Key, Id>,
    all: Vec<Workload>,
    namespaces: HashMap<String, Vec<Id>>,
    /// Pods that the agents know, whether or not they are in a record.
    known: BTreeMap<(String, String), Known>,
}

/// A pod that the agents know.
#[derive(Debug)]
struct Known {
    labels: BTreeMap<String, String>,
    in_mesh: bool,
    /// The workload that records show it to be of.
    of: Option<Id>,
}

/// What pods are told apart by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Key {
    namespace: String,
    /// Of what runs them, else of the pod; empty if nobody says.
    name: String,
    kind: String,
    /// Where nobody says what runs them.
    labels: Vec<(String, String)>,
}

/// A workload.
#[derive(Debug)]
pub(crate) struct Workload {
    pub(crate) namespace: String,
    pub(crate) name: String,
    /// `Deployment`; empty if nobody says.
    pub(crate) kind: String,
    /// Whether it is in the mesh: a record shows its identity, or an agent has it enrolled.
    pub(crate) in_mesh: bool,
    /// Whether an agent says that it is not.
    pub(crate) outside: bool,
    /// Labels that all of its pods have; nothing if the labels of one are not known.
    common: Option<BTreeMap<String, String>>,
    /// All values that its pods have of each label.
    values: BTreeMap<String, BTreeSet<String>>,
    /// More labels, or values of one, than are looked at.
    any: bool,
}

/// Which pods a policy is to concern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Selection {
    /// Those with these labels.
    Labels(BTreeMap<String, String>),
    /// All of the namespace, for this reason.
    Namespace(&'static str),
}

// === impl Workloads ===

impl Workloads {
    /// Takes over what agents know of a pod. Before any record is counted.
    pub(crate) fn learn(&mut self, status: &WorkloadStatus) {
        let known = Known {
            labels: stable(&status.labels),
            in_mesh: status.tunnel == "HBONE",
            of: None,
        };
        self.known
            .insert((status.namespace.clone(), status.name.clone()), known);
    }

    /// Namespaces of pods that agents have in the mesh.
    pub(crate) fn known_namespaces(&self) -> impl Iterator<Item = &str> {
        let in_mesh = self.known.iter().filter(|(_, known)| known.in_mesh);
        in_mesh.map(|((namespace, _), _)| namespace.as_str())
    }

    /// The workload of one end of a flow, and how much was added; nothing for what is in no namespace.
    pub(crate) fn of_peer(&mut self, peer: &FlowPeer) -> Option<(Id, usize)> {
        let namespace = peer.namespace.as_deref()?;
        let pod = peer.pod.as_deref().unwrap_or_default();
        let (id, added) = self.of(namespace, pod, peer.about.as_deref());
        self.all[id.0 as usize].in_mesh |= peer.identity.is_some();
        Some((id, added))
    }

    fn of(&mut self, namespace: &str, pod: &str, about: Option<&About>) -> (Id, usize) {
        let mut known = match self.known.is_empty() {
            true => None,
            false => self.known.get_mut(&(namespace.to_owned(), pod.to_owned())),
        };
        let labels = about.map(|about| stable(&about.labels));
        let labels = labels.filter(|labels| !labels.is_empty());
        let labels = labels.or_else(|| known.as_ref().map(|known| known.labels.clone()));
        let labels = labels.filter(|labels| !labels.is_empty());
        let runs = about.and_then(|about| about.workload.as_ref());
        let key = match runs.filter(|runs| !runs.name.is_empty()) {
            Some(runs) => Key {
                namespace: namespace.to_owned(),
                name: runs.name.clone(),
                kind: runs.kind.clone(),
                labels: Vec::new(),
            },
            None => Key {
                namespace: namespace.to_owned(),
                name: labels.as_ref().and_then(telling).unwrap_or(pod).to_owned(),
                kind: String::new(),
                labels: labels.clone().into_iter().flatten().collect(),
            },
        };
        let mut added = 0;
        let id = match self.numbers.get(&key) {
            Some(id) => *id,
            None => {
                // Far fewer than 2^32: records are bounded.
                let id = Id(self.all.len() as u32);
                let own = self.namespaces.entry(namespace.to_owned()).or_default();
                own.push(id);
                self.all.push(Workload {
                    namespace: key.namespace.clone(),
                    name: key.name.clone(),
                    kind: key.kind.clone(),
                    in_mesh: false,
                    outside: false,
                    common: labels.clone(),
                    values: BTreeMap::new(),
                    any: false,
                });
                self.numbers.insert(key, id);
                added += 1;
                id
            }
        };
        let workload = &mut self.all[id.0 as usize];
        if let Some(known) = &mut known {
            known.of = Some(id);
            workload.in_mesh |= known.in_mesh;
            workload.outside |= !known.in_mesh;
        }
        added += workload.see(labels);
        (id, added)
    }

    pub(crate) fn get(&self, id: Id) -> &Workload {
        &self.all[id.0 as usize]
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Id, &Workload)> {
        (0..).map(Id).zip(&self.all)
    }

    /// The fewest labels that choose this workload and no other that is known of its namespace.
    pub(crate) fn selection(&self, id: Id) -> Selection {
        let workload = self.get(id);
        let Some(common) = &workload.common else {
            return Selection::Namespace("the labels of its pods are not known");
        };
        let own = self.namespaces.get(&workload.namespace);
        let others = own.into_iter().flatten().filter(|other| **other != id);
        let from = (workload.namespace.clone(), String::new());
        let known = self.known.range(from..);
        let known = known.take_while(|((namespace, _), _)| *namespace == workload.namespace);
        // Pods that no record shows: with the same labels throughout they are its own.
        let unseen = known.filter(|(_, pod)| pod.of.is_none() && pod.labels != *common);
        let alone = |labels: &[(&String, &String)]| {
            let has = |pod: &Known| {
                labels
                    .iter()
                    .all(|(key, value)| pod.labels.get(*key) == Some(*value))
            };
            !others.clone().any(|other| self.get(*other).may_have(labels))
                && !unseen.clone().any(|(_, pod)| has(pod))
        };
        let rank = |key: &str| {
            TELLING
                .iter()
                .position(|one| *one == key)
                .unwrap_or(TELLING.len())
        };
        let mut labels: Vec<(&String, &String)> = common.iter().collect();
        labels.sort_by_key(|(key, _)| rank(key));
        // One label, two of those that are for it, all.
        let single = labels.iter().map(|label| vec![*label]);
        let telling = labels.iter().filter(|(key, _)| rank(key) < TELLING.len());
        let pairs = telling.clone().enumerate().flat_map(|(index, first)| {
            let others = telling.clone().skip(index + 1);
            others.map(move |second| vec![*first, *second])
        });
        let mut tries = single.chain(pairs).chain([labels.clone()]);
        match tries.find(|labels| !labels.is_empty() && alone(labels)) {
            Some(labels) => {
                let owned = labels.into_iter();
                Selection::Labels(owned.map(|(key, value)| (key.clone(), value.clone())).collect())
            }
            None if labels.is_empty() => Selection::Namespace("its pods have no label in common"),
            None => Selection::Namespace("other pods of the namespace have the same labels"),
        }
    }
}

// === impl Workload ===

impl Workload {
    /// `shop/api (Deployment)`.
    pub(crate) fn title(&self) -> String {
        let name = if self.name.is_empty() { "?" } else { &self.name };
        let kind = if self.kind.is_empty() {
            String::new()
        } else {
            format!(" ({})", self.kind)
        };
        format!("{}/{name}{kind}", self.namespace)
    }

    /// Takes over the labels of one of its pods; how many values are new.
    fn see(&mut self, labels: Option<BTreeMap<String, String>>) -> usize {
        let Some(labels) = labels else {
            self.common = None;
            return 0;
        };
        if let Some(common) = &mut self.common {
            common.retain(|key, value| labels.get(key) == Some(value));
        }
        let mut added = 0;
        for (key, value) in labels {
            if !self.values.contains_key(&key) && self.values.len() == MAX_LABELS {
                self.any = true;
                continue;
            }
            let values = self.values.entry(key).or_default();
            if values.len() < MAX_VALUES || values.contains(&value) {
                added += usize::from(values.insert(value));
            } else {
                self.any = true;
            }
        }
        added
    }

    /// Whether one of its pods may have all of these.
    fn may_have(&self, labels: &[(&String, &String)]) -> bool {
        let has = |(key, value): &(&String, &String)| {
            self.values
                .get(*key)
                .is_some_and(|values| values.contains(*value))
        };
        self.any || labels.iter().all(has)
    }
}

/// Without those that pass, and those that no definition takes.
fn stable(labels: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let good = |key: &str, value: &str| {
        let inner = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let ends = |c: char| c.is_ascii_alphanumeric();
        !PASSING.contains(&key)
            && !key.is_empty()
            && !key.contains('*')
            && value.len() <= MAX_VALUE
            && value.chars().all(inner)
            && value.starts_with(ends)
            && value.ends_with(ends)
    };
    let stable = labels.iter().filter(|(key, value)| good(key, value));
    stable
        .take(MAX_LABELS)
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

fn telling(labels: &BTreeMap<String, String>) -> Option<&str> {
    TELLING
        .iter()
        .find_map(|key| labels.get(*key))
        .map(String::as_str)
}
