//! What stands in the cluster already, as it is watched.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use k8s_openapi::api::core::v1::{Node, Pod, PodCondition};
use kube::api::DynamicObject;
use serde::Deserialize as _;
use serde_json::Value;
use weir_policy::Selector;

use super::{ADDRESS, ENROLLED, NODE_TAINT, NOT_ENROLLED};
use crate::{
    cluster::{ObjectName, PolicyApi, parse::name_of},
    compile::{PolicyKey, PolicyKind},
    crd::PolicyStatus,
};

/// Policies, nodes, and pods of which something is said, as the API server has them.
#[derive(Debug, Default)]
pub struct Present {
    pub(super) policies: HashMap<PolicyKey, PresentPolicy>,
    /// Those that have an annotation or a condition of ours.
    pub(super) pods: HashMap<ObjectName, PresentPod>,
    pub(super) nodes: BTreeMap<Arc<str>, PresentNode>,
}

/// What of a policy matters to its status.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct PresentPolicy {
    pub(super) uid: String,
    pub(super) version: String,
    pub(super) generation: i64,
    /// As its API has it: `security.istio.io/v1`.
    pub(super) api_version: String,
    pub(super) selector: Option<Selector>,
    pub(super) status: PolicyStatus,
}

/// What of a node matters to whether pods are kept off it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PresentNode {
    /// Whether it bears [`NODE_TAINT`].
    pub tainted: bool,
    /// Whether it is ready, by its own word.
    pub ready: bool,
}

/// What is said of a pod already.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PresentPod {
    pub(super) uid: Arc<str>,
    pub(super) enrolled: Option<String>,
    pub(super) not_enrolled: Option<String>,
    pub(super) address: Option<Box<PodCondition>>,
}

impl PresentPod {
    /// What a pod has of ours.
    #[must_use]
    pub fn of(pod: &Pod) -> Self {
        let meta = &pod.metadata;
        let annotation = |key| meta.annotations.as_ref().and_then(|all| all.get(key)).cloned();
        let conditions = pod.status.iter().filter_map(|status| status.conditions.as_ref());
        let address = conditions.flatten().find(|one| one.type_ == ADDRESS);
        Self {
            uid: meta.uid.as_deref().unwrap_or_default().into(),
            enrolled: annotation(ENROLLED),
            not_enrolled: annotation(NOT_ENROLLED),
            address: address.cloned().map(Box::new),
        }
    }

    fn is_empty(&self) -> bool {
        self.enrolled.is_none() && self.not_enrolled.is_none() && self.address.is_none()
    }
}

impl PresentNode {
    /// What a node says.
    #[must_use]
    pub fn of(node: &Node) -> Self {
        let taints = node.spec.iter().filter_map(|spec| spec.taints.as_ref()).flatten();
        let status = node.status.iter();
        let mut conditions = status.filter_map(|status| status.conditions.as_ref()).flatten();
        Self {
            tainted: taints.into_iter().any(|taint| taint.key == NODE_TAINT),
            ready: conditions.any(|one| one.type_ == "Ready" && one.status == "True"),
        }
    }
}

impl Present {
    /// Takes in a node that is there now.
    pub fn set_node(&mut self, name: Arc<str>, node: PresentNode) {
        self.nodes.insert(name, node);
    }

    /// Forgets a node.
    pub fn remove_node(&mut self, name: &Arc<str>) {
        self.nodes.remove(name);
    }

    /// Takes in a policy that is there now. To be called before the compiler is told.
    pub fn set_policy(&mut self, kind: PolicyKind, api: PolicyApi, object: &DynamicObject) {
        let Some(name) = name_of(&object.metadata) else {
            return;
        };
        let meta = &object.metadata;
        let part = |names: [&str; 2]| object.data.get(names[0]).and_then(|below| below.get(names[1]));
        let status = object.data.get("status").unwrap_or(&Value::Null);
        let policy = PresentPolicy {
            uid: meta.uid.clone().unwrap_or_default(),
            version: meta.resource_version.clone().unwrap_or_default(),
            generation: meta.generation.unwrap_or_default(),
            api_version: object
                .types
                .as_ref()
                .map(|types| types.api_version.clone())
                .unwrap_or_default(),
            selector: part(["spec", "selector"]).and_then(|selector| Selector::deserialize(selector).ok()),
            // A status that cannot be read is as good as none: it is written anew.
            status: PolicyStatus::deserialize(status).unwrap_or_default(),
        };
        self.policies.insert(PolicyKey { kind, api, name }, policy);
    }

    /// Forgets a policy.
    pub fn remove_policy(&mut self, kind: PolicyKind, api: PolicyApi, name: &ObjectName) {
        let name = name.clone();
        self.policies.remove(&PolicyKey { kind, api, name });
    }

    /// Takes in a pod that is there now.
    pub fn set_pod(&mut self, name: ObjectName, pod: PresentPod) {
        if pod.is_empty() {
            self.pods.remove(&name);
        } else {
            self.pods.insert(name, pod);
        }
    }

    /// Forgets a pod.
    pub fn remove_pod(&mut self, name: &ObjectName) {
        self.pods.remove(name);
    }
}
