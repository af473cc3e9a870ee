//! What policies say of a connection, in the form of flow records.

use weir_policy::{Decision, Denial, Matched, Request, Verdict, WorkloadPolicies};
use weir_types::{PolicyMatch, Reason};

/// ALLOW policies that a refusal names when none of them matched.
const NAMED: usize = 3;

/// What policies say of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    /// Why it is refused; [`Reason::None`] if it is not.
    pub reason: Reason,
    /// The policy that decided, if one did.
    pub policy: Option<PolicyMatch>,
    /// More about a refusal, for a person.
    pub detail: Option<String>,
    /// The dry-run policy that would have refused it.
    pub dry_run: Option<PolicyMatch>,
}

/// Asks the policies of a destination about a connection.
#[must_use]
pub fn judge(policies: &WorkloadPolicies, request: &Request<'_>) -> Judgement {
    policies.decide(request).into()
}

// === impl Judgement ===

impl Judgement {
    /// Nothing was asked, since nothing applies: a pod that talks to itself, a destination outside of the mesh.
    pub const NONE: Self = Self {
        reason: Reason::None,
        policy: None,
        detail: None,
        dry_run: None,
    };

    /// Whether the connection may be.
    #[must_use]
    pub fn is_allowed(&self) -> bool {
        self.reason == Reason::None
    }
}

impl From<Decision<'_>> for Judgement {
    fn from(decision: Decision<'_>) -> Self {
        let dry_run = decision.dry_run.and_then(|denial| named(&denial));
        match decision.verdict {
            Verdict::Allowed(by) => Self {
                policy: by.as_ref().map(matched),
                dry_run,
                ..Self::NONE
            },
            Verdict::Denied(denial) => Self {
                reason: reason(&denial),
                policy: named(&denial),
                detail: detail(&denial),
                dry_run,
            },
        }
    }
}

fn reason(denial: &Denial<'_>) -> Reason {
    match denial {
        Denial::Rule(_) => Reason::PolicyDenied,
        Denial::NoAllow { .. } => Reason::NotAllowed,
        Denial::Plaintext { .. } => Reason::PlaintextToStrict,
    }
}

fn named(denial: &Denial<'_>) -> Option<PolicyMatch> {
    let whole = |policy: &std::sync::Arc<str>| PolicyMatch {
        policy: policy.clone(),
        rule: None,
    };
    match denial {
        Denial::Rule(by) => Some(matched(by)),
        Denial::NoAllow { policies } => policies.first().map(whole),
        Denial::Plaintext { policy } => policy.map(whole),
    }
}

fn matched(by: &Matched<'_>) -> PolicyMatch {
    PolicyMatch {
        policy: by.policy.clone(),
        rule: Some(by.rule),
    }
}

fn detail(denial: &Denial<'_>) -> Option<String> {
    let Denial::NoAllow { policies } = denial else {
        return None;
    };
    let names: Vec<&str> = policies.iter().take(NAMED).map(AsRef::as_ref).collect();
    let more = match policies.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Some(format!("no rule of {}{more} matches", names.join(", ")))
}
