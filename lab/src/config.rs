//! The agent's configuration file, as the lab writes it: its own types, so that a mistake in the agent's is seen.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Where policies without a selector are the whole mesh's, unless the configuration names another namespace.
pub const ROOT_NAMESPACE: &str = "weir-system";

/// A whole file.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentConfig {
    /// The node's name.
    pub node: String,
    /// The trust domain.
    pub trust_domain: String,
    /// Where certificates come from, unless from a control plane.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<CaConfig>,
    /// The control plane, from which everything about the mesh comes then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control_plane: Option<ControlPlaneConfig>,
    /// Certificates' lifetime.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificates: Option<CertificatesConfig>,
    /// The cgroup that the programs are attached to.
    pub cgroup: PathBuf,
    /// Where links and maps are pinned.
    pub pin_dir: PathBuf,
    /// The local API.
    pub api: ApiConfig,
    /// The port for Hubble's tools, as it stands in the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hubble: Option<Value>,
    /// The address of its pod, as Kubernetes puts it into the environment.
    #[serde(skip)]
    pub pod_ip: Option<IpAddr>,
    /// Metrics and readiness.
    pub metrics: MetricsConfig,
    /// Where policies without a selector are the whole mesh's; [`ROOT_NAMESPACE`] unless set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root_namespace: Option<String>,
    /// Who may connect to whom: name, namespace and the fields of an Istio AuthorizationPolicy's `spec`, side by side.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub authorization_policies: Vec<Value>,
    /// Who must use mutual TLS: name, namespace and the fields of an Istio PeerAuthentication's `spec`, side by side.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub peer_authentications: Vec<Value>,
    /// How pods of one node reach each other.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub same_node: Option<SameNodeConfig>,
    /// How long the agent's decisions hold in the kernel after its last sign of life, with the unit: `5m`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict_lease: Option<String>,
    /// The cgroup of the kubelet, whose probes reach pods in plaintext.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubelet_cgroup: Option<PathBuf>,
    /// Recorded flows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flows: Option<Value>,
    /// Pods of this node.
    pub pods: Vec<PodConfig>,
    /// Workloads of the mesh.
    pub workloads: Vec<WorkloadConfig>,
    /// Services of the mesh.
    pub services: Vec<ServiceConfig>,
}

/// The control plane.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ControlPlaneConfig {
    /// Its host and port.
    pub address: String,
    /// The roots of its certificate.
    pub roots: PathBuf,
    /// The agent's token.
    pub token: PathBuf,
    /// `istiod`, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Where the kubelet keeps pods' logs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_logs: Option<PathBuf>,
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
    /// The number of a group whose members may ask.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<u32>,
}

/// Metrics and readiness.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MetricsConfig {
    /// Where they are served, in the node's network namespace.
    pub address: SocketAddr,
}

/// How pods of one node reach each other: workload over namespace over mesh.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SameNodeConfig {
    /// Where nothing below says otherwise.
    pub mode: SameNodeMode,
    /// By namespace.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub namespaces: BTreeMap<String, SameNodeMode>,
    /// By uid.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub workloads: BTreeMap<String, SameNodeMode>,
}

/// How a connection between two pods of one node travels.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SameNodeMode {
    /// As the agent finds right.
    #[default]
    Auto,
    /// Straight from socket to socket, decided in the kernel.
    Direct,
    /// Through the agent, in mutual TLS, as between nodes.
    Mtls,
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
    /// Ports that the kubelet's probes ask.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub probe_ports: Vec<u16>,
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
    /// Its zone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
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
    /// Which endpoints are taken first: `PreferSameNode` or `PreferSameZone`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic_distribution: Option<String>,
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

// === impl AgentConfig ===

impl AgentConfig {
    /// Requires mutual TLS in the whole mesh: a PeerAuthentication in the root namespace without a selector is
    /// everybody's.
    pub fn strict(&mut self) {
        self.strict_namespace(ROOT_NAMESPACE);
    }

    /// Requires mutual TLS of every workload of a namespace.
    pub fn strict_namespace(&mut self, namespace: &str) {
        self.peer_authentication("default", namespace, None, "STRICT");
    }

    /// Requires mutual TLS of the workloads of a namespace whose label `app` is this: pods of the lab have their name.
    pub fn strict_workload(&mut self, namespace: &str, app: &str) {
        self.peer_authentication(app, namespace, Some(app), "STRICT");
    }

    /// Adds a PeerAuthentication with this mode (`STRICT`, `PERMISSIVE`, `DISABLE`, `UNSET`), for the workloads of the
    /// namespace with this label `app`, or for all of them.
    pub fn peer_authentication(&mut self, name: &str, namespace: &str, app: Option<&str>, mode: &str) {
        let mut policy = json!({ "name": name, "namespace": namespace, "mtls": { "mode": mode } });
        if let Some(app) = app {
            policy["selector"] = json!({ "matchLabels": { "app": app } });
        }
        self.peer_authentications.push(policy);
    }

    /// Takes everything about the mesh from a control plane.
    pub fn follow(&mut self, control_plane: ControlPlaneConfig) {
        self.control_plane = Some(control_plane);
        self.ca = None;
        self.pods.clear();
        self.workloads.clear();
        self.services.clear();
    }

    /// Sets how pods of this node reach each other, whatever their namespace.
    pub fn same_node(&mut self, mode: SameNodeMode) {
        self.same_node = Some(SameNodeConfig {
            mode,
            ..SameNodeConfig::default()
        });
    }
}

// === impl ServiceConfig ===

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
            traffic_distribution: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> AgentConfig {
        AgentConfig {
            node: "node1".to_owned(),
            trust_domain: "cluster.local".to_owned(),
            ca: Some(CaConfig::Dir { dir: "/ca".into() }),
            control_plane: None,
            certificates: None,
            cgroup: "/sys/fs/cgroup/node1".into(),
            pin_dir: "/sys/fs/bpf/node1".into(),
            api: ApiConfig {
                socket: "/run/node1.sock".into(),
                group: None,
            },
            hubble: None,
            pod_ip: None,
            metrics: MetricsConfig {
                address: ([127, 0, 0, 1], 15020).into(),
            },
            root_namespace: None,
            authorization_policies: Vec::new(),
            peer_authentications: Vec::new(),
            same_node: None,
            verdict_lease: None,
            kubelet_cgroup: None,
            flows: None,
            pods: Vec::new(),
            workloads: Vec::new(),
            services: Vec::new(),
        }
    }

    #[test]
    fn what_is_not_set_is_not_in_the_file() {
        let text = serde_saphyr::to_string(&config()).unwrap();
        let file: BTreeMap<String, Value> = serde_saphyr::from_str(&text).unwrap();
        let names: Vec<_> = file.keys().map(String::as_str).collect();
        let always = [
            "api",
            "ca",
            "cgroup",
            "metrics",
            "node",
            "pinDir",
            "pods",
            "services",
            "trustDomain",
            "workloads",
        ];
        assert_eq!(names, always);
    }

    #[test]
    fn policies_reach_the_file_as_they_are() {
        let mut config = config();
        config.strict();
        config.strict_workload("shop", "web");
        config.same_node(SameNodeMode::Direct);
        let ports = json!({
            "name": "p1", "namespace": "shop", "action": "ALLOW",
            "rules": [{ "to": [{ "operation": { "ports": ["80"] } }] }],
        });
        config.authorization_policies.push(ports);
        let text = serde_saphyr::to_string(&config).unwrap();
        let file: Value = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(
            file["peerAuthentications"],
            json!([
                { "name": "default", "namespace": "weir-system", "mtls": { "mode": "STRICT" } },
                {
                    "name": "web", "namespace": "shop", "mtls": { "mode": "STRICT" },
                    "selector": { "matchLabels": { "app": "web" } },
                },
            ])
        );
        assert_eq!(
            file["authorizationPolicies"],
            Value::from(config.authorization_policies.clone()),
            "a port stays a text: {text}"
        );
        assert_eq!(file["sameNode"], json!({ "mode": "direct" }));
        let back: AgentConfig = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(back.peer_authentications, config.peer_authentications);
    }
}
