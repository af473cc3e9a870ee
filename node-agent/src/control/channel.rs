//! The connection to the control plane.

use std::path::{Path, PathBuf};

use tonic::{Request, transport::Channel};
use weir_control_client::{Address, Connection, ControlError};
use weir_proto::ResourceType;

use super::local::LocalPods;
use crate::config::{ControlPlaneConfig, ControlPlaneKind};

/// Where the control plane is, and which of them it is.
#[derive(Debug, Clone)]
pub struct ControlPlane {
    connection: Connection,
    cluster: String,
    kind: ControlPlaneKind,
    pod_logs: PathBuf,
}

// === impl ControlPlane ===

impl ControlPlane {
    /// The control plane of a configuration. Connects when it is first used, and again whenever the connection was lost; the
    /// roots are read each time. Needs a runtime.
    #[must_use]
    pub fn new(config: &ControlPlaneConfig) -> Self {
        let (address, roots, token) = (&config.address.value, &config.roots, &config.token);
        Self {
            connection: Connection::new(address.clone(), roots.clone(), token.clone()),
            cluster: config.cluster.clone(),
            kind: config.kind,
            pod_logs: config.pod_logs.clone(),
        }
    }

    /// Where it is.
    #[must_use]
    pub fn address(&self) -> &Address {
        self.connection.address()
    }

    /// The file with the roots that its certificate must chain to.
    #[must_use]
    pub fn roots(&self) -> &Path {
        self.connection.roots()
    }

    /// The connection, for what has nothing to do with the mesh.
    #[must_use]
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// The types of resources that it serves.
    pub(super) fn kinds(&self) -> &'static [ResourceType] {
        match self.kind {
            ControlPlaneKind::Weir => &ResourceType::ALL,
            ControlPlaneKind::Istiod => &[ResourceType::Address, ResourceType::Authorization],
        }
    }

    /// The type that there is least of.
    pub(super) fn least(&self) -> ResourceType {
        match self.kind {
            ControlPlaneKind::Weir => ResourceType::Revocations,
            ControlPlaneKind::Istiod => ResourceType::Authorization,
        }
    }

    /// What finds the pods of this node, if the control plane does not say which they are.
    pub(super) fn local_pods(&self) -> Option<LocalPods> {
        match self.kind {
            ControlPlaneKind::Weir => None,
            ControlPlaneKind::Istiod => Some(LocalPods::new(&self.pod_logs)),
        }
    }

    /// Whether it takes reports of what is enrolled, and writes them to the cluster.
    #[must_use]
    pub fn takes_reports(&self) -> bool {
        self.kind == ControlPlaneKind::Weir
    }

    pub(super) fn channel(&self) -> Channel {
        self.connection.channel()
    }

    /// A request that shows who the agent is.
    pub(super) async fn request<T>(&self, message: T) -> Result<Request<T>, ControlError> {
        let mut request = self.connection.request(message).await?;
        if let Ok(cluster) = self.cluster.parse() {
            request.metadata_mut().insert("clusterid", cluster);
        }
        Ok(request)
    }
}
