//! Values of options, as people write them.

use std::time::Duration;

use jiff::{Timestamp, civil, tz::TimeZone};
use weir_proto::flow::{
    DropReason, EventTypeFilter, HttpHeader, IpVersion, TcpFlags, TrafficDirection, Verdict, Workload,
};

/// A pod or service: a name alone is one of any namespace.
pub(super) fn pod(text: &str) -> Result<String, String> {
    match text.split_once('/') {
        None if text.is_empty() => Err("expected NAME or NAMESPACE/NAME".to_owned()),
        None => Ok(format!("/{text}")),
        Some((_, name)) if name.contains('/') => Err("expected NAME or NAMESPACE/NAME".to_owned()),
        Some(_) => Ok(text.to_owned()),
    }
}

pub(super) fn namespace(text: &str) -> Result<String, String> {
    if text.is_empty() || text.contains('/') {
        return Err("expected the name of a namespace".to_owned());
    }
    Ok(format!("{text}/"))
}

pub(super) fn workload(text: &str) -> Result<Workload, String> {
    let (kind, name) = text.split_once('/').unwrap_or(("", text));
    if name.is_empty() && kind.is_empty() {
        return Err("expected NAME or KIND/NAME".to_owned());
    }
    Ok(Workload {
        name: name.to_owned(),
        kind: kind.to_owned(),
    })
}

pub(super) fn number(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| "expected a number".to_owned())
}

pub(super) fn verdict(text: &str) -> Result<i32, String> {
    let verdict = match text.to_ascii_uppercase().as_str() {
        "DENIED" => Verdict::Dropped,
        "FAILED" => Verdict::Error,
        name => Verdict::from_str_name(name)
            .ok_or("expected forwarded, denied (or dropped), failed (or error), or audit")?,
    };
    Ok(verdict.into())
}

pub(super) fn drop_reason(text: &str) -> Result<i32, String> {
    let reason = DropReason::from_str_name(&text.to_ascii_uppercase());
    reason
        .map(Into::into)
        .ok_or_else(|| "expected a reason of Hubble's, as POLICY_DENIED or UNENCRYPTED_TRAFFIC".to_owned())
}

/// As Cilium's monitor numbers them.
pub(super) fn event_type(text: &str) -> Result<EventTypeFilter, String> {
    let (name, sub_type) = match text.split_once(':') {
        Some((name, sub_type)) => (name, Some(sub_type)),
        None => (text, None),
    };
    let kind = match name {
        "drop" => 1,
        "trace" => 4,
        "policy-verdict" => 5,
        "trace-sock" => 7,
        "l7" => 129,
        number => number
            .parse()
            .map_err(|_| "expected drop, policy-verdict, trace, l7, or a number")?,
    };
    let sub_type = match sub_type {
        None => None,
        Some("to-endpoint") => Some(0),
        Some("from-endpoint") => Some(5),
        Some(number) => Some(
            number
                .parse()
                .map_err(|_| "expected to-endpoint, from-endpoint, or a number behind the colon")?,
        ),
    };
    Ok(EventTypeFilter {
        r#type: kind,
        match_sub_type: sub_type.is_some(),
        sub_type: sub_type.unwrap_or_default(),
    })
}

/// For options without a value.
#[allow(clippy::unnecessary_wraps, reason = "as all others")]
pub(super) fn yes(_: &str) -> Result<bool, String> {
    Ok(true)
}

/// For options without a value that mean the contrary.
#[allow(clippy::unnecessary_wraps, reason = "as all others")]
pub(super) fn no(_: &str) -> Result<bool, String> {
    Ok(false)
}

pub(super) fn header(text: &str) -> Result<HttpHeader, String> {
    match text.split_once(':') {
        Some((key, value)) if !key.is_empty() => Ok(HttpHeader {
            key: key.to_owned(),
            value: value.trim_start().to_owned(),
        }),
        _ => Err("expected KEY:VALUE".to_owned()),
    }
}

pub(super) fn direction(text: &str) -> Result<i32, String> {
    let direction = TrafficDirection::from_str_name(&text.to_ascii_uppercase());
    direction
        .map(Into::into)
        .ok_or_else(|| "expected ingress or egress".to_owned())
}

pub(super) fn ip_version(text: &str) -> Result<i32, String> {
    match text {
        "v4" | "4" => Ok(IpVersion::IPv4.into()),
        "v6" | "6" => Ok(IpVersion::IPv6.into()),
        _ => Err("expected v4 or v6".to_owned()),
    }
}

pub(super) fn tcp_flags(text: &str) -> Result<TcpFlags, String> {
    let mut flags = TcpFlags::default();
    for name in text.split(',') {
        let flag = match name.trim().to_ascii_lowercase().as_str() {
            "fin" => &mut flags.fin,
            "syn" => &mut flags.syn,
            "rst" => &mut flags.rst,
            "psh" => &mut flags.psh,
            "ack" => &mut flags.ack,
            "urg" => &mut flags.urg,
            "ece" => &mut flags.ece,
            "cwr" => &mut flags.cwr,
            "ns" => &mut flags.ns,
            _ => return Err("expected flags of TCP, as syn,ack".to_owned()),
        };
        *flag = true;
    }
    Ok(flags)
}

/// A time: how long ago, or a date with or without time and zone.
pub(crate) fn time(text: &str) -> Result<Timestamp, String> {
    if text == "now" {
        return Ok(Timestamp::now());
    }
    if let Ok(ago) = humantime::parse_duration(text) {
        return before(ago);
    }
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    let local = text
        .parse::<civil::DateTime>()
        .or_else(|_| text.parse::<civil::Date>().map(civil::DateTime::from));
    let local = local.map_err(|_| {
        "expected how long ago, as 5m, or a time, as 2026-01-31T12:00:00Z or 2026-01-31T12:00".to_owned()
    })?;
    let zoned = local.to_zoned(TimeZone::system());
    zoned
        .map(|zoned| zoned.timestamp())
        .map_err(|error| error.to_string())
}

fn before(ago: Duration) -> Result<Timestamp, String> {
    Timestamp::now()
        .checked_sub(ago)
        .map_err(|_| "that was before all time".to_owned())
}
