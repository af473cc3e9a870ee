use std::collections::BTreeMap;

use super::*;
use crate::export::tests::flow;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

fn traced(sampled: bool, parent: Option<&str>) -> serde_json::Value {
    serde_json::json!({
        "traceId": TRACE, "spanId": "00f067aa0ba902b7", "parentSpanId": parent, "sampled": sampled,
    })
}

/// Attributes by name, as text.
fn named(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |value: &Value| match value {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        other => panic!("{other:?}"),
    };
    let named = attributes.iter().map(|own| {
        let value = own.value.as_ref().unwrap().value.as_ref().unwrap();
        (own.key.clone(), text(value))
    });
    let all: BTreeMap<_, _> = named.collect();
    assert_eq!(all.len(), attributes.len(), "a name stands there once");
    all
}

#[test]
fn a_log_record_says_all_that_the_record_says() {
    let own = flow(serde_json::json!({
        "trace": traced(true, None), "verdict": "failed", "reason": "tunnel_broken", "detail": "why",
        "service": "shop/api", "originalDestination": "10.96.0.1:80", "tls": "TLSv1.3", "rttUs": 4, "retransmits": 0,
        "policy": { "policy": "shop/p", "rule": 1 }, "dryRun": { "policy": "shop/d" },
        "process": { "pid": 7, "name": "curl" },
    }));
    let made = log_record(&own, jiff::Timestamp::from_second(1_767_225_601).unwrap());
    assert_eq!(
        (made.time_unix_nano, made.observed_time_unix_nano),
        (1_767_225_600_000_000_000, 1_767_225_601_000_000_000)
    );
    assert_eq!(
        (made.severity_number(), made.severity_text.as_str()),
        (SeverityNumber::Warn, "WARN")
    );
    assert_eq!(made.event_name, "weir.connection.close");
    assert_eq!(
        made.trace_id,
        u128::from_str_radix(TRACE, 16).unwrap().to_be_bytes()
    );
    assert_eq!(
        (made.span_id.as_slice(), made.flags),
        ([0, 0xf0, 0x67, 0xaa, 0x0b, 0xa9, 2, 0xb7].as_slice(), 1)
    );
    let body = made.body.unwrap().value.unwrap();
    assert_eq!(body, Value::StringValue(line::text(&own)));
    let expected = [
        ("destination.address", "fd00::1"),
        ("destination.port", "80"),
        ("k8s.namespace.name", "shop"),
        ("k8s.pod.name", "web-0"),
        ("network.transport", "tcp"),
        ("network.type", "ipv6"),
        ("process.pid", "7"),
        ("source.address", "10.0.0.1"),
        ("source.port", "4000"),
        ("weir.bytes.received", "2"),
        ("weir.bytes.sent", "1"),
        ("weir.connection", "1"),
        ("weir.detail", "why"),
        ("weir.direction", "egress"),
        ("weir.dry_run_policy", "shop/d"),
        ("weir.duration_us", "3"),
        ("weir.original_destination", "10.96.0.1:80"),
        ("weir.path", "tunnel"),
        ("weir.policy", "shop/p rule 1"),
        ("weir.process", "curl"),
        ("weir.reason", "tunnel_broken"),
        ("weir.retransmits", "0"),
        ("weir.rtt_us", "4"),
        ("weir.sequence", "1"),
        ("weir.service", "shop/api"),
        ("weir.source.identity", "spiffe://cluster.local/ns/shop/sa/web"),
        ("weir.source.namespace", "shop"),
        ("weir.source.pod", "web-0"),
        ("weir.tls", "TLSv1.3"),
        ("weir.verdict", "failed"),
    ];
    let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(named(&made.attributes), BTreeMap::from(expected));
}

#[test]
fn a_record_without_a_trace_is_a_log_record_and_no_span() {
    let own = flow(serde_json::json!({}));
    let made = log_record(&own, own.time);
    assert_eq!((made.severity_number(), made.flags), (SeverityNumber::Info, 0));
    assert!(made.trace_id.is_empty() && made.span_id.is_empty());
    assert_eq!(span(&own), None);
}

#[test]
fn of_a_sampled_trace_each_end_of_a_connection_is_a_span() {
    let wanted = |event: &str, sampled| {
        span(&flow(
            serde_json::json!({ "event": event, "trace": traced(sampled, None) }),
        ))
        .is_some()
    };
    assert_eq!(
        [
            wanted("open", true),
            wanted("close", true),
            wanted("refused", true)
        ],
        [false, true, true]
    );
    assert_eq!([wanted("close", false), wanted("refused", false)], [false, false]);
}

#[test]
fn a_span_has_the_kind_of_its_side_the_time_of_the_connection_and_its_parent() {
    let client = flow(serde_json::json!({ "trace": traced(true, None), "service": "shop/api" }));
    let own = span(&client).unwrap();
    assert_eq!(
        (own.kind(), own.name.as_str()),
        (SpanKind::Client, "connection shop/api")
    );
    assert_eq!(own.end_time_unix_nano, 1_767_225_600_000_000_000);
    assert_eq!(own.end_time_unix_nano - own.start_time_unix_nano, 3_000);
    assert_eq!((own.status, own.flags), (None, 1));
    assert!(own.parent_span_id.is_empty());

    let server = flow(serde_json::json!({
        "event": "refused", "verdict": "denied", "reason": "policy_denied", "direction": "ingress",
        "trace": traced(true, Some("00000000000000ab")),
    }));
    let own = span(&server).unwrap();
    assert_eq!(
        (own.kind(), own.flags),
        (SpanKind::Server, 0x301),
        "its parent is on another node"
    );
    assert_eq!(own.parent_span_id, [0, 0, 0, 0, 0, 0, 0, 0xab]);
    let status = own.status.unwrap();
    assert_eq!(
        (status.code(), status.message.as_str()),
        (StatusCode::Error, "policy_denied")
    );
    assert_eq!(named(&own.attributes)["error.type"], "policy_denied");
}

#[test]
fn who_sends_says_on_which_node_of_which_cluster() {
    let resource = |cluster: Option<&str>| {
        let about = About {
            node: "n1".to_owned(),
            cluster: cluster.map(str::to_owned),
        };
        named(&about.resource().attributes)
    };
    let own = resource(Some("c"));
    assert_eq!(
        (&*own["service.name"], &*own["k8s.node.name"]),
        ("weir-agent", "n1")
    );
    assert_eq!(
        (&*own["k8s.cluster.name"], &*own["service.version"]),
        ("c", VERSION)
    );
    assert!(!resource(None).contains_key("k8s.cluster.name"));
}
