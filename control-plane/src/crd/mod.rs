//! Custom resources of `weir.dev`: their definitions, and how they and Istio's are read.
//!
//! The API server refuses what the definitions can say is wrong; what it let through, or took in before they said so, is
//! read all the same, and what cannot be understood becomes [`Read::Malformed`](crate::cluster::Read), never nothing.

#![expect(
    clippy::duplicated_attributes,
    reason = "each printed column has a type and a priority, which is as others have them"
)]

mod bounds;
mod read;
mod rules;
mod values;

use k8s_openapi::{
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    apimachinery::pkg::apis::meta::v1::Condition,
};
use kube::{CustomResource, CustomResourceExt as _};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use weir_policy::{
    Selector,
    istio::{Mtls, PolicyAction, PolicyRule},
};

pub use read::{
    DRY_RUN, Reading, authorization_event, peer_authentication_event, read_authorization,
    read_peer_authentication,
};

/// The group of Weir's own resources.
pub const GROUP: &str = "weir.dev";
/// Their version.
pub const VERSION: &str = "v1alpha1";
/// The condition that says whether a policy is in force as it stands.
pub const ACCEPTED: &str = "Accepted";

// What the parts of a spec are is in the schema, which comes from the policy's own types. Here they are JSON: an object may be
// older than the schema.

/// Who may connect to workloads.
#[derive(CustomResource, Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[kube(
    group = "weir.dev",
    version = "v1alpha1",
    kind = "AuthorizationPolicy",
    plural = "authorizationpolicies",
    shortname = "wap",
    category = "weir",
    namespaced,
    status = "PolicyStatus",
    derive = "PartialEq",
    doc = "Who may connect to workloads. A DENY policy that matches refuses; with ALLOW policies, one must match.",
    printcolumn(name = "Action", type_ = "string", json_path = ".spec.action"),
    printcolumn(name = "Dry run", type_ = "boolean", json_path = ".spec.dryRun", priority = 1),
    printcolumn(
        name = "Accepted",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Accepted\")].status"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Accepted\")].message",
        priority = 1
    ),
    printcolumn(
        name = "Bound",
        type_ = "integer",
        json_path = ".status.bound",
        description = "Enrolled workloads that it applies to"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[schemars(transform = bounds::authorization)]
pub struct AuthorizationPolicySpec {
    /// Only report what it would do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "bool")]
    pub dry_run: Option<bool>,
    /// The workloads that it concerns; all of its namespace if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Selector")]
    pub selector: Option<Value>,
    /// What a match means.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "PolicyAction")]
    pub action: Option<String>,
    /// One of these must match. Without any, ALLOW denies everything and DENY nothing; an empty one matches everything.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "Vec<PolicyRule>")]
    pub rules: Vec<Value>,
}

/// Whether workloads accept plaintext.
#[derive(CustomResource, Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[kube(
    group = "weir.dev",
    version = "v1alpha1",
    kind = "PeerAuthentication",
    plural = "peerauthentications",
    shortname = "wpa",
    category = "weir",
    namespaced,
    status = "PolicyStatus",
    derive = "PartialEq",
    doc = "Whether workloads accept plaintext. The narrowest that says something counts: workload, namespace, mesh.",
    printcolumn(name = "Mode", type_ = "string", json_path = ".spec.mtls.mode"),
    printcolumn(
        name = "Accepted",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Accepted\")].status"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Accepted\")].message",
        priority = 1
    ),
    printcolumn(
        name = "Bound",
        type_ = "integer",
        json_path = ".status.bound",
        description = "Enrolled workloads that it applies to"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[schemars(transform = bounds::peer_authentication)]
pub struct PeerAuthenticationSpec {
    /// The workloads of its namespace that it concerns; all if absent or empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Selector")]
    pub selector: Option<Value>,
    /// The mode; inherited if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Mtls")]
    pub mtls: Option<Value>,
    /// Modes of single ports of the workload, 1 to 65535. Needs a selector.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    #[schemars(with = "std::collections::BTreeMap<String, Mtls>")]
    pub port_level_mtls: Map<String, Value>,
}

/// What became of a policy. Written by the control plane.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(transform = bounds::status)]
pub struct PolicyStatus {
    /// The generation of the policy that this is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// How many enrolled workloads the policy applies to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bound: Option<i64>,
    /// `Accepted`: whether the policy is in force as it stands. If it is not, everything that it concerns is denied, unless it
    /// is a dry run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// The definitions, as they are to be applied to a cluster.
#[must_use]
pub fn custom_resource_definitions() -> Vec<CustomResourceDefinition> {
    vec![AuthorizationPolicy::crd(), PeerAuthentication::crd()]
}
