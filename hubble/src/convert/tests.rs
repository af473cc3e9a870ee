//! What becomes of Weir's record in Hubble's form, and that it comes back whole.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use proptest::{option, prelude::*};
use weir_proto::observer::{GetFlowsResponse, get_flows_response::ResponseTypes};
use weir_types::{About, FlowTrace, Process, SpanId, TraceId, WorkloadName};

use super::*;
use crate::json;

fn origin() -> Origin {
    Origin {
        cluster: String::new(),
        version: "1.2.3".to_owned(),
        run: 0x0123_4567_89ab_cdef,
    }
}

fn name() -> impl Strategy<Value = String> {
    "[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?"
}

fn address() -> impl Strategy<Value = SocketAddr> {
    (any::<IpAddr>(), any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(ip.to_canonical(), port))
}

/// Labels of pods, but for those under which Hubble's tools look for the namespace and the service account.
fn labels() -> impl Strategy<Value = std::collections::BTreeMap<String, String>> {
    proptest::collection::btree_map("([a-z.]{1,8}/)?[A-Za-z0-9_.-]{1,8}", "[A-Za-z0-9_.-]{0,8}", 0..4)
}

/// An end: an address of which nothing is known, or a pod.
fn peer() -> impl Strategy<Value = FlowPeer> {
    let kinds = prop::sample::select(vec!["Deployment", "StatefulSet", "Job", "Pod", ""]);
    let workload = (name(), kinds).prop_map(|(name, kind)| WorkloadName {
        name,
        kind: kind.to_owned(),
    });
    let about = (labels(), option::of(workload)).prop_map(|(labels, workload)| About { labels, workload });
    let pod = (name(), name(), option::of(name()), option::of(about));
    (address(), option::of(pod)).prop_map(|(address, pod)| match pod {
        None => FlowPeer::unknown(address),
        Some((namespace, pod, account, about)) => FlowPeer {
            address,
            identity: account.map(|account| {
                format!("spiffe://cluster.local/ns/{namespace}/sa/{account}")
                    .parse()
                    .expect("an identity")
            }),
            namespace: Some(namespace),
            pod: Some(pod),
            // Nothing known is said by leaving it out.
            about: about.filter(|about| *about != About::default()).map(Arc::new),
        },
    })
}

fn matched() -> impl Strategy<Value = Option<PolicyMatch>> {
    option::of(
        (name(), name(), option::of(any::<u32>())).prop_map(|(namespace, name, rule)| PolicyMatch {
            policy: format!("{namespace}/{name}").into(),
            rule,
        }),
    )
}

/// A verdict, and a reason that goes with it: only what was let through needs none.
fn outcome() -> impl Strategy<Value = (FlowVerdict, Reason)> {
    use FlowVerdict::{Denied, Failed, Forwarded};
    (
        prop::sample::select(vec![Forwarded, Denied, Failed]),
        prop::sample::select(Reason::ALL.to_vec()),
    )
        .prop_filter("a refusal has a reason", |(verdict, reason)| {
            *verdict == Forwarded || *reason != Reason::None
        })
}

fn trace() -> impl Strategy<Value = Option<FlowTrace>> {
    let ids = (1_u128.., 1_u64.., option::of(1_u64..), any::<bool>());
    option::of(ids.prop_map(|(trace, span, parent, sampled)| FlowTrace {
        trace_id: TraceId::new(trace).expect("not zero"),
        span_id: SpanId::new(span).expect("not zero"),
        parent_span_id: parent.and_then(SpanId::new),
        sampled,
    }))
}

prop_compose! {
    fn flow()(
        numbers in any::<(u64, u64, u64, u64, u64)>(),
        time in -62_000_000_000_i64..200_000_000_000,
        nanos in 0_i32..1_000_000_000,
        node in name(),
        event in prop::sample::select(vec![FlowEvent::Open, FlowEvent::Close, FlowEvent::Refused]),
        (verdict, reason) in outcome(),
        direction in prop::sample::select(vec![TrafficDirection::Egress, TrafficDirection::Ingress]),
        path in prop::sample::select(vec![
            FlowPath::Tunnel, FlowPath::Plaintext, FlowPath::Direct, FlowPath::Kernel, FlowPath::Nowhere,
        ]),
        ends in (peer(), peer()),
        original_destination in option::of(address()),
        service in option::of((name(), "[a-z]{1,5}(\\.[a-z]{1,5}){0,2}")),
        texts in (option::of("\\PC{1,20}"), option::of("TLSv1\\.3 [A-Z_]{1,9}")),
        policies in (matched(), matched()),
        measured in any::<(Option<u32>, Option<u32>)>(),
        process in option::of((any::<u32>(), "\\PC{0,15}")),
        trace in trace(),
    ) -> Flow {
        Flow {
            sequence: numbers.0,
            time: jiff::Timestamp::new(time, nanos).expect("a time"),
            node,
            connection: numbers.1,
            event,
            verdict,
            reason,
            detail: texts.0,
            direction,
            path,
            source: ends.0,
            destination: ends.1,
            original_destination,
            service: service.map(|(namespace, name)| format!("{namespace}/{name}")),
            tls: texts.1,
            policy: policies.0,
            dry_run: policies.1,
            bytes_sent: numbers.2,
            bytes_received: numbers.3,
            duration_us: numbers.4,
            rtt_us: measured.0,
            retransmits: measured.1,
            process: process.map(|(pid, name)| Process { pid, name }),
            trace,
        }
    }
}

proptest! {
    #[test]
    fn a_record_comes_back_whole(flow in flow()) {
        let hubble = to_hubble(&flow, &origin());
        prop_assert_eq!(from_hubble(&hubble), Some(flow));
    }

    #[test]
    fn it_is_the_same_after_the_wire_and_after_json(flow in flow()) {
        let hubble = to_hubble(&flow, &origin());
        let wire = hubble::Flow::decode(&*hubble.encode_to_vec()).expect("a flow");
        prop_assert_eq!(&wire, &hubble);
        let response = GetFlowsResponse {
            node_name: flow.node.clone(),
            time: hubble.time,
            response_types: Some(ResponseTypes::Flow(hubble)),
        };
        let line = json::to_line(&response).expect("a line");
        prop_assert!(!line.contains('\n'));
        let read = json::of_line(&line).expect("a response");
        let Some(ResponseTypes::Flow(read)) = read.response_types else { unreachable!() };
        prop_assert_eq!(from_hubble(&read), Some(flow));
        // In the other form, whose fields have no order.
        let extensions = wire.extensions.clone();
        prop_assert_eq!(hubble::Flow { extensions, ..read }, wire);
    }

    #[test]
    fn what_hubbles_tools_read_says_what_the_record_says(flow in flow()) {
        let made = to_hubble(&flow, &origin());
        let refused = flow.verdict != FlowVerdict::Forwarded;
        prop_assert_eq!(made.drop_reason_desc != 0 , refused && drop_reason(flow.reason) != hubble::DropReason::Unknown);
        #[allow(deprecated, reason = "older tools read it")]
        let old = made.drop_reason;
        prop_assert_eq!(i64::from(old), i64::from(made.drop_reason_desc));
        prop_assert_eq!(made.ip.as_ref().expect("addresses").encrypted, flow.path == FlowPath::Tunnel);
        let trace = made.trace_context.clone().and_then(|context| context.parent).map(|parent| parent.trace_id);
        prop_assert_eq!(trace, flow.trace.map(|trace| trace.trace_id.to_string()));
        // What was let through is said to be denied by nobody, and the other way round.
        let forwarded = made.verdict() == hubble::Verdict::Forwarded;
        prop_assert!(made.egress_allowed_by.is_empty() && made.egress_denied_by.is_empty());
        let others = if forwarded { made.ingress_denied_by } else { made.ingress_allowed_by };
        prop_assert_eq!(others, Vec::new());
        for (end, own) in [(&made.source, &flow.source), (&made.destination, &flow.destination)] {
            let end = end.as_ref().expect("an end");
            prop_assert_eq!(end.identity >= 256, own.identity.is_some());
            prop_assert!(end.labels.is_sorted());
        }
    }

    #[test]
    fn uuids_are_of_version_eight_and_no_two_records_share_one(
        run in any::<u64>(),
        other in any::<u64>(),
        sequences in proptest::collection::btree_set(0_u64..1 << 58, 2..50),
    ) {
        let of = |run, sequence| Origin { run, ..origin() }.uuid(sequence);
        let mut all = BTreeSet::new();
        for sequence in &sequences {
            let uuid = of(run, *sequence);
            let dashes = [8, 13, 18, 23];
            let is_uuid = |(at, char): (usize, char)| match dashes.contains(&at) {
                true => char == '-',
                false => char.is_ascii_digit() || ('a'..='f').contains(&char),
            };
            prop_assert!(uuid.len() == 36 && uuid.chars().enumerate().all(is_uuid), "{}", uuid);
            prop_assert_eq!(&uuid[14..15], "8");
            prop_assert!("89ab".contains(&uuid[19..20]), "{}", uuid);
            prop_assert!(run == other || of(other, *sequence) != uuid);
            prop_assert!(all.insert(uuid));
        }
    }
}

fn plain() -> Flow {
    let address = |last| SocketAddr::from(([10, 0, 0, last], 80));
    Flow {
        sequence: 7,
        time: jiff::Timestamp::UNIX_EPOCH,
        node: "n".to_owned(),
        connection: 5,
        event: FlowEvent::Open,
        verdict: FlowVerdict::Forwarded,
        reason: Reason::None,
        detail: None,
        direction: TrafficDirection::Egress,
        path: FlowPath::Plaintext,
        source: FlowPeer::unknown(address(1)),
        destination: FlowPeer::unknown(address(2)),
        original_destination: None,
        service: None,
        tls: None,
        policy: None,
        dry_run: None,
        bytes_sent: 0,
        bytes_received: 0,
        duration_us: 0,
        rtt_us: None,
        retransmits: None,
        process: None,
        trace: None,
    }
}

/// What does not come back: what says nothing, a refusal without a reason, and labels in Hubble's own place.
#[test]
fn what_cannot_come_back_is_little_and_is_known() {
    let back = |flow: &Flow| from_hubble(&to_hubble(flow, &origin())).unwrap();
    let mut said = plain();
    (said.detail, said.tls) = (Some(String::new()), Some(String::new()));
    said.source.about = Some(Arc::default());
    assert_eq!(back(&said), plain());

    let refused = |reason| Flow {
        event: FlowEvent::Refused,
        verdict: FlowVerdict::Denied,
        reason,
        ..plain()
    };
    assert_eq!(back(&refused(Reason::None)), refused(Reason::Internal));

    let with = |labels: &[(&str, &str)]| {
        let mut flow = plain();
        (flow.source.namespace, flow.source.pod) = (Some("shop".to_owned()), Some("web".to_owned()));
        let labels = labels
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        flow.source.about = Some(Arc::new(About {
            labels: labels.collect(),
            workload: None,
        }));
        flow
    };
    let own = [
        ("app", "web"),
        ("io.cilium.x", "y"),
        ("io.kubernetes.pod.namespace", "other"),
    ];
    assert_eq!(back(&with(&own)), with(&own[..1]));

    // A service without a namespace is one still.
    let service = Flow {
        service: Some("api".to_owned()),
        ..plain()
    };
    assert_eq!(back(&service), service);
}

#[test]
fn the_kind_of_an_event_says_what_happened_and_who_decided() {
    use hubble::Verdict::{Audit, Dropped, Error, Forwarded};
    let by = |name: &str| {
        Some(PolicyMatch {
            policy: format!("shop/{name}").into(),
            rule: Some(2),
        })
    };
    let open = plain();
    let refused = |verdict, reason| Flow {
        event: FlowEvent::Refused,
        verdict,
        reason,
        ..plain()
    };
    let denied = refused(FlowVerdict::Denied, Reason::PlaintextToStrict);
    let table = [
        (open.clone(), Forwarded, (TRACE, FROM_ENDPOINT), 0, ""),
        (
            Flow {
                direction: TrafficDirection::Ingress,
                ..open.clone()
            },
            Forwarded,
            (TRACE, TO_ENDPOINT),
            0,
            "",
        ),
        (
            Flow {
                policy: by("p"),
                ..open.clone()
            },
            Forwarded,
            (POLICY_VERDICT, 0),
            0,
            "allowed p",
        ),
        (
            Flow {
                dry_run: by("d"),
                ..open.clone()
            },
            Audit,
            (POLICY_VERDICT, 0),
            0,
            "denied d",
        ),
        (
            Flow {
                policy: by("p"),
                dry_run: by("d"),
                ..open.clone()
            },
            Audit,
            (POLICY_VERDICT, 0),
            0,
            "denied d",
        ),
        // Only of what is opened it is said what would be.
        (
            Flow {
                event: FlowEvent::Close,
                dry_run: by("d"),
                ..open.clone()
            },
            Forwarded,
            (TRACE, FROM_ENDPOINT),
            0,
            "",
        ),
        (denied.clone(), Dropped, (DROP, 195), 195, ""),
        (
            Flow {
                policy: by("p"),
                ..refused(FlowVerdict::Denied, Reason::PolicyDenied)
            },
            Dropped,
            (POLICY_VERDICT, 0),
            181,
            "denied p",
        ),
        (
            refused(FlowVerdict::Failed, Reason::NoEndpoint),
            Error,
            (DROP, 158),
            158,
            "",
        ),
    ];
    for (flow, verdict, kind, reason, decided) in table {
        let made = to_hubble(&flow, &origin());
        let event = made.event_type.unwrap();
        assert_eq!(made.verdict(), verdict, "{flow:?}");
        assert_eq!((event.r#type, event.sub_type), kind, "{flow:?}");
        assert_eq!(made.drop_reason_desc, reason, "{flow:?}");
        let lists = [
            ("allowed", &made.ingress_allowed_by),
            ("denied", &made.ingress_denied_by),
        ];
        let said = lists.map(|(how, all)| {
            let policy = |own: &hubble::Policy| {
                assert_eq!(
                    (own.namespace.as_str(), own.kind.as_str(), own.log.as_str()),
                    ("shop", "AuthorizationPolicy", "rule 2")
                );
                format!("{how} {}", own.name)
            };
            all.iter().map(policy).collect::<String>()
        });
        assert_eq!(said.concat(), decided, "{flow:?}");
    }
}

#[test]
fn records_of_others_are_read_as_far_as_they_go() {
    let mut other = to_hubble(&plain(), &origin());
    other.extensions = None;
    other.verdict = hubble::Verdict::Dropped.into();
    let read = from_hubble(&other).unwrap();
    assert_eq!(
        (read.event, read.verdict, read.reason, read.path),
        (
            FlowEvent::Refused,
            FlowVerdict::Denied,
            Reason::Internal,
            FlowPath::Kernel
        )
    );
    let mut udp = other.clone();
    udp.l4 = Some(hubble::Layer4 {
        protocol: Some(hubble::layer4::Protocol::Udp(hubble::Udp::default())),
    });
    let without = |change: fn(&mut hubble::Flow)| {
        let mut flow = other.clone();
        change(&mut flow);
        flow
    };
    for none in [
        udp,
        without(|flow| flow.l4 = None),
        without(|flow| flow.ip = None),
        without(|flow| flow.ip.as_mut().unwrap().source = "nonsense".to_owned()),
        without(|flow| {
            flow.time = Some(Timestamp {
                seconds: i64::MAX,
                nanos: 0,
            });
        }),
        without(|flow| {
            flow.l4 = Some(layer4(&plain())).map(|mut l4| {
                if let Some(hubble::layer4::Protocol::Tcp(tcp)) = &mut l4.protocol {
                    tcp.source_port = 65_536;
                }
                l4
            });
        }),
    ] {
        assert_eq!(from_hubble(&none), None, "{none:?}");
    }
}
