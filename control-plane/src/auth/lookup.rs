//! Where agents' pods are looked up.

use k8s_openapi::api::{apps::v1::DaemonSet, core::v1::Pod};
use kube::{Api, Client};

use super::pod::AgentPod;

/// The API server cannot be asked, or refuses.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct LookupError(#[from] pub Box<dyn std::error::Error + Send + Sync>);

/// Knows the agents' pods.
///
/// A watcher's store may answer. It lags, so for a pod that it does not know, or knows under another UID, it has to ask
/// the API server before it says so: an agent connects within a second of its pod's start.
#[tonic::async_trait]
pub trait AgentPods: Send + Sync + 'static {
    /// The pod of this name; `None` if there is none.
    async fn pod(&self, namespace: &str, name: &str) -> Result<Option<AgentPod>, LookupError>;

    /// The UID of the DaemonSet of this name; `None` if it is not known.
    async fn daemon_set_uid(&self, namespace: &str, name: &str) -> Result<Option<String>, LookupError>;
}

/// Asks the API server each time. Needs `get` on pods and DaemonSets in the agents' namespace.
#[derive(Clone)]
pub struct KubePods(Client);

// === impl KubePods ===

impl KubePods {
    /// Asks through this client.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self(client)
    }
}

#[tonic::async_trait]
impl AgentPods for KubePods {
    async fn pod(&self, namespace: &str, name: &str) -> Result<Option<AgentPod>, LookupError> {
        let pods = Api::<Pod>::namespaced(self.0.clone(), namespace);
        let pod = pods.get_opt(name).await.map_err(lookup)?;
        Ok(pod.as_ref().map(AgentPod::from))
    }

    async fn daemon_set_uid(&self, namespace: &str, name: &str) -> Result<Option<String>, LookupError> {
        let daemon_sets = Api::<DaemonSet>::namespaced(self.0.clone(), namespace);
        let daemon_set = daemon_sets.get_metadata_opt(name).await.map_err(lookup)?;
        Ok(daemon_set.and_then(|daemon_set| daemon_set.metadata.uid))
    }
}

fn lookup(error: kube::Error) -> LookupError {
    LookupError(Box::new(error))
}
