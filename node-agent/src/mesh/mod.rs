//! What the configuration says, in the form that a connection needs: look-ups by address. Immutable; a change makes another.

mod change;
mod policies;
mod received;
mod service;

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
    sync::{Arc, OnceLock},
};

use weir_policy::{Policies, PolicyError, Warning, WorkloadPolicies};
use weir_types::{About, FlowPeer, Identity, IdentityError, api::WorkloadStatus};

use crate::{
    config::{ConfigFile, SameNodeMode, TunnelProtocol},
    netns::NetNsRef,
};

pub use change::Change;
use policies::PolicySource;
pub use received::{PodSource, Received, Update, WorkloadSource};
pub use service::{Backend, Service, ServiceSource};

/// What a control plane said of a pod that is to be enrolled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedPod {
    /// Uid of its workload.
    pub workload: String,
    /// Whether its connections are only recorded.
    pub observed: bool,
}

/// All that is known of workloads, services and policies.
#[derive(Debug, Default)]
pub struct Mesh {
    workloads: BTreeMap<String, Arc<Workload>>,
    by_address: HashMap<IpAddr, Arc<Workload>>,
    services: HashMap<IpAddr, Arc<Service>>,
    local: BTreeMap<String, Arc<LocalPod>>,
    policies: Arc<PolicySource>,
    /// Pods that are to be enrolled here, by their own uids: known whether or not their workloads are.
    told: BTreeMap<String, WantedPod>,
    node: String,
    version: u32,
    generation: u32,
}

/// Why a checked configuration cannot be compiled: the check of the file excludes each.
#[derive(Debug, thiserror::Error)]
pub enum MeshError {
    /// A workload's namespace or account is no Kubernetes name.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A policy is wrong.
    #[error(transparent)]
    Policy(#[from] PolicyError),
}

/// A workload.
#[derive(Debug)]
pub struct Workload {
    /// Its uid.
    pub uid: String,
    /// Its name.
    pub name: String,
    /// Its identity.
    pub identity: Identity,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its node.
    pub node: String,
    /// Its node's zone.
    pub zone: Option<String>,
    /// What people know it by. Its labels also select it, where policies do not come over the wire.
    pub about: Arc<About>,
    /// What it understands.
    pub tunnel: TunnelProtocol,
    /// The policies that it names as its own, where policies have no selectors: they came over the wire.
    pub listed: Option<Vec<Arc<str>>>,
    /// What applies to it, once somebody asked.
    policies: OnceLock<WorkloadPolicies>,
}

/// A pod of this node.
#[derive(Debug)]
pub struct LocalPod {
    /// Its workload.
    pub workload: Arc<Workload>,
    /// Where its network namespace is found.
    pub netns: NetNsRef,
    /// Ports at which the kubelet probes it.
    pub probe_ports: Vec<u16>,
    /// Whether its connections are only recorded.
    pub observed: bool,
    /// How it reaches other pods of this node, and they it.
    pub same_node: SameNodeMode,
}

/// Where a destination address leads.
#[derive(Debug, Clone)]
pub enum Destination {
    /// To a workload.
    Workload(Arc<Workload>),
    /// To one of a service's endpoints.
    Service(Arc<Service>),
    /// Outside the mesh.
    Outside,
}

// === impl Mesh ===

impl Mesh {
    /// Compiles a checked configuration that follows `previous`, and says what is different.
    ///
    /// # Errors
    /// When something is wrong that the check of the file excludes.
    pub fn new(config: &ConfigFile, previous: &Self) -> Result<(Self, Change), MeshError> {
        let mut mesh = Self {
            node: config.node.value.clone(),
            version: previous.version.wrapping_add(1),
            policies: PolicySource::of(config, &previous.policies)?,
            ..Self::default()
        };
        for source in config.workloads.iter().map(|w| &w.value) {
            let workload = Arc::new(Workload {
                uid: source.uid.clone(),
                name: source.name.clone().unwrap_or_else(|| source.uid.clone()),
                identity: Identity::new(&config.trust_domain, &source.namespace, &source.service_account)?,
                addresses: source.addresses.iter().map(IpAddr::to_canonical).collect(),
                node: source.node.clone(),
                zone: source.zone.clone(),
                about: Arc::new(About {
                    labels: source.labels.clone(),
                    workload: None,
                }),
                tunnel: source.tunnel,
                listed: None,
                policies: OnceLock::new(),
            });
            for address in &workload.addresses {
                mesh.by_address.insert(*address, workload.clone());
            }
            mesh.workloads.insert(source.uid.clone(), workload);
        }
        for pod in config.pods.iter().map(|p| &p.value) {
            if let Some(workload) = mesh.workloads.get(&pod.uid) {
                let local = LocalPod {
                    workload: workload.clone(),
                    netns: NetNsRef::File(pod.netns.clone()),
                    probe_ports: pod.probe_ports.iter().map(|port| port.get()).collect(),
                    observed: pod.observe,
                    same_node: config.same_node.value.mode(&pod.uid, &pod.namespace),
                };
                mesh.local.insert(pod.uid.clone(), Arc::new(local));
            }
        }
        for source in config.services.iter().map(|s| &s.value) {
            let is_local = |uid: &str| mesh.local.contains_key(uid);
            let service = Arc::new(Service::of_config(source, &mesh.workloads, is_local));
            for address in &source.addresses {
                mesh.services.insert(address.to_canonical(), service.clone());
            }
        }
        let change = mesh.change_from(previous);
        mesh.generation = if change.is_everything() {
            previous.generation.wrapping_add(1)
        } else {
            previous.generation
        };
        Ok((mesh, change))
    }

    /// Nothing, before the first configuration, with the generation that an earlier agent left in the kernel.
    #[must_use]
    pub fn nothing(generation: u32) -> Self {
        Self {
            generation,
            ..Self::default()
        }
    }

    /// A mesh that is like this one, of the next version: to be changed before anybody sees it.
    fn next(&self, node: &str) -> Self {
        Self {
            workloads: self.workloads.clone(),
            by_address: self.by_address.clone(),
            services: self.services.clone(),
            local: self.local.clone(),
            policies: self.policies.clone(),
            told: self.told.clone(),
            node: node.to_owned(),
            version: self.version.wrapping_add(1),
            generation: self.generation,
        }
    }

    /// Makes it one of no workloads and no services.
    fn forget(&mut self) {
        self.workloads.clear();
        self.by_address.clear();
        self.services.clear();
    }

    /// Whether a workload is of the node whose configuration this is.
    #[must_use]
    pub fn is_here(&self, workload: &Workload) -> bool {
        workload.node == self.node
    }

    /// The number of this configuration.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The number of the policies and local pods that it has: what the kernel remembers holds under one of these.
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// All policies.
    #[must_use]
    pub fn policies(&self) -> &Policies {
        &self.policies.compiled
    }

    /// What of the policies may not do what was meant.
    #[must_use]
    pub fn warnings(&self) -> &[Warning] {
        &self.policies.warnings
    }

    /// A workload as this configuration has it; as it was if it is gone.
    #[must_use]
    pub fn current<'a>(&'a self, workload: &'a Arc<Workload>) -> &'a Arc<Workload> {
        self.workloads.get(&workload.uid).unwrap_or(workload)
    }

    /// The addresses by which a workload is reached: its own, and those of services that it is an endpoint of.
    pub fn addresses_about(&self, uid: &str) -> Vec<IpAddr> {
        let own = self.workloads.get(uid).map(|workload| workload.addresses.clone());
        let serves = |service: &&Arc<Service>| service.workloads().any(|workload| workload.uid == uid);
        let services = self.services();
        let through = services
            .into_iter()
            .filter(serves)
            .flat_map(|service| service.addresses.clone());
        own.unwrap_or_default().into_iter().chain(through).collect()
    }

    /// What applies to a workload, which must be this mesh's own: another's was asked under other policies.
    #[must_use]
    pub fn policies_of<'a>(&'a self, workload: &'a Workload) -> &'a WorkloadPolicies {
        debug_assert!(
            self.workloads
                .get(&workload.uid)
                .is_some_and(|own| std::ptr::eq(&**own, workload)),
            "a workload of another configuration"
        );
        let namespace = workload.identity.namespace();
        workload.policies.get_or_init(|| match &workload.listed {
            Some(listed) => self.policies().for_listed(namespace, listed.iter()),
            None => self.policies().for_workload(namespace, &workload.about.labels),
        })
    }

    /// Where an address leads. Services first: a virtual address is no workload's.
    #[must_use]
    pub fn destination(&self, address: IpAddr) -> Destination {
        if let Some(service) = self.services.get(&address) {
            Destination::Service(service.clone())
        } else if let Some(workload) = self.by_address.get(&address) {
            Destination::Workload(workload.clone())
        } else {
            Destination::Outside
        }
    }

    /// The workload with this address.
    #[must_use]
    pub fn workload(&self, address: IpAddr) -> Option<&Arc<Workload>> {
        self.by_address.get(&address)
    }

    /// The workload with this uid.
    #[must_use]
    pub fn workload_by_uid(&self, uid: &str) -> Option<&Arc<Workload>> {
        self.workloads.get(uid)
    }

    /// Every workload, by uid.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.values()
    }

    /// Every service, by name.
    #[must_use]
    pub fn services(&self) -> Vec<&Arc<Service>> {
        let mut services: Vec<_> = self.services.values().collect();
        services.sort_by(|a, b| a.name.cmp(&b.name));
        services.dedup_by(|a, b| a.name == b.name);
        services
    }

    /// The pods of this node, by uid.
    #[must_use]
    pub fn local(&self) -> &BTreeMap<String, Arc<LocalPod>> {
        &self.local
    }

    /// The pods that a control plane wants enrolled here, by their own uids. Some of their workloads may not be known.
    #[must_use]
    pub fn told(&self) -> &BTreeMap<String, WantedPod> {
        &self.told
    }

    /// One end of a flow, with what is known of its address. The identity is left to who verified it.
    #[must_use]
    pub fn peer(&self, address: SocketAddr) -> FlowPeer {
        match self.workload(address.ip()) {
            Some(workload) => workload.peer(address),
            None => FlowPeer::unknown(address),
        }
    }

    /// What `weir workloads` shows.
    #[must_use]
    pub fn status(&self) -> Vec<WorkloadStatus> {
        let mut services: HashMap<&str, Vec<String>> = HashMap::new();
        for service in self.services() {
            for workload in service.workloads() {
                services
                    .entry(&workload.uid)
                    .or_default()
                    .push(service.name.to_string());
            }
        }
        let mut all: Vec<_> = self
            .workloads
            .values()
            .map(|workload| WorkloadStatus {
                uid: workload.uid.clone(),
                namespace: workload.identity.namespace().to_owned(),
                name: workload.name.clone(),
                identity: workload.identity.clone(),
                addresses: workload.addresses.clone(),
                node: workload.node.clone(),
                tunnel: match workload.tunnel {
                    TunnelProtocol::Hbone => "HBONE",
                    TunnelProtocol::None => "NONE",
                }
                .to_owned(),
                services: services.remove(workload.uid.as_str()).unwrap_or_default(),
                labels: workload.about.labels.clone(),
                local: self.local.contains_key(&workload.uid),
            })
            .collect();
        all.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        all
    }
}

impl Workload {
    /// This workload as one end of a flow, without an identity: that is for who verified it to add.
    #[must_use]
    pub fn peer(&self, address: SocketAddr) -> FlowPeer {
        FlowPeer {
            address,
            identity: None,
            namespace: Some(self.identity.namespace().to_owned()),
            pod: Some(self.name.clone()),
            about: Some(self.about.clone()),
        }
    }

    /// This workload as one end of a flow whose identity the kernel vouches for.
    #[must_use]
    pub fn verified_peer(&self, address: SocketAddr) -> FlowPeer {
        FlowPeer {
            identity: Some(self.identity.clone()),
            ..self.peer(address)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = "
node: n1
trustDomain: cluster.local
ca: { dir: /ca }
pods: [{ uid: w1, namespace: a, serviceAccount: x, netns: /n }]
workloads:
- { uid: w1, namespace: a, serviceAccount: x, addresses: [10.0.0.1, 'fd00::1'], node: n1 }
- { uid: w2, namespace: b, addresses: [10.0.0.2], node: n2 }
- { uid: w3, namespace: b, addresses: [10.0.0.3], node: n2, tunnel: NONE }
services:
- name: s
  namespace: a
  addresses: [10.96.0.1, 'fd96::1']
  ports: [{ port: 80, targetPort: 8080 }]
  endpoints: [{ workload: w1 }, { workload: w2 }, { workload: w3, healthy: false }, { address: 192.0.2.1 }]
";

    fn mesh() -> Mesh {
        Mesh::new(
            &crate::config::parse("t.yaml".as_ref(), CONFIG).unwrap(),
            &Mesh::nothing(0),
        )
        .unwrap()
        .0
    }

    #[test]
    fn an_address_leads_to_its_service_or_workload_or_outside() {
        let mesh = mesh();
        let to = |text: &str| mesh.destination(text.parse().unwrap());
        assert!(matches!(to("10.96.0.1"), Destination::Service(s) if &*s.name == "a/s"));
        assert!(matches!(to("fd00::1"), Destination::Workload(w) if w.uid == "w1"));
        assert!(matches!(to("192.0.2.1"), Destination::Outside));
    }

    #[test]
    fn the_narrowest_same_node_mode_counts() {
        let modes = "sameNode: { mode: direct, namespaces: { b: mtls }, workloads: { w4: auto } }";
        let pods = "\npods:
- { uid: w1, namespace: a, serviceAccount: x, netns: /n1 }
- { uid: w4, namespace: b, serviceAccount: x, netns: /n4 }
- { uid: w5, namespace: b, serviceAccount: x, netns: /n5 }
workloads:
- { uid: w4, namespace: b, serviceAccount: x, addresses: [10.0.0.4], node: n1 }
- { uid: w5, namespace: b, serviceAccount: x, addresses: [10.0.0.5], node: n1 }";
        let text = CONFIG
            .replace(
                "pods: [{ uid: w1, namespace: a, serviceAccount: x, netns: /n }]",
                modes,
            )
            .replace("\nworkloads:", pods);
        let config = crate::config::parse("t.yaml".as_ref(), &text).unwrap();
        let (mesh, _) = Mesh::new(&config, &Mesh::nothing(0)).unwrap();
        let mode = |uid: &str| mesh.local()[uid].same_node;
        assert_eq!(mode("w1"), SameNodeMode::Direct);
        assert_eq!(mode("w4"), SameNodeMode::Auto);
        assert_eq!(mode("w5"), SameNodeMode::Mtls);
    }
}
