//! Who has an address. An address in a pod's status is a claim: whoever may write the status makes it.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use crate::cluster::{Node, ObjectName, Pod};

/// Addresses that pods claim, and services have.
#[derive(Debug, Default)]
pub(super) struct Claims {
    pods: HashMap<IpAddr, BTreeSet<Claim>>,
    services: HashMap<IpAddr, BTreeSet<ObjectName>>,
}

/// A pod's claim. Ordered by age: the oldest has the address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Claim {
    created: i64,
    uid: Arc<str>,
    pod: ObjectName,
}

/// Why a pod does not have an address that its status names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// It is not of its node's range.
    OutOfRange,
    /// Its node is not known.
    UnknownNode,
    /// An older pod has it.
    Taken(ObjectName),
    /// A service has it.
    Service(ObjectName),
}

/// Whether a pod on this node can have an address: one of its node's ranges. Where the cluster's network does not tell the
/// ranges, any; where it tells them, it tells those of each family that it has.
pub(super) fn in_range(node: Option<&Node>, address: IpAddr) -> Result<(), Refused> {
    let node = node.ok_or(Refused::UnknownNode)?;
    if node.ranges.is_empty() || node.ranges.iter().any(|range| range.contains(&address)) {
        return Ok(());
    }
    Err(Refused::OutOfRange)
}

// === impl Claims ===

impl Claims {
    /// Enters or takes back a pod's claims. Gives the pods that have an address now, or had it before; and where those differ,
    /// whoever else claims it.
    pub(super) fn set(
        &mut self,
        name: &ObjectName,
        pod: &Pod,
        addresses: &[IpAddr],
        there: bool,
    ) -> Vec<ObjectName> {
        let mut concerned = Vec::new();
        for address in addresses {
            let claims = self.pods.entry(*address).or_default();
            let before = claims.first().map(|claim| claim.pod.clone());
            let claim = Claim {
                created: pod.created,
                uid: pod.uid.clone(),
                pod: name.clone(),
            };
            if there {
                claims.insert(claim);
            } else {
                claims.remove(&claim);
            }
            let after = claims.first().map(|claim| &claim.pod);
            if before.as_ref() != after {
                concerned.extend(claims.iter().map(|claim| claim.pod.clone()));
            }
            concerned.extend(before);
            if claims.is_empty() {
                self.pods.remove(address);
            }
        }
        concerned
    }

    /// Enters or takes back a service's addresses. Gives the pods that claim one of them.
    pub(super) fn set_service(
        &mut self,
        name: &ObjectName,
        addresses: &[IpAddr],
        there: bool,
    ) -> Vec<ObjectName> {
        let mut concerned = Vec::new();
        for address in addresses {
            let services = self.services.entry(*address).or_default();
            if there {
                services.insert(name.clone());
            } else {
                services.remove(name);
            }
            if services.is_empty() {
                self.services.remove(address);
            }
            let claims = self.pods.get(address).into_iter().flatten();
            concerned.extend(claims.map(|claim| claim.pod.clone()));
        }
        concerned
    }

    /// Whether a pod has an address that it claims.
    pub(super) fn check(&self, name: &ObjectName, address: IpAddr) -> Result<(), Refused> {
        if let Some(service) = self.services.get(&address).and_then(BTreeSet::first) {
            return Err(Refused::Service(service.clone()));
        }
        match self.pods.get(&address).and_then(BTreeSet::first) {
            Some(claim) if claim.pod == *name => Ok(()),
            Some(claim) => Err(Refused::Taken(claim.pod.clone())),
            None => Err(Refused::OutOfRange),
        }
    }

    /// Whether any pod, or a service, has an address.
    pub(super) fn is_taken(&self, address: IpAddr) -> bool {
        self.pods.contains_key(&address) || self.services.contains_key(&address)
    }
}
