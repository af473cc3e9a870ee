//! CustomResourceDefinitions: what they must say, and the resources they add.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::{
    core::Core,
    json::{items, meta},
    resource::{Custom, Resource},
    schema::Schema,
    status::Cause,
};

/// What is wrong with a definition.
pub(crate) fn validate(definition: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    let spec = &definition["spec"];
    let text = |field: &Value| field.as_str().unwrap_or_default().to_owned();
    let (group, plural) = (text(&spec["group"]), text(&spec["names"]["plural"]));
    if meta(definition, "name") != format!("{plural}.{group}") {
        let why = "must be spec.names.plural+\".\"+spec.group";
        causes.push(Cause::invalid(
            "metadata.name",
            &definition["metadata"]["name"],
            why,
        ));
    }
    for (field, value) in [
        ("spec.group", &group),
        ("spec.names.plural", &plural),
        ("spec.names.kind", &text(&spec["names"]["kind"])),
    ] {
        if value.is_empty() {
            causes.push(Cause::required(field, ""));
        }
    }
    let scopes = ["Cluster", "Namespaced"].map(Value::from);
    if !scopes.contains(&spec["scope"]) {
        causes.push(Cause::unsupported("spec.scope", &spec["scope"], &scopes));
    }
    let versions = items(&spec["versions"]);
    if versions
        .iter()
        .filter(|version| version["storage"] == true)
        .count()
        != 1
    {
        let why = "must have exactly one version marked as storage version";
        causes.push(Cause::invalid("spec.versions", &spec["versions"], why));
    }
    for (index, version) in versions.iter().enumerate() {
        let field = format!("spec.versions[{index}].schema.openAPIV3Schema");
        match &version["schema"]["openAPIV3Schema"] {
            Value::Null => causes.push(Cause::required(field, "schemas are required")),
            schema => {
                if schema["type"] != "object" {
                    let why = "must be object at the root";
                    causes.push(Cause::invalid(format!("{field}.type"), &schema["type"], why));
                }
                if let Err(why) = Schema::parse(schema) {
                    causes.push(Cause::invalid(field, &Value::Null, &why));
                }
            }
        }
    }
    causes
}

/// The versions of the resource that a valid definition adds.
fn versions(definition: &Value) -> Vec<Resource> {
    let spec = &definition["spec"];
    let names = &spec["names"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let or = |value: &Value, default: String| match value.as_str() {
        None | Some("") => default,
        Some(text) => text.to_owned(),
    };
    let kind = text(&names["kind"]);
    let served = items(&spec["versions"])
        .iter()
        .filter(|version| version["served"] == true);
    let resource = |version: &Value| Resource {
        group: text(&spec["group"]),
        version: text(&version["name"]),
        list_kind: or(&names["listKind"], format!("{kind}List")),
        singular: or(&names["singular"], kind.to_lowercase()),
        kind: kind.clone(),
        plural: text(&names["plural"]),
        short_names: items(&names["shortNames"]).iter().map(text).collect(),
        namespaced: spec["scope"] == "Namespaced",
        status: version["subresources"]["status"].is_object(),
        custom: Some(Custom {
            // The definition has been validated, by this same reading.
            schema: Arc::new(Schema::parse(&version["schema"]["openAPIV3Schema"]).unwrap_or_default()),
            selectable: items(&version["selectableFields"])
                .iter()
                .map(|field| text(&field["jsonPath"]))
                .collect(),
        }),
    };
    served.map(resource).collect()
}

impl Core {
    /// Serves what a definition defines, and says so in its status.
    pub(crate) fn define(&mut self, definition: &Value, time: &str) {
        let spec = &definition["spec"];
        let (group, plural) = (&spec["group"], &spec["names"]["plural"]);
        let versions = versions(definition);
        self.registry.register(
            group.as_str().unwrap_or_default(),
            plural.as_str().unwrap_or_default(),
            versions,
        );
        let condition = |kind: &str, reason: &str, message: &str| {
            json!({
                "type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": time,
            })
        };
        if definition["status"]["conditions"].is_array() {
            return;
        }
        let mut accepted = spec["names"].clone();
        let kind = spec["names"]["kind"].as_str().unwrap_or_default();
        crate::json::default_to(&mut accepted, "listKind", format!("{kind}List"));
        crate::json::default_to(&mut accepted, "singular", kind.to_lowercase());
        let stored = items(&spec["versions"])
            .iter()
            .filter(|version| version["storage"] == true);
        let stored: Vec<Value> = stored.map(|version| version["name"].clone()).collect();
        let mut established = definition.clone();
        established["status"] = json!({
            "acceptedNames": accepted,
            "storedVersions": stored,
            "conditions": [
                condition("NamesAccepted", "NoConflicts", "no conflicts found"),
                condition("Established", "InitialNamesAccepted", "the initial names have been accepted"),
            ],
        });
        let name = meta(definition, "name").to_owned();
        self.store.put(
            "customresourcedefinitions.apiextensions.k8s.io",
            &name,
            established,
        );
    }

    /// Serves what a definition defined no more, and removes its objects.
    pub(crate) fn undefine(&mut self, definition: &Value) {
        let spec = &definition["spec"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (group, plural) = (text(&spec["group"]), text(&spec["names"]["plural"]));
        let storage = format!("{plural}.{group}");
        let keys: Vec<String> = self.store.all(&storage).map(|(key, _)| key.clone()).collect();
        for key in keys {
            self.store.remove(&storage, &key);
        }
        self.registry.forget(&group, &plural);
    }
}
