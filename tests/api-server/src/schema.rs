//! Structural schemas of custom resources (`openAPIV3Schema`): defaults, pruning and validation.
//!
//! Not evaluated: CEL (`x-kubernetes-validations`), which is kept in the definition and otherwise ignored, so
//! an object that only a CEL rule refuses is accepted here. Of `format`, only `date-time`, `int32` and `int64`.

use std::collections::BTreeMap;

use regex::Regex;
use serde_json::{Map, Value};

use crate::{json::items, status::Cause};

/// Deeper than any schema that is not an attack on the stack.
const MAX_DEPTH: usize = 64;

/// A schema, read once.
#[derive(Debug, Default)]
pub(crate) struct Schema {
    kind: Option<String>,
    nullable: bool,
    preserve_unknown: bool,
    embedded: bool,
    int_or_string: bool,
    properties: BTreeMap<String, Schema>,
    additional: Option<Box<Schema>>,
    any_additional: bool,
    items: Option<Box<Schema>>,
    required: Vec<String>,
    default: Option<Value>,
    choices: Vec<Value>,
    pattern: Option<Regex>,
    format: Option<String>,
    minimum: Option<f64>,
    maximum: Option<f64>,
    exclusive_minimum: bool,
    exclusive_maximum: bool,
    multiple_of: Option<f64>,
    lengths: [Option<u64>; 2],
    counts: [Option<u64>; 2],
    sizes: [Option<u64>; 2],
    unique: bool,
    list_type: Option<String>,
    list_keys: Vec<String>,
    all_of: Vec<Schema>,
    any_of: Vec<Schema>,
    one_of: Vec<Schema>,
    not: Option<Box<Schema>>,
}

/// How the entries of a list are told apart (`x-kubernetes-list-type`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ListType {
    Atomic,
    Set,
    Map(Vec<String>),
}

impl Schema {
    /// Reads a schema.
    ///
    /// # Errors
    /// What is wrong with it: nested too deeply, or a pattern that is none.
    pub(crate) fn parse(schema: &Value) -> Result<Self, String> {
        Self::parse_at(schema, 0)
    }

    fn parse_at(schema: &Value, depth: usize) -> Result<Self, String> {
        if depth > MAX_DEPTH {
            return Err("schema is nested too deeply".to_owned());
        }
        let flag = |name: &str| schema[name].as_bool().unwrap_or(false);
        let text = |name: &str| schema[name].as_str().map(str::to_owned);
        let below = |name: &str| match schema.get(name) {
            Some(below @ Value::Object(_)) => {
                Self::parse_at(below, depth + 1).map(|below| Some(Box::new(below)))
            }
            _ => Ok(None),
        };
        let several = |name: &str| -> Result<Vec<Self>, String> {
            items(&schema[name])
                .iter()
                .map(|one| Self::parse_at(one, depth + 1))
                .collect()
        };
        let texts = |name: &str| {
            let listed = items(&schema[name]).iter().filter_map(Value::as_str);
            listed.map(str::to_owned).collect::<Vec<_>>()
        };
        let bounds = |low: &str, high: &str| [schema[low].as_u64(), schema[high].as_u64()];
        let mut properties = BTreeMap::new();
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            properties.insert(name.clone(), Self::parse_at(property, depth + 1)?);
        }
        let pattern = schema["pattern"].as_str().map(Regex::new).transpose();
        Ok(Self {
            kind: text("type"),
            nullable: flag("nullable"),
            preserve_unknown: flag("x-kubernetes-preserve-unknown-fields"),
            embedded: flag("x-kubernetes-embedded-resource"),
            int_or_string: flag("x-kubernetes-int-or-string"),
            properties,
            additional: below("additionalProperties")?,
            any_additional: flag("additionalProperties"),
            items: below("items")?,
            required: texts("required"),
            default: schema.get("default").cloned(),
            choices: items(&schema["enum"]).to_vec(),
            pattern: pattern.map_err(|why| format!("pattern: {why}"))?,
            format: text("format"),
            minimum: schema["minimum"].as_f64(),
            maximum: schema["maximum"].as_f64(),
            exclusive_minimum: flag("exclusiveMinimum"),
            exclusive_maximum: flag("exclusiveMaximum"),
            multiple_of: schema["multipleOf"].as_f64(),
            lengths: bounds("minLength", "maxLength"),
            counts: bounds("minItems", "maxItems"),
            sizes: bounds("minProperties", "maxProperties"),
            unique: flag("uniqueItems"),
            list_type: text("x-kubernetes-list-type"),
            list_keys: texts("x-kubernetes-list-map-keys"),
            all_of: several("allOf")?,
            any_of: several("anyOf")?,
            one_of: several("oneOf")?,
            not: below("not")?,
        })
    }

    /// How the list at a path of field names is merged.
    pub(crate) fn list_type(&self, path: &[&str]) -> ListType {
        let found = path.iter().try_fold(self, |schema, name| {
            let schema = schema.items.as_deref().unwrap_or(schema);
            schema.properties.get(*name).or(schema.additional.as_deref())
        });
        match found.map(|schema| (schema.list_type.as_deref(), &schema.list_keys)) {
            Some((Some("map"), keys)) => ListType::Map(keys.clone()),
            Some((Some("set"), _)) => ListType::Set,
            _ => ListType::Atomic,
        }
    }

    /// Fills in what is missing and has a default, and drops what the schema does not know; the paths dropped.
    pub(crate) fn prune_and_default(&self, object: &mut Value) -> Vec<String> {
        let mut dropped = Vec::new();
        self.prune(object, "", true, &mut dropped);
        dropped
    }

    fn prune(&self, value: &mut Value, path: &str, root: bool, dropped: &mut Vec<String>) {
        match value {
            Value::Object(map) => self.prune_map(map, path, root, dropped),
            Value::Array(entries) => {
                if let Some(items) = &self.items {
                    for (index, entry) in entries.iter_mut().enumerate() {
                        items.prune(entry, &format!("{path}[{index}]"), false, dropped);
                    }
                }
            }
            _ => {}
        }
    }

    fn prune_map(&self, map: &mut Map<String, Value>, path: &str, root: bool, dropped: &mut Vec<String>) {
        let whole = root || self.embedded;
        let everything = self.preserve_unknown || self.any_additional || self.int_or_string;
        if self.additional.is_none() && !everything {
            map.retain(|name, _| {
                let kept = self.properties.contains_key(name)
                    || (whole && matches!(name.as_str(), "apiVersion" | "kind" | "metadata"));
                if !kept {
                    dropped.push(join(path, name));
                }
                kept
            });
        }
        for (name, property) in &self.properties {
            if whole && name == "metadata" {
                continue;
            }
            if let Some(default) = &property.default
                && map
                    .get(name)
                    .is_none_or(|value| value.is_null() && !property.nullable)
            {
                map.insert(name.clone(), default.clone());
            }
            // A null that is not allowed to stand counts as nothing.
            if map.get(name).is_some_and(Value::is_null) && !property.nullable {
                map.remove(name);
            }
        }
        for (name, value) in map.iter_mut() {
            if whole && name == "metadata" {
                continue;
            }
            if let Some(below) = self.properties.get(name).or(self.additional.as_deref()) {
                below.prune(value, &join(path, name), false, dropped);
            }
        }
    }

    /// Everything that is wrong with an object.
    pub(crate) fn validate(&self, object: &Value) -> Vec<Cause> {
        let mut causes = Vec::new();
        self.check(object, "", true, &mut causes);
        causes
    }

    fn check(&self, value: &Value, path: &str, root: bool, causes: &mut Vec<Cause>) {
        if value.is_null() && self.nullable {
            return;
        }
        if !self.is_of_type(value) {
            let wanted = match &self.kind {
                Some(kind) => kind.as_str(),
                None => "integer or string",
            };
            let why = format!("{path} in body must be of type {wanted}: {:?}", type_of(value));
            return causes.push(Cause::wrong_type(path, &type_of(value).into(), &why));
        }
        if !self.choices.is_empty() && !self.choices.contains(value) {
            causes.push(Cause::unsupported(path, value, &self.choices));
        }
        match value {
            Value::String(text) => self.check_text(text, value, path, causes),
            Value::Number(number) => self.check_number(number.as_f64().unwrap_or(0.0), value, path, causes),
            Value::Array(entries) => self.check_list(entries, path, causes),
            Value::Object(map) => self.check_map(map, path, root, causes),
            _ => {}
        }
        self.check_combinations(value, path, root, causes);
    }

    fn is_of_type(&self, value: &Value) -> bool {
        if self.int_or_string {
            return value.is_i64() || value.is_u64() || value.is_string();
        }
        match self.kind.as_deref() {
            Some("object") => value.is_object(),
            Some("array") => value.is_array(),
            Some("string") => value.is_string(),
            Some("boolean") => value.is_boolean(),
            Some("number") => value.is_number(),
            Some("integer") => {
                value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|n| n.fract() == 0.0)
            }
            _ => true,
        }
    }

    fn check_text(&self, text: &str, value: &Value, path: &str, causes: &mut Vec<Cause>) {
        let length = text.chars().count() as u64;
        let [low, high] = self.lengths;
        if let Some(low) = low.filter(|low| length < *low) {
            causes.push(Cause::invalid(
                path,
                value,
                &format!("{path} in body should be at least {low} chars long"),
            ));
        }
        if let Some(high) = high.filter(|high| length > *high) {
            causes.push(Cause::invalid(
                path,
                value,
                &format!("Too long: may not be more than {high} bytes"),
            ));
        }
        if let Some(pattern) = self.pattern.as_ref().filter(|pattern| !pattern.is_match(text)) {
            let why = format!("{path} in body should match '{}'", pattern.as_str());
            causes.push(Cause::invalid(path, value, &why));
        }
        if self.format.as_deref() == Some("date-time") && text.parse::<jiff::Timestamp>().is_err() {
            let why = format!("{path} in body must be of type date-time: {value}");
            causes.push(Cause::invalid(path, value, &why));
        }
    }

    fn check_number(&self, number: f64, value: &Value, path: &str, causes: &mut Vec<Cause>) {
        let mut refuse =
            |why: String| causes.push(Cause::invalid(path, value, &format!("{path} in body {why}")));
        if let Some(low) = self.minimum {
            if self.exclusive_minimum && number <= low {
                refuse(format!("should be greater than {low}"));
            } else if number < low {
                refuse(format!("should be greater than or equal to {low}"));
            }
        }
        if let Some(high) = self.maximum {
            if self.exclusive_maximum && number >= high {
                refuse(format!("should be less than {high}"));
            } else if number > high {
                refuse(format!("should be less than or equal to {high}"));
            }
        }
        if self.format.as_deref() == Some("int32")
            && !(f64::from(i32::MIN)..=f64::from(i32::MAX)).contains(&number)
        {
            refuse("must be of type int32".to_owned());
        }
        if let Some(unit) = self.multiple_of.filter(|unit| (number / unit).fract() != 0.0) {
            refuse(format!("should be a multiple of {unit}"));
        }
    }

    fn check_list(&self, entries: &[Value], path: &str, causes: &mut Vec<Cause>) {
        check_count(entries.len(), self.counts, "items", path, causes);
        let identity = |entry: &Value| match self.list_type.as_deref() {
            Some("map") => Some(self.list_keys.iter().map(|key| entry[key].clone()).collect()),
            Some("set") => Some(entry.clone()),
            _ => self.unique.then(|| entry.clone()),
        };
        let mut seen: Vec<Value> = Vec::new();
        for (index, entry) in entries.iter().enumerate() {
            let path = format!("{path}[{index}]");
            if let Some(items) = &self.items {
                items.check(entry, &path, false, causes);
            }
            if let Some(identity) = identity(entry) {
                if seen.contains(&identity) {
                    causes.push(Cause::duplicate(path, entry));
                }
                seen.push(identity);
            }
        }
    }

    fn check_map(&self, map: &Map<String, Value>, path: &str, root: bool, causes: &mut Vec<Cause>) {
        check_count(map.len(), self.sizes, "properties", path, causes);
        for name in self.required.iter().filter(|name| !map.contains_key(*name)) {
            causes.push(Cause::required(join(path, name), ""));
        }
        for (name, value) in map {
            if root && matches!(name.as_str(), "apiVersion" | "kind" | "metadata") {
                continue;
            }
            if let Some(below) = self.properties.get(name).or(self.additional.as_deref()) {
                below.check(value, &join(path, name), false, causes);
            }
        }
    }

    fn check_combinations(&self, value: &Value, path: &str, root: bool, causes: &mut Vec<Cause>) {
        let wrong = |schema: &Self| {
            let mut causes = Vec::new();
            schema.check(value, path, root, &mut causes);
            causes
        };
        self.all_of.iter().for_each(|schema| causes.extend(wrong(schema)));
        let holding = |schemas: &[Self]| schemas.iter().filter(|schema| wrong(schema).is_empty()).count();
        let mut refuse =
            |why: &str| causes.push(Cause::invalid(path, value, &format!("{path} in body {why}")));
        if !self.any_of.is_empty() && holding(&self.any_of) == 0 {
            refuse("must validate at least one schema (anyOf)");
        }
        if !self.one_of.is_empty() && holding(&self.one_of) != 1 {
            refuse("must validate one and only one schema (oneOf)");
        }
        if self.not.as_ref().is_some_and(|schema| wrong(schema).is_empty()) {
            refuse("must not validate the schema (not)");
        }
    }
}

fn check_count(count: usize, bounds: [Option<u64>; 2], noun: &str, path: &str, causes: &mut Vec<Cause>) {
    let (value, count) = (Value::from(count), count as u64);
    let [low, high] = bounds;
    if let Some(low) = low.filter(|low| count < *low) {
        causes.push(Cause::invalid(
            path,
            &value,
            &format!("{path} in body should have at least {low} {noun}"),
        ));
    }
    if let Some(high) = high.filter(|high| count > *high) {
        causes.push(Cause::invalid(
            path,
            &value,
            &format!("Too many: {count}: must have at most {high} {noun}"),
        ));
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    }
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

#[cfg(test)]
mod tests;
