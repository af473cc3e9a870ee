//! AuthorizationPolicy of `security.istio.io`.
//!
//! Where something of a rule has no counterpart: an ALLOW rule loses what it would have allowed, a DENY rule the condition,
//! so that it denies more. What is not understood at all denies everything that it concerns.

use serde_json::{Map, Value, json};

use super::values::{Form, translate as value};
use crate::migrate::{
    Settings,
    input::Item,
    output::{self, Head, MAX_ALTERNATIVES, MAX_CONDITION_VALUES, MAX_CONDITIONS, MAX_RULES, MAX_VALUES},
    report::{Effect, Entry, Outcome, Report},
};

/// Istio's annotation of policies that are only rehearsed.
const DRY_RUN: &str = "istio.io/dry-run";
/// What Istio reads as true there (Go's `strconv.ParseBool`).
const TRUE: [&str; 6] = ["1", "t", "T", "true", "TRUE", "True"];

/// Fields that L4 decides.
fn form(field: &str) -> Option<Form> {
    Some(match field {
        "principals" | "notPrincipals" | "source.principal" => Form::Principal,
        "namespaces" | "notNamespaces" | "source.namespace" => Form::Namespace,
        "serviceAccounts" | "notServiceAccounts" | "source.serviceAccount" => Form::ServiceAccount,
        "ipBlocks" | "notIpBlocks" | "source.ip" | "destination.ip" => Form::Cidr,
        "ports" | "notPorts" | "destination.port" => Form::Port,
        _ => return None,
    })
}

/// Translates a policy, or says why not.
pub(crate) fn translate(item: &Item, settings: &Settings, report: &mut Report) {
    let mut entry = Entry::new(item);
    let spec = item.spec();
    for field in ["targetRef", "targetRefs"] {
        let target = match &spec[field] {
            Value::Null => continue,
            Value::Array(entries) if entries.is_empty() => continue,
            Value::Array(entries) => &entries[0],
            one => one,
        };
        let text = |name: &str| target[name].as_str().unwrap_or("?").to_owned();
        report.add(Entry::lost(
            item,
            format!(
                "it is for {} {}, which a waypoint or gateway enforces, and Weir has none: write a policy with a selector for the \
                 workloads behind it",
                text("kind"),
                text("name")
            ),
        ));
        return;
    }
    let action = match spec["action"].as_str() {
        None if spec["action"].is_null() => "ALLOW",
        Some(action @ ("ALLOW" | "DENY")) => action,
        Some("AUDIT") => {
            report.add(Entry::none(
                item,
                "AUDIT refuses nothing, and each connection has a flow record as it is: 'weir flows'",
            ));
            return;
        }
        Some("CUSTOM") => {
            report.add(Entry::lost(
                item,
                "CUSTOM asks a provider: what that refused, nothing refuses now; write ALLOW or DENY policies instead",
            ));
            return;
        }
        _ => "?",
    };
    let root = item.namespace == settings.istio_root;
    let namespace = if root { &settings.root } else { &item.namespace };
    let dry_run = item.annotation(DRY_RUN).is_some_and(|text| TRUE.contains(&text));
    let labels = output::labels(&spec["selector"]);
    let head = Head {
        namespace: namespace.clone(),
        name: item.name().to_owned(),
        labels: labels.clone().unwrap_or_default(),
    };
    if root && *namespace != item.namespace {
        entry.say(format!("of the root namespace: written to {namespace}"));
    }
    let known = [
        "selector",
        "targetRef",
        "targetRefs",
        "rules",
        "action",
        "provider",
    ];
    let unknown = spec.as_object().and_then(|fields| {
        fields
            .keys()
            .find(|field| !known.contains(&field.as_str()) && !spec[field.as_str()].is_null())
    });
    let rules = match &spec["rules"] {
        Value::Null => Some(Vec::new()),
        Value::Array(rules) => Some(rules.clone()),
        _ => None,
    };
    let problem = match (&rules, unknown, spec) {
        (_, _, spec) if !spec.is_object() && !spec.is_null() => Some("spec".to_owned()),
        (_, Some(unknown), _) => Some(unknown.clone()),
        (None, ..) => Some("rules".to_owned()),
        _ if action == "?" => Some("action".to_owned()),
        _ if labels.is_none() => Some("selector".to_owned()),
        _ => None,
    };
    if let Some(field) = problem {
        report.make(output::authorization(&head, "ALLOW", &[], dry_run), item);
        entry.stricter(format!(
            "{field} is not understood: written as a policy that denies everything that it {}; say there what you mean",
            if labels.is_none() { "could concern, its whole namespace" } else { "concerns" }
        ));
        report.add(entry);
        return;
    }
    let given = rules.unwrap_or_default();
    let mut translation = Rules {
        allow: action == "ALLOW",
        home: &item.namespace,
        settings,
        entry,
    };
    let mut rules: Vec<Value> = Vec::new();
    for (index, rule) in given.iter().enumerate() {
        rules.extend(translation.rule(&format!("rules[{index}]"), rule));
    }
    let mut entry = translation.entry;
    if rules.is_empty() && !given.is_empty() && action == "ALLOW" {
        entry.stricter("no rule is left, so it denies everything that it concerns");
    }
    if rules.iter().any(|rule| *rule == json!({}))
        && action == "DENY"
        && !given.iter().any(|rule| *rule == json!({}))
    {
        entry.stricter("a rule without conditions is left, so it denies everything that it concerns");
    }
    let mut parts: Vec<&[Value]> = rules.chunks(MAX_RULES).collect();
    if parts.is_empty() {
        parts.push(&[]);
    }
    if parts.len() > 1 {
        entry.say(format!(
            "{} rules: written as {} policies",
            rules.len(),
            parts.len()
        ));
    }
    for part in parts {
        let object = output::authorization(&head, action, part, dry_run);
        let object = match output::problem(&object, &settings.root) {
            None => object,
            Some(problem) => {
                entry.stricter(format!(
                    "{problem}: written as a policy that denies everything that it concerns"
                ));
                output::authorization(&head, "ALLOW", &[], dry_run)
            }
        };
        report.make(object, item);
    }
    if dry_run {
        entry.say("istio.io/dry-run: written with dryRun");
    }
    report.add(entry);
}

struct Rules<'a> {
    allow: bool,
    /// The policy's own namespace, wherever it is written to.
    home: &'a str,
    settings: &'a Settings,
    entry: Entry,
}

/// What is left of a source, an operation or a condition.
enum Left<T> {
    /// It matches everything: of DENY alone.
    Always,
    /// It matches nothing.
    Never,
    Some(T),
}

// === impl Rules ===

impl Rules<'_> {
    /// Rules that together match what a rule does: none, one, or several where it is too long for one.
    fn rule(&mut self, path: &str, rule: &Value) -> Vec<Value> {
        let Some(fields) = rule.as_object() else {
            return self.not_understood(path);
        };
        if fields
            .keys()
            .any(|key| !matches!(key.as_str(), "from" | "to" | "when"))
        {
            return self.not_understood(path);
        }
        let mut clauses = Vec::new();
        for (list, part) in [("from", "source"), ("to", "operation")] {
            match self.alternatives(&format!("{path}.{list}"), &rule[list], part) {
                Left::Always => clauses.push(vec![Vec::new()]),
                Left::Never => return Vec::new(),
                Left::Some(all) => {
                    clauses.push(all.chunks(MAX_ALTERNATIVES).map(<[_]>::to_vec).collect());
                }
            }
        }
        let mut when = Vec::new();
        let conditions = match &rule["when"] {
            Value::Null => &[][..],
            Value::Array(conditions) => conditions,
            _ => return self.not_understood(&format!("{path}.when")),
        };
        for (index, condition) in conditions.iter().enumerate() {
            match self.condition(&format!("{path}.when[{index}]"), condition) {
                Left::Always => {}
                Left::Never => return Vec::new(),
                Left::Some(condition) => when.push(condition),
            }
        }
        if when.len() > MAX_CONDITIONS {
            match self.lose::<()>(&format!("{path}.when"), "has too many conditions") {
                Left::Always => when.truncate(MAX_CONDITIONS),
                _ => return Vec::new(),
            }
        }
        let mut rules = Vec::new();
        for from in &clauses[0] {
            for to in &clauses[1] {
                let mut rule = Map::new();
                for (name, list) in [("from", from), ("to", to), ("when", &when)] {
                    if !list.is_empty() {
                        rule.insert(name.to_owned(), list.clone().into());
                    }
                }
                rules.push(Value::Object(rule));
            }
        }
        rules
    }

    fn alternatives(&mut self, path: &str, list: &Value, part: &str) -> Left<Vec<Value>> {
        let entries = match list {
            Value::Null => return Left::Always,
            Value::Array(entries) if entries.is_empty() => return Left::Always,
            Value::Array(entries) => entries,
            _ => return self.lose(path, "is not understood"),
        };
        let mut left = Vec::new();
        for (index, entry) in entries.iter().enumerate() {
            let path = format!("{path}[{index}]");
            let fields = entry.as_object().filter(|fields| fields.len() == 1);
            let found = match fields
                .and_then(|fields| fields.get(part))
                .and_then(Value::as_object)
            {
                Some(fields) => self.fields(&format!("{path}.{part}"), fields),
                None => self.lose(&path, "is not understood"),
            };
            match found {
                Left::Always => return Left::Always,
                Left::Never => {}
                Left::Some(fields) => left.push(json!({part: fields})),
            }
        }
        if left.is_empty() {
            return Left::Never;
        }
        Left::Some(left)
    }

    fn fields(&mut self, path: &str, fields: &Map<String, Value>) -> Left<Map<String, Value>> {
        let said = |field: &str| {
            fields
                .get(field)
                .and_then(Value::as_array)
                .is_some_and(|values| !values.is_empty())
        };
        let accounts = ["serviceAccounts", "notServiceAccounts"];
        let beside = ["principals", "notPrincipals", "namespaces", "notNamespaces"]
            .into_iter()
            .any(said);
        let mut left = Map::new();
        for (field, values) in fields {
            let path = format!("{path}.{field}");
            let found = if values.is_null() || values.as_array().is_some_and(Vec::is_empty) {
                continue;
            } else if accounts.contains(&field.as_str()) && beside {
                self.lose(&path, "is forbidden beside principals and namespaces")
            } else {
                match form(field) {
                    Some(form) => self.values(&path, form, field.starts_with("not"), values, MAX_VALUES),
                    None => self.lose(&path, "is of layer 7, which Weir does not see"),
                }
            };
            match found {
                Left::Always => {}
                Left::Never => return Left::Never,
                Left::Some(values) => drop(left.insert(field.clone(), values.into())),
            }
        }
        if left.is_empty() {
            return self.lose(path, "says nothing that Weir can decide");
        }
        Left::Some(left)
    }

    fn condition(&mut self, path: &str, condition: &Value) -> Left<Value> {
        let Some(key) = condition["key"].as_str() else {
            return self.lose(path, "is not understood");
        };
        let Some(form) = form(key).filter(|_| key.contains('.')) else {
            return self.lose(path, &format!("({key}) is of layer 7, which Weir does not see"));
        };
        let mut left = Map::new();
        for (field, negative) in [("values", false), ("notValues", true)] {
            let values = &condition[field];
            if values.is_null() || values.as_array().is_some_and(Vec::is_empty) {
                continue;
            }
            let path = format!("{path}.{field}");
            match self.values(&path, form, negative, values, MAX_CONDITION_VALUES) {
                Left::Always => {}
                Left::Never => return Left::Never,
                Left::Some(values) => drop(left.insert(field.to_owned(), values.into())),
            }
        }
        if left.is_empty() {
            return self.lose(path, "says nothing that Weir can decide");
        }
        left.insert("key".to_owned(), key.into());
        Left::Some(Value::Object(left))
    }

    /// The values of a field. Those that are lost: of one that allows, they do not count; where that would allow more, nor
    /// does the field.
    fn values(
        &mut self,
        path: &str,
        form: Form,
        negative: bool,
        values: &Value,
        most: usize,
    ) -> Left<Vec<String>> {
        let Some(values) = values.as_array() else {
            return self.lose(path, "is not understood");
        };
        // Where a value matches more, is less allowed?
        let may_widen = self.allow == negative;
        let mut left = Vec::new();
        for text in values {
            let translated = match text.as_str() {
                Some(text) => value(form, text, may_widen, self.home, self.settings),
                None => Err(format!("{text} is not understood")),
            };
            match translated {
                Ok(found) => {
                    if let Some(wider) = found.wider {
                        self.entry.stricter(format!("{path}: {wider}"));
                    }
                    if let Some(note) = found.note {
                        self.entry.say(format!("{path}: {note}"));
                    }
                    left.push(found.value);
                }
                Err(why) if may_widen => return self.lose(path, &format!("cannot be said: {why}")),
                Err(why) => self.entry.stricter(format!("{path}: left out: {why}")),
            }
        }
        if left.len() > most {
            return self.lose(path, &format!("has more than {most} values"));
        }
        match (left.is_empty(), negative) {
            (false, _) => Left::Some(left),
            (true, true) => Left::Always,
            (true, false) => Left::Never,
        }
    }

    fn not_understood(&mut self, path: &str) -> Vec<Value> {
        match self.lose::<()>(path, "is not understood") {
            Left::Always => vec![json!({})],
            _ => Vec::new(),
        }
    }

    /// What becomes of something that cannot be said, and that it is said.
    fn lose<T>(&mut self, path: &str, why: &str) -> Left<T> {
        if self.allow {
            self.entry
                .stricter(format!("{path} {why}: what it would allow is left out"));
            return Left::Never;
        }
        self.entry
            .stricter(format!("{path} {why}: it counts as met, so more is denied"));
        Left::Always
    }
}

/// RequestAuthentication refuses requests with a wrong token, and nothing else.
pub(crate) fn request(item: &Item) -> Entry {
    Entry::new(item).with(
        Outcome::NoCounterpart,
        Effect::Lost,
        "Weir does not see requests: let the application, or a gateway, verify their tokens",
    )
}
