//! Objects at the API server, as users, scheduler and kubelet make them.

use std::{
    net::{IpAddr, Ipv4Addr},
    process::Command,
};

use k8s_openapi::{
    api::{
        apps::v1::DaemonSet,
        core::v1::{ConfigMap, Namespace, Node, Pod as KubePod, Service, ServiceAccount},
        discovery::v1::EndpointSlice,
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client,
    api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams},
    core::GroupVersionKind,
};
use serde_json::{Value, json};
use weir_api_server::object;
use weir_lab::{Lab, PATIENCE, Pod, PodSpec, Process, Spawn as _, poll};

use super::{Cluster, Member};

impl Cluster {
    /// Makes a namespace, with this for its switch `weir.dev/mesh`.
    pub fn namespace(&self, name: &str, switch: Option<&str>) {
        let labels = switch.map(|switch| json!({ "weir.dev/mesh": switch }));
        self.create::<Namespace>(None, json!({ "metadata": { "name": name, "labels": labels } }));
    }

    /// Sets or takes away a namespace's switch.
    pub fn switch(&self, namespace: &str, switch: Option<&str>) {
        self.label(namespace, "weir.dev/mesh", switch);
    }

    /// Has all pods observed of which nothing else is said, or not any more.
    pub fn observe_all(&self, observe: bool) {
        self.label(
            "weir-system",
            "weir.dev/mesh-default",
            observe.then_some("observe"),
        );
    }

    fn label(&self, namespace: &str, label: &str, value: Option<&str>) {
        let patch = json!({ "metadata": { "labels": { label: value } } });
        let namespace = namespace.to_owned();
        self.block(async move |client| {
            let namespaces: Api<Namespace> = Api::all(client);
            namespaces
                .patch(&namespace, &PatchParams::default(), &Patch::Merge(patch))
                .await
        });
    }

    /// Makes a service account.
    pub fn service_account(&self, namespace: &str, name: &str) {
        self.create::<ServiceAccount>(Some(namespace), json!({ "metadata": { "name": name } }));
    }

    /// Makes a pod with a service account of its own name, in the lab and at the API server, as scheduler and kubelet would.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn pod(&mut self, node: &str, namespace: &str, name: &str) -> Member {
        self.pod_with(node, namespace, name, json!({}))
    }

    /// As [`Cluster::pod`], with more in its object.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn pod_with(&mut self, node: &str, namespace: &str, name: &str, more: Value) -> Member {
        let accounts = format!("{namespace}/{name}");
        let exists = {
            let (namespace, name) = (namespace.to_owned(), name.to_owned());
            self.block(async move |client| {
                Api::<ServiceAccount>::namespaced(client, &namespace)
                    .get_opt(&name)
                    .await
            })
            .is_some()
        };
        if !exists {
            self.service_account(namespace, name);
        }
        let mut object = json!({
            "metadata": { "name": name, "labels": { "app": name } },
            "spec": {
                "nodeName": node, "serviceAccountName": name,
                "containers": [{ "name": "app", "image": "app" }],
            },
        });
        merge(&mut object, more);
        let made: KubePod = self.create(Some(namespace), object);
        let uid = made.metadata.uid.expect("a UID");
        let pod = self
            .lab
            .add_pod(PodSpec::new(node, namespace, name))
            .expect(&accounts);
        self.pods.push(pause(&self.lab, &pod, &uid));
        self.set_running(&pod);
        Member { pod, uid }
    }

    /// Makes a pod at the API server alone: one that was scheduled and does not run yet.
    pub fn idle_pod(&self, node: &str, namespace: &str, name: &str) {
        let object = json!({
            "metadata": { "name": name, "labels": { "app": name } },
            "spec": { "nodeName": node, "containers": [{ "name": "app", "image": "app" }] },
        });
        self.create::<KubePod>(Some(namespace), object);
    }

    /// Says in a pod's status that it runs, and where.
    fn set_running(&self, pod: &Pod) {
        let addresses: [IpAddr; 2] = [pod.v4().into(), pod.v6().into()];
        let ips: Vec<Value> = addresses.iter().map(|ip| json!({ "ip": ip })).collect();
        let status = json!({ "status": {
            "phase": "Running", "podIP": addresses[0], "podIPs": ips,
            "conditions": [{ "type": "Ready", "status": "True" }],
        }});
        let (namespace, name) = (pod.spec().namespace.clone(), pod.spec().name.clone());
        self.block(async move |client| {
            let pods: Api<KubePod> = Api::namespaced(client, &namespace);
            pods.patch_status(&name, &PatchParams::default(), &Patch::Merge(status))
                .await
        });
    }

    /// Removes a pod.
    ///
    /// # Panics
    /// When it cannot be removed.
    pub fn remove_pod(&mut self, member: &Member) {
        let (namespace, name) = (member.spec().namespace.clone(), member.spec().name.clone());
        self.block(async move |client| {
            let pods: Api<KubePod> = Api::namespaced(client, &namespace);
            let gone = DeleteParams {
                grace_period_seconds: Some(0),
                ..DeleteParams::default()
            };
            pods.delete(&name, &gone).await.map(drop)
        });
        let folder = format!("pod{}", member.uid);
        self.pods.retain_mut(|process| {
            let cgroup =
                std::fs::read_to_string(format!("/proc/{}/cgroup", process.pid())).unwrap_or_default();
            if cgroup.contains(&folder) {
                process.kill().expect("the pause process to end");
                return false;
            }
            true
        });
        self.lab.remove_pod(&member.pod).expect("the pod to be removed");
    }

    /// Makes a service with one port, served by these pods.
    pub fn service(
        &self,
        namespace: &str,
        name: &str,
        address: Ipv4Addr,
        ports: (u16, u16),
        pods: &[&Member],
    ) {
        let (port, target) = ports;
        self.create::<Service>(
            Some(namespace),
            json!({
                "metadata": { "name": name },
                "spec": {
                    "clusterIP": address, "clusterIPs": [address],
                    "ports": [{ "name": "tcp", "port": port, "targetPort": target, "protocol": "TCP" }],
                },
            }),
        );
        let endpoints: Vec<Value> = pods
            .iter()
            .map(|pod| {
                json!({
                    "addresses": [pod.v4()],
                    "conditions": { "ready": true, "serving": true },
                    "nodeName": pod.spec().node,
                    "targetRef": {
                        "kind": "Pod", "namespace": namespace, "name": pod.spec().name, "uid": pod.uid,
                    },
                })
            })
            .collect();
        self.create::<EndpointSlice>(
            Some(namespace),
            json!({
                "metadata": {
                    "name": format!("{name}-1"), "labels": { "kubernetes.io/service-name": name },
                },
                "addressType": "IPv4",
                "ports": [{ "name": "tcp", "port": target, "protocol": "TCP" }],
                "endpoints": endpoints,
            }),
        );
    }

    /// Makes an object.
    ///
    /// # Panics
    /// When it is refused.
    pub fn create<K>(&self, namespace: Option<&str>, value: Value) -> K
    where
        K: kube::Resource<DynamicType = ()>
            + Clone
            + std::fmt::Debug
            + serde::de::DeserializeOwned
            + serde::Serialize,
        K: MaybeNamespaced,
    {
        let object: K = object(value);
        let namespace = namespace.map(str::to_owned);
        self.block(async move |client| {
            K::api(client, namespace.as_deref())
                .create(&PostParams::default(), &object)
                .await
        })
    }

    /// Makes a policy of `weir.dev`, or replaces it.
    pub fn policy(&self, kind: &str, namespace: &str, name: &str, spec: &Value) {
        let (api, name, kind) = (policies(kind, namespace), name.to_owned(), kind.to_owned());
        let object = json!({
            "apiVersion": "weir.dev/v1alpha1", "kind": kind, "metadata": { "name": name }, "spec": spec,
        });
        self.block(async move |client| {
            let params = PatchParams::apply("test").force();
            api(client).patch(&name, &params, &Patch::Apply(object)).await
        });
    }

    /// What is said of a policy; null if nothing is yet.
    #[must_use]
    pub fn policy_status(&self, kind: &str, namespace: &str, name: &str) -> Value {
        let (api, name) = (policies(kind, namespace), name.to_owned());
        let policy = self.block(async move |client| api(client).get(&name).await);
        policy.data.get("status").cloned().unwrap_or_default()
    }

    /// Takes a policy away.
    pub fn remove_policy(&self, kind: &str, namespace: &str, name: &str) {
        let (api, name) = (policies(kind, namespace), name.to_owned());
        self.block(async move |client| {
            api(client)
                .delete(&name, &DeleteParams::default())
                .await
                .map(drop)
        });
    }

    /// Waits for an answer of the API server.
    ///
    /// # Panics
    /// When it does not come.
    pub fn wait<T, F: Future<Output = Option<T>>>(&self, ask: impl Fn(Client) -> F) -> T {
        poll("the API server to show it", PATIENCE, || {
            let client = self.runtime.block_on(async { self.api.client() })?;
            Ok(self.runtime.block_on(ask(client)))
        })
        .expect("an answer")
    }

    /// Does something through a client of the API server, whatever comes of it.
    ///
    /// # Panics
    /// When there is no client.
    pub fn attempt<T>(&self, ask: impl AsyncFnOnce(Client) -> T) -> T {
        self.runtime
            .block_on(async { ask(self.api.client().expect("a client")).await })
    }

    /// Asks the API server.
    ///
    /// # Panics
    /// When it refuses.
    pub fn block<T>(&self, ask: impl AsyncFnOnce(Client) -> kube::Result<T>) -> T {
        self.runtime
            .block_on(async { ask(self.api.client()?).await })
            .expect("the API server to do it")
    }
}

fn policies(kind: &str, namespace: &str) -> impl FnOnce(Client) -> Api<DynamicObject> {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("weir.dev", "v1alpha1", kind));
    let namespace = namespace.to_owned();
    move |client| Api::namespaced_with(client, &namespace, &resource)
}

/// Starts what holds a pod's namespace, in the cgroup that the kubelet would have made.
///
/// # Panics
/// When it cannot be started.
#[must_use]
pub fn pause(lab: &Lab, pod: &Pod, uid: &str) -> Process {
    let node = lab.node(&pod.spec().node).expect("a node");
    let cgroup = node.cgroup().join("kubepods/burstable").join(format!("pod{uid}"));
    let place = pod.place().in_cgroup(cgroup).expect("a cgroup");
    let mut pause = Command::new("sleep");
    pause.arg("infinity");
    PauseIn(place).spawn(pause).expect("a pause process")
}

/// A place where a pod's first process runs.
struct PauseIn(weir_lab::Place);

impl weir_lab::Spawn for PauseIn {
    fn place(&self) -> &weir_lab::Place {
        &self.0
    }
}

/// Objects in a namespace, or of the whole cluster.
pub trait MaybeNamespaced: Sized {
    /// Where they are.
    fn api(client: Client, namespace: Option<&str>) -> Api<Self>;
}

macro_rules! namespaced {
    ($($kind:ty),*) => {
        $(impl MaybeNamespaced for $kind {
            fn api(client: Client, namespace: Option<&str>) -> Api<Self> {
                Api::namespaced(client, namespace.unwrap_or("default"))
            }
        })*
    };
}

macro_rules! of_the_cluster {
    ($($kind:ty),*) => {
        $(impl MaybeNamespaced for $kind {
            fn api(client: Client, _namespace: Option<&str>) -> Api<Self> {
                Api::all(client)
            }
        })*
    };
}

namespaced!(
    DaemonSet,
    KubePod,
    Service,
    ServiceAccount,
    EndpointSlice,
    ConfigMap
);
of_the_cluster!(CustomResourceDefinition, Namespace, Node);

fn merge(into: &mut Value, more: Value) {
    match (into, more) {
        (Value::Object(into), Value::Object(more)) => {
            for (key, value) in more {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, more) => *into = more,
    }
}
