//! A cluster, by the user's kubeconfig.

mod agents;
mod place;

use std::{sync::Arc, time::Duration};

use kube::{
    Client,
    config::{KubeConfigOptions, Kubeconfig},
};
use tokio::{sync::Semaphore, time::timeout};

use crate::{agent::Unreachable, target::Options};

pub(crate) use agents::{AgentPod, Agents, one_a_node, problem, waiting};

/// How long a connection to the API server may take: it is on the other side of a VPN sometimes.
const CONNECT: Duration = Duration::from_secs(5);
/// How long the API server may take for an answer.
const ANSWER: Duration = Duration::from_secs(15);
/// Port-forwards that are being opened at once. Each costs the API server and a kubelet a connection and a process or
/// task; those that are open cost next to nothing.
const OPENING: usize = 16;

/// A cluster.
#[derive(Clone)]
pub(crate) struct Cluster {
    pub(crate) client: Client,
    /// Where Weir is installed.
    pub(crate) namespace: String,
    /// What its owner calls it, for people.
    pub(crate) name: String,
    opening: Arc<Semaphore>,
}

impl Cluster {
    /// Reads the kubeconfig. Nothing is sent yet.
    ///
    /// # Errors
    /// A kubeconfig that cannot be used.
    pub(crate) async fn new(options: &Options) -> Result<Self, Unreachable> {
        // Another crate may have chosen one already.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let unusable = |why: &dyn std::fmt::Display| {
            Unreachable::Cluster(format!(
                "the kubeconfig cannot be used: {why} (--kubeconfig and --context name another; --socket asks the \
                 agent of this node)"
            ))
        };
        let wanted = KubeConfigOptions {
            context: options.context.clone(),
            ..KubeConfigOptions::default()
        };
        let read = match &options.kubeconfig {
            Some(path) => Kubeconfig::read_from(path),
            None => Kubeconfig::read(),
        };
        let (mut config, name) = match read {
            Ok(kubeconfig) => {
                let context = wanted
                    .context
                    .clone()
                    .or_else(|| kubeconfig.current_context.clone());
                let config = kube::Config::from_custom_kubeconfig(kubeconfig, &wanted).await;
                (config.map_err(|why| unusable(&why))?, context.unwrap_or_default())
            }
            // In a pod, its service account's.
            Err(why) => match kube::Config::incluster() {
                Ok(config) if options.kubeconfig.is_none() && options.context.is_none() => {
                    (config, "the cluster of this pod".to_owned())
                }
                _ => return Err(unusable(&why)),
            },
        };
        config.connect_timeout = Some(CONNECT);
        // It would end port-forwards that are quiet. Answers have their own.
        config.read_timeout = None;
        config.write_timeout = None;
        Ok(Self {
            client: Client::try_from(config).map_err(|why| unusable(&why))?,
            namespace: options.weir_namespace.clone(),
            name,
            opening: Arc::new(Semaphore::new(OPENING)),
        })
    }

    /// That the API server did not answer, by the name of the cluster, or its refusal.
    pub(crate) fn unreachable(&self, why: ApiError) -> anyhow::Error {
        if why.is_answer() {
            return why.into();
        }
        Unreachable::Cluster(format!("cluster {}: {why}", self.name)).into()
    }

    /// Waits for an answer of the API server, for as long as it may take.
    ///
    /// # Errors
    /// That it does not answer, or its refusal.
    pub(crate) async fn answer<T>(
        &self,
        asking: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, ApiError> {
        match timeout(ANSWER, asking).await {
            Ok(answer) => answer.map_err(ApiError::Kube),
            Err(_) => Err(ApiError::Silent),
        }
    }
}

/// The API server did not answer, or refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    /// Too late.
    #[error("the API server said nothing for {ANSWER:?}")]
    Silent,
    /// Its own words, or why there are none.
    #[error("{}", text(.0))]
    Kube(kube::Error),
}

impl ApiError {
    /// Whether there is no such object, or no such kind.
    pub(crate) fn is_absent(&self) -> bool {
        matches!(self, Self::Kube(kube::Error::Api(status)) if status.code == 404)
    }

    /// Whether the object is no more as it was when it was read.
    pub(crate) fn is_conflict(&self) -> bool {
        matches!(self, Self::Kube(kube::Error::Api(status)) if status.code == 409)
    }

    /// Whether a patch with a UID met another object of the name: the UID is a field that cannot be changed.
    pub(crate) fn names_another(&self) -> bool {
        let Self::Kube(kube::Error::Api(status)) = self else {
            return false;
        };
        let mut causes = status.details.iter().flat_map(|details| &details.causes);
        status.code == 422 && causes.any(|cause| cause.field == "metadata.uid")
    }

    /// Whether the API server has answered at all.
    pub(crate) fn is_answer(&self) -> bool {
        matches!(self, Self::Kube(kube::Error::Api(_)))
    }
}

/// What went wrong, without the layers that it went through.
fn text(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        kube::Error::UpgradeConnection(kube::client::UpgradeConnectionError::ProtocolSwitch(code)) => {
            match code.as_u16() {
                401 | 403 => {
                    "the API server does not let you forward ports of it (pods/portforward)".to_owned()
                }
                404 => "the pod is gone".to_owned(),
                _ => format!("the API server did not forward its port: {code}"),
            }
        }
        kube::Error::Service(why) => {
            // The layers say nothing that the innermost does not say better.
            let mut inner: &dyn std::error::Error = why.as_ref();
            while let Some(source) = inner.source() {
                inner = source;
            }
            format!("the API server cannot be reached: {inner}")
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use kube::{
        Api,
        api::{Patch, PatchParams},
    };
    use serde_json::json;
    use weir_api_server::TestCluster;

    use super::*;

    #[tokio::test]
    async fn a_patch_of_a_pod_made_anew_is_told_from_what_else_is_refused() {
        let cluster = TestCluster::new().await;
        let namespace = cluster.namespace("anew").await;
        let pods = Api::<Pod>::namespaced(cluster.client(), &namespace);
        cluster.pod(&namespace, "web").create().await;
        let refused = async |patch| {
            let params = PatchParams::default();
            ApiError::Kube(
                pods.patch("web", &params, &Patch::Merge(patch))
                    .await
                    .unwrap_err(),
            )
        };
        assert!(
            refused(json!({"metadata": {"uid": "of-another"}}))
                .await
                .names_another()
        );
        assert!(
            !refused(json!({"metadata": {"resourceVersion": "1"}}))
                .await
                .names_another()
        );
    }
}
