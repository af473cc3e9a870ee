//! What the configuration says, in the form that a connection needs: look-ups by address. Immutable; a change makes another.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
};

use weir_types::{FlowPeer, Identity, IdentityError, api::WorkloadStatus};

use crate::config::{ConfigFile, MtlsMode, ServicePort, TunnelProtocol};

/// All that is known of workloads and services.
#[derive(Debug, Default)]
pub struct Mesh {
    workloads: Vec<Arc<Workload>>,
    by_address: HashMap<IpAddr, Arc<Workload>>,
    services: HashMap<IpAddr, Arc<Service>>,
    local: Vec<Arc<LocalPod>>,
    generation: u32,
}

/// A workload.
#[derive(Debug, PartialEq, Eq)]
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
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// What it understands.
    pub tunnel: TunnelProtocol,
}

/// A pod of this node.
#[derive(Debug, PartialEq, Eq)]
pub struct LocalPod {
    /// Its workload.
    pub workload: Arc<Workload>,
    /// File of its network namespace.
    pub netns: PathBuf,
    /// Whether it accepts plaintext.
    pub mode: MtlsMode,
}

/// A service.
#[derive(Debug, PartialEq, Eq)]
pub struct Service {
    /// `namespace/name`.
    pub name: Arc<str>,
    ports: Vec<ServicePort>,
    endpoints: Vec<Endpoint>,
    /// Identities that its servers may present besides their own.
    pub subject_alt_names: Vec<Identity>,
}

#[derive(Debug, PartialEq, Eq)]
struct Endpoint {
    addresses: Vec<IpAddr>,
    workload: Option<Arc<Workload>>,
    healthy: bool,
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

/// One endpoint of a service, chosen for a connection.
#[derive(Debug, Clone)]
pub struct Backend {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its workload, unless it is outside the mesh.
    pub workload: Option<Arc<Workload>>,
}

// === impl Mesh ===

impl Mesh {
    /// Compiles a checked configuration.
    ///
    /// # Errors
    /// When a workload's namespace or account is no Kubernetes name, which the check of the file excludes.
    pub fn new(config: &ConfigFile, generation: u32) -> Result<Self, IdentityError> {
        let mut mesh = Self {
            generation,
            ..Self::default()
        };
        let mut by_uid = HashMap::new();
        for source in config.workloads.iter().map(|w| &w.value) {
            let workload = Arc::new(Workload {
                uid: source.uid.clone(),
                name: source.name.clone().unwrap_or_else(|| source.uid.clone()),
                identity: Identity::new(&config.trust_domain, &source.namespace, &source.service_account)?,
                addresses: source.addresses.iter().map(IpAddr::to_canonical).collect(),
                node: source.node.clone(),
                labels: source.labels.clone(),
                tunnel: source.tunnel,
            });
            for address in &workload.addresses {
                mesh.by_address.insert(*address, workload.clone());
            }
            by_uid.insert(source.uid.as_str(), workload.clone());
            mesh.workloads.push(workload);
        }
        for pod in config.pods.iter().map(|p| &p.value) {
            if let Some(workload) = by_uid.get(pod.uid.as_str()) {
                mesh.local.push(Arc::new(LocalPod {
                    workload: workload.clone(),
                    netns: pod.netns.clone(),
                    mode: config.mtls.value.mode(&pod.uid, &pod.namespace),
                }));
            }
        }
        for source in config.services.iter().map(|s| &s.value) {
            let endpoint = |endpoint: &crate::config::EndpointConfig| {
                let workload = endpoint
                    .workload
                    .as_deref()
                    .and_then(|uid| by_uid.get(uid))
                    .cloned();
                let own = endpoint.address.map(|address| vec![address.to_canonical()]);
                Endpoint {
                    addresses: own
                        .or_else(|| workload.as_ref().map(|w| w.addresses.clone()))
                        .unwrap_or_default(),
                    workload,
                    healthy: endpoint.healthy,
                }
            };
            let service = Arc::new(Service {
                name: format!("{}/{}", source.namespace, source.name).into(),
                ports: source.ports.clone(),
                endpoints: source.endpoints.iter().map(|e| endpoint(&e.value)).collect(),
                subject_alt_names: source.subject_alt_names.clone(),
            });
            for address in &source.addresses {
                mesh.services.insert(address.to_canonical(), service.clone());
            }
        }
        Ok(mesh)
    }

    /// The number of this configuration.
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.generation
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

    /// The pods of this node.
    #[must_use]
    pub fn local(&self) -> &[Arc<LocalPod>] {
        &self.local
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
        let mut named: Vec<&Arc<Service>> = self.services.values().collect();
        named.sort_by(|a, b| a.name.cmp(&b.name));
        named.dedup_by(|a, b| a.name == b.name);
        for service in named {
            for workload in service.endpoints.iter().filter_map(|e| e.workload.as_ref()) {
                services
                    .entry(&workload.uid)
                    .or_default()
                    .push(service.name.to_string());
            }
        }
        let mut all: Vec<_> = self
            .workloads
            .iter()
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
                labels: workload.labels.clone(),
                local: self.local.iter().any(|pod| pod.workload.uid == workload.uid),
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

impl Service {
    /// Its healthy endpoints for a port, in the order in which a connection tries them: evenly shuffled by `seed`.
    ///
    /// Endpoints of the family that the client asked for come first. `None` when the service does not have the port.
    #[must_use]
    pub fn backends(&self, port: u16, v4: bool, seed: u64) -> Option<Vec<Backend>> {
        let port = self.ports.iter().find(|p| p.port.get() == port)?;
        let target = port.target_port.unwrap_or(port.port).get();
        let mut backends: Vec<Backend> = self
            .endpoints
            .iter()
            .filter(|endpoint| endpoint.healthy)
            .filter_map(|endpoint| {
                let address = endpoint
                    .addresses
                    .iter()
                    .find(|a| a.is_ipv4() == v4)
                    .or(endpoint.addresses.first())?;
                let address = SocketAddr::new(*address, target);
                Some(Backend {
                    address,
                    workload: endpoint.workload.clone(),
                })
            })
            .collect();
        let count = backends.len();
        if count > 1 {
            let start = usize::try_from(seed % count as u64).unwrap_or(0);
            backends.rotate_left(start);
        }
        backends.sort_by_key(|backend| backend.address.is_ipv4() != v4);
        Some(backends)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = "
node: n1
trustDomain: cluster.local
ca: { dir: /ca }
mtls: { namespaces: { b: STRICT }, workloads: { w2: PERMISSIVE } }
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
        Mesh::new(&crate::config::parse("t.yaml".as_ref(), CONFIG).unwrap(), 1).unwrap()
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
    fn every_healthy_endpoint_is_first_equally_often_and_the_clients_family_is_preferred() {
        let mesh = mesh();
        let Destination::Service(service) = mesh.destination("10.96.0.1".parse().unwrap()) else {
            panic!()
        };
        let mut first: HashMap<SocketAddr, u32> = HashMap::new();
        for seed in 0..300 {
            let backends = service.backends(80, true, seed).unwrap();
            assert_eq!(backends.len(), 3);
            *first.entry(backends[0].address).or_default() += 1;
        }
        assert_eq!(first.len(), 3);
        assert!(first.values().all(|count| *count == 100), "{first:?}");
        assert_eq!(
            service.backends(80, false, 1).unwrap()[0].address,
            "[fd00::1]:8080".parse().unwrap()
        );
        assert!(service.backends(81, true, 0).is_none());
    }

    #[test]
    fn the_narrowest_mode_counts() {
        let mtls = crate::config::parse("t.yaml".as_ref(), CONFIG)
            .unwrap()
            .mtls
            .value;
        assert_eq!(mtls.mode("w1", "a"), MtlsMode::Permissive);
        assert_eq!(mtls.mode("w3", "b"), MtlsMode::Strict);
        assert_eq!(mtls.mode("w2", "b"), MtlsMode::Permissive);
    }
}
