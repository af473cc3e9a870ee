//! What the API server knows of the kinds it has itself: their fields, defaults, and what it refuses.

use std::net::IpAddr;

use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment},
    coordination::v1::Lease,
    core::v1::{ConfigMap, Event, Namespace, Node, Pod, Secret, Service, ServiceAccount},
    discovery::v1::EndpointSlice,
};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::{
    json::{default_to, items, map_mut, meta},
    resource::Resource,
    schema::ListType,
    status::Cause,
};

/// The limit of `discovery.k8s.io/v1`.
const MAX_ENDPOINTS: usize = 1000;

/// Reads an object as its kind and writes it again, by which fields that the kind does not have are dropped.
///
/// # Errors
/// A field of another type than the kind's.
pub(crate) fn typed(resource: &Resource, object: Value) -> Result<Value, serde_json::Error> {
    fn through<K: Serialize + DeserializeOwned>(object: Value) -> Result<Value, serde_json::Error> {
        serde_json::from_value::<K>(object).and_then(serde_json::to_value)
    }
    match resource.kind.as_str() {
        "ConfigMap" => through::<ConfigMap>(object),
        // Both kinds of events are stored as the core group's.
        "Event" => through::<Event>(object),
        "Namespace" => through::<Namespace>(object),
        "Node" => through::<Node>(object),
        "Pod" => through::<Pod>(object),
        "Secret" => through::<Secret>(object),
        "ServiceAccount" => through::<ServiceAccount>(object),
        "Service" => through::<Service>(object),
        "DaemonSet" => through::<DaemonSet>(object),
        "Deployment" => through::<Deployment>(object),
        "Lease" => through::<Lease>(object),
        "EndpointSlice" => through::<EndpointSlice>(object),
        "CustomResourceDefinition" => through::<CustomResourceDefinition>(object),
        _ => Ok(object),
    }
}

/// How the lists of the built-in kinds are merged, by the fields that lead to them. Everything else is atomic.
pub(crate) fn list_type(path: &[&str]) -> ListType {
    let keys: &[&str] = match path {
        ["metadata", "finalizers"] | ["spec", "finalizers"] => return ListType::Set,
        ["metadata", "ownerReferences"] => &["uid"],
        [.., "conditions" | "addresses"] => &["type"],
        [
            ..,
            "containers" | "initContainers" | "volumes" | "env" | "imagePullSecrets" | "secrets",
        ] => &["name"],
        [.., "volumeMounts"] => &["mountPath"],
        [.., "containers" | "initContainers", "ports"] => &["containerPort", "protocol"],
        ["spec", "ports"] => &["port", "protocol"],
        [.., "podIPs" | "hostIPs" | "hostAliases"] => &["ip"],
        _ => return ListType::Atomic,
    };
    ListType::Map(keys.iter().map(|&key| key.to_owned()).collect())
}

/// Fills in what the server fills in where a field is not given, at a creation and at every later write.
pub(crate) fn defaults(resource: &Resource, object: &mut Value) {
    match resource.kind.as_str() {
        "Pod" => pod_defaults(object),
        "Service" => service_defaults(object),
        "Secret" => secret_defaults(object),
        "EndpointSlice" => {
            for port in map_mut(object)
                .get_mut("ports")
                .and_then(Value::as_array_mut)
                .into_iter()
                .flatten()
            {
                default_to(port, "name", "");
                default_to(port, "protocol", "TCP");
            }
        }
        "Namespace" => {
            let name = meta(object, "name").to_owned();
            let metadata = crate::json::metadata_mut(object);
            map_mut(metadata.entry("labels").or_insert(Value::Null))
                .insert("kubernetes.io/metadata.name".to_owned(), name.into());
            default_to(object, "spec", json!({}));
            default_to(&mut object["spec"], "finalizers", json!(["kubernetes"]));
        }
        _ => {}
    }
}

fn pod_defaults(object: &mut Value) {
    default_to(object, "spec", json!({}));
    let spec = &mut object["spec"];
    default_to(spec, "serviceAccountName", "default");
    let account = spec["serviceAccountName"].clone();
    for (field, value) in [
        ("restartPolicy", json!("Always")),
        ("dnsPolicy", json!("ClusterFirst")),
        ("schedulerName", json!("default-scheduler")),
        ("enableServiceLinks", json!(true)),
        ("terminationGracePeriodSeconds", json!(30)),
        ("securityContext", json!({})),
        ("serviceAccount", account),
        ("priority", json!(0)),
        ("preemptionPolicy", json!("PreemptLowerPriority")),
    ] {
        default_to(spec, field, value);
    }
    for list in ["containers", "initContainers"] {
        for container in map_mut(spec)
            .get_mut(list)
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            for (field, value) in [
                ("imagePullPolicy", json!("IfNotPresent")),
                ("resources", json!({})),
                ("terminationMessagePath", json!("/dev/termination-log")),
                ("terminationMessagePolicy", json!("File")),
            ] {
                default_to(container, field, value);
            }
            for port in map_mut(container)
                .get_mut("ports")
                .and_then(Value::as_array_mut)
                .into_iter()
                .flatten()
            {
                default_to(port, "protocol", "TCP");
            }
        }
    }
}

fn service_defaults(object: &mut Value) {
    default_to(object, "spec", json!({}));
    let spec = &mut object["spec"];
    default_to(spec, "type", "ClusterIP");
    default_to(spec, "sessionAffinity", "None");
    if spec["type"] == "ExternalName" {
        return;
    }
    default_to(spec, "internalTrafficPolicy", "Cluster");
    default_to(spec, "ipFamilies", json!(["IPv4"]));
    default_to(spec, "ipFamilyPolicy", "SingleStack");
    for port in map_mut(spec)
        .get_mut("ports")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        default_to(port, "protocol", "TCP");
        let number = port["port"].clone();
        default_to(port, "targetPort", number);
    }
    if let Some(address) = spec["clusterIP"].as_str().map(str::to_owned) {
        default_to(spec, "clusterIPs", json!([address]));
    }
}

fn secret_defaults(object: &mut Value) {
    use base64::Engine as _;
    default_to(object, "type", "Opaque");
    if let Some(Value::Object(texts)) = map_mut(object).remove("stringData") {
        default_to(object, "data", json!({}));
        for (name, text) in texts {
            let data = base64::engine::general_purpose::STANDARD.encode(text.as_str().unwrap_or_default());
            object["data"][name] = json!(data);
        }
    }
}

/// The status an object of a built-in kind is created with, whatever the request says.
pub(crate) fn initial_status(resource: &Resource, object: &mut Value) {
    let status = match resource.kind.as_str() {
        "Pod" => json!({"phase": "Pending", "qosClass": "BestEffort"}),
        "Namespace" => json!({"phase": "Active"}),
        "Service" => json!({"loadBalancer": {}}),
        "DaemonSet" => json!({
            "currentNumberScheduled": 0, "desiredNumberScheduled": 0, "numberMisscheduled": 0, "numberReady": 0,
        }),
        "Deployment" => json!({}),
        // Kubelets register with a status.
        _ => return,
    };
    object["status"] = status;
}

/// What is wrong with an object of a built-in kind. The checks that a control plane meets, not all there are.
pub(crate) fn validate(resource: &Resource, object: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    let spec = &object["spec"];
    match resource.kind.as_str() {
        "Pod" => {
            if items(&spec["containers"]).is_empty() {
                causes.push(Cause::required("spec.containers", ""));
            }
            for (index, container) in items(&spec["containers"]).iter().enumerate() {
                for field in ["name", "image"] {
                    if container[field].as_str().unwrap_or_default().is_empty() {
                        causes.push(Cause::required(format!("spec.containers[{index}].{field}"), ""));
                    }
                }
            }
        }
        "Service"
            if items(&spec["ports"]).is_empty()
                && spec["clusterIP"] != "None"
                && spec["type"] != "ExternalName" =>
        {
            causes.push(Cause::required("spec.ports", ""));
        }
        "EndpointSlice" => validate_slice(object, &mut causes),
        "Lease" => {
            if let Some(seconds) = spec["leaseDurationSeconds"]
                .as_i64()
                .filter(|seconds| *seconds <= 0)
            {
                causes.push(Cause::invalid(
                    "spec.leaseDurationSeconds",
                    &seconds.into(),
                    "must be greater than 0",
                ));
            }
        }
        "Event" => validate_event(resource, object, &mut causes),
        _ => {}
    }
    causes
}

fn validate_slice(object: &Value, causes: &mut Vec<Cause>) {
    let kinds = ["IPv4", "IPv6", "FQDN"].map(Value::from);
    let kind = &object["addressType"];
    if kind.as_str().unwrap_or_default().is_empty() {
        causes.push(Cause::required("addressType", ""));
    } else if !kinds.contains(kind) {
        causes.push(Cause::unsupported("addressType", kind, &kinds));
    }
    let endpoints = items(&object["endpoints"]);
    if endpoints.len() > MAX_ENDPOINTS {
        let why = format!("must have at most {MAX_ENDPOINTS} items");
        causes.push(Cause::invalid("endpoints", &endpoints.len().into(), &why));
    }
    for (index, endpoint) in endpoints.iter().enumerate() {
        let addresses = items(&endpoint["addresses"]);
        if addresses.is_empty() {
            causes.push(Cause::required(
                format!("endpoints[{index}].addresses"),
                "must contain at least 1 address",
            ));
        }
        for (at, address) in addresses.iter().enumerate() {
            let ip = address.as_str().and_then(|text| text.parse::<IpAddr>().ok());
            let right = match kind.as_str() {
                Some("IPv4") => ip.is_some_and(|ip| ip.is_ipv4()),
                Some("IPv6") => ip.is_some_and(|ip| ip.is_ipv6()),
                _ => true,
            };
            if !right {
                let why = format!("must be an {} address", kind.as_str().unwrap_or_default());
                causes.push(Cause::invalid(
                    format!("endpoints[{index}].addresses[{at}]"),
                    address,
                    &why,
                ));
            }
        }
    }
}

/// An event about an object of the cluster is in `default`, every other in the namespace of its object; those of
/// `events.k8s.io` must say who reports, of what action, and when.
fn validate_event(resource: &Resource, object: &Value, causes: &mut Vec<Cause>) {
    let namespace = meta(object, "namespace");
    let about = object["involvedObject"]["namespace"].as_str().unwrap_or_default();
    let expected = if about.is_empty() { "default" } else { about };
    if namespace != expected && !(about.is_empty() && namespace == "kube-system") {
        let why = "does not match event.namespace";
        causes.push(Cause::invalid("involvedObject.namespace", &about.into(), why));
    }
    if resource.group == "events.k8s.io" {
        for (field, stored) in [
            ("reportingController", "reportingComponent"),
            ("reportingInstance", "reportingInstance"),
            ("action", "action"),
            ("reason", "reason"),
            ("type", "type"),
            ("eventTime", "eventTime"),
        ] {
            if object[stored].as_str().unwrap_or_default().is_empty() {
                causes.push(Cause::required(field, ""));
            }
        }
    }
}

/// What the two kinds of events call the same thing: `events.k8s.io`, then core.
const EVENT_FIELDS: &[(&str, &str)] = &[
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("reportingController", "reportingComponent"),
    ("deprecatedCount", "count"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedSource", "source"),
];

/// An event as the core group has it, which is how it is stored.
pub(crate) fn store_event(resource: &Resource, event: &mut Value) {
    rename(event, resource, |(new, core)| (new, core));
}

/// A stored event as a group shows it.
pub(crate) fn show_event(resource: &Resource, event: &mut Value) {
    rename(event, resource, |(new, core)| (core, new));
}

fn rename(
    event: &mut Value,
    resource: &Resource,
    direction: fn((&'static str, &'static str)) -> (&'static str, &'static str),
) {
    if resource.group != "events.k8s.io" {
        return;
    }
    let event = map_mut(event);
    for (from, to) in EVENT_FIELDS.iter().copied().map(direction) {
        if let Some(value) = event.remove(from) {
            event.insert(to.to_owned(), value);
        }
    }
}
