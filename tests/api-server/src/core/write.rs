//! Create, and the checks that every write goes through.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Map, Value, json};

use super::{Call, Core, Reply};
use crate::{
    apply, builtin,
    json::{items, meta, metadata_mut, set_or_remove},
    resource::Resource,
    schema::ListType,
    status::{Cause, Status},
    store,
};

/// How often a generated name may be taken before that is an error.
const NAME_ATTEMPTS: usize = 8;
/// The limit of annotations, all together.
const MAX_ANNOTATIONS: usize = 256 * 1024;

impl Core {
    pub(super) fn create(&mut self, call: &Call<'_>) -> Result<Reply, Status> {
        let body = call.body()?;
        let object = self.create_object(call, body, &call.writer("Update"), None)?;
        call.shown(&object).map(Reply::created)
    }

    /// Creates an object, under the name of the path where that has one.
    pub(super) fn create_object(
        &mut self,
        call: &Call<'_>,
        body: Value,
        writer: &apply::Writer,
        managed: Option<Value>,
    ) -> Result<Value, Status> {
        let resource = &call.resource;
        let mut object = call.read(body)?;
        let metadata = metadata_mut(&mut object);
        if !matches!(
            metadata.get("resourceVersion").and_then(Value::as_str),
            None | Some("" | "0")
        ) {
            return Err(Status::version_set_on_create());
        }
        for server in [
            "uid",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "selfLink",
            "managedFields",
        ] {
            metadata.remove(server);
        }
        if resource.namespaced {
            metadata.insert("namespace".to_owned(), call.target.namespace.clone().into());
        }
        self.name(call, &mut object)?;
        let name = meta(&object, "name").to_owned();
        self.admit(call, &mut object)?;
        if resource.status && resource.custom.is_some() {
            crate::json::map_mut(&mut object).remove("status");
        } else if resource.status {
            builtin::initial_status(resource, &mut object);
        }
        self.allocate_address(resource, &mut object);
        builtin::defaults(resource, &mut object);
        call.validate(&object)?;
        let key = store::key(meta(&object, "namespace"), &name);
        if self.store.find(&resource.storage(), &key).is_some() {
            return Err(Status::already_exists(&resource.group, &resource.plural, &name));
        }
        let uid = self.uuid();
        let metadata = metadata_mut(&mut object);
        metadata.insert("uid".to_owned(), uid.into());
        metadata.insert("creationTimestamp".to_owned(), call.time().into());
        metadata.remove("generation");
        if resource.has_generation() {
            metadata.insert("generation".to_owned(), 1.into());
        }
        match managed {
            Some(managed) => set_or_remove(metadata, "managedFields", Some(&managed)),
            None => apply::take_over(&json!({}), &mut object, writer, &|path| list_type(resource, path)),
        }
        if call.request.query.dry_run() {
            return Ok(object);
        }
        let stored = Value::clone(&self.store.put(&resource.storage(), &key, object));
        self.created(call, &stored);
        Ok(stored)
    }

    /// What the server and its controllers do when something has been made.
    fn created(&mut self, call: &Call<'_>, object: &Value) {
        match call.resource.kind.as_str() {
            "Namespace" => self.furnish_namespace(meta(object, "name"), call.now),
            "CustomResourceDefinition" => self.define(object, &call.time()),
            _ => {}
        }
    }

    fn name(&mut self, call: &Call<'_>, object: &mut Value) -> Result<(), Status> {
        let prefix = meta(object, "generateName").to_owned();
        if meta(object, "name").is_empty() && !prefix.is_empty() {
            for _ in 0..NAME_ATTEMPTS {
                let name = format!("{prefix}{}", self.suffix());
                let key = store::key(&call.target.namespace, &name);
                metadata_mut(object).insert("name".to_owned(), name.into());
                if self.store.find(&call.resource.storage(), &key).is_none() {
                    break;
                }
            }
        }
        let name = meta(object, "name").to_owned();
        match &call.target.name {
            Some(wanted) if *wanted != name => Err(wrong_name(&name, wanted)),
            _ if name.is_empty() => {
                let cause = Cause::required("metadata.name", "name or generateName is required");
                Err(call.invalid("", &[cause]))
            }
            _ => Ok(()),
        }
    }

    /// What refuses objects for the sake of others: namespaces that are not there, accounts that are not.
    fn admit(&self, call: &Call<'_>, object: &mut Value) -> Result<(), Status> {
        let resource = &call.resource;
        let namespace = &call.target.namespace;
        if resource.namespaced {
            let found = self.store.find("namespaces", namespace);
            let found = found.ok_or_else(|| Status::not_found("", "namespaces", namespace))?;
            if !meta(found, "deletionTimestamp").is_empty() {
                let name = meta(object, "name");
                return Err(Status::namespace_terminating(
                    &resource.group,
                    &resource.plural,
                    name,
                    namespace,
                ));
            }
        }
        if resource.is("pods") {
            let named = object["spec"]["serviceAccountName"].as_str().unwrap_or("default");
            if self.service_account(namespace, named).is_none() {
                let why = format!(
                    "error looking up service account {namespace}/{named}: serviceaccount {named:?} not found"
                );
                return Err(Status::forbidden("", "pods", meta(object, "name"), &why));
            }
        }
        Ok(())
    }

    fn allocate_address(&mut self, resource: &Resource, object: &mut Value) {
        let spec = &object["spec"];
        let wants = spec["type"] != "ExternalName" && spec["clusterIP"].as_str().is_none_or(str::is_empty);
        if resource.is("services") && wants && spec.is_object() {
            let [high, low] = self.next_address.to_be_bytes();
            self.next_address = self.next_address.wrapping_add(1);
            object["spec"]["clusterIP"] = json!(format!("10.96.{high}.{low}"));
        }
    }
}

/// The name in an object is not that of the path.
pub(super) fn wrong_name(name: &str, wanted: &str) -> Status {
    Status::bad_request(format!(
        "the name of the object ({name}) does not match the name on the URL ({wanted})"
    ))
}

/// How a list of a resource's objects is merged.
pub(super) fn list_type(resource: &Resource, path: &[&str]) -> ListType {
    match (&resource.custom, path) {
        (None, _) | (Some(_), ["metadata", ..]) => builtin::list_type(path),
        (Some(custom), path) => custom.schema.list_type(path),
    }
}

impl Call<'_> {
    /// A body as an object of the resource: of the right kind, in the right namespace, with the fields that the
    /// kind has and no others.
    pub(super) fn read(&self, mut body: Value) -> Result<Value, Status> {
        let resource = &self.resource;
        if body.is_null() {
            // An object of which nothing is said, as Go's JSON has it.
            body = json!({});
        }
        if !body.is_object() {
            return Err(Status::bad_request(
                "the object provided is unrecognized: it is no JSON object",
            ));
        }
        if resource.storage() == "events" {
            builtin::store_event(resource, &mut body);
        }
        for (field, expected) in [
            ("apiVersion", resource.api_version()),
            ("kind", resource.kind.clone()),
        ] {
            if let Some(given) = body[field]
                .as_str()
                .filter(|given| !given.is_empty() && **given != expected)
            {
                return Err(Status::bad_request(format!(
                    "the {field} in the data ({given}) does not match the expected {field} ({expected})"
                )));
            }
        }
        let metadata = read_metadata(&body["metadata"])?;
        crate::json::map_mut(&mut body).insert("metadata".to_owned(), metadata);
        let namespace = meta(&body, "namespace");
        if !namespace.is_empty() && namespace != self.target.namespace && resource.namespaced {
            return Err(Status::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        // Known by the path, and the core group's for an event of the other group.
        crate::json::map_mut(&mut body).remove("apiVersion");
        crate::json::map_mut(&mut body).remove("kind");
        let (read, unknown) = match &resource.custom {
            Some(custom) => {
                let unknown = custom.schema.prune_and_default(&mut body);
                (body, unknown)
            }
            None => {
                let read = builtin::typed(resource, body.clone()).map_err(|why| {
                    Status::bad_request(format!(
                        "{} in version {:?} cannot be handled as a {}: {why}",
                        resource.kind, resource.version, resource.kind
                    ))
                })?;
                let mut unknown = Vec::new();
                missing(&body, &read, String::new(), &mut unknown);
                (read, unknown)
            }
        };
        if self.request.query.text("fieldValidation") == "Strict" && !unknown.is_empty() {
            return Err(self.unknown(&unknown));
        }
        let mut read = read;
        let object = crate::json::map_mut(&mut read);
        object.remove("apiVersion");
        object.remove("kind");
        metadata_mut(&mut read);
        Ok(read)
    }

    /// Unknown fields, under `fieldValidation=Strict`: a bad request, or of a patch that leads to them, invalid.
    fn unknown(&self, paths: &[String]) -> Status {
        let listed: Vec<String> = paths
            .iter()
            .map(|path| format!("unknown field {path:?}"))
            .collect();
        let why = format!("strict decoding error: {}", listed.join(", "));
        match self.request.method.as_str() {
            "PATCH" if self.request.content_type != "application/apply-patch+yaml" => {
                Status::invalid("", "", "", &[Cause::invalid("patch", &Value::Null, &why)])
            }
            _ => {
                let (kind, version) = (&self.resource.kind, &self.resource.version);
                Status::bad_request(format!(
                    "{kind} in version {version:?} cannot be handled as a {kind}: {why}"
                ))
            }
        }
    }

    /// Refuses an object that is not what its resource asks for.
    pub(super) fn validate(&self, object: &Value) -> Result<(), Status> {
        let name = meta(object, "name");
        let mut causes = metadata_causes(&self.resource, object);
        match &self.resource.custom {
            Some(custom) => causes.extend(custom.schema.validate(object)),
            None if self.resource.kind == "CustomResourceDefinition" => {
                causes.extend(crate::definition::validate(object));
            }
            None => causes.extend(builtin::validate(&self.resource, object)),
        }
        if causes.is_empty() {
            Ok(())
        } else {
            Err(self.invalid(name, &causes))
        }
    }
}

/// The metadata as `ObjectMeta` has it: everything after relies on the types of its fields.
fn read_metadata(metadata: &Value) -> Result<Value, Status> {
    if metadata.is_null() {
        return Ok(json!({}));
    }
    serde_json::from_value::<ObjectMeta>(metadata.clone())
        .and_then(serde_json::to_value)
        .map_err(|why| Status::bad_request(format!("metadata: {why}")))
}

/// The paths of what an object had before it was read as its kind. Empty values are left out when it is written.
fn missing(given: &Value, read: &Value, path: String, unknown: &mut Vec<String>) {
    match (given, read) {
        (Value::Object(given), Value::Object(read)) => {
            for (name, value) in given.iter().filter(|(_, value)| !is_zero(value)) {
                let path = if path.is_empty() {
                    name.clone()
                } else {
                    format!("{path}.{name}")
                };
                match read.get(name) {
                    Some(read) => missing(value, read, path, unknown),
                    None => unknown.push(path),
                }
            }
        }
        (Value::Array(given), Value::Array(read)) => {
            for (index, (given, read)) in given.iter().zip(read).enumerate() {
                missing(given, read, format!("{path}[{index}]"), unknown);
            }
        }
        _ => {}
    }
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(entries) => entries.is_empty(),
        _ => false,
    }
}

fn metadata_causes(resource: &Resource, object: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    let metadata = &object["metadata"];
    let name = meta(object, "name");
    let label = resource.is("services") || resource.is("namespaces");
    if !is_name(name, label) {
        let why = match label {
            true => "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-'",
            false => {
                "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.'"
            }
        };
        causes.push(Cause::invalid("metadata.name", &metadata["name"], why));
    }
    let empty = Map::new();
    for (key, value) in metadata["labels"].as_object().unwrap_or(&empty) {
        let text = value.as_str().unwrap_or_default();
        let legal = |character: char| character.is_ascii_alphanumeric() || "-_.".contains(character);
        let ends = |text: &str| {
            text.starts_with(|c: char| c.is_ascii_alphanumeric())
                && text.ends_with(|c: char| c.is_ascii_alphanumeric())
        };
        if text.len() > 63 || !text.chars().all(legal) || (!text.is_empty() && !ends(text)) {
            let why = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.'";
            causes.push(Cause::invalid(format!("metadata.labels.{key}"), value, why));
        }
    }
    let annotations = metadata["annotations"].as_object().unwrap_or(&empty);
    let size: usize = annotations
        .iter()
        .map(|(key, value)| key.len() + value.as_str().map_or(0, str::len))
        .sum();
    if size > MAX_ANNOTATIONS {
        let why = format!("Too long: may not be more than {MAX_ANNOTATIONS} bytes");
        causes.push(Cause::invalid("metadata.annotations", &Value::Null, &why));
    }
    for (index, finalizer) in items(&metadata["finalizers"]).iter().enumerate() {
        if !finalizer.as_str().is_some_and(|text| text.contains('/')) && resource.custom.is_some() {
            let why = "name is neither a standard finalizer name nor is it fully qualified";
            let standard = ["orphan", "foregroundDeletion"].map(Value::from);
            if !standard.contains(finalizer) {
                causes.push(Cause::invalid(
                    format!("metadata.finalizers[{index}]"),
                    finalizer,
                    why,
                ));
            }
        }
    }
    causes
}

/// RFC 1123: a label, or a subdomain of labels.
fn is_name(name: &str, label: bool) -> bool {
    let is_label = |label: &str| {
        let legal = |character: char| {
            character.is_ascii_lowercase() || character.is_ascii_digit() || character == '-'
        };
        !label.is_empty() && label.chars().all(legal) && !label.starts_with('-') && !label.ends_with('-')
    };
    match label {
        true => name.len() <= 63 && is_label(name),
        false => name.len() <= 253 && name.split('.').all(is_label),
    }
}
