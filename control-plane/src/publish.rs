//! What the authority has to say to all agents: the roots that the control plane's own port is known by, a ConfigMap of their
//! namespace for them to mount, and what is revoked.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client,
    api::{ObjectMeta, Patch, PatchParams},
};
use tokio::sync::watch;

use weir_proto::{REVOCATIONS, ResourceType, weir::node::v1::Revocations};

use crate::{
    ads::{Change, Resource, Store},
    ca::{InForce, RevocationLists},
};

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

/// Keeps what is revoked in the store, as the authority's newest lists say it. Nothing is there while nothing is revoked. Never
/// ends.
pub async fn revocations(
    store: Arc<Store>,
    mut in_force: watch::Receiver<Option<Arc<InForce>>>,
    mut lists: watch::Receiver<RevocationLists>,
) {
    loop {
        let signed = lists.borrow_and_update().clone();
        let authority = in_force.borrow_and_update().clone();
        let revoked = authority
            .as_deref()
            .map(InForce::revoked)
            .filter(|revoked| !(revoked.serials.is_empty() && revoked.identities.is_empty()));
        let change = match revoked {
            Some(revoked) => {
                let identities = revoked.identities.iter().map(|entry| entry.identity.to_string());
                let message = Revocations {
                    lists: signed.iter().map(|list| list.to_vec().into()).collect(),
                    identities: identities.collect(),
                };
                Change::Set(Resource::new(REVOCATIONS, [], &message))
            }
            None => Change::Remove(ResourceType::Revocations, REVOCATIONS.into()),
        };
        store.apply([change]);
        // Identities also where no list of them can be signed.
        let changed = tokio::select! {
            changed = lists.changed() => changed,
            changed = in_force.changed() => changed,
        };
        if changed.is_err() {
            return;
        }
    }
}
