//! What labels and annotations say of the mesh, as the control plane reads them.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Namespace, Pod},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

/// The label or annotation that switches a namespace or a pod.
pub(crate) const SWITCH: &str = "weir.dev/mesh";
/// The label of the root namespace that switches all pods of which nothing else is said: `observe`.
pub(crate) const DEFAULT_SWITCH: &str = "weir.dev/mesh-default";
/// Istio's, which counts where ours is absent.
pub(crate) const ISTIO_SWITCH: &str = "istio.io/dataplane-mode";
/// The annotation of pods that are in the mesh.
pub(crate) const ENROLLED: &str = "weir.dev/enrolled";
/// The annotation of pods that are meant to be and are not: why.
pub(crate) const NOT_ENROLLED: &str = "weir.dev/not-enrolled";
/// The API group of Weir's policies.
pub(crate) const GROUP: &str = "weir.dev";
/// Its version that this program knows.
pub(crate) const VERSION: &str = "v1alpha1";
/// Beginnings of the names of runtime classes whose pods do not use the node's kernel for connections.
const FOREIGN_RUNTIMES: [&str; 3] = ["gvisor", "runsc", "kata"];

/// What an operator wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Switch {
    Enabled,
    Observe,
    Disabled,
}

impl Switch {
    /// What labels or annotations say; ours over Istio's. Nothing where the value is unknown.
    pub(crate) fn of(texts: Option<&BTreeMap<String, String>>) -> Option<Self> {
        let texts = texts?;
        if let Some(text) = texts.get(SWITCH) {
            return match text.as_str() {
                "enabled" => Some(Self::Enabled),
                "observe" => Some(Self::Observe),
                "disabled" => Some(Self::Disabled),
                _ => None,
            };
        }
        match texts.get(ISTIO_SWITCH).map(String::as_str) {
            Some("ambient") => Some(Self::Enabled),
            Some("none") => Some(Self::Disabled),
            _ => None,
        }
    }

    /// A pod's own: its annotation's, else its label's.
    pub(crate) fn of_pod(pod: &Pod) -> Option<Self> {
        Self::of(pod.metadata.annotations.as_ref()).or_else(|| Self::of(pod.metadata.labels.as_ref()))
    }

    /// A namespace's: its label's, else its annotation's.
    pub(crate) fn of_namespace(namespace: &Namespace) -> Option<Self> {
        let meta = &namespace.metadata;
        Self::of(meta.labels.as_ref()).or_else(|| Self::of(meta.annotations.as_ref()))
    }

    /// What the root namespace says of all pods: its label, else its annotation.
    pub(crate) fn of_mesh(root: &Namespace) -> Option<Self> {
        let texts = [&root.metadata.labels, &root.metadata.annotations];
        let mut texts = texts.into_iter().flatten();
        texts
            .any(|texts| texts.get(DEFAULT_SWITCH).is_some_and(|text| text == "observe"))
            .then_some(Self::Observe)
    }
}

/// A value of our switch that nobody knows, in labels or annotations.
pub(crate) fn unknown_value(meta: &ObjectMeta) -> Option<&str> {
    values(meta, SWITCH).find(|value| !matches!(*value, "enabled" | "observe" | "disabled"))
}

/// A value of the mesh's switch that says nothing, in labels or annotations of a namespace.
pub(crate) fn useless_default(meta: &ObjectMeta, is_root: bool) -> Option<&str> {
    values(meta, DEFAULT_SWITCH).find(|value| *value != "observe" || !is_root)
}

fn values<'a>(meta: &'a ObjectMeta, name: &str) -> impl Iterator<Item = &'a str> {
    let texts = [&meta.labels, &meta.annotations].into_iter().flatten();
    texts.filter_map(move |texts| texts.get(name).map(String::as_str))
}

/// An annotation.
pub(crate) fn annotation<'a>(meta: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(name).map(String::as_str)
}

/// Whether its agent has said that the pod is in the mesh.
pub(crate) fn is_enrolled(pod: &Pod) -> bool {
    annotation(&pod.metadata, ENROLLED).is_some()
}

/// Whether the pod has ended, for good.
pub(crate) fn has_ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// Whether it shares its node's network.
pub(crate) fn is_host_network(pod: &Pod) -> bool {
    pod.spec
        .as_ref()
        .is_some_and(|spec| spec.host_network == Some(true))
}

/// The runtime class of a pod that does not use the node's kernel for connections.
pub(crate) fn foreign_runtime(pod: &Pod) -> Option<&str> {
    let class = pod.spec.as_ref()?.runtime_class_name.as_deref()?;
    let lower = class.to_ascii_lowercase();
    FOREIGN_RUNTIMES
        .iter()
        .any(|foreign| lower.starts_with(foreign))
        .then_some(class)
}

/// Whether a pod is meant to be in the mesh.
pub(crate) fn is_wanted(pod: &Pod, namespace: Option<&Namespace>) -> bool {
    let switch = Switch::of_pod(pod).or_else(|| namespace.and_then(Switch::of_namespace));
    switch == Some(Switch::Enabled)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use weir_control::cluster as control;

    use super::*;

    #[test]
    fn labels_and_annotations_mean_what_the_control_plane_takes_them_for() {
        let texts = [
            json!({}),
            json!({"weir.dev/mesh": "enabled"}),
            json!({"weir.dev/mesh": "observe"}),
            json!({"weir.dev/mesh": "disabled", "istio.io/dataplane-mode": "ambient"}),
            json!({"weir.dev/mesh": "Enabled", "istio.io/dataplane-mode": "ambient"}),
            json!({"istio.io/dataplane-mode": "ambient"}),
            json!({"istio.io/dataplane-mode": "none"}),
            json!({"weir.dev/mesh-default": "observe"}),
            json!({"weir.dev/mesh-default": "enabled"}),
        ];
        let same = |own: Option<Switch>, theirs: Option<control::Switch>| {
            assert_eq!(format!("{own:?}"), format!("{theirs:?}"));
        };
        for labels in &texts {
            for annotations in &texts {
                let meta = json!({"name": "x", "uid": "x", "labels": labels, "annotations": annotations});
                let namespace: Namespace = parsed(&json!({"metadata": meta}));
                let theirs = control::Namespace::parse(&namespace.metadata);
                same(Switch::of_namespace(&namespace), theirs.switch);
                same(Switch::of_mesh(&namespace), theirs.mesh_default);
                let pod: Pod =
                    parsed(&json!({"metadata": meta, "spec": {"containers": [], "nodeName": "n"}}));
                same(Switch::of_pod(&pod), control::Pod::parse(&pod).unwrap().switch);
            }
        }
    }

    #[test]
    fn runtimes_are_foreign_that_the_control_plane_takes_for_such() {
        for class in ["gvisor", "kata-qemu", "Runsc-2", "runc", "nvidia"] {
            let spec = json!({"containers": [], "nodeName": "n", "runtimeClassName": class});
            let pod: Pod = parsed(&json!({"metadata": {"name": "x", "uid": "x"}, "spec": spec}));
            let theirs = control::Pod::parse(&pod).unwrap().unfit.is_some();
            assert_eq!(foreign_runtime(&pod).is_some(), theirs, "{class}");
        }
    }

    fn parsed<T: serde::de::DeserializeOwned>(value: &Value) -> T {
        serde_json::from_value(value.clone()).unwrap()
    }
}
