//! What of Kubernetes' objects matters here, parsed once: everything else is dropped as soon as it arrives.

pub mod parse;
pub mod pod;

use std::{collections::BTreeMap, fmt, net::IpAddr, sync::Arc};

use ipnet::IpNet;
use weir_policy::{AuthorizationPolicy, PeerAuthentication, Selector};

pub use pod::{NotEnrolled, Switch, live_switch};

/// An object's namespace and name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectName {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

/// A pod that has a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// Kubernetes' UID: another pod of the same name has another.
    pub uid: Arc<str>,
    /// When it was made, seconds since 1970: the older of two that claim an address has it.
    pub created: i64,
    /// Its node.
    pub node: Arc<str>,
    /// Its service account.
    pub service_account: Arc<str>,
    /// Its addresses, as its status claims them.
    pub addresses: Vec<IpAddr>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its own switch, if it has one.
    pub switch: Option<Switch>,
    /// Whether it can be enrolled at all.
    pub unfit: Option<NotEnrolled>,
    /// Whether it shares its node's network.
    pub host_network: bool,
    /// Whether its agent has said that it is enrolled.
    pub enrolled: bool,
    /// The TCP ports that the kubelet probes.
    pub probe_ports: Vec<u16>,
    /// What made it: kind and name.
    pub owner: Option<Owner>,
}

/// What made a pod, as operators know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// Its kind: a Deployment where a ReplicaSet stands between.
    pub kind: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

/// A service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Addresses that the API server gave it. None for a headless one.
    pub addresses: Vec<IpAddr>,
    /// Its TCP ports.
    pub ports: Vec<ServicePort>,
    /// Which endpoints are preferred.
    pub preference: Preference,
}

/// A TCP port of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name, by which endpoints refer to it; empty if it is the only one.
    pub name: Arc<str>,
    /// The port that clients use.
    pub port: u16,
    /// The endpoints' port, if it is the same for all.
    pub target: Option<u16>,
    /// What is spoken there (`appProtocol`).
    pub protocol: Option<Arc<str>>,
}

/// Which of a service's endpoints are taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Preference {
    /// All alike.
    #[default]
    None,
    /// Those of the client's zone first (`trafficDistribution: PreferClose` or `PreferSameZone`).
    Zone,
    /// Those of the client's node first (`trafficDistribution: PreferSameNode`).
    Node,
    /// Those of the client's node only (`internalTrafficPolicy: Local`).
    OnlyNode,
}

/// Some endpoints of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointSlice {
    /// The service's name, in the slice's own namespace.
    pub service: Arc<str>,
    /// Ports by the name of the service's port; TCP ones.
    pub ports: Vec<(Arc<str>, u16)>,
    /// Who serves.
    pub endpoints: Vec<Endpoint>,
}

/// One endpoint of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The pod, by its name in the slice's own namespace.
    pub pod: Option<Arc<str>>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether it takes connections.
    pub ready: bool,
    /// Whether it still answers while it ends: taken where no endpoint is ready.
    pub serving: bool,
}

/// A namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Namespace {
    /// Its switch.
    pub switch: Option<Switch>,
    /// What it says of the whole mesh, if it is the root namespace.
    pub mesh_default: Option<Switch>,
}

/// A node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Node {
    /// Its region (`topology.kubernetes.io/region`).
    pub region: Arc<str>,
    /// Its zone (`topology.kubernetes.io/zone`).
    pub zone: Arc<str>,
    /// The ranges of its pods' addresses; empty where the cluster's network does not say.
    pub ranges: Vec<IpNet>,
}

/// The API that a policy was written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PolicyApi {
    /// `weir.dev`.
    Weir,
    /// `security.istio.io`.
    Istio,
}

/// A policy as it was read, or what can be said of one that cannot be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Read<T> {
    /// It was understood.
    Understood(T),
    /// It was not: what it concerns, as far as that was understood, and why.
    Malformed {
        /// Whom it concerns, if not all of its namespace.
        selector: Option<Selector>,
        /// Whether it is understood to be only rehearsed.
        dry_run: bool,
        /// The field, and what is wrong.
        problem: String,
    },
}

/// An object that is there now, or is no more.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A pod that has a node.
    Pod(ObjectName, Option<Box<Pod>>),
    /// A service.
    Service(ObjectName, Option<Service>),
    /// Endpoints.
    EndpointSlice(ObjectName, Option<EndpointSlice>),
    /// A namespace.
    Namespace(Arc<str>, Option<Namespace>),
    /// A node.
    Node(Arc<str>, Option<Node>),
    /// A service account, and whether it is there.
    ServiceAccount(ObjectName, bool),
    /// An AuthorizationPolicy.
    AuthorizationPolicy(PolicyApi, ObjectName, Option<Box<Read<AuthorizationPolicy>>>),
    /// A PeerAuthentication, with when it was made, seconds since 1970: of several of one scope the oldest counts.
    PeerAuthentication(PolicyApi, ObjectName, Option<(i64, Read<PeerAuthentication>)>),
}

// === impl ObjectName ===

impl ObjectName {
    /// A name in a namespace.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}
