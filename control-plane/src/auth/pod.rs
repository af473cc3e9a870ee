//! The pod that a token is bound to, and whether it is an agent's.

use k8s_openapi::api::core::v1::Pod;

use super::{
    claims::{BoundPod, Expected},
    reason::Reason,
};

/// What of a pod matters here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AgentPod {
    /// Kubernetes' UID.
    pub uid: String,
    /// Its node; empty if it has none.
    pub node: String,
    /// Its service account.
    pub service_account: String,
    /// Whether it is being deleted, or has finished.
    pub ending: bool,
    /// What controls it.
    pub controller: Option<Controller>,
}

/// What controls a pod: the owner reference with `controller: true`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Controller {
    /// Group and version.
    pub api_version: String,
    /// Its kind.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

// === impl AgentPod ===

impl From<&Pod> for AgentPod {
    fn from(pod: &Pod) -> Self {
        let spec = pod.spec.as_ref();
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        let owners = pod.metadata.owner_references.as_deref().unwrap_or_default();
        let controller = owners.iter().find(|owner| owner.controller == Some(true));
        let text = |text: Option<&String>| text.cloned().unwrap_or_default();
        Self {
            uid: text(pod.metadata.uid.as_ref()),
            node: text(spec.and_then(|spec| spec.node_name.as_ref())),
            service_account: text(spec.and_then(|spec| spec.service_account_name.as_ref())),
            ending: pod.metadata.deletion_timestamp.is_some()
                || matches!(phase, Some("Succeeded" | "Failed")),
            controller: controller.map(|owner| Controller {
                api_version: owner.api_version.clone(),
                kind: owner.kind.clone(),
                name: owner.name.clone(),
                uid: owner.uid.clone(),
            }),
        }
    }
}

impl AgentPod {
    /// Whether it is the one that a token is bound to, lives, and runs as this service account.
    pub(super) fn check(&self, bound: &BoundPod, service_account: &str) -> Result<(), Reason> {
        let name = || bound.name.clone();
        if self.uid.is_empty() || self.uid != bound.uid {
            return Err(Reason::PodUid(name()));
        }
        if self.ending {
            return Err(Reason::PodEnding(name()));
        }
        if self.service_account != service_account {
            return Err(Reason::PodAccount(name()));
        }
        Ok(())
    }
}

impl Expected<'_> {
    /// The node of an agent's pod, if it is one and the token is bound to it. `daemon_set` is the UID of the DaemonSet
    /// of that name, if it is known.
    pub(super) fn node_of(
        &self,
        bound: &BoundPod,
        pod: &AgentPod,
        daemon_set: Option<&str>,
    ) -> Result<String, Reason> {
        let name = || bound.name.clone();
        pod.check(bound, self.service_account)?;
        let controlled = pod.controller.as_ref().is_some_and(|controller| {
            controller.kind == "DaemonSet"
                && controller.api_version.starts_with("apps/")
                && controller.name == self.daemon_set
                && daemon_set.is_none_or(|uid| uid == controller.uid)
        });
        if !controlled {
            return Err(Reason::PodOwner(name()));
        }
        if pod.node.is_empty() {
            return Err(Reason::NoNode(name()));
        }
        // A pod's node never changes, so this is one that another wrote into the object.
        if bound.node.as_ref().is_some_and(|node| *node != pod.node) {
            return Err(Reason::NodeMismatch(name()));
        }
        Ok(pod.node.clone())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::auth::{AgentAccount, claims::Holder};

    fn good() -> Value {
        json!({
            "metadata": {
                "uid": "uid-1",
                "ownerReferences": [
                    {"apiVersion": "v1", "kind": "Node", "name": "node-1", "uid": "n"},
                    {"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "weir-agent", "uid": "ds", "controller": true},
                ],
            },
            "spec": {"nodeName": "node-1", "serviceAccountName": "weir-agent", "containers": []},
            "status": {"phase": "Running"},
        })
    }

    fn node(pod: Value, daemon_set: Option<&str>, node: Option<&str>) -> Result<String, Reason> {
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let bound = BoundPod {
            holder: Holder::Node(0),
            name: "agent-1".to_owned(),
            uid: "uid-1".to_owned(),
            node: node.map(str::to_owned),
        };
        let account = AgentAccount::default();
        let expected = account.expected().next().unwrap();
        expected.node_of(&bound, &AgentPod::from(&pod), daemon_set)
    }

    #[test]
    fn the_node_is_the_one_of_the_pods_object() {
        for (daemon_set, named) in [(None, None), (Some("ds"), Some("node-1"))] {
            assert_eq!(node(good(), daemon_set, named), Ok("node-1".to_owned()));
        }
    }

    #[test]
    fn a_pod_that_is_not_an_agents_has_no_node() {
        let name = || "agent-1".to_owned();
        for (pointer, value, expected) in [
            ("/metadata/uid", json!("uid-2"), Reason::PodUid(name())),
            ("/metadata/uid", json!(null), Reason::PodUid(name())),
            (
                "/metadata/deletionTimestamp",
                json!("2026-01-01T00:00:00Z"),
                Reason::PodEnding(name()),
            ),
            ("/status/phase", json!("Succeeded"), Reason::PodEnding(name())),
            ("/status/phase", json!("Failed"), Reason::PodEnding(name())),
            (
                "/spec/serviceAccountName",
                json!("default"),
                Reason::PodAccount(name()),
            ),
            ("/metadata/ownerReferences", json!(null), Reason::PodOwner(name())),
            (
                "/metadata/ownerReferences/1/kind",
                json!("ReplicaSet"),
                Reason::PodOwner(name()),
            ),
            (
                "/metadata/ownerReferences/1/apiVersion",
                json!("example.com/v1"),
                Reason::PodOwner(name()),
            ),
            (
                "/metadata/ownerReferences/1/name",
                json!("other"),
                Reason::PodOwner(name()),
            ),
            (
                "/metadata/ownerReferences/1/uid",
                json!("forged"),
                Reason::PodOwner(name()),
            ),
            (
                "/metadata/ownerReferences/1/controller",
                json!(false),
                Reason::PodOwner(name()),
            ),
            ("/spec/nodeName", json!(null), Reason::NoNode(name())),
            ("/spec/nodeName", json!("node-2"), Reason::NodeMismatch(name())),
        ] {
            let mut pod = good();
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            let parent = pod.pointer_mut(parent).unwrap();
            parent[key] = value.clone();
            assert_eq!(
                node(pod, Some("ds"), Some("node-1")),
                Err(expected),
                "{pointer} {value}"
            );
        }
    }
}
