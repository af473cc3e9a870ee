//! What is wrong with a policy, and what is only worth knowing.

use std::fmt;

use crate::{Action, CidrError};

/// A policy that cannot be used. Trying again helps only after it was changed.
///
/// Which file and line it is in, its reader knows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct PolicyError {
    /// The field, counted from the policy: `rules[1].from[0].source.principals[2]`.
    pub field: String,
    /// What was expected of it.
    pub problem: Problem,
}

/// What was expected of a field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// A name or namespace is empty.
    #[error("expected a name")]
    NoName,
    /// The policy's name is taken.
    #[error("expected a name that no other policy of its kind and namespace has, not '{policy}' again")]
    Duplicate {
        /// `namespace/name`.
        policy: String,
    },
    /// A source or operation says nothing.
    #[error("expected at least one field")]
    NoField,
    /// A condition says nothing.
    #[error("expected at least one of values and notValues")]
    NoValues,
    /// A value is empty.
    #[error("expected a value that is not empty; '*' matches any")]
    EmptyValue,
    /// A `*` where it has no meaning.
    #[error("expected '*' alone, first or last, once; Istio knows it nowhere else, as in '{value}'")]
    Wildcard {
        /// The value.
        value: String,
    },
    /// Not a port.
    #[error("expected a port, 1 to 65535, as \"8080\", not '{value}'")]
    Port {
        /// The value.
        value: String,
    },
    /// Not an address, nor a block of them.
    #[error(transparent)]
    Cidr(#[from] CidrError),
    /// Not a service account.
    #[error("expected <namespace>/<service account> or <service account>, without '*', not '{value}'")]
    ServiceAccount {
        /// The value.
        value: String,
    },
    /// Service accounts beside principals or namespaces.
    #[error("expected no service accounts in a source that has principals or namespaces; Istio forbids it")]
    ServiceAccountsBeside,
    /// Not a condition.
    #[error(
        "expected source.ip, source.namespace, source.principal, source.serviceAccount, destination.ip or \
         destination.port, not '{key}'"
    )]
    Key {
        /// The key.
        key: String,
    },
    /// Port-level modes without a selector.
    #[error(
        "expected a selector with labels beside it; Istio takes modes of ports for chosen workloads only"
    )]
    NoSelector,
}

/// Something of a policy that may not do what was meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// The policy, `namespace/name`.
    pub policy: String,
    /// The field, counted from the policy.
    pub field: String,
    /// What it does.
    pub caution: Caution,
}

/// What a policy does that may not have been meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caution {
    /// A condition is one of L7, which is not seen at L4.
    Undecidable {
        /// The policy's action.
        action: Action,
        /// Whether the whole rule depends on it, or one of several sources or operations.
        whole_rule: bool,
    },
    /// The mode is DISABLE.
    Disable,
    /// Another PeerAuthentication of the same scope comes first.
    Shadowed {
        /// That one, `namespace/name`.
        by: String,
    },
    /// A PeerAuthentication of the root namespace has a selector.
    RootSelector,
}

impl PolicyError {
    pub(crate) fn new(field: impl Into<String>, problem: impl Into<Problem>) -> Self {
        Self {
            field: field.into(),
            problem: problem.into(),
        }
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.policy, self.field, self.caution)
    }
}

impl fmt::Display for Caution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Undecidable { action, whole_rule } => {
                f.write_str("cannot be decided at L4: ")?;
                f.write_str(match (action, whole_rule) {
                    (Action::Allow, true) => "the ALLOW rule never matches",
                    (Action::Allow, false) => "this part of the ALLOW rule never matches",
                    (Action::Deny, _) => "it counts as met, and the rest of the DENY rule alone decides",
                })
            }
            Self::Disable => {
                f.write_str("DISABLE accepts plaintext, as PERMISSIVE; mutual TLS is accepted too")
            }
            Self::Shadowed { by } => write!(f, "has no effect where {by} applies, which comes first"),
            Self::RootSelector => f.write_str(
                "has no effect: Istio ignores a PeerAuthentication with a selector in the root namespace",
            ),
        }
    }
}
