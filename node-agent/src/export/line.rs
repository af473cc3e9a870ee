//! A connection in one line, for people and log collectors.

use std::fmt::Write as _;

use weir_types::{Flow, FlowEvent, FlowPeer, Reason};

use super::names;

/// `name=value`, with quotes where a value needs them.
pub(super) fn text(flow: &Flow) -> String {
    let mut line = String::with_capacity(256);
    let mut put = |name: &str, value: &str| {
        if value.is_empty() {
            return;
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(name);
        line.push('=');
        quote(&mut line, value);
    };
    put("time", &flow.time.to_string());
    put("node", &flow.node);
    put("event", names::event(flow.event));
    put("verdict", names::verdict(flow.verdict));
    if flow.reason != Reason::None {
        put("reason", flow.reason.as_str());
    }
    put("direction", names::direction(flow.direction));
    put("path", names::path(flow.path));
    for (end, peer) in [("src", &flow.source), ("dst", &flow.destination)] {
        put(end, &name(peer));
        put(&format!("{end}_addr"), &peer.address.to_string());
        let identity = peer.identity.as_ref().map(ToString::to_string);
        put(&format!("{end}_id"), &identity.unwrap_or_default());
    }
    put("service", flow.service.as_deref().unwrap_or_default());
    let policy = flow.policy.as_ref().map(ToString::to_string);
    put("policy", &policy.unwrap_or_default());
    put("tls", flow.tls.as_deref().unwrap_or_default());
    if flow.event == FlowEvent::Close {
        put("sent", &flow.bytes_sent.to_string());
        put("received", &flow.bytes_received.to_string());
        put("duration_us", &flow.duration_us.to_string());
        let rtt = flow.rtt_us.map(|rtt| rtt.to_string());
        put("rtt_us", &rtt.unwrap_or_default());
    }
    if let Some(process) = &flow.process {
        put("process", &process.name);
        put("pid", &process.pid.to_string());
    }
    let trace = flow.trace.map(|own| own.trace_id.to_string());
    put("trace", &trace.unwrap_or_default());
    put("detail", flow.detail.as_deref().unwrap_or_default());
    line
}

fn name(peer: &FlowPeer) -> String {
    match (&peer.namespace, &peer.pod) {
        (Some(namespace), Some(pod)) => format!("{namespace}/{pod}"),
        (Some(namespace), None) => format!("{namespace}/"),
        _ => String::new(),
    }
}

/// What somebody else wrote stays one value of one line, and does nothing in a terminal.
fn quote(line: &mut String, value: &str) {
    let plain = |char: char| char.is_ascii_alphanumeric() || "-._:/[]+".contains(char);
    if value.chars().all(plain) {
        line.push_str(value);
        return;
    }
    line.push('"');
    for char in value.chars() {
        match char {
            '"' | '\\' => {
                line.push('\\');
                line.push(char);
            }
            // Whatever is not ASCII may turn the direction of writing round.
            ' '..='~' => line.push(char),
            // Writing to a String does not fail.
            other => {
                let _ = write!(line, "{}", other.escape_unicode());
            }
        }
    }
    line.push('"');
}
