//! What each component would do, in words.

use weir_types::{
    FlowVerdict, PolicyMatch, Reason,
    explain::{ExplainedCandidate, ExplainedPath, ExplainedStep, Explanation},
};

use crate::datapath::Remember;

/// The components that a connection meets, in order, up to the one that refuses it.
///
/// What the kernel remembers it does without the agent; a decision that was remembered a moment before a change is followed,
/// and shown, until the agent has taken that change in.
pub(super) fn steps(explanation: &Explanation, remembered: Option<&Remember>) -> Vec<ExplainedStep> {
    let mut steps = Vec::new();
    let mut step = |component: String, does: String| steps.push(ExplainedStep { component, does });
    let source = node(explanation.source.node.as_deref());
    let in_mesh = explanation.source.identity.is_some();
    let to = explanation.destination;
    if in_mesh {
        let does = match remembered {
            Some(remembered) => format!("connect to {to}: {remembered}"),
            None => format!("connect to {to}: nothing remembered, send it to the agent"),
        };
        step(format!("kernel of {source}"), does);
        if matches!(remembered, Some(Remember::Deny(_))) {
            return steps;
        }
    }
    let Some(first) = explanation.candidates.first() else {
        let who = if in_mesh {
            format!("agent of {source}")
        } else {
            "whoever translates the address".to_owned()
        };
        step(who, format!("refuse: {}", explanation.reason.explanation()));
        return steps;
    };
    if in_mesh && !remembered.is_some_and(Remember::is_final) {
        step(format!("agent of {source}"), agent(explanation, first));
    }
    let here = node(first.end.node.as_deref());
    match first.path {
        ExplainedPath::Direct if first.verdict == FlowVerdict::Forwarded => {
            let does = "accept what the client's socket registered for this very pod, under this generation";
            step(format!("kernel of {here}"), does.to_owned());
        }
        ExplainedPath::Tunnel if explanation.service.is_none() || first.verdict == FlowVerdict::Forwarded => {
            let refuses_itself =
                explanation.source.node == first.end.node && first.verdict != FlowVerdict::Forwarded;
            if !refuses_itself {
                step(
                    format!("kernel of {here}"),
                    "assign port 15008 to the agent".to_owned(),
                );
                step(
                    format!("agent of {here}"),
                    judged(first, "connect to the application and answer 200", "answer 401"),
                );
            }
        }
        ExplainedPath::Plaintext => {
            let strict = first.reason == Reason::PlaintextToStrict;
            let does = if strict {
                "refuse plaintext, since no port accepts it; or assign it to the agent, if one does"
            } else {
                "assign it to the agent"
            };
            step(format!("kernel of {here}"), does.to_owned());
            step(
                format!("agent of {here}"),
                judged(first, "connect to the application", "reset it"),
            );
        }
        _ => {}
    }
    steps
}

fn node(name: Option<&str>) -> &str {
    name.unwrap_or("its node")
}

/// What the agent of the client's node does with what the kernel sends it.
fn agent(explanation: &Explanation, first: &ExplainedCandidate) -> String {
    let to = first.address;
    let pick = match &explanation.service {
        Some(service) => format!("{service} leads to {to}: "),
        None => String::new(),
    };
    let same_node = explanation.source.node == first.end.node;
    let does = match first.path {
        ExplainedPath::Outside => "connect in plaintext; let the next ones pass in the kernel".to_owned(),
        ExplainedPath::Itself => "connect to the pod's own application".to_owned(),
        ExplainedPath::Direct | ExplainedPath::Tunnel
            if same_node && first.verdict != FlowVerdict::Forwarded =>
        {
            judged(first, "", "reset it; the kernel refuses the next ones")
        }
        ExplainedPath::Direct => format!(
            "{}; the kernel lets the next ones go straight to the pod",
            judged(first, "carry the first over mutual TLS", "")
        ),
        _ => "CONNECT over mutual TLS, with the pod's certificate".to_owned(),
    };
    format!("{pick}{does}")
}

fn judged(candidate: &ExplainedCandidate, if_allowed: &str, if_denied: &str) -> String {
    let by = |policy: &Option<PolicyMatch>| {
        policy
            .as_ref()
            .map_or_else(String::new, |policy| format!(" by {policy}"))
    };
    if candidate.verdict == FlowVerdict::Forwarded {
        let dry_run = match &candidate.dry_run {
            Some(policy) => format!(" (dry-run {policy} would refuse it)"),
            None => String::new(),
        };
        let allowed = if candidate.policy.is_some() {
            "allowed"
        } else {
            "allowed, since no policy forbids it"
        };
        format!("{allowed}{}{dry_run}: {if_allowed}", by(&candidate.policy))
    } else {
        format!(
            "refused{} ({}): {if_denied}",
            by(&candidate.policy),
            candidate.reason
        )
    }
}
