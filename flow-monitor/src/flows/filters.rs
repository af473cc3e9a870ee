//! Filters on the command line, as users of Hubble know them.

use clap::{Arg, ArgAction, ArgMatches, Args, Command, Error, FromArgMatches};
use weir_proto::{FlowFilter, flow::KnownFlowFilter};

use super::values;

/// What flows must be, and must not be.
#[derive(Debug, Clone, Default)]
pub(crate) struct Filters {
    /// One of these must match, if there are any.
    pub(crate) allow: Vec<FlowFilter>,
    /// None of these may.
    pub(crate) deny: Vec<FlowFilter>,
}

/// Adds a value to a filter.
type Add = fn(&mut KnownFlowFilter, &str) -> Result<(), String>;

/// An option.
struct Flag {
    name: &'static str,
    alias: Option<&'static str>,
    short: Option<char>,
    value: &'static str,
    help: &'static str,
    /// What is meant where no value stands: then none may.
    alone: Option<&'static str>,
    /// One filter for each of these: an option for either end makes two.
    adds: &'static [Add],
}

macro_rules! flags {
    ($($name:literal $([$alias:literal])? $(short $short:literal)? $(alone $alone:literal)? $value:literal, $help:literal => $($add:expr),+;)*) => {
        const FLAGS: &[Flag] = &[$(Flag {
            name: $name,
            alias: { let alias: &[&str] = &[$($alias)?]; if alias.is_empty() { None } else { Some(alias[0]) } },
            short: { let short: &[char] = &[$($short)?]; if short.is_empty() { None } else { Some(short[0]) } },
            value: $value,
            help: $help,
            alone: { let alone: &[&str] = &[$($alone)?]; if alone.is_empty() { None } else { Some(alone[0]) } },
            adds: &[$($add),+],
        }),*];
    };
}

macro_rules! text {
    ($field:ident) => {
        |filter, text| {
            filter.$field.push(text.to_owned());
            Ok(())
        }
    };
    ($field:ident, $parse:path) => {
        |filter, text| {
            filter.$field.push($parse(text)?);
            Ok(())
        }
    };
}

flags! {
    "pod" "POD", "Only flows with this pod at either end: NAME or NAMESPACE/NAME, of which the beginning is enough" => text!(source_pod, values::pod), text!(destination_pod, values::pod);
    "from-pod" "POD", "Only flows from this pod" => text!(source_pod, values::pod);
    "to-pod" "POD", "Only flows to this pod" => text!(destination_pod, values::pod);
    "namespace" short 'n' "NAMESPACE", "Only flows with this namespace at either end" => text!(source_pod, values::namespace), text!(destination_pod, values::namespace);
    "from-namespace" "NAMESPACE", "Only flows from this namespace" => text!(source_pod, values::namespace);
    "to-namespace" "NAMESPACE", "Only flows to this namespace" => text!(destination_pod, values::namespace);
    "label" "SELECTOR", "Only flows with labels like these at either end: 'app=web', 'tier in (a, b)', '!legacy'" => text!(source_label), text!(destination_label);
    "from-label" "SELECTOR", "Only flows from pods with labels like these" => text!(source_label);
    "to-label" "SELECTOR", "Only flows to pods with labels like these" => text!(destination_label);
    "workload" "WORKLOAD", "Only flows with this workload at either end: NAME or KIND/NAME" => text!(source_workload, values::workload), text!(destination_workload, values::workload);
    "from-workload" "WORKLOAD", "Only flows from this workload" => text!(source_workload, values::workload);
    "to-workload" "WORKLOAD", "Only flows to this workload" => text!(destination_workload, values::workload);
    "to-service" ["service"] "SERVICE", "Only flows to this service: NAME or NAMESPACE/NAME" => text!(destination_service, values::pod);
    "from-service" "SERVICE", "Only flows from this service; Weir's own records name none" => text!(source_service, values::pod);
    "fqdn" "NAME", "Only flows with this DNS name at either end; '*' stands for any part. Weir's own records name none" => text!(source_fqdn), text!(destination_fqdn);
    "from-fqdn" "NAME", "Only flows from this DNS name" => text!(source_fqdn);
    "to-fqdn" "NAME", "Only flows to this DNS name" => text!(destination_fqdn);
    "cluster" "NAME", "Only flows with this cluster at either end" => text!(source_cluster_name), text!(destination_cluster_name);
    "from-cluster" "NAME", "Only flows from this cluster" => text!(source_cluster_name);
    "to-cluster" "NAME", "Only flows to this cluster" => text!(destination_cluster_name);
    "ip" "ADDRESS", "Only flows with this address, or range, at either end" => text!(source_ip), text!(destination_ip);
    "from-ip" "ADDRESS", "Only flows from this address or range" => text!(source_ip);
    "to-ip" "ADDRESS", "Only flows to this address or range" => text!(destination_ip);
    "port" "PORT", "Only flows to or from this port or range, as 8000-8080" => text!(source_port), text!(destination_port);
    "from-port" "PORT", "Only flows from this port or range" => text!(source_port);
    "to-port" "PORT", "Only flows to this port or range" => text!(destination_port);
    "identity" "NUMBER", "Only flows with this number of an identity at either end" => text!(source_identity, values::number), text!(destination_identity, values::number);
    "from-identity" "NUMBER", "Only flows from this number of an identity" => text!(source_identity, values::number);
    "to-identity" "NUMBER", "Only flows to this number of an identity" => text!(destination_identity, values::number);
    "verdict" "VERDICT", "Only flows with this verdict: forwarded, denied (or dropped), failed (or error), audit" => text!(verdict, values::verdict);
    "drop-reason-desc" "REASON", "Only flows that were dropped for this reason of Hubble's, as POLICY_DENIED" => text!(drop_reason_desc, values::drop_reason);
    "type" short 't' "TYPE", "Only flows of events of this type: drop, policy-verdict, trace, or TYPE:SUBTYPE" => text!(event_type, values::event_type);
    "traffic-direction" "DIRECTION", "Only flows of this direction, seen from the recording node: ingress, egress" => text!(traffic_direction, values::direction);
    "protocol" "PROTOCOL", "Only flows of this protocol, as tcp" => text!(protocol);
    "ip-version" "VERSION", "Only flows of this version of IP: v4, v6" => text!(ip_version, values::ip_version);
    "tcp-flags" "FLAGS", "Only flows with these flags of TCP, as syn or syn,ack" => text!(tcp_flags, values::tcp_flags);
    "node-name" "PATTERN", "Only flows that these nodes recorded; '*' stands for any part of a name" => text!(node_name);
    "node-label" "SELECTOR", "Only flows that nodes with labels like these recorded" => text!(node_labels);
    "encrypted" alone "true" "", "Only flows that were encrypted on their way" => text!(encrypted, values::yes);
    "unencrypted" alone "true" "", "Only flows that were not encrypted on their way" => text!(encrypted, values::no);
    "uuid" "UUID", "Only the flow with this id" => text!(uuid);
    "http-status" "CODE", "Only flows of HTTP with this status, as 404 or 4+" => text!(http_status_code);
    "http-method" "METHOD", "Only flows of HTTP with this method" => text!(http_method);
    "http-path" "PATTERN", "Only flows of HTTP whose path matches this regular expression" => text!(http_path);
    "http-url" "PATTERN", "Only flows of HTTP whose URL matches this regular expression" => text!(http_url);
    "http-header" "KEY:VALUE", "Only flows of HTTP with this header" => text!(http_header, values::header);
    "trace-id" "ID", "Only flows of this trace" => text!(trace_id);
}

/// The option that turns the next one round.
const NOT: &str = "not";
const HEADING: &str = "Which flows";

impl Args for Filters {
    fn augment_args(mut command: Command) -> Command {
        for flag in FLAGS {
            let mut arg = Arg::new(flag.name)
                .long(flag.name)
                .value_name(flag.value)
                .help(flag.help)
                .help_heading(HEADING)
                .action(ArgAction::Append);
            if let Some(alone) = flag.alone {
                arg = arg.num_args(0).default_missing_value(alone);
            }
            if let Some(alias) = flag.alias {
                arg = arg.visible_alias(alias);
            }
            if let Some(short) = flag.short {
                arg = arg.short(short);
            }
            command = command.arg(arg);
        }
        let not = Arg::new(NOT)
            .long(NOT)
            .num_args(0)
            .default_missing_value("true")
            .action(ArgAction::Append)
            .help_heading(HEADING)
            .help("Not the flows that the next option means: --not --verdict forwarded");
        command.arg(not)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Filters {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let invalid = |text: String| Error::raw(clap::error::ErrorKind::ValueValidation, text + "\n");
        let at = |name: &str| matches.indices_of(name).into_iter().flatten();
        let nots: Vec<usize> = at(NOT).collect();
        let mut given: Vec<(usize, &Flag, &String)> = Vec::new();
        for flag in FLAGS {
            let values = matches.get_many::<String>(flag.name).into_iter().flatten();
            given.extend(at(flag.name).zip(values).map(|(at, value)| (at, flag, value)));
        }
        given.sort_by_key(|(at, ..)| *at);
        let mut sides = [Side::default(), Side::default()];
        let mut used = 0;
        let mut before = 0;
        for (at, flag, value) in &given {
            let turned = nots.iter().filter(|not| (before..*at).contains(*not)).count();
            used += turned;
            before = *at;
            if turned > 1 {
                return Err(invalid("--not stands twice before one option".to_owned()));
            }
            sides[turned].add(flag, value).map_err(|problem| {
                invalid(format!(
                    "invalid value '{value}' for '--{} <{}>': {problem}",
                    flag.name, flag.value
                ))
            })?;
        }
        if used < nots.len() {
            return Err(invalid(
                "--not turns the option behind it round, and there is none".to_owned(),
            ));
        }
        let [allow, deny] = sides.map(Side::filters);
        Ok(Self { allow, deny })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// The values that were given, by option: values of one option are alternatives, options must all match.
#[derive(Default)]
struct Side(Vec<(&'static str, &'static [Add], Vec<String>)>);

impl Side {
    fn add(&mut self, flag: &'static Flag, value: &str) -> Result<(), String> {
        // What is wrong is said at once, with the option's name.
        for add in flag.adds {
            add(&mut KnownFlowFilter::default(), value)?;
        }
        match self.0.iter_mut().find(|(name, ..)| *name == flag.name) {
            Some((.., values)) => values.push(value.to_owned()),
            None => self.0.push((flag.name, flag.adds, vec![value.to_owned()])),
        }
        Ok(())
    }

    /// Of an option for either end comes one filter for each, and of several one for each combination.
    fn filters(self) -> Vec<FlowFilter> {
        if self.0.is_empty() {
            return Vec::new();
        }
        let mut all = vec![KnownFlowFilter::default()];
        for (_, adds, values) in self.0 {
            let before = std::mem::take(&mut all);
            for (filter, add) in before
                .iter()
                .flat_map(|filter| adds.iter().map(move |add| (filter, add)))
            {
                let mut filter = filter.clone();
                for value in &values {
                    // It was tried above.
                    let _ = add(&mut filter, value);
                }
                all.push(filter);
            }
        }
        all.into_iter().map(FlowFilter::from).collect()
    }
}
