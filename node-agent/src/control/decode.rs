//! From messages to what the mesh is made of. Everything that arrives is bounded and parsed here.

use std::{collections::BTreeMap, net::IpAddr, num::NonZeroU16, sync::Arc};

use prost::Message as _;
use weir_policy::{Action, Authorization, Rule, Scope};
use weir_proto::{
    AuthorizationError, UnpackError, address,
    envoy::service::discovery::v3::Resource,
    istio::{
        security,
        workload::{
            Address, NetworkMode, PortList, Service, TunnelProtocol as WireTunnel, Workload, WorkloadStatus,
            WorkloadType, address::Type, load_balancing,
        },
    },
    scope_of,
    weir::node::v1 as node,
};
use weir_tunnel::certs::{Revoked, RevokedError};
use weir_types::{About, Identity, IdentityError, TrustDomain, WorkloadName};

use crate::{
    config::{InternalTrafficPolicy, ServicePort, TrafficDistribution, TunnelProtocol},
    mesh::{PodSource, ServiceSource, Update, WorkloadSource},
    netns::NetNsRef,
};

/// Most addresses of a workload or service: one a family is usual.
const MAX_ADDRESSES: usize = 16;
/// The extension of a workload that says what people know it by.
const ABOUT: &str = "about";
/// Most labels of a workload. Kubernetes has no bound but that of annotations and labels together; nobody has more.
const MAX_LABELS: usize = 256;
/// Most ports of a service, services of a workload, policies that one names.
const MAX_PARTS: usize = 10_000;

/// Why a resource is not taken. The control plane is told.
#[derive(Debug, thiserror::Error)]
pub(super) enum DecodeError {
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    #[error("it is neither a workload nor a service")]
    Neither,
    #[error("its uid is empty, or not its resource's name")]
    Name,
    #[error("its identity: {0}")]
    Identity(#[from] IdentityError),
    #[error("an address of {0} bytes")]
    Address(usize),
    #[error("{0} is not a port")]
    Port(u32),
    #[error("it has more than {most} {what}")]
    TooMany { most: usize, what: &'static str },
    #[error("a mode that this version does not know")]
    Mode,
    #[error(transparent)]
    Revoked(#[from] RevokedError),
    #[error("it denies all that it concerns instead: {0}")]
    Policy(#[from] AuthorizationError),
}

/// Takes what is revoked.
pub(super) fn revocations(resource: &Resource) -> Result<Revoked, DecodeError> {
    let message = resource.unpack::<node::Revocations>()?;
    if message.identities.len() > MAX_PARTS {
        let what = "revoked identities";
        return Err(DecodeError::TooMany {
            most: MAX_PARTS,
            what,
        });
    }
    let identities = message.identities.iter().map(|identity| identity.parse());
    let identities = identities.collect::<Result<_, IdentityError>>()?;
    let lists: Vec<_> = message.lists.iter().map(|list| list.as_ref().into()).collect();
    Ok(Revoked::new(&lists, identities)?)
}

/// Takes a workload or service.
pub(super) fn address_resource(
    resource: &Resource,
    trust_domain: &TrustDomain,
    update: &mut Update,
) -> Result<(), DecodeError> {
    match resource.unpack::<Address>()?.r#type {
        Some(Type::Workload(workload)) => {
            if workload.uid.is_empty() || workload.uid != resource.name {
                return Err(DecodeError::Name);
            }
            let source = workload_source(workload, trust_domain)?;
            update.workloads.push((source.uid.clone(), Some(source)));
        }
        Some(Type::Service(service)) => {
            let source = service_source(&service)?;
            update.services.push((resource.name.clone(), Some(source)));
        }
        None => return Err(DecodeError::Neither),
    }
    Ok(())
}

/// Takes a policy. One that is not understood denies all that it concerns, as far as that is understood; the error says so.
pub(super) fn policy_resource(resource: &Resource, update: &mut Update) -> Result<(), DecodeError> {
    let name: Arc<str> = resource.name.as_str().into();
    let wire = resource.unpack::<security::Authorization>();
    let (policy, result) = match &wire {
        Ok(wire) => match Authorization::try_from(wire) {
            Ok(policy) => (policy, Ok(())),
            Err(error) => {
                let scope = scope_of(wire).unwrap_or(Scope::Mesh);
                (closed(&name, scope), Err(error.into()))
            }
        },
        Err(error) => (closed(&name, Scope::Mesh), Err(error.clone().into())),
    };
    update.policies.push((name, Some(policy)));
    result
}

/// A policy that denies everything.
fn closed(name: &str, scope: Scope) -> Authorization {
    let (namespace, own) = name.split_once('/').unwrap_or(("", name));
    Authorization {
        name: own.to_owned(),
        namespace: namespace.to_owned(),
        scope,
        action: Action::Deny,
        rules: vec![Rule::default()],
        dry_run: false,
    }
}

/// Takes a pod of this node.
pub(super) fn pod_resource(resource: &Resource, update: &mut Update) -> Result<(), DecodeError> {
    let pod = resource.unpack::<node::Pod>()?;
    if pod.uid.is_empty() || pod.uid != resource.name {
        return Err(DecodeError::Name);
    }
    let observed = match node::Mode::try_from(pod.mode) {
        Ok(node::Mode::Enabled) => false,
        Ok(node::Mode::Observe) => true,
        Ok(node::Mode::Unspecified) | Err(_) => return Err(DecodeError::Mode),
    };
    let source = PodSource {
        workload: pod.workload,
        netns: NetNsRef::Pod(pod.uid.as_str().into()),
        probe_ports: pod
            .probe_ports
            .iter()
            .map(|number| port(*number).map(NonZeroU16::get))
            .collect::<Result<_, _>>()?,
        observed,
    };
    update.pods.push((pod.uid, Some(source)));
    Ok(())
}

fn workload_source(workload: Workload, trust_domain: &TrustDomain) -> Result<WorkloadSource, DecodeError> {
    bounded(&workload.addresses, MAX_ADDRESSES, "addresses")?;
    bounded(&workload.authorization_policies, MAX_PARTS, "policies")?;
    if workload.services.len() > MAX_PARTS {
        return Err(DecodeError::TooMany {
            most: MAX_PARTS,
            what: "services",
        });
    }
    let own_domain = workload.trust_domain.as_str();
    let domain = match own_domain {
        "" => trust_domain.clone(),
        own => own.parse()?,
    };
    let account = match workload.service_account.as_str() {
        "" => "default",
        account => account,
    };
    let identity = Identity::new(&domain, &workload.namespace, account)?;
    let about = about(&workload)?;
    let mut services = BTreeMap::new();
    for (name, list) in workload.services {
        services.insert(name, ports(&list)?);
    }
    let policies = workload.authorization_policies.iter();
    Ok(WorkloadSource {
        identity,
        about: Arc::new(about),
        addresses: addresses(&workload.addresses)?,
        host_network: workload.network_mode == i32::from(NetworkMode::HostNetwork),
        zone: workload
            .locality
            .map(|locality| locality.zone)
            .filter(|zone| !zone.is_empty()),
        // What it is not known to understand it does not understand.
        tunnel: if workload.tunnel_protocol == i32::from(WireTunnel::Hbone) {
            TunnelProtocol::Hbone
        } else {
            TunnelProtocol::None
        },
        policies: policies.map(|name| name.as_str().into()).collect(),
        healthy: workload.status == i32::from(WorkloadStatus::Healthy),
        services,
        native_tunnel: workload.native_tunnel,
        node: workload.node,
        name: workload.name,
        uid: workload.uid,
    })
}

/// What people know a workload by: what runs it, and of `weir-control`'s its labels.
fn about(workload: &Workload) -> Result<About, DecodeError> {
    let own = workload.extensions.iter().find(|one| one.name == ABOUT);
    let own = match own.and_then(|own| own.config.as_ref()) {
        Some(any) => node::About::decode(any.value.clone()).map_err(UnpackError::Decode)?,
        None => node::About::default(),
    };
    if own.labels.len() > MAX_LABELS {
        return Err(DecodeError::TooMany {
            most: MAX_LABELS,
            what: "labels",
        });
    }
    let kind = match WorkloadType::try_from(workload.workload_type) {
        _ if !own.workload_kind.is_empty() => &own.workload_kind,
        Ok(WorkloadType::Job) => "Job",
        Ok(WorkloadType::Cronjob) => "CronJob",
        Ok(WorkloadType::Pod) => "Pod",
        Ok(WorkloadType::Deployment) => "Deployment",
        Err(_) => "",
    };
    Ok(About {
        labels: own.labels,
        workload: (!workload.workload_name.is_empty()).then(|| WorkloadName {
            name: workload.workload_name.clone(),
            kind: kind.to_owned(),
        }),
    })
}

/// The ports of an endpoint by the service's. One without a port of its own has the service's.
fn ports(list: &PortList) -> Result<Vec<(u16, u16)>, DecodeError> {
    bounded(&list.ports, MAX_PARTS, "ports")?;
    let pair = |own: &weir_proto::istio::workload::Port| {
        let service = port(own.service_port)?;
        let target = if own.target_port == 0 {
            service
        } else {
            port(own.target_port)?
        };
        Ok((service.get(), target.get()))
    };
    list.ports.iter().map(pair).collect()
}

fn service_source(service: &Service) -> Result<ServiceSource, DecodeError> {
    bounded(&service.addresses, MAX_ADDRESSES, "addresses")?;
    bounded(&service.ports, MAX_PARTS, "ports")?;
    bounded(&service.subject_alt_names, MAX_PARTS, "subject alternative names")?;
    let addresses = service.addresses.iter().map(|own| {
        let bytes = &own.address;
        address(bytes).ok_or(DecodeError::Address(bytes.len()))
    });
    let one = |own: &weir_proto::istio::workload::Port| {
        Ok(ServicePort {
            port: port(own.service_port)?,
            target_port: if own.target_port == 0 {
                None
            } else {
                Some(port(own.target_port)?)
            },
        })
    };
    let names = service.subject_alt_names.iter().map(|name| name.parse());
    let (distribution, policy) = preference(service);
    Ok(ServiceSource {
        name: format!("{}/{}", service.namespace, service.name).into(),
        addresses: addresses.collect::<Result<_, _>>()?,
        ports: service
            .ports
            .iter()
            .map(one)
            .collect::<Result<_, DecodeError>>()?,
        subject_alt_names: names.collect::<Result<_, _>>()?,
        distribution,
        policy,
    })
}

fn preference(service: &Service) -> (Option<TrafficDistribution>, InternalTrafficPolicy) {
    use load_balancing::{Mode, Scope};
    let Some(balancing) = &service.load_balancing else {
        return (None, InternalTrafficPolicy::Cluster);
    };
    let has = |scope: Scope| balancing.routing_preference.contains(&i32::from(scope));
    match Mode::try_from(balancing.mode) {
        Ok(Mode::Strict) if has(Scope::Node) => (None, InternalTrafficPolicy::Local),
        Ok(Mode::Failover) if has(Scope::Node) => (
            Some(TrafficDistribution::PreferSameNode),
            InternalTrafficPolicy::Cluster,
        ),
        Ok(Mode::Failover) if has(Scope::Zone) => (
            Some(TrafficDistribution::PreferSameZone),
            InternalTrafficPolicy::Cluster,
        ),
        _ => (None, InternalTrafficPolicy::Cluster),
    }
}

fn addresses(all: &[bytes::Bytes]) -> Result<Vec<IpAddr>, DecodeError> {
    let one = |bytes: &bytes::Bytes| address(bytes).ok_or(DecodeError::Address(bytes.len()));
    all.iter().map(one).collect()
}

fn port(number: u32) -> Result<NonZeroU16, DecodeError> {
    let narrow = u16::try_from(number).ok().and_then(NonZeroU16::new);
    narrow.ok_or(DecodeError::Port(number))
}

fn bounded<T>(parts: &[T], most: usize, what: &'static str) -> Result<(), DecodeError> {
    if parts.len() > most {
        return Err(DecodeError::TooMany { most, what });
    }
    Ok(())
}
