//! A cluster of pods that nobody runs, in an API server in memory: objects of the size that real ones have.

use std::{net::Ipv4Addr, path::Path};

use anyhow::{Context as _, Result};
use http::Request;
use kube::Client;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use weir_api_server::ApiServer;

use super::{
    Size,
    plan::{Agent, OnDemand},
};

/// The namespace of control plane and agents.
const SYSTEM: &str = "weir-system";
const AUTHORITY: &str = "weir-authority";
/// Agents' service account and DaemonSet.
const AGENT: &str = "weir-agent";
/// As they are installed.
const DEFINITIONS: [&str; 2] = [
    include_str!("../../../../../../daemonset/chart/files/crds/authorizationpolicies.weir.dev.yaml"),
    include_str!("../../../../../../daemonset/chart/files/crds/peerauthentications.weir.dev.yaml"),
];
/// Longer than any run.
const TOKEN_SECONDS: u32 = 3600;
const NAMESPACES: usize = 50;
/// Services that an agent on demand asks for, each with one of its pods.
const ASKED_FOR: usize = 5;
const CREATED: &str = "2026-01-01T00:00:00Z";

/// The API server and what is in it.
pub(super) struct Cluster {
    api: ApiServer,
    client: Client,
    runtime: Runtime,
    pub(super) size: Size,
}

/// A pod, by its number.
#[derive(Debug, Clone, Copy)]
pub(super) struct PodOf {
    pub(super) number: usize,
    size: Size,
}

// === impl Cluster ===

impl Cluster {
    /// A cluster that is full, with its kubeconfig in a file.
    pub(super) fn new(size: Size, kubeconfig: &Path) -> Result<Self> {
        let runtime = Runtime::new()?;
        let api = ApiServer::start()?;
        let client = {
            let _entered = runtime.enter();
            api.client()?
        };
        std::fs::write(kubeconfig, api.kubeconfig())?;
        let cluster = Self {
            api,
            client,
            runtime,
            size,
        };
        cluster.fill()?;
        Ok(cluster)
    }

    fn fill(&self) -> Result<()> {
        for file in DEFINITIONS {
            let definition: Value = serde_saphyr::from_str(file).context("a definition")?;
            self.post(
                "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
                &definition,
            )?;
        }
        let spaces = (0..NAMESPACES).map(namespace);
        for name in spaces.chain([SYSTEM.to_owned(), AUTHORITY.to_owned()]) {
            let labels = match name.as_str() {
                SYSTEM | AUTHORITY => json!({}),
                _ => json!({"weir.dev/mesh": "enabled"}),
            };
            let metadata = json!({"name": name, "labels": labels});
            self.post("/api/v1/namespaces", &json!({ "metadata": metadata }))?;
        }
        let account = json!({"metadata": {"name": AGENT}});
        self.post(&format!("/api/v1/namespaces/{SYSTEM}/serviceaccounts"), &account)?;
        let size = self.size;
        self.api.put("nodes", (0..size.nodes).map(node));
        let services = (0..size.services).map(|number| service(size, number));
        self.api.put("services", services);
        let slices = (0..size.services).map(|number| self.slice(number, None));
        self.api.put("endpointslices.discovery.k8s.io", slices);
        self.api
            .put("pods", (0..size.pods).map(|number| self.pod(number).object("1")));
        let policies = (0..size.policies).map(|number| policy(size, number));
        self.api.put("authorizationpolicies.weir.dev", policies);
        let peer = (0..NAMESPACES).map(|number| {
            json!({
                "metadata": metadata(&namespace(number), "default", &json!({})),
                "spec": {"mtls": {"mode": "STRICT"}},
            })
        });
        self.api.put("peerauthentications.weir.dev", peer);
        Ok(())
    }

    /// The agents of all nodes, with tokens of their pods.
    pub(super) fn agents(&self) -> Result<Vec<Agent>> {
        let set = json!({
            "metadata": {"name": AGENT},
            "spec": {
                "selector": {"matchLabels": {"app": AGENT}},
                "template": {
                    "metadata": {"labels": {"app": AGENT}},
                    "spec": {"containers": [{"name": AGENT, "image": AGENT}]},
                },
            },
        });
        let set = self.post(&format!("/apis/apps/v1/namespaces/{SYSTEM}/daemonsets"), &set)?;
        let owner = json!([{
            "apiVersion": "apps/v1", "kind": "DaemonSet", "name": AGENT, "uid": set["metadata"]["uid"], "controller": true,
        }]);
        let agent = |number: usize| {
            let name = format!("{AGENT}-{number}");
            let pod = json!({
                "metadata": {"name": name, "labels": {"app": AGENT}, "ownerReferences": owner},
                "spec": {
                    "nodeName": node_name(number), "serviceAccountName": AGENT, "hostNetwork": true,
                    "containers": [{"name": AGENT, "image": AGENT}],
                },
            });
            let pod = self.post(&format!("/api/v1/namespaces/{SYSTEM}/pods"), &pod)?;
            let bound =
                json!({"apiVersion": "v1", "kind": "Pod", "name": name, "uid": pod["metadata"]["uid"]});
            let request = json!({"spec": {
                "audiences": ["weir"], "expirationSeconds": TOKEN_SECONDS, "boundObjectRef": bound,
            }});
            let path = format!("/api/v1/namespaces/{SYSTEM}/serviceaccounts/{AGENT}/token");
            let answer = self.post(&path, &request)?;
            let token = answer["status"]["token"].as_str().context("no token")?;
            Ok(Agent {
                token: token.to_owned(),
            })
        };
        (0..self.size.nodes).map(agent).collect()
    }

    /// An agent of a node that asks for a few services and pods.
    pub(super) fn on_demand(&self, number: usize, agent: &Agent) -> OnDemand {
        let services = (0..ASKED_FOR).map(|index| (number * ASKED_FOR + index) % self.size.services);
        let names = services.flat_map(|service| {
            let (namespace, name) = (self.pod(service).namespace(), service_name(service));
            [
                format!("{namespace}/{name}.{namespace}.svc.cluster.local"),
                format!("/{}", self.pod(service).address()),
            ]
        });
        OnDemand {
            agent: agent.clone(),
            names: names.collect(),
        }
    }

    /// The roots that agents know the control plane by, once it has published them.
    pub(super) fn roots(&self) -> Result<Option<String>> {
        let path = format!("/api/v1/namespaces/{SYSTEM}/configmaps");
        let maps: Value = self.ask(Request::get(path).body(Vec::new())?)?;
        let maps = maps["items"].as_array().cloned().unwrap_or_default();
        let roots = maps.iter().find(|map| map["metadata"]["name"] == "weir-ca-roots");
        Ok(roots.and_then(|map| Some(map["data"]["roots.pem"].as_str()?.to_owned())))
    }

    pub(super) fn pod(&self, number: usize) -> PodOf {
        PodOf {
            number,
            size: self.size,
        }
    }

    pub(super) fn put_pod(&self, pod: PodOf, version: &str) {
        self.api.put("pods", [pod.object(version)]);
    }

    pub(super) fn remove_pod(&self, pod: PodOf) -> bool {
        self.api.remove("pods", &pod.namespace(), &pod.name())
    }

    /// Lets the pod be ready no more.
    pub(super) fn put_unready(&self, pod: PodOf) {
        let slice = self.slice(pod.service(), Some(pod.number));
        self.api.put("endpointslices.discovery.k8s.io", [slice]);
    }

    /// The endpoints of a service, one of which may not be ready.
    fn slice(&self, service: usize, unready: Option<usize>) -> Value {
        let pods = (service..self.size.pods).step_by(self.size.services);
        let endpoints = pods.map(|number| {
            let (pod, ready) = (self.pod(number), unready != Some(number));
            json!({
                "addresses": [pod.address().to_string()],
                "conditions": {"ready": ready, "serving": ready, "terminating": false},
                "nodeName": node_name(pod.node()),
                "targetRef": {"kind": "Pod", "namespace": pod.namespace(), "name": pod.name()},
            })
        });
        let (namespace, name) = (self.pod(service).namespace(), service_name(service));
        let labels = json!({"kubernetes.io/service-name": name});
        json!({
            "metadata": metadata(&namespace, &format!("{name}-x7k2p"), &labels),
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
            "endpoints": endpoints.collect::<Vec<_>>(),
        })
    }

    fn post(&self, path: &str, object: &Value) -> Result<Value> {
        let request = Request::post(path).header("content-type", "application/json");
        self.ask(request.body(object.to_string().into_bytes())?)
            .with_context(|| format!("POST {path}"))
    }

    fn ask(&self, request: Request<Vec<u8>>) -> Result<Value> {
        Ok(self.runtime.block_on(self.client.request(request))?)
    }
}

// === impl PodOf ===

impl PodOf {
    fn service(self) -> usize {
        self.number % self.size.services
    }

    /// As many pods one after the other are on a node as it has.
    fn node(self) -> usize {
        self.number / self.size.pods_of_node() % self.size.nodes
    }

    pub(super) fn namespace(self) -> String {
        namespace(self.service() % NAMESPACES)
    }

    pub(super) fn name(self) -> String {
        format!("{}-6f7d8c9b5-{:05x}", service_name(self.service()), self.number)
    }

    /// The name of its workload.
    pub(super) fn workload(self) -> String {
        format!("Kubernetes//Pod/{}/{}", self.namespace(), self.name())
    }

    /// The first of a node's range are its own. Beyond the last pod of all, each node has room for more.
    fn address(self) -> Ipv4Addr {
        let (of_node, nodes) = (self.size.pods_of_node(), self.size.nodes);
        let index = self.number % of_node + self.number / (of_node * nodes) * of_node;
        let [.., high, low] = self.node().to_be_bytes();
        Ipv4Addr::new(10, 64 + high, low, u8::try_from(index + 2).unwrap_or(u8::MAX))
    }

    /// What a Deployment, the scheduler and a kubelet make of it: some 5 KB of JSON.
    fn object(self, version: &str) -> Value {
        let app = service_name(self.service());
        let (address, node) = (self.address().to_string(), self.node());
        let mut metadata = metadata(
            &self.namespace(),
            &self.name(),
            &json!({
                "app.kubernetes.io/name": app, "app.kubernetes.io/version": version,
                "app.kubernetes.io/part-of": "shop", "pod-template-hash": "6f7d8c9b5",
            }),
        );
        metadata["uid"] = json!(format!("00000000-0000-4000-8000-{:012x}", self.number));
        metadata["generateName"] = json!(format!("{app}-6f7d8c9b5-"));
        metadata["annotations"] = json!({"prometheus.io/scrape": "true"});
        // A new one is not yet: its agent is to say so first.
        if self.number < self.size.pods {
            metadata["annotations"]["weir.dev/enrolled"] = json!("true");
        }
        metadata["ownerReferences"] = json!([{
            "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("{app}-6f7d8c9b5"),
            "uid": "5b0f5f0a-8a54-4a3b-9a53-0f8a4b7a5c11", "controller": true, "blockOwnerDeletion": true,
        }]);
        let env = |name: String| json!({"name": name, "value": "https://example.invalid/some/path"});
        let settings: Vec<_> = (0..8).map(|index| env(format!("SETTING_{index}"))).collect();
        let probe = json!({
            "httpGet": {"path": "/healthz", "port": 8080, "scheme": "HTTP"},
            "periodSeconds": 10, "timeoutSeconds": 1, "successThreshold": 1, "failureThreshold": 3,
        });
        let toleration = |what: &str| {
            json!({
                "key": format!("node.kubernetes.io/{what}"), "operator": "Exists", "effect": "NoExecute",
                "tolerationSeconds": 300,
            })
        };
        let condition = |kind: &str| json!({"type": kind, "status": "True", "lastProbeTime": null, "lastTransitionTime": CREATED});
        json!({
            "metadata": metadata,
            "spec": {
                "nodeName": node_name(node), "serviceAccountName": "default", "serviceAccount": "default",
                "restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "schedulerName": "default-scheduler",
                "terminationGracePeriodSeconds": 30, "enableServiceLinks": true, "priority": 0,
                "preemptionPolicy": "PreemptLowerPriority", "securityContext": {},
                "containers": [{
                    "name": "main", "image": format!("registry.example.invalid/shop/{app}:{version}"),
                    "imagePullPolicy": "IfNotPresent", "terminationMessagePath": "/dev/termination-log",
                    "terminationMessagePolicy": "File",
                    "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}],
                    "env": settings,
                    "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
                    "livenessProbe": probe, "readinessProbe": probe,
                    "volumeMounts": [{
                        "name": "kube-api-access", "readOnly": true,
                        "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount",
                    }],
                }],
                "volumes": [{"name": "kube-api-access", "projected": {"defaultMode": 420, "sources": [
                    {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
                    {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                ]}}],
                "tolerations": [toleration("not-ready"), toleration("unreachable")],
            },
            "status": {
                "phase": "Running", "qosClass": "Burstable", "startTime": CREATED, "podIP": address,
                "podIPs": [{"ip": address}], "hostIP": format!("192.168.{}.{}", node / 250, node % 250 + 1),
                "conditions": [
                    condition("PodReadyToStartContainers"), condition("Initialized"), condition("Ready"),
                    condition("ContainersReady"), condition("PodScheduled"),
                ],
                "containerStatuses": [{
                    "name": "main", "ready": true, "started": true, "restartCount": 0, "lastState": {},
                    "state": {"running": {"startedAt": CREATED}},
                    "image": format!("registry.example.invalid/shop/{app}:{version}"),
                    "imageID": "registry.example.invalid/shop/app@sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
                    "containerID": "containerd://9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
                }],
            },
        })
    }
}

fn namespace(number: usize) -> String {
    format!("team-{number}")
}

fn node_name(number: usize) -> String {
    format!("node-{number}")
}

fn service_name(number: usize) -> String {
    format!("service-{number}")
}

/// As an API server has it, with the fields' managers as kube-controller-manager and kubelet leave them.
fn metadata(namespace: &str, name: &str, labels: &Value) -> Value {
    let managed = |manager: &str| {
        json!({
            "manager": manager, "operation": "Update", "apiVersion": "v1", "time": CREATED, "fieldsType": "FieldsV1",
            "fieldsV1": {
                "f:metadata": {"f:labels": {".": {}, "f:app.kubernetes.io/name": {}}, "f:ownerReferences": {}},
                "f:spec": {"f:containers": {"k:{\"name\":\"main\"}": {".": {}, "f:image": {}, "f:env": {".": {}}}}},
            },
        })
    };
    json!({
        "name": name, "namespace": namespace, "labels": labels, "creationTimestamp": CREATED, "generation": 1,
        "managedFields": [managed("kube-controller-manager"), managed("kubelet")],
    })
}

fn node(number: usize) -> Value {
    let [.., high, low] = number.to_be_bytes();
    json!({
        "metadata": {
            "name": node_name(number), "creationTimestamp": CREATED,
            "labels": {
                "topology.kubernetes.io/region": "region-1",
                "topology.kubernetes.io/zone": format!("zone-{}", number % 3),
            },
        },
        "spec": {"podCIDRs": [format!("10.{}.{low}.0/24", 64 + high)]},
        "status": {"conditions": [{"type": "Ready", "status": "True"}]},
    })
}

fn service(size: Size, number: usize) -> Value {
    let (name, pod) = (service_name(number), PodOf { number, size });
    let [.., high, low] = number.to_be_bytes();
    let address = format!("10.96.{high}.{low}");
    json!({
        "metadata": metadata(&pod.namespace(), &name, &json!({"app.kubernetes.io/name": name})),
        "spec": {
            "type": "ClusterIP", "clusterIP": address, "clusterIPs": [address],
            "selector": {"app.kubernetes.io/name": name}, "sessionAffinity": "None",
            "ports": [{"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP", "appProtocol": "http"}],
        },
        "status": {"loadBalancer": {}},
    })
}

/// A policy for the pods of one service.
fn policy(size: Size, number: usize) -> Value {
    let target = number * (size.services / size.policies).max(1) % size.services;
    let pod = PodOf { number: target, size };
    let namespace = pod.namespace();
    json!({
        "metadata": metadata(&namespace, &format!("allow-{number}"), &json!({})),
        "spec": {
            "selector": {"matchLabels": {"app.kubernetes.io/name": service_name(target)}},
            "action": "ALLOW",
            "rules": [{
                "from": [{"source": {"principals": [format!("cluster.local/ns/{namespace}/sa/default")]}}],
                "to": [{"operation": {"ports": ["8080"]}}],
            }],
        },
    })
}
