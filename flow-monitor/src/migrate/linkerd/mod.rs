//! Linkerd's objects: what a Server lets in becomes a DENY policy of all others.
//!
//! A Server closes one port of its pods to all but those that something authorizes, and leaves the others as they are. ALLOW
//! policies cannot say that: the first one closes all ports, and a rule that opens "the other ports" opens those of the next
//! Server. DENY policies only ever close, so any number of them together is as strict as each.

pub(crate) mod clients;
mod deny;
mod grants;
mod ports;

use serde_json::{Value, json};

use self::{
    clients::Clients,
    deny::Denied,
    grants::{Authentications, Granted},
};
use super::{
    Settings,
    input::{Item, LINKERD},
    output::{self, Head},
    report::{Entry, Report},
};

/// Policies of one Server: one for each combination of values that its selector takes.
const MAX_SELECTORS: usize = 16;
/// Longest name that leaves room for a number.
const MAX_NAME: usize = 240;

/// Translates all: who is let in stands in several objects.
pub(crate) fn translate(items: &[Item], settings: &Settings, report: &mut Report) {
    let of = |kind: &'static str| {
        items
            .iter()
            .filter(move |item| item.group() == LINKERD && item.kind() == kind)
    };
    let mut authentications =
        Authentications::read(of("MeshTLSAuthentication"), of("NetworkAuthentication"), settings);
    let mut granted = Granted::default();
    for item in of("AuthorizationPolicy") {
        granted.policy(item, &mut authentications, settings);
    }
    for item in of("ServerAuthorization") {
        granted.authorization(item, settings);
    }
    for item in of("Server") {
        server(item, items, &mut granted, settings, report);
    }
    for entry in authentications.entries().into_iter().chain(granted.entries()) {
        report.add(entry);
    }
}

fn server(item: &Item, items: &[Item], granted: &mut Granted, settings: &Settings, report: &mut Report) {
    let spec = item.spec();
    let mut entry = Entry::new(item);
    if !spec["externalWorkloadSelector"].is_null() {
        report.add(Entry::lost(
            item,
            "it is for workloads outside of the cluster, which Weir does not have",
        ));
        return;
    }
    let mut clients = granted.of(item);
    let mut dry_run = false;
    match spec["accessPolicy"].as_str() {
        None if spec["accessPolicy"].is_null() => {}
        Some("deny") => {}
        Some("audit") => {
            dry_run = true;
            entry.say(
                "accessPolicy audit: written with dryRun: what would be refused is recorded, and passes",
            );
        }
        mode => match Clients::of_mode(mode.unwrap_or_default(), settings) {
            Some(more) => clients.push(more),
            None => {
                entry.stricter(format!(
                    "accessPolicy {} is not known: it lets nobody in",
                    spec["accessPolicy"]
                ));
            }
        },
    }
    if !spec["proxyProtocol"].is_null() {
        entry.say("proxyProtocol is not needed: Weir does not look into connections");
    }
    let denied = Denied::others_than(&clients);
    let Some(denied) = denied else {
        report.add(Entry::not_needed(
            item,
            "anybody may connect to it, with Weir too without a policy",
        ));
        return;
    };
    if denied.is_everybody() && !clients.is_empty() {
        entry.stricter("who may connect is too much for one policy: it denies everybody");
    } else if clients.is_empty() && !dry_run {
        entry.say("nothing authorizes anybody: its port is closed");
    }
    let ports = ports::of(item, items, &mut entry);
    let mut rule = denied.rule();
    if let Some(ports) = ports {
        rule["to"] = json!([{"operation": {"ports": ports}}]);
    }
    for labels in selectors(&spec["podSelector"], &mut entry) {
        let mut name = format!("server-{}", item.name());
        name.truncate(MAX_NAME);
        let head = Head {
            namespace: item.namespace.clone(),
            name,
            labels,
        };
        let object = output::authorization(&head, "DENY", std::slice::from_ref(&rule), dry_run);
        let object = match output::problem(&object, &settings.root) {
            None => object,
            Some(problem) => {
                entry.stricter(format!("{problem}: written as a policy that denies everything"));
                output::authorization(&head, "ALLOW", &[], dry_run)
            }
        };
        report.make(object, item);
    }
    report.add(entry);
}

/// The labels of the pods that a selector selects, as several sets of which a pod has one. Expressions that labels cannot
/// say are left out: more pods are selected.
fn selectors(selector: &Value, entry: &mut Entry) -> Vec<serde_json::Map<String, Value>> {
    let own = json!({"matchLabels": selector["matchLabels"]});
    let Some(labels) = output::labels(&own) else {
        entry.stricter(
            "podSelector.matchLabels is not understood: the policy is for all pods of the namespace",
        );
        return vec![serde_json::Map::new()];
    };
    let mut sets = vec![labels];
    let expressions = selector["matchExpressions"].as_array();
    for (index, expression) in expressions.into_iter().flatten().enumerate() {
        let key = expression["key"].as_str().unwrap_or_default();
        let values: Vec<&str> = expression["values"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        let good = expression["operator"] == "In"
            && !values.is_empty()
            && sets.len() * values.len() <= MAX_SELECTORS
            && sets.iter().all(|set| !set.contains_key(key))
            && values
                .iter()
                .all(|value| output::labels(&json!({"matchLabels": {key: value}})).is_some());
        if !good {
            entry.stricter(format!(
                "podSelector.matchExpressions[{index}] left out: the policy is also for pods of the namespace that it excludes"
            ));
            continue;
        }
        let with = |value: &&str| {
            let value = (*value).to_owned();
            let sets = sets.clone();
            sets.into_iter().map(move |mut set| {
                set.insert(key.to_owned(), value.clone().into());
                set
            })
        };
        sets = values.iter().flat_map(with).collect();
    }
    sets
}
