//! What agents say of themselves, beside their records.

use std::collections::BTreeSet;

use jiff::Timestamp;
use weir_types::api::{PodStatus, Status, WorkloadStatus};

/// What the agents said; nothing where records are read from a file.
#[derive(Debug, Default)]
pub(crate) struct State {
    /// Whether agents were asked at all.
    pub(crate) asked: bool,
    pub(crate) now: Timestamp,
    pub(crate) statuses: Vec<Status>,
    pub(crate) workloads: Vec<WorkloadStatus>,
    /// Agents that could not be asked, and why.
    pub(crate) missing: Vec<String>,
}

/// The modes of a namespace's pods.
pub(crate) struct Modes {
    strict: usize,
    partly: Vec<String>,
    observed: usize,
    others: usize,
    problems: Vec<String>,
}

// === impl State ===

impl State {
    fn pods(&self) -> impl Iterator<Item = &PodStatus> {
        self.statuses.iter().flat_map(|status| &status.pods)
    }

    pub(crate) fn namespaces(&self) -> impl Iterator<Item = &str> {
        self.pods().map(|pod| pod.namespace.as_str())
    }

    /// How many policies apply to a namespace's pods: the most of one.
    pub(crate) fn policies(&self, namespace: &str) -> u64 {
        let own = self.pods().filter(|pod| pod.namespace == namespace);
        own.map(|pod| pod.policies).max().unwrap_or_default()
    }

    /// What agents say of policies that may not do what was meant, each once.
    pub(crate) fn warnings(&self) -> BTreeSet<&str> {
        let all = self.statuses.iter().flat_map(|status| &status.warnings);
        all.map(String::as_str).collect()
    }

    pub(crate) fn modes(&self, namespace: &str) -> Modes {
        let mut modes = Modes {
            strict: 0,
            partly: Vec::new(),
            observed: 0,
            others: 0,
            problems: Vec::new(),
        };
        for pod in self.pods().filter(|pod| pod.namespace == namespace) {
            match pod.mode.as_str() {
                _ if !pod.enrolled => {
                    let why = pod.problem.as_deref().unwrap_or("not enrolled yet");
                    modes
                        .problems
                        .push(format!("{} is not enrolled: {why}", pod.name));
                }
                "STRICT" => modes.strict += 1,
                "observe" => modes.observed += 1,
                "PERMISSIVE" => modes.others += 1,
                other => modes.partly.push(format!("{} is {other}", pod.name)),
            }
        }
        modes
    }
}

// === impl Modes ===

impl Modes {
    /// Whether a pod is in the mesh.
    pub(crate) fn any(&self) -> bool {
        self.strict + self.observed + self.others + self.partly.len() > 0
    }

    pub(crate) fn all_strict(&self) -> bool {
        self.strict > 0 && self.observed + self.others + self.partly.len() == 0
    }

    pub(crate) fn notes(&self) -> Vec<String> {
        let mut notes = self.problems.clone();
        notes.extend(self.partly.clone());
        if self.strict > 0 && !self.all_strict() {
            notes.push(format!("{} of its pods are STRICT already", self.strict));
        }
        if self.observed > 0 {
            notes.push(format!(
                "{} of its pods are only observed: they speak plaintext until they are enabled",
                self.observed
            ));
        }
        notes
    }
}
