//! Objects of Weir's, within the bounds of their definitions.

use serde_json::{Map, Value, json};
use weir_policy::{AuthorizationPolicy, PeerAuthentication};

use crate::mesh::{GROUP, VERSION};

// The bounds of the definitions, which an API server holds objects to.
/// Rules of a policy.
pub(crate) const MAX_RULES: usize = 64;
/// Sources, and operations, of a rule.
pub(crate) const MAX_ALTERNATIVES: usize = 64;
/// Values of a field.
pub(crate) const MAX_VALUES: usize = 512;
/// Conditions of a rule.
pub(crate) const MAX_CONDITIONS: usize = 8;
/// Values of a condition.
pub(crate) const MAX_CONDITION_VALUES: usize = 32;
/// Labels of a selector, and ports with a mode of their own.
pub(crate) const MAX_ENTRIES: usize = 64;

/// What a policy is for.
#[derive(Debug, Clone)]
pub(crate) struct Head {
    pub(crate) namespace: String,
    pub(crate) name: String,
    /// Labels; all of the namespace if there are none.
    pub(crate) labels: Map<String, Value>,
}

impl Head {
    fn object(&self, kind: &str, mut spec: Value) -> Value {
        if !self.labels.is_empty() {
            spec["selector"] = json!({"matchLabels": self.labels});
        }
        json!({
            "apiVersion": format!("{GROUP}/{VERSION}"), "kind": kind,
            "metadata": {"namespace": self.namespace, "name": self.name}, "spec": spec,
        })
    }
}

pub(crate) fn authorization(head: &Head, action: &str, rules: &[Value], dry_run: bool) -> Value {
    let mut spec = json!({"action": action});
    if !rules.is_empty() {
        spec["rules"] = rules.into();
    }
    if dry_run {
        spec["dryRun"] = true.into();
    }
    head.object("AuthorizationPolicy", spec)
}

pub(crate) fn peer_authentication(head: &Head, mode: Option<&str>, ports: &Map<String, Value>) -> Value {
    let mut spec = json!({});
    if let Some(mode) = mode {
        spec["mtls"] = json!({"mode": mode});
    }
    if !ports.is_empty() {
        spec["portLevelMtls"] = ports.clone().into();
    }
    head.object("PeerAuthentication", spec)
}

/// Why Weir would not take an object; nothing if it does.
pub(crate) fn problem(object: &Value, root: &str) -> Option<String> {
    let mut fields = object["spec"].as_object().cloned().unwrap_or_default();
    for field in ["name", "namespace"] {
        fields.insert(field.to_owned(), object["metadata"][field].clone());
    }
    let (fields, kind) = (Value::Object(fields), object["kind"].as_str());
    if kind == Some("PeerAuthentication") {
        let read = serde_json::from_value::<PeerAuthentication>(fields);
        return match read {
            Ok(policy) => policy.check(root).err().map(|error| error.to_string()),
            Err(error) => Some(error.to_string()),
        };
    }
    match serde_json::from_value::<AuthorizationPolicy>(fields) {
        Ok(policy) => policy.compile(root).err().map(|error| error.to_string()),
        Err(error) => Some(error.to_string()),
    }
}

/// The labels of a selector, if it is one of labels alone that a definition allows.
pub(crate) fn labels(selector: &Value) -> Option<Map<String, Value>> {
    let fields = match selector {
        Value::Null => return Some(Map::new()),
        Value::Object(fields) => fields,
        _ => return None,
    };
    if fields.keys().any(|key| key != "matchLabels") {
        return None;
    }
    let labels = match fields.get("matchLabels") {
        None | Some(Value::Null) => return Some(Map::new()),
        Some(Value::Object(labels)) => labels,
        Some(_) => return None,
    };
    let good = |(key, value): (&String, &Value)| {
        let value = value.as_str()?;
        let inner = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let ends = |c: char| c.is_ascii_alphanumeric();
        let fits = value.len() <= 63
            && value.chars().all(inner)
            && value.chars().next().is_none_or(ends)
            && value.chars().last().is_none_or(ends);
        (fits && !key.is_empty() && !key.contains('*')).then_some(())
    };
    (labels.len() <= MAX_ENTRIES && labels.iter().all(|label| good(label).is_some())).then(|| labels.clone())
}
