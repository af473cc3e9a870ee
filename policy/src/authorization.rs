//! A policy in its internal form, that of `istio.security.Authorization` on the wire.
//!
//! Rules are OR-ed, a rule's clauses AND-ed, a clause's matches OR-ed, a match's fields AND-ed, a field's values
//! OR-ed. What is empty differs by action, so that a mistake closes rather than opens: see [`Rule`], [`Clause`]
//! and [`Match`].

use std::{collections::BTreeMap, fmt};

use schemars::JsonSchema;
use serde::Deserialize;

use crate::Cidr;

/// A policy: whom it concerns, and which connections it allows or denies.
///
/// Without rules it matches nothing: as ALLOW it denies everything, for an ALLOW policy applies and does not match;
/// as DENY it denies nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authorization {
    /// Its name, unique in its namespace.
    pub name: String,
    /// Its Kubernetes namespace.
    pub namespace: String,
    /// The workloads that it concerns.
    pub scope: Scope,
    /// What a match means.
    pub action: Action,
    /// The first that matches decides.
    pub rules: Vec<Rule>,
    /// Whether it is only reported what it would do.
    pub dry_run: bool,
}

/// The workloads that a policy concerns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// All of the mesh.
    Mesh,
    /// Those of the policy's namespace.
    Namespace,
    /// Those with these labels: of the policy's namespace, or of all if that is the root namespace.
    Workload(Selector),
    /// Those that name it among theirs: what `WORKLOAD_SELECTOR` means on the wire.
    Listed,
}

/// Chooses workloads by their labels.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Selector {
    /// Labels that a workload must have, all of them; none select every workload.
    #[serde(default)]
    pub match_labels: BTreeMap<String, String>,
}

/// What it means that a rule matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// The connection is allowed if no DENY policy matches. One that no ALLOW policy matches is denied, if any applies.
    Allow,
    /// The connection is denied.
    Deny,
}

/// Matches when all its clauses do; without clauses it matches everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rule {
    /// AND-ed.
    pub clauses: Vec<Clause>,
}

/// Holds when one of its matches does; without matches it holds in DENY and not in ALLOW.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Clause {
    /// OR-ed.
    pub matches: Vec<Match>,
}

/// Holds when each field with values does: a positive one when a value matches, a negative one when none does.
///
/// Without any value it holds in DENY and not in ALLOW. A source without identity (plaintext) matches no value of
/// namespaces, principals and service accounts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Match {
    /// The source's namespace is one of these.
    pub namespaces: Vec<StringMatch>,
    /// The source's namespace is none of these.
    pub not_namespaces: Vec<StringMatch>,
    /// The source's principal is one of these: `<trust domain>/ns/<namespace>/sa/<account>`, without `spiffe://`.
    pub principals: Vec<StringMatch>,
    /// The source's principal is none of these.
    pub not_principals: Vec<StringMatch>,
    /// The source's service account is one of these, in whatever trust domain.
    pub service_accounts: Vec<ServiceAccountMatch>,
    /// The source's service account is none of these.
    pub not_service_accounts: Vec<ServiceAccountMatch>,
    /// The source's address is in one of these.
    pub source_ips: Vec<Cidr>,
    /// The source's address is in none of these.
    pub not_source_ips: Vec<Cidr>,
    /// The destination's address is in one of these.
    pub destination_ips: Vec<Cidr>,
    /// The destination's address is in none of these.
    pub not_destination_ips: Vec<Cidr>,
    /// The destination's port is one of these.
    pub destination_ports: Vec<u16>,
    /// The destination's port is none of these.
    pub not_destination_ports: Vec<u16>,
    /// Has a condition that L4 cannot decide: in DENY it counts as met, in ALLOW the match never holds.
    pub undecidable: bool,
}

/// How a text is compared.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum StringMatch {
    /// It is this.
    Exact(String),
    /// It begins with this.
    Prefix(String),
    /// It ends with this.
    Suffix(String),
    /// There is one: any identity.
    Presence,
}

/// A service account of a namespace.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServiceAccountMatch {
    /// The namespace.
    pub namespace: String,
    /// The service account's name.
    pub service_account: String,
}

impl Selector {
    /// Whether a workload with these labels is selected.
    #[must_use]
    pub fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        self.match_labels
            .iter()
            .all(|(key, value)| labels.get(key) == Some(value))
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allow => "ALLOW",
            Self::Deny => "DENY",
        })
    }
}
