//! Alert rules and dashboard: what Prometheus says of them, and that there is no dead expression in them. That the documented
//! metrics are those that are served, and no others, the end-to-end tests see.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fs,
    path::PathBuf,
};

use serde_json::{Value, json};
use weir_e2e::promtool::{Family, documented, promtool};

use crate::chart::{objects, render};

/// Labels that Prometheus adds to what it scrapes.
const TARGET_LABELS: [&str; 2] = ["instance", "job"];

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../daemonset/monitoring")
}

fn read(name: &str) -> String {
    fs::read_to_string(folder().join(name)).unwrap()
}

fn dashboard() -> Value {
    serde_json::from_str(&read("dashboard.json")).unwrap()
}

/// All alerts, by name.
fn alerts() -> BTreeMap<String, Value> {
    let rules: Value = serde_saphyr::from_str(&read("alerts.yaml")).unwrap();
    let groups = rules["groups"].as_array().unwrap().iter();
    let rules = groups.flat_map(|group| group["rules"].as_array().unwrap());
    let named = rules.map(|rule| (rule["alert"].as_str().unwrap().to_owned(), rule.clone()));
    named.collect()
}

/// The panels that show something.
fn panels(dashboard: &Value) -> Vec<&Value> {
    let panels = dashboard["panels"].as_array().unwrap().iter();
    panels.filter(|panel| panel["type"] != "row").collect()
}

/// All expressions of the dashboard, with Grafana's variables replaced.
fn expressions(dashboard: &Value) -> Vec<String> {
    let targets = panels(dashboard)
        .into_iter()
        .flat_map(|panel| panel["targets"].as_array().unwrap());
    let expressions = targets.map(|target| target["expr"].as_str().unwrap());
    expressions
        .map(|text| text.replace("$__rate_interval", "5m").replace("$instance", ".*"))
        .collect()
}

fn metrics() -> BTreeMap<String, Family> {
    let mut all = documented("Agent");
    all.extend(documented("Control plane"));
    assert!(all.len() > 50, "{all:?}");
    all
}

/// Each metric of an expression, with the names of the labels that it is matched by.
fn used(expression: &str) -> Vec<(String, Vec<String>)> {
    let is_name = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    let mut found = Vec::new();
    for (start, _) in expression.match_indices("weir_") {
        if expression[..start].ends_with(is_name) {
            continue;
        }
        let rest = &expression[start..];
        let end = rest.find(|letter| !is_name(letter)).unwrap_or(rest.len());
        let (name, rest) = rest.split_at(end);
        let matchers = rest.strip_prefix('{').and_then(|rest| rest.split_once('}'));
        let matchers = matchers.map_or("", |(matchers, _)| matchers).split(',');
        let labels = matchers
            .filter_map(|matcher| Some(matcher.split_once(['=', '!'])?.0.trim().to_owned()))
            .collect();
        found.push((name.to_owned(), labels));
    }
    found
}

/// Labels that an expression aggregates by.
fn grouped_by(expression: &str) -> impl Iterator<Item = &str> {
    let lists = expression.split("by (").skip(1);
    let lists = lists.filter_map(|rest| Some(rest.split_once(')')?.0));
    lists.flat_map(|list| list.split(',').map(str::trim))
}

/// Sees that an expression can have an answer, and gives the metrics in it.
fn check(expression: &str) -> BTreeSet<String> {
    let metrics = metrics();
    let mut names = BTreeSet::new();
    let mut labels: BTreeSet<&str> = TARGET_LABELS.into();
    let used = used(expression);
    for (name, matched) in &used {
        let histogram = ["_bucket", "_count", "_sum"]
            .iter()
            .filter_map(|end| name.strip_suffix(end))
            .find(|name| {
                metrics
                    .get(*name)
                    .is_some_and(|family| family.kind == "histogram")
            });
        let known = histogram.unwrap_or(name);
        let family = metrics.get(known);
        let family = family.unwrap_or_else(|| panic!("{name} is no metric of ours: {expression}"));
        assert!(
            family.kind != "histogram" || histogram.is_some(),
            "{name} is a histogram: {expression}"
        );
        labels.extend(family.labels.iter().map(String::as_str));
        labels.extend(histogram.map(|_| "le"));
        for label in matched {
            let has = family.labels.contains(label) || TARGET_LABELS.contains(&label.as_str());
            assert!(has, "{name} has no label {label}: {expression}");
        }
        names.insert(known.to_owned());
    }
    assert!(!names.is_empty(), "{expression}");
    for label in grouped_by(expression) {
        assert!(
            labels.contains(label),
            "nothing in it has a label {label}: {expression}"
        );
    }
    names
}

#[test]
fn prometheus_takes_the_rules_and_each_alert_fires_when_it_should() {
    let checked = promtool(&["check", "rules", "alerts.yaml"], &folder(), "");
    let said = checked.unwrap_or_else(|said| panic!("{said}"));
    assert!(
        said.contains(&format!("{} rules found", alerts().len())),
        "{said}"
    );
    let tested = promtool(&["test", "rules", "alerts.test.yaml"], &folder(), "");
    assert!(tested.is_ok(), "{}", tested.unwrap_err());

    let tests: Value = serde_saphyr::from_str(&read("alerts.test.yaml")).unwrap();
    let rows: Vec<&Value> = tests["tests"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|test| test["alert_rule_test"].as_array().unwrap())
        .collect();
    for alert in alerts().keys() {
        let of = |fires: bool| {
            rows.iter().any(|row| {
                row["alertname"] == **alert && row["exp_alerts"].as_array().unwrap().is_empty() != fires
            })
        };
        assert!(of(true) && of(false), "{alert} is not tested both ways");
    }
}

#[test]
fn every_alert_is_about_metrics_that_are_served_and_says_what_to_do() {
    let text = fs::read_to_string(folder().join("../../docs/metrics.md")).unwrap();
    for (name, rule) in alerts() {
        let metrics = check(rule["expr"].as_str().unwrap());
        let severity = rule["labels"]["severity"].as_str().unwrap_or_default();
        assert!(["warning", "critical"].contains(&severity), "{name}");
        for annotation in ["summary", "description"] {
            assert!(
                rule["annotations"][annotation].is_string(),
                "{name}: {annotation}"
            );
        }
        let lines: Vec<&str> = text
            .lines()
            .filter(|line| line.contains(&format!("`{name}`")))
            .collect();
        let named = |metric: &String| {
            lines
                .iter()
                .any(|line| line.starts_with(&format!("| `{metric}`")))
        };
        assert!(
            metrics.iter().any(named),
            "docs/metrics.md does not name {name} at a metric of its"
        );
    }
    let named = text.split('`').filter(|word| {
        word.strip_prefix("Weir")
            .is_some_and(|rest| rest.starts_with(char::is_uppercase))
    });
    for name in named {
        assert!(
            alerts().contains_key(name),
            "docs/metrics.md names {name}, which is no alert"
        );
    }
}

#[test]
fn every_panel_shows_metrics_that_are_served_with_a_unit_and_every_metric_is_shown() {
    let dashboard = dashboard();
    assert!(dashboard["schemaVersion"].as_u64().unwrap() >= 39);
    assert_eq!(dashboard["templating"]["list"][0]["type"], "datasource");
    let mut ids = HashSet::new();
    let mut places = HashSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{panel}");
        let place = |of: &str| panel["gridPos"][of].as_u64().unwrap();
        for column in place("x")..place("x") + place("w") {
            assert!(column < 24, "{panel}");
            for row in place("y")..place("y") + place("h") {
                assert!(places.insert((column, row)), "two panels at one place: {panel}");
            }
        }
    }
    for panel in panels(&dashboard) {
        assert!(
            panel["title"].as_str().is_some_and(|title| !title.is_empty()),
            "{panel}"
        );
        assert!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "{panel}");
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{panel}");
        for target in panel["targets"].as_array().unwrap() {
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{panel}");
        }
    }
    let shown: BTreeSet<String> = expressions(&dashboard)
        .iter()
        .flat_map(|expression| check(expression))
        .collect();
    let all: BTreeSet<String> = metrics().into_keys().collect();
    assert_eq!(shown, all);
    // Each is one that Prometheus can read.
    let rules: Vec<Value> = (0..)
        .zip(expressions(&dashboard))
        .map(|(number, expression)| json!({ "record": format!("panel:{number}"), "expr": expression }))
        .collect();
    let file = json!({ "groups": [{ "name": "dashboard", "rules": rules }] });
    let place = tempfile::tempdir().unwrap();
    fs::write(place.path().join("rules.yaml"), file.to_string()).unwrap();
    let checked = promtool(&["check", "rules", "rules.yaml"], place.path(), "");
    assert!(checked.is_ok(), "{}", checked.unwrap_err());
}

#[test]
fn the_chart_installs_the_rules_and_the_dashboard_as_they_are_when_it_is_told_to() {
    let kinds = |values: &[&str]| -> Vec<Value> {
        let wanted = |object: &Value| {
            ["PodMonitor", "PrometheusRule"].contains(&object["kind"].as_str().unwrap_or_default())
                || object["metadata"]["name"] == "weir-dashboard"
        };
        objects(&render(values).unwrap())
            .into_iter()
            .filter(wanted)
            .collect()
    };
    assert!(kinds(&[]).is_empty(), "off by default");
    let installed = kinds(&[
        "--set",
        "monitoring.podMonitor=true,monitoring.rules=true,monitoring.dashboard=true,monitoring.labels.release=prom",
    ]);
    assert_eq!(installed.len(), 3, "{installed:#?}");
    let of = |kind: &str| {
        installed
            .iter()
            .find(|object| object["kind"] == kind)
            .unwrap_or_else(|| panic!("no {kind}"))
    };
    let (monitor, rules, map) = (of("PodMonitor"), of("PrometheusRule"), of("ConfigMap"));
    assert_eq!(monitor["metadata"]["labels"]["release"], "prom");
    assert_eq!(monitor["spec"]["podMetricsEndpoints"][0]["honorLabels"], true);
    assert_eq!(rules["metadata"]["labels"]["release"], "prom");
    let written: Value = serde_saphyr::from_str(&read("alerts.yaml")).unwrap();
    assert_eq!(rules["spec"], written);
    assert_eq!(map["metadata"]["labels"]["grafana_dashboard"], "1");
    let text = map["data"]["weir.json"].as_str().unwrap();
    assert_eq!(serde_json::from_str::<Value>(text).unwrap(), dashboard());
}
