//! A flow in one line, for a person.

use std::fmt::Write as _;

use jiff::tz::TimeZone;
use weir_types::{Flow, FlowEvent, FlowPath, FlowPeer, FlowVerdict, Reason, TrafficDirection};

use crate::style::{BAD, BOLD, DIM, GOOD, WARN, bytes, clean, duration, paint};

/// When, what, who to whom, how, and what it carried or why it was refused. With colours: write it through `anstream`.
#[must_use]
pub fn compact(flow: &Flow) -> String {
    let time = flow.time.to_zoned(TimeZone::system()).strftime("%H:%M:%S%.3f");
    let mark = match flow.event {
        FlowEvent::Open => paint(GOOD, "OPEN   "),
        FlowEvent::Close if flow.reason == Reason::None => paint(DIM, "CLOSE  "),
        FlowEvent::Close => paint(WARN, "CLOSE  "),
        FlowEvent::Refused if flow.verdict == FlowVerdict::Denied => paint(BAD, "DENIED "),
        FlowEvent::Refused => paint(BAD, "FAILED "),
    };
    let arrow = match flow.direction {
        TrafficDirection::Egress => "->",
        TrafficDirection::Ingress => "=>",
    };
    let mut line = format!(
        "{time} {mark} {} {arrow} {}",
        end(&flow.source),
        end(&flow.destination)
    );
    // Writing to a String does not fail.
    if let Some(service) = &flow.service {
        let _ = write!(line, " via {}", clean(service));
        if let Some(asked) = flow.original_destination {
            let _ = write!(line, ":{}", asked.port());
        }
    }
    let path = match flow.path {
        FlowPath::Tunnel => paint(GOOD, "mTLS"),
        FlowPath::Plaintext => paint(WARN, "plaintext"),
        FlowPath::Direct => paint(GOOD, "direct"),
        FlowPath::Kernel => paint(WARN, "plaintext (not through the agent)"),
        FlowPath::Nowhere => String::new(),
    };
    if !path.is_empty() && flow.event != FlowEvent::Refused {
        let _ = write!(line, "  {path}");
    }
    if flow.event == FlowEvent::Close {
        let _ = write!(
            line,
            "  {} out, {} in, {}",
            bytes(flow.bytes_sent),
            bytes(flow.bytes_received),
            duration(flow.duration_us)
        );
        if let Some(rtt) = flow.rtt_us {
            let _ = write!(line, ", rtt {}", duration(rtt.into()));
        }
        if let Some(count) = flow.retransmits.filter(|count| *count > 0) {
            let _ = write!(line, ", {}", paint(WARN, format_args!("{count} retransmits")));
        }
    }
    if flow.reason != Reason::None {
        let _ = write!(
            line,
            "  {}: {}",
            paint(BAD, flow.reason),
            flow.reason.explanation()
        );
        if let Some(policy) = &flow.policy {
            let _ = write!(line, " By {}.", paint(BOLD, clean(&policy.to_string())));
        }
        if let Some(detail) = &flow.detail {
            let _ = write!(line, " ({})", clean(detail));
        }
    }
    if let Some(policy) = &flow.dry_run {
        let _ = write!(
            line,
            "  {} by {}",
            paint(WARN, "would be denied"),
            clean(&policy.to_string())
        );
    }
    if let Some(process) = &flow.process {
        let _ = write!(
            line,
            "  {}",
            paint(DIM, format_args!("{}[{}]", clean(&process.name), process.pid))
        );
    }
    line
}

/// `namespace/pod:port`, or the address where no workload is known. Without colours.
#[must_use]
pub fn end_plain(peer: &FlowPeer) -> String {
    match (&peer.namespace, &peer.pod) {
        (Some(namespace), Some(pod)) => {
            format!("{}/{}:{}", clean(namespace), clean(pod), peer.address.port())
        }
        _ => peer.address.to_string(),
    }
}

/// How the bytes travel, in a word.
#[must_use]
pub fn path_name(path: FlowPath) -> &'static str {
    match path {
        FlowPath::Tunnel => "mTLS",
        FlowPath::Plaintext | FlowPath::Kernel => "plaintext",
        FlowPath::Direct => "direct",
        FlowPath::Nowhere => "",
    }
}

/// `namespace/pod:port` and the identity without its trust domain, or the address where no workload is known.
fn end(peer: &FlowPeer) -> String {
    let name = end_plain(peer);
    let who = match &peer.identity {
        Some(identity) => format!(
            "(ns/{}/sa/{})",
            clean(identity.namespace()),
            clean(identity.service_account())
        ),
        None => "(no identity)".to_owned(),
    };
    format!("{} {}", paint(BOLD, name), paint(DIM, who))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow() -> Flow {
        serde_json::from_value(serde_json::json!({
            "sequence": 1, "time": "2026-01-01T00:00:00Z", "node": "n", "connection": 1, "event": "close",
            "verdict": "forwarded", "reason": "none", "direction": "egress", "path": "tunnel",
            "source": {"address": "10.0.0.1:4000", "identity": "spiffe://cluster.local/ns/shop/sa/web", "namespace": "shop", "pod": "web-0"},
            "destination": {"address": "10.0.1.1:80"},
            "service": "shop/api", "originalDestination": "10.96.0.1:8080",
            "bytesSent": 58, "bytesReceived": 2048, "durationUs": 6906, "rttUs": 292, "retransmits": 0,
            "process": {"pid": 7, "name": "curl"},
        }))
        .unwrap()
    }

    fn plain(flow: &Flow) -> String {
        anstream::adapter::strip_str(&compact(flow)).to_string()
    }

    #[test]
    fn a_line_says_who_talked_to_whom_how_and_how_much() {
        let line = plain(&flow());
        let wanted = "CLOSE   shop/web-0:4000 (ns/shop/sa/web) -> 10.0.1.1:80 (no identity) via shop/api:8080  mTLS  \
                      58 B out, 2.0 KiB in, 6.9ms, rtt 292us  curl[7]";
        assert!(line.ends_with(wanted), "{line}");
    }

    #[test]
    fn nothing_that_a_pod_named_itself_reaches_the_terminal_raw() {
        let evil = || Some("\u{1b}]0;pwned\u{7}\r\n\u{9b}2J".to_owned());
        let mut flow = Flow {
            reason: Reason::PolicyDenied,
            service: evil(),
            detail: evil(),
            ..flow()
        };
        flow.source.namespace = evil();
        flow.source.pod = evil();
        flow.process.as_mut().unwrap().name = "\u{1b}[2J".to_owned();
        // Without our own colours, as a terminal shows it.
        let raw = compact(&flow);
        let ours = [
            "\u{1b}[0m",
            "\u{1b}[1m",
            "\u{1b}[2m",
            "\u{1b}[31m",
            "\u{1b}[32m",
            "\u{1b}[33m",
        ];
        let rest = ours.iter().fold(raw, |line, ours| line.replace(ours, ""));
        assert!(!rest.contains(char::is_control), "{rest:?}");
        assert!(rest.contains(r"\u{1b}[2J[7]"), "{rest:?}");
    }

    #[test]
    fn a_refusal_says_why() {
        let refused = Flow {
            event: FlowEvent::Refused,
            verdict: FlowVerdict::Denied,
            reason: Reason::PlaintextToStrict,
            ..flow()
        };
        let line = plain(&refused);
        assert!(
            line.contains(" DENIED ") && line.contains("plaintext_to_strict: The workload accepts"),
            "{line}"
        );
    }
}
