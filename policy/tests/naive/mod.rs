//! The same policies by the obvious way: every rule in turn, every value in turn, as the types' documentation says it.
//!
//! Written from the semantics, and shares nothing with what it is compared to but the types that policies have.

use std::{collections::BTreeMap, net::IpAddr};

use weir_policy::{
    Action, Authorization, Cidr, Clause, Decision, Denial, Match, PeerAuthentication, Request, Rule, Scope,
    StringMatch, Verdict,
    istio::{Mtls, PeerMode},
};

/// A verdict that owns its names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    Allowed,
    AllowedBy { policy: String, rule: u32 },
    DeniedBy { policy: String, rule: u32 },
    NoneAllows { policies: Vec<String> },
    Plaintext { policy: Option<String> },
}

/// A decision that owns its names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) verdict: Answer,
    pub(crate) dry_run: Option<Answer>,
}

/// What applies to a workload.
pub(crate) struct Naive<'a> {
    authorization: Vec<&'a Authorization>,
    peer: Vec<&'a PeerAuthentication>,
}

impl<'a> Naive<'a> {
    pub(crate) fn for_workload(
        root: &str,
        authorization: &'a [Authorization],
        peer: &'a [PeerAuthentication],
        namespace: &str,
        labels: &BTreeMap<String, String>,
    ) -> Self {
        let has = |wanted: &BTreeMap<String, String>| {
            wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
        };
        let mesh = authorization.iter().filter(|policy| policy.scope == Scope::Mesh);
        let own = authorization
            .iter()
            .filter(|policy| policy.scope == Scope::Namespace && policy.namespace == namespace);
        let selected = authorization.iter().filter(|policy| match &policy.scope {
            Scope::Workload(selector) => {
                (policy.namespace == namespace || policy.namespace == root) && has(&selector.match_labels)
            }
            Scope::Mesh | Scope::Namespace | Scope::Listed => false,
        });

        let labels_of = |peer: &'a PeerAuthentication| {
            peer.selector
                .as_ref()
                .map(|selector| &selector.match_labels)
                .filter(|labels| !labels.is_empty())
        };
        let first = |wanted: &dyn Fn(&&PeerAuthentication) -> bool| peer.iter().find(wanted);
        let by_scope = [
            first(&|peer| {
                let labels = peer.selector.as_ref().map(|selector| &selector.match_labels);
                let labels = labels.filter(|labels| !labels.is_empty());
                peer.namespace != root && peer.namespace == namespace && labels.is_some_and(has)
            }),
            peer.iter().find(|peer| {
                peer.namespace != root && peer.namespace == namespace && labels_of(peer).is_none()
            }),
            peer.iter()
                .find(|peer| peer.namespace == root && labels_of(peer).is_none()),
        ];
        Self {
            authorization: mesh.chain(own).chain(selected).collect(),
            peer: by_scope.into_iter().flatten().collect(),
        }
    }

    pub(crate) fn decide(&self, request: &Request<'_>) -> Outcome {
        let denied = |verdict| Outcome {
            verdict,
            dry_run: None,
        };
        if request.source.is_none() && self.strict(request.destination_port).is_some() {
            let policy = self.strict(request.destination_port);
            return denied(Answer::Plaintext { policy });
        }
        if let Some((policy, rule)) = self.first(Action::Deny, &[false], request) {
            return denied(Answer::DeniedBy { policy, rule });
        }
        let enforced = self.allow_policies(&[false]);
        let allowed_by = self.first(Action::Allow, &[false], request);
        if !enforced.is_empty() && allowed_by.is_none() {
            return denied(Answer::NoneAllows { policies: enforced });
        }
        let all = self.allow_policies(&[false, true]);
        let dry_run = if let Some((policy, rule)) = self.first(Action::Deny, &[true], request) {
            Some(Answer::DeniedBy { policy, rule })
        } else if !all.is_empty() && self.first(Action::Allow, &[false, true], request).is_none() {
            Some(Answer::NoneAllows { policies: all })
        } else {
            None
        };
        let verdict = match allowed_by {
            Some((policy, rule)) => Answer::AllowedBy { policy, rule },
            None => Answer::Allowed,
        };
        Outcome { verdict, dry_run }
    }

    /// The PeerAuthentication that makes a port STRICT.
    fn strict(&self, port: u16) -> Option<String> {
        let own = |peer: &PeerAuthentication| peer.port_level_mtls.get(&port).copied();
        let modes = self.peer.iter().map(|peer| (peer, own(peer)));
        let modes = modes.chain(self.peer.iter().map(|peer| (peer, peer.mtls)));
        let mut set = modes.filter_map(|(peer, mtls)| match mtls {
            None
            | Some(Mtls {
                mode: PeerMode::Unset,
            }) => None,
            Some(Mtls { mode }) => Some((peer, mode)),
        });
        let (peer, mode) = set.next()?;
        (mode == PeerMode::Strict).then(|| format!("{}/{}", peer.namespace, peer.name))
    }

    fn allow_policies(&self, dry_run: &[bool]) -> Vec<String> {
        let allow =
            |policy: &&&Authorization| policy.action == Action::Allow && dry_run.contains(&policy.dry_run);
        self.authorization
            .iter()
            .filter(allow)
            .map(|policy| name(policy))
            .collect()
    }

    fn first(&self, action: Action, dry_run: &[bool], request: &Request<'_>) -> Option<(String, u32)> {
        for policy in &self.authorization {
            if policy.action != action || !dry_run.contains(&policy.dry_run) {
                continue;
            }
            for (index, rule) in policy.rules.iter().enumerate() {
                if rule_matches(rule, action, request) {
                    return Some((name(policy), index as u32));
                }
            }
        }
        None
    }
}

impl From<Decision<'_>> for Outcome {
    fn from(decision: Decision<'_>) -> Self {
        let denial = |denial: Denial<'_>| match denial {
            Denial::Rule(matched) => Answer::DeniedBy {
                policy: matched.policy.to_string(),
                rule: matched.rule,
            },
            Denial::NoAllow { policies } => Answer::NoneAllows {
                policies: policies.iter().map(ToString::to_string).collect(),
            },
            Denial::Plaintext { policy } => Answer::Plaintext {
                policy: policy.map(ToString::to_string),
            },
        };
        Self {
            verdict: match decision.verdict {
                Verdict::Allowed(None) => Answer::Allowed,
                Verdict::Allowed(Some(matched)) => Answer::AllowedBy {
                    policy: matched.policy.to_string(),
                    rule: matched.rule,
                },
                Verdict::Denied(denied) => denial(denied),
            },
            dry_run: decision.dry_run.map(denial),
        }
    }
}

fn name(policy: &Authorization) -> String {
    format!("{}/{}", policy.namespace, policy.name)
}

fn rule_matches(rule: &Rule, action: Action, request: &Request<'_>) -> bool {
    rule.clauses
        .iter()
        .all(|clause| clause_holds(clause, action, request))
}

fn clause_holds(clause: &Clause, action: Action, request: &Request<'_>) -> bool {
    if clause.matches.is_empty() {
        return action == Action::Deny;
    }
    clause.matches.iter().any(|one| match_holds(one, action, request))
}

fn match_holds(one: &Match, action: Action, request: &Request<'_>) -> bool {
    if action == Action::Allow && (one.undecidable || *one == Match::default()) {
        return false;
    }
    let identity = request.source;
    let namespace = identity.map(|identity| identity.namespace().to_owned());
    let principal = identity.map(|identity| identity.to_string().replacen("spiffe://", "", 1));
    let in_namespace = |value: &StringMatch| text_matches(value, namespace.as_deref());
    let is_principal = |value: &StringMatch| text_matches(value, principal.as_deref());
    let is_account = |value: &weir_policy::ServiceAccountMatch| {
        identity.is_some_and(|identity| {
            identity.namespace() == value.namespace && identity.service_account() == value.service_account
        })
    };
    let from = |block: &Cidr| in_block(block, request.source_ip);
    let to = |block: &Cidr| in_block(block, request.destination_ip);
    let port = |port: &u16| *port == request.destination_port;
    field(&one.namespaces, &one.not_namespaces, in_namespace)
        && field(&one.principals, &one.not_principals, is_principal)
        && field(&one.service_accounts, &one.not_service_accounts, is_account)
        && field(&one.source_ips, &one.not_source_ips, from)
        && field(&one.destination_ips, &one.not_destination_ips, to)
        && field(&one.destination_ports, &one.not_destination_ports, port)
}

fn field<T>(positive: &[T], negative: &[T], matches: impl Fn(&T) -> bool) -> bool {
    (positive.is_empty() || positive.iter().any(&matches)) && !negative.iter().any(&matches)
}

fn text_matches(value: &StringMatch, text: Option<&str>) -> bool {
    let Some(text) = text else { return false };
    match value {
        StringMatch::Exact(exact) => text == exact,
        StringMatch::Prefix(prefix) => text.starts_with(prefix.as_str()),
        StringMatch::Suffix(suffix) => text.ends_with(suffix.as_str()),
        StringMatch::Presence => true,
    }
}

fn in_block(block: &Cidr, address: IpAddr) -> bool {
    block.contains(address)
}
