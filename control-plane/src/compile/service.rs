//! A service as agents know it, and who serves it.

use std::net::IpAddr;

use weir_proto::{
    address_bytes,
    istio::workload::{
        Address, AppProtocol, LoadBalancing, NetworkAddress, NetworkMode, Port, PortList, Workload,
        address::Type,
        load_balancing::{Mode, Scope},
    },
};

use crate::cluster::{Endpoint, EndpointSlice, ObjectName, Preference, Service, ServicePort};

/// `<name>.<namespace>.svc.<domain>`.
pub(super) fn hostname(domain: &str, name: &ObjectName) -> String {
    format!("{}.{}.svc.{domain}", name.name, name.namespace)
}

/// The name of a service's resource.
pub(super) fn resource_name(domain: &str, name: &ObjectName) -> String {
    format!("{}/{}", name.namespace, hostname(domain, name))
}

pub(super) fn message(domain: &str, name: &ObjectName, service: &Service) -> Address {
    let network_address = |address: &IpAddr| NetworkAddress {
        network: String::new(),
        address: address_bytes(*address),
        length: None,
    };
    let port = |port: &ServicePort| Port {
        service_port: port.port.into(),
        // 0: each endpoint has its own.
        target_port: port.target.unwrap_or(0).into(),
        app_protocol: app_protocol(port).into(),
    };
    let message = weir_proto::istio::workload::Service {
        name: name.name.to_string(),
        namespace: name.namespace.to_string(),
        hostname: hostname(domain, name),
        addresses: service.addresses.iter().map(network_address).collect(),
        ports: service.ports.iter().map(port).collect(),
        load_balancing: load_balancing(service.preference),
        ..Default::default()
    };
    Address {
        r#type: Some(Type::Service(message)),
    }
}

fn load_balancing(preference: Preference) -> Option<LoadBalancing> {
    let (mode, scopes): (_, &[Scope]) = match preference {
        Preference::None => return None,
        Preference::Zone => (Mode::Failover, &[Scope::Network, Scope::Region, Scope::Zone]),
        Preference::Node => (
            Mode::Failover,
            &[Scope::Network, Scope::Region, Scope::Zone, Scope::Node],
        ),
        Preference::OnlyNode => (Mode::Strict, &[Scope::Node]),
    };
    Some(LoadBalancing {
        routing_preference: scopes.iter().map(|scope| (*scope).into()).collect(),
        mode: mode.into(),
        ..LoadBalancing::default()
    })
}

fn app_protocol(port: &ServicePort) -> AppProtocol {
    match port.protocol.as_deref() {
        Some("http") => AppProtocol::Http11,
        Some("http2" | "kubernetes.io/h2c") => AppProtocol::Http2,
        Some("grpc") => AppProtocol::Grpc,
        Some("tcp") => AppProtocol::Tcp,
        Some("tls" | "https") => AppProtocol::Tls,
        _ => AppProtocol::Unknown,
    }
}

/// The ports of a service at the endpoints of a slice.
pub(super) fn ports(service: &Service, slice: &EndpointSlice) -> PortList {
    let ports = service.ports.iter().filter_map(|port| {
        let (_, target) = slice.ports.iter().find(|(name, _)| *name == port.name)?;
        Some(Port {
            service_port: port.port.into(),
            target_port: (*target).into(),
            app_protocol: app_protocol(port).into(),
        })
    });
    PortList {
        ports: ports.collect(),
    }
}

/// The endpoints of a service that take connections: those that are ready; where none is, those that still serve while
/// they end, as kube-proxy does.
pub(super) fn taken<'a>(
    slices: impl Iterator<Item = &'a EndpointSlice> + Clone,
) -> impl Iterator<Item = (&'a EndpointSlice, &'a Endpoint)> {
    let any_ready = slices
        .clone()
        .flat_map(|slice| &slice.endpoints)
        .any(|endpoint| endpoint.ready);
    slices.flat_map(move |slice| {
        let taken = move |endpoint: &&Endpoint| {
            if any_ready {
                endpoint.ready
            } else {
                endpoint.serving
            }
        };
        slice
            .endpoints
            .iter()
            .filter(taken)
            .map(move |endpoint| (slice, endpoint))
    })
}

/// The name of an endpoint that is no pod.
pub(super) fn foreign_uid(cluster: &str, service: &ObjectName, address: IpAddr) -> String {
    format!(
        "{cluster}/discovery.k8s.io/EndpointSlice/{}/{}/{address}",
        service.namespace, service.name
    )
}

/// An endpoint that is no pod. It has no identity, and its address leads nobody to it who did not ask for the service.
pub(super) fn foreign(
    cluster: &str,
    domain: &str,
    service: &ObjectName,
    address: IpAddr,
    ports: PortList,
) -> Address {
    let workload = Workload {
        name: address.to_string(),
        namespace: service.namespace.to_string(),
        addresses: vec![address_bytes(address)],
        uid: foreign_uid(cluster, service, address),
        cluster_id: cluster.to_owned(),
        services: [(resource_name(domain, service), ports)].into(),
        network_mode: NetworkMode::HostNetwork.into(),
        ..Workload::default()
    };
    Address {
        r#type: Some(Type::Workload(workload)),
    }
}
