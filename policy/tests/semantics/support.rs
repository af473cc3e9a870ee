//! Policies from YAML, and requests and decisions as one line, so that a test can be a table.

use std::collections::BTreeMap;

use serde::Deserialize;
use weir_policy::{
    AuthorizationPolicy, Decision, Denial, Matched, PeerAuthentication, Policies, Request, Verdict, Warning,
    WorkloadPolicies,
};
use weir_types::Identity;

/// The root namespace of all tests.
pub(crate) const ROOT: &str = "root";

/// A file of policies.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct File {
    #[serde(default)]
    pub(crate) authorization_policies: Vec<AuthorizationPolicy>,
    #[serde(default)]
    pub(crate) peer_authentications: Vec<PeerAuthentication>,
}

pub(crate) fn policies(yaml: &str) -> Policies {
    let file: File = serde_saphyr::from_str(yaml).unwrap_or_else(|error| panic!("{error}\n{yaml}"));
    let authorization = file.authorization_policies.iter().map(|policy| {
        let compiled = policy.compile(ROOT);
        compiled.unwrap_or_else(|error| panic!("{error}\n{yaml}")).0
    });
    Policies::new(ROOT, authorization.collect(), &file.peer_authentications).unwrap()
}

/// What applies to a workload in this namespace that has the label `app` with this value: `shop/web`.
pub(crate) fn workload(policies: &Policies, workload: &str) -> WorkloadPolicies {
    let (namespace, app) = workload.split_once('/').unwrap();
    policies.for_workload(namespace, &BTreeMap::from([("app".to_owned(), app.to_owned())]))
}

/// The decision on a request of the form `<source> <address> -> <address>:<port>` as one line. The source is
/// `plaintext`, `<namespace>/<account>` in trust domain `cluster.local`, or a whole identity.
pub(crate) fn decide(policies: &WorkloadPolicies, request: &str) -> String {
    let parts: Vec<_> = request.split(' ').collect();
    let [source, source_ip, "->", destination] = parts[..] else {
        panic!("{request}: expected <source> <address> -> <address>:<port>");
    };
    let (destination_ip, port) = destination.rsplit_once(':').unwrap();
    let source: Option<Identity> = match source.split_once('/') {
        None => None,
        Some(_) if source.starts_with("spiffe://") => Some(source.parse().unwrap()),
        Some((namespace, account)) => Some(
            format!("spiffe://cluster.local/ns/{namespace}/sa/{account}")
                .parse()
                .unwrap(),
        ),
    };
    line(&policies.decide(&Request {
        source: source.as_ref(),
        source_ip: source_ip.parse().unwrap(),
        destination_ip: destination_ip.trim_matches(['[', ']']).parse().unwrap(),
        destination_port: port.parse().unwrap(),
    }))
}

/// Decides on requests to the workload `shop/web`, where these AuthorizationPolicies are all there are.
/// A row is a sentence, the request and the decision, as [`decide`] has them.
pub(crate) fn table(yaml: &str, rows: &[(&str, &str, &str)]) {
    let policies = policies(&format!("authorizationPolicies:\n{yaml}"));
    let policies = workload(&policies, "shop/web");
    for (sentence, request, expected) in rows {
        assert_eq!(
            decide(&policies, request),
            *expected,
            "{sentence}: {request}\n{yaml}"
        );
    }
}

pub(crate) fn warnings(warnings: &[Warning]) -> Vec<String> {
    warnings.iter().map(ToString::to_string).collect()
}

fn line(decision: &Decision<'_>) -> String {
    let rule = |matched: &Matched<'_>| format!("{}#{}", matched.policy, matched.rule);
    let denial = |denied: &Denial<'_>| match denied {
        Denial::Rule(matched) => format!("denied by {}", rule(matched)),
        Denial::NoAllow { policies } => format!("not allowed by {}", policies.join(" ")),
        Denial::Plaintext { policy } => format!("plaintext, {}", policy.map_or("-", |policy| policy)),
    };
    let verdict = match &decision.verdict {
        Verdict::Allowed(None) => "allowed".to_owned(),
        Verdict::Allowed(Some(matched)) => format!("allowed by {}", rule(matched)),
        Verdict::Denied(denied) => denial(denied),
    };
    match &decision.dry_run {
        None => verdict,
        Some(denied) => format!("{verdict}; dry run: {}", denial(denied)),
    }
}
