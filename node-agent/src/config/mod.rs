//! The configuration file: its types, documented where they stand; the JSON schema is generated from them.

mod api;
mod cni;
mod flows;
mod hubble;
mod otlp;
mod parse;
mod source;
mod text;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_saphyr::Spanned;
use weir_policy::istio::{AuthorizationPolicy, PeerAuthentication};
use weir_types::TrustDomain;

use crate::{control::Address, kubelet::KubeletCgroup};

pub use api::ApiConfig;
pub use cni::CniConfig;
pub use flows::{AccessLogConfig, AccessLogMode, ExportConfig, ExportFormat, FlowsConfig, LogFormat};
pub use hubble::{HubbleClient, HubbleConfig, HubbleFiles};
pub use otlp::{OtlpConfig, OtlpEndpoint, header as otlp_header};
pub use parse::{ConfigError, parse};
pub use text::HumanDuration;

/// Where a configuration comes from: a file, and what differs from node to node where all nodes share the file.
#[derive(Debug, Clone, Default)]
pub struct Source {
    /// The file.
    pub file: PathBuf,
    /// The node's name, in place of the file's.
    pub node: Option<String>,
    /// The folder of the cgroup, in place of the file's.
    pub cgroup: Option<PathBuf>,
}

/// The configuration of a node's agent.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(title = "weir-agent configuration")]
pub struct ConfigFile {
    /// Name of this node, as `workloads[].node` uses it. `--node` goes before it.
    #[serde(default = "defaults::node")]
    #[schemars(with = "String")]
    pub node: Spanned<String>,
    /// Trust domain of the mesh, the first part of every identity: `spiffe://<trustDomain>/ns/<namespace>/sa/<account>`.
    pub trust_domain: TrustDomain,
    /// Other trust domains whose identities are accepted from peers whose certificates chain to a trusted root.
    #[serde(default)]
    pub trust_domain_aliases: Vec<TrustDomain>,
    /// Who signs the workloads' certificates, unless a control plane does. Re-read when its files change.
    #[serde(default)]
    #[schemars(with = "Option<CaConfig>")]
    pub ca: Option<Spanned<CaConfig>>,
    /// The control plane. With one, workloads, services, policies and this node's pods come from it, and the file has none.
    /// Fixed at start.
    #[serde(default)]
    #[schemars(with = "Option<ControlPlaneConfig>")]
    pub control_plane: Option<Spanned<ControlPlaneConfig>>,
    /// The CNI plugin, by which pods that start wait until they are enrolled; off if absent. Only with `controlPlane`. Fixed at
    /// start.
    #[serde(default)]
    #[schemars(with = "Option<CniConfig>")]
    pub cni: Option<Spanned<CniConfig>>,
    /// The workloads' certificates.
    #[serde(default)]
    pub certificates: CertificatesConfig,
    /// Folder of the cgroup v2 tree whose processes are seen: the node's. The root of the mount if absent. Fixed at start.
    #[serde(default)]
    pub cgroup: Option<PathBuf>,
    /// Folder on a bpffs mount for pinned maps and links, made if missing. Fixed at start.
    #[serde(default = "defaults::pin_dir")]
    pub pin_dir: PathBuf,
    /// The local API that the `weir` command uses. Fixed at start.
    #[serde(default)]
    pub api: ApiConfig,
    /// The port by which relays and Hubble's tools ask for flows; off if absent. Fixed at start, but for the files that it names.
    #[serde(default)]
    #[schemars(with = "Option<HubbleConfig>")]
    pub hubble: Option<Spanned<HubbleConfig>>,
    /// Metrics and readiness over HTTP. Fixed at start.
    #[serde(default)]
    pub metrics: MetricsConfig,
    /// Recorded flows. Fixed at start.
    #[serde(default = "defaults::flows")]
    #[schemars(with = "FlowsConfig")]
    pub flows: Spanned<FlowsConfig>,
    /// Threads that carry connections; half of the node's processors if absent, at least one. Fixed at start.
    #[serde(default)]
    pub worker_threads: Option<std::num::NonZeroU16>,
    /// How long what the kernel remembers of the agent's decisions holds after the agent's last sign of life, `5s` to `1h`:
    /// an agent that is gone lets nothing pass for longer than that. Fixed at start.
    #[serde(default = "defaults::verdict_lease")]
    #[schemars(with = "HumanDuration")]
    pub verdict_lease: Spanned<HumanDuration>,
    /// Folder of the cgroup that the kubelet itself is in, as `/sys/fs/cgroup/system.slice/kubelet.service`, or `auto`, to find
    /// it by its process: its probes reach STRICT pods. Fixed at start.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub kubelet_cgroup: Option<KubeletCgroup>,
    /// Namespace whose policies without a selector are the mesh's.
    #[serde(default = "defaults::root_namespace")]
    pub root_namespace: String,
    /// Who may connect to what: Istio's `AuthorizationPolicy`, with the fields of its `spec` beside its name.
    #[serde(default)]
    #[schemars(with = "Vec<AuthorizationPolicy>")]
    pub authorization_policies: Vec<Spanned<AuthorizationPolicy>>,
    /// Who must use mutual TLS: Istio's `PeerAuthentication`, with the fields of its `spec` beside its name.
    #[serde(default)]
    #[schemars(with = "Vec<PeerAuthentication>")]
    pub peer_authentications: Vec<Spanned<PeerAuthentication>>,
    /// How pods of this node reach each other. Workload over namespace over mesh.
    #[serde(default = "defaults::same_node")]
    #[schemars(with = "SameNodeConfig")]
    pub same_node: Spanned<SameNodeConfig>,
    /// The pods of this node that are in the mesh.
    #[serde(default)]
    #[schemars(with = "Vec<PodConfig>")]
    pub pods: Vec<Spanned<PodConfig>>,
    /// All workloads of the mesh, on all nodes.
    #[serde(default)]
    #[schemars(with = "Vec<WorkloadConfig>")]
    pub workloads: Vec<Spanned<WorkloadConfig>>,
    /// All services.
    #[serde(default)]
    #[schemars(with = "Vec<ServiceConfig>")]
    pub services: Vec<Spanned<ServiceConfig>>,
}

/// Who signs: either `dir`, or `certificate` and `key`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CaConfig {
    /// A folder with a CA of its own, made on first start (mode 0700, key 0600). For labs: the agents of a lab share it.
    #[serde(default)]
    pub dir: Option<PathBuf>,
    /// PEM file with the CA's certificate, followed by its chain if it is an intermediate.
    #[serde(default)]
    pub certificate: Option<PathBuf>,
    /// PEM file with the CA's private key, readable by its owner only.
    #[serde(default)]
    pub key: Option<PathBuf>,
    /// PEM files with more roots to trust: those of other CAs, and the old or the new one during a rotation.
    #[serde(default)]
    pub roots: Vec<PathBuf>,
}

/// The control plane: `weir-control`, or istiod.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ControlPlaneConfig {
    /// Host and port of its delta ADS and certificate service.
    #[schemars(with = "String")]
    pub address: Spanned<Address>,
    /// PEM file with the roots that its certificate must chain to. Read at each connection.
    pub roots: PathBuf,
    /// File with the token by which the agent shows who it is: a projected token of its own pod. Read at each call.
    pub token: PathBuf,
    /// The cluster's name, as the control plane knows it.
    #[serde(default = "defaults::cluster")]
    pub cluster: String,
    /// Which of the two it is.
    #[serde(default)]
    pub kind: ControlPlaneKind,
    /// Where the kubelet keeps pods' logs, in a folder `<namespace>_<name>_<uid>` for each: by these the agent finds the pods of
    /// its node that istiod tells of. Only with `kind: istiod`.
    #[serde(default = "defaults::pod_logs")]
    pub pod_logs: PathBuf,
}

/// Who serves as the control plane.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum ControlPlaneKind {
    /// `weir-control`: says which pods of the node are in the mesh, what the kubelet probes, and what is revoked.
    #[default]
    Weir,
    /// istiod: tells of workloads and policies alone. Its pods with HBONE on this node are enrolled; the kubelet may reach every
    /// port of them.
    Istiod,
}

/// The workloads' certificates.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CertificatesConfig {
    /// How long a certificate is valid, from `10s` to `7d`; it is renewed at half of that.
    #[schemars(with = "HumanDuration")]
    pub lifetime: Spanned<HumanDuration>,
}

/// Metrics and readiness.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct MetricsConfig {
    /// Address and port for `/metrics` and `/readyz`.
    pub address: SocketAddr,
}

/// How pods of one node reach each other.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SameNodeConfig {
    /// For the whole mesh.
    pub mode: SameNodeMode,
    /// For namespaces, by name.
    pub namespaces: BTreeMap<String, SameNodeMode>,
    /// For workloads, by uid.
    pub workloads: BTreeMap<String, SameNodeMode>,
}

/// How a pod's connections with other pods of its node go. Of the two ends' modes `mtls` counts first, then `direct`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SameNodeMode {
    /// `direct` where both pods hang on point-to-point links, so that no other pod can read or alter what they send, or where
    /// the destination would accept the connection in plaintext from anybody, so that posing as the client gains nothing;
    /// else `mtls`.
    #[default]
    Auto,
    /// Straight from socket to socket, authenticated by the kernel and not encrypted. Your word that no pod can read or
    /// alter another's packets.
    Direct,
    /// Through the agent, over mutual TLS.
    Mtls,
}

/// A pod of this node.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PodConfig {
    /// Uid of its workload.
    pub uid: String,
    /// Its Kubernetes namespace; the workload's.
    pub namespace: String,
    /// Its service account; the workload's.
    pub service_account: String,
    /// File of its network namespace, as `/run/netns/NAME` or `/proc/PID/ns/net`. May appear later.
    pub netns: PathBuf,
    /// Ports of its own liveness, readiness and startup probes: the kubelet reaches them also where plaintext is refused.
    #[serde(default)]
    pub probe_ports: Vec<std::num::NonZeroU16>,
    /// Only record its connections, and leave them alone. Its workload has `tunnel: NONE` then.
    #[serde(default)]
    pub observe: bool,
}

/// A workload: a pod on any node, or a host outside Kubernetes.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkloadConfig {
    /// Its uid, unique in the file.
    pub uid: String,
    /// Its name; the uid if absent.
    #[serde(default)]
    pub name: Option<String>,
    /// Its Kubernetes namespace.
    pub namespace: String,
    /// Its service account.
    #[serde(default = "defaults::service_account")]
    pub service_account: String,
    /// Its addresses, unique in the file; the first of each IP family counts for a pod of this node.
    pub addresses: Vec<IpAddr>,
    /// Its node.
    #[serde(default)]
    pub node: String,
    /// Its labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Its node's zone (`topology.kubernetes.io/zone`).
    #[serde(default)]
    pub zone: Option<String>,
    /// What it understands.
    #[serde(default)]
    pub tunnel: TunnelProtocol,
}

/// How a workload is reached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum TunnelProtocol {
    /// HTTP/2 CONNECT over mutual TLS on port 15008.
    #[default]
    Hbone,
    /// Plaintext: it is known, but not in the mesh.
    None,
}

/// A service.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceConfig {
    /// Its name.
    pub name: String,
    /// Its Kubernetes namespace.
    pub namespace: String,
    /// Its virtual addresses, unique in the file.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
    /// Its ports. A connection to another port is refused.
    pub ports: Vec<ServicePort>,
    /// Who serves it.
    #[serde(default)]
    #[schemars(with = "Vec<EndpointConfig>")]
    pub endpoints: Vec<Spanned<EndpointConfig>>,
    /// Identities, besides the endpoint's own, that a server of this service may present.
    #[serde(default)]
    pub subject_alt_names: Vec<weir_types::Identity>,
    /// Which endpoints are preferred, as Kubernetes' field of this name says; all alike if absent.
    #[serde(default)]
    pub traffic_distribution: Option<TrafficDistribution>,
    /// Which endpoints are taken at all, as Kubernetes' field of this name says.
    #[serde(default)]
    pub internal_traffic_policy: InternalTrafficPolicy,
}

/// Which of a service's endpoints are taken at all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum InternalTrafficPolicy {
    /// All.
    #[default]
    Cluster,
    /// Those on the client's node; without any the connection is refused.
    Local,
}

/// Which of a service's endpoints get a connection first. The others are there for when none of these serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum TrafficDistribution {
    /// Those on the client's node, then those in its zone.
    PreferSameNode,
    /// Those in the client's zone.
    #[serde(alias = "PreferClose")]
    PreferSameZone,
}

/// A port of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServicePort {
    /// The port that clients use.
    #[schemars(range(min = 1))]
    pub port: std::num::NonZeroU16,
    /// The port of the endpoints; the same if absent.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub target_port: Option<std::num::NonZeroU16>,
}

/// Who serves a service: a workload, or an address outside the mesh.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EndpointConfig {
    /// Uid of a workload.
    #[serde(default)]
    pub workload: Option<String>,
    /// An address that is no workload's.
    #[serde(default)]
    pub address: Option<IpAddr>,
    /// Whether it gets new connections.
    #[serde(default = "defaults::healthy")]
    pub healthy: bool,
}

mod defaults {
    use std::path::PathBuf;

    use serde_saphyr::{Location, Spanned};

    use super::{FlowsConfig, HumanDuration, SameNodeConfig};

    pub(super) fn node() -> Spanned<String> {
        Spanned::new(String::new(), Location::UNKNOWN, Location::UNKNOWN)
    }

    pub(super) fn pin_dir() -> PathBuf {
        PathBuf::from("/sys/fs/bpf/weir")
    }

    pub(super) fn cluster() -> String {
        "Kubernetes".to_owned()
    }

    pub(super) fn pod_logs() -> PathBuf {
        PathBuf::from("/var/log/pods")
    }

    pub(super) fn service_account() -> String {
        "default".to_owned()
    }

    pub(super) fn flows() -> Spanned<FlowsConfig> {
        nowhere(FlowsConfig::default())
    }

    pub(super) fn same_node() -> Spanned<SameNodeConfig> {
        nowhere(SameNodeConfig::default())
    }

    pub(super) fn verdict_lease() -> Spanned<HumanDuration> {
        nowhere(HumanDuration(std::time::Duration::from_secs(300)))
    }

    pub(super) fn root_namespace() -> String {
        "weir-system".to_owned()
    }

    pub(super) fn nowhere<T>(value: T) -> Spanned<T> {
        Spanned::new(value, Location::UNKNOWN, Location::UNKNOWN)
    }

    pub(super) fn healthy() -> bool {
        true
    }
}

impl Default for CertificatesConfig {
    fn default() -> Self {
        let day = HumanDuration(Duration::from_secs(24 * 3600));
        Self {
            lifetime: defaults::nowhere(day),
        }
    }
}

impl Default for MetricsConfig {
    fn default() -> Self {
        Self {
            address: SocketAddr::from(([127, 0, 0, 1], 15020)),
        }
    }
}

impl SameNodeConfig {
    /// The mode of a workload: its own, else its namespace's, else the mesh's.
    #[must_use]
    pub fn mode(&self, uid: &str, namespace: &str) -> SameNodeMode {
        let own = self.workloads.get(uid).or_else(|| self.namespaces.get(namespace));
        own.copied().unwrap_or(self.mode)
    }
}

/// The JSON schema of the file.
#[must_use]
pub fn schema() -> serde_json::Value {
    schemars::schema_for!(ConfigFile).to_value()
}
