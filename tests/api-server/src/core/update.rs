//! Replace and patch, of objects and of their status.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{
    Call, Core, Reply,
    write::{list_type, wrong_name},
};
use crate::{
    apply::{self, Writer},
    builtin,
    json::{items, map_mut, meta, metadata_mut, set_or_remove},
    patch,
    status::{Cause, Status},
};

/// What a writer may not change in the metadata.
const KEPT: [&str; 7] = [
    "name",
    "namespace",
    "uid",
    "creationTimestamp",
    "generation",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
];

impl Core {
    pub(super) fn replace(&mut self, call: &Call<'_>) -> Result<Reply, Status> {
        let body = call.body()?;
        let writer = call.writer("Update");
        let Some(old) = self.store.find(&call.resource.storage(), &call.key()).cloned() else {
            if call.resource.create_on_update() && call.subresource().is_empty() {
                let object = self.create_object(call, body, &writer, None)?;
                return call.shown(&object).map(Reply::created);
            }
            return Err(call.not_found());
        };
        let new = call.read(body)?;
        if meta(&new, "resourceVersion").is_empty() && !call.resource.unconditional_update() {
            let cause = Cause::invalid(
                "metadata.resourceVersion",
                &json!(0),
                "must be specified for an update",
            );
            return Err(call.invalid(call.name(), &[cause]));
        }
        let object = self.update(call, &old, new, Some(&writer))?;
        call.shown(&object).map(Reply::ok)
    }

    pub(super) fn patch(&mut self, call: &Call<'_>) -> Result<Reply, Status> {
        const ACCEPTED: &str =
            "application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml";
        let content_type = call.request.content_type.split(';').next().unwrap_or_default();
        let query = &call.request.query;
        let applies = content_type.trim() == "application/apply-patch+yaml";
        if !applies && !query.text("force").is_empty() {
            let cause = Cause::forbidden("force", "may not be specified for non-apply patch");
            return Err(Status::invalid("meta.k8s.io", "PatchOptions", "", &[cause]));
        }
        let body: Value = serde_json::from_slice(&call.request.body)
            .map_err(|why| Status::bad_request(format!("error decoding patch: {why}")))?;
        if applies {
            return self.apply(call, body);
        }
        let old = self.store.find(&call.resource.storage(), &call.key()).cloned();
        let old = old.ok_or_else(|| call.not_found())?;
        let mut new = crate::resource::shown(&call.resource, &old);
        let about = (
            call.resource.group.as_str(),
            call.resource.kind.as_str(),
            call.name(),
        );
        match content_type.trim() {
            "application/json-patch+json" => patch::json(&mut new, &body, about)?,
            "application/merge-patch+json" => patch::merge(&mut new, &body),
            "application/strategic-merge-patch+json" if call.resource.custom.is_none() => {
                patch::strategic(&mut new, &body);
            }
            _ => return Err(Status::unsupported_media_type(ACCEPTED)),
        }
        let object = self.update(call, &old, call.read(new)?, Some(&call.writer("Update")))?;
        call.shown(&object).map(Reply::ok)
    }

    /// Server-side apply.
    fn apply(&mut self, call: &Call<'_>, body: Value) -> Result<Reply, Status> {
        if call.request.query.text("fieldManager").is_empty() {
            let cause = Cause::required("fieldManager", "is required for apply patch");
            return Err(Status::invalid("meta.k8s.io", "PatchOptions", "", &[cause]));
        }
        let resource = Arc::clone(&call.resource);
        if body["apiVersion"] != resource.api_version().as_str() || body["kind"] != resource.kind.as_str() {
            let message = "invalid object type: apiVersion and kind must be those of the resource";
            return Err(Status::bad_request(message));
        }
        if !items(&body["metadata"]["managedFields"]).is_empty() {
            return Err(Status::bad_request("metadata.managedFields must be nil"));
        }
        let writer = call.writer("Apply");
        let lists = |path: &[&str]| list_type(&resource, path);
        let applied = call.read_applied(body)?;
        let force = call.request.query.flag("force");
        let old = self.store.find(&resource.storage(), &call.key()).cloned();
        let base = old.as_deref().cloned().unwrap_or_else(|| json!({}));
        let version = meta(&applied, "resourceVersion").to_owned();
        let merged = apply::apply(&base, &applied, &writer, force, &lists)
            .map_err(|conflicts| Status::apply_conflict(&writer.api_version, &conflicts))?;
        let mut merged = crate::resource::shown(&resource, &merged);
        match old {
            Some(old) => {
                // Only a version that was applied is a precondition, not that of the object it was merged into.
                set_or_remove(
                    metadata_mut(&mut merged),
                    "resourceVersion",
                    Some(&version.into()),
                );
                let object = self.update(call, &old, call.read(merged)?, None)?;
                call.shown(&object).map(Reply::ok)
            }
            None if call.subresource().is_empty() => {
                let uid = meta(&merged, "uid");
                if !uid.is_empty() {
                    let why = format!(
                        "uid mismatch: the provided object specified uid {uid}, and no existing object was found"
                    );
                    return Err(Status::conflict(
                        &resource.group,
                        &resource.plural,
                        call.name(),
                        &why,
                    ));
                }
                let managed = merged["metadata"]["managedFields"].clone();
                let object = self.create_object(call, merged, &writer, Some(managed))?;
                call.shown(&object).map(Reply::created)
            }
            None => Err(call.not_found()),
        }
    }

    /// Writes an object anew. `writer` takes over what it changes; without one, the managed fields in the object
    /// are right already.
    fn update(
        &mut self,
        call: &Call<'_>,
        old: &Arc<Value>,
        mut new: Value,
        writer: Option<&Writer>,
    ) -> Result<Value, Status> {
        let resource = &call.resource;
        check_identity(call, old, &new)?;
        let only_status = call.subresource() == "status";
        if only_status {
            new = with_status_of(call, old, &new);
        } else if resource.status {
            set_or_remove(map_mut(&mut new), "status", old.get("status"));
        }
        let metadata = metadata_mut(&mut new);
        for field in KEPT.iter().chain(&["resourceVersion"]) {
            set_or_remove(metadata, field, old["metadata"].get(field));
        }
        if resource.is("services") {
            for field in ["clusterIP", "clusterIPs"] {
                if new["spec"].is_object() && new["spec"].get(field).is_none() {
                    set_or_remove(map_mut(&mut new["spec"]), field, old["spec"].get(field));
                }
            }
        }
        builtin::defaults(resource, &mut new);
        call.validate(&new)?;
        check_immutable(call, old, &new)?;
        if resource.has_generation() && !only_status && differs_in_spec(call, old, &new) {
            let generation = old["metadata"]["generation"].as_u64().unwrap_or(0) + 1;
            metadata_mut(&mut new).insert("generation".to_owned(), generation.into());
        }
        if without_managers(&new) == without_managers(old) && (writer.is_some() || same_managers(&new, old)) {
            // A write that changes nothing is none: no new version, no event.
            return Ok(Value::clone(old));
        }
        if let Some(writer) = writer {
            apply::take_over(old, &mut new, writer, &|path| list_type(resource, path));
        }
        if call.request.query.dry_run() {
            return Ok(new);
        }
        self.store_updated(call, new)
    }

    fn store_updated(&mut self, call: &Call<'_>, new: Value) -> Result<Value, Status> {
        let storage = call.resource.storage();
        let released = !meta(&new, "deletionTimestamp").is_empty()
            && items(&new["metadata"]["finalizers"]).is_empty()
            && new["metadata"]["deletionGracePeriodSeconds"]
                .as_i64()
                .unwrap_or(0)
                == 0;
        // A namespace goes when it is empty, by its own finalizer.
        if released && !call.resource.is("namespaces") {
            // The write itself is not seen by watches, only that the object is gone.
            self.remove(&storage, &call.key());
            return Ok(new);
        }
        let stored = Value::clone(&self.store.put(&storage, &call.key(), new));
        if call.resource.kind == "CustomResourceDefinition" {
            self.define(&stored, &call.time());
        }
        Ok(stored)
    }
}

impl Call<'_> {
    /// An applied configuration, of which only what is wrong with its types is refused: it need not be whole.
    fn read_applied(&self, body: Value) -> Result<Value, Status> {
        let given = body.clone();
        let read = self.read(body)?;
        // Defaults that reading filled in are not what was applied.
        Ok(intersection(&given, &read))
    }
}

/// Those parts of `read` that `given` has as well.
fn intersection(given: &Value, read: &Value) -> Value {
    match (given, read) {
        (Value::Object(given), Value::Object(read)) => {
            let both = read
                .iter()
                .filter_map(|(name, read)| Some((name.clone(), intersection(given.get(name)?, read))));
            Value::Object(both.collect())
        }
        (Value::Array(given), Value::Array(read)) if given.len() == read.len() => Value::Array(
            given
                .iter()
                .zip(read)
                .map(|(given, read)| intersection(given, read))
                .collect(),
        ),
        (_, read) => read.clone(),
    }
}

fn check_identity(call: &Call<'_>, old: &Value, new: &Value) -> Result<(), Status> {
    let (group, plural, name) = (&call.resource.group, &call.resource.plural, call.name());
    let given = meta(new, "name");
    if given != name {
        return Err(wrong_name(given, name));
    }
    let (uid, held) = (meta(new, "uid"), meta(old, "uid"));
    let is_another = !uid.is_empty() && uid != held;
    let patches = call.request.method == "PATCH";
    if is_another && !patches {
        let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {held}");
        return Err(Status::conflict(group, plural, name, &why));
    }
    let version = meta(new, "resourceVersion");
    if !matches!(version, "" | "0") && version != meta(old, "resourceVersion") {
        return Err(Status::stale(group, plural, name));
    }
    // Of a patch the UID is no precondition, but a field like others that may not be changed; with the status of a custom
    // resource, what a patch says of the metadata is passed over.
    if is_another && !(call.resource.custom.is_some() && call.subresource() == "status") {
        let cause = Cause::invalid("metadata.uid", &json!(uid), "field is immutable");
        return Err(call.invalid(name, &[cause]));
    }
    let before = items(&old["metadata"]["finalizers"]);
    let added = items(&new["metadata"]["finalizers"])
        .iter()
        .any(|one| !before.contains(one));
    if added && !meta(old, "deletionTimestamp").is_empty() {
        let why = "no new finalizers can be added if the object is being deleted";
        return Err(call.invalid(name, &[Cause::forbidden("metadata.finalizers", why)]));
    }
    Ok(())
}

/// The old object with a new status. Of built-in kinds, labels and annotations are written along.
fn with_status_of(call: &Call<'_>, old: &Value, new: &Value) -> Value {
    let mut object = old.clone();
    set_or_remove(map_mut(&mut object), "status", new.get("status"));
    let metadata = metadata_mut(&mut object);
    set_or_remove(metadata, "managedFields", new["metadata"].get("managedFields"));
    if call.resource.custom.is_none() {
        for field in ["labels", "annotations"] {
            set_or_remove(metadata, field, new["metadata"].get(field));
        }
    }
    object
}

fn differs_in_spec(call: &Call<'_>, old: &Value, new: &Value) -> bool {
    let spec = |object: &Value| {
        let mut object = object.clone();
        let map = map_mut(&mut object);
        map.remove("metadata");
        if call.resource.status {
            map.remove("status");
        }
        object
    };
    spec(old) != spec(new)
}

fn without_managers(object: &Value) -> Value {
    let mut object = object.clone();
    metadata_mut(&mut object).remove("managedFields");
    object
}

/// Whether the same managers have the same fields, whenever they wrote them.
fn same_managers(one: &Value, other: &Value) -> bool {
    let entries = |object: &Value| -> Vec<Value> {
        let entries = items(&object["metadata"]["managedFields"]).iter().cloned();
        let mut entries: Vec<Value> = entries
            .map(|mut entry| {
                map_mut(&mut entry).remove("time");
                entry
            })
            .collect();
        entries.sort_by_key(Value::to_string);
        entries
    };
    entries(one) == entries(other)
}

/// What may not be changed once it is there: most of a pod, a slice's address type, a definition's names.
fn check_immutable(call: &Call<'_>, old: &Value, new: &Value) -> Result<(), Status> {
    let refuse = |field: &str, why: &str| Err(call.invalid(call.name(), &[Cause::forbidden(field, why)]));
    match call.resource.kind.as_str() {
        "Pod" => {
            let fixed = |pod: &Value| {
                let mut spec = pod["spec"].clone();
                let map = map_mut(&mut spec);
                for field in [
                    "tolerations",
                    "activeDeadlineSeconds",
                    "terminationGracePeriodSeconds",
                    "schedulingGates",
                ] {
                    map.remove(field);
                }
                for list in ["containers", "initContainers"] {
                    for container in map
                        .get_mut(list)
                        .and_then(Value::as_array_mut)
                        .into_iter()
                        .flatten()
                    {
                        map_mut(container).remove("image");
                    }
                }
                spec
            };
            if fixed(old) != fixed(new) {
                let why = "pod updates may not change fields other than `spec.containers[*].image`, \
                           `spec.initContainers[*].image`, `spec.activeDeadlineSeconds`, `spec.tolerations` (only \
                           additions to existing tolerations), `spec.terminationGracePeriodSeconds`";
                return refuse("spec", why);
            }
            Ok(())
        }
        "EndpointSlice" if old["addressType"] != new["addressType"] => {
            let cause = Cause::invalid("addressType", &new["addressType"], "field is immutable");
            Err(call.invalid(call.name(), &[cause]))
        }
        "CustomResourceDefinition" => {
            for field in ["group", "scope"] {
                if old["spec"][field] != new["spec"][field] {
                    return refuse(&format!("spec.{field}"), "field is immutable");
                }
            }
            Ok(())
        }
        _ => Ok(()),
    }
}
