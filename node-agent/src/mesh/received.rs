//! A mesh that comes piece by piece from a control plane.
//!
//! Each set of changes makes another [`Mesh`], which shares with the one before what did not change.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::{Arc, OnceLock},
};

use weir_policy::{Authorization, Policies};
use weir_types::{About, Identity};

use super::{
    Change, LocalPod, Mesh, PolicySource, Service, ServiceSource, WantedPod, Workload, service::Endpoint,
};
use crate::{
    config::{SameNodeConfig, TunnelProtocol},
    netns::NetNsRef,
};

/// A workload as it was received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkloadSource {
    /// Its uid.
    pub uid: String,
    /// Its name.
    pub name: String,
    /// Its identity.
    pub identity: Identity,
    /// What people know it by.
    pub about: Arc<About>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether its addresses are its node's, and lead nobody to it.
    pub host_network: bool,
    /// Its node.
    pub node: String,
    /// Its node's zone.
    pub zone: Option<String>,
    /// What it understands.
    pub tunnel: TunnelProtocol,
    /// The policies that it names, `namespace/name`.
    pub policies: Vec<Arc<str>>,
    /// The services that it serves, by the names of their resources, with its port for each of theirs.
    pub services: BTreeMap<String, Vec<(u16, u16)>>,
    /// Whether it takes connections.
    pub healthy: bool,
    /// Whether it speaks HBONE itself, as a waypoint does: it is not captured.
    pub native_tunnel: bool,
}

/// A pod of this node that is to be enrolled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodSource {
    /// The uid of its workload.
    pub workload: String,
    /// Where its network namespace is found.
    pub netns: NetNsRef,
    /// Ports at which the kubelet probes it.
    pub probe_ports: Vec<u16>,
    /// Whether its connections are only recorded.
    pub observed: bool,
}

/// What is new, by name; `None` where there is nothing of the name any more.
#[derive(Debug, Default)]
pub struct Update {
    /// Workloads by uid.
    pub workloads: Vec<(String, Option<WorkloadSource>)>,
    /// Services by the names of their resources.
    pub services: Vec<(String, Option<ServiceSource>)>,
    /// Policies by `namespace/name`.
    pub policies: Vec<(Arc<str>, Option<Authorization>)>,
    /// Pods by their own uid.
    pub pods: Vec<(String, Option<PodSource>)>,
    /// The addresses of all sandboxes that are known, by their pods' uids, if they are others than before.
    pub sandboxes: Option<BTreeMap<String, Vec<IpAddr>>>,
}

/// All that was received.
#[derive(Debug)]
pub struct Received {
    node: String,
    same_node: SameNodeConfig,
    workloads: HashMap<String, (WorkloadSource, Arc<Workload>)>,
    services: HashMap<String, ServiceSource>,
    /// Uids of workloads by the service that they serve.
    serving: HashMap<String, BTreeSet<String>>,
    policies: BTreeMap<Arc<str>, Authorization>,
    /// Policies that there were: who still names one is behind.
    removed: HashSet<Arc<str>>,
    pods: BTreeMap<String, PodSource>,
    sandboxes: BTreeMap<String, Vec<IpAddr>>,
    /// Whether the mesh that was made last is not in force.
    is_behind: bool,
}

// === impl Received ===

impl Received {
    /// Nothing yet, for a node.
    #[must_use]
    pub fn new(node: &str, same_node: SameNodeConfig) -> Self {
        Self {
            node: node.to_owned(),
            same_node,
            workloads: HashMap::new(),
            services: HashMap::new(),
            serving: HashMap::new(),
            policies: BTreeMap::new(),
            removed: HashSet::new(),
            pods: BTreeMap::new(),
            sandboxes: BTreeMap::new(),
            is_behind: false,
        }
    }

    /// Says that the mesh that was made last was not put in force: the next is made from all that is known.
    pub fn fall_behind(&mut self) {
        self.is_behind = true;
    }

    /// How many workloads, services and policies are known.
    #[must_use]
    pub fn counts(&self) -> (usize, usize, usize) {
        (self.workloads.len(), self.services.len(), self.policies.len())
    }

    /// The workloads of this node that are in the mesh and do not see to it themselves, as they will be with an update.
    pub fn to_capture<'a>(&'a self, update: &'a Update) -> impl Iterator<Item = &'a WorkloadSource> {
        // Of several words on one the last counts.
        let news: HashMap<&str, Option<&WorkloadSource>> = update
            .workloads
            .iter()
            .map(|(uid, workload)| (uid.as_str(), workload.as_ref()))
            .collect();
        let known = self.workloads.iter();
        let known: Vec<&WorkloadSource> = known
            .filter(|(uid, _)| !news.contains_key(uid.as_str()))
            .map(|(_, (workload, _))| workload)
            .collect();
        known
            .into_iter()
            .chain(news.into_values().flatten())
            .filter(|workload| {
                workload.node == self.node
                    && workload.tunnel == TunnelProtocol::Hbone
                    && !workload.host_network
                    && !workload.native_tunnel
            })
    }

    /// The pods of this node, by their own uids.
    #[must_use]
    pub fn pods(&self) -> &BTreeMap<String, PodSource> {
        &self.pods
    }

    /// Changes how pods of this node reach each other.
    pub fn set_same_node(&mut self, same_node: SameNodeConfig) {
        self.same_node = same_node;
    }

    /// Takes changes in. Gives the mesh that follows `previous`, and what is different.
    pub fn apply(&mut self, mut update: Update, previous: &Mesh) -> (Mesh, Change) {
        self.settle_addresses(&mut update);
        self.keep_addresses(&mut update);
        let mut mesh = previous.next(&self.node);
        let mut touched = Touched::default();
        let policies_changed = self.take_policies(update.policies);
        for (name, service) in update.services {
            self.take_service(name, service, &mut touched);
        }
        for (uid, workload) in update.workloads {
            self.take_workload(uid, workload, &mut touched);
        }
        for (uid, pod) in update.pods {
            for pod in self.pods.get(&uid).into_iter().chain(&pod) {
                // Whether it is served here may have changed.
                if let Some((source, _)) = self.workloads.get(&pod.workload) {
                    touched.services.extend(source.services.keys().cloned());
                }
            }
            match pod {
                Some(pod) => self.pods.insert(uid, pod),
                None => self.pods.remove(&uid),
            };
        }
        if policies_changed || previous.version == 0 || std::mem::take(&mut self.is_behind) {
            mesh.policies = self.compile();
            // What applies to a workload is kept with it: all are made anew.
            for (source, workload) in self.workloads.values_mut() {
                *workload = Arc::new(made(source));
            }
            // What is not touched by what is known now is not known any more.
            mesh.forget();
            touched.workloads.extend(self.workloads.keys().cloned());
            touched.services.extend(self.services.keys().cloned());
        }
        let told = self.pods.iter();
        mesh.told = told
            .map(|(uid, pod)| {
                let (workload, observed) = (pod.workload.clone(), pod.observed);
                (uid.clone(), WantedPod { workload, observed })
            })
            .collect();
        self.put(&mut mesh, &touched);
        let change = if mesh.decides_otherwise_than(previous) {
            mesh.generation = previous.generation.wrapping_add(1);
            Change::Everything
        } else {
            let through = self.addresses_of(&touched.services);
            Change::Addresses(touched.addresses.iter().copied().chain(through).collect())
        };
        (mesh, change)
    }

    /// A pod of this node has the addresses that its sandbox was given: the control plane knows them later, and of a sandbox
    /// that was made anew it knows the old ones for a while.
    fn settle_addresses(&mut self, update: &mut Update) {
        if let Some(sandboxes) = update.sandboxes.take() {
            self.sandboxes = sandboxes;
        }
        if self.sandboxes.is_empty() {
            return;
        }
        let mut own: HashMap<String, Vec<IpAddr>> = HashMap::new();
        for (uid, addresses) in &self.sandboxes {
            let news = update.pods.iter().rev().find(|(name, _)| name == uid);
            let pod = news.map_or_else(|| self.pods.get(uid), |(_, pod)| pod.as_ref());
            if let Some(pod) = pod {
                own.insert(pod.workload.clone(), addresses.clone());
            }
        }
        for (uid, workload) in &mut update.workloads {
            if let (Some(workload), Some(addresses)) = (workload, own.get(uid)) {
                workload.addresses.clone_from(addresses);
            }
        }
        let told: HashSet<&String> = update.workloads.iter().map(|(uid, _)| uid).collect();
        own.retain(|uid, _| !told.contains(uid));
        for (uid, addresses) in own {
            if let Some((source, _)) = self.workloads.get(&uid)
                && source.addresses != addresses
            {
                let source = WorkloadSource {
                    addresses,
                    ..source.clone()
                };
                update.workloads.push((uid, Some(source)));
            }
        }
    }

    /// A pod of this node that the control plane gives no address any more keeps what it had: it is still to be enrolled, and
    /// without an address nothing would refuse plaintext for it. Only the end of its being told of takes it out of the mesh.
    fn keep_addresses(&self, update: &mut Update) {
        let told = update.pods.iter().filter_map(|(_, pod)| pod.as_ref());
        let own: HashSet<&String> = self.pods.values().chain(told).map(|pod| &pod.workload).collect();
        for (uid, workload) in &mut update.workloads {
            let known = self.workloads.get(uid).map(|(source, _)| source);
            if let (Some(workload), Some(known)) = (workload, known)
                && workload.addresses.is_empty()
                && workload.identity == known.identity
                && own.contains(uid)
            {
                workload.addresses.clone_from(&known.addresses);
            }
        }
    }

    /// Whether any policy is another than before.
    fn take_policies(&mut self, policies: Vec<(Arc<str>, Option<Authorization>)>) -> bool {
        let mut changed = false;
        for (name, policy) in policies {
            match policy {
                Some(policy) if self.policies.get(&name) == Some(&policy) => {}
                Some(policy) => {
                    self.removed.remove(&name);
                    self.policies.insert(name, policy);
                    changed = true;
                }
                None => {
                    changed |= self.policies.remove(&name).is_some();
                    self.removed.insert(name);
                }
            }
        }
        changed
    }

    fn compile(&mut self) -> Arc<PolicySource> {
        // Only those that somebody names are worth remembering.
        let workloads = self.workloads.values();
        let named: HashSet<&Arc<str>> = workloads.flat_map(|(source, _)| &source.policies).collect();
        self.removed.retain(|name| named.contains(name));
        let policies = self.policies.iter();
        let policies = policies.map(|(name, policy)| (name.clone(), policy.clone()));
        PolicySource::received(Policies::received(policies.collect(), self.removed.clone()))
    }

    fn take_service(&mut self, name: String, service: Option<ServiceSource>, touched: &mut Touched) {
        let before = self.services.get(&name);
        if before == service.as_ref() {
            return;
        }
        touched
            .addresses
            .extend(before.iter().flat_map(|service| &service.addresses));
        if let Some(before) = before {
            touched.names.insert(name.clone(), before.name.clone());
        }
        let gone = before.iter().flat_map(|service| &service.addresses);
        touched
            .gone_services
            .extend(gone.map(|address| (*address, name.clone())));
        touched
            .addresses
            .extend(service.iter().flat_map(|service| &service.addresses));
        match service {
            Some(service) => self.services.insert(name.clone(), service),
            None => self.services.remove(&name),
        };
        touched.services.insert(name);
    }

    fn take_workload(&mut self, uid: String, workload: Option<WorkloadSource>, touched: &mut Touched) {
        let before = self.workloads.get(&uid).map(|(source, _)| source);
        if before == workload.as_ref() {
            return;
        }
        for source in before.iter().copied().chain(workload.iter()) {
            touched.addresses.extend(source.addresses.iter().copied());
            touched.services.extend(source.services.keys().cloned());
        }
        if let Some(before) = before {
            let gone = before.addresses.iter().map(|address| (*address, uid.clone()));
            touched.gone_workloads.extend(gone);
            for service in before.services.keys() {
                if let Some(serving) = self.serving.get_mut(service) {
                    serving.remove(&uid);
                    if serving.is_empty() {
                        self.serving.remove(service);
                    }
                }
            }
        }
        match workload {
            Some(source) => {
                for service in source.services.keys() {
                    self.serving
                        .entry(service.clone())
                        .or_default()
                        .insert(uid.clone());
                }
                let made = Arc::new(made(&source));
                self.workloads.insert(uid.clone(), (source, made));
            }
            None => {
                self.workloads.remove(&uid);
            }
        }
        touched.workloads.insert(uid);
    }

    /// Puts what was touched into a mesh.
    fn put(&self, mesh: &mut Mesh, touched: &Touched) {
        // Unless it is another's by now.
        for (address, uid) in &touched.gone_workloads {
            if mesh
                .by_address
                .get(address)
                .is_some_and(|workload| workload.uid == *uid)
            {
                mesh.by_address.remove(address);
            }
        }
        for uid in &touched.workloads {
            match self.workloads.get(uid) {
                Some((_, workload)) => mesh.workloads.insert(uid.clone(), workload.clone()),
                None => mesh.workloads.remove(uid),
            };
        }
        // After what is gone: an address may have moved.
        for uid in &touched.workloads {
            if let Some((source, workload)) = self.workloads.get(uid)
                && !source.host_network
            {
                for address in &workload.addresses {
                    mesh.by_address.insert(*address, workload.clone());
                }
            }
        }
        mesh.local = self.local(mesh);
        for (address, name) in &touched.gone_services {
            let gone = self
                .services
                .get(name)
                .is_none_or(|service| !service.addresses.contains(address));
            let own = |service: &Arc<Service>| touched.names.get(name) == Some(&service.name);
            if gone && mesh.services.get(address).is_some_and(own) {
                mesh.services.remove(address);
            }
        }
        for name in &touched.services {
            let Some(source) = self.services.get(name) else {
                continue;
            };
            let is_local = |uid: &str| mesh.local.contains_key(uid);
            let service = Arc::new(Service::new(source, self.endpoints(name), is_local));
            for address in &source.addresses {
                mesh.services.insert(*address, service.clone());
            }
        }
    }

    /// The addresses of services that lead elsewhere now.
    fn addresses_of(&self, services: &HashSet<String>) -> impl Iterator<Item = IpAddr> {
        let services = services.iter().filter_map(|name| self.services.get(name));
        services.flat_map(|service| service.addresses.iter().copied())
    }

    fn endpoints(&self, service: &str) -> Vec<Endpoint> {
        let serving = self.serving.get(service).into_iter().flatten();
        let endpoint = |uid: &String| {
            let (source, workload) = self.workloads.get(uid)?;
            Some(Endpoint {
                addresses: source.addresses.clone(),
                workload: Some(workload.clone()),
                healthy: source.healthy,
                ports: source.services.get(service).cloned(),
            })
        };
        serving.filter_map(endpoint).collect()
    }

    /// The pods of this node whose workloads and addresses are known.
    fn local(&self, mesh: &Mesh) -> BTreeMap<String, Arc<LocalPod>> {
        let local = self.pods.values().filter_map(|pod| {
            let workload = mesh.workloads.get(&pod.workload)?;
            if workload.addresses.is_empty() || workload.node != self.node {
                return None;
            }
            let namespace = workload.identity.namespace();
            let local = LocalPod {
                workload: workload.clone(),
                netns: pod.netns.clone(),
                probe_ports: pod.probe_ports.clone(),
                observed: pod.observed,
                same_node: self.same_node.mode(&workload.uid, namespace),
            };
            Some((workload.uid.clone(), Arc::new(local)))
        });
        local.collect()
    }
}

/// What changes concern.
#[derive(Default)]
struct Touched {
    workloads: HashSet<String>,
    services: HashSet<String>,
    /// Addresses that workloads had, and may have no more.
    gone_workloads: HashSet<(IpAddr, String)>,
    gone_services: HashSet<(IpAddr, String)>,
    /// What those services were called in the mesh, by the names of their resources.
    names: HashMap<String, Arc<str>>,
    /// Destinations that are to be decided anew.
    addresses: HashSet<IpAddr>,
}

fn made(source: &WorkloadSource) -> Workload {
    Workload {
        uid: source.uid.clone(),
        name: source.name.clone(),
        identity: source.identity.clone(),
        addresses: source.addresses.clone(),
        node: source.node.clone(),
        zone: source.zone.clone(),
        about: source.about.clone(),
        tunnel: source.tunnel,
        listed: Some(source.policies.clone()),
        policies: OnceLock::new(),
    }
}

#[cfg(test)]
mod tests;
