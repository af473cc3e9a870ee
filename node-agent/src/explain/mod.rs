//! `weir explain`: what would become of a connection, from the state and by the evaluator that decide live ones.

mod answer;
mod steps;

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::SystemTime,
};

use jiff::Timestamp;
use weir_policy::{Action, MtlsMode};
use weir_types::{
    FlowVerdict,
    explain::{CertificateState, ExplainRequest, ExplainedCandidate, ExplainedEnd, Explanation},
};

use crate::{
    config::TunnelProtocol,
    mesh::{Mesh, Service, Workload},
    node::Node,
    route::Router,
};

pub use answer::{Answer, AnsweredCandidate, Client, answer};

/// Why a question cannot be answered. Its text says what to ask instead.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExplainError {
    /// Nothing has that name.
    #[error("'{0}' is no workload or service that this agent knows, and no address; see 'weir workloads'")]
    Unknown(String),
    /// Several have it.
    #[error("'{name}' is more than one thing: say one of {}", candidates.join(", "))]
    Ambiguous {
        /// What was asked for.
        name: String,
        /// What it may be, as it can be asked for.
        candidates: Vec<String>,
    },
    /// A service has no address to connect to.
    #[error("service '{0}' has no address")]
    NoAddress(String),
    /// A connection does not start at a service.
    #[error("'{0}' is a service: a connection starts at a pod or an address")]
    ServiceAsSource(String),
    /// The destination has no address of the source's family.
    #[error("'{from}' and '{to}' have no address of the same family")]
    NoFamily {
        /// Who connects.
        from: String,
        /// Where to.
        to: String,
    },
}

/// Something that has a name.
enum Named {
    Workload(Arc<Workload>),
    Service(Arc<Service>),
    Address(IpAddr),
}

/// Answers one question.
///
/// # Errors
/// When it names what is not known, or too many things.
pub fn explain(node: &Node, request: &ExplainRequest) -> Result<Explanation, ExplainError> {
    let mesh = node.mesh.load_full();
    let source = match find(&mesh, &request.from)? {
        Named::Workload(workload) => Client::Workload(workload),
        Named::Address(address) => match mesh.workload(address) {
            Some(workload) => Client::Workload(workload.clone()),
            None => Client::Outside(address),
        },
        Named::Service(_) => return Err(ExplainError::ServiceAsSource(request.from.clone())),
    };
    let to = find(&mesh, &request.to)?;
    let destination = SocketAddr::new(address_for(&source, &to, request)?, request.port);
    let router = Router {
        wanted: usize::MAX,
        ..node.router(&mesh)
    };
    let answer = answer(&router, &source, destination);
    let remembered = source.workload().and_then(|workload| {
        let pod = node.pod(&workload.uid)?;
        node.datapath.remembered(pod.handle, destination.into())
    });
    let candidates: Vec<ExplainedCandidate> = answer
        .candidates
        .iter()
        .map(|candidate| explained(node, &mesh, candidate))
        .collect();
    let source = end_of_source(node, &source, destination.is_ipv4());
    let mut explanation = Explanation {
        node: node.name.clone(),
        generation: mesh.version(),
        source,
        destination,
        service: answer.service.as_ref().map(|service| service.name.to_string()),
        verdict: FlowVerdict::of(answer.reason),
        reason: answer.reason,
        candidates,
        remembered: remembered.as_ref().map(ToString::to_string),
        steps: Vec::new(),
    };
    explanation.steps = steps::steps(&explanation, remembered.as_ref());
    Ok(explanation)
}

/// What a name means: `pod/` or `svc/` before it says which kind.
fn find(mesh: &Mesh, text: &str) -> Result<Named, ExplainError> {
    let (kind, name) = match text.split_once('/') {
        Some((kind @ ("pod" | "svc"), rest)) if !rest.is_empty() => (Some(kind), rest),
        _ => (None, text),
    };
    if kind.is_none()
        && let Ok(address) = name.parse::<IpAddr>()
    {
        return Ok(Named::Address(address.to_canonical()));
    }
    let (namespace, short) = match name.split_once('/') {
        Some((namespace, short)) => (Some(namespace), short),
        None => (None, name),
    };
    let mut found: Vec<(String, Named)> = Vec::new();
    if kind != Some("svc") {
        let named = |workload: &&Arc<Workload>| {
            let in_namespace = namespace.is_none_or(|namespace| workload.identity.namespace() == namespace);
            workload.uid == name || (in_namespace && workload.name == short)
        };
        for workload in mesh.workloads().filter(named) {
            let full = format!("pod/{}/{}", workload.identity.namespace(), workload.name);
            found.push((full, Named::Workload(workload.clone())));
        }
    }
    if kind != Some("pod") {
        let named = |service: &&&Arc<Service>| match service.name.split_once('/') {
            Some((within, own)) => own == short && namespace.is_none_or(|namespace| namespace == within),
            None => false,
        };
        for service in mesh.services().iter().filter(named) {
            found.push((
                format!("svc/{}", service.name),
                Named::Service((*service).clone()),
            ));
        }
    }
    if found.len() > 1 {
        return Err(ExplainError::Ambiguous {
            name: text.to_owned(),
            candidates: found.into_iter().map(|(full, _)| full).collect(),
        });
    }
    found
        .pop()
        .map(|(_, named)| named)
        .ok_or_else(|| ExplainError::Unknown(text.to_owned()))
}

/// The destination's address that the source would use: the first of a family that both have.
fn address_for(source: &Client, to: &Named, request: &ExplainRequest) -> Result<IpAddr, ExplainError> {
    let addresses = match to {
        Named::Address(address) => return Ok(*address),
        Named::Workload(workload) => &workload.addresses,
        Named::Service(service) if service.addresses.is_empty() => {
            return Err(ExplainError::NoAddress(service.name.to_string()));
        }
        Named::Service(service) => &service.addresses,
    };
    let has = |v4: bool| match source {
        Client::Workload(workload) => workload.addresses.iter().any(|address| address.is_ipv4() == v4),
        Client::Outside(address) => address.is_ipv4() == v4,
    };
    let common = addresses.iter().find(|address| has(address.is_ipv4()));
    common.copied().ok_or_else(|| ExplainError::NoFamily {
        from: request.from.clone(),
        to: request.to.clone(),
    })
}

fn explained(node: &Node, mesh: &Mesh, candidate: &AnsweredCandidate) -> ExplainedCandidate {
    let judgement = &candidate.judgement;
    let mut end = end(node, candidate.address.ip(), candidate.workload.as_deref());
    let mut policies = Vec::new();
    if let Some(workload) = candidate
        .workload
        .as_deref()
        .filter(|w| w.tunnel == TunnelProtocol::Hbone)
    {
        let applied = mesh.policies_of(workload);
        end.mode = Some(match applied.mtls().mode(candidate.address.port()) {
            MtlsMode::Strict => "STRICT".to_owned(),
            MtlsMode::Permissive => "PERMISSIVE".to_owned(),
        });
        policies = applied
            .names()
            .map(|policy| {
                let dry_run = if policy.dry_run { ", dry-run" } else { "" };
                let action = match policy.action {
                    Action::Allow => "ALLOW",
                    Action::Deny => "DENY",
                };
                format!("{} ({action}{dry_run})", policy.name)
            })
            .collect();
    }
    ExplainedCandidate {
        address: candidate.address,
        end,
        path: candidate.path,
        why: candidate.why.to_owned(),
        verdict: FlowVerdict::of(judgement.reason),
        reason: judgement.reason,
        policy: judgement.policy.clone(),
        detail: judgement.detail.clone(),
        dry_run: judgement.dry_run.clone(),
        policies,
    }
}

fn end_of_source(node: &Node, source: &Client, v4: bool) -> ExplainedEnd {
    match source {
        Client::Outside(address) => end(node, *address, None),
        Client::Workload(workload) => end(node, crate::route::address_of(workload, v4), Some(workload)),
    }
}

fn end(node: &Node, address: IpAddr, workload: Option<&Workload>) -> ExplainedEnd {
    let Some(workload) = workload else {
        return ExplainedEnd {
            address,
            workload: None,
            identity: None,
            node: None,
            enrolled: None,
            mode: None,
            certificate: CertificateState::None,
        };
    };
    let in_mesh = workload.tunnel == TunnelProtocol::Hbone;
    let local = workload.node == node.name;
    let certificate = if !in_mesh {
        CertificateState::None
    } else if local {
        own_certificate(node, workload)
    } else {
        seen_certificate(node, workload)
    };
    ExplainedEnd {
        address,
        workload: Some(format!("{}/{}", workload.identity.namespace(), workload.name)),
        identity: in_mesh.then(|| workload.identity.clone()),
        node: (!workload.node.is_empty()).then(|| workload.node.clone()),
        enrolled: local.then(|| node.pod(&workload.uid).is_some()),
        mode: None,
        certificate,
    }
}

/// The certificate that this agent has for a pod of its node.
fn own_certificate(node: &Node, workload: &Workload) -> CertificateState {
    let all = node.certificates.status();
    let Some(own) = all.into_iter().find(|own| own.identity == workload.identity) else {
        let problems = node.certificates.problems();
        let own = problems
            .into_iter()
            .find(|(identity, _)| *identity == workload.identity);
        return CertificateState::Missing {
            problem: own.map_or_else(|| "none was issued yet".to_owned(), |(_, problem)| problem),
        };
    };
    if own.not_after < Timestamp::now() {
        return CertificateState::Expired {
            not_after: own.not_after,
            seen: None,
        };
    }
    CertificateState::Valid {
        not_after: own.not_after,
        seen: None,
        problem: own.problem,
    }
}

/// The certificate that a pod of another node presented last.
fn seen_certificate(node: &Node, workload: &Workload) -> CertificateState {
    let seen = workload
        .addresses
        .iter()
        .filter_map(|address| node.tunnels.last_seen(*address));
    let newest = seen
        .filter(|seen| seen.identity == workload.identity)
        .max_by_key(|seen| seen.at);
    let Some(seen) = newest else {
        return CertificateState::Unknown;
    };
    let Ok(not_after) = Timestamp::try_from(seen.not_after) else {
        return CertificateState::Unknown;
    };
    if seen.not_after < SystemTime::now() {
        return CertificateState::Expired {
            not_after,
            seen: Some(seen.at),
        };
    }
    CertificateState::Valid {
        not_after,
        seen: Some(seen.at),
        problem: None,
    }
}

#[cfg(test)]
mod tests;
