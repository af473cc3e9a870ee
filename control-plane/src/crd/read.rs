//! Policies from what the API server has, whatever let it in.

use kube::api::DynamicObject;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use weir_policy::{AuthorizationPolicy, PeerAuthentication, Selector};

use crate::cluster::{
    Event, ObjectName, PolicyApi, Read,
    parse::{created, name_of},
};

/// Istio's annotation of policies that are only to be rehearsed. Ours have a field.
pub const DRY_RUN: &str = "istio.io/dry-run";

/// What Istio's Go reads as true (`strconv.ParseBool`).
const TRUE: [&str; 6] = ["1", "t", "T", "true", "TRUE", "True"];
/// Istio's fields that attach a policy to a waypoint or gateway.
const TARGETS: [&str; 2] = ["targetRef", "targetRefs"];

/// A policy, or that it is none here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reading<T> {
    /// It concerns workloads.
    Policy(Read<T>),
    /// It is for a waypoint or gateway, which L4 knows nothing of.
    Elsewhere {
        /// The kind and name of what it is for, as far as that was understood.
        target: String,
    },
}

/// Reads an AuthorizationPolicy of ours or of Istio's (`v1` and `v1beta1` are alike). `None` without name and namespace.
#[must_use]
pub fn read_authorization(
    api: PolicyApi,
    object: &DynamicObject,
) -> Option<(ObjectName, Reading<AuthorizationPolicy>)> {
    let name = name_of(&object.metadata)?;
    let annotated = api == PolicyApi::Istio && is_annotated_dry_run(object);
    let mut spec = match spec(object) {
        Ok(spec) => spec,
        Err(problem) => return Some((name, malformed(None, annotated, problem))),
    };
    if api == PolicyApi::Istio {
        if let Some(target) = target(&mut spec) {
            return Some((name, Reading::Elsewhere { target }));
        }
        if let Some(action @ ("AUDIT" | "CUSTOM")) = spec.get("action").and_then(Value::as_str) {
            let problem = format!("action: expected ALLOW or DENY; {action} is not supported");
            return Some((name, malformed(selector(&spec), annotated, problem)));
        }
        // Here it is an annotation, and the field would be none of Istio's.
        if !spec.contains_key("dryRun") {
            spec.insert("dryRun".to_owned(), annotated.into());
        } else {
            let problem = format!("dryRun: unknown field; Istio's is the annotation {DRY_RUN}");
            return Some((name, malformed(selector(&spec), annotated, problem)));
        }
    }
    // A mark that is none is an error of its own, and nobody's wish to rehearse.
    let dry_run = spec.get("dryRun") == Some(&Value::Bool(true));
    let read = parse(&name, spec, dry_run);
    Some((name, read))
}

/// Reads a PeerAuthentication of ours or of Istio's. `None` without name and namespace.
#[must_use]
pub fn read_peer_authentication(object: &DynamicObject) -> Option<(ObjectName, Reading<PeerAuthentication>)> {
    let name = name_of(&object.metadata)?;
    let read = match spec(object) {
        Ok(spec) => parse(&name, spec, false),
        Err(problem) => malformed(None, false, problem),
    };
    Some((name, read))
}

/// What an AuthorizationPolicy that is there means for the mesh. One that is for a waypoint or gateway is none here: if it was
/// one before, it is no more.
#[must_use]
pub fn authorization_event(api: PolicyApi, object: &DynamicObject) -> Option<Event> {
    let (name, reading) = read_authorization(api, object)?;
    Some(Event::AuthorizationPolicy(
        api,
        name,
        reading.read().map(Box::new),
    ))
}

/// What a PeerAuthentication that is there means for the mesh.
#[must_use]
pub fn peer_authentication_event(api: PolicyApi, object: &DynamicObject) -> Option<Event> {
    let (name, reading) = read_peer_authentication(object)?;
    let created = created(&object.metadata);
    let read = reading.read().map(|read| (created, read));
    Some(Event::PeerAuthentication(api, name, read))
}

impl<T> Reading<T> {
    /// The policy, if it concerns workloads.
    #[must_use]
    pub fn read(self) -> Option<Read<T>> {
        match self {
            Self::Policy(read) => Some(read),
            Self::Elsewhere { .. } => None,
        }
    }
}

/// An object's `spec`, without nulls. Istio allows none, and an absent one has no fields.
fn spec(object: &DynamicObject) -> Result<Map<String, Value>, String> {
    match object.data.get("spec") {
        None | Some(Value::Null) => Ok(Map::new()),
        Some(Value::Object(fields)) => {
            let mut spec = Value::Object(fields.clone());
            without_nulls(&mut spec);
            match spec {
                Value::Object(fields) => Ok(fields),
                _ => Ok(Map::new()),
            }
        }
        Some(_) => Err("spec: expected an object".to_owned()),
    }
}

/// A field that is null is absent, in YAML as people write it and in protobuf's JSON. An entry of a list is not.
fn without_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            fields.values_mut().for_each(without_nulls);
        }
        Value::Array(entries) => entries.iter_mut().for_each(without_nulls),
        _ => {}
    }
}

/// What a policy of Istio's is attached to. An empty list attaches it to nothing.
fn target(spec: &mut Map<String, Value>) -> Option<String> {
    let mut found = None;
    for field in TARGETS {
        let one = match spec.get(field) {
            None => continue,
            Some(Value::Array(entries)) if entries.is_empty() => {
                spec.remove(field);
                continue;
            }
            Some(Value::Array(entries)) => entries.first(),
            other => other,
        };
        let text = |name: &str| one.and_then(|one| one.get(name)?.as_str()).unwrap_or("?");
        found = Some(format!("{} {}", text("kind"), text("name")));
    }
    found
}

/// The selector alone, for a policy of which the rest cannot be understood.
fn selector(spec: &Map<String, Value>) -> Option<Selector> {
    serde_json::from_value(spec.get("selector")?.clone()).ok()
}

/// Whether a policy of Istio's is only to be rehearsed.
fn is_annotated_dry_run(object: &DynamicObject) -> bool {
    let annotations = object.metadata.annotations.as_ref();
    let text = annotations.and_then(|annotations| annotations.get(DRY_RUN));
    text.is_some_and(|text| TRUE.contains(&text.as_str()))
}

fn malformed<T>(selector: Option<Selector>, dry_run: bool, problem: String) -> Reading<T> {
    Reading::Policy(Read::Malformed {
        selector,
        dry_run,
        problem,
    })
}

fn parse<T: DeserializeOwned>(name: &ObjectName, mut spec: Map<String, Value>, dry_run: bool) -> Reading<T> {
    let selector = selector(&spec);
    for (field, value) in [("name", &name.name), ("namespace", &name.namespace)] {
        // The policy's types have the spec's fields beside the name: what would be overwritten is no field of the spec.
        if spec.insert(field.to_owned(), json!(&**value)).is_some() {
            return malformed(selector, dry_run, format!("{field}: unknown field"));
        }
    }
    match serde_path_to_error::deserialize(Value::Object(spec)) {
        Ok(policy) => Reading::Policy(Read::Understood(policy)),
        Err(error) => {
            let (path, problem) = (error.path().to_string(), error.inner().to_string());
            let problem = match path.as_str() {
                "." => problem,
                path => format!("{path}: {problem}"),
            };
            malformed(selector, dry_run, problem)
        }
    }
}
