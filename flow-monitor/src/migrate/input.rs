//! Objects of another mesh: from files, or from a cluster.

use std::{
    fs,
    io::Read as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use jiff::Timestamp;
use kube::{
    Api,
    api::{ApiResource, DynamicObject, ListParams},
    core::GroupVersionKind,
};
use serde_json::Value;

use crate::cluster::{ApiError, Cluster};

/// Folders within folders that are looked into.
const DEPTH: usize = 16;
/// Objects of a page.
const PAGE: u32 = 500;

pub(crate) const SECURITY: &str = "security.istio.io";
pub(crate) const NETWORKING: &str = "networking.istio.io";
pub(crate) const LINKERD: &str = "policy.linkerd.io";

/// What is read of a cluster: group, versions from the newest, kind. All are read only.
const KINDS: [(&str, &[&str], &str); 13] = [
    ("", &["v1"], "Namespace"),
    (SECURITY, &["v1", "v1beta1"], "AuthorizationPolicy"),
    (SECURITY, &["v1", "v1beta1"], "PeerAuthentication"),
    (SECURITY, &["v1", "v1beta1"], "RequestAuthentication"),
    (NETWORKING, &["v1", "v1beta1", "v1alpha3"], "VirtualService"),
    (NETWORKING, &["v1", "v1beta1", "v1alpha3"], "DestinationRule"),
    (LINKERD, &["v1beta3", "v1beta2", "v1beta1"], "Server"),
    (LINKERD, &["v1alpha1"], "AuthorizationPolicy"),
    (LINKERD, &["v1alpha1"], "MeshTLSAuthentication"),
    (LINKERD, &["v1alpha1"], "NetworkAuthentication"),
    (LINKERD, &["v1beta1"], "ServerAuthorization"),
    (
        LINKERD,
        &["v1beta3", "v1beta2", "v1beta1", "v1alpha1"],
        "HTTPRoute",
    ),
    ("", &["v1"], "Pod"),
];

/// An object, and where it was read.
#[derive(Debug, Clone)]
pub(crate) struct Item {
    pub(crate) place: String,
    pub(crate) namespace: String,
    pub(crate) value: Value,
}

// === impl Item ===

impl Item {
    pub(crate) fn group(&self) -> &str {
        let version = self.value["apiVersion"].as_str().unwrap_or_default();
        version.split_once('/').map_or("", |(group, _)| group)
    }

    pub(crate) fn kind(&self) -> &str {
        self.value["kind"].as_str().unwrap_or_default()
    }

    pub(crate) fn name(&self) -> &str {
        self.value["metadata"]["name"].as_str().unwrap_or_default()
    }

    pub(crate) fn spec(&self) -> &Value {
        &self.value["spec"]
    }

    pub(crate) fn annotation(&self, name: &str) -> Option<&str> {
        self.value["metadata"]["annotations"].get(name)?.as_str()
    }

    pub(crate) fn label(&self, name: &str) -> Option<&str> {
        self.value["metadata"]["labels"].get(name)?.as_str()
    }

    pub(crate) fn created(&self) -> Option<Timestamp> {
        let text = self.value["metadata"]["creationTimestamp"].as_str()?;
        text.parse().ok()
    }

    /// Kind, namespace and name, group.
    pub(crate) fn title(&self) -> String {
        let name = self.name();
        if self.kind() == "Namespace" {
            return format!("Namespace {name}");
        }
        format!("{} {}/{name} ({})", self.kind(), self.namespace, self.group())
    }
}

/// Reads files, folders and standard input (`-`).
///
/// # Errors
/// When one cannot be read, or is no YAML or JSON.
pub(crate) fn files(paths: &[PathBuf], namespace: &str) -> anyhow::Result<Vec<Item>> {
    let mut items = Vec::new();
    for path in paths {
        if path.as_os_str() == "-" {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text)?;
            items.extend(parse(&text, "stdin", namespace)?);
        } else {
            path_to(path, namespace, 0, &mut items)?;
        }
    }
    Ok(items)
}

fn path_to(path: &Path, namespace: &str, depth: usize, items: &mut Vec<Item>) -> anyhow::Result<()> {
    let name = path.display().to_string();
    if !fs::metadata(path).with_context(|| name.clone())?.is_dir() {
        let text = fs::read_to_string(path).with_context(|| name.clone())?;
        items.extend(parse(&text, &name, namespace)?);
        return Ok(());
    }
    if depth == DEPTH {
        bail!("{name}: more than {DEPTH} folders within each other");
    }
    let entries = fs::read_dir(path).with_context(|| name.clone())?;
    let mut entries: Vec<PathBuf> = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<_>>()?;
    entries.sort();
    for entry in entries {
        let extension = entry.extension().and_then(|one| one.to_str());
        if entry.is_dir() || matches!(extension, Some("yaml" | "yml" | "json")) {
            path_to(&entry, namespace, depth + 1, items)?;
        }
    }
    Ok(())
}

/// Reads the documents of a text, and what stands in lists.
///
/// # Errors
/// When it is no YAML or JSON.
pub(crate) fn parse(text: &str, place: &str, namespace: &str) -> anyhow::Result<Vec<Item>> {
    // JSON is YAML, but its own reader knows no bounds on size and depth that large lists could meet.
    let json = text.trim_start().starts_with(['{', '[']).then(|| {
        let documents = serde_json::Deserializer::from_str(text).into_iter::<Value>();
        documents.collect::<Result<Vec<_>, _>>()
    });
    let documents = match json {
        Some(Ok(documents)) => documents,
        _ => serde_saphyr::from_multiple(text).with_context(|| place.to_owned())?,
    };
    let mut items = Vec::new();
    for document in documents {
        unfold(document, place, namespace, &mut items);
    }
    Ok(items)
}

fn unfold(document: Value, place: &str, namespace: &str, items: &mut Vec<Item>) {
    let list = document["kind"]
        .as_str()
        .is_some_and(|kind| kind.ends_with("List"));
    match document {
        Value::Array(entries) => {
            for entry in entries {
                unfold(entry, place, namespace, items);
            }
        }
        Value::Object(mut fields) if list && fields.get("items").is_some_and(Value::is_array) => {
            if let Some(entries) = fields.remove("items") {
                unfold(entries, place, namespace, items);
            }
        }
        Value::Object(_) => items.push(Item {
            place: place.to_owned(),
            namespace: document["metadata"]["namespace"]
                .as_str()
                .unwrap_or(namespace)
                .to_owned(),
            value: document,
        }),
        _ => {}
    }
}

/// Reads what there is in a cluster. Kinds that it does not know are none.
///
/// # Errors
/// When the API server refuses or does not answer.
pub(crate) async fn cluster(cluster: &Cluster) -> anyhow::Result<Vec<Item>> {
    let mut items: Vec<Item> = Vec::new();
    for (group, versions, kind) in KINDS {
        // Pods are looked at for the names of ports alone.
        if kind == "Pod" && !items.iter().any(|item| item.spec()["port"].is_string()) {
            continue;
        }
        for version in versions {
            match all(cluster, group, version, kind).await {
                Ok(found) => {
                    items.extend(found);
                    break;
                }
                Err(why) if why.is_absent() => {}
                Err(why) if why.is_answer() => {
                    return Err(anyhow::Error::from(why).context(format!("reading {kind} of {group}")));
                }
                Err(why) => return Err(cluster.unreachable(why)),
            }
        }
    }
    Ok(items)
}

async fn all(cluster: &Cluster, group: &str, version: &str, kind: &str) -> Result<Vec<Item>, ApiError> {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
    let api = Api::<DynamicObject>::all_with(cluster.client.clone(), &resource);
    let mut items = Vec::new();
    let mut params = ListParams::default().limit(PAGE);
    loop {
        let page = cluster.answer(api.list(&params)).await?;
        for mut object in page.items {
            object.metadata.managed_fields = None;
            let namespace = object.metadata.namespace.clone().unwrap_or_default();
            let mut value = serde_json::json!({"metadata": object.metadata});
            if let (Value::Object(into), Value::Object(data)) = (&mut value, object.data) {
                into.extend(data);
            }
            value["apiVersion"] = resource.api_version.clone().into();
            value["kind"] = kind.into();
            items.push(Item {
                place: String::new(),
                namespace,
                value,
            });
        }
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(items),
        }
    }
}
