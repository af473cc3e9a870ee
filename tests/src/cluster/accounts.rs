//! Node proxies' accounts, and the tokens of their pods.

use std::net::IpAddr;

use k8s_openapi::{
    api::{
        apps::v1::DaemonSet,
        authentication::v1::TokenRequest,
        core::v1::{Pod as KubePod, ServiceAccount},
    },
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use weir_api_server::object;

use super::Cluster;

/// How long a token is valid that nobody replaces: longer than any test.
const TOKEN_SECONDS: i64 = 3600;

impl Cluster {
    /// Makes a DaemonSet, and its service account of the same name.
    pub fn daemon_set(&self, namespace: &str, name: &str) {
        self.service_account(namespace, name);
        self.create::<DaemonSet>(
            Some(namespace),
            json!({
                "metadata": { "name": name },
                "spec": {
                    "selector": { "matchLabels": { "app": name } },
                    "template": {
                        "metadata": { "labels": { "app": name } },
                        "spec": { "containers": [{ "name": name, "image": name }] },
                    },
                },
            }),
        );
    }

    /// A token of a DaemonSet's pod on a node, which is made.
    ///
    /// # Panics
    /// When there is no such DaemonSet, or such a pod already.
    #[must_use]
    pub fn node_token(&self, namespace: &str, set: &str, node: &str, audience: &str) -> String {
        self.node_token_at(namespace, set, node, audience, None)
    }

    /// As [`Cluster::node_token`], of a pod that has an address of its own.
    pub(super) fn node_token_at(
        &self,
        namespace: &str,
        set: &str,
        node: &str,
        audience: &str,
        address: Option<IpAddr>,
    ) -> String {
        let (namespace, set) = (namespace.to_owned(), set.to_owned());
        let name = format!("{set}-{node}");
        let owner = self.block(async |client| {
            let sets: Api<DaemonSet> = Api::namespaced(client, &namespace);
            sets.get(&set).await
        });
        let owner = OwnerReference {
            api_version: "apps/v1".to_owned(),
            kind: "DaemonSet".to_owned(),
            name: set.clone(),
            uid: owner.metadata.uid.expect("a UID"),
            controller: Some(true),
            ..OwnerReference::default()
        };
        let pod: KubePod = self.create(
            Some(&namespace),
            json!({
                "metadata": { "name": name, "labels": { "app": set }, "ownerReferences": [owner] },
                "spec": {
                    "nodeName": node, "serviceAccountName": set, "hostNetwork": address.is_none(),
                    "containers": [{ "name": set, "image": set }],
                },
            }),
        );
        if let Some(address) = address {
            let status = json!({ "status": {
                "phase": "Running", "podIP": address, "podIPs": [{ "ip": address }],
            }});
            self.block(async |client| {
                let pods: Api<KubePod> = Api::namespaced(client, &namespace);
                let patch = Patch::Merge(status);
                pods.patch_status(&name, &PatchParams::default(), &patch).await
            });
        }
        self.token(&namespace, &set, &pod, audience)
    }

    /// A token of a pod with a service account of its own name, both of which are made: of one that is not of the mesh.
    ///
    /// # Panics
    /// When there is such a pod already.
    #[must_use]
    pub fn pod_token(&self, namespace: &str, name: &str, node: &str, audience: &str) -> String {
        self.service_account(namespace, name);
        let pod: KubePod = self.create(
            Some(namespace),
            json!({
                "metadata": { "name": name },
                "spec": {
                    "nodeName": node, "serviceAccountName": name,
                    "containers": [{ "name": name, "image": name }],
                },
            }),
        );
        self.token(namespace, name, &pod, audience)
    }

    fn token(&self, namespace: &str, account: &str, pod: &KubePod, audience: &str) -> String {
        let request: TokenRequest = object(json!({ "spec": {
            "audiences": [audience],
            "expirationSeconds": TOKEN_SECONDS,
            "boundObjectRef": {
                "apiVersion": "v1", "kind": "Pod", "name": pod.metadata.name, "uid": pod.metadata.uid,
            },
        }}));
        let token = self.block(async |client| {
            let accounts: Api<ServiceAccount> = Api::namespaced(client, namespace);
            accounts
                .create_token_request(account, &PostParams::default(), &request)
                .await
        });
        token.status.expect("a token").token
    }
}
