//! What no pattern can say: rules in CEL (`x-kubernetes-validations`).
//!
//! The API server bounds what a rule may cost at worst, by the bounds of all lists around it: 10 million a rule, 100 million
//! a definition. So the only rules that walk a list are those of conditions, whose values' form depends on their key; where
//! a pattern does, there is no rule. Each four characters of their patterns cost as much as reading the value once more, so
//! these have 16 at most, and most say what is wrong rather than what is right, which is shorter.

use serde_json::{Value, json};

/// Of `rules[].from[].source`.
pub(super) fn source() -> Value {
    json!([{
        "rule": "!((has(self.serviceAccounts) || has(self.notServiceAccounts)) && (has(self.principals) \
                 || has(self.notPrincipals) || has(self.namespaces) || has(self.notNamespaces)))",
        "message": "expected no service accounts in a source that has principals or namespaces",
        "fieldPath": ".serviceAccounts",
        "reason": "FieldValueForbidden",
    }])
}

/// Of `rules[].when[]`.
pub(super) fn condition() -> Value {
    let mut rules = vec![json!({
        "rule": "has(self.values) || has(self.notValues)",
        "message": "expected at least one of values and notValues",
        "messageExpression": "'expected at least one of values and notValues for ' + self.key",
        "fieldPath": ".values",
        "reason": "FieldValueRequired",
    })];
    for field in ["values", "notValues"] {
        let each = |keys: &str, holds: &str, expected: &str| {
            json!({
                "rule": format!("!(self.key in [{keys}]) || !has(self.{field}) || self.{field}.all(value, {holds})"),
                "message": format!("expected {expected}"),
                "messageExpression": format!("'expected {expected} for ' + self.key"),
                "fieldPath": format!(".{field}"),
                "reason": "FieldValueInvalid",
            })
        };
        rules.extend([
            each(
                "'destination.port'",
                r"value.matches(r'^[1-9]\d{0,4}$') && int(value) <= 65535",
                "ports, 1 to 65535",
            ),
            // Not the whole of the pattern that `ipBlocks` has, which would cost more than all other rules together.
            each(
                "'source.ip', 'destination.ip'",
                "!value.matches('[^0-9a-fA-F:./]')",
                "addresses, as 10.0.0.1, or blocks, as 10.0.0.0/8",
            ),
            each(
                "'source.namespace', 'source.principal'",
                "!value.matches('.[*].|[*].*[*]')",
                "no * but alone, first or last, once,",
            ),
            each(
                "'source.serviceAccount'",
                "!value.matches('[*]|^/|/$|/.*/')",
                "<namespace>/<service account> or <service account>, without *,",
            ),
        ]);
    }
    Value::Array(rules)
}

/// Of `selector.matchLabels`. What keys may look like is no schema's to say.
pub(super) fn labels() -> Value {
    json!([{
        "rule": "self.all(key, key.size() != 0 && !key.contains('*'))",
        "message": "expected names of labels, without *",
        "reason": "FieldValueInvalid",
    }])
}

/// Of `portLevelMtls`.
pub(super) fn ports() -> Value {
    json!([{
        // A key that is no number is an error of `int`, which refuses too. Keys have no bound, so no pattern could be paid.
        "rule": "self.all(key, int(key) >= 1 && int(key) <= 65535)",
        "message": "expected ports, 1 to 65535",
        "reason": "FieldValueInvalid",
    }])
}

/// Of a PeerAuthentication.
pub(super) fn peer_authentication() -> Value {
    json!([{
        "rule": "!has(self.portLevelMtls) || (has(self.selector) && has(self.selector.matchLabels) \
                 && self.selector.matchLabels.size() > 0)",
        "message": "expected a selector with labels beside portLevelMtls",
        "fieldPath": ".selector",
        "reason": "FieldValueRequired",
    }])
}
