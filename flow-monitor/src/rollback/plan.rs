//! What takes a namespace out of the mesh: a plan, from its objects.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::{ResourceExt as _, api::DynamicObject};
use serde_json::{Value, json};

use crate::mesh::{SWITCH, Switch, annotation, has_ended, is_enrolled};

/// What is to be changed, and what is to be known of it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) namespace: String,
    /// The label of the namespace, if it is to be changed.
    pub(crate) label: Option<Change>,
    /// Pods with a switch of their own.
    pub(crate) pods: Vec<Change>,
    /// Whose template gives pods a switch of their own, so that the next ones will have it again.
    pub(crate) templates: BTreeSet<String>,
    /// Pods that are in the mesh now.
    pub(crate) enrolled: Vec<String>,
    /// Policies with STRICT that concern pods of the namespace.
    pub(crate) strict: Vec<String>,
    /// Those of other namespaces: who is outside of the mesh is refused there.
    pub(crate) strict_elsewhere: Vec<String>,
}

/// A switch that is set to `disabled`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) name: String,
    pub(crate) uid: Option<String>,
    /// The label of the namespace, or the annotation of the pod, as it was.
    pub(crate) before: Option<String>,
}

/// Plans. `root` is the namespace whose policies concern all.
pub(crate) fn plan(namespace: &Namespace, pods: &[Pod], peers: &[DynamicObject], root: &str) -> Plan {
    let name = namespace.name_any();
    let mut plan = Plan {
        namespace: name.clone(),
        ..Plan::default()
    };
    if Switch::of_namespace(namespace) == Some(Switch::Enabled) {
        plan.label = Some(Change {
            name: name.clone(),
            uid: namespace.uid(),
            before: namespace.labels().get(SWITCH).cloned(),
        });
    }
    for pod in pods.iter().filter(|pod| !has_ended(pod)) {
        if is_enrolled(pod) {
            plan.enrolled.push(pod.name_any());
        }
        if Switch::of_pod(pod) != Some(Switch::Enabled) {
            continue;
        }
        plan.templates.extend(template(pod));
        plan.pods.push(Change {
            name: pod.name_any(),
            uid: pod.uid(),
            // The annotation, also where a label says it: the annotation counts first, and a label may be part of what
            // a ReplicaSet knows its pods by.
            before: annotation(&pod.metadata, SWITCH).map(str::to_owned),
        });
    }
    for peer in peers.iter().filter(|peer| is_strict(peer)) {
        let within = peer.namespace().unwrap_or_default();
        let label = format!("{within}/{}", peer.name_any());
        let all = within == root && selects_all(peer);
        if within == name || all {
            plan.strict.push(label);
        } else {
            plan.strict_elsewhere.push(label);
        }
    }
    plan
}

impl Plan {
    /// Whether there is nothing to change.
    pub(crate) fn is_empty(&self) -> bool {
        self.label.is_none() && self.pods.is_empty()
    }

    /// The commands that take it back.
    pub(crate) fn undo(&self) -> Vec<String> {
        let namespace = &self.namespace;
        let mut commands = Vec::new();
        if let Some(change) = &self.label {
            commands.push(format!(
                "kubectl label --overwrite namespace {namespace} {}",
                restored(change.before.as_deref())
            ));
        }
        let mut by_value: BTreeMap<Option<&str>, Vec<&str>> = BTreeMap::new();
        for pod in &self.pods {
            by_value.entry(pod.before.as_deref()).or_default().push(&pod.name);
        }
        for (before, pods) in by_value {
            commands.push(format!(
                "kubectl annotate --overwrite -n {namespace} pod {} {}",
                pods.join(" "),
                restored(before)
            ));
        }
        commands
    }
}

impl Change {
    /// The patch, of a namespace's label or a pod's annotation. With the UID: another object of the same name is left
    /// alone.
    pub(crate) fn patch(&self, texts: &str) -> Value {
        let mut patch = json!({"metadata": {texts: {SWITCH: "disabled"}}});
        if let Some(uid) = &self.uid {
            patch["metadata"]["uid"] = json!(uid);
        }
        patch
    }
}

fn restored(before: Option<&str>) -> String {
    match before {
        Some(value) => format!("{SWITCH}={value}"),
        None => format!("{SWITCH}-"),
    }
}

/// What makes pods like this one.
fn template(pod: &Pod) -> Option<String> {
    let owners = pod.owner_references();
    let owner = owners.iter().find(|owner| owner.controller == Some(true))?;
    let hash = pod
        .labels()
        .get("pod-template-hash")
        .map(|hash| format!("-{hash}"));
    match hash.and_then(|hash| owner.name.strip_suffix(&hash)) {
        Some(deployment) if owner.kind == "ReplicaSet" => Some(format!("Deployment {deployment}")),
        _ => Some(format!("{} {}", owner.kind, owner.name)),
    }
}

fn is_strict(peer: &DynamicObject) -> bool {
    let spec = &peer.data["spec"];
    let ports = spec["portLevelMtls"].as_object();
    spec["mtls"]["mode"] == "STRICT"
        || ports.is_some_and(|ports| ports.values().any(|port| port["mode"] == "STRICT"))
}

fn selects_all(peer: &DynamicObject) -> bool {
    let labels = peer.data["spec"]["selector"]["matchLabels"].as_object();
    labels.is_none_or(serde_json::Map::is_empty)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed<T: serde::de::DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    fn namespace(labels: Value) -> Namespace {
        parsed(json!({"metadata": {"name": "shop", "uid": "u", "labels": labels}}))
    }

    fn pod(name: &str, labels: Value, annotations: Value) -> Pod {
        let owner = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-5f", "uid": "", "controller": true});
        parsed(json!({
            "metadata": {
                "name": name, "uid": name, "labels": labels, "annotations": annotations, "ownerReferences": [owner],
            },
            "status": {"phase": "Running"},
        }))
    }

    fn peer(namespace: &str, spec: Value) -> DynamicObject {
        parsed(json!({
            "apiVersion": "weir.dev/v1alpha1", "kind": "PeerAuthentication",
            "metadata": {"name": "default", "namespace": namespace}, "spec": spec,
        }))
    }

    #[test]
    fn what_says_enabled_is_disabled_and_nothing_else() {
        let pods = [
            pod("plain", json!({}), json!({"weir.dev/enrolled": "true"})),
            pod("annotated", json!({}), json!({"weir.dev/mesh": "enabled"})),
            pod(
                "labelled",
                json!({"weir.dev/mesh": "enabled", "pod-template-hash": "5f"}),
                json!({}),
            ),
            pod("istio", json!({"istio.io/dataplane-mode": "ambient"}), json!({})),
            pod(
                "off",
                json!({"weir.dev/mesh": "enabled"}),
                json!({"weir.dev/mesh": "disabled"}),
            ),
            pod("observed", json!({}), json!({"weir.dev/mesh": "observe"})),
        ];
        let mut ended = pod("ended", json!({}), json!({"weir.dev/mesh": "enabled"}));
        ended.status.as_mut().unwrap().phase = Some("Succeeded".to_owned());
        let pods: Vec<Pod> = pods.into_iter().chain([ended]).collect();
        let planned = plan(
            &namespace(json!({"weir.dev/mesh": "enabled"})),
            &pods,
            &[],
            "weir-system",
        );
        let changed: Vec<&str> = planned.pods.iter().map(|pod| pod.name.as_str()).collect();
        assert_eq!(changed, ["annotated", "labelled", "istio"]);
        assert_eq!(planned.enrolled, ["plain"]);
        let templates: Vec<&String> = planned.templates.iter().collect();
        assert_eq!(templates, ["Deployment web", "ReplicaSet web-5f"]);
        assert_eq!(
            planned.undo(),
            [
                "kubectl label --overwrite namespace shop weir.dev/mesh=enabled",
                "kubectl annotate --overwrite -n shop pod labelled istio weir.dev/mesh-",
                "kubectl annotate --overwrite -n shop pod annotated weir.dev/mesh=enabled",
            ]
        );
        assert_eq!(
            planned.pods[0].patch("annotations"),
            json!({"metadata": {"uid": "annotated", "annotations": {"weir.dev/mesh": "disabled"}}})
        );
    }

    #[test]
    fn a_namespace_is_changed_only_where_it_is_enrolled() {
        for (labels, before) in [
            (json!({"weir.dev/mesh": "enabled"}), Some(Some("enabled"))),
            (json!({"istio.io/dataplane-mode": "ambient"}), Some(None)),
            (json!({"weir.dev/mesh": "observe"}), None),
            (json!({"weir.dev/mesh": "disabled"}), None),
            (json!({}), None),
        ] {
            let planned = plan(&namespace(labels), &[], &[], "weir-system");
            let found = planned.label.as_ref().map(|change| change.before.as_deref());
            assert_eq!(found, before, "{planned:?}");
            assert_eq!(planned.is_empty(), before.is_none());
        }
    }

    #[test]
    fn strict_policies_are_told_by_whom_they_concern() {
        let strict = json!({"mtls": {"mode": "STRICT"}});
        let selected = json!({"mtls": {"mode": "STRICT"}, "selector": {"matchLabels": {"app": "x"}}});
        let peers = [
            peer("shop", strict.clone()),
            peer("weir-system", strict),
            peer(
                "data",
                json!({"selector": {"matchLabels": {"a": "b"}}, "portLevelMtls": {"80": {"mode": "STRICT"}}}),
            ),
            peer("other", json!({"mtls": {"mode": "PERMISSIVE"}})),
        ];
        let planned = plan(&namespace(json!({})), &[], &peers, "weir-system");
        assert_eq!(planned.strict, ["shop/default", "weir-system/default"]);
        assert_eq!(planned.strict_elsewhere, ["data/default"]);
        let planned = plan(
            &namespace(json!({})),
            &[],
            &[peer("weir-system", selected)],
            "weir-system",
        );
        assert_eq!(planned.strict_elsewhere, ["weir-system/default"]);
    }
}
