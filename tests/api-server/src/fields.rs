//! Sets of fields, as `metadata.managedFields` has them (`FieldsV1`), and what can be done with an object by
//! them. After `sigs.k8s.io/structured-merge-diff`, of which this is the part that servers' users see.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::{
    json::{items, map_mut},
    schema::ListType,
};

/// A step on the way to a field, as `FieldsV1` writes it: `f:name`, `k:{"type":"Ready"}`, `v:"finalizer"`.
pub(crate) type Path = Vec<String>;

/// How lists are merged, by the names of the fields on the way to them.
pub(crate) type ListTypes<'a> = &'a dyn Fn(&[&str]) -> ListType;

/// Fields of an object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Fields(pub(crate) BTreeSet<Path>);

impl Fields {
    /// The leaves of an object, and the entries of its lists that have keys.
    pub(crate) fn of(object: &Value, lists: ListTypes<'_>) -> Self {
        let mut fields = Self::default();
        fields.collect(object, &mut Vec::new(), lists);
        fields.0.retain(|path| !is_servers(path));
        fields
    }

    fn collect(&mut self, value: &Value, path: &mut Path, lists: ListTypes<'_>) {
        match value {
            Value::Object(map) if !map.is_empty() => {
                for (name, value) in map {
                    path.push(format!("f:{name}"));
                    self.collect(value, path, lists);
                    path.pop();
                }
            }
            Value::Array(entries) => match lists(&names(path)) {
                ListType::Atomic => {
                    self.0.insert(path.clone());
                }
                how => {
                    for entry in entries {
                        path.push(step(entry, &how));
                        self.0.insert(path.clone());
                        if matches!(how, ListType::Map(_)) {
                            self.collect(entry, path, lists);
                        }
                        path.pop();
                    }
                }
            },
            _ => {
                self.0.insert(path.clone());
            }
        }
    }

    /// Reads `FieldsV1`.
    pub(crate) fn parse(tree: &Value) -> Self {
        fn walk(tree: &Map<String, Value>, path: &mut Path, fields: &mut BTreeSet<Path>) {
            if tree.is_empty() && !path.is_empty() {
                fields.insert(path.clone());
            }
            for (step, below) in tree {
                if step == "." {
                    fields.insert(path.clone());
                } else if let Value::Object(below) = below {
                    path.push(step.clone());
                    walk(below, path, fields);
                    path.pop();
                }
            }
        }
        let mut fields = BTreeSet::new();
        if let Value::Object(tree) = tree {
            walk(tree, &mut Vec::new(), &mut fields);
        }
        Self(fields)
    }

    /// Writes `FieldsV1`.
    pub(crate) fn to_json(&self) -> Value {
        let mut tree = json!({});
        for path in &self.0 {
            let end = path.iter().fold(&mut tree, |below, step| {
                map_mut(below).entry(step).or_insert_with(|| json!({}))
            });
            let longer = |other: &Path| other.len() > path.len() && other.starts_with(path);
            if self.0.range(path.clone()..).nth(1).is_some_and(longer) {
                map_mut(end).insert(".".to_owned(), json!({}));
            }
        }
        tree
    }

    /// Those of these fields that have another value in `now` than in `before`, or none in `before`.
    pub(crate) fn changed(&self, before: &Value, now: &Value) -> Self {
        let changed = self
            .0
            .iter()
            .filter(|path| differs(find(before, path), find(now, path), path));
        Self(changed.cloned().collect())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The entry of a list with a key stays the same entry whatever else of it changes.
fn differs(before: Option<&Value>, now: Option<&Value>, path: &Path) -> bool {
    match path.last() {
        Some(step) if step.starts_with("k:") => before.is_some() != now.is_some(),
        _ => before != now,
    }
}

/// Fields that the server sets, which nobody manages.
fn is_servers(path: &Path) -> bool {
    const METADATA: &[&str] = &[
        "f:name",
        "f:namespace",
        "f:uid",
        "f:resourceVersion",
        "f:generation",
        "f:creationTimestamp",
        "f:deletionTimestamp",
        "f:deletionGracePeriodSeconds",
        "f:managedFields",
        "f:selfLink",
        "f:generateName",
    ];
    match path.as_slice() {
        [] => true,
        [root] => matches!(root.as_str(), "f:apiVersion" | "f:kind" | "f:metadata"),
        [root, field, ..] => root == "f:metadata" && METADATA.contains(&field.as_str()),
    }
}

fn names(path: &Path) -> Vec<&str> {
    path.iter().filter_map(|step| step.strip_prefix("f:")).collect()
}

fn step(entry: &Value, how: &ListType) -> String {
    match how {
        ListType::Map(keys) => {
            let key: Map<String, Value> = keys
                .iter()
                .filter(|key| !entry[key.as_str()].is_null())
                .map(|key| (key.clone(), entry[key.as_str()].clone()))
                .collect();
            format!("k:{}", Value::Object(key))
        }
        _ => format!("v:{entry}"),
    }
}

fn is_entry(entry: &Value, step: &str) -> bool {
    if let Some(value) = step.strip_prefix("v:") {
        return serde_json::from_str::<Value>(value).is_ok_and(|value| value == *entry);
    }
    let key = step
        .strip_prefix("k:")
        .and_then(|key| serde_json::from_str::<Map<String, Value>>(key).ok());
    key.is_some_and(|key| key.iter().all(|(name, value)| entry[name] == *value))
}

/// The value of a field.
pub(crate) fn find<'a>(object: &'a Value, path: &[String]) -> Option<&'a Value> {
    path.iter()
        .try_fold(object, |value, step| match step.strip_prefix("f:") {
            Some(name) => value.get(name),
            None => items(value).iter().find(|entry| is_entry(entry, step)),
        })
}

/// Removes a field, and the maps and lists that this leaves empty.
pub(crate) fn remove(object: &mut Value, path: &[String]) {
    let Some((step, rest)) = path.split_first() else {
        return;
    };
    match (object, step.strip_prefix("f:")) {
        (Value::Object(map), Some(name)) => {
            if let Some(below) = map.get_mut(name) {
                remove(below, rest);
                if rest.is_empty() || is_empty(below) {
                    map.remove(name);
                }
            }
        }
        (Value::Array(entries), None) if rest.is_empty() => entries.retain(|entry| !is_entry(entry, step)),
        (Value::Array(entries), None) => {
            if let Some(entry) = entries.iter_mut().find(|entry| is_entry(entry, step)) {
                remove(entry, rest);
            }
        }
        _ => {}
    }
}

fn is_empty(value: &Value) -> bool {
    value.as_object().is_some_and(Map::is_empty) || value.as_array().is_some_and(Vec::is_empty)
}

/// Merges what was applied into an object.
pub(crate) fn merge(target: &mut Value, applied: &Value, path: &mut Path, lists: ListTypes<'_>) {
    match applied {
        Value::Object(fields) => {
            let target = map_mut(target);
            for (name, value) in fields {
                path.push(format!("f:{name}"));
                merge(target.entry(name).or_insert(Value::Null), value, path, lists);
                path.pop();
            }
        }
        Value::Array(entries) => match (lists(&names(path)), target.as_array_mut()) {
            (ListType::Atomic, _) | (_, None) => *target = applied.clone(),
            (how, Some(old)) => {
                for entry in entries {
                    let step = step(entry, &how);
                    match old.iter_mut().find(|one| is_entry(one, &step)) {
                        Some(one) => {
                            path.push(step);
                            merge(one, entry, path, lists);
                            path.pop();
                        }
                        None => old.push(entry.clone()),
                    }
                }
            }
        },
        scalar => *target = scalar.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lists(path: &[&str]) -> ListType {
        crate::builtin::list_type(path)
    }

    #[test]
    fn a_set_reads_as_it_was_written() {
        let object = json!({
            "metadata": {"name": "x", "uid": "u", "labels": {"a": "1"}, "finalizers": ["f"]},
            "status": {"conditions": [{"type": "Ready", "status": "True"}], "phase": "Running"},
        });
        let fields = Fields::of(&object, &lists);
        let tree = fields.to_json();
        assert_eq!(Fields::parse(&tree), fields);
        assert_eq!(
            tree,
            json!({
                "f:metadata": {"f:labels": {"f:a": {}}, "f:finalizers": {"v:\"f\"": {}}},
                "f:status": {
                    "f:conditions": {"k:{\"type\":\"Ready\"}": {".": {}, "f:type": {}, "f:status": {}}},
                    "f:phase": {},
                },
            })
        );
    }

    #[test]
    fn a_removed_entry_leaves_the_others() {
        let mut object = json!({"status": {"conditions": [{"type": "A"}, {"type": "B"}]}});
        let path = |key: &str| {
            vec![
                "f:status".to_owned(),
                "f:conditions".to_owned(),
                format!("k:{{\"type\":\"{key}\"}}"),
            ]
        };
        remove(&mut object, &path("A"));
        assert_eq!(object, json!({"status": {"conditions": [{"type": "B"}]}}));
        remove(&mut object, &path("B"));
        assert_eq!(object, json!({}));
    }
}
