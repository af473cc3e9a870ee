//! PeerAuthentication of `security.istio.io`.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::migrate::{
    Settings,
    input::Item,
    output::{self, Head, MAX_ENTRIES},
    report::{Entry, Report},
};

/// Translates all: which of them count depends on the others.
pub(crate) fn translate(all: &[&Item], settings: &Settings, report: &mut Report) {
    let mut scopes: BTreeMap<(&str, String), Vec<&Item>> = BTreeMap::new();
    for item in all {
        let labels = output::labels(&item.spec()["selector"]);
        let key = match &labels {
            Some(labels) if labels.is_empty() => String::new(),
            Some(labels) => Value::Object(labels.clone()).to_string(),
            // Each by itself.
            None => format!("?{}", item.name()),
        };
        scopes.entry((&item.namespace, key)).or_default().push(item);
    }
    for mut items in scopes.into_values() {
        // The oldest counts; where that is not known, one that is STRICT.
        let aged = items.iter().all(|item| item.created().is_some());
        if aged {
            items.sort_by_key(|item| (item.created(), item.name().to_owned()));
        } else {
            items.sort_by_key(|item| !strict(item.spec()));
        }
        let first = items[0];
        let unknown = !aged && items.iter().any(|item| item.spec() != first.spec());
        let made_strict;
        let first = if unknown && !strict(first.spec()) {
            let mut made = first.clone();
            made.value["spec"] = json!({"selector": first.spec()["selector"], "mtls": {"mode": "STRICT"}});
            made_strict = made;
            &made_strict
        } else {
            first
        };
        let older = all.iter().find(|other| hidden(first, other));
        one(first, older.map(|older| older.title()), settings, report);
        for other in &items[1..] {
            let why = if aged {
                format!(
                    "{} is older and of the same scope: it alone counts",
                    first.title()
                )
            } else {
                format!(
                    "{} is of the same scope; the older of the two counts, and files do not say which it is: written as STRICT",
                    first.title()
                )
            };
            report.add(Entry::not_needed(other, why));
        }
    }
}

/// Whether on some pod another one may count instead, which says something else: of those that select a pod the oldest counts,
/// and what is written anew is of one age.
fn hidden(item: &Item, other: &Item) -> bool {
    let labels = |item: &Item| output::labels(&item.spec()["selector"]).filter(|labels| !labels.is_empty());
    let (Some(own), Some(others)) = (labels(item), labels(other)) else {
        return false;
    };
    let may_select_one_pod = own
        .iter()
        .all(|(key, value)| others.get(key).is_none_or(|other| other == value));
    let known_younger = matches!((item.created(), other.created()), (Some(own), Some(other)) if own < other);
    let says = |item: &Item| (item.spec()["mtls"].clone(), item.spec()["portLevelMtls"].clone());
    item.namespace == other.namespace
        && own != others
        && may_select_one_pod
        && !known_younger
        && !strict(item.spec())
        && says(item) != says(other)
}

/// STRICT for every port.
fn strict(spec: &Value) -> bool {
    spec["mtls"]["mode"] == "STRICT" && spec["portLevelMtls"].is_null()
}

fn one(item: &Item, hidden_by: Option<String>, settings: &Settings, report: &mut Report) {
    let spec = item.spec();
    let mut entry = Entry::new(item);
    let root = item.namespace == settings.istio_root;
    let labels = output::labels(&spec["selector"]);
    if root && labels.as_ref().is_none_or(|labels| !labels.is_empty()) {
        report.add(Entry::not_needed(
            item,
            "Istio ignores one with a selector in the root namespace",
        ));
        return;
    }
    let namespace = if root { &settings.root } else { &item.namespace };
    if root && *namespace != item.namespace {
        entry.say(format!("of the root namespace: written to {namespace}"));
    }
    let head = Head {
        namespace: namespace.clone(),
        name: item.name().to_owned(),
        labels: labels.clone().unwrap_or_default(),
    };
    let known = ["selector", "mtls", "portLevelMtls"];
    let unknown = spec
        .as_object()
        .is_some_and(|fields| fields.keys().any(|field| !known.contains(&field.as_str())));
    if labels.is_none() || unknown {
        entry.stricter("it is not understood: written as STRICT for all that it could concern");
        report.make(
            output::peer_authentication(&head, Some("STRICT"), &Map::new()),
            item,
        );
        report.add(entry);
        return;
    }
    let mode = mode("mtls", &spec["mtls"], &mut entry);
    let mut ports = Map::new();
    match &spec["portLevelMtls"] {
        Value::Null => {}
        Value::Object(_) if head.labels.is_empty() => {
            entry.left_out("portLevelMtls left out: Istio heeds it beside a selector alone");
        }
        Value::Object(modes) => {
            for (port, own) in modes {
                let path = format!("portLevelMtls.{port}");
                match (port.parse::<u16>(), self::mode(&path, own, &mut entry)) {
                    (Ok(port), Some(mode)) if port != 0 => {
                        ports.insert(port.to_string(), json!({"mode": mode}));
                    }
                    (_, None) => {}
                    _ => entry.left_out(format!("{path} left out: it is no port")),
                }
            }
        }
        _ => entry.left_out("portLevelMtls left out: it is not understood"),
    }
    let mut mode = mode;
    if ports.len() > MAX_ENTRIES {
        entry.stricter(format!(
            "more than {MAX_ENTRIES} ports with modes: written as STRICT for all"
        ));
        (mode, ports) = (Some("STRICT"), Map::new());
    }
    if let Some(other) = hidden_by {
        entry.stricter(format!(
            "{other} may select the same pods and counts there as the older one, and what is written anew is of one age: written \
             as STRICT"
        ));
        (mode, ports) = (Some("STRICT"), Map::new());
    }
    let object = output::peer_authentication(&head, mode, &ports);
    let object = match output::problem(&object, &settings.root) {
        None => object,
        Some(problem) => {
            entry.stricter(format!("{problem}: written as STRICT"));
            output::peer_authentication(&head, Some("STRICT"), &Map::new())
        }
    };
    report.make(object, item);
    report.add(entry);
}

fn mode(path: &str, mtls: &Value, entry: &mut Entry) -> Option<&'static str> {
    match mtls["mode"].as_str() {
        None if mtls["mode"].is_null() && (mtls.is_null() || mtls.is_object()) => None,
        Some("UNSET") => None,
        Some("STRICT") => Some("STRICT"),
        Some("PERMISSIVE") => Some("PERMISSIVE"),
        Some("DISABLE") => {
            entry.left_out(format!(
                "{path}: DISABLE is written as PERMISSIVE: plaintext is accepted as before, mutual TLS too; to keep pods out of \
                 the mesh annotate them weir.dev/mesh: disabled"
            ));
            Some("PERMISSIVE")
        }
        _ => {
            entry.stricter(format!("{path}: the mode is not understood: written as STRICT"));
            Some("STRICT")
        }
    }
}
