//! From Kubernetes' objects to what agents are told. Without I/O and clocks: events go in, changes come out.
//!
//! A change touches what depends on it and nothing else. What is touched is made anew from all that is known; if it comes out
//! as it was, its version is the same and nobody hears of it.

mod claims;
mod endpoints;
mod policies;
mod service;
mod workload;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use weir_proto::ResourceType;
use weir_types::TrustDomain;

use crate::{
    ads::{Change, Resource},
    cluster::{EndpointSlice, Event, Namespace, Node, ObjectName, Pod, Service, Switch, live_switch},
};
use claims::Claims;
use endpoints::Foreign;
use policies::{Concerned, PolicySet};
use workload::{Surroundings, workload_uid};

pub use claims::Refused;
pub use policies::{Outcome, PolicyKey, PolicyKind};

/// What holds for the whole cluster.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The cluster's name in workloads' uids; Istio's default is `Kubernetes`.
    pub cluster: String,
    /// The domain of services' names.
    pub domain: String,
    /// The trust domain of all workloads.
    pub trust_domain: TrustDomain,
    /// The namespace whose policies without selector are the mesh's.
    pub root_namespace: String,
}

/// All that is known of the cluster.
pub struct Compiler {
    settings: Settings,
    pods: HashMap<ObjectName, Box<Pod>>,
    services: HashMap<ObjectName, Service>,
    slices: HashMap<ObjectName, EndpointSlice>,
    namespaces: HashMap<Arc<str>, Namespace>,
    nodes: HashMap<Arc<str>, Node>,
    service_accounts: HashSet<ObjectName>,
    pods_of_node: HashMap<Arc<str>, HashSet<ObjectName>>,
    pods_of_namespace: HashMap<Arc<str>, HashSet<ObjectName>>,
    /// Slices by service.
    slices_of: HashMap<ObjectName, BTreeSet<ObjectName>>,
    /// Services by pod.
    serves: HashMap<ObjectName, BTreeSet<ObjectName>>,
    /// Endpoints that are no pods, by service.
    foreign: HashMap<ObjectName, Foreign>,
    /// The services that offer an address as one that is no pod's.
    offering: HashMap<IpAddr, BTreeSet<ObjectName>>,
    claims: Claims,
    policies: PolicySet,
    /// Pods that were made anew by the last events.
    touched: HashSet<ObjectName>,
}

/// What is to be made anew.
#[derive(Default)]
struct Touched {
    pods: HashSet<ObjectName>,
    services: HashSet<ObjectName>,
}

/// What a pod's resources are made of, for whoever reports on it.
#[derive(Debug, Clone, PartialEq)]
pub struct PodView<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// What is wanted of it.
    pub switch: Switch,
    /// Addresses that it claims and does not have.
    pub refused: Vec<(IpAddr, Refused)>,
}

/// Why a node's agent may not have a certificate for an identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unentitled {
    /// None of the node's pods is to be enrolled under the service account.
    #[error("there is no enrolled pod of it on the node")]
    NoPod,
    /// The pod outlived its service account.
    #[error("its service account does not exist")]
    NoServiceAccount,
}

// === impl Settings ===

impl Default for Settings {
    fn default() -> Self {
        Self {
            cluster: "Kubernetes".to_owned(),
            domain: "cluster.local".to_owned(),
            trust_domain: TrustDomain::default(),
            root_namespace: "weir-system".to_owned(),
        }
    }
}

// === impl Compiler ===

impl Compiler {
    /// Of a cluster of which nothing is known.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            policies: PolicySet::new(&settings.root_namespace),
            settings,
            pods: HashMap::new(),
            services: HashMap::new(),
            slices: HashMap::new(),
            namespaces: HashMap::new(),
            nodes: HashMap::new(),
            service_accounts: HashSet::new(),
            pods_of_node: HashMap::new(),
            pods_of_namespace: HashMap::new(),
            slices_of: HashMap::new(),
            serves: HashMap::new(),
            foreign: HashMap::new(),
            offering: HashMap::new(),
            claims: Claims::default(),
            touched: HashSet::new(),
        }
    }

    /// Takes in what happened, and gives what agents are to be told: policies first, so that no workload names one that its
    /// agent has not heard of.
    pub fn apply(&mut self, events: impl IntoIterator<Item = Event>) -> Vec<Change> {
        let mut touched = Touched::default();
        let mut changes = Vec::new();
        for event in events {
            self.take(event, &mut touched, &mut changes);
        }
        match self.policies.compile(&mut changes) {
            None => {}
            Some(Concerned::Everybody) => touched.pods.extend(self.pods.keys().cloned()),
            Some(Concerned::Namespaces(namespaces)) => {
                let pods = namespaces
                    .iter()
                    .filter_map(|namespace| self.pods_of_namespace.get(namespace));
                touched.pods.extend(pods.flatten().cloned());
            }
        }
        for name in &touched.services {
            self.service(name, &mut changes);
        }
        for name in &touched.pods {
            self.pod(name, &mut changes);
        }
        self.touched = touched.pods;
        changes
    }

    /// Pods that the last [`Compiler::apply`] may have changed, or taken away: of all others, [`Compiler::pod_view`] is what it
    /// was.
    #[must_use]
    pub fn touched(&self) -> &HashSet<ObjectName> {
        &self.touched
    }

    /// What became of each policy.
    #[must_use]
    pub fn policies(&self) -> &HashMap<PolicyKey, Outcome> {
        self.policies.outcomes()
    }

    /// A pod and what became of it.
    #[must_use]
    pub fn pod_view(&self, name: &ObjectName) -> Option<PodView<'_>> {
        let pod = self.pods.get(name)?;
        let refused = pod.addresses.iter().filter_map(|address| {
            let result = self.may_have(name, pod, *address);
            result.err().map(|why| (*address, why))
        });
        Some(PodView {
            pod,
            switch: self.switch(name, pod),
            refused: if pod.host_network {
                Vec::new()
            } else {
                refused.collect()
            },
        })
    }

    /// Every pod's name.
    pub fn pods(&self) -> impl Iterator<Item = &ObjectName> {
        self.pods.keys()
    }

    /// The pods of a node.
    pub fn pods_of_node(&self, node: &str) -> impl Iterator<Item = &ObjectName> {
        self.pods_of_node.get(node).into_iter().flatten()
    }

    /// Whether a certificate for a service account is a node's to have: a pod that is there is to be enrolled under it, and it
    /// is there itself. Kubernetes lets a pod be whose service account is deleted, and gives it no tokens any more.
    ///
    /// # Errors
    /// What there is not.
    pub fn entitled(&self, node: &str, namespace: &str, service_account: &str) -> Result<(), Unentitled> {
        let pods = self.pods_of_node.get(node).into_iter().flatten();
        let is_enrolled = pods.filter(|name| *name.namespace == *namespace).any(|name| {
            self.pods.get(name).is_some_and(|pod| {
                *pod.service_account == *service_account
                    && pod.unfit.is_none()
                    && self.switch(name, pod) == Switch::Enabled
            })
        });
        if !is_enrolled {
            return Err(Unentitled::NoPod);
        }
        let account = ObjectName::new(namespace, service_account);
        if !self.service_accounts.contains(&account) {
            return Err(Unentitled::NoServiceAccount);
        }
        Ok(())
    }

    fn take(&mut self, event: Event, touched: &mut Touched, changes: &mut Vec<Change>) {
        match event {
            Event::Pod(name, pod) => self.take_pod(name, pod, touched, changes),
            Event::Service(name, service) => {
                let before = self.services.get(&name);
                if before == service.as_ref() {
                    return;
                }
                let before = before
                    .map(|service| service.addresses.clone())
                    .unwrap_or_default();
                touched
                    .pods
                    .extend(self.claims.set_service(&name, &before, false));
                if let Some(service) = &service {
                    let pods = self.claims.set_service(&name, &service.addresses, true);
                    touched.pods.extend(pods);
                }
                let now = service.iter().flat_map(|service| &service.addresses);
                for address in before.iter().chain(now) {
                    self.touch_address(*address, touched);
                }
                replace(&mut self.services, name.clone(), service);
                self.touch_service(name, touched);
            }
            Event::EndpointSlice(name, slice) => self.take_slice(name, slice, touched),
            Event::Namespace(name, namespace) => {
                if self.namespaces.get(&name) != namespace.as_ref() {
                    touched
                        .pods
                        .extend(self.pods_of_namespace.get(&name).into_iter().flatten().cloned());
                    let before = self.mesh_default();
                    replace(&mut self.namespaces, name, namespace);
                    if self.mesh_default() != before {
                        touched.pods.extend(self.pods.keys().cloned());
                    }
                }
            }
            Event::Node(name, node) => {
                if self.nodes.get(&name) != node.as_ref() {
                    let pods = self.pods_of_node.get(&name).cloned().unwrap_or_default();
                    replace(&mut self.nodes, name, node);
                    for pod in pods {
                        // Which of its addresses it may claim depends on the node.
                        if let Some(known) = self.pods.get(&pod).cloned() {
                            for address in &known.addresses {
                                self.touch_address(*address, touched);
                            }
                            touched
                                .pods
                                .extend(self.claims.set(&pod, &known, &known.addresses, false));
                            touched.pods.extend(self.claim(&pod, &known));
                        }
                        touched.pods.insert(pod);
                    }
                }
            }
            Event::ServiceAccount(name, true) => {
                self.service_accounts.insert(name);
            }
            Event::ServiceAccount(name, false) => {
                self.service_accounts.remove(&name);
            }
            Event::AuthorizationPolicy(api, name, policy) => {
                self.policies
                    .set_authorization(api, name, policy.map(|policy| *policy));
            }
            Event::PeerAuthentication(api, name, policy) => self.policies.set_peer(api, name, policy),
        }
    }

    fn take_pod(
        &mut self,
        name: ObjectName,
        pod: Option<Box<Pod>>,
        touched: &mut Touched,
        changes: &mut Vec<Change>,
    ) {
        let before = self.pods.remove(&name);
        if before == pod {
            replace(&mut self.pods, name, before);
            return;
        }
        let both = [&before, &pod].into_iter().flatten();
        for address in both.flat_map(|pod| &pod.addresses) {
            self.touch_address(*address, touched);
        }
        if let Some(before) = &before {
            touched
                .pods
                .extend(self.claims.set(&name, before, &before.addresses, false));
            remove_from(&mut self.pods_of_node, &before.node, &name);
            remove_from(&mut self.pods_of_namespace, &name.namespace, &name);
            if pod.as_ref().is_none_or(|pod| pod.uid != before.uid) {
                changes.push(Change::Remove(ResourceType::Pod, before.uid.clone()));
            }
        }
        if let Some(pod) = pod {
            touched.pods.extend(self.claim(&name, &pod));
            let of_node = self.pods_of_node.entry(pod.node.clone()).or_default();
            of_node.insert(name.clone());
            let of_namespace = self.pods_of_namespace.entry(name.namespace.clone()).or_default();
            of_namespace.insert(name.clone());
            self.pods.insert(name.clone(), pod);
        }
        touched.pods.insert(name);
    }

    /// Enters the claims of a pod that its node allows.
    fn claim(&mut self, name: &ObjectName, pod: &Pod) -> Vec<ObjectName> {
        if pod.host_network {
            return Vec::new();
        }
        let node = self.nodes.get(&pod.node);
        let in_range = |address: &IpAddr| claims::in_range(node, *address).is_ok();
        let addresses: Vec<IpAddr> = pod.addresses.iter().copied().filter(in_range).collect();
        self.claims.set(name, pod, &addresses, true)
    }

    fn may_have(&self, name: &ObjectName, pod: &Pod, address: IpAddr) -> Result<(), Refused> {
        claims::in_range(self.nodes.get(&pod.node), address)?;
        self.claims.check(name, address)
    }

    fn switch(&self, name: &ObjectName, pod: &Pod) -> Switch {
        let namespace = self
            .namespaces
            .get(&name.namespace)
            .and_then(|namespace| namespace.switch);
        live_switch(pod.switch, namespace, self.mesh_default())
    }

    /// What holds where neither a pod nor its namespace says anything.
    fn mesh_default(&self) -> Option<Switch> {
        self.namespaces.get(&*self.settings.root_namespace)?.mesh_default
    }

    /// A pod's resources.
    fn pod(&mut self, name: &ObjectName, changes: &mut Vec<Change>) {
        let services = self.services_of(name);
        let Some(pod) = self.pods.get(name) else {
            let uid = workload_uid(&self.settings.cluster, name);
            changes.push(Change::Remove(ResourceType::Address, uid.into()));
            return;
        };
        let addresses: Vec<IpAddr> = if pod.host_network {
            pod.addresses.clone()
        } else {
            let may_have = |address: &IpAddr| self.may_have(name, pod, *address).is_ok();
            pod.addresses.iter().copied().filter(may_have).collect()
        };
        let surroundings = Surroundings {
            cluster: &self.settings.cluster,
            trust_domain: &self.settings.trust_domain,
            name,
            pod,
            node: self.nodes.get(&pod.node),
            switch: self.switch(name, pod),
            addresses: &addresses,
            services,
            policies: self.policies.compiled().listed(&name.namespace, &pod.labels),
        };
        let uid = workload_uid(&self.settings.cluster, name);
        // An address of the node is no pod's.
        let own: &[IpAddr] = if pod.host_network { &[] } else { &addresses };
        changes.push(Change::Set(Resource::new(
            uid,
            own.iter().map(alias),
            &surroundings.message(),
        )));
        changes.push(match surroundings.node_message() {
            Some(message) => Change::Set(Resource::of_node(pod.node.clone(), pod.uid.clone(), &message)),
            None => Change::Remove(ResourceType::Pod, pod.uid.clone()),
        });
    }
}

/// The name by which a resource is asked for by address: `<network>/<address>`, in the one network that there is.
fn alias(address: &IpAddr) -> String {
    format!("/{address}")
}

fn replace<K: std::hash::Hash + Eq, V>(map: &mut HashMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => {
            map.insert(key, value);
        }
        None => {
            map.remove(&key);
        }
    }
}

fn remove_from(map: &mut HashMap<Arc<str>, HashSet<ObjectName>>, key: &Arc<str>, name: &ObjectName) {
    if let Some(names) = map.get_mut(key) {
        names.remove(name);
        if names.is_empty() {
            map.remove(key);
        }
    }
}

#[cfg(test)]
mod tests;
