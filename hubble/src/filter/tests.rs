//! Each field with values that match a flow and values that do not, and what is refused.

mod refused;
mod selectors;
mod table;

use weir_proto::flow::{
    CiliumEventType, Dns, Endpoint, Flow, Http, HttpHeader, IcmPv4, IcmPv6, Ip, IpTraceId, KnownFlowFilter,
    Layer4, Layer7, Sctp, Service, Tcp, TcpFlags, TraceContext, TraceParent, Udp, Workload, layer4, layer7,
};

use super::*;

/// A flow in which each field that filters ask for has a value.
fn flow() -> Flow {
    let end = |pod: &str, identity, labels: &[&str], workload: &str| Endpoint {
        identity,
        cluster_name: format!("cluster-{pod}"),
        namespace: "shop".to_owned(),
        labels: labels.iter().map(|label| (*label).to_owned()).collect(),
        pod_name: pod.to_owned(),
        workloads: vec![Workload {
            name: workload.to_owned(),
            kind: "Deployment".to_owned(),
        }],
        ..Endpoint::default()
    };
    let service = |name: &str| Service {
        name: name.to_owned(),
        namespace: "shop".to_owned(),
    };
    Flow {
        uuid: "u-1".to_owned(),
        verdict: 2,
        drop_reason_desc: 133,
        ip: Some(Ip {
            source: "10.0.0.1".to_owned(),
            destination: "fd00::2".to_owned(),
            ip_version: 2,
            encrypted: true,
            ..Ip::default()
        }),
        l4: tcp(TcpFlags {
            syn: true,
            ack: true,
            ..TcpFlags::default()
        }),
        source: Some(end("web-7d9-x", 1000, &["k8s:app=web", "k8s:tier=front"], "web")),
        destination: Some(end("api-0", 2000, &["k8s:app=api"], "api")),
        node_name: "worker-1.zone-a".to_owned(),
        node_labels: vec!["zone=a".to_owned()],
        source_names: vec!["web.example.com".to_owned()],
        destination_names: vec!["api.example.com".to_owned()],
        event_type: Some(CiliumEventType {
            r#type: 1,
            sub_type: 133,
        }),
        source_service: Some(service("front")),
        destination_service: Some(service("back")),
        traffic_direction: 1,
        is_reply: Some(false),
        trace_context: Some(TraceContext {
            parent: Some(TraceParent {
                trace_id: "abc".to_owned(),
            }),
        }),
        ip_trace_id: Some(IpTraceId {
            trace_id: 7,
            ..IpTraceId::default()
        }),
        ..Flow::default()
    }
}

fn tcp(flags: TcpFlags) -> Option<Layer4> {
    Some(Layer4 {
        protocol: Some(layer4::Protocol::Tcp(Tcp {
            source_port: 40000,
            destination_port: 8080,
            flags: Some(flags),
        })),
    })
}

fn http() -> Flow {
    let http = Http {
        code: 404,
        method: "GET".to_owned(),
        url: "http://api/v1/items?x=1".to_owned(),
        headers: vec![HttpHeader {
            key: "X-Tenant".to_owned(),
            value: "blue".to_owned(),
        }],
        ..Http::default()
    };
    Flow {
        l7: Some(Layer7 {
            record: Some(layer7::Record::Http(http)),
            ..Layer7::default()
        }),
        ..flow()
    }
}

fn dns() -> Flow {
    let dns = Dns {
        query: "api.example.com.".to_owned(),
        ..Dns::default()
    };
    Flow {
        l7: Some(Layer7 {
            record: Some(layer7::Record::Dns(dns)),
            ..Layer7::default()
        }),
        ..flow()
    }
}

fn of(protocol: layer4::Protocol) -> Flow {
    Flow {
        l4: Some(Layer4 {
            protocol: Some(protocol),
        }),
        ..Flow::default()
    }
}

fn filter(set: impl FnOnce(&mut KnownFlowFilter)) -> FlowFilter {
    let mut filter = KnownFlowFilter::default();
    set(&mut filter);
    filter.into()
}

fn texts(all: &[&str]) -> Vec<String> {
    all.iter().map(|text| (*text).to_owned()).collect()
}

/// Whether a filter lets a flow through.
#[track_caller]
fn lets(filter: &FlowFilter, flow: &Flow) -> bool {
    Filters::new(std::slice::from_ref(filter), &[])
        .unwrap()
        .matches(flow)
}

#[test]
fn fields_must_all_match_values_need_not_and_lists_are_alternatives() {
    let pod = |name: &str| filter(|own| own.source_pod = texts(&[name]));
    let verdict = |verdict| filter(move |own| own.verdict = vec![verdict]);
    let both = |name: &str, verdict| {
        filter(|own| {
            own.source_pod = texts(&[name]);
            own.verdict = vec![verdict];
        })
    };
    let (yes, no) = ("shop/web", "shop/other");
    type Row = (Vec<FlowFilter>, Vec<FlowFilter>, bool);
    let table: Vec<Row> = vec![
        (vec![], vec![], true),
        (vec![both(yes, 2)], vec![], true),
        (vec![both(yes, 1)], vec![], false),
        (vec![both(no, 2)], vec![], false),
        (
            vec![filter(|own| own.source_pod = texts(&[no, yes]))],
            vec![],
            true,
        ),
        (vec![pod(no), verdict(2)], vec![], true),
        (vec![pod(no), verdict(1)], vec![], false),
        (vec![], vec![pod(yes)], false),
        (vec![], vec![both(yes, 1)], true),
        (vec![], vec![pod(no), verdict(2)], false),
        (vec![pod(yes)], vec![verdict(2)], false),
        (vec![pod(yes)], vec![verdict(1)], true),
        // A filter without any field matches everything.
        (vec![filter(|_| {})], vec![], true),
        (vec![], vec![filter(|_| {})], false),
    ];
    for (allow, deny, wanted) in table {
        let filters = Filters::new(&allow, &deny).unwrap();
        assert_eq!(filters.matches(&flow()), wanted, "{allow:?} {deny:?}");
    }
}

#[test]
fn a_flow_of_which_nothing_is_known_matches_no_field() {
    let nothing = Flow::default();
    for (name, matching, _) in table::rows() {
        // Nothing is a value of these.
        if matches!(name, "reply" | "node_labels" | "node_name") {
            continue;
        }
        assert!(!lets(&matching, &nothing), "{name}");
    }
}
