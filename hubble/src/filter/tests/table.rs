//! Every field of a filter, with values that match the flow and values that do not.

use weir_proto::flow::{EventTypeFilter, Igmp, NetworkInterface, Vrrp};

use super::*;

type Row = (&'static str, FlowFilter, FlowFilter);

/// A field, a filter that matches `flow()`, and one that does not.
macro_rules! row {
    ($field:ident: $yes:expr, $no:expr) => {
        (
            stringify!($field),
            filter(|own| own.$field = $yes.into_iter().map(Into::into).collect()),
            filter(|own| own.$field = $no.into_iter().map(Into::into).collect()),
        )
    };
}

fn event(kind: i32, sub_type: Option<i32>) -> EventTypeFilter {
    EventTypeFilter {
        r#type: kind,
        match_sub_type: sub_type.is_some(),
        sub_type: sub_type.unwrap_or_default(),
    }
}

fn workload(kind: &str, name: &str) -> Workload {
    Workload {
        name: name.to_owned(),
        kind: kind.to_owned(),
    }
}

fn flags(set: impl FnOnce(&mut TcpFlags)) -> TcpFlags {
    let mut flags = TcpFlags::default();
    set(&mut flags);
    flags
}

pub(super) fn rows() -> Vec<Row> {
    vec![
        row!(uuid: ["x", "u-1"], ["u-2", "u-"]),
        row!(source_ip: ["10.0.0.1"], ["10.0.0.2", "fd00::2"]),
        row!(source_ip: ["10.9.9.9/8"], ["10.1.0.0/16", "::/0"]),
        row!(destination_ip: ["fd00::2"], ["fd00::3", "10.0.0.1"]),
        row!(destination_ip: ["fd00::/64"], ["fd01::/64", "0.0.0.0/0"]),
        // Its whole name, its beginning, its namespace, any namespace.
        row!(source_pod: ["shop/web-7d9-x"], ["shop/web-7d9-xy", "web-7d9-x", "sho/web-7d9-x"]),
        row!(source_pod: ["shop/we"], ["shop/eb", "default/"]),
        row!(source_pod: ["shop/"], ["sho/", "shopping/"]),
        row!(source_pod: ["/web"], ["/api"]),
        row!(destination_pod: ["shop/api"], ["shop/web", "api"]),
        row!(destination_pod: ["shop/"], ["cart/"]),
        row!(source_service: ["shop/front"], ["shop/back", "front"]),
        row!(source_service: ["shop/"], ["cart/"]),
        row!(destination_service: ["/ba"], ["/front"]),
        row!(source_fqdn: ["web.example.com"], ["example.com", "web.example.co"]),
        row!(source_fqdn: ["*.EXAMPLE.com."], ["*.example.org", "webxexample.com"]),
        row!(destination_fqdn: ["api.*"], ["web.*"]),
        row!(source_label: ["app=web"], ["app=api", "app=we"]),
        row!(destination_label: ["app in (api, x)"], ["app=web"]),
        row!(node_labels: ["zone=a"], ["zone=b"]),
        row!(source_port: ["40000"], ["8080"]),
        row!(source_port: ["39999-40001"], ["1-39999", "40001-65535"]),
        row!(destination_port: ["1", "8080"], ["40000", "808"]),
        row!(source_cluster_name: ["cluster-web-7d9-x"], ["cluster", ""]),
        row!(destination_cluster_name: ["cluster-api-0"], ["cluster-web-7d9-x"]),
        row!(source_identity: [1_u32, 1000], [2000_u32, 0]),
        row!(destination_identity: [2000_u32], [1000_u32]),
        row!(source_workload: [workload("", "web")], [workload("", "we"), workload("", "api")]),
        row!(source_workload: [workload("Deployment", "")], [workload("Job", "web")]),
        row!(destination_workload: [workload("Deployment", "api")], [workload("Deployment", "web")]),
        row!(traffic_direction: [1], [2, 0]),
        row!(verdict: [1, 2], [1, 3, 4, 0]),
        // 9999 is none of the reasons of the definitions: those of Cilium's that nothing here has match nothing.
        row!(drop_reason_desc: [133], [0, 181, 9999]),
        row!(event_type: [event(1, None)], [event(4, None), event(133, None)]),
        row!(event_type: [event(1, Some(133))], [event(1, Some(0)), event(4, Some(133))]),
        row!(ip_version: [2], [1, 0]),
        row!(protocol: ["TCP"], ["udp", "icmp", "icmpv4", "icmpv6", "sctp", "http", "dns", "kafka", "vrrp", "igmp"]),
        row!(reply: [false], [true]),
        row!(tcp_flags: [flags(|own| own.syn = true)], [flags(|own| own.fin = true)]),
        row!(tcp_flags: [flags(|own| (own.syn, own.ack) = (true, true))],
            [flags(|own| (own.syn, own.rst) = (true, true))]),
        row!(node_name: ["worker-1.zone-a"], ["worker-1", "worker-1.zone"]),
        row!(node_name: ["worker-*.zone-a"], ["*", "worker-*"]),
        row!(node_name: ["**"], ["other**"]),
        // The cluster is that of the source.
        row!(node_name: ["cluster-*/"], ["default/", "other/worker-1.zone-a"]),
        row!(node_name: ["cluster-web-7d9-x/worker**"], ["cluster-web-7d9-x/other"]),
        row!(trace_id: ["abc"], ["ab", ""]),
        row!(ip_trace_id: [7_u64, 8], [8_u64]),
        row!(encrypted: [true], [false]),
    ]
}

#[test]
fn each_field_lets_through_what_has_one_of_its_values_and_nothing_else() {
    for (name, yes, no) in rows() {
        assert!(lets(&yes, &flow()), "{name}: {yes:?}");
        assert!(!lets(&no, &flow()), "{name}: {no:?}");
    }
}

#[test]
fn fields_of_requests_ask_for_requests() {
    let header = |key: &str, value: &str| HttpHeader {
        key: key.to_owned(),
        value: value.to_owned(),
    };
    for (name, yes, no) in [
        row!(http_status_code: ["404"], ["403", "5+"]),
        row!(http_status_code: ["4+"], ["3+", "41+"]),
        row!(http_status_code: ["40+"], ["400"]),
        row!(http_method: ["post", "get"], ["post"]),
        row!(http_path: ["^/v1/items$"], ["x=1", "^/items"]),
        row!(http_url: [r"x=\d"], ["^/v1"]),
        row!(http_header: [header("x-tenant", "blue")], [header("x-tenant", "red"), header("x", "blue")]),
        row!(protocol: ["http"], ["dns"]),
    ] {
        assert!(lets(&yes, &http()), "{name}: {yes:?}");
        assert!(!lets(&no, &http()), "{name}: {no:?}");
        for other in [flow(), dns()] {
            assert!(!lets(&yes, &other), "{name}: {yes:?}");
        }
    }
    let (name, yes, no) = row!(dns_query: [r"^api\."], ["^example"]);
    assert!(lets(&yes, &dns()) && !lets(&no, &dns()), "{name}");
    assert!(!lets(&yes, &flow()) && !lets(&yes, &http()), "{name}");
    assert!(lets(&filter(|own| own.protocol = texts(&["DNS"])), &dns()));
}

#[test]
fn protocols_and_ports_are_those_of_the_layer_that_a_flow_has() {
    use layer4::Protocol::{IcmPv4 as Four, IcmPv6 as Six, Sctp as Stream, Udp as Datagram};
    let ports = (40000, 8080);
    let udp = Datagram(Udp {
        source_port: ports.0,
        destination_port: ports.1,
    });
    let sctp = Stream(Sctp {
        source_port: ports.0,
        destination_port: ports.1,
    });
    let table = [
        (udp, "udp", true),
        (sctp, "sctp", true),
        (Four(IcmPv4::default()), "icmpv4", false),
        (Six(IcmPv6::default()), "icmpv6", false),
        (layer4::Protocol::Vrrp(Vrrp::default()), "vrrp", false),
        (layer4::Protocol::Igmp(Igmp::default()), "igmp", false),
    ];
    for (protocol, own, has_ports) in table {
        let flow = of(protocol);
        for name in ["tcp", "udp", "sctp", "icmpv4", "icmpv6", "vrrp", "igmp", "kafka"] {
            let asked = filter(|filter| filter.protocol = texts(&[name]));
            assert_eq!(lets(&asked, &flow), name == own, "{name} of {own}");
        }
        let icmp = filter(|filter| filter.protocol = texts(&["icmp"]));
        assert_eq!(lets(&icmp, &flow), own.starts_with("icmp"), "{own}");
        let (from, to) = (
            filter(|filter| filter.source_port = texts(&["40000"])),
            filter(|filter| filter.destination_port = texts(&["8080"])),
        );
        assert_eq!(
            (lets(&from, &flow), lets(&to, &flow)),
            (has_ports, has_ports),
            "{own}"
        );
    }
}

#[test]
fn what_no_record_has_matches_nothing_but_is_understood() {
    let interface = NetworkInterface {
        index: 1,
        name: "eth0".to_owned(),
    };
    for never in [
        filter(|own| own.source_ip_xlated = texts(&["10.0.0.1"])),
        filter(|own| own.interface = vec![interface]),
    ] {
        assert!(!lets(&never, &flow()));
        // Turned round it leaves nothing out.
        assert!(Filters::new(&[], &[never]).unwrap().matches(&flow()));
    }
}
