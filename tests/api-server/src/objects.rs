//! The objects that tests need, in few words.

use k8s_openapi::api::{
    apps::v1::DaemonSet,
    authentication::v1::{TokenRequest, TokenReview},
    core::v1::{Node, Pod, Service, ServiceAccount},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use crate::cluster::{TEST_NODE, TestCluster, eventually, map, object};

/// As long as a test could last, and the default of the API.
const TOKEN_SECONDS: i64 = 3600;

impl TestCluster {
    /// Makes a service account.
    ///
    /// # Panics
    /// When the server refuses it, as in everything here.
    pub async fn service_account(&self, namespace: &str, name: &str) -> ServiceAccount {
        let account = object(json!({"metadata": {"name": name}}));
        let accounts = Api::<ServiceAccount>::namespaced(self.client(), namespace);
        accounts
            .create(&PostParams::default(), &account)
            .await
            .expect("a service account")
    }

    /// Makes a DaemonSet for pods to belong to. It brings forth no pods itself, and lets those be that a test
    /// makes for it on nodes from [`TestCluster::node`].
    pub async fn daemon_set(&self, namespace: &str, name: &str) -> DaemonSet {
        let labels = json!({ "app": name });
        let daemon_set = object(json!({
            "metadata": {"name": name},
            "spec": {
                "selector": {"matchLabels": labels},
                "updateStrategy": {"type": "OnDelete"},
                "template": {
                    "metadata": {"labels": labels},
                    "spec": {
                        "nodeSelector": {TEST_NODE: "true"},
                        "containers": [{"name": "main", "image": "registry.invalid/none"}],
                    },
                },
            },
        }));
        let daemon_sets = Api::<DaemonSet>::namespaced(self.client(), namespace);
        daemon_sets
            .create(&PostParams::default(), &daemon_set)
            .await
            .expect("a DaemonSet")
    }

    /// A pod, to be made by [`NewPod::create`]: of the default service account, on no node, without addresses.
    #[must_use]
    pub fn pod(&self, namespace: &str, name: &str) -> NewPod<'_> {
        NewPod {
            cluster: self,
            namespace: namespace.to_owned(),
            metadata: json!({"name": name, "labels": {}, "annotations": {}}),
            spec: json!({
                "serviceAccountName": "default",
                "containers": [{"name": "main", "image": "registry.invalid/none"}],
            }),
            addresses: Vec::new(),
            ready: true,
        }
    }

    /// Makes a service that selects pods by the label `app` of its own name. Ports are (name, port, target port).
    pub async fn service(&self, namespace: &str, name: &str, ports: &[(&str, i32, i32)]) -> Service {
        let spec = json!({"selector": {"app": name}, "ports": service_ports(ports)});
        self.make_service(namespace, name, spec).await
    }

    /// Makes a headless service.
    pub async fn headless_service(&self, namespace: &str, name: &str, ports: &[(&str, i32, i32)]) -> Service {
        let spec = json!({"clusterIP": "None", "selector": {"app": name}, "ports": service_ports(ports)});
        self.make_service(namespace, name, spec).await
    }

    async fn make_service(&self, namespace: &str, name: &str, spec: Value) -> Service {
        let service = object(json!({"metadata": {"name": name}, "spec": spec}));
        let services = Api::<Service>::namespaced(self.client(), namespace);
        services
            .create(&PostParams::default(), &service)
            .await
            .expect("a service")
    }

    /// Makes an endpoint slice of a service, of these pods that have addresses. Ports are (name, port).
    ///
    /// A real cluster's own controller makes slices for services with a selector as well.
    pub async fn endpoint_slice(
        &self,
        service: &Service,
        pods: &[&Pod],
        ports: &[(&str, i32)],
    ) -> EndpointSlice {
        let namespace = service.namespace().unwrap_or_default();
        let ready = |pod: &Pod| {
            let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
            conditions
                .into_iter()
                .flatten()
                .any(|condition| condition.type_ == "Ready" && condition.status == "True")
        };
        let endpoints: Vec<Value> = pods
            .iter()
            .filter_map(|pod| {
                let address = pod.status.as_ref()?.pod_ip.as_ref()?;
                let target = json!({
                    "kind": "Pod", "name": pod.name_any(), "namespace": pod.namespace(), "uid": pod.uid(),
                });
                Some(json!({
                    "addresses": [address],
                    "conditions": {"ready": ready(pod), "serving": ready(pod), "terminating": false},
                    "nodeName": pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
                    "targetRef": target,
                }))
            })
            .collect();
        let v6 = endpoints
            .first()
            .is_some_and(|one| one["addresses"][0].as_str().is_some_and(|ip| ip.contains(':')));
        let ports: Vec<Value> = ports
            .iter()
            .map(|(name, port)| json!({"name": name, "port": port}))
            .collect();
        let slice = object(json!({
            "metadata": {
                "generateName": format!("{}-", service.name_any()),
                "labels": {
                    "kubernetes.io/service-name": service.name_any(),
                    // Not the controller's, which would otherwise remove it.
                    "endpointslice.kubernetes.io/managed-by": "test.weir.dev",
                },
            },
            "addressType": if v6 { "IPv6" } else { "IPv4" }, "endpoints": endpoints, "ports": ports,
        }));
        let slices = Api::<EndpointSlice>::namespaced(self.client(), &namespace);
        slices
            .create(&PostParams::default(), &slice)
            .await
            .expect("an endpoint slice")
    }

    /// A token of a pod's service account, bound to the pod, for these audiences.
    pub async fn token(&self, pod: &Pod, audiences: &[&str]) -> String {
        let account = pod
            .spec
            .as_ref()
            .and_then(|spec| spec.service_account_name.clone());
        let request = object(json!({"spec": {
            "audiences": audiences,
            "expirationSeconds": TOKEN_SECONDS,
            "boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": pod.name_any(), "uid": pod.uid()},
        }}));
        let account = account.unwrap_or_else(|| "default".to_owned());
        let namespace = pod.namespace().unwrap_or_default();
        let token = self
            .request_token(&namespace, &account, &request)
            .await
            .expect("a token");
        token.status.expect("a token's status").token
    }

    /// Asks for a token as the request says.
    ///
    /// # Errors
    /// The server's refusal.
    pub async fn request_token(
        &self,
        namespace: &str,
        account: &str,
        request: &TokenRequest,
    ) -> kube::Result<TokenRequest> {
        let accounts = Api::<ServiceAccount>::namespaced(self.client(), namespace);
        accounts
            .create_token_request(account, &PostParams::default(), request)
            .await
    }

    /// Asks who holds a token, for these audiences.
    pub async fn review_token(&self, token: &str, audiences: &[&str]) -> TokenReview {
        let review = object(json!({"spec": {"token": token, "audiences": audiences}}));
        let reviews = Api::<TokenReview>::all(self.client());
        reviews
            .create(&PostParams::default(), &review)
            .await
            .expect("a token review")
    }

    /// Deletes a pod without a grace period: at once, even where no kubelet stops it.
    pub async fn delete_pod(&self, pod: &Pod) {
        let pods = Api::<Pod>::namespaced(self.client(), &pod.namespace().unwrap_or_default());
        let name = pod.name_any();
        pods.delete(&name, &DeleteParams::default().grace_period(0))
            .await
            .expect("a pod that can be deleted");
        eventually("the pod is gone", || async {
            let found = pods.get_opt(&name).await.expect("pods");
            found.is_none_or(|found| found.uid() != pod.uid()).then_some(())
        })
        .await;
    }

    /// Makes a pod ready, or no longer so.
    ///
    /// # Panics
    /// When the server refuses it.
    pub async fn set_ready(&self, pod: &Pod, ready: bool) -> Pod {
        let pods = Api::<Pod>::namespaced(self.client(), &pod.namespace().unwrap_or_default());
        let status = if ready { "True" } else { "False" };
        let patch = json!({"status": {"conditions": [{"type": "Ready", "status": status}]}});
        let patched = pods
            .patch_status(
                &pod.name_any(),
                &PatchParams::default(),
                &Patch::Strategic(&patch),
            )
            .await;
        patched.expect("the pod's status")
    }
}

fn service_ports(ports: &[(&str, i32, i32)]) -> Vec<Value> {
    ports
        .iter()
        .map(|(name, port, target)| json!({"name": name, "port": port, "targetPort": target}))
        .collect()
}

/// A pod that is to be made.
#[derive(Debug)]
pub struct NewPod<'a> {
    cluster: &'a TestCluster,
    namespace: String,
    metadata: Value,
    spec: Value,
    addresses: Vec<String>,
    ready: bool,
}

impl NewPod<'_> {
    /// On this node.
    #[must_use]
    pub fn on(mut self, node: &Node) -> Self {
        self.spec["nodeName"] = json!(node.name_any());
        self
    }

    /// With these addresses, by which it is running and, unless said otherwise, ready.
    #[must_use]
    pub fn addresses(mut self, addresses: &[&str]) -> Self {
        self.addresses = addresses.iter().map(|&address| address.to_owned()).collect();
        self
    }

    /// Running, but not ready.
    #[must_use]
    pub fn unready(mut self) -> Self {
        self.ready = false;
        self
    }

    /// Of this service account, which must be there.
    #[must_use]
    pub fn account(mut self, name: &str) -> Self {
        self.spec["serviceAccountName"] = json!(name);
        self
    }

    /// With these labels as well.
    #[must_use]
    pub fn labels(mut self, labels: &[(&str, &str)]) -> Self {
        for (name, value) in map(labels) {
            self.metadata["labels"][name] = json!(value);
        }
        self
    }

    /// With these annotations as well.
    #[must_use]
    pub fn annotations(mut self, annotations: &[(&str, &str)]) -> Self {
        for (name, value) in map(annotations) {
            self.metadata["annotations"][name] = json!(value);
        }
        self
    }

    /// In the network namespace of its node.
    #[must_use]
    pub fn host_network(mut self) -> Self {
        self.spec["hostNetwork"] = json!(true);
        self
    }

    /// One of this DaemonSet's, of which it gets the labels as well.
    #[must_use]
    pub fn owned_by(mut self, owner: &DaemonSet) -> Self {
        self.metadata["ownerReferences"] = json!([{
            "apiVersion": "apps/v1", "kind": "DaemonSet", "name": owner.name_any(), "uid": owner.uid(),
            "controller": true, "blockOwnerDeletion": true,
        }]);
        let labels = owner
            .spec
            .as_ref()
            .and_then(|spec| spec.selector.match_labels.clone());
        for (name, value) in labels.unwrap_or_default() {
            self.metadata["labels"][name] = json!(value);
        }
        self
    }

    /// In the care of this node as well, so that a garbage collector lets it be whatever became of its other owner.
    #[must_use]
    pub fn kept_by(mut self, node: &Node) -> Self {
        let owner = json!({"apiVersion": "v1", "kind": "Node", "name": node.name_any(), "uid": node.uid()});
        match self.metadata["ownerReferences"].as_array_mut() {
            Some(owners) => owners.push(owner),
            None => self.metadata["ownerReferences"] = json!([owner]),
        }
        self
    }

    /// Makes it, with its status where it has addresses.
    ///
    /// # Panics
    /// When the server refuses it.
    pub async fn create(self) -> Pod {
        let pods = Api::<Pod>::namespaced(self.cluster.client(), &self.namespace);
        let pod: Pod = object(json!({"metadata": self.metadata, "spec": self.spec}));
        let pod = pods.create(&PostParams::default(), &pod).await.expect("a pod");
        if self.addresses.is_empty() {
            return pod;
        }
        let now = &pod.metadata.creation_timestamp;
        let condition = |kind: &str, holds: bool| {
            let status = if holds { "True" } else { "False" };
            json!({"type": kind, "status": status, "lastTransitionTime": now})
        };
        let addresses: Vec<Value> = self
            .addresses
            .iter()
            .map(|address| json!({ "ip": address }))
            .collect();
        let status = json!({"status": {
            "phase": "Running", "podIP": self.addresses[0], "podIPs": addresses, "startTime": now,
            "conditions": [
                condition("PodScheduled", true), condition("Initialized", true),
                condition("ContainersReady", self.ready), condition("Ready", self.ready),
            ],
        }});
        let name = pod.name_any();
        let patched = pods
            .patch_status(&name, &PatchParams::default(), &Patch::Merge(&status))
            .await;
        patched.expect("the pod's status")
    }
}
