use serde_json::json;

use super::*;

fn schema(spec: Value) -> Schema {
    Schema::parse(&json!({"type": "object", "properties": {"spec": spec}})).unwrap()
}

#[test]
fn what_the_schema_refuses_is_refused_and_no_more() {
    let cases = [
        (json!({"type": "string"}), json!("a"), json!(1)),
        (json!({"type": "integer", "minimum": 1}), json!(1), json!(0)),
        (
            json!({"type": "integer", "maximum": 2, "exclusiveMaximum": true}),
            json!(1),
            json!(2),
        ),
        (json!({"type": "integer", "multipleOf": 2}), json!(4), json!(5)),
        (
            json!({"type": "string", "pattern": "^[a-z]+$"}),
            json!("ab"),
            json!("A"),
        ),
        (
            json!({"type": "string", "enum": ["a", "b"]}),
            json!("b"),
            json!("c"),
        ),
        (
            json!({"type": "string", "maxLength": 2}),
            json!("ab"),
            json!("abc"),
        ),
        (json!({"type": "string", "minLength": 1}), json!("a"), json!("")),
        (
            json!({"type": "object", "required": ["a"]}),
            json!({"a": 1}),
            json!({}),
        ),
        (json!({"type": "array", "maxItems": 1}), json!([1]), json!([1, 2])),
        (
            json!({"type": "array", "x-kubernetes-list-type": "set"}),
            json!([1, 2]),
            json!([1, 1]),
        ),
        (
            json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"]}),
            json!([{"k": 1}, {"k": 2}]),
            json!([{"k": 1}, {"k": 1}]),
        ),
        (
            json!({"x-kubernetes-int-or-string": true}),
            json!("80"),
            json!(true),
        ),
        (
            json!({"type": "string", "nullable": true}),
            json!(null),
            json!(false),
        ),
        (
            json!({"oneOf": [{"required": ["a"]}, {"required": ["b"]}]}),
            json!({"a": 1}),
            json!({"a": 1, "b": 1}),
        ),
        (
            json!({"type": "object", "additionalProperties": {"type": "integer"}}),
            json!({"a": 1}),
            json!({"a": "x"}),
        ),
        (
            json!({"type": "string", "format": "date-time"}),
            json!("2026-01-01T00:00:00Z"),
            json!("today"),
        ),
    ];
    for (spec, good, bad) in cases {
        let schema = schema(spec.clone());
        assert!(
            schema.validate(&json!({"spec": good})).is_empty(),
            "{spec} {good}"
        );
        assert!(!schema.validate(&json!({"spec": bad})).is_empty(), "{spec} {bad}");
    }
}

#[test]
fn unknown_fields_are_dropped_unless_preserved_and_defaults_filled_in() {
    let schema = schema(json!({"type": "object", "properties": {
        "mode": {"type": "string", "default": "auto"},
        "any": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
    }}));
    let mut object =
        json!({"kind": "K", "metadata": {"x": 1}, "spec": {"any": {"a": 1}, "other": 1}, "more": 1});
    let dropped = schema.prune_and_default(&mut object);
    assert_eq!(
        object,
        json!({"kind": "K", "metadata": {"x": 1}, "spec": {"any": {"a": 1}, "mode": "auto"}})
    );
    assert_eq!(dropped, ["more", "spec.other"]);
}
