use kube::api::DynamicObject;
use serde_json::{Value, json};
use weir_control::{
    cluster::{Event, PolicyApi, Read},
    crd::{
        Reading, authorization_event, peer_authentication_event, read_authorization, read_peer_authentication,
    },
};
use weir_policy::{AuthorizationPolicy, istio::PolicyAction};

use crate::documents::document;

fn annotated(spec: &Value, annotations: &Value) -> DynamicObject {
    let mut object = document(spec);
    object.metadata.annotations = serde_json::from_value(annotations.clone()).unwrap();
    object
}

fn istio(spec: &Value, annotations: &Value) -> Reading<AuthorizationPolicy> {
    let (name, reading) = read_authorization(PolicyApi::Istio, &annotated(spec, annotations)).unwrap();
    assert_eq!(name.to_string(), "shop/p");
    reading
}

fn understood(spec: &Value, annotations: &Value) -> AuthorizationPolicy {
    match istio(spec, annotations) {
        Reading::Policy(Read::Understood(policy)) => policy,
        other => panic!("{spec}: {other:?}"),
    }
}

#[test]
fn a_policy_of_istios_is_read_with_its_annotation() {
    let spec = json!({
        "selector": {"matchLabels": {"app": "web"}}, "action": "DENY",
        "rules": [{"from": [{"source": {"namespaces": ["a"]}}]}],
    });
    let policy = understood(&spec, &json!({}));
    assert_eq!((&*policy.name, &*policy.namespace), ("p", "shop"));
    assert_eq!(policy.action, PolicyAction::Deny);
    assert_eq!(policy.rules[0].from[0].source.namespaces, ["a"]);
    for (value, expected) in [
        ("true", true),
        ("1", true),
        ("T", true),
        ("false", false),
        ("yes", false),
    ] {
        let policy = understood(&spec, &json!({"istio.io/dry-run": value}));
        assert_eq!(policy.dry_run, expected, "{value}");
    }
    // Ours have a field, and Istio's annotation is none of theirs.
    let ours = annotated(&json!({}), &json!({"istio.io/dry-run": "true"}));
    let (_, reading) = read_authorization(PolicyApi::Weir, &ours).unwrap();
    assert!(matches!(reading, Reading::Policy(Read::Understood(policy)) if !policy.dry_run));
}

#[test]
fn what_is_absent_is_told_from_what_is_empty() {
    // One allows nothing, the other everything.
    for (spec, rules) in [
        (json!({}), 0),
        (json!({"rules": []}), 0),
        (json!({"rules": null}), 0),
        (json!({"rules": [{}]}), 1),
        (json!({"rules": [{"from": null}]}), 1),
        (json!(null), 0),
    ] {
        assert_eq!(understood(&spec, &json!({})).rules.len(), rules, "{spec}");
    }
}

#[test]
fn what_cannot_be_understood_is_said_with_its_field_and_keeps_its_selector() {
    let selector = json!({"matchLabels": {"app": "web"}});
    for (spec, selects, said) in [
        (
            json!({"selector": selector, "rules": [{"from": [{"source": {"principal": ["a"]}}]}]}),
            true,
            "rules[0].from[0].source.principal: unknown field `principal`",
        ),
        (
            json!({"selector": selector, "action": "CUSTOM", "provider": {"name": "opa"}}),
            true,
            "action: expected ALLOW or DENY; CUSTOM is not supported",
        ),
        (
            json!({"action": "AUDIT"}),
            false,
            "action: expected ALLOW or DENY; AUDIT is not supported",
        ),
        (
            json!({"selector": {"matchLabels": {"app": 1}}}),
            false,
            "selector.matchLabels.app: invalid type",
        ),
        (
            json!({"selector": selector, "dryRun": true}),
            true,
            "dryRun: unknown field",
        ),
        (
            json!({"selector": selector, "rules": [null]}),
            true,
            "rules[0]: invalid type: null",
        ),
        (json!({"name": "q"}), false, "name: unknown field"),
        (json!({"namespace": "q"}), false, "namespace: unknown field"),
        (
            json!({"rules": [{"to": [{"operation": {"ports": [80]}}]}]}),
            false,
            "rules[0].to[0].operation.ports[0]: invalid type",
        ),
        (json!("text"), false, "spec: expected an object"),
    ] {
        match istio(&spec, &json!({})) {
            Reading::Policy(Read::Malformed {
                selector,
                dry_run,
                problem,
            }) => {
                assert!(!dry_run, "{spec}");
                assert!(problem.starts_with(said), "{spec}: {problem}");
                assert_eq!(selector.is_some(), selects, "{spec}");
            }
            other => panic!("{spec}: {other:?}"),
        }
    }
}

#[test]
fn what_cannot_be_understood_is_rehearsed_where_the_mark_can_be() {
    let wrong = json!({"rules": [null]});
    let with = |dry_run: &Value| json!({"rules": [null], "dryRun": dry_run});
    let annotated_as = |text: &str| json!({"istio.io/dry-run": text});
    let (weir, istio) = (PolicyApi::Weir, PolicyApi::Istio);
    for (api, spec, annotations, expected) in [
        (weir, wrong.clone(), json!({}), false),
        (weir, with(&json!(true)), json!({}), true),
        (weir, with(&json!(false)), json!({}), false),
        (weir, json!({"dryRun": true, "name": "q"}), json!({}), true),
        (weir, json!({"dryRun": true, "selector": 1}), json!({}), true),
        // Not a mark.
        (weir, with(&json!("true")), json!({}), false),
        (weir, json!({"dryRun": [true]}), json!({}), false),
        (weir, json!("dryRun: true"), json!({}), false),
        // The other's mark.
        (weir, wrong.clone(), annotated_as("true"), false),
        (istio, with(&json!(true)), json!({}), false),
        (istio, wrong.clone(), annotated_as("true"), true),
        (istio, json!({"action": "AUDIT"}), annotated_as("1"), true),
        (istio, json!("text"), annotated_as("true"), true),
        (istio, wrong, annotated_as("yes"), false),
    ] {
        let (_, reading) = read_authorization(api, &annotated(&spec, &annotations)).unwrap();
        match reading {
            Reading::Policy(Read::Malformed { dry_run, .. }) => {
                assert_eq!(dry_run, expected, "{api:?} {spec} {annotations}");
            }
            other => panic!("{spec}: {other:?}"),
        }
    }
    // A PeerAuthentication cannot be rehearsed.
    let (_, peer) = read_peer_authentication(&document(&json!({"dryRun": true}))).unwrap();
    assert!(matches!(
        peer,
        Reading::Policy(Read::Malformed { dry_run: false, .. })
    ));
}

#[test]
fn a_policy_for_a_waypoint_is_none_here_and_was_none() {
    let target = json!({"kind": "Gateway", "group": "gateway.networking.k8s.io", "name": "waypoint"});
    for spec in [
        json!({"targetRefs": [target], "action": "CUSTOM"}),
        json!({"targetRef": target, "rules": "anything"}),
    ] {
        let expected = Reading::Elsewhere {
            target: "Gateway waypoint".to_owned(),
        };
        assert_eq!(istio(&spec, &json!({})), expected);
        let event = authorization_event(PolicyApi::Istio, &document(&spec)).unwrap();
        assert!(
            matches!(
                event,
                Event::AuthorizationPolicy(PolicyApi::Istio, name, None) if &*name.name == "p"
            ),
            "{spec}"
        );
    }
    // An empty list attaches it to nothing.
    assert!(
        understood(&json!({"targetRefs": []}), &json!({}))
            .rules
            .is_empty()
    );
    // Ours have no such field.
    let event = authorization_event(PolicyApi::Weir, &document(&json!({"targetRefs": [target]}))).unwrap();
    assert!(matches!(
        event,
        Event::AuthorizationPolicy(_, _, Some(read)) if matches!(*read, Read::Malformed { .. })
    ));
}

#[test]
fn a_peer_authentication_is_read_with_its_ports() {
    let spec = json!({
        "selector": {"matchLabels": {"app": "web"}}, "mtls": {"mode": "STRICT"},
        "portLevelMtls": {"8080": {"mode": "DISABLE"}},
    });
    let (_, reading) = read_peer_authentication(&document(&spec)).unwrap();
    let Reading::Policy(Read::Understood(policy)) = reading else {
        panic!("{reading:?}");
    };
    assert!(policy.port_level_mtls.contains_key(&8080));
    assert_eq!(policy.check("root").unwrap().len(), 1, "DISABLE is warned of");
    let wrong = document(&json!({"portLevelMtls": {"http": {}}}));
    let event = peer_authentication_event(PolicyApi::Istio, &wrong).unwrap();
    assert!(matches!(
        event,
        Event::PeerAuthentication(PolicyApi::Istio, _, Some((_, Read::Malformed { problem, .. }))) if problem.starts_with("portLevelMtls")
    ));
    let mut nameless = document(&spec);
    nameless.metadata.name = None;
    assert!(read_peer_authentication(&nameless).is_none());
}
