//! The numbers of the public interfaces: each message is decoded from bytes that were written by hand.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failed assertion is what a test is for"
)]

use prost::Message;
use weir_proto::{
    Any,
    envoy::{
        config::core::v3::Node,
        service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource},
    },
    google::rpc::Status,
    istio::{
        security::{
            self, Authorization, Clause, Match, Rule, ServiceAccountMatch, StringMatch, string_match,
        },
        v1::auth::{IstioCertificateRequest, IstioCertificateResponse},
        workload::{
            Address, ApplicationTunnel, Extension, GatewayAddress, LoadBalancing, Locality,
            NamespacedHostname, NetworkAddress, Port, PortList, Service, WeightedWaypoint, Workload, address,
            gateway_address,
        },
    },
    weir::node::v1::{Mode, Pod},
};

fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push((value as u8) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

/// A field of wire type 0.
fn number(field: u64, value: u64) -> Vec<u8> {
    [varint(field << 3), varint(value)].concat()
}

/// A field of wire type 2.
fn bytes(field: u64, value: impl AsRef<[u8]>) -> Vec<u8> {
    let value = value.as_ref();
    [varint(field << 3 | 2), varint(value.len() as u64), value.to_vec()].concat()
}

fn decode<M: Message + Default>(fields: &[Vec<u8>]) -> M {
    M::decode(fields.concat().as_slice()).unwrap()
}

fn strings<const N: usize>(values: [&str; N]) -> Vec<String> {
    values.map(str::to_owned).to_vec()
}

#[test]
fn discovery_request() {
    let request: DeltaDiscoveryRequest = decode(&[
        bytes(1, [bytes(1, "id"), bytes(2, "cluster"), bytes(3, "")].concat()),
        bytes(2, "type"),
        bytes(3, "subscribed"),
        bytes(4, "unsubscribed"),
        bytes(5, [bytes(1, "name"), bytes(2, "version")].concat()),
        bytes(6, "nonce"),
        bytes(
            7,
            [number(1, 3), bytes(2, "message"), bytes(3, bytes(1, "detail"))].concat(),
        ),
    ]);
    assert_eq!(
        request,
        DeltaDiscoveryRequest {
            node: Some(Node {
                id: "id".to_owned(),
                cluster: "cluster".to_owned(),
                metadata: Some(prost_types::Struct::default()),
            }),
            type_url: "type".to_owned(),
            resource_names_subscribe: strings(["subscribed"]),
            resource_names_unsubscribe: strings(["unsubscribed"]),
            initial_resource_versions: [("name".to_owned(), "version".to_owned())].into(),
            response_nonce: "nonce".to_owned(),
            error_detail: Some(Status {
                code: 3,
                message: "message".to_owned(),
                details: vec![Any {
                    type_url: "detail".to_owned(),
                    ..Any::default()
                }],
            }),
        }
    );
}

#[test]
fn discovery_response() {
    let resource = [
        bytes(1, "version"),
        bytes(2, [bytes(1, "type"), bytes(2, "value")].concat()),
        bytes(3, "name"),
        bytes(4, "alias"),
    ];
    let response: DeltaDiscoveryResponse = decode(&[
        bytes(1, "system"),
        bytes(2, resource.concat()),
        bytes(4, "type"),
        bytes(5, "nonce"),
        bytes(6, "removed"),
    ]);
    assert_eq!(
        response,
        DeltaDiscoveryResponse {
            system_version_info: "system".to_owned(),
            resources: vec![Resource {
                version: "version".to_owned(),
                resource: Some(Any {
                    type_url: "type".to_owned(),
                    value: "value".into()
                }),
                name: "name".to_owned(),
                aliases: strings(["alias"]),
            }],
            type_url: "type".to_owned(),
            nonce: "nonce".to_owned(),
            removed_resources: strings(["removed"]),
        }
    );
}

fn gateway_bytes() -> Vec<u8> {
    [
        bytes(1, [bytes(1, "ns"), bytes(2, "host")].concat()),
        number(3, 15008),
    ]
    .concat()
}

fn gateway() -> GatewayAddress {
    let hostname = NamespacedHostname {
        namespace: "ns".to_owned(),
        hostname: "host".to_owned(),
    };
    GatewayAddress {
        destination: Some(gateway_address::Destination::Hostname(hostname)),
        hbone_mtls_port: 15008,
    }
}

fn ports_bytes() -> Vec<u8> {
    bytes(1, [number(1, 80), number(2, 8080), number(3, 5)].concat())
}

fn ports() -> Vec<Port> {
    vec![Port {
        service_port: 80,
        target_port: 8080,
        app_protocol: 5,
    }]
}

fn extension_bytes() -> Vec<u8> {
    [bytes(1, "ext"), bytes(2, bytes(1, "type"))].concat()
}

fn extension() -> Extension {
    Extension {
        name: "ext".to_owned(),
        config: Some(Any {
            type_url: "type".to_owned(),
            ..Any::default()
        }),
    }
}

#[test]
fn workload() {
    let fields = [
        bytes(1, "name"),
        bytes(2, "namespace"),
        bytes(3, [10, 0, 0, 1]),
        bytes(4, "network"),
        number(5, 1),
        bytes(6, "domain"),
        bytes(7, "account"),
        bytes(8, gateway_bytes()),
        bytes(9, "node"),
        bytes(10, "canonical"),
        bytes(11, "revision"),
        number(12, 3),
        bytes(13, "job"),
        number(14, 1),
        bytes(16, "ns/policy"),
        number(17, 1),
        bytes(18, "cluster"),
        bytes(19, gateway_bytes()),
        bytes(20, "uid"),
        bytes(21, "hostname"),
        bytes(22, [bytes(1, "ns/host"), bytes(2, ports_bytes())].concat()),
        bytes(23, [number(1, 1), number(2, 9000)].concat()),
        bytes(
            24,
            [bytes(1, "region"), bytes(2, "zone"), bytes(3, "subzone")].concat(),
        ),
        number(25, 1),
        bytes(26, extension_bytes()),
        bytes(27, number(1, 7)),
    ];
    let expected = Workload {
        name: "name".to_owned(),
        namespace: "namespace".to_owned(),
        addresses: vec![vec![10, 0, 0, 1].into()],
        network: "network".to_owned(),
        tunnel_protocol: 1,
        trust_domain: "domain".to_owned(),
        service_account: "account".to_owned(),
        waypoint: Some(gateway()),
        node: "node".to_owned(),
        canonical_name: "canonical".to_owned(),
        canonical_revision: "revision".to_owned(),
        workload_type: 3,
        workload_name: "job".to_owned(),
        native_tunnel: true,
        authorization_policies: strings(["ns/policy"]),
        status: 1,
        cluster_id: "cluster".to_owned(),
        network_gateway: Some(gateway()),
        uid: "uid".to_owned(),
        hostname: "hostname".to_owned(),
        services: [("ns/host".to_owned(), PortList { ports: ports() })].into(),
        application_tunnel: Some(ApplicationTunnel {
            protocol: 1,
            port: 9000,
        }),
        locality: Some(Locality {
            region: "region".to_owned(),
            zone: "zone".to_owned(),
            subzone: "subzone".to_owned(),
        }),
        network_mode: 1,
        extensions: vec![extension()],
        capacity: Some(7),
    };
    let address: Address = decode(&[bytes(1, fields.concat())]);
    assert_eq!(address.r#type, Some(address::Type::Workload(expected)));
}

#[test]
fn service() {
    let network_address = [bytes(1, "network"), bytes(2, [10, 96, 0, 1]), number(3, 24)].concat();
    let fields = [
        bytes(1, "name"),
        bytes(2, "namespace"),
        bytes(3, "hostname"),
        bytes(4, &network_address),
        bytes(5, [number(1, 80), number(2, 8080), number(3, 5)].concat()),
        bytes(6, "spiffe://san"),
        bytes(7, [bytes(2, &network_address), number(3, 15008)].concat()),
        bytes(
            8,
            [number(1, 1), number(1, 6), number(2, 3), number(3, 1)].concat(),
        ),
        number(9, 3),
        bytes(10, extension_bytes()),
        number(11, 1),
        number(12, 1),
        bytes(13, [bytes(1, gateway_bytes()), number(2, 30)].concat()),
        number(14, 1),
    ];
    let address = NetworkAddress {
        network: "network".to_owned(),
        address: vec![10, 96, 0, 1].into(),
        length: Some(24),
    };
    let expected = Service {
        name: "name".to_owned(),
        namespace: "namespace".to_owned(),
        hostname: "hostname".to_owned(),
        addresses: vec![address.clone()],
        ports: ports(),
        subject_alt_names: strings(["spiffe://san"]),
        waypoint: Some(GatewayAddress {
            destination: Some(gateway_address::Destination::Address(address)),
            hbone_mtls_port: 15008,
        }),
        load_balancing: Some(LoadBalancing {
            routing_preference: vec![1, 6],
            mode: 3,
            health_policy: 1,
        }),
        ip_families: 3,
        extensions: vec![extension()],
        canonical: true,
        ingress_use_waypoint: true,
        weighted_waypoints: vec![WeightedWaypoint {
            destination: Some(gateway()),
            weight: 30,
        }],
        visibility: 1,
    };
    let address: Address = decode(&[bytes(2, fields.concat())]);
    assert_eq!(address.r#type, Some(address::Type::Service(expected)));
}

#[test]
fn authorization() {
    let exact = |value: &str| StringMatch {
        match_type: Some(string_match::MatchType::Exact(value.to_owned())),
    };
    let prefix = |length| security::Address {
        address: vec![10, 0, 0, 0].into(),
        length,
    };
    let prefix_bytes = |length| [bytes(1, [10, 0, 0, 0]), number(2, length)].concat();
    let account = |name: &str| ServiceAccountMatch {
        namespace: "ns".to_owned(),
        service_account: name.to_owned(),
    };
    let account_bytes = |name: &str| [bytes(1, "ns"), bytes(2, name)].concat();
    let matches = [
        bytes(1, bytes(1, "namespace")),
        bytes(2, bytes(1, "not namespace")),
        bytes(3, bytes(1, "principal")),
        bytes(4, bytes(1, "not principal")),
        bytes(5, prefix_bytes(5)),
        bytes(6, prefix_bytes(6)),
        bytes(7, prefix_bytes(7)),
        bytes(8, prefix_bytes(8)),
        number(9, 9),
        number(10, 10),
        bytes(11, account_bytes("account")),
        bytes(12, account_bytes("not account")),
        bytes(13, extension_bytes()),
    ];
    let policy: Authorization = decode(&[
        bytes(1, "name"),
        bytes(2, "namespace"),
        number(3, 2),
        number(4, 1),
        bytes(5, bytes(1, bytes(2, matches.concat()))),
        number(6, 1),
        bytes(7, extension_bytes()),
    ]);
    let expected = Match {
        namespaces: vec![exact("namespace")],
        not_namespaces: vec![exact("not namespace")],
        principals: vec![exact("principal")],
        not_principals: vec![exact("not principal")],
        source_ips: vec![prefix(5)],
        not_source_ips: vec![prefix(6)],
        destination_ips: vec![prefix(7)],
        not_destination_ips: vec![prefix(8)],
        destination_ports: vec![9],
        not_destination_ports: vec![10],
        service_accounts: vec![account("account")],
        not_service_accounts: vec![account("not account")],
        extensions: vec![extension()],
    };
    assert_eq!(
        policy,
        Authorization {
            name: "name".to_owned(),
            namespace: "namespace".to_owned(),
            scope: security::Scope::WorkloadSelector.into(),
            action: security::Action::Deny.into(),
            rules: vec![Rule {
                clauses: vec![Clause {
                    matches: vec![expected]
                }]
            }],
            dry_run: true,
            extensions: vec![extension()],
        }
    );
    let kinds = [2, 3].map(|field| decode::<StringMatch>(&[bytes(field, "x")]).match_type);
    assert_eq!(kinds[0], Some(string_match::MatchType::Prefix("x".to_owned())));
    assert_eq!(kinds[1], Some(string_match::MatchType::Suffix("x".to_owned())));
    let presence = decode::<StringMatch>(&[bytes(4, "")]).match_type;
    assert_eq!(presence, Some(string_match::MatchType::Presence(())));
}

#[test]
fn certificates() {
    let metadata = bytes(
        1,
        [
            bytes(1, "ImpersonatedIdentity"),
            bytes(2, bytes(3, "spiffe://id")),
        ]
        .concat(),
    );
    let request: IstioCertificateRequest = decode(&[bytes(1, "csr"), number(3, 86_400), bytes(4, metadata)]);
    assert_eq!((request.csr.as_str(), request.validity_duration), ("csr", 86_400));
    let value = request
        .metadata
        .unwrap()
        .fields
        .remove("ImpersonatedIdentity")
        .unwrap();
    assert_eq!(
        value.kind,
        Some(prost_types::value::Kind::StringValue("spiffe://id".to_owned()))
    );
    let response: IstioCertificateResponse = decode(&[bytes(1, "leaf"), bytes(1, "root")]);
    assert_eq!(response.cert_chain, strings(["leaf", "root"]));
}

#[test]
fn pods_of_a_node() {
    let pod: Pod = decode(&[
        bytes(1, "uid"),
        bytes(2, "workload"),
        bytes(3, "namespace"),
        bytes(4, "name"),
        bytes(5, "account"),
        number(6, 2),
        bytes(7, [10, 0, 0, 1]),
        number(8, 8080),
        number(8, 8081),
    ]);
    assert_eq!(
        pod,
        Pod {
            uid: "uid".to_owned(),
            workload: "workload".to_owned(),
            namespace: "namespace".to_owned(),
            name: "name".to_owned(),
            service_account: "account".to_owned(),
            mode: Mode::Observe.into(),
            addresses: vec![vec![10, 0, 0, 1].into()],
            probe_ports: vec![8080, 8081],
        }
    );
}

/// Each value of each enumeration, by the name that the public definition gives it.
#[test]
fn enumerations() {
    use weir_proto::istio::workload::{
        AppProtocol, IpFamilies, NetworkMode, TunnelProtocol, WorkloadStatus, WorkloadType,
        application_tunnel, load_balancing, service,
    };
    fn names(of: fn(i32) -> Option<&'static str>) -> Vec<&'static str> {
        (0..).map_while(of).collect()
    }
    macro_rules! values {
        ($kind:ty) => {
            names(|value| {
                <$kind>::try_from(value)
                    .ok()
                    .map(|value| value.as_str_name())
            })
        };
    }
    assert_eq!(values!(TunnelProtocol), ["NONE", "HBONE", "LEGACY_ISTIO_MTLS"]);
    assert_eq!(values!(WorkloadStatus), ["HEALTHY", "UNHEALTHY"]);
    assert_eq!(values!(WorkloadType), ["DEPLOYMENT", "CRONJOB", "POD", "JOB"]);
    assert_eq!(values!(NetworkMode), ["STANDARD", "HOST_NETWORK"]);
    assert_eq!(
        values!(IpFamilies),
        ["AUTOMATIC", "IPV4_ONLY", "IPV6_ONLY", "DUAL"]
    );
    assert_eq!(
        values!(AppProtocol),
        ["UNKNOWN", "HTTP11", "HTTP2", "GRPC", "TCP", "TLS"]
    );
    assert_eq!(values!(service::Visibility), ["PUBLIC", "NAMESPACE"]);
    assert_eq!(values!(application_tunnel::Protocol), ["NONE", "PROXY"]);
    assert_eq!(
        values!(load_balancing::Scope),
        [
            "UNSPECIFIED_SCOPE",
            "REGION",
            "ZONE",
            "SUBZONE",
            "NODE",
            "CLUSTER",
            "NETWORK"
        ]
    );
    assert_eq!(
        values!(load_balancing::Mode),
        ["UNSPECIFIED_MODE", "STRICT", "FAILOVER", "PASSTHROUGH"]
    );
    assert_eq!(
        values!(load_balancing::HealthPolicy),
        ["ONLY_HEALTHY", "ALLOW_ALL"]
    );
    assert_eq!(
        values!(security::Scope),
        ["GLOBAL", "NAMESPACE", "WORKLOAD_SELECTOR"]
    );
    assert_eq!(values!(security::Action), ["ALLOW", "DENY"]);
    assert_eq!(values!(Mode), ["MODE_UNSPECIFIED", "ENABLED", "OBSERVE"]);
}
