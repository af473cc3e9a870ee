use regex::Regex;
use serde_json::Value;
use weir_control::crd::custom_resource_definitions;

/// What the API server checks: the schema's bounds and patterns, and its rules in CEL.
pub(crate) struct Validator {
    pub(crate) schema: Value,
}

impl Validator {
    pub(crate) fn of(kind: &str) -> Self {
        let definitions = custom_resource_definitions();
        let definition = definitions
            .iter()
            .find(|one| one.spec.names.kind == kind)
            .unwrap();
        let schema = definition.spec.versions[0].schema.as_ref().unwrap();
        Self {
            schema: serde_json::to_value(schema.open_api_v3_schema.as_ref().unwrap()).unwrap(),
        }
    }

    /// What is wrong with a spec.
    pub(crate) fn problems(&self, spec: &Value) -> Vec<String> {
        let schema = &self.schema["properties"]["spec"];
        let mut problems = Vec::new();
        check(schema, spec, "spec", &mut problems);
        // The API server, too, asks CEL only about what the schema lets through in form.
        if problems.is_empty()
            && let Err(errors) = kube_cel::Validator::new().validate(schema, spec, None)
        {
            problems.extend(errors.iter().map(|error| format!("CEL: {error}")));
        }
        problems
    }
}

fn check(schema: &Value, value: &Value, path: &str, problems: &mut Vec<String>) {
    let mut say = |what: &str| problems.push(format!("{path}: {what}"));
    let (most, least) = (
        |name: &str| schema[name].as_u64().unwrap_or(u64::MAX),
        |name: &str| schema[name].as_u64().unwrap_or(0),
    );
    let right = match schema["type"].as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("boolean") => value.is_boolean(),
        other => panic!("{path}: {other:?}"),
    };
    if !right {
        return say("type");
    }
    if let Some(choices) = schema["enum"].as_array()
        && !choices.contains(value)
    {
        say("enum");
    }
    match value {
        Value::String(text) => {
            let length = text.chars().count() as u64;
            if length > most("maxLength") || length < least("minLength") {
                say("length");
            }
            if let Some(pattern) = schema["pattern"].as_str()
                && !Regex::new(pattern).unwrap().is_match(text)
            {
                say("pattern");
            }
        }
        Value::Array(entries) => {
            let count = entries.len() as u64;
            if count > most("maxItems") || count < least("minItems") {
                say("items");
            }
            for (index, entry) in entries.iter().enumerate() {
                check(&schema["items"], entry, &format!("{path}[{index}]"), problems);
            }
        }
        Value::Object(fields) => {
            let count = fields.len() as u64;
            if count > most("maxProperties") || count < least("minProperties") {
                say("properties");
            }
            for required in schema["required"].as_array().into_iter().flatten() {
                if !fields.contains_key(required.as_str().unwrap()) {
                    say("required");
                }
            }
            for (name, value) in fields {
                let below = [&schema["properties"][name], &schema["additionalProperties"]];
                match below.iter().find(|below| below.is_object()) {
                    Some(below) => check(below, value, &format!("{path}.{name}"), problems),
                    // `kubectl` asks for strict validation; without it the field is dropped.
                    None => problems.push(format!("{path}.{name}: unknown")),
                }
            }
        }
        _ => {}
    }
}
