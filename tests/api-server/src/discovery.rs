//! The documents that say what is served: `/version`, `/api`, `/apis`, and the resources of each version.

use serde_json::{Value, json};

use crate::{
    request::Request,
    resource::{Registry, Resource, VERBS, groups},
};

/// The version of Kubernetes whose behaviour this is.
pub(crate) const VERSION: &str = "v1.34.0";

/// Resources that are created and never stored.
const REVIEWS: &[(&str, &str, &str)] = &[
    ("authentication.k8s.io", "tokenreviews", "TokenReview"),
    ("authentication.k8s.io", "selfsubjectreviews", "SelfSubjectReview"),
    (
        "authorization.k8s.io",
        "subjectaccessreviews",
        "SubjectAccessReview",
    ),
    (
        "authorization.k8s.io",
        "selfsubjectaccessreviews",
        "SelfSubjectAccessReview",
    ),
];

/// The document at a path; nothing where there is none.
pub(crate) fn document(registry: &Registry, request: &Request) -> Option<Value> {
    let segments: Vec<&str> = request
        .path
        .split('/')
        .filter(|segment| !segment.is_empty())
        .collect();
    match segments.as_slice() {
        ["version"] => Some(json!({
            "major": "1", "minor": "34", "gitVersion": VERSION, "gitCommit": "", "gitTreeState": "clean",
            "buildDate": "2025-08-27T10:09:04Z", "goVersion": "go1.24.5", "compiler": "gc",
            "platform": "linux/amd64",
        })),
        ["api"] => Some(match aggregated(request) {
            true => aggregate(registry, true),
            false => json!({
                "kind": "APIVersions", "apiVersion": "v1", "versions": ["v1"], "serverAddressByClientCIDRs": [],
            }),
        }),
        ["apis"] => Some(match aggregated(request) {
            true => aggregate(registry, false),
            false => {
                let groups = groups(registry)
                    .into_iter()
                    .filter(|(group, _)| !group.is_empty());
                let groups: Vec<Value> = groups.map(|(name, versions)| group(&name, &versions)).collect();
                json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
            }
        }),
        ["apis", name] => {
            let found = groups(registry)
                .into_iter()
                .find(|(group, _)| group == name && !name.is_empty());
            found.map(|(name, versions)| {
                let mut document = group(&name, &versions);
                document["kind"] = json!("APIGroup");
                document["apiVersion"] = json!("v1");
                document
            })
        }
        ["api", "v1"] => Some(resources(registry, "", "v1")),
        ["apis", name, version] => {
            let served = groups(registry)
                .into_iter()
                .any(|(group, versions)| group == *name && versions.iter().any(|one| one == version));
            served.then(|| resources(registry, name, version))
        }
        ["openapi", "v3"] => Some(openapi(registry)),
        ["openapi", "v3", "api", version] => openapi_paths(registry, "", version),
        ["openapi", "v3", "apis", group, version] => openapi_paths(registry, group, version),
        _ => None,
    }
}

/// Which versions have an OpenAPI document.
fn openapi(registry: &Registry) -> Value {
    let mut paths = json!({});
    for resource in registry.all() {
        let root = root(resource);
        paths[root.trim_start_matches('/')] = json!({"serverRelativeURL": format!("/openapi/v3{root}")});
    }
    json!({ "paths": paths })
}

/// The OpenAPI document of a version, without schemas: all that kubectl looks for before it leaves validation to
/// the server is that patches have a parameter `fieldValidation`.
fn openapi_paths(registry: &Registry, group: &str, version: &str) -> Option<Value> {
    let mut paths = json!({});
    for resource in registry
        .all()
        .filter(|one| one.group == group && one.version == version)
    {
        let namespace = if resource.namespaced {
            "/namespaces/{namespace}"
        } else {
            ""
        };
        paths[format!("{}{namespace}/{}/{{name}}", root(resource), resource.plural)] = json!({"patch": {
            "parameters": [{"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}],
            "responses": {"200": {"description": "OK"}},
            "x-kubernetes-action": "patch",
            "x-kubernetes-group-version-kind": {"group": group, "version": version, "kind": resource.kind},
        }});
    }
    let found = paths.as_object().is_some_and(|paths| !paths.is_empty());
    let info = json!({"title": "Kubernetes", "version": VERSION});
    found.then(|| json!({"openapi": "3.0.0", "info": info, "paths": paths}))
}

fn root(resource: &Resource) -> String {
    match resource.group.as_str() {
        "" => format!("/api/{}", resource.version),
        group => format!("/apis/{group}/{}", resource.version),
    }
}

/// Whether the whole of discovery is asked for in one document (GA since 1.30).
pub(crate) fn aggregated(request: &Request) -> bool {
    let first = request.accept.split(',').next().unwrap_or_default();
    matches!(request.path.trim_end_matches('/'), "/api" | "/apis")
        && first.contains("as=APIGroupDiscoveryList")
        && first.contains("v=v2")
        && !first.contains("v=v2beta1")
}

fn group(name: &str, versions: &[String]) -> Value {
    let entry = |version: &String| json!({"groupVersion": format!("{name}/{version}"), "version": version});
    let entries: Vec<Value> = versions.iter().map(entry).collect();
    json!({"name": name, "preferredVersion": entries.first(), "versions": entries})
}

fn resources(registry: &Registry, group: &str, version: &str) -> Value {
    let mut listed = Vec::new();
    for resource in registry
        .all()
        .filter(|one| one.group == group && one.version == version)
    {
        listed.push(json!({
            "name": resource.plural, "singularName": resource.singular, "namespaced": resource.namespaced,
            "kind": resource.kind, "verbs": VERBS, "shortNames": resource.short_names,
        }));
        for (subresource, kind, verbs) in subresources(resource) {
            let mut entry = json!({
                "name": format!("{}/{subresource}", resource.plural), "singularName": "",
                "namespaced": resource.namespaced, "kind": kind, "verbs": verbs,
            });
            if kind == "TokenRequest" {
                entry["group"] = json!("authentication.k8s.io");
                entry["version"] = json!("v1");
            }
            listed.push(entry);
        }
    }
    for (_, plural, kind) in REVIEWS.iter().filter(|(of, ..)| *of == group) {
        listed.push(json!({
            "name": plural, "singularName": kind.to_lowercase(), "namespaced": false, "kind": kind,
            "verbs": ["create"],
        }));
    }
    let group_version = if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    };
    json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": listed})
}

fn subresources(resource: &Resource) -> Vec<(&'static str, &str, &'static [&'static str])> {
    let mut found: Vec<(&'static str, &str, &'static [&'static str])> = Vec::new();
    if resource.status {
        found.push(("status", &resource.kind, &["get", "patch", "update"]));
    }
    if resource.is("serviceaccounts") {
        found.push(("token", "TokenRequest", &["create"]));
    }
    found
}

fn aggregate(registry: &Registry, core: bool) -> Value {
    let groups = groups(registry)
        .into_iter()
        .filter(|(group, _)| group.is_empty() == core);
    let groups: Vec<Value> = groups
        .map(|(name, versions)| {
            let versions = versions
                .iter()
                .map(|version| aggregate_version(registry, &name, version));
            json!({"metadata": {"name": name}, "versions": versions.collect::<Vec<_>>()})
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": groups,
    })
}

fn aggregate_version(registry: &Registry, group: &str, version: &str) -> Value {
    let kind = |group: &str, kind: &str| json!({"group": group, "version": "v1", "kind": kind});
    let mut listed = Vec::new();
    for resource in registry
        .all()
        .filter(|one| one.group == group && one.version == version)
    {
        let mut responds = kind(group, &resource.kind);
        responds["version"] = json!(version);
        let below: Vec<Value> = subresources(resource)
            .into_iter()
            .map(|(name, of, verbs)| json!({"subresource": name, "responseKind": kind(group, of), "verbs": verbs}))
            .collect();
        listed.push(json!({
            "resource": resource.plural, "responseKind": responds, "singularResource": resource.singular,
            "scope": if resource.namespaced { "Namespaced" } else { "Cluster" },
            "shortNames": resource.short_names, "verbs": VERBS, "subresources": below,
        }));
    }
    for (_, plural, of) in REVIEWS.iter().filter(|(of, ..)| *of == group) {
        listed.push(json!({
            "resource": plural, "responseKind": kind(group, of), "singularResource": of.to_lowercase(),
            "scope": "Cluster", "verbs": ["create"],
        }));
    }
    json!({"version": version, "resources": listed, "freshness": "Current"})
}
