//! The patches that say what changes: JSON patch, JSON merge patch, strategic merge patch.

use serde_json::{Map, Value};

use crate::{
    builtin,
    json::{items, map_mut},
    schema::ListType,
    status::{Cause, Status},
};

/// Applies a JSON merge patch (RFC 7396).
pub(crate) fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(changes) = patch else {
        *target = patch.clone();
        return;
    };
    let target = map_mut(target);
    for (name, change) in changes {
        if change.is_null() {
            target.remove(name);
        } else {
            merge(target.entry(name).or_insert(Value::Null), change);
        }
    }
}

/// Applies a JSON patch (RFC 6902).
pub(crate) fn json(target: &mut Value, patch: &Value, about: (&str, &str, &str)) -> Result<(), Status> {
    let patch: json_patch::Patch = serde_json::from_value(patch.clone())
        .map_err(|why| Status::bad_request(format!("error decoding patch: {why}")))?;
    let (group, kind, name) = about;
    // A `test` that does not hold, and a path that is not there, are 422 on a real server.
    json_patch::patch(target, &patch).map_err(|why| {
        let cause = Cause::invalid("patch", &Value::Null, &why.to_string());
        Status::invalid(group, kind, name, &[cause])
    })
}

/// Applies a strategic merge patch: lists of the built-in kinds are merged by their keys.
pub(crate) fn strategic(target: &mut Value, patch: &Value) {
    merge_at(target, patch, &mut Vec::new());
}

fn merge_at<'a>(target: &mut Value, patch: &'a Value, path: &mut Vec<&'a str>) {
    match patch {
        Value::Object(changes) => merge_map(target, changes, path),
        Value::Array(changes) => {
            let entries = match (target.as_array(), merge_key(path)) {
                (Some(old), Some(merging)) => merge_list(old.clone(), changes, &merging, path),
                _ => changes.iter().map(without_directives).collect(),
            };
            *target = Value::Array(entries);
        }
        scalar => *target = scalar.clone(),
    }
}

fn merge_map<'a>(target: &mut Value, changes: &'a Map<String, Value>, path: &mut Vec<&'a str>) {
    let target = map_mut(target);
    if changes.get("$patch").and_then(Value::as_str) == Some("replace") {
        target.clear();
    }
    for (name, change) in changes {
        if let Some(list) = name.strip_prefix("$deleteFromPrimitiveList/") {
            if let Some(Value::Array(entries)) = target.get_mut(list) {
                entries.retain(|entry| !items(change).contains(entry));
            }
        } else if name.starts_with('$') {
            // `$setElementOrder` and `$retainKeys` matter to the order and to unions only.
        } else if change.is_null() || change["$patch"] == "delete" {
            target.remove(name);
        } else {
            path.push(name);
            merge_at(target.entry(name).or_insert(Value::Null), change, path);
            path.pop();
        }
    }
}

/// How the list at a path is merged; nothing where the patch replaces it.
fn merge_key(path: &[&str]) -> Option<ListType> {
    match builtin::list_type(path) {
        ListType::Atomic => None,
        // Strategic merge knows one key, which is the first.
        ListType::Map(keys) => keys.into_iter().next().map(|key| ListType::Map(vec![key])),
        ListType::Set => Some(ListType::Set),
    }
}

fn merge_list<'a>(
    mut old: Vec<Value>,
    changes: &'a [Value],
    how: &ListType,
    path: &mut Vec<&'a str>,
) -> Vec<Value> {
    let ListType::Map(keys) = how else {
        for change in changes {
            if !old.contains(change) {
                old.push(change.clone());
            }
        }
        return old;
    };
    if changes.iter().any(|change| change["$patch"] == "replace") {
        old.clear();
    }
    let same = |one: &Value, other: &Value| keys.iter().all(|key| one[key] == other[key]);
    for change in changes.iter().filter(|change| change["$patch"] != "replace") {
        if change["$patch"] == "delete" {
            old.retain(|entry| !same(entry, change));
        } else if let Some(entry) = old.iter_mut().find(|entry| same(entry, change)) {
            merge_at(entry, change, path);
        } else {
            old.push(without_directives(change));
        }
    }
    old
}

fn without_directives(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let kept = map
                .iter()
                .filter(|(name, value)| !name.starts_with('$') && !value.is_null());
            Value::Object(
                kept.map(|(name, value)| (name.clone(), without_directives(value)))
                    .collect(),
            )
        }
        Value::Array(entries) => Value::Array(entries.iter().map(without_directives).collect()),
        scalar => scalar.clone(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_merge_patch_replaces_lists_and_a_null_removes() {
        let mut object = json!({"a": {"b": 1, "c": [1, 2]}, "d": 1});
        merge(
            &mut object,
            &json!({"a": {"b": null, "c": [3]}, "e": {"f": null, "g": 1}}),
        );
        assert_eq!(object, json!({"a": {"c": [3]}, "d": 1, "e": {"g": 1}}));
    }

    #[test]
    fn a_strategic_patch_merges_lists_by_their_keys() {
        let conditions = |entries: Value| json!({"status": {"conditions": entries}});
        for (patch, expected) in [
            (
                json!([{"type": "Ready", "status": "False"}]),
                json!([{"type": "Ready", "status": "False", "reason": "r"}, {"type": "Other"}]),
            ),
            (
                json!([{"type": "New", "status": "True"}]),
                json!([{"type": "Ready", "status": "True", "reason": "r"}, {"type": "Other"}, {"type": "New", "status": "True"}]),
            ),
            (
                json!([{"type": "Other", "$patch": "delete"}]),
                json!([{"type": "Ready", "status": "True", "reason": "r"}]),
            ),
            (
                json!([{"type": "Only"}, {"$patch": "replace"}]),
                json!([{"type": "Only"}]),
            ),
        ] {
            let mut object =
                conditions(json!([{"type": "Ready", "status": "True", "reason": "r"}, {"type": "Other"}]));
            strategic(&mut object, &conditions(patch));
            assert_eq!(object, conditions(expected));
        }
        let mut object = json!({"metadata": {"finalizers": ["a", "b"]}});
        strategic(
            &mut object,
            &json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"], "finalizers": ["c"]}}),
        );
        assert_eq!(object, json!({"metadata": {"finalizers": ["b", "c"]}}));
    }
}
