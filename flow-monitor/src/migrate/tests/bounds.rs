use serde_json::{Value, json};
use weir_control::crd::custom_resource_definitions;

use super::{Outcome, allowed, migrated, outcomes};
use crate::migrate::output::{
    MAX_ALTERNATIVES, MAX_CONDITION_VALUES, MAX_CONDITIONS, MAX_ENTRIES, MAX_RULES, MAX_VALUES,
};

#[test]
fn the_bounds_are_those_of_the_definitions() {
    let definitions = serde_json::to_value(custom_resource_definitions()).unwrap();
    let spec = |index: usize| {
        definitions[index]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"].clone()
    };
    let rules = &spec(0)["rules"];
    let rule = &rules["items"]["properties"];
    let source = &rule["from"]["items"]["properties"]["source"]["properties"];
    for (bound, expected) in [
        (&rules["maxItems"], MAX_RULES),
        (&rule["from"]["maxItems"], MAX_ALTERNATIVES),
        (&rule["to"]["maxItems"], MAX_ALTERNATIVES),
        (&rule["when"]["maxItems"], MAX_CONDITIONS),
        (
            &rule["when"]["items"]["properties"]["values"]["maxItems"],
            MAX_CONDITION_VALUES,
        ),
        (&source["notPrincipals"]["maxItems"], MAX_VALUES),
        (&source["ipBlocks"]["maxItems"], MAX_VALUES),
        (&spec(1)["portLevelMtls"]["maxProperties"], MAX_ENTRIES),
        (
            &spec(0)["selector"]["properties"]["matchLabels"]["maxProperties"],
            MAX_ENTRIES,
        ),
    ] {
        assert_eq!(*bound, json!(expected));
    }
}

fn policy(action: &str, rules: &[Value]) -> String {
    json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": {"name": "p", "namespace": "shop"},
        "spec": {"action": action, "rules": rules},
    })
    .to_string()
}

#[test]
fn what_is_too_long_for_one_policy_becomes_several() {
    let source = |n: usize| json!({"source": {"principals": [format!("cluster.local/ns/a/sa/b{n}")]}});
    let rules: Vec<Value> = (0..100).map(|n| json!({"from": [source(n)]})).collect();
    let report = migrated(&policy("ALLOW", &rules));
    assert_eq!(
        (report.made.len(), outcomes(&report)[0].1),
        (2, Outcome::Translated)
    );
    let from: Vec<Value> = (0..100).map(source).collect();
    let wide = migrated(&policy("ALLOW", &[json!({"from": from})]));
    assert_eq!(
        wide.made[0].object["spec"]["rules"].as_array().map(Vec::len),
        Some(2)
    );
    for report in [report, wide] {
        for (who, expected) in [("a/b0", true), ("a/b99", true), ("a/b100", false)] {
            assert_eq!(
                allowed(&report, who, "10.0.0.1", "shop/api", 80),
                expected,
                "{who}"
            );
        }
    }
    let many: Vec<String> = (0..=MAX_VALUES)
        .map(|n| format!("10.{}.{}.0/24", n / 256, n % 256))
        .collect();
    for (action, first, other) in [("ALLOW", false, false), ("DENY", false, false)] {
        let report = migrated(&policy(
            action,
            &[json!({"from": [{"source": {"ipBlocks": many}}]})],
        ));
        assert_eq!(allowed(&report, "-", "10.0.0.1", "shop/api", 80), first);
        assert_eq!(allowed(&report, "-", "11.0.0.1", "shop/api", 80), other);
    }
}
