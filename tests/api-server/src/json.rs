//! Small readings of JSON objects.

use serde_json::{Map, Value};

/// The value at a dotted path as text; empty where there is none, as field selectors have it.
pub(crate) fn text_at(object: &Value, path: &str) -> String {
    let found = path.split('.').try_fold(object, |value, name| value.get(name));
    match found {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

/// A field of the metadata as text; empty where there is none.
pub(crate) fn meta<'a>(object: &'a Value, field: &str) -> &'a str {
    object["metadata"][field].as_str().unwrap_or_default()
}

/// The metadata, which becomes an object where it is none.
pub(crate) fn metadata_mut(object: &mut Value) -> &mut Map<String, Value> {
    map_mut(map_mut(object).entry("metadata").or_insert(Value::Null))
}

/// A value as a map, which it becomes where it is none.
pub(crate) fn map_mut(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(map) => map,
        // It has just been made one.
        _ => unreachable!("not an object"),
    }
}

/// The entries of an array; none where there is no array.
pub(crate) fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// Sets a field, or removes it where the value is null or missing.
pub(crate) fn set_or_remove(map: &mut Map<String, Value>, field: &str, value: Option<&Value>) {
    match value {
        None | Some(Value::Null) => {
            map.remove(field);
        }
        Some(value) => {
            map.insert(field.to_owned(), value.clone());
        }
    }
}

/// Sets a field where it has no value.
pub(crate) fn default_to(value: &mut Value, field: &str, default: impl Into<Value>) {
    let map = map_mut(value);
    if map.get(field).is_none_or(Value::is_null) {
        map.insert(field.to_owned(), default.into());
    }
}
