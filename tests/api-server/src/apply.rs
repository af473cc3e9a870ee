//! Who manages which fields: server-side apply, and what other writes take over.

use serde_json::{Value, json};

use crate::{
    fields::{self, Fields, ListTypes},
    json::{items, metadata_mut},
};

/// Who writes, and how.
#[derive(Debug, Clone)]
pub(crate) struct Writer {
    pub(crate) manager: String,
    /// `Apply`, or `Update` for every other write.
    pub(crate) operation: &'static str,
    pub(crate) subresource: String,
    pub(crate) api_version: String,
    pub(crate) time: String,
}

/// A manager's entry in `metadata.managedFields`.
#[derive(Debug)]
struct Entry {
    writer: Writer,
    fields: Fields,
}

impl Entry {
    fn parse(entry: &Value) -> Self {
        let text = |name: &str| entry[name].as_str().unwrap_or_default().to_owned();
        Self {
            writer: Writer {
                manager: text("manager"),
                operation: if entry["operation"] == "Apply" {
                    "Apply"
                } else {
                    "Update"
                },
                subresource: text("subresource"),
                api_version: text("apiVersion"),
                time: text("time"),
            },
            fields: Fields::parse(&entry["fieldsV1"]),
        }
    }

    fn to_json(&self) -> Value {
        let writer = &self.writer;
        let mut entry = json!({
            "manager": writer.manager, "operation": writer.operation, "apiVersion": writer.api_version,
            "time": writer.time, "fieldsType": "FieldsV1", "fieldsV1": self.fields.to_json(),
        });
        if !writer.subresource.is_empty() {
            entry["subresource"] = json!(writer.subresource);
        }
        entry
    }

    fn is_of(&self, writer: &Writer) -> bool {
        self.writer.manager == writer.manager
            && self.writer.operation == writer.operation
            && self.writer.subresource == writer.subresource
    }
}

fn entries(object: &Value) -> Vec<Entry> {
    items(&object["metadata"]["managedFields"])
        .iter()
        .map(Entry::parse)
        .collect()
}

fn set_entries(object: &mut Value, mut entries: Vec<Entry>) {
    entries.retain(|entry| !entry.fields.is_empty());
    let written = entries.iter().map(Entry::to_json).collect();
    metadata_mut(object).insert("managedFields".to_owned(), Value::Array(written));
}

/// The object that applying a configuration gives, or the fields that others manage and it would change, as
/// (manager, path).
pub(crate) fn apply(
    live: &Value,
    applied: &Value,
    writer: &Writer,
    force: bool,
    lists: ListTypes<'_>,
) -> Result<Value, Vec<(String, String)>> {
    let wanted = Fields::of(applied, lists);
    let mut entries = entries(live);
    let changing = wanted.changed(live, applied);
    let mut conflicts = Vec::new();
    for entry in entries.iter_mut().filter(|entry| !entry.is_of(writer)) {
        let taken: Vec<_> = entry.fields.0.intersection(&changing.0).cloned().collect();
        for path in taken {
            conflicts.push((entry.writer.manager.clone(), readable(&path)));
            entry.fields.0.remove(&path);
        }
    }
    if !force && !conflicts.is_empty() {
        return Err(conflicts);
    }
    let mut result = live.clone();
    fields::merge(&mut result, applied, &mut Vec::new(), lists);
    // What it applied before and does not now is removed, unless another manages it too.
    let own = entries.iter().position(|entry| entry.is_of(writer));
    let before = own
        .map(|index| entries.swap_remove(index).fields)
        .unwrap_or_default();
    for path in before.0.difference(&wanted.0) {
        if !entries
            .iter()
            .any(|entry| entry.fields.0.iter().any(|one| one.starts_with(path)))
        {
            fields::remove(&mut result, path);
        }
    }
    entries.push(Entry {
        writer: writer.clone(),
        fields: wanted,
    });
    set_entries(&mut result, entries);
    Ok(result)
}

/// After any other write: the writer has the fields it changed, and nobody has those that are gone.
pub(crate) fn take_over(before: &Value, now: &mut Value, writer: &Writer, lists: ListTypes<'_>) {
    let present = Fields::of(now, lists);
    let changed = present.changed(before, now);
    let mut entries = entries(before);
    for entry in &mut entries {
        let own = entry.is_of(writer);
        entry
            .fields
            .0
            .retain(|path| fields::find(now, path).is_some() && (own || !changed.0.contains(path)));
    }
    if !changed.is_empty() {
        match entries.iter_mut().find(|entry| entry.is_of(writer)) {
            Some(entry) => {
                entry.fields.0.extend(changed.0);
                entry.writer.time.clone_from(&writer.time);
            }
            None => entries.push(Entry {
                writer: writer.clone(),
                fields: changed,
            }),
        }
    }
    set_entries(now, entries);
}

/// A path as it stands in a conflict: `.status.conditions[type="Ready"].status`.
fn readable(path: &[String]) -> String {
    let mut text = String::new();
    for step in path {
        if let Some(name) = step.strip_prefix("f:") {
            text.push('.');
            text.push_str(name);
        } else if let Some(value) = step.strip_prefix("v:") {
            text.push_str(&format!("[={value}]"));
        } else if let Some(Ok(Value::Object(keys))) =
            step.strip_prefix("k:").map(serde_json::from_str::<Value>)
        {
            let keys: Vec<String> = keys
                .iter()
                .map(|(name, value)| format!("{name}={value}"))
                .collect();
            text.push_str(&format!("[{}]", keys.join(",")));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writer(manager: &str) -> Writer {
        Writer {
            manager: manager.to_owned(),
            operation: "Apply",
            subresource: String::new(),
            api_version: "v1".to_owned(),
            time: String::new(),
        }
    }

    fn applied(
        live: &Value,
        spec: Value,
        manager: &str,
        force: bool,
    ) -> Result<Value, Vec<(String, String)>> {
        let spec = json!({ "spec": spec });
        apply(live, &spec, &writer(manager), force, &|path| {
            crate::builtin::list_type(path)
        })
    }

    #[test]
    fn a_field_applied_no_more_is_removed_unless_another_applies_it_too() {
        let live = applied(&json!({}), json!({"a": 1, "b": 1}), "one", false).unwrap();
        let live = applied(&live, json!({"b": 1}), "two", false).unwrap();
        let live = applied(&live, json!({}), "one", false).unwrap();
        assert_eq!(live["spec"], json!({"b": 1}));
    }

    #[test]
    fn a_field_of_another_is_a_conflict_unless_forced_or_the_same() {
        let live = applied(&json!({}), json!({"a": 1}), "one", false).unwrap();
        let conflicts = applied(&live, json!({"a": 2}), "two", false).unwrap_err();
        assert_eq!(conflicts, [("one".to_owned(), ".spec.a".to_owned())]);
        let forced = applied(&live, json!({"a": 2}), "two", true).unwrap();
        assert_eq!(forced["spec"]["a"], 2);
        assert_eq!(forced["metadata"]["managedFields"].as_array().unwrap().len(), 1);
        assert!(applied(&forced, json!({"a": 1}), "one", false).is_err());
    }
}
