//! The agent's configuration file, as the lab writes it: its own types, so that a mistake in the agent's is seen.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

/// A whole file.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentConfig {
    /// The node's name.
    pub node: String,
    /// The trust domain.
    pub trust_domain: String,
    /// Where certificates come from.
    pub ca: CaConfig,
    /// Certificates' lifetime.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificates: Option<CertificatesConfig>,
    /// The cgroup that the programs are attached to.
    pub cgroup: PathBuf,
    /// Where links and maps are pinned.
    pub pin_dir: PathBuf,
    /// The local API.
    pub api: ApiConfig,
    /// Metrics and readiness.
    pub metrics: MetricsConfig,
    /// Who must use mutual TLS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtls: Option<MtlsConfig>,
    /// Pods of this node.
    pub pods: Vec<PodConfig>,
    /// Workloads of the mesh.
    pub workloads: Vec<WorkloadConfig>,
    /// Services of the mesh.
    pub services: Vec<ServiceConfig>,
}

/// Where certificates come from.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", untagged)]
pub enum CaConfig {
    /// A folder that the first agent fills.
    Dir {
        /// The folder.
        dir: PathBuf,
    },
    /// Files that are there.
    Files {
        /// The signing certificate.
        certificate: PathBuf,
        /// Its key.
        key: PathBuf,
        /// Trusted roots.
        roots: Vec<PathBuf>,
    },
}

/// Certificates' lifetime.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CertificatesConfig {
    /// With its unit: `24h`.
    pub lifetime: String,
}

/// The local API.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ApiConfig {
    /// Its Unix socket.
    pub socket: PathBuf,
}

/// Metrics and readiness.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MetricsConfig {
    /// Where they are served, in the node's network namespace.
    pub address: SocketAddr,
}

/// Who must use mutual TLS: workload over namespace over mesh.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MtlsConfig {
    /// The mesh's.
    pub mode: Mode,
    /// By namespace.
    pub namespaces: BTreeMap<String, Mode>,
    /// By uid.
    pub workloads: BTreeMap<String, Mode>,
}

/// Whether plaintext is accepted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Mode {
    /// It is not.
    Strict,
    /// It is.
    #[default]
    Permissive,
}

/// A pod of this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodConfig {
    /// Its uid.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its service account.
    pub service_account: String,
    /// Path of its network namespace.
    pub netns: PathBuf,
}

/// A workload of the mesh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadConfig {
    /// Its uid.
    pub uid: String,
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its service account.
    pub service_account: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its node.
    pub node: String,
    /// Its labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// How it is reached.
    #[serde(default)]
    pub tunnel: TunnelProtocol,
}

/// How a workload is reached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum TunnelProtocol {
    /// By HTTP/2 CONNECT over mutual TLS.
    #[default]
    Hbone,
    /// In plaintext: it is not in the mesh.
    None,
}

/// A service of the mesh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceConfig {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its ports.
    pub ports: Vec<PortConfig>,
    /// The workloads that serve it.
    pub endpoints: Vec<EndpointConfig>,
    /// Further identities that may serve it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subject_alt_names: Vec<String>,
}

/// A port of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortConfig {
    /// The service's.
    pub port: u16,
    /// The workload's.
    pub target_port: u16,
}

/// A workload that serves a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointConfig {
    /// Its uid.
    pub workload: String,
}

impl ServiceConfig {
    /// A service with one port and these endpoints.
    #[must_use]
    pub fn new(
        namespace: &str,
        name: &str,
        addresses: impl IntoIterator<Item = IpAddr>,
        (port, target_port): (u16, u16),
        endpoints: impl IntoIterator<Item = String>,
    ) -> Self {
        Self {
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            addresses: addresses.into_iter().collect(),
            ports: vec![PortConfig { port, target_port }],
            endpoints: endpoints
                .into_iter()
                .map(|workload| EndpointConfig { workload })
                .collect(),
            subject_alt_names: Vec::new(),
        }
    }
}
