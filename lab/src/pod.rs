//! A pod of a lab, and what it shall be.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use crate::{
    Place, Spawn,
    config::{PodConfig, TunnelProtocol, WorkloadConfig},
    topology,
};

/// A pod.
#[derive(Debug, Clone)]
pub struct Pod {
    pub(crate) spec: PodSpec,
    pub(crate) host: u8,
    pub(crate) node: u8,
    pub(crate) place: Place,
}

/// What a pod shall be.
#[derive(Debug, Clone)]
pub struct PodSpec {
    /// Its node's name.
    pub node: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its service account; its name unless set.
    pub service_account: String,
    /// Its labels; `app: <name>` unless set.
    pub labels: BTreeMap<String, String>,
    /// Its zone; none unless set.
    pub zone: Option<String>,
    /// Ports that the kubelet's probes ask; none unless set.
    pub probe_ports: Vec<u16>,
    /// Whether it is in the agents' configuration at all.
    pub in_mesh: bool,
    /// The last byte of its addresses; the next free one unless set.
    pub host: Option<u8>,
}

// === impl Pod ===

impl Pod {
    /// Its uid: `<namespace>-<name>`.
    #[must_use]
    pub fn uid(&self) -> String {
        self.spec.uid()
    }

    /// What it was made from.
    #[must_use]
    pub fn spec(&self) -> &PodSpec {
        &self.spec
    }

    /// Its IPv4 address.
    #[must_use]
    pub fn v4(&self) -> Ipv4Addr {
        topology::pod_v4(self.node, self.host)
    }

    /// Its IPv6 address.
    #[must_use]
    pub fn v6(&self) -> Ipv6Addr {
        topology::pod_v6(self.node, self.host)
    }

    /// The node's end of its cable.
    #[must_use]
    pub fn port(&self) -> String {
        format!("v{}", self.host)
    }

    /// Its entry among the local pods.
    #[must_use]
    pub fn config(&self) -> PodConfig {
        PodConfig {
            uid: self.uid(),
            namespace: self.spec.namespace.clone(),
            service_account: self.spec.service_account.clone(),
            netns: self.place.netns_path(),
            probe_ports: self.spec.probe_ports.clone(),
        }
    }

    /// Its entry among the workloads.
    #[must_use]
    pub fn workload(&self) -> WorkloadConfig {
        WorkloadConfig {
            uid: self.uid(),
            name: self.spec.name.clone(),
            namespace: self.spec.namespace.clone(),
            service_account: self.spec.service_account.clone(),
            addresses: vec![IpAddr::V4(self.v4()), IpAddr::V6(self.v6())],
            node: self.spec.node.clone(),
            zone: self.spec.zone.clone(),
            labels: self.spec.labels.clone(),
            tunnel: TunnelProtocol::Hbone,
        }
    }
}

impl Spawn for Pod {
    fn place(&self) -> &Place {
        &self.place
    }
}

// === impl PodSpec ===

impl PodSpec {
    /// A pod of the mesh with a service account of its own name.
    #[must_use]
    pub fn new(node: &str, namespace: &str, name: &str) -> Self {
        Self {
            node: node.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            service_account: name.to_owned(),
            labels: BTreeMap::from([("app".to_owned(), name.to_owned())]),
            zone: None,
            probe_ports: Vec::new(),
            in_mesh: true,
            host: None,
        }
    }

    /// With this service account.
    #[must_use]
    pub fn service_account(mut self, name: &str) -> Self {
        name.clone_into(&mut self.service_account);
        self
    }

    /// With this label, besides or instead of `app: <name>`.
    #[must_use]
    pub fn label(mut self, name: &str, value: &str) -> Self {
        self.labels.insert(name.to_owned(), value.to_owned());
        self
    }

    /// In this zone.
    #[must_use]
    pub fn zone(mut self, zone: &str) -> Self {
        self.zone = Some(zone.to_owned());
        self
    }

    /// With this among the ports that the kubelet's probes ask.
    #[must_use]
    pub fn probe_port(mut self, port: u16) -> Self {
        self.probe_ports.push(port);
        self
    }

    /// Not in the agents' configuration.
    #[must_use]
    pub fn outside_mesh(mut self) -> Self {
        self.in_mesh = false;
        self
    }

    /// With this last byte of its addresses.
    #[must_use]
    pub fn host(mut self, host: u8) -> Self {
        self.host = Some(host);
        self
    }

    pub(crate) fn uid(&self) -> String {
        format!("{}-{}", self.namespace, self.name)
    }
}
