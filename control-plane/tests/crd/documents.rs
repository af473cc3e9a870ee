use std::net::Ipv6Addr;

use kube::api::DynamicObject;
use proptest::prelude::*;
use serde_json::{Value, json};
use weir_control::{
    cluster::{PolicyApi, Read},
    crd::{Reading, read_authorization, read_peer_authentication},
};

use crate::validator::Validator;

/// Who refuses a document.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Refused {
    /// Nobody.
    No,
    /// The API server, and the compiler too.
    Both,
    /// The API server alone: it is stricter, where what is written is nonsense that would do no harm.
    ServerOnly,
    /// The compiler alone: the policy's condition says it.
    CompilerOnly,
}
use Refused::{Both, CompilerOnly, No, ServerOnly};

pub(crate) fn document(spec: &Value) -> DynamicObject {
    serde_json::from_value(json!({
        "apiVersion": "weir.dev/v1alpha1", "kind": "Any",
        "metadata": {"name": "p", "namespace": "shop"}, "spec": spec,
    }))
    .unwrap()
}

/// What the compiler says of a document.
fn compiled(kind: &str, spec: &Value) -> Result<(), String> {
    match kind {
        "AuthorizationPolicy" => {
            let (_, reading) = read_authorization(PolicyApi::Weir, &document(spec)).unwrap();
            match reading {
                Reading::Policy(Read::Understood(policy)) => {
                    policy.compile("root").map(|_| ()).map_err(|e| e.to_string())
                }
                Reading::Policy(Read::Malformed { problem, .. }) => Err(problem),
                Reading::Elsewhere { target } => panic!("{target}"),
            }
        }
        _ => {
            let (_, reading) = read_peer_authentication(&document(spec)).unwrap();
            match reading {
                Reading::Policy(Read::Understood(policy)) => {
                    policy.check("root").map(|_| ()).map_err(|e| e.to_string())
                }
                Reading::Policy(Read::Malformed { problem, .. }) => Err(problem),
                Reading::Elsewhere { target } => panic!("{target}"),
            }
        }
    }
}

fn table(kind: &str, cases: &[(Value, Refused)]) {
    let validator = Validator::of(kind);
    for (spec, expected) in cases {
        let (server, compiler) = (validator.problems(spec), compiled(kind, spec));
        let found = match (server.is_empty(), &compiler) {
            (true, Ok(())) => No,
            (false, Err(_)) => Both,
            (false, Ok(())) => ServerOnly,
            (true, Err(_)) => CompilerOnly,
        };
        assert_eq!(
            found, *expected,
            "{spec}\nserver: {server:?}\ncompiler: {compiler:?}"
        );
    }
}

fn source(source: Value) -> Value {
    json!({"rules": [{"from": [{"source": source}]}]})
}

fn operation(operation: Value) -> Value {
    json!({"rules": [{"to": [{"operation": operation}]}]})
}

fn when(key: &str, values: Value) -> Value {
    json!({"rules": [{"when": [{"key": key, "values": values}]}]})
}

/// Specs of AuthorizationPolicies, and who refuses them.
pub(crate) fn authorization_policies() -> Vec<(Value, Refused)> {
    let long = "a".repeat(600);
    let many: Vec<Value> = (0..513).map(|n| json!(format!("a{n}"))).collect();
    vec![
        (json!({}), No),
        (json!({"rules": []}), No),
        (json!({"rules": [{}]}), No),
        (json!({"action": "DENY", "dryRun": true}), No),
        (json!({"action": "AUDIT"}), Both),
        (json!({"action": "deny"}), Both),
        (json!({"action": "CUSTOM", "provider": {"name": "x"}}), Both),
        (json!({"dryRun": "yes"}), Both),
        (json!({"rule": []}), Both),
        (json!({"rules": {}}), Both),
        (json!({"rules": [{"form": []}]}), Both),
        (json!({"selector": {}}), No),
        (json!({"selector": {"matchLabels": {"app": "web"}}}), No),
        (json!({"selector": {"matchLabels": {"app": ""}}}), No),
        (json!({"selector": {"matchLabels": {"app": "we*"}}}), ServerOnly),
        (json!({"selector": {"matchLabels": {"ap*": "web"}}}), ServerOnly),
        (json!({"selector": {"matchLabels": {"": "web"}}}), ServerOnly),
        (json!({"selector": {"matchExpressions": []}}), Both),
        // An emptied list matches everything.
        (json!({"rules": [{"from": []}]}), ServerOnly),
        (source(json!({"principals": []})), Both),
        (source(json!({"principals": [], "namespaces": ["a"]})), ServerOnly),
        (source(json!({})), Both),
        (json!({"rules": [{"from": [{}]}]}), Both),
        (operation(json!({})), Both),
        (json!({"rules": [{"to": [{}]}]}), Both),
        (source(json!({"principals": ["*"]})), No),
        (source(json!({"principals": ["cluster.local/ns/shop/*"]})), No),
        (
            source(json!({"principals": ["spiffe://cluster.local/ns/a/sa/b"]})),
            No,
        ),
        (source(json!({"notPrincipals": ["*/sa/web"]})), No),
        (source(json!({"principals": ["a*b"]})), Both),
        (source(json!({"principals": ["*a*"]})), Both),
        (source(json!({"principals": ["**"]})), Both),
        (source(json!({"principals": [""]})), Both),
        (source(json!({"principals": ["spiffe://"]})), Both),
        (source(json!({"principals": ["two words"]})), ServerOnly),
        (source(json!({"principals": [long]})), ServerOnly),
        (source(json!({"namespaces": many})), ServerOnly),
        (source(json!({"namespaces": ["shop", "te*", "*st", "*"]})), No),
        (source(json!({"notNamespaces": ["te*st"]})), Both),
        (source(json!({"namespaces": ["Shop"]})), ServerOnly),
        (source(json!({"serviceAccounts": ["web", "shop/web"]})), No),
        (source(json!({"serviceAccounts": ["*"]})), Both),
        (source(json!({"serviceAccounts": ["a/b/c"]})), Both),
        (source(json!({"serviceAccounts": ["/web"]})), Both),
        (source(json!({"notServiceAccounts": ["shop/"]})), Both),
        (
            source(json!({"serviceAccounts": ["web"], "namespaces": ["a"]})),
            Both,
        ),
        (
            source(json!({"notServiceAccounts": ["web"], "notPrincipals": ["*"]})),
            Both,
        ),
        (
            source(json!({"serviceAccounts": ["web"], "ipBlocks": ["10.0.0.0/8"]})),
            No,
        ),
        (
            source(json!({"ipBlocks": ["10.0.0.1", "fd00::/8", "::/0", "0.0.0.0/0"]})),
            No,
        ),
        (source(json!({"ipBlocks": ["10.0.0.0/33"]})), Both),
        (source(json!({"ipBlocks": ["10.0.0"]})), Both),
        (source(json!({"notIpBlocks": ["fd00::/129"]})), Both),
        (source(json!({"notIpBlocks": ["fd00:::1"]})), Both),
        // IPv4 within IPv6, whose first 96 bits say so: whoever means it writes IPv4.
        (source(json!({"ipBlocks": ["::ffff:10.0.0.1"]})), ServerOnly),
        (source(json!({"ipBlocks": ["::ffff:a00:1/95"]})), CompilerOnly),
        (source(json!({"requestPrincipals": ["*"]})), No),
        (source(json!({"remoteIpBlocks": ["nonsense"]})), ServerOnly),
        (operation(json!({"ports": ["1", "8080", "65535"]})), No),
        (operation(json!({"ports": ["0"]})), Both),
        (operation(json!({"ports": ["65536"]})), Both),
        (operation(json!({"ports": ["http"]})), Both),
        (operation(json!({"notPorts": ["+80"]})), Both),
        (operation(json!({"ports": [8080]})), Both),
        (operation(json!({"ports": ["080"]})), ServerOnly),
        (operation(json!({"methods": ["GET"], "paths": ["/a"]})), No),
        (json!({"rules": [{"when": [{"key": "source.ip"}]}]}), Both),
        (json!({"rules": [{"when": [{"values": ["a"]}]}]}), Both),
        (when("source.ip", json!([])), Both),
        (when("source.ip", json!(["10.0.0.0/8", "fd00::1"])), No),
        (when("source.ip", json!(["web"])), Both),
        (when("destination.ip", json!(["10.0.0.0/99"])), CompilerOnly),
        (when("destination.port", json!(["8080"])), No),
        (when("destination.port", json!(["65536"])), Both),
        (when("destination.port", json!(["http"])), Both),
        (when("source.namespace", json!(["a*", "*a", "*"])), No),
        (when("source.namespace", json!(["a*b"])), Both),
        (when("source.principal", json!(["a", "spiffe://a/*"])), No),
        (when("destination.port", json!(["0"])), Both),
        (when("destination.port", json!(["123456789012345678901"])), Both),
        (when("source.namespace", json!(["*a*"])), Both),
        (when("source.namespace", json!(["**"])), Both),
        (when("source.principal", json!(["*/sa/web"])), No),
        (when("source.principal", json!(["spiffe://"])), CompilerOnly),
        (when("source.serviceAccount", json!(["a/b", "b"])), No),
        (when("source.serviceAccount", json!(["a/*"])), Both),
        (when("source.serviceAccount", json!(["a/b/c"])), Both),
        (when("source.serviceAccount", json!(["/a"])), Both),
        (when("source.serviceAccount", json!(["a/"])), Both),
        (when("request.headers[x]", json!(["a*b"])), No),
        (when("connection.sni", json!(["a"])), No),
        (when("source.labels", json!(["a"])), Both),
        (when("", json!(["a"])), Both),
        (
            json!({"rules": [{"when": [{"key": "source.ip", "notValues": ["x"]}]}]}),
            Both,
        ),
    ]
}

/// Those of PeerAuthentications.
pub(crate) fn peer_authentications() -> Vec<(Value, Refused)> {
    let selector = json!({"matchLabels": {"app": "web"}});
    vec![
        (json!({}), No),
        (json!({"mtls": {}}), No),
        (json!({"mtls": {"mode": "STRICT"}}), No),
        (json!({"mtls": {"mode": "DISABLE"}}), No),
        (json!({"mtls": {"mode": "UNSET"}, "selector": {}}), No),
        (json!({"mtls": {"mode": "strict"}}), Both),
        (json!({"mtls": "STRICT"}), Both),
        (json!({"mtls": {"modes": "STRICT"}}), Both),
        (
            json!({"selector": selector, "portLevelMtls": {"8080": {"mode": "STRICT"}}}),
            No,
        ),
        (json!({"portLevelMtls": {"8080": {"mode": "STRICT"}}}), Both),
        (json!({"selector": {}, "portLevelMtls": {"8080": {}}}), Both),
        (
            json!({"selector": {"matchLabels": {}}, "portLevelMtls": {"8080": {}}}),
            Both,
        ),
        (json!({"selector": selector, "portLevelMtls": {"0": {}}}), Both),
        (
            json!({"selector": selector, "portLevelMtls": {"65536": {}}}),
            Both,
        ),
        (json!({"selector": selector, "portLevelMtls": {"http": {}}}), Both),
        (
            json!({"selector": selector, "portLevelMtls": {"1": {"mode": "ON"}}}),
            Both,
        ),
        (json!({"selector": selector, "portLevelMtls": {}}), ServerOnly),
    ]
}

#[test]
fn the_api_server_refuses_what_the_compiler_of_policies_refuses() {
    table("AuthorizationPolicy", &authorization_policies());
    table("PeerAuthentication", &peer_authentications());
}

#[test]
fn what_is_refused_is_said_in_words() {
    let validator = Validator::of("AuthorizationPolicy");
    let problems = validator.problems(&when("destination.port", json!(["http"])));
    assert!(
        problems
            .iter()
            .any(|one| one.contains("expected ports, 1 to 65535")),
        "{problems:?}"
    );
}

proptest! {
    #[test]
    fn a_block_that_the_schema_takes_is_one_and_every_address_is_taken(
        groups in proptest::array::uniform8(prop_oneof![3 => Just(0u16), 1 => any::<u16>()]),
        v4 in any::<[u8; 4]>(),
        length in 0..=128u8,
        text in "[0-9a-f:./]{1,12}",
    ) {
        let validator = Validator::of("AuthorizationPolicy");
        let takes = |block: &str| validator.problems(&source(json!({"ipBlocks": [block]}))).is_empty();
        let v6 = Ipv6Addr::from(groups);
        // Of IPv4 within IPv6 the standard library writes the dots.
        if v6.to_ipv4().is_none() || groups[6] == 0 {
            prop_assert!(takes(&format!("{v6}/{length}")), "{v6}/{length}");
        }
        let v4 = format!("{}/{}", std::net::Ipv4Addr::from(v4), length / 4);
        prop_assert!(takes(&v4), "{v4}");
        if takes(&text) {
            prop_assert!(text.parse::<weir_policy::Cidr>().is_ok(), "{text}");
        }
    }
}
