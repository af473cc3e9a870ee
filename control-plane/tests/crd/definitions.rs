use std::{fs, path::PathBuf};

use kube_cel::compile_schema;
use serde_json::Value;
use weir_control::crd::custom_resource_definitions;

use crate::validator::Validator;

/// Set to rewrite what is checked in.
const UPDATE: &str = "UPDATE_CRDS";

#[test]
fn the_definitions_that_are_checked_in_are_those_of_the_types() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../daemonset/chart/files/crds");
    for definition in custom_resource_definitions() {
        let name = definition.metadata.name.clone().unwrap();
        let path = folder.join(format!("{name}.yaml"));
        let text = format!(
            "# Generated: {UPDATE}=1 cargo test -p weir-control --test crd\n{}",
            serde_saphyr::to_string(&serde_json::to_value(&definition).unwrap()).unwrap()
        );
        let read: Value = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(
            read,
            serde_json::to_value(&definition).unwrap(),
            "{name}: YAML that says the same"
        );
        if std::env::var_os(UPDATE).is_some() {
            fs::write(&path, text).unwrap();
            continue;
        }
        let found = fs::read_to_string(&path).unwrap_or_default();
        assert!(
            found == text,
            "{name} is not what is checked in: {UPDATE}=1 writes it"
        );
    }
}

/// Calls with each schema below one, and its path.
fn walk(schema: &Value, path: &str, visit: &mut impl FnMut(&Value, &str)) {
    visit(schema, path);
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        walk(property, &format!("{path}.{name}"), visit);
    }
    for (part, name) in [("items", "[]"), ("additionalProperties", "{}")] {
        if schema[part].is_object() {
            walk(&schema[part], &format!("{path}{name}"), visit);
        }
    }
}

#[test]
fn everything_of_a_spec_is_bounded_and_no_schema_is_more_than_structural() {
    for kind in ["AuthorizationPolicy", "PeerAuthentication"] {
        let validator = Validator::of(kind);
        let spec = &validator.schema["properties"]["spec"];
        let mut wrong = Vec::new();
        walk(spec, "spec", &mut |schema, path| {
            let lacks = |field: &str| schema[field].is_null();
            let unbounded = match schema["type"].as_str() {
                Some("array") => lacks("maxItems"),
                Some("string") => lacks("maxLength") && lacks("enum"),
                Some("object") => lacks("properties") && lacks("maxProperties"),
                Some("boolean") => false,
                _ => true,
            };
            // What protobuf's JSON calls absent must be absent for `has` in CEL.
            let odd = ["$ref", "anyOf", "oneOf", "allOf", "nullable"];
            let described = path.ends_with("[]") || path.ends_with("{}") || !lacks("description");
            if unbounded || odd.iter().any(|field| !lacks(field)) || !described {
                wrong.push(format!("{path}: {schema}"));
            }
            if !lacks("default") && path != "spec.action" {
                wrong.push(format!("{path}: a default"));
            }
        });
        assert_eq!(wrong, Vec::<String>::new());
    }
}

#[test]
fn rules_in_cel_compile_have_messages_and_name_fields_that_there_are() {
    let mut rules = 0;
    for kind in ["AuthorizationPolicy", "PeerAuthentication"] {
        let validator = Validator::of(kind);
        walk(&validator.schema, kind, &mut |schema, path| {
            let compiled = compile_schema(schema);
            assert!(
                !compiled.has_errors(),
                "{path}: {:?}",
                compiled.compilation_errors()
            );
            for rule in schema["x-kubernetes-validations"]
                .as_array()
                .into_iter()
                .flatten()
            {
                rules += 1;
                let message = rule["message"].as_str().unwrap();
                assert!(!message.contains('\n') && !message.is_empty(), "{path}");
                assert!(rule["reason"].is_string(), "{path}");
                if let Some(field) = rule["fieldPath"].as_str() {
                    let field = field.strip_prefix('.').unwrap();
                    assert!(schema["properties"][field].is_object(), "{path}: {field}");
                }
            }
        });
    }
    assert!(rules >= 12, "{rules} rules");
}

/// The cost of a rule as the API server's estimate has it (`k8s.io/apiserver/pkg/cel`): each character of a pattern is a
/// quarter, each byte of its text a tenth (a character may have four, and the text is estimated one longer), and a rule is
/// multiplied by the most entries of all lists around it. A real server says so itself; this says it without one.
#[test]
fn rules_in_cel_stay_within_the_api_servers_budget() {
    const LIMIT: u64 = 10_000_000;
    /// The rest of an iteration: the loop's own steps, conversions, comparisons.
    const REST: u64 = 8;
    let validator = Validator::of("AuthorizationPolicy");
    let rule = &validator.schema["properties"]["spec"]["properties"]["rules"];
    let when = &rule["items"]["properties"]["when"];
    let values = &when["items"]["properties"]["values"];
    let most = |schema: &Value, bound: &str| schema[bound].as_u64().unwrap();
    let text = (most(&values["items"], "maxLength") * 4 + 1).div_ceil(10);
    let times = most(rule, "maxItems") * most(when, "maxItems") * most(values, "maxItems");
    let mut total = 0;
    for one in when["items"]["x-kubernetes-validations"].as_array().unwrap() {
        let one = one["rule"].as_str().unwrap();
        let Some((_, rest)) = one.split_once("matches(") else {
            continue;
        };
        let (_, pattern) = rest.split_once('\'').unwrap();
        let pattern = pattern.split_once("')").unwrap().0.len() as u64;
        let cost = times * (text * pattern.div_ceil(4) + REST);
        // Kept apart from the limit, for estimates of other versions.
        assert!(cost < LIMIT / 10 * 9, "{one}: {cost}");
        total += cost;
    }
    assert!(total > 0 && total < LIMIT * 8, "{total}");
}
