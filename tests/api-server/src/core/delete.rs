//! Delete: at once, after a grace period, or when the finalizers are gone.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{Call, Core, Reply, read::Selection};
use crate::{
    json::{items, meta, metadata_mut},
    resource::{Resource, shown},
    status::Status,
    store,
};

/// What a deletion asks for.
#[derive(Debug, Default)]
struct Options {
    grace: Option<i64>,
    uid: Option<String>,
    version: Option<String>,
    dry_run: bool,
}

impl Options {
    fn of(call: &Call<'_>) -> Result<Self, Status> {
        let query = &call.request.query;
        let body: Value = match call.request.body.as_slice() {
            [] => Value::Null,
            body => serde_json::from_slice(body)
                .map_err(|why| Status::bad_request(format!("error decoding DeleteOptions: {why}")))?,
        };
        let precondition = |field: &str| body["preconditions"][field].as_str().map(str::to_owned);
        let grace = query
            .number("gracePeriodSeconds")?
            .and_then(|seconds| i64::try_from(seconds).ok());
        Ok(Self {
            grace: body["gracePeriodSeconds"].as_i64().or(grace),
            uid: precondition("uid"),
            version: precondition("resourceVersion"),
            dry_run: query.dry_run() || items(&body["dryRun"]).contains(&json!("All")),
        })
    }

    fn check(&self, resource: &Resource, object: &Value) -> Result<(), Status> {
        for (noun, wanted, field) in [
            ("UID", &self.uid, "uid"),
            ("ResourceVersion", &self.version, "resourceVersion"),
        ] {
            let held = meta(object, field);
            if let Some(wanted) = wanted.as_deref().filter(|wanted| *wanted != held) {
                let why = format!(
                    "Precondition failed: {noun} in precondition: {wanted}, {noun} in object meta: {held}"
                );
                return Err(Status::conflict(
                    &resource.group,
                    &resource.plural,
                    meta(object, "name"),
                    &why,
                ));
            }
        }
        Ok(())
    }
}

impl Core {
    pub(super) fn delete(&mut self, call: &Call<'_>) -> Result<Reply, Status> {
        let options = Options::of(call)?;
        let found = self.store.find(&call.resource.storage(), &call.key()).cloned();
        let object = found.ok_or_else(|| call.not_found())?;
        options.check(&call.resource, &object)?;
        if options.dry_run {
            return call.shown(&object).map(Reply::ok);
        }
        match self.delete_object(call, &object, &options) {
            Some(waiting) => call.shown(&waiting).map(Reply::ok),
            None if call.resource.returns_deleted() => call.shown(&object).map(Reply::ok),
            None => {
                let (resource, name, uid) = (&call.resource, call.name(), meta(&object, "uid"));
                let details =
                    json!({"name": name, "group": resource.group, "kind": resource.plural, "uid": uid});
                Ok(Reply::ok(json!({
                    "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details,
                })))
            }
        }
    }

    pub(super) fn delete_collection(&mut self, call: &Call<'_>) -> Result<Reply, Status> {
        let options = Options::of(call)?;
        let selection = Selection::of(call)?;
        let storage = call.resource.storage();
        let objects = self.store.all(&storage).map(|(_, object)| object);
        let selected: Vec<Arc<Value>> = objects
            .filter(|object| selection.matches(&call.resource, object))
            .cloned()
            .collect();
        if !options.dry_run {
            for object in &selected {
                self.delete_object(call, object, &options);
            }
        }
        let items: Vec<Value> = selected
            .iter()
            .map(|object| shown(&call.resource, object))
            .collect();
        let metadata = json!({"resourceVersion": self.store.revision().to_string()});
        let (kind, version) = (&call.resource.list_kind, call.resource.api_version());
        Ok(Reply::ok(
            json!({"kind": kind, "apiVersion": version, "metadata": metadata, "items": items}),
        ))
    }

    /// Deletes an object, or marks it for deletion: then what it has become.
    fn delete_object(&mut self, call: &Call<'_>, object: &Value, options: &Options) -> Option<Value> {
        let resource = &call.resource;
        let storage = resource.storage();
        let key = store::key(meta(object, "namespace"), meta(object, "name"));
        if resource.is("namespaces") {
            return self.delete_namespace(call, object);
        }
        if resource.kind == "CustomResourceDefinition" {
            self.undefine(object);
        }
        let grace = grace_period(resource, object, options);
        if grace == 0 && items(&object["metadata"]["finalizers"]).is_empty() {
            self.remove(&storage, &key);
            return None;
        }
        let shorter = object["metadata"]["deletionGracePeriodSeconds"]
            .as_i64()
            .is_none_or(|left| grace < left);
        if !meta(object, "deletionTimestamp").is_empty() && !shorter {
            return Some(object.clone());
        }
        let marked = self.marked(call, object, grace);
        Some(Value::clone(&self.store.put(&storage, &key, marked)))
    }

    fn marked(&self, call: &Call<'_>, object: &Value, grace: i64) -> Value {
        let mut object = object.clone();
        let generation = object["metadata"]["generation"].as_u64();
        let first = meta(&object, "deletionTimestamp").is_empty();
        let metadata = metadata_mut(&mut object);
        let at = call.now + jiff::SignedDuration::from_secs(grace);
        metadata.insert("deletionTimestamp".to_owned(), super::seconds(at).into());
        metadata.insert("deletionGracePeriodSeconds".to_owned(), grace.into());
        if let Some(generation) = generation.filter(|_| first) {
            metadata.insert("generation".to_owned(), (generation + 1).into());
        }
        object
    }

    /// A namespace is terminating until nothing is in it, which is at once unless finalizers hold something.
    fn delete_namespace(&mut self, call: &Call<'_>, object: &Value) -> Option<Value> {
        let name = meta(object, "name").to_owned();
        let mut terminating = object.clone();
        if meta(object, "deletionTimestamp").is_empty() {
            metadata_mut(&mut terminating).insert("deletionTimestamp".to_owned(), call.time().into());
            terminating["status"] = json!({"phase": "Terminating"});
            self.store.put("namespaces", &name, terminating.clone());
        }
        let prefix = format!("{name}/");
        for storage in self.store.resources() {
            let Some(resource) = self
                .registry
                .stored_as(&storage)
                .filter(|resource| resource.namespaced)
            else {
                continue;
            };
            let all = self.store.all(&storage);
            let inside: Vec<(String, Arc<Value>)> = all
                .filter(|(key, _)| key.starts_with(&prefix))
                .map(|(key, object)| (key.clone(), Arc::clone(object)))
                .collect();
            for (key, object) in inside {
                if items(&object["metadata"]["finalizers"]).is_empty() {
                    self.store.remove(&resource.storage(), &key);
                } else if meta(&object, "deletionTimestamp").is_empty() {
                    let marked = self.marked(call, &object, 0);
                    self.store.put(&resource.storage(), &key, marked);
                }
            }
        }
        self.finish_namespace(&name);
        Some(
            self.object("namespaces", "", &name)
                .map_or(terminating, |left| Value::clone(left)),
        )
    }

    /// Removes a terminating namespace in which there is nothing any more.
    fn finish_namespace(&mut self, name: &str) {
        let prefix = format!("{name}/");
        let terminating = self
            .object("namespaces", "", name)
            .is_some_and(|namespace| !meta(namespace, "deletionTimestamp").is_empty());
        let empty = !self
            .store
            .resources()
            .iter()
            .any(|storage| self.store.all(storage).any(|(key, _)| key.starts_with(&prefix)));
        if terminating && empty {
            self.store.remove("namespaces", name);
        }
    }

    /// Removes an object for good.
    pub(super) fn remove(&mut self, storage: &str, key: &str) {
        self.store.remove(storage, key);
        if let Some((namespace, _)) = key.split_once('/') {
            self.finish_namespace(namespace);
        }
    }
}

/// Only pods have a grace period: none where no kubelet has to stop anything.
fn grace_period(resource: &Resource, object: &Value, options: &Options) -> i64 {
    if !resource.is("pods") {
        return 0;
    }
    let stopped = matches!(object["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    let placed = object["spec"]["nodeName"]
        .as_str()
        .is_some_and(|node| !node.is_empty());
    if !placed || stopped {
        return 0;
    }
    let asked = options
        .grace
        .or_else(|| object["spec"]["terminationGracePeriodSeconds"].as_i64());
    asked.unwrap_or(30).max(0)
}
