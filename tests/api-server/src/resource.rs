//! Which resources are served: those built in, and those that definitions have added.

use std::sync::Arc;

use serde_json::Value;

use crate::schema::Schema;

/// A resource in one version of its group.
#[derive(Debug, Clone)]
pub(crate) struct Resource {
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) kind: String,
    pub(crate) list_kind: String,
    pub(crate) plural: String,
    pub(crate) singular: String,
    pub(crate) short_names: Vec<String>,
    pub(crate) namespaced: bool,
    /// Whether it has a status subresource.
    pub(crate) status: bool,
    /// Of a custom resource: what its definition says of this version.
    pub(crate) custom: Option<Custom>,
}

/// What is particular to a version of a custom resource.
#[derive(Debug, Clone)]
pub(crate) struct Custom {
    pub(crate) schema: Arc<Schema>,
    pub(crate) selectable: Vec<String>,
}

impl Resource {
    /// `v1`, or `group/version`.
    pub(crate) fn api_version(&self) -> String {
        match self.group.as_str() {
            "" => self.version.clone(),
            group => format!("{group}/{}", self.version),
        }
    }

    /// What its objects are stored under: one name for all versions. Both kinds of events are one resource.
    pub(crate) fn storage(&self) -> String {
        match (self.group.as_str(), self.plural.as_str()) {
            ("" | "events.k8s.io", plural) => plural.to_owned(),
            (group, plural) => format!("{plural}.{group}"),
        }
    }

    /// Whether it is this one of the core group.
    pub(crate) fn is(&self, plural: &str) -> bool {
        self.group.is_empty() && self.plural == plural
    }

    /// Whether objects have a `metadata.generation`.
    pub(crate) fn has_generation(&self) -> bool {
        self.custom.is_some()
            || matches!(
                self.kind.as_str(),
                "DaemonSet"
                    | "Deployment"
                    | "EndpointSlice"
                    | "CustomResourceDefinition"
                    | "NetworkPolicy"
                    | "Pod"
                    | "PodDisruptionBudget"
            )
    }

    /// Whether a replacement that names no version overwrites any.
    pub(crate) fn unconditional_update(&self) -> bool {
        self.custom.is_none() && !matches!(self.kind.as_str(), "Lease" | "CustomResourceDefinition")
    }

    /// Whether a replacement of what is not there creates it.
    pub(crate) fn create_on_update(&self) -> bool {
        matches!(self.kind.as_str(), "Lease" | "Event")
    }

    /// Whether a deletion answers with the object rather than with a Status.
    pub(crate) fn returns_deleted(&self) -> bool {
        self.is("pods") || self.is("services") || self.is("serviceaccounts")
    }

    /// Whether a field selector may name the field.
    pub(crate) fn selectable(&self, field: &str) -> bool {
        if matches!(field, "metadata.name" | "metadata.namespace") {
            return true;
        }
        if let Some(custom) = &self.custom {
            return custom
                .selectable
                .iter()
                .any(|path| path.trim_start_matches('.') == field);
        }
        let fields: &[&str] = match self.kind.as_str() {
            "Pod" => &[
                "spec.nodeName",
                "spec.restartPolicy",
                "spec.schedulerName",
                "spec.serviceAccountName",
                "spec.hostNetwork",
                "status.phase",
                "status.podIP",
                "status.nominatedNodeName",
            ],
            "Node" => &["spec.unschedulable"],
            "Namespace" => &["status.phase"],
            "Secret" => &["type"],
            "Service" => &["spec.clusterIP", "spec.type"],
            "Event" => &[
                "involvedObject.kind",
                "involvedObject.namespace",
                "involvedObject.name",
                "involvedObject.uid",
                "involvedObject.apiVersion",
                "regarding.kind",
                "regarding.namespace",
                "regarding.name",
                "regarding.uid",
                "reason",
                "type",
                "reportingController",
            ],
            _ => &[],
        };
        fields.contains(&field)
    }
}

/// Group, version, kind, plural, short names, namespaced, status subresource.
type Row = (
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    &'static [&'static str],
    bool,
    bool,
);

const BUILT_IN: &[Row] = &[
    ("", "v1", "ConfigMap", "configmaps", &["cm"], true, false),
    ("", "v1", "Event", "events", &["ev"], true, false),
    ("", "v1", "Namespace", "namespaces", &["ns"], false, true),
    ("", "v1", "Node", "nodes", &["no"], false, true),
    ("", "v1", "Pod", "pods", &["po"], true, true),
    ("", "v1", "Secret", "secrets", &[], true, false),
    (
        "",
        "v1",
        "ServiceAccount",
        "serviceaccounts",
        &["sa"],
        true,
        false,
    ),
    ("", "v1", "Service", "services", &["svc"], true, true),
    ("apps", "v1", "DaemonSet", "daemonsets", &["ds"], true, true),
    ("apps", "v1", "Deployment", "deployments", &["deploy"], true, true),
    ("events.k8s.io", "v1", "Event", "events", &["ev"], true, false),
    ("coordination.k8s.io", "v1", "Lease", "leases", &[], true, false),
    (
        "discovery.k8s.io",
        "v1",
        "EndpointSlice",
        "endpointslices",
        &[],
        true,
        false,
    ),
    (
        "networking.k8s.io",
        "v1",
        "NetworkPolicy",
        "networkpolicies",
        &["netpol"],
        true,
        false,
    ),
    (
        "policy",
        "v1",
        "PodDisruptionBudget",
        "poddisruptionbudgets",
        &["pdb"],
        true,
        true,
    ),
    (
        "rbac.authorization.k8s.io",
        "v1",
        "Role",
        "roles",
        &[],
        true,
        false,
    ),
    (
        "rbac.authorization.k8s.io",
        "v1",
        "RoleBinding",
        "rolebindings",
        &[],
        true,
        false,
    ),
    (
        "rbac.authorization.k8s.io",
        "v1",
        "ClusterRole",
        "clusterroles",
        &[],
        false,
        false,
    ),
    (
        "rbac.authorization.k8s.io",
        "v1",
        "ClusterRoleBinding",
        "clusterrolebindings",
        &[],
        false,
        false,
    ),
    (
        "apiextensions.k8s.io",
        "v1",
        "CustomResourceDefinition",
        "customresourcedefinitions",
        &["crd", "crds"],
        false,
        true,
    ),
];

/// Groups, with their version, of which nothing is stored.
const REVIEWS: &[(&str, &str)] = &[("authentication.k8s.io", "v1"), ("authorization.k8s.io", "v1")];

/// Every resource that is served at present.
#[derive(Debug)]
pub(crate) struct Registry(Vec<Arc<Resource>>);

impl Default for Registry {
    fn default() -> Self {
        let resource = |row: &Row| {
            let &(group, version, kind, plural, short_names, namespaced, status) = row;
            Arc::new(Resource {
                group: group.to_owned(),
                version: version.to_owned(),
                kind: kind.to_owned(),
                list_kind: format!("{kind}List"),
                plural: plural.to_owned(),
                singular: kind.to_lowercase(),
                short_names: short_names.iter().map(|&name| name.to_owned()).collect(),
                namespaced,
                status,
                custom: None,
            })
        };
        Self(BUILT_IN.iter().map(resource).collect())
    }
}

impl Registry {
    pub(crate) fn find(&self, group: &str, version: &str, plural: &str) -> Option<Arc<Resource>> {
        let found = self
            .0
            .iter()
            .find(|one| one.group == group && one.version == version && one.plural == plural);
        found.cloned()
    }

    /// Whether the server itself has resources of a group.
    pub(crate) fn has_built_in(&self, group: &str) -> bool {
        let reviews = REVIEWS.iter().any(|&(one, _)| one == group);
        reviews
            || self
                .0
                .iter()
                .any(|one| one.custom.is_none() && one.group == group)
    }

    /// Any version of what is stored under a name.
    pub(crate) fn stored_as(&self, storage: &str) -> Option<Arc<Resource>> {
        self.0.iter().find(|one| one.storage() == storage).cloned()
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.0.iter()
    }

    /// Serves these versions of a custom resource, and no other.
    pub(crate) fn register(&mut self, group: &str, plural: &str, versions: Vec<Resource>) {
        self.forget(group, plural);
        self.0.extend(versions.into_iter().map(Arc::new));
    }

    /// Serves a custom resource no more.
    pub(crate) fn forget(&mut self, group: &str, plural: &str) {
        self.0
            .retain(|one| one.custom.is_none() || one.group != group || one.plural != plural);
    }
}

/// The groups with their versions, the core group first, then in alphabetical order; each version once.
pub(crate) fn groups(registry: &Registry) -> Vec<(String, Vec<String>)> {
    let mut groups: std::collections::BTreeMap<&str, Vec<String>> = std::collections::BTreeMap::new();
    for resource in registry.all() {
        let versions = groups.entry(&resource.group).or_default();
        if !versions.contains(&resource.version) {
            versions.push(resource.version.clone());
        }
    }
    for (group, version) in REVIEWS {
        groups.entry(group).or_default().push((*version).to_owned());
    }
    let ordered = groups.into_iter().map(|(group, mut versions)| {
        versions.sort_by_key(|version| version_priority(version));
        (group.to_owned(), versions)
    });
    ordered.collect()
}

/// Sorts as Kubernetes does: GA before beta before alpha, the newest first.
fn version_priority(version: &str) -> (u8, std::cmp::Reverse<u32>, std::cmp::Reverse<u32>) {
    let digits = |text: &str| text.parse::<u32>().unwrap_or(0);
    let rest = version.trim_start_matches('v');
    let (stage, major, minor) = if let Some((major, minor)) = rest.split_once("beta") {
        (1, major, minor)
    } else if let Some((major, minor)) = rest.split_once("alpha") {
        (2, major, minor)
    } else {
        (0, rest, "")
    };
    (
        stage,
        std::cmp::Reverse(digits(major)),
        std::cmp::Reverse(digits(minor)),
    )
}

/// What may be done with a resource, as discovery lists it.
pub(crate) const VERBS: &[&str] = &[
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
];

/// A copy of an object as this version of its resource shows it.
pub(crate) fn shown(resource: &Resource, object: &Value) -> Value {
    let mut shown = object.clone();
    if resource.storage() == "events" {
        crate::builtin::show_event(resource, &mut shown);
    }
    shown["apiVersion"] = resource.api_version().into();
    shown["kind"] = resource.kind.clone().into();
    shown
}
