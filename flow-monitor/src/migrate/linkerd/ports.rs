//! The ports of a Server: a number, or a name that its pods give theirs.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::migrate::{input::Item, report::Entry};

/// Kinds with a template of pods.
const TEMPLATES: [&str; 5] = ["Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job"];

/// The ports; nothing if they are not known, and all are to be taken for them.
pub(super) fn of(server: &Item, items: &[Item], entry: &mut Entry) -> Option<Vec<String>> {
    let port = &server.spec()["port"];
    let number = port
        .as_u64()
        .or_else(|| port.as_str().and_then(|text| text.parse().ok()));
    if let Some(number) = number {
        if (1..=65535).contains(&number) {
            return Some(vec![number.to_string()]);
        }
        entry.stricter(format!(
            "port {number} is none: the policy is for every port of its pods"
        ));
        return None;
    }
    let Some(name) = port.as_str() else {
        entry.stricter("port is not understood: the policy is for every port of its pods");
        return None;
    };
    let mut numbers = BTreeSet::new();
    let mut pods = 0;
    for item in items.iter().filter(|item| item.namespace == server.namespace) {
        let pod = match item.kind() {
            "Pod" => &item.value,
            kind if TEMPLATES.contains(&kind) => &item.spec()["template"],
            _ => continue,
        };
        if !selected(&server.spec()["podSelector"], &pod["metadata"]["labels"]) {
            continue;
        }
        pods += 1;
        for list in ["containers", "initContainers"] {
            for container in pod["spec"][list].as_array().into_iter().flatten() {
                let ports = container["ports"].as_array().into_iter().flatten();
                let named = ports.filter(|port| port["name"] == name);
                numbers.extend(named.filter_map(|port| port["containerPort"].as_u64()));
            }
        }
    }
    if numbers.is_empty() {
        entry.stricter(format!(
            "port '{name}' is a name, and {}: the policy is for every port of its pods; read the cluster, or add the manifests of \
             its pods",
            if pods == 0 { "no pod of it was read" } else { "no pod of it has one" }
        ));
        return None;
    }
    if numbers.len() > 1 {
        entry.stricter(format!(
            "port '{name}' is {} in different pods: the policy is for all of these in each",
            numbers.iter().map(u64::to_string).collect::<Vec<_>>().join(", ")
        ));
    } else {
        entry.say(format!(
            "port '{name}' is {} in its pods now; if they change it, change the policy",
            numbers.first().copied().unwrap_or_default()
        ));
    }
    Some(numbers.iter().map(u64::to_string).collect())
}

/// Whether a pod's labels are selected; where that is not understood, they are.
fn selected(selector: &Value, labels: &Value) -> bool {
    let own = selector["matchLabels"].as_object().into_iter().flatten();
    let mut expressions = selector["matchExpressions"].as_array().into_iter().flatten();
    own.clone().all(|(key, value)| labels[key] == *value)
        && expressions.all(|expression| {
            let label = &labels[expression["key"].as_str().unwrap_or_default()];
            let values = expression["values"].as_array();
            let listed = values.is_some_and(|values| values.contains(label));
            match expression["operator"].as_str() {
                Some("In") => listed,
                Some("NotIn") => !listed,
                Some("Exists") => !label.is_null(),
                Some("DoesNotExist") => label.is_null(),
                _ => true,
            }
        })
}
