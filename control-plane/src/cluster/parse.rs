//! From Kubernetes' objects.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use k8s_openapi::{
    api::{core::v1 as core, discovery::v1 as discovery},
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
};

use super::{
    Endpoint, EndpointSlice, Namespace, Node, NotEnrolled, ObjectName, Owner, Pod, Preference, Service,
    ServicePort, Switch,
};

/// Set by the control plane on pods whose agent has said that they are enrolled.
pub const ENROLLED: &str = "weir.dev/enrolled";

/// The label of an EndpointSlice that names its service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// The label that the Deployment controller puts on pods, and into the names of their ReplicaSets.
const TEMPLATE_HASH: &str = "pod-template-hash";
const REGION: &str = "topology.kubernetes.io/region";
const ZONE: &str = "topology.kubernetes.io/zone";

/// What runtime classes are called whose pods do not use the node's kernel for connections: gVisor and Kata.
const FOREIGN_RUNTIMES: [&str; 3] = ["gvisor", "runsc", "kata"];

/// The name of a namespaced object; `None` if the API server left it out.
#[must_use]
pub fn name_of(meta: &ObjectMeta) -> Option<ObjectName> {
    Some(ObjectName::new(meta.namespace.as_deref()?, meta.name.as_deref()?))
}

impl Pod {
    /// A pod that concerns the mesh: one that has a node, and has not ended.
    #[must_use]
    pub fn parse(pod: &core::Pod) -> Option<Self> {
        let spec = pod.spec.as_ref()?;
        let status = pod.status.clone().unwrap_or_default();
        let ended = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
        let node: Arc<str> = spec.node_name.as_deref().filter(|node| !node.is_empty())?.into();
        if ended {
            return None;
        }
        let empty = BTreeMap::new();
        let labels = pod.metadata.labels.as_ref().unwrap_or(&empty);
        let annotations = pod.metadata.annotations.as_ref().unwrap_or(&empty);
        let host_network = spec.host_network.unwrap_or(false);
        let mut addresses: Vec<IpAddr> = status
            .pod_ips
            .iter()
            .flatten()
            .filter_map(|ip| ip.ip.parse().ok())
            .collect();
        if addresses.is_empty() {
            addresses.extend(status.pod_ip.as_deref().and_then(|ip| ip.parse::<IpAddr>().ok()));
        }
        let runtime = spec.runtime_class_name.as_ref().filter(|class| {
            let class = class.to_ascii_lowercase();
            FOREIGN_RUNTIMES.iter().any(|foreign| class.starts_with(foreign))
        });
        let unfit = if host_network {
            Some(NotEnrolled::HostNetwork)
        } else {
            runtime.cloned().map(NotEnrolled::Runtime)
        };
        // The annotation is what the container runtime passes on at once; a label is found a little later.
        let own = [annotations, labels].map(|texts| Switch::of(texts).ok().flatten());
        Some(Self {
            uid: pod.metadata.uid.as_deref()?.into(),
            created: created(&pod.metadata),
            node,
            service_account: spec.service_account_name.as_deref().unwrap_or("default").into(),
            addresses: addresses.iter().map(IpAddr::to_canonical).collect(),
            switch: own[0].or(own[1]),
            unfit,
            host_network,
            enrolled: annotations.contains_key(ENROLLED),
            probe_ports: probe_ports(spec),
            owner: owner(&pod.metadata, labels),
            labels: labels.clone(),
        })
    }
}

/// When an object was made, seconds since 1970; in the far future if nobody says.
#[must_use]
pub fn created(meta: &ObjectMeta) -> i64 {
    meta.creation_timestamp
        .as_ref()
        .map_or(i64::MAX, |time| time.0.as_second())
}

fn owner(meta: &ObjectMeta, labels: &BTreeMap<String, String>) -> Option<Owner> {
    let owners = meta.owner_references.as_ref()?;
    let owner = owners.iter().find(|owner| owner.controller == Some(true))?;
    let hash = labels.get(TEMPLATE_HASH).map(|hash| format!("-{hash}"));
    let deployment = hash.and_then(|hash| owner.name.strip_suffix(&hash));
    Some(match (owner.kind.as_str(), deployment) {
        ("ReplicaSet", Some(deployment)) => Owner {
            kind: "Deployment".into(),
            name: deployment.into(),
        },
        (kind, _) => Owner {
            kind: kind.into(),
            name: owner.name.as_str().into(),
        },
    })
}

/// The TCP ports of all probes of a pod's own containers that the kubelet connects to.
fn probe_ports(spec: &core::PodSpec) -> Vec<u16> {
    let init = spec.init_containers.iter().flatten();
    let mut ports: Vec<u16> = init
        .chain(&spec.containers)
        .flat_map(|container| {
            let probes = [
                &container.liveness_probe,
                &container.readiness_probe,
                &container.startup_probe,
            ];
            let ports = probes
                .into_iter()
                .flatten()
                .filter_map(|probe| probed(container, probe));
            ports.collect::<Vec<_>>()
        })
        .collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

fn probed(container: &core::Container, probe: &core::Probe) -> Option<u16> {
    let elsewhere = |host: &Option<String>| host.as_ref().is_some_and(|host| !host.is_empty());
    let port = if let Some(http) = &probe.http_get {
        // A probe of another host is the kubelet's own business: it does not concern this pod.
        (!elsewhere(&http.host)).then_some(&http.port)?.clone()
    } else if let Some(tcp) = &probe.tcp_socket {
        (!elsewhere(&tcp.host)).then_some(&tcp.port)?.clone()
    } else {
        IntOrString::Int(probe.grpc.as_ref()?.port)
    };
    let number = match port {
        IntOrString::Int(number) => number,
        IntOrString::String(name) => {
            let ports = container.ports.iter().flatten();
            let named = ports.filter(|port| port.name.as_ref() == Some(&name));
            named.map(|port| port.container_port).next()?
        }
    };
    port_number(number)
}

fn port_number(number: i32) -> Option<u16> {
    u16::try_from(number).ok().filter(|port| *port != 0)
}

fn is_tcp(protocol: Option<&str>) -> bool {
    protocol.is_none_or(|protocol| protocol == "TCP")
}

impl Service {
    /// A service with something to connect to; `None` for one of type ExternalName, which is a name in DNS.
    #[must_use]
    pub fn parse(service: &core::Service) -> Option<Self> {
        let spec = service.spec.as_ref()?;
        if spec.type_.as_deref() == Some("ExternalName") {
            return None;
        }
        let all = spec
            .cluster_ips
            .clone()
            .unwrap_or_else(|| spec.cluster_ip.iter().cloned().collect());
        // Only what the API server itself gave out: externalIPs and the addresses of load balancers are the word of whoever
        // may write a service.
        let addresses = all.iter().filter_map(|address| address.parse::<IpAddr>().ok());
        let ports = spec
            .ports
            .iter()
            .flatten()
            .filter(|port| is_tcp(port.protocol.as_deref()));
        let ports = ports.filter_map(|port| {
            let number = port_number(port.port)?;
            Some(ServicePort {
                name: port.name.as_deref().unwrap_or_default().into(),
                port: number,
                target: match &port.target_port {
                    None | Some(IntOrString::Int(0)) => Some(number),
                    Some(IntOrString::Int(target)) => port_number(*target),
                    Some(IntOrString::String(_)) => None,
                },
                protocol: port.app_protocol.as_deref().map(Into::into),
            })
        });
        let preference = match (
            spec.internal_traffic_policy.as_deref(),
            spec.traffic_distribution.as_deref(),
        ) {
            (Some("Local"), _) => Preference::OnlyNode,
            (_, Some("PreferClose" | "PreferSameZone")) => Preference::Zone,
            (_, Some("PreferSameNode")) => Preference::Node,
            _ => Preference::None,
        };
        Some(Self {
            addresses: addresses.map(|address| address.to_canonical()).collect(),
            ports: ports.collect(),
            preference,
        })
    }
}

impl EndpointSlice {
    /// The slice of a service.
    #[must_use]
    pub fn parse(slice: &discovery::EndpointSlice) -> Option<Self> {
        let service = slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?.as_str().into();
        if slice.address_type == "FQDN" {
            return None;
        }
        let own = slice.metadata.namespace.as_deref();
        let ports = slice
            .ports
            .iter()
            .flatten()
            .filter(|port| is_tcp(port.protocol.as_deref()));
        let ports = ports.filter_map(|port| {
            let name = port.name.as_deref().unwrap_or_default().into();
            Some((name, port_number(port.port?)?))
        });
        let endpoint = |endpoint: &discovery::Endpoint| {
            // A pod of another namespace is not this namespace's to offer.
            let target = endpoint.target_ref.as_ref().filter(|target| {
                target.kind.as_deref() == Some("Pod")
                    && target
                        .namespace
                        .as_deref()
                        .is_none_or(|namespace| Some(namespace) == own)
            });
            let conditions = endpoint.conditions.clone().unwrap_or_default();
            let addresses = endpoint
                .addresses
                .iter()
                .filter_map(|address| address.parse::<IpAddr>().ok());
            Endpoint {
                pod: target.and_then(|target| Some(target.name.as_deref()?.into())),
                addresses: addresses.map(|address| address.to_canonical()).collect(),
                ready: conditions.ready.unwrap_or(true),
                serving: conditions.serving.or(conditions.ready).unwrap_or(true),
            }
        };
        Some(Self {
            service,
            ports: ports.collect(),
            endpoints: slice.endpoints.iter().map(endpoint).collect(),
        })
    }
}

impl Namespace {
    /// What its labels say; its annotations where these say nothing.
    #[must_use]
    pub fn parse(meta: &ObjectMeta) -> Self {
        let texts = [&meta.labels, &meta.annotations].into_iter().flatten();
        let mut switches = texts.clone().filter_map(|texts| Switch::of(texts).ok().flatten());
        let mut defaults = texts.filter_map(Switch::default_of);
        Self {
            switch: switches.next(),
            mesh_default: defaults.next(),
        }
    }
}

impl Node {
    /// Where it is, and which addresses its pods have.
    #[must_use]
    pub fn parse(node: &core::Node) -> Self {
        let label = |key| {
            let labels = node.metadata.labels.as_ref();
            labels
                .and_then(|labels| labels.get(key))
                .map_or("", String::as_str)
        };
        let spec = node.spec.clone().unwrap_or_default();
        let ranges = spec
            .pod_cidrs
            .unwrap_or_else(|| spec.pod_cidr.into_iter().collect());
        Self {
            region: label(REGION).into(),
            zone: label(ZONE).into(),
            ranges: ranges.iter().filter_map(|range| range.parse().ok()).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(spec: Value, status: Value) -> Option<Pod> {
        let pod = json!({
            "metadata": {
                "name": "web-7d9f-x", "namespace": "shop", "uid": "u1", "creationTimestamp": "2026-01-01T00:00:00Z",
                "labels": { "app": "web", "pod-template-hash": "7d9f" },
                "annotations": { "weir.dev/mesh": "observe" },
                "ownerReferences": [{
                    "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-7d9f", "uid": "r", "controller": true,
                }],
            },
            "spec": spec, "status": status,
        });
        Pod::parse(&serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn a_pod_is_known_by_its_node_and_until_it_ends() {
        let container = json!({ "containers": [{ "name": "c" }] });
        assert_eq!(pod(container, json!({})), None);
        let spec =
            || json!({ "nodeName": "n1", "serviceAccountName": "web", "containers": [{ "name": "c" }] });
        let ips = json!({ "podIP": "10.0.0.1", "podIPs": [{ "ip": "10.0.0.1" }, { "ip": "fd00::1" }] });
        let known = pod(spec(), ips).unwrap();
        assert_eq!(
            known.addresses,
            ["10.0.0.1", "fd00::1"].map(|ip| ip.parse::<IpAddr>().unwrap())
        );
        assert_eq!((&*known.node, &*known.service_account), ("n1", "web"));
        assert_eq!(known.switch, Some(Switch::Observe));
        let owner = known.owner.unwrap();
        assert_eq!((&*owner.kind, &*owner.name), ("Deployment", "web"));
        for phase in ["Succeeded", "Failed"] {
            assert_eq!(pod(spec(), json!({ "phase": phase })), None);
        }
    }

    #[test]
    fn pods_that_cannot_be_captured_are_told_apart() {
        let unfit = |extra: Value| {
            let mut spec = json!({ "nodeName": "n1", "containers": [{ "name": "c" }] });
            spec.as_object_mut()
                .unwrap()
                .extend(extra.as_object().unwrap().clone());
            pod(spec, json!({})).unwrap().unfit
        };
        assert_eq!(unfit(json!({})), None);
        assert_eq!(
            unfit(json!({ "hostNetwork": true })),
            Some(NotEnrolled::HostNetwork)
        );
        assert_eq!(
            unfit(json!({ "runtimeClassName": "kata-qemu" })),
            Some(NotEnrolled::Runtime("kata-qemu".to_owned()))
        );
        assert_eq!(unfit(json!({ "runtimeClassName": "nvidia" })), None);
    }

    #[test]
    fn the_ports_of_probes_are_those_of_the_pod_itself() {
        let http = |port: Value| json!({ "httpGet": { "port": port } });
        let spec = json!({ "nodeName": "n1", "containers": [{
            "name": "c",
            "ports": [{ "name": "health", "containerPort": 8081 }],
            "livenessProbe": http(json!("health")),
            "readinessProbe": { "tcpSocket": { "port": 8080 } },
            "startupProbe": { "grpc": { "port": 9090 } },
        }, {
            "name": "d",
            "livenessProbe": { "httpGet": { "port": 80, "host": "10.0.0.9" } },
            "readinessProbe": http(json!("nowhere")),
            "startupProbe": { "exec": { "command": ["true"] } },
        }]});
        assert_eq!(pod(spec, json!({})).unwrap().probe_ports, [8080, 8081, 9090]);
    }

    #[test]
    fn a_service_has_the_addresses_that_the_api_server_gave_it() {
        let parse = |spec: Value| {
            let service = json!({ "metadata": { "name": "web", "namespace": "shop" }, "spec": spec });
            Service::parse(&serde_json::from_value(service).unwrap())
        };
        let service = parse(json!({
            "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd96::1"], "externalIPs": ["192.0.2.1"],
            "ports": [
                { "name": "http", "port": 80, "targetPort": "web", "protocol": "TCP", "appProtocol": "http" },
                { "name": "dns", "port": 53, "protocol": "UDP" },
                { "name": "same", "port": 81 },
            ],
            "trafficDistribution": "PreferClose",
        }))
        .unwrap();
        assert_eq!(
            service.addresses,
            ["10.96.0.1", "fd96::1"].map(|ip| ip.parse::<IpAddr>().unwrap())
        );
        let ports: Vec<_> = service
            .ports
            .iter()
            .map(|port| (&*port.name, port.port, port.target))
            .collect();
        assert_eq!(ports, [("http", 80, None), ("same", 81, Some(81))]);
        assert_eq!(service.preference, Preference::Zone);
        let headless = parse(json!({ "clusterIP": "None", "internalTrafficPolicy": "Local" })).unwrap();
        assert_eq!(
            (headless.addresses.len(), headless.preference),
            (0, Preference::OnlyNode)
        );
        assert_eq!(
            parse(json!({ "type": "ExternalName", "externalName": "example.org" })),
            None
        );
    }

    #[test]
    fn a_nodes_ranges_are_those_of_both_families() {
        for (spec, expected) in [
            (
                json!({ "podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24", "fd00:1::/64"] }),
                &["10.1.0.0/24", "fd00:1::/64"][..],
            ),
            (json!({ "podCIDR": "10.1.0.0/24" }), &["10.1.0.0/24"]),
            (json!({}), &[]),
        ] {
            let node = json!({ "metadata": { "name": "n1" }, "spec": spec });
            let node = Node::parse(&serde_json::from_value(node).unwrap());
            let ranges: Vec<_> = node.ranges.iter().map(ToString::to_string).collect();
            assert_eq!(ranges, expected);
        }
    }

    #[test]
    fn a_slice_offers_pods_of_its_own_namespace_only() {
        let slice = json!({
            "metadata": {
                "name": "web-1", "namespace": "shop", "labels": { "kubernetes.io/service-name": "web" },
            },
            "addressType": "IPv4",
            "ports": [{ "name": "http", "port": 8080 }, { "name": "dns", "port": 53, "protocol": "UDP" }],
            "endpoints": [
                { "addresses": ["10.0.0.1"], "targetRef": { "kind": "Pod", "name": "a", "namespace": "shop" } },
                { "addresses": ["10.0.0.2"], "targetRef": { "kind": "Pod", "name": "b", "namespace": "other" } },
                { "addresses": ["10.0.0.3"], "conditions": { "ready": false, "serving": true } },
            ],
        });
        let slice = EndpointSlice::parse(&serde_json::from_value(slice).unwrap()).unwrap();
        assert_eq!(slice.ports, [("http".into(), 8080)]);
        let seen: Vec<_> = slice
            .endpoints
            .iter()
            .map(|e| (e.pod.as_deref(), e.ready, e.serving))
            .collect();
        assert_eq!(
            seen,
            [(Some("a"), true, true), (None, true, true), (None, false, true)]
        );
    }
}
