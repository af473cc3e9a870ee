//! The answer itself: pure, from the configuration and what is enrolled.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use weir_policy::Request;
use weir_types::{Reason, explain::ExplainedPath};

use crate::{
    config::TunnelProtocol,
    mesh::{Destination, Service, Workload},
    policy::{self, Judgement},
    route::{Candidate, NoRoute, Route, Router},
};

/// Who connects.
#[derive(Debug, Clone)]
pub enum Client {
    /// A workload of the configuration.
    Workload(Arc<Workload>),
    /// Somebody else.
    Outside(IpAddr),
}

/// What would become of a connection.
#[derive(Debug)]
pub struct Answer {
    /// The service that was asked for.
    pub service: Option<Arc<Service>>,
    /// Where it may go, in the order to try.
    pub candidates: Vec<AnsweredCandidate>,
    /// Why it goes nowhere, [`Reason::None`] if it goes to the first candidate.
    pub reason: Reason,
}

/// One place that a connection may go to.
#[derive(Debug)]
pub struct AnsweredCandidate {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its workload.
    pub workload: Option<Arc<Workload>>,
    /// How the connection gets there.
    pub path: ExplainedPath,
    /// Why that way.
    pub why: &'static str,
    /// What policies say.
    pub judgement: Judgement,
}

impl Client {
    /// The workload, if it is one.
    #[must_use]
    pub fn workload(&self) -> Option<&Arc<Workload>> {
        match self {
            Self::Workload(workload) => Some(workload),
            Self::Outside(_) => None,
        }
    }
}

/// What would become of a connection of `client` to `destination`.
#[must_use]
pub fn answer(router: &Router<'_>, client: &Client, destination: SocketAddr) -> Answer {
    match client {
        Client::Workload(workload)
            if workload.tunnel == TunnelProtocol::Hbone && !is_missing(router, workload) =>
        {
            from_mesh(router, workload, destination)
        }
        Client::Workload(workload) => {
            let source = crate::route::address_of(workload, destination.is_ipv4());
            from_outside(router, source, destination)
        }
        Client::Outside(source) => from_outside(router, *source, destination),
    }
}

/// Whether a workload of this node is not enrolled: nobody captures its connections, and nobody serves its tunnels.
fn is_missing(router: &Router<'_>, workload: &Workload) -> bool {
    router.mesh.is_here(workload) && router.enrolled.enrolled(&workload.uid).is_none()
}

/// What becomes of a tunnel to a workload that is not enrolled.
fn nobody_answers() -> Judgement {
    Judgement {
        reason: Reason::ConnectionRefused,
        detail: Some("it is not enrolled: nobody answers on its port 15008".to_owned()),
        ..Judgement::NONE
    }
}

/// A pod of the mesh: as its agent routes it.
fn from_mesh(router: &Router<'_>, source: &Workload, destination: SocketAddr) -> Answer {
    match router.route(source, destination, None, 0) {
        Ok(Route {
            service,
            candidates,
            denied,
            ..
        }) => {
            let candidates: Vec<_> = candidates
                .into_iter()
                .chain(denied)
                .map(|candidate| routed(router, source, candidate))
                .collect();
            Answer {
                service,
                // A service's endpoints on other nodes are tried also if all of them refuse.
                reason: candidates
                    .first()
                    .map_or(Reason::NoEndpoint, |first| first.judgement.reason),
                candidates,
            }
        }
        Err(NoRoute::Service(service, reason)) => Answer {
            service: Some(service),
            candidates: Vec::new(),
            reason,
        },
        Err(NoRoute::Denied { service, denied, .. }) => Answer {
            service,
            reason: denied
                .first()
                .map_or(Reason::NoEndpoint, |first| first.judgement.reason),
            candidates: denied
                .into_iter()
                .map(|candidate| routed(router, source, candidate))
                .collect(),
        },
    }
}

fn routed(router: &Router<'_>, source: &Workload, candidate: Candidate) -> AnsweredCandidate {
    let (path, why) = match (&candidate.workload, &candidate.local) {
        (None, _) => (ExplainedPath::Outside, "it is in no configuration"),
        (Some(workload), _) if workload.uid == source.uid => (ExplainedPath::Itself, "it is the same pod"),
        (Some(workload), _) if workload.tunnel == TunnelProtocol::None => {
            (ExplainedPath::Outside, "its tunnel protocol is NONE")
        }
        (Some(_), Some((_, same_node))) if same_node.direct => (ExplainedPath::Direct, same_node.why),
        (Some(_), Some((_, same_node))) => (ExplainedPath::Tunnel, same_node.why),
        (Some(workload), None) if workload.node != source.node => {
            (ExplainedPath::Tunnel, "it is on another node")
        }
        (Some(_), None) => (
            ExplainedPath::Tunnel,
            "how pods of one node reach each other is known to their own node's agent",
        ),
    };
    let missing = path == ExplainedPath::Tunnel
        && candidate
            .workload
            .as_deref()
            .is_some_and(|workload| is_missing(router, workload));
    AnsweredCandidate {
        address: candidate.address,
        workload: candidate.workload,
        path,
        why,
        judgement: if missing {
            nobody_answers()
        } else {
            candidate.judgement
        },
    }
}

/// Somebody outside of the mesh: in plaintext, without identity.
fn from_outside(router: &Router<'_>, source: IpAddr, destination: SocketAddr) -> Answer {
    let mesh = router.mesh;
    match mesh.destination(destination.ip()) {
        Destination::Outside => Answer {
            service: None,
            candidates: vec![AnsweredCandidate {
                address: destination,
                workload: None,
                path: ExplainedPath::Outside,
                why: "neither end is in the mesh",
                judgement: Judgement::NONE,
            }],
            reason: Reason::None,
        },
        Destination::Workload(workload) => {
            let candidate = in_plaintext(router, source, destination, workload);
            Answer {
                service: None,
                reason: candidate.judgement.reason,
                candidates: vec![candidate],
            }
        }
        Destination::Service(service) => to_service(router, source, destination, service),
    }
}

fn to_service(router: &Router<'_>, source: IpAddr, destination: SocketAddr, service: Arc<Service>) -> Answer {
    let backends = service.backends(destination.port(), destination.is_ipv4(), None, 0);
    let Some(backends) = backends else {
        return Answer {
            service: Some(service),
            candidates: Vec::new(),
            reason: Reason::UnknownPort,
        };
    };
    let candidates: Vec<_> = backends
        .into_iter()
        .map(|backend| match backend.workload {
            Some(workload) => in_plaintext(router, source, backend.address, workload),
            None => AnsweredCandidate {
                address: backend.address,
                workload: None,
                path: ExplainedPath::Outside,
                why: "neither end is in the mesh",
                judgement: Judgement::NONE,
            },
        })
        .collect();
    // Whoever translates the address picks any of them.
    let reason = candidates.first().map_or(Reason::NoEndpoint, |first| {
        let allowed = candidates
            .iter()
            .any(|candidate| candidate.judgement.is_allowed());
        if allowed {
            Reason::None
        } else {
            first.judgement.reason
        }
    });
    Answer {
        service: Some(service),
        candidates,
        reason,
    }
}

fn in_plaintext(
    router: &Router<'_>,
    source: IpAddr,
    destination: SocketAddr,
    workload: Arc<Workload>,
) -> AnsweredCandidate {
    if workload.tunnel == TunnelProtocol::None {
        return AnsweredCandidate {
            address: destination,
            workload: Some(workload),
            path: ExplainedPath::Outside,
            why: "its tunnel protocol is NONE",
            judgement: Judgement::NONE,
        };
    }
    if is_missing(router, &workload) {
        return AnsweredCandidate {
            address: destination,
            workload: Some(workload),
            path: ExplainedPath::Outside,
            why: "it is not enrolled: nobody refuses anything for it",
            judgement: Judgement::NONE,
        };
    }
    let request = Request {
        source: None,
        source_ip: source,
        destination_ip: destination.ip(),
        destination_port: destination.port(),
    };
    let judgement = policy::judge(router.mesh.policies_of(&workload), &request);
    AnsweredCandidate {
        address: destination,
        workload: Some(workload),
        path: ExplainedPath::Plaintext,
        why: "the client is not in the mesh",
        judgement,
    }
}
