//! What the schemas of the policies' types leave open: how many, how long, and of what form.

use schemars::Schema;
use serde_json::{Map, Value, json};

use super::{rules, values};

/// Rules of a policy. Together with the next two it bounds what the rules in CEL may cost.
const MAX_RULES: u64 = 64;
/// Conditions of a rule: there are six keys that L4 decides.
const MAX_CONDITIONS: u64 = 8;
/// Values of a condition, each of which a rule in CEL looks at.
const MAX_CONDITION_VALUES: u64 = 32;
/// Longest value of a condition. Principals of `from` may be longer.
const MAX_CONDITION_VALUE: u64 = 320;
/// Sources, and operations, of a rule.
const MAX_ALTERNATIVES: u64 = 64;
/// Values of a field: one principal for each of a large namespace's service accounts.
const MAX_VALUES: u64 = 512;
/// Labels of a selector, and ports of a workload with a mode of their own.
const MAX_ENTRIES: u64 = 64;
/// Longest value of a field of L7, of which nothing is known here: a path.
const MAX_TEXT: u64 = 2048;
/// Longest text of a status.
const MAX_MESSAGE: u64 = 32_768;
/// Conditions of a status: ours, and those that others may add.
const MAX_STATUS_CONDITIONS: u64 = 16;

/// Lists of values of a source, with what they look like; of each there is a `not` too.
const SOURCE: [(&str, Form); 6] = [
    ("principals", Form::Principal),
    ("namespaces", Form::Namespace),
    ("serviceAccounts", Form::ServiceAccount),
    ("ipBlocks", Form::Cidr),
    ("requestPrincipals", Form::Text),
    ("remoteIpBlocks", Form::Cidr),
];
/// Those of an operation.
const OPERATION: [(&str, Form); 4] = [
    ("ports", Form::Port),
    ("hosts", Form::Text),
    ("methods", Form::Text),
    ("paths", Form::Text),
];

#[derive(Clone, Copy)]
enum Form {
    Principal,
    Namespace,
    ServiceAccount,
    Cidr,
    Port,
    Text,
}

/// Bounds the schema of `AuthorizationPolicySpec`.
pub(super) fn authorization(schema: &mut Schema) {
    let spec = schema.ensure_object();
    selector(property(spec, "selector"));
    extend(property(spec, "action"), &json!({"default": "ALLOW"}));
    let rules = property(spec, "rules");
    plain(rules);
    extend(rules, &json!({"maxItems": MAX_RULES}));
    let rule = items(rules);
    let at_least_one = |list: &mut Value, most: u64| {
        // Emptied, a list would match everything: not what was meant.
        extend(list, &json!({"minItems": 1, "maxItems": most}));
    };

    let from = property_of(rule, "from");
    at_least_one(from, MAX_ALTERNATIVES);
    extend(items(from), &json!({"required": ["source"]}));
    let source = property_of(items(from), "source");
    extend(
        source,
        &json!({"minProperties": 1, "x-kubernetes-validations": rules::source()}),
    );
    lists(source, &SOURCE);

    let to = property_of(rule, "to");
    at_least_one(to, MAX_ALTERNATIVES);
    extend(items(to), &json!({"required": ["operation"]}));
    let operation = property_of(items(to), "operation");
    extend(operation, &json!({"minProperties": 1}));
    lists(operation, &OPERATION);

    let when = property_of(rule, "when");
    at_least_one(when, MAX_CONDITIONS);
    let condition = items(when);
    extend(
        condition,
        &json!({"x-kubernetes-validations": rules::condition()}),
    );
    extend(
        property_of(condition, "key"),
        &json!({"minLength": 1, "maxLength": values::KEY_LENGTH, "pattern": values::KEY}),
    );
    for field in ["values", "notValues"] {
        let list = property_of(condition, field);
        at_least_one(list, MAX_CONDITION_VALUES);
        extend(
            items(list),
            &json!({"minLength": 1, "maxLength": MAX_CONDITION_VALUE}),
        );
    }
}

/// Bounds the schema of `PeerAuthenticationSpec`.
pub(super) fn peer_authentication(schema: &mut Schema) {
    let spec = schema.ensure_object();
    spec.insert(
        "x-kubernetes-validations".to_owned(),
        rules::peer_authentication(),
    );
    selector(property(spec, "selector"));
    plain(property(spec, "mtls"));
    let ports = property(spec, "portLevelMtls");
    plain(ports);
    extend(
        ports,
        &json!({
            "minProperties": 1, "maxProperties": MAX_ENTRIES, "x-kubernetes-validations": rules::ports(),
        }),
    );
}

/// Bounds the schema of `PolicyStatus`.
pub(super) fn status(schema: &mut Schema) {
    let status = schema.ensure_object();
    for field in ["observedGeneration", "bound"] {
        extend(property(status, field), &json!({"minimum": 0}));
    }
    let conditions = property(status, "conditions");
    plain(conditions);
    extend(
        conditions,
        &json!({
            "maxItems": MAX_STATUS_CONDITIONS,
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["type"],
        }),
    );
    let condition = items(conditions);
    for (field, most) in [
        ("type", 316),
        ("reason", 1024),
        ("message", MAX_MESSAGE),
        ("status", 7),
    ] {
        extend(property_of(condition, field), &json!({"maxLength": most}));
    }
    extend(
        property_of(condition, "status"),
        &json!({"enum": ["True", "False", "Unknown"]}),
    );
}

fn selector(selector: &mut Value) {
    plain(selector);
    let labels = property_of(selector, "matchLabels");
    extend(
        labels,
        &json!({
            "maxProperties": MAX_ENTRIES,
            "x-kubernetes-validations": rules::labels(),
            "additionalProperties": {
                "type": "string", "maxLength": values::LABEL_VALUE_LENGTH, "pattern": values::LABEL_VALUE,
            },
        }),
    );
}

fn lists(object: &mut Value, forms: &[(&str, Form)]) {
    for (field, form) in forms {
        let mut negated = field.to_string();
        negated[..1].make_ascii_uppercase();
        for name in [(*field).to_owned(), format!("not{negated}")] {
            let list = property_of(object, &name);
            extend(list, &json!({"minItems": 1, "maxItems": MAX_VALUES}));
            extend(items(list), &form.bounds());
        }
    }
}

impl Form {
    fn bounds(self) -> Value {
        let (pattern, most) = match self {
            Self::Principal => (values::PRINCIPAL.to_owned(), values::PRINCIPAL_LENGTH),
            Self::Namespace => (values::NAMESPACE.to_owned(), values::NAMESPACE_LENGTH),
            Self::ServiceAccount => (values::SERVICE_ACCOUNT.to_owned(), values::SERVICE_ACCOUNT_LENGTH),
            Self::Cidr => (values::cidr(), values::CIDR_LENGTH),
            Self::Port => (values::PORT.to_owned(), values::PORT_LENGTH),
            Self::Text => return json!({"minLength": 1, "maxLength": MAX_TEXT}),
        };
        json!({"minLength": 1, "maxLength": most, "pattern": pattern})
    }
}

/// Without defaults, which would make what is absent an empty list, and without nulls.
fn plain(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            // `default` and `nullable` of schemas, not properties of those names, which are schemas themselves.
            fields.retain(|name, value| match name.as_str() {
                "default" => false,
                "nullable" | "additionalProperties" => !value.is_boolean(),
                _ => true,
            });
            fields.values_mut().for_each(plain);
        }
        Value::Array(entries) => entries.iter_mut().for_each(plain),
        _ => {}
    }
}

fn property<'a>(schema: &'a mut Map<String, Value>, name: &str) -> &'a mut Value {
    &mut schema["properties"][name]
}

fn property_of<'a>(schema: &'a mut Value, name: &str) -> &'a mut Value {
    &mut schema["properties"][name]
}

fn items(schema: &mut Value) -> &mut Value {
    &mut schema["items"]
}

fn extend(schema: &mut Value, with: &Value) {
    let (Value::Object(schema), Value::Object(with)) = (schema, with) else {
        return;
    };
    for (name, value) in with {
        schema.insert(name.clone(), value.clone());
    }
}
