//! Where a pod's connection goes, and what the kernel may remember of that. Decides only; `outbound` carries, and
//! `explain` tells.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use weir_abi::Backend as KernelBackend;
use weir_policy::Request;
use weir_types::{Identity, Reason};

use crate::{
    config::TunnelProtocol,
    datapath::{PodHandle, Remember},
    mesh::{Backend, Destination, Mesh, Service, Workload},
    policy::{self, Judgement},
    same_node::{self, Ends, Link, SameNode},
};

/// Endpoints that one connection tries before it gives up.
pub const ATTEMPTS: usize = 3;

/// What is known of a pod that is enrolled on this node.
#[derive(Debug, Clone, Copy)]
pub struct Enrolled {
    /// Its number in the kernel's maps.
    pub handle: PodHandle,
    /// How it hangs on the network.
    pub link: Link,
}

/// Knows which pods are enrolled.
pub trait Locate {
    /// The pod with this uid, if it is enrolled on this node.
    fn enrolled(&self, uid: &str) -> Option<Enrolled>;
}

/// What decides where connections go.
pub struct Router<'a> {
    /// The configuration.
    pub mesh: &'a Mesh,
    /// The enrolled pods.
    pub enrolled: &'a dyn Locate,
    /// Whether this kernel ends a direct connection on request.
    pub can_destroy: bool,
    /// How many endpoints of a service are wanted, where they need not all be judged.
    pub wanted: usize,
}

/// Where a connection goes.
#[derive(Debug)]
pub struct Route {
    /// The service that was asked for.
    pub service: Option<Arc<Service>>,
    /// Where it may go, in the order to try. Never empty.
    pub candidates: Vec<Candidate>,
    /// Endpoints of the service that policies forbid.
    pub denied: Vec<Candidate>,
    /// What the kernel may remember for the pod's next connections to this destination.
    pub remember: Option<Remember>,
}

/// One place that a connection may go to.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its workload, unless it is outside the mesh.
    pub workload: Option<Arc<Workload>>,
    /// Identities that it may present besides its own.
    pub subject_alt_names: Vec<Identity>,
    /// What its policies say, as far as this node knows them.
    pub judgement: Judgement,
    /// For an enrolled pod of this node: which, and how it is reached.
    pub local: Option<(PodHandle, SameNode)>,
    tier: u8,
}

/// Why a connection goes nowhere.
#[derive(Debug)]
pub enum NoRoute {
    /// The service does not have the port, or no endpoint.
    Service(Arc<Service>, Reason),
    /// Policies of this node's pods forbid it.
    Denied {
        /// The service that was asked for.
        service: Option<Arc<Service>>,
        /// Those that refuse. Never empty.
        denied: Vec<Candidate>,
        /// What the kernel may remember.
        remember: Remember,
    },
}

// === impl Router ===

impl Router<'_> {
    /// Where a connection of `source` to `destination` goes. `pick` is the backend that the kernel chose; `seed` chooses
    /// among equals.
    ///
    /// # Errors
    /// Why it goes nowhere.
    pub fn route(
        &self,
        source: &Workload,
        destination: SocketAddr,
        pick: Option<SocketAddr>,
        seed: u64,
    ) -> Result<Route, NoRoute> {
        match self.mesh.destination(destination.ip()) {
            Destination::Outside => Ok(Route {
                service: None,
                candidates: vec![self.candidate(source, destination, None, &[], 0)],
                denied: Vec::new(),
                remember: Some(Remember::Pass),
            }),
            Destination::Workload(workload) => {
                let candidate = self.candidate(source, destination, Some(workload), &[], 0);
                let remember = candidate.remember();
                match remember {
                    Some(remember @ Remember::Deny(_)) => Err(NoRoute::Denied {
                        service: None,
                        denied: vec![candidate],
                        remember,
                    }),
                    remember => Ok(Route {
                        service: None,
                        candidates: vec![candidate],
                        denied: Vec::new(),
                        remember,
                    }),
                }
            }
            Destination::Service(service) => self.to_service(source, service, destination, pick, seed),
        }
    }

    fn to_service(
        &self,
        source: &Workload,
        service: Arc<Service>,
        destination: SocketAddr,
        pick: Option<SocketAddr>,
        seed: u64,
    ) -> Result<Route, NoRoute> {
        let Some(mut backends) =
            service.backends(destination.port(), destination.is_ipv4(), Some(source), seed)
        else {
            return Err(NoRoute::Service(service, Reason::UnknownPort));
        };
        if let Some(position) = backends.iter().position(|b| Some(b.address) == pick) {
            backends[..=position].rotate_right(1);
        }
        // All are judged only if the kernel is to pick among them the next time.
        let all = service.is_here && pick.is_none();
        let wanted = if all { usize::MAX } else { self.wanted };
        let (mut candidates, mut denied) = (Vec::new(), Vec::new());
        for Backend {
            address,
            workload,
            tier,
        } in backends
        {
            let candidate = self.candidate(source, address, workload, &service.subject_alt_names, tier);
            if candidate.judgement.is_allowed() {
                candidates.push(candidate);
            } else {
                denied.push(candidate);
            }
            if candidates.len() >= wanted {
                break;
            }
        }
        if candidates.is_empty() && denied.is_empty() {
            return Err(NoRoute::Service(service, Reason::NoEndpoint));
        }
        if candidates.is_empty() {
            // This node's word about its own pods is final. Others decide for themselves, and record it.
            let is_local = |candidate: &Candidate| candidate.local.is_some();
            if let Some(first) = denied.first()
                && denied.iter().all(is_local)
            {
                return Err(NoRoute::Denied {
                    service: Some(service),
                    remember: Remember::Deny(first.judgement.reason),
                    denied,
                });
            }
            (denied, candidates) = denied.into_iter().partition(is_local);
        }
        let remember = remember_service(&candidates, destination.is_ipv4()).filter(|_| all);
        Ok(Route {
            service: Some(service),
            candidates,
            denied,
            remember,
        })
    }

    fn candidate(
        &self,
        source: &Workload,
        address: SocketAddr,
        workload: Option<Arc<Workload>>,
        subject_alt_names: &[Identity],
        tier: u8,
    ) -> Candidate {
        let mut candidate = Candidate {
            address,
            workload: workload.clone(),
            subject_alt_names: subject_alt_names.to_vec(),
            judgement: Judgement::NONE,
            local: None,
            tier,
        };
        let Some(workload) = workload.filter(|workload| workload.uid != source.uid) else {
            return candidate;
        };
        if workload.tunnel == TunnelProtocol::None {
            return candidate;
        }
        let request = Request {
            source: Some(&source.identity),
            source_ip: address_of(source, address.is_ipv4()),
            destination_ip: address.ip(),
            destination_port: address.port(),
        };
        candidate.judgement = policy::judge(self.mesh.policies_of(&workload), &request);
        let source_ip = request.source_ip;
        if let Some(same_node) = self.same_node(&source.uid, &workload.uid, address, source_ip) {
            let to = self.enrolled.enrolled(&workload.uid);
            candidate.local = to.map(|to| (to.handle, same_node));
        }
        candidate
    }

    /// How a connection between two enrolled pods of this node goes, by their uids; `None` if one is none.
    #[must_use]
    pub fn same_node(
        &self,
        source: &str,
        destination: &str,
        address: SocketAddr,
        source_ip: IpAddr,
    ) -> Option<SameNode> {
        let ends = Ends {
            source: self.enrolled.enrolled(source)?.link,
            destination: self.enrolled.enrolled(destination)?.link,
            can_destroy: self.can_destroy,
        };
        let anonymous = Request {
            source: None,
            source_ip,
            destination_ip: address.ip(),
            destination_port: address.port(),
        };
        Some(same_node::resolve(
            self.mesh,
            source,
            destination,
            &anonymous,
            ends,
        ))
    }
}

/// What the kernel may remember of a service: the backends that are as near as the nearest, if one of them is reached
/// directly.
fn remember_service(candidates: &[Candidate], v4: bool) -> Option<Remember> {
    let nearest = candidates.first()?.tier;
    let backends: Vec<KernelBackend> = candidates
        .iter()
        .take_while(|candidate| candidate.tier == nearest)
        .map(|candidate| KernelBackend {
            address: candidate.address.into(),
            dest_pod: match candidate.local {
                Some((handle, same_node)) if same_node.direct && candidate.address.is_ipv4() == v4 => {
                    handle.0
                }
                _ => 0,
            },
            ..KernelBackend::default()
        })
        .collect();
    let some_direct = backends.iter().any(|backend| backend.dest_pod != 0);
    some_direct.then_some(Remember::Service(backends))
}

/// The address that a workload's connections of a family come from.
#[must_use]
pub fn address_of(workload: &Workload, v4: bool) -> IpAddr {
    let own = workload.addresses.iter().find(|address| address.is_ipv4() == v4);
    own.copied().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED))
}

impl Candidate {
    /// What the kernel may remember of a connection to this very pod.
    fn remember(&self) -> Option<Remember> {
        let (handle, same_node) = self.local?;
        if !self.judgement.is_allowed() {
            return Some(Remember::Deny(self.judgement.reason));
        }
        same_node.direct.then_some(Remember::Direct(handle))
    }
}
