//! Objects of any kind at the API server.

use anyhow::{Context as _, bail};
use kube::{
    Api, Client,
    api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams},
    core::GroupVersionKind,
};

use super::manifest::Object;
use crate::cluster::Cluster;

/// Who applies.
const MANAGER: &str = "weir-install";

/// What an object is, for people.
pub(crate) fn title(object: &Object) -> String {
    let text = |value: &Object| value.as_str().unwrap_or_default().to_owned();
    let (kind, meta) = (text(&object["kind"]), &object["metadata"]);
    match meta["namespace"].as_str() {
        Some(namespace) => format!("{kind} {namespace}/{}", text(&meta["name"])),
        None => format!("{kind} {}", text(&meta["name"])),
    }
}

/// Where objects of an object's kind and namespace are.
///
/// # Errors
/// When it says neither.
pub(crate) fn api(client: &Client, object: &Object) -> anyhow::Result<Api<DynamicObject>> {
    let kind = object["kind"].as_str().context("an object without a kind")?;
    let version = object["apiVersion"]
        .as_str()
        .context("an object without an API version")?;
    let (group, version) = version.split_once('/').unwrap_or(("", version));
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
    Ok(match object["metadata"]["namespace"].as_str() {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    })
}

/// The name of an object.
pub(crate) fn name(object: &Object) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

/// Makes an object as it stands, or what is there like it.
///
/// # Errors
/// The API server's refusal.
pub(crate) async fn apply(cluster: &Cluster, object: &Object) -> anyhow::Result<()> {
    let params = PatchParams::apply(MANAGER).force();
    let api = api(&cluster.client, object)?;
    let patch = Patch::Apply(object);
    match cluster.answer(api.patch(name(object), &params, &patch)).await {
        Ok(_) => Ok(()),
        Err(why) => bail!("{}: {why}", title(object)),
    }
}

/// Deletes an object. True if it was there.
///
/// # Errors
/// The API server's refusal.
pub(crate) async fn delete(cluster: &Cluster, object: &Object) -> anyhow::Result<bool> {
    let api = api(&cluster.client, object)?;
    let params = DeleteParams::background();
    match cluster.answer(api.delete(name(object), &params)).await {
        Ok(_) => Ok(true),
        Err(why) if why.is_absent() => Ok(false),
        Err(why) => bail!("{}: {why}", title(object)),
    }
}

/// The object as it is there now, if it is.
///
/// # Errors
/// When the API server does not say.
pub(crate) async fn get(cluster: &Cluster, object: &Object) -> anyhow::Result<Option<Object>> {
    let api = api(&cluster.client, object)?;
    match cluster.answer(api.get(name(object))).await {
        Ok(found) => Ok(Some(serde_json::to_value(found)?)),
        Err(why) if why.is_absent() => Ok(None),
        Err(why) => bail!("{}: {why}", title(object)),
    }
}
