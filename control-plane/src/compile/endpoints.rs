//! Who serves which service.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use weir_proto::{ResourceType, istio::workload::PortList};

use super::{Compiler, Settings, Touched, alias, replace, service};
use crate::{
    ads::{Change, Resource},
    cluster::{Endpoint, EndpointSlice, ObjectName},
};

/// Most endpoints of a service that are no pods: each is told to every agent.
const MOST_FOREIGN: usize = 256;

/// Endpoints of a service that are no pods.
#[derive(Default)]
pub(super) struct Foreign {
    /// All of them.
    offered: BTreeSet<IpAddr>,
    /// Those whose addresses are nobody's, which agents are told of.
    told: BTreeSet<IpAddr>,
}

impl Compiler {
    /// Touches the services that offer an address as their own: whether it is somebody else's may have changed.
    pub(super) fn touch_address(&self, address: IpAddr, touched: &mut Touched) {
        touched
            .services
            .extend(self.offering.get(&address).into_iter().flatten().cloned());
    }

    pub(super) fn take_slice(
        &mut self,
        name: ObjectName,
        slice: Option<EndpointSlice>,
        touched: &mut Touched,
    ) {
        let before = self.slices.get(&name).cloned();
        if before == slice {
            return;
        }
        let service = |slice: &EndpointSlice| ObjectName {
            namespace: name.namespace.clone(),
            name: slice.service.clone(),
        };
        let services: BTreeSet<ObjectName> = [&before, &slice].into_iter().flatten().map(service).collect();
        let readiness: Vec<bool> = services
            .iter()
            .map(|service| self.is_any_ready(service))
            .collect();
        if let Some(before) = &before {
            let service = service(before);
            if let Some(slices) = self.slices_of.get_mut(&service) {
                slices.remove(&name);
                if slices.is_empty() {
                    self.slices_of.remove(&service);
                }
            }
        }
        if let Some(slice) = &slice {
            self.slices_of
                .entry(service(slice))
                .or_default()
                .insert(name.clone());
        }
        touched
            .pods
            .extend(differing(&name.namespace, before.as_ref(), slice.as_ref()));
        replace(&mut self.slices, name, slice);
        for (service, was_ready) in services.into_iter().zip(readiness) {
            if self.is_any_ready(&service) == was_ready {
                touched.services.insert(service);
            } else {
                // Whether endpoints that end are taken depends on whether one is ready.
                self.touch_service(service, touched);
            }
        }
    }

    fn is_any_ready(&self, service: &ObjectName) -> bool {
        let mut endpoints = self.slices_of(service).flat_map(|slice| &slice.endpoints);
        endpoints.any(|endpoint| endpoint.ready)
    }

    /// Touches a service and whoever serves it.
    pub(super) fn touch_service(&self, name: ObjectName, touched: &mut Touched) {
        let endpoints = self.slices_of(&name).flat_map(|slice| &slice.endpoints);
        let pods = endpoints.filter_map(|endpoint| endpoint.pod.as_ref());
        touched.pods.extend(pods.map(|pod| ObjectName {
            namespace: name.namespace.clone(),
            name: pod.clone(),
        }));
        touched.services.insert(name);
    }

    fn slices_of(&self, service: &ObjectName) -> impl Iterator<Item = &EndpointSlice> + Clone {
        let slices = self.slices_of.get(service).into_iter().flatten();
        slices.filter_map(|slice| self.slices.get(slice))
    }

    /// A service's own resource, and those of its endpoints that are no pods.
    pub(super) fn service(&mut self, name: &ObjectName, changes: &mut Vec<Change>) {
        let Settings { cluster, domain, .. } = &self.settings;
        let resource = service::resource_name(domain, name);
        let service = self.services.get(name);
        match service {
            Some(service) => {
                let message = service::message(domain, name, service);
                let aliases = service.addresses.iter().map(alias);
                changes.push(Change::Set(Resource::new(resource, aliases, &message)));
            }
            None => changes.push(Change::Remove(ResourceType::Address, resource.into())),
        }
        let (mut offered, mut told) = (BTreeSet::new(), BTreeSet::new());
        let taken = service::taken(self.slices_of(name));
        'slices: for (slice, endpoint) in taken.filter(|(_, endpoint)| endpoint.pod.is_none()) {
            let Some(service) = service else { continue };
            let ports = service::ports(service, slice);
            // One address each, as Kubernetes has it; and no more of them than a service may have anywhere.
            for address in endpoint.addresses.iter().take(1) {
                if offered.len() >= MOST_FOREIGN {
                    tracing::warn!(service = %name, "it has more than {MOST_FOREIGN} endpoints that are no pods: the rest is left out");
                    break 'slices;
                }
                // Pods and services are what they are, whoever offers their addresses as his own.
                if offered.insert(*address) && !self.claims.is_taken(*address) {
                    told.insert(*address);
                    let message = service::foreign(cluster, domain, name, *address, ports.clone());
                    let uid = service::foreign_uid(cluster, name, *address);
                    changes.push(Change::Set(Resource::new(uid, [], &message)));
                }
            }
        }
        let before = self.foreign.insert(name.clone(), Foreign { offered, told });
        let before = before.unwrap_or_default();
        let now = &self.foreign[name];
        for address in before.told.difference(&now.told) {
            let uid = service::foreign_uid(cluster, name, *address);
            changes.push(Change::Remove(ResourceType::Address, uid.into()));
        }
        for address in before.offered.difference(&now.offered) {
            if let Some(services) = self.offering.get_mut(address) {
                services.remove(name);
                if services.is_empty() {
                    self.offering.remove(address);
                }
            }
        }
        for address in &now.offered {
            self.offering.entry(*address).or_default().insert(name.clone());
        }
        if now.offered.is_empty() {
            self.foreign.remove(name);
        }
        self.index_service(name);
    }

    /// Which pods serve a service.
    fn index_service(&mut self, name: &ObjectName) {
        let endpoints = self.slices_of(name).flat_map(|slice| &slice.endpoints);
        let pods: Vec<ObjectName> = endpoints
            .filter_map(|endpoint| {
                Some(ObjectName {
                    namespace: name.namespace.clone(),
                    name: endpoint.pod.clone()?,
                })
            })
            .collect();
        for pod in pods {
            self.serves.entry(pod).or_default().insert(name.clone());
        }
    }

    /// The services that a pod serves, with its ports.
    pub(super) fn services_of(&mut self, name: &ObjectName) -> BTreeMap<String, PortList> {
        let mut ports: BTreeMap<String, PortList> = BTreeMap::new();
        let mut gone = Vec::new();
        for service_name in self.serves.get(name).into_iter().flatten() {
            let endpoints = || self.slices_of(service_name);
            let is_own = |pod: &Option<Arc<str>>| pod.as_ref() == Some(&name.name);
            if !endpoints()
                .flat_map(|slice| &slice.endpoints)
                .any(|endpoint| is_own(&endpoint.pod))
            {
                gone.push(service_name.clone());
                continue;
            }
            let Some(service) = self.services.get(service_name) else {
                continue;
            };
            let resource = service::resource_name(&self.settings.domain, service_name);
            for (slice, _) in service::taken(endpoints()).filter(|(_, endpoint)| is_own(&endpoint.pod)) {
                let list = ports.entry(resource.clone()).or_default();
                for port in service::ports(service, slice).ports {
                    // A slice for each family says the same.
                    if !list.ports.contains(&port) {
                        list.ports.push(port);
                    }
                }
            }
        }
        if let Some(serves) = self.serves.get_mut(name) {
            for service in &gone {
                serves.remove(service);
            }
            if serves.is_empty() {
                self.serves.remove(name);
            }
        }
        ports
    }
}

/// The pods that one of two states of a slice offers otherwise than the other.
fn differing(
    namespace: &Arc<str>,
    before: Option<&EndpointSlice>,
    after: Option<&EndpointSlice>,
) -> BTreeSet<ObjectName> {
    let endpoints = |slice: Option<&EndpointSlice>| -> Vec<Endpoint> {
        slice.map(|slice| slice.endpoints.clone()).unwrap_or_default()
    };
    let (of_before, of_after) = (endpoints(before), endpoints(after));
    let same_ports = match (before, after) {
        (Some(before), Some(after)) => before.ports == after.ports && before.service == after.service,
        _ => false,
    };
    let by_pod = |endpoints: &[Endpoint]| -> BTreeMap<Arc<str>, Vec<(bool, bool)>> {
        let mut by_pod: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for endpoint in endpoints {
            if let Some(pod) = &endpoint.pod {
                by_pod
                    .entry(pod.clone())
                    .or_default()
                    .push((endpoint.ready, endpoint.serving));
            }
        }
        by_pod
    };
    let (of_before, of_after) = (by_pod(&of_before), by_pod(&of_after));
    let pods: BTreeSet<&Arc<str>> = of_before.keys().chain(of_after.keys()).collect();
    let differs = |pod: &&&Arc<str>| !same_ports || of_before.get(**pod) != of_after.get(**pod);
    let name = |pod: &Arc<str>| ObjectName {
        namespace: namespace.clone(),
        name: pod.clone(),
    };
    pods.iter().filter(differs).map(|pod| name(pod)).collect()
}
