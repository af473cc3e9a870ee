//! From a filter's message to its tests.

use std::{net::IpAddr, ops::RangeInclusive};

use ipnet::IpNet;
use regex::{Regex, RegexBuilder};
use weir_proto::{FlowFilter, flow as hubble};

use super::{
    Code, End, FilterError, MAX_ALL_VALUES, MAX_PATTERNS, MAX_VALUE, MAX_VALUES, Protocol, Test,
    labels::Selector,
    names::{NodePattern, Prefixed},
};

/// Compiled size of a regular expression, in bytes.
const MAX_REGEX: usize = 256 << 10;

/// What a request's filters may still have.
pub(super) struct Budget {
    values: usize,
    patterns: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            values: MAX_ALL_VALUES,
            patterns: MAX_PATTERNS,
        }
    }
}

/// The tests of a filter.
pub(super) fn filter(filter: &FlowFilter, budget: &mut Budget) -> Result<Vec<Test>, FilterError> {
    if let Some(tag) = filter.unknown.first() {
        return Err(error(
            &format!("field {tag}"),
            "this version of Weir does not know it",
        ));
    }
    let own = &filter.known;
    if own
        .experimental
        .as_ref()
        .is_some_and(|own| !own.cel_expression.is_empty())
    {
        return Err(error(
            "cel_expression",
            "CEL is not supported; use the other fields",
        ));
    }
    let mut tests = Tests {
        made: Vec::new(),
        budget,
    };
    tests.add("uuid", &own.uuid, |text: &String| Ok(text.clone()), Test::Uuid)?;
    for end in [End::Source, End::Destination] {
        tests.end(own, end)?;
    }
    tests.add(
        "source_ip_xlated",
        &own.source_ip_xlated,
        |text| range(text),
        |_| Test::Never,
    )?;
    tests.add("interface", &own.interface, |_| Ok(()), |_| Test::Never)?;
    tests.number(
        "traffic_direction",
        &own.traffic_direction,
        |number| hubble::TrafficDirection::try_from(number).is_ok(),
        Test::Direction,
    )?;
    tests.number(
        "verdict",
        &own.verdict,
        |number| hubble::Verdict::try_from(number).is_ok(),
        Test::Verdict,
    )?;
    // Those of Cilium's that no record here has are numbers like others: they match nothing.
    tests.number(
        "drop_reason_desc",
        &own.drop_reason_desc,
        |_| true,
        Test::DropReason,
    )?;
    tests.number(
        "ip_version",
        &own.ip_version,
        |number| hubble::IpVersion::try_from(number).is_ok(),
        Test::IpVersion,
    )?;
    tests.add("event_type", &own.event_type, |event| Ok(*event), Test::EventType)?;
    tests.add("protocol", &own.protocol, |text| protocol(text), Test::Protocol)?;
    tests.add("reply", &own.reply, |reply| Ok(*reply), Test::Reply)?;
    tests.add("tcp_flags", &own.tcp_flags, |flags| Ok(*flags), Test::Flags)?;
    tests.count_patterns("node_name", own.node_name.len())?;
    tests.add(
        "node_name",
        &own.node_name,
        |text| NodePattern::new(text),
        Test::Node,
    )?;
    tests.add(
        "node_labels",
        &own.node_labels,
        |text| Selector::new(text),
        Test::NodeLabel,
    )?;
    tests.add(
        "trace_id",
        &own.trace_id,
        |text: &String| Ok(text.clone()),
        Test::Trace,
    )?;
    tests.add(
        "ip_trace_id",
        &own.ip_trace_id,
        |number| Ok(*number),
        Test::IpTrace,
    )?;
    tests.add(
        "encrypted",
        &own.encrypted,
        |encrypted| Ok(*encrypted),
        Test::Encrypted,
    )?;
    tests.add(
        "http_status_code",
        &own.http_status_code,
        |text| code(text),
        Test::Code,
    )?;
    tests.add(
        "http_method",
        &own.http_method,
        |text: &String| Ok(text.clone()),
        Test::Method,
    )?;
    tests.patterns("http_path", &own.http_path, |text| pattern(text), Test::Path)?;
    tests.patterns("http_url", &own.http_url, |text| pattern(text), Test::Url)?;
    tests.add(
        "http_header",
        &own.http_header,
        |header| Ok(header.clone()),
        Test::Header,
    )?;
    tests.patterns("dns_query", &own.dns_query, |text| pattern(text), Test::Query)?;
    Ok(tests.made)
}

fn error(field: &str, problem: &str) -> FilterError {
    FilterError {
        field: field.to_owned(),
        problem: problem.to_owned(),
    }
}

/// Those that were made so far.
struct Tests<'a> {
    made: Vec<Test>,
    budget: &'a mut Budget,
}

impl Tests<'_> {
    /// Adds the test of a field, if that has values.
    fn add<T: Bounded, V>(
        &mut self,
        field: &str,
        values: &[T],
        parse: impl Fn(&T) -> Result<V, String>,
        make: impl FnOnce(Vec<V>) -> Test,
    ) -> Result<(), FilterError> {
        if values.is_empty() {
            return Ok(());
        }
        if values.len() > MAX_VALUES {
            return Err(error(field, &format!("it has more than {MAX_VALUES} values")));
        }
        let Some(left) = self.budget.values.checked_sub(values.len()) else {
            let problem = format!("the request has more than {MAX_ALL_VALUES} values");
            return Err(error(field, &problem));
        };
        self.budget.values = left;
        let parsed = values.iter().map(|value| {
            if value.bytes() > MAX_VALUE {
                return Err(error(field, &format!("a value has more than {MAX_VALUE} bytes")));
            }
            parse(value).map_err(|problem| error(field, &problem))
        });
        let parsed = parsed.collect::<Result<Vec<V>, _>>()?;
        self.made.push(make(parsed));
        Ok(())
    }

    /// As [`Self::add`], of values that are compiled.
    fn patterns(
        &mut self,
        field: &str,
        values: &[String],
        parse: impl Fn(&String) -> Result<Regex, String>,
        make: impl FnOnce(Vec<Regex>) -> Test,
    ) -> Result<(), FilterError> {
        self.count_patterns(field, values.len())?;
        self.add(field, values, parse, make)
    }

    fn count_patterns(&mut self, field: &str, count: usize) -> Result<(), FilterError> {
        let left = self.budget.patterns.checked_sub(count);
        let too_many = || {
            error(
                field,
                &format!("the request has more than {MAX_PATTERNS} patterns"),
            )
        };
        self.budget.patterns = left.ok_or_else(too_many)?;
        Ok(())
    }

    fn number(
        &mut self,
        field: &str,
        values: &[i32],
        is_known: impl Fn(i32) -> bool,
        make: impl FnOnce(Vec<i32>) -> Test,
    ) -> Result<(), FilterError> {
        let check = |number: &i32| {
            if is_known(*number) {
                Ok(*number)
            } else {
                Err(format!("there is no value {number}"))
            }
        };
        self.add(field, values, check, make)
    }

    /// The fields that there are of both ends.
    fn end(&mut self, own: &hubble::KnownFlowFilter, end: End) -> Result<(), FilterError> {
        let of = |source, destination| match end {
            End::Source => source,
            End::Destination => destination,
        };
        let name = |field: &str| match end {
            End::Source => format!("source_{field}"),
            End::Destination => format!("destination_{field}"),
        };
        let prefixed = |text: &String| Prefixed::new(text).map_err(str::to_owned);
        self.add(
            &name("ip"),
            of(&own.source_ip, &own.destination_ip),
            |text| range(text),
            |all| Test::Address(end, all),
        )?;
        self.add(
            &name("pod"),
            of(&own.source_pod, &own.destination_pod),
            prefixed,
            |all| Test::Pod(end, all),
        )?;
        self.add(
            &name("service"),
            of(&own.source_service, &own.destination_service),
            prefixed,
            |all| Test::Service(end, all),
        )?;
        self.patterns(
            &name("fqdn"),
            of(&own.source_fqdn, &own.destination_fqdn),
            |text| name_pattern(text),
            |all| Test::Name(end, all),
        )?;
        self.add(
            &name("label"),
            of(&own.source_label, &own.destination_label),
            |text| Selector::new(text),
            |all| Test::Label(end, all),
        )?;
        self.add(
            &name("port"),
            of(&own.source_port, &own.destination_port),
            |text| ports(text),
            |all| Test::Port(end, all),
        )?;
        let clusters = of(&own.source_cluster_name, &own.destination_cluster_name);
        self.add(
            &name("cluster_name"),
            clusters,
            |text: &String| Ok(text.clone()),
            |all| Test::Cluster(end, all),
        )?;
        let identities = match end {
            End::Source => &own.source_identity,
            End::Destination => &own.destination_identity,
        };
        self.add(
            &name("identity"),
            identities,
            |number| Ok(*number),
            |all| Test::Identity(end, all),
        )?;
        let workloads = match end {
            End::Source => &own.source_workload,
            End::Destination => &own.destination_workload,
        };
        let workload = |one: &hubble::Workload| {
            if one.name.is_empty() && one.kind.is_empty() {
                return Err("expected a name, a kind, or both".to_owned());
            }
            Ok(one.clone())
        };
        self.add(&name("workload"), workloads, workload, |all| {
            Test::Workload(end, all)
        })
    }
}

/// A value whose size counts.
trait Bounded {
    fn bytes(&self) -> usize;
}

impl Bounded for String {
    fn bytes(&self) -> usize {
        self.len()
    }
}

macro_rules! small {
    ($($kind:ty),*) => {
        $(impl Bounded for $kind {
            fn bytes(&self) -> usize {
                size_of::<Self>()
            }
        })*
    };
}

small!(i32, u32, u64, bool, hubble::EventTypeFilter, hubble::TcpFlags);

impl Bounded for hubble::Workload {
    fn bytes(&self) -> usize {
        self.name.len() + self.kind.len()
    }
}

impl Bounded for hubble::HttpHeader {
    fn bytes(&self) -> usize {
        self.key.len() + self.value.len()
    }
}

impl Bounded for hubble::NetworkInterface {
    fn bytes(&self) -> usize {
        self.name.len()
    }
}

fn range(text: &str) -> Result<IpNet, String> {
    let address = text.parse::<IpAddr>().map(IpNet::from);
    address
        .or_else(|_| text.parse::<IpNet>())
        .map_err(|_| format!("'{text}' is neither an address nor a range, as 10.0.0.0/8"))
}

fn ports(text: &str) -> Result<RangeInclusive<u32>, String> {
    let port = |text: &str| text.parse::<u16>().map(u32::from);
    let problem = || format!("'{text}' is neither a port nor a range of ports, as 8000-8080");
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (
        port(first).map_err(|_| problem())?,
        port(last).map_err(|_| problem())?,
    );
    if first > last {
        return Err(problem());
    }
    Ok(first..=last)
}

fn protocol(text: &str) -> Result<Protocol, String> {
    Ok(match text.to_ascii_lowercase().as_str() {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "icmp" => Protocol::Icmp,
        "icmpv4" => Protocol::Icmp4,
        "icmpv6" => Protocol::Icmp6,
        "sctp" => Protocol::Sctp,
        "http" => Protocol::Http,
        "dns" => Protocol::Dns,
        "kafka" => Protocol::Kafka,
        "vrrp" => Protocol::Vrrp,
        "igmp" => Protocol::Igmp,
        _ => return Err(format!("'{text}' is no protocol that flows have")),
    })
}

fn code(text: &str) -> Result<Code, String> {
    let (digits, begins) = match text.strip_suffix('+') {
        Some(digits) => (digits, true),
        None => (text, false),
    };
    let is_code = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    if !is_code || digits.len() > 3 || (!begins && digits.len() != 3) {
        return Err(format!("'{text}' is no status, as 404 or 4+"));
    }
    Ok(Code {
        digits: digits.to_owned(),
        begins,
    })
}

fn pattern(text: &str) -> Result<Regex, String> {
    let built = RegexBuilder::new(text).size_limit(MAX_REGEX).build();
    built.map_err(|error| format!("'{text}' is no regular expression: {error}"))
}

/// A DNS name, where `*` stands for anything.
fn name_pattern(text: &str) -> Result<Regex, String> {
    let name = text.trim_end_matches('.').to_ascii_lowercase();
    let allowed = |char: char| char.is_ascii_alphanumeric() || "-._*".contains(char);
    if name.is_empty() || !name.chars().all(allowed) {
        return Err(format!("'{text}' is no DNS name"));
    }
    pattern(&format!("^{}$", regex::escape(&name).replace(r"\*", ".*")))
}
