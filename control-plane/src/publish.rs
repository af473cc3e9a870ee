//! The roots that the control plane's own port is known by, for agents to mount: a ConfigMap of their namespace.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client,
    api::{ObjectMeta, Patch, PatchParams},
};
use tokio::sync::watch;

use crate::ca::InForce;

/// The ConfigMap's name.
pub const ROOTS: &str = "weir-ca-roots";
/// Its key: PEM.
pub const ROOTS_KEY: &str = "roots.pem";
/// Who writes it.
const MANAGER: &str = "weir-control";
/// It is written again this often: somebody may have changed it.
const AGAIN: Duration = Duration::from_secs(300);
/// Wait after a failure.
const RETRY: Duration = Duration::from_secs(2);

/// Keeps the ConfigMap as the authority in force says. Any number of replicas write the same. Never ends.
pub async fn roots(client: Client, namespace: String, mut in_force: watch::Receiver<Option<Arc<InForce>>>) {
    let api: Api<ConfigMap> = Api::namespaced(client, &namespace);
    loop {
        let authority = in_force.borrow_and_update().clone();
        let mut wait = AGAIN;
        if let Some(authority) = authority {
            let map = ConfigMap {
                metadata: ObjectMeta {
                    name: Some(ROOTS.to_owned()),
                    ..ObjectMeta::default()
                },
                data: Some(BTreeMap::from([(
                    ROOTS_KEY.to_owned(),
                    authority.roots_pem().to_owned(),
                )])),
                ..ConfigMap::default()
            };
            let params = PatchParams::apply(MANAGER).force();
            if let Err(error) = api.patch(ROOTS, &params, &Patch::Apply(map)).await {
                tracing::warn!(%error, namespace, "the ConfigMap {ROOTS} cannot be written; trying again");
                wait = RETRY;
            }
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            changed = in_force.changed() => {
                if changed.is_err() {
                    return;
                }
            }
        }
    }
}
