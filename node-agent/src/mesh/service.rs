//! Services: which endpoint gets a connection.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use weir_types::Identity;

use super::Workload;
use crate::config::{EndpointConfig, InternalTrafficPolicy, ServiceConfig, ServicePort, TrafficDistribution};

/// A service.
#[derive(Debug)]
pub struct Service {
    /// `namespace/name`.
    pub name: Arc<str>,
    /// Its virtual addresses.
    pub addresses: Vec<IpAddr>,
    ports: Vec<ServicePort>,
    endpoints: Vec<Endpoint>,
    /// Whether only endpoints of the client's node are taken.
    local_only: bool,
    /// Identities that its servers may present besides their own.
    pub subject_alt_names: Vec<Identity>,
    distribution: Option<TrafficDistribution>,
    /// Whether a pod of this node serves it.
    pub is_here: bool,
}

#[derive(Debug)]
pub(super) struct Endpoint {
    pub(super) addresses: Vec<IpAddr>,
    pub(super) workload: Option<Arc<Workload>>,
    pub(super) healthy: bool,
    /// Its own ports, by the service's, where they are not the same for all.
    pub(super) ports: Option<Vec<(u16, u16)>>,
}

/// What is known of a service besides its endpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceSource {
    /// `namespace/name`.
    pub name: Arc<str>,
    /// Its virtual addresses.
    pub addresses: Vec<IpAddr>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// Identities that its servers may present besides their own.
    pub subject_alt_names: Vec<Identity>,
    /// Which endpoints are preferred.
    pub distribution: Option<TrafficDistribution>,
    /// Which endpoints are taken at all.
    pub policy: InternalTrafficPolicy,
}

/// One endpoint of a service that a connection may go to.
#[derive(Debug, Clone)]
pub struct Backend {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its workload, unless it is outside the mesh.
    pub workload: Option<Arc<Workload>>,
    /// How far away it is, as the service counts it: all of a lower tier come before any of a higher one.
    pub tier: u8,
}

/// Backends of another family than the client asked for come last.
const OTHER_FAMILY: u8 = 10;

impl Service {
    pub(super) fn of_config(
        source: &ServiceConfig,
        workloads: &BTreeMap<String, Arc<Workload>>,
        is_local: impl Fn(&str) -> bool,
    ) -> Self {
        let endpoint = |endpoint: &EndpointConfig| {
            let workload = endpoint.workload.as_deref().and_then(|uid| workloads.get(uid));
            let own = endpoint.address.map(|address| vec![address.to_canonical()]);
            Endpoint {
                addresses: own
                    .or_else(|| workload.map(|w| w.addresses.clone()))
                    .unwrap_or_default(),
                workload: workload.cloned(),
                healthy: endpoint.healthy,
                ports: None,
            }
        };
        let known = ServiceSource {
            name: format!("{}/{}", source.namespace, source.name).into(),
            addresses: source.addresses.iter().map(IpAddr::to_canonical).collect(),
            ports: source.ports.clone(),
            subject_alt_names: source.subject_alt_names.clone(),
            distribution: source.traffic_distribution,
            policy: source.internal_traffic_policy,
        };
        let endpoints = source.endpoints.iter().map(|e| endpoint(&e.value)).collect();
        Self::new(&known, endpoints, is_local)
    }

    pub(super) fn new(
        source: &ServiceSource,
        endpoints: Vec<Endpoint>,
        is_local: impl Fn(&str) -> bool,
    ) -> Self {
        let mut workloads = endpoints.iter().filter_map(|endpoint| endpoint.workload.as_ref());
        Self {
            name: source.name.clone(),
            addresses: source.addresses.clone(),
            ports: source.ports.clone(),
            subject_alt_names: source.subject_alt_names.clone(),
            distribution: source.distribution,
            local_only: source.policy == InternalTrafficPolicy::Local,
            is_here: workloads.any(|workload| is_local(&workload.uid)),
            endpoints,
        }
    }

    /// Its endpoints' workloads.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.endpoints
            .iter()
            .filter_map(|endpoint| endpoint.workload.as_ref())
    }

    /// Its healthy endpoints for a port, in the order in which a connection of `client` tries them: those that the service
    /// prefers first, and among equals each equally likely to come first, by `seed`. Where a client is not known, none is
    /// preferred.
    ///
    /// Endpoints of the family that the client asked for come first. `None` when the service does not have the port.
    #[must_use]
    pub fn backends(
        &self,
        port: u16,
        v4: bool,
        client: Option<&Workload>,
        seed: u64,
    ) -> Option<Vec<Backend>> {
        let known = self.ports.iter().find(|p| p.port.get() == port)?;
        let common = known.target_port.unwrap_or(known.port).get();
        let mut backends: Vec<Backend> = self
            .endpoints
            .iter()
            .filter(|endpoint| endpoint.healthy && self.takes(client, endpoint.workload.as_deref()))
            .filter_map(|endpoint| {
                let target = match &endpoint.ports {
                    None => common,
                    Some(ports) => ports.iter().find(|(own, _)| *own == port)?.1,
                };
                let address = endpoint
                    .addresses
                    .iter()
                    .find(|a| a.is_ipv4() == v4)
                    .or(endpoint.addresses.first())?;
                let family = if address.is_ipv4() == v4 { 0 } else { OTHER_FAMILY };
                Some(Backend {
                    address: SocketAddr::new(*address, target),
                    tier: family + self.distance(client, endpoint.workload.as_deref()),
                    workload: endpoint.workload.clone(),
                })
            })
            .collect();
        backends.sort_by_key(|backend| backend.tier);
        for equals in backends.chunk_by_mut(|a, b| a.tier == b.tier) {
            let start = usize::try_from(seed % equals.len() as u64).unwrap_or(0);
            equals.rotate_left(start);
        }
        Some(backends)
    }

    /// Whether a client's connections may go to a server. Of a client of whom the node is not known, to any.
    fn takes(&self, client: Option<&Workload>, server: Option<&Workload>) -> bool {
        !self.local_only || client.is_none_or(|client| is_same_node(client, server))
    }

    fn distance(&self, client: Option<&Workload>, server: Option<&Workload>) -> u8 {
        let Some(client) = client else { return 0 };
        let same_node = is_same_node(client, server);
        let same_zone =
            same_node || server.is_some_and(|server| server.zone.is_some() && server.zone == client.zone);
        match self.distribution {
            None => 0,
            Some(TrafficDistribution::PreferSameZone) => u8::from(!same_zone),
            Some(TrafficDistribution::PreferSameNode) => u8::from(!same_node) + u8::from(!same_zone),
        }
    }

    /// Whether it leads where another does: the same ports, endpoints in the same order, and preferences.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        let same_endpoint = |(a, b): (&Endpoint, &Endpoint)| {
            a.healthy == b.healthy
                && a.addresses == b.addresses
                && a.ports == b.ports
                && match (&a.workload, &b.workload) {
                    (Some(a), Some(b)) => a.is_like(b),
                    (None, None) => true,
                    _ => false,
                }
        };
        self.name == other.name
            && self.ports == other.ports
            && self.subject_alt_names == other.subject_alt_names
            && self.distribution == other.distribution
            && self.local_only == other.local_only
            && self.endpoints.len() == other.endpoints.len()
            && self.endpoints.iter().zip(&other.endpoints).all(same_endpoint)
    }
}

fn is_same_node(client: &Workload, server: Option<&Workload>) -> bool {
    server.is_some_and(|server| !server.node.is_empty() && server.node == client.node)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::mesh::{Destination, Mesh};

    const CONFIG: &str = "
node: n1
trustDomain: cluster.local
ca: { dir: /ca }
workloads:
- { uid: c, namespace: a, addresses: [10.0.0.9], node: n1, zone: z1 }
- { uid: w1, namespace: a, addresses: [10.0.0.1, 'fd00::1'], node: n1, zone: z1 }
- { uid: w2, namespace: b, addresses: [10.0.0.2], node: n2, zone: z1 }
- { uid: w3, namespace: b, addresses: [10.0.0.3], node: n2, zone: z1 }
- { uid: w4, namespace: b, addresses: [10.0.0.4], node: n3, zone: z2 }
- { uid: w5, namespace: b, addresses: [10.0.0.5], node: n3, tunnel: NONE }
services:
- name: s
  namespace: a
  addresses: [10.96.0.1, 'fd96::1']
  ports: [{ port: 80, targetPort: 8080 }]
  endpoints: [{ workload: w4 }, { workload: w1 }, { workload: w2 }, { workload: w3 }, { workload: w5, healthy: false }, { address: 192.0.2.1 }]
";

    fn backends(distribution: &str, v4: bool, seed: u64) -> Vec<SocketAddr> {
        let config = CONFIG.to_owned() + distribution;
        let config = crate::config::parse("t.yaml".as_ref(), &config).unwrap();
        let mesh = Mesh::new(&config, &Mesh::nothing(0)).unwrap().0;
        let Destination::Service(service) = mesh.destination("10.96.0.1".parse().unwrap()) else {
            panic!()
        };
        let client = mesh.workload_by_uid("c").map(AsRef::as_ref);
        assert!(service.backends(81, v4, client, seed).is_none());
        let backends = service.backends(80, v4, client, seed).unwrap();
        backends.iter().map(|backend| backend.address).collect()
    }

    #[test]
    fn every_healthy_endpoint_is_first_equally_often_and_the_clients_family_is_preferred() {
        let mut first: HashMap<SocketAddr, u32> = HashMap::new();
        for seed in 0..100 {
            let backends = backends("", true, seed);
            assert_eq!(backends.len(), 5);
            *first.entry(backends[0]).or_default() += 1;
        }
        assert_eq!(first.len(), 5);
        assert!(first.values().all(|count| *count == 20), "{first:?}");
        assert_eq!(backends("", false, 1)[0], "[fd00::1]:8080".parse().unwrap());
    }

    #[test]
    fn what_the_service_prefers_comes_first_and_evenly_among_equals() {
        let address = |host: u8| SocketAddr::from(([10, 0, 0, host], 8080));
        let mut first: HashMap<SocketAddr, u32> = HashMap::new();
        let mut second: HashMap<SocketAddr, u32> = HashMap::new();
        for seed in 0..60 {
            let zone = backends("  trafficDistribution: PreferSameZone\n", true, seed);
            *first.entry(zone[0]).or_default() += 1;
            let node = backends("  trafficDistribution: PreferSameNode\n", true, seed);
            assert_eq!((node[0], node.len()), (address(1), 5));
            *second.entry(node[1]).or_default() += 1;
        }
        let even = |hosts: &[u8], each| hosts.iter().map(|host| (address(*host), each)).collect();
        assert_eq!(first, even(&[1, 2, 3], 20));
        assert_eq!(second, even(&[2, 3], 30));
    }

    #[test]
    fn where_the_service_says_so_only_endpoints_of_the_clients_node_are_taken() {
        let local = backends("  internalTrafficPolicy: Local\n", true, 0);
        assert_eq!(local, [SocketAddr::from(([10, 0, 0, 1], 8080))]);
    }
}
