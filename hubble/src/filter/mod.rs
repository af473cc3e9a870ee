//! Filters of flows: values of one field are alternatives, fields must all match. What is not understood is refused.

mod labels;
mod names;
mod parse;

use std::{net::IpAddr, ops::RangeInclusive};

use ipnet::IpNet;
use regex::Regex;
use weir_proto::{FlowFilter, flow as hubble};

use labels::Selector;
use names::{NodePattern, Prefixed};

/// Filters of one request, of either list.
const MAX_FILTERS: usize = 256;
/// Values of one field.
const MAX_VALUES: usize = 1024;
/// Values of one request: each flow may be compared with all of them.
const MAX_ALL_VALUES: usize = 8192;
/// Patterns of one request: each takes memory when it is compiled, up to a quarter of a mebibyte.
const MAX_PATTERNS: usize = 128;
/// Bytes of one value.
const MAX_VALUE: usize = 4096;

/// Why a filter is refused. It says what to ask instead, as far as that is known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("filter {field}: {problem}")]
pub struct FilterError {
    /// The field, by its name in the definition.
    pub field: String,
    /// What is wrong.
    pub problem: String,
}

/// What a request wants: a flow that any of the first list matches, or there is none, and none of the second.
#[derive(Debug, Default)]
pub struct Filters {
    allow: Vec<Filter>,
    deny: Vec<Filter>,
}

/// One filter: all of its tests must be passed.
#[derive(Debug)]
struct Filter(Vec<Test>);

/// One field, passed if any of its values matches.
#[derive(Debug)]
enum Test {
    Uuid(Vec<String>),
    Address(End, Vec<IpNet>),
    Pod(End, Vec<Prefixed>),
    Service(End, Vec<Prefixed>),
    Label(End, Vec<Selector>),
    NodeLabel(Vec<Selector>),
    Workload(End, Vec<hubble::Workload>),
    Cluster(End, Vec<String>),
    Identity(End, Vec<u32>),
    Port(End, Vec<RangeInclusive<u32>>),
    Name(End, Vec<Regex>),
    Direction(Vec<i32>),
    Verdict(Vec<i32>),
    DropReason(Vec<i32>),
    EventType(Vec<hubble::EventTypeFilter>),
    Protocol(Vec<Protocol>),
    Reply(Vec<bool>),
    Flags(Vec<hubble::TcpFlags>),
    Node(Vec<NodePattern>),
    IpVersion(Vec<i32>),
    Trace(Vec<String>),
    IpTrace(Vec<u64>),
    Encrypted(Vec<bool>),
    Code(Vec<Code>),
    Method(Vec<String>),
    Path(Vec<Regex>),
    Url(Vec<Regex>),
    Header(Vec<hubble::HttpHeader>),
    Query(Vec<Regex>),
    /// Something that no record of Weir's has: an interface, an address before it was translated.
    Never,
}

/// Which end of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Source,
    Destination,
}

/// A protocol by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Tcp,
    Udp,
    /// Of either version.
    Icmp,
    Icmp4,
    Icmp6,
    Sctp,
    Http,
    Dns,
    Kafka,
    Vrrp,
    Igmp,
}

/// A status of HTTP: all of it, or its beginning.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Code {
    digits: String,
    begins: bool,
}

// === impl Filters ===

impl Filters {
    /// Understands the two lists of a request.
    ///
    /// # Errors
    /// When a filter has something in it that is not understood, or is too large.
    pub fn new(whitelist: &[FlowFilter], blacklist: &[FlowFilter]) -> Result<Self, FilterError> {
        let mut budget = parse::Budget::default();
        let mut list = |name: &str, filters: &[FlowFilter]| {
            if filters.len() > MAX_FILTERS {
                return Err(FilterError {
                    field: name.to_owned(),
                    problem: format!("there are more than {MAX_FILTERS}"),
                });
            }
            filters
                .iter()
                .map(|filter| parse::filter(filter, &mut budget).map(Filter))
                .collect()
        };
        Ok(Self {
            allow: list("whitelist", whitelist)?,
            deny: list("blacklist", blacklist)?,
        })
    }

    /// Whether a flow is wanted.
    #[must_use]
    pub fn matches(&self, flow: &hubble::Flow) -> bool {
        (self.allow.is_empty() || self.allow.iter().any(|filter| filter.matches(flow)))
            && !self.deny.iter().any(|filter| filter.matches(flow))
    }
}

impl Filter {
    fn matches(&self, flow: &hubble::Flow) -> bool {
        self.0.iter().all(|test| test.passes(flow))
    }
}

impl End {
    fn endpoint(self, flow: &hubble::Flow) -> Option<&hubble::Endpoint> {
        match self {
            Self::Source => flow.source.as_ref(),
            Self::Destination => flow.destination.as_ref(),
        }
    }

    fn address(self, flow: &hubble::Flow) -> Option<IpAddr> {
        let ip = flow.ip.as_ref()?;
        match self {
            Self::Source => &ip.source,
            Self::Destination => &ip.destination,
        }
        .parse()
        .ok()
    }

    fn port(self, flow: &hubble::Flow) -> Option<u32> {
        use hubble::layer4::Protocol as Layer4;
        let (source, destination) = match flow.l4.as_ref()?.protocol.as_ref()? {
            Layer4::Tcp(tcp) => (tcp.source_port, tcp.destination_port),
            Layer4::Udp(udp) => (udp.source_port, udp.destination_port),
            Layer4::Sctp(sctp) => (sctp.source_port, sctp.destination_port),
            Layer4::IcmPv4(_) | Layer4::IcmPv6(_) | Layer4::Vrrp(_) | Layer4::Igmp(_) => return None,
        };
        Some(match self {
            Self::Source => source,
            Self::Destination => destination,
        })
    }

    fn service(self, flow: &hubble::Flow) -> Option<&hubble::Service> {
        match self {
            Self::Source => flow.source_service.as_ref(),
            Self::Destination => flow.destination_service.as_ref(),
        }
    }

    fn names(self, flow: &hubble::Flow) -> &[String] {
        match self {
            Self::Source => &flow.source_names,
            Self::Destination => &flow.destination_names,
        }
    }
}

impl Test {
    fn passes(&self, flow: &hubble::Flow) -> bool {
        let endpoint =
            |end: End, wanted: &dyn Fn(&hubble::Endpoint) -> bool| end.endpoint(flow).is_some_and(wanted);
        match self {
            Self::Uuid(all) => all.contains(&flow.uuid),
            Self::Address(end, all) => end
                .address(flow)
                .is_some_and(|address| all.iter().any(|range| range.contains(&address))),
            Self::Pod(end, all) => endpoint(*end, &|own| {
                all.iter()
                    .any(|wanted| wanted.matches(&own.namespace, &own.pod_name))
            }),
            Self::Service(end, all) => end
                .service(flow)
                .is_some_and(|own| all.iter().any(|wanted| wanted.matches(&own.namespace, &own.name))),
            Self::Label(end, all) => {
                endpoint(*end, &|own| all.iter().any(|wanted| wanted.selects(&own.labels)))
            }
            Self::NodeLabel(all) => all.iter().any(|wanted| wanted.selects(&flow.node_labels)),
            Self::Workload(end, all) => endpoint(*end, &|own| {
                let is = |wanted: &hubble::Workload, own: &hubble::Workload| {
                    (wanted.name.is_empty() || wanted.name == own.name)
                        && (wanted.kind.is_empty() || wanted.kind == own.kind)
                };
                own.workloads
                    .iter()
                    .any(|own| all.iter().any(|wanted| is(wanted, own)))
            }),
            Self::Cluster(end, all) => endpoint(*end, &|own| all.contains(&own.cluster_name)),
            Self::Identity(end, all) => endpoint(*end, &|own| all.contains(&own.identity)),
            Self::Port(end, all) => end
                .port(flow)
                .is_some_and(|port| all.iter().any(|range| range.contains(&port))),
            Self::Name(end, all) => {
                let names = end.names(flow);
                names
                    .iter()
                    .any(|name| all.iter().any(|wanted| wanted.is_match(name)))
            }
            Self::Direction(all) => all.contains(&flow.traffic_direction),
            Self::Verdict(all) => all.contains(&flow.verdict),
            Self::DropReason(all) => all.contains(&flow.drop_reason_desc),
            Self::EventType(all) => flow.event_type.as_ref().is_some_and(|own| {
                all.iter().any(|wanted| {
                    wanted.r#type == own.r#type && (!wanted.match_sub_type || wanted.sub_type == own.sub_type)
                })
            }),
            Self::Protocol(all) => all.iter().any(|protocol| protocol.is_of(flow)),
            Self::Reply(all) => flow.is_reply.is_some_and(|own| all.contains(&own)),
            Self::Flags(all) => {
                flags(flow).is_some_and(|own| all.iter().any(|wanted| has_flags(own, wanted)))
            }
            Self::Node(all) => {
                let cluster = flow.source.as_ref().map_or("", |own| own.cluster_name.as_str());
                all.iter()
                    .any(|pattern| pattern.matches(cluster, &flow.node_name))
            }
            Self::IpVersion(all) => flow.ip.as_ref().is_some_and(|ip| all.contains(&ip.ip_version)),
            Self::Trace(all) => {
                let parent = flow
                    .trace_context
                    .as_ref()
                    .and_then(|context| context.parent.as_ref());
                parent.is_some_and(|parent| all.contains(&parent.trace_id))
            }
            Self::IpTrace(all) => {
                let own = flow.ip_trace_id.as_ref();
                own.is_some_and(|own| all.contains(&own.trace_id))
            }
            Self::Encrypted(all) => flow.ip.as_ref().is_some_and(|ip| all.contains(&ip.encrypted)),
            Self::Code(all) => http(flow).is_some_and(|http| {
                let own = http.code.to_string();
                http.code != 0 && all.iter().any(|code| code.matches(&own))
            }),
            Self::Method(all) => {
                http(flow).is_some_and(|http| all.iter().any(|own| own.eq_ignore_ascii_case(&http.method)))
            }
            Self::Path(all) => http(flow).is_some_and(|http| {
                let path = names::path_of(&http.url);
                all.iter().any(|wanted| wanted.is_match(path))
            }),
            Self::Url(all) => {
                http(flow).is_some_and(|http| all.iter().any(|wanted| wanted.is_match(&http.url)))
            }
            Self::Header(all) => http(flow).is_some_and(|http| {
                let is = |wanted: &hubble::HttpHeader, own: &hubble::HttpHeader| {
                    wanted.key.eq_ignore_ascii_case(&own.key) && wanted.value == own.value
                };
                http.headers
                    .iter()
                    .any(|own| all.iter().any(|wanted| is(wanted, own)))
            }),
            Self::Query(all) => match flow.l7.as_ref().and_then(|l7| l7.record.as_ref()) {
                Some(hubble::layer7::Record::Dns(dns)) => {
                    all.iter().any(|wanted| wanted.is_match(&dns.query))
                }
                _ => false,
            },
            Self::Never => false,
        }
    }
}

fn http(flow: &hubble::Flow) -> Option<&hubble::Http> {
    match flow.l7.as_ref()?.record.as_ref()? {
        hubble::layer7::Record::Http(http) => Some(http),
        hubble::layer7::Record::Dns(_) | hubble::layer7::Record::Kafka(_) => None,
    }
}

fn flags(flow: &hubble::Flow) -> Option<&hubble::TcpFlags> {
    match flow.l4.as_ref()?.protocol.as_ref()? {
        hubble::layer4::Protocol::Tcp(tcp) => tcp.flags.as_ref(),
        _ => None,
    }
}

/// Whether all flags that are wanted are set.
fn has_flags(own: &hubble::TcpFlags, wanted: &hubble::TcpFlags) -> bool {
    let bits = |flags: &hubble::TcpFlags| {
        [
            flags.fin, flags.syn, flags.rst, flags.psh, flags.ack, flags.urg, flags.ece, flags.cwr, flags.ns,
        ]
    };
    bits(own)
        .into_iter()
        .zip(bits(wanted))
        .all(|(own, wanted)| own || !wanted)
}

impl Protocol {
    fn is_of(self, flow: &hubble::Flow) -> bool {
        use hubble::{layer4::Protocol as Layer4, layer7::Record};
        let layer4 = flow.l4.as_ref().and_then(|l4| l4.protocol.as_ref());
        let layer7 = flow.l7.as_ref().and_then(|l7| l7.record.as_ref());
        match self {
            Self::Tcp => matches!(layer4, Some(Layer4::Tcp(_))),
            Self::Udp => matches!(layer4, Some(Layer4::Udp(_))),
            Self::Icmp => matches!(layer4, Some(Layer4::IcmPv4(_) | Layer4::IcmPv6(_))),
            Self::Icmp4 => matches!(layer4, Some(Layer4::IcmPv4(_))),
            Self::Icmp6 => matches!(layer4, Some(Layer4::IcmPv6(_))),
            Self::Sctp => matches!(layer4, Some(Layer4::Sctp(_))),
            Self::Http => matches!(layer7, Some(Record::Http(_))),
            Self::Dns => matches!(layer7, Some(Record::Dns(_))),
            Self::Kafka => matches!(layer7, Some(Record::Kafka(_))),
            Self::Vrrp => matches!(layer4, Some(Layer4::Vrrp(_))),
            Self::Igmp => matches!(layer4, Some(Layer4::Igmp(_))),
        }
    }
}

impl Code {
    fn matches(&self, own: &str) -> bool {
        if self.begins {
            own.starts_with(&self.digits)
        } else {
            own == self.digits
        }
    }
}

#[cfg(test)]
mod tests;
