//! Which pods are in the mesh, which are meant to be, and which are not.

use std::collections::BTreeMap;

use kube::ResourceExt as _;
use serde::Serialize;

use super::report::Collected;
use crate::mesh::{NOT_ENROLLED, Switch, annotation, has_ended, is_enrolled, is_host_network};

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Enrolment {
    pub(crate) namespace: String,
    /// What the namespace's label says.
    pub(crate) mesh: String,
    pub(crate) enrolled: Vec<String>,
    /// Pods that are meant to be in the mesh and are not, with the reason.
    pub(crate) wanted: BTreeMap<String, String>,
    pub(crate) observed: Vec<String>,
    pub(crate) disabled: Vec<String>,
    /// How many others.
    pub(crate) outside: usize,
}

/// What of each namespace is in the mesh.
pub(super) fn enrolment(collected: &Collected, concerns: &impl Fn(&str) -> bool) -> Vec<Enrolment> {
    let text = |switch: Option<Switch>| match switch {
        Some(Switch::Enabled) => "enabled",
        Some(Switch::Observe) => "observe",
        Some(Switch::Disabled) => "disabled",
        None => "not said",
    };
    let mut by_namespace: BTreeMap<&str, Enrolment> = BTreeMap::new();
    for (name, namespace) in &collected.namespaces {
        if concerns(name) {
            let enrolment = Enrolment {
                namespace: name.clone(),
                mesh: text(Switch::of_namespace(namespace)).to_owned(),
                ..Enrolment::default()
            };
            by_namespace.insert(name, enrolment);
        }
    }
    for pod in collected.pods.iter().filter(|pod| !has_ended(pod)) {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let Some(enrolment) = by_namespace.get_mut(namespace) else {
            continue;
        };
        let own = collected.namespaces.get(namespace).and_then(Switch::of_namespace);
        let name = pod.name_any();
        match Switch::of_pod(pod).or(own).or(collected.mesh_default()) {
            _ if is_enrolled(pod) => enrolment.enrolled.push(name),
            Some(Switch::Enabled) => {
                let why = annotation(&pod.metadata, NOT_ENROLLED).unwrap_or(if is_host_network(pod) {
                    "it is in the network of its node"
                } else {
                    "its agent has not said why"
                });
                enrolment.wanted.insert(name, why.to_owned());
            }
            Some(Switch::Observe) => enrolment.observed.push(name),
            Some(Switch::Disabled) => enrolment.disabled.push(name),
            None => enrolment.outside += 1,
        }
    }
    let mut all: Vec<Enrolment> = by_namespace.into_values().collect();
    for one in &mut all {
        one.enrolled.sort();
        one.observed.sort();
        one.disabled.sort();
    }
    all
}

/// Pods with a switch of their own that keeps them out, where their namespace is in.
pub(super) fn switched(enrolment: &[Enrolment]) -> BTreeMap<String, String> {
    let enabled = enrolment.iter().filter(|one| one.mesh == "enabled");
    let pods = enabled.flat_map(|one| {
        let observed = one.observed.iter().map(|pod| (pod, "observe"));
        let disabled = one.disabled.iter().map(|pod| (pod, "disabled"));
        observed
            .chain(disabled)
            .map(|(pod, what)| (format!("{}/{pod}", one.namespace), what.to_owned()))
    });
    pods.collect()
}
