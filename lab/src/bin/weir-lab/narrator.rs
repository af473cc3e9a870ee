//! What a person reads while something runs. On standard error when standard output is for a program.

use std::io::Write as _;

use weir_types::{Flow, FlowEvent, FlowPath, FlowPeer, FlowVerdict};

/// Writes lines for a person.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Narrator {
    /// Standard output is for JSON alone.
    pub(crate) json: bool,
}

impl Narrator {
    pub(crate) fn say(self, line: impl AsRef<str>) {
        let line = line.as_ref();
        // A reader that has gone is no reason to stop before the cleanup.
        let _ = if self.json {
            writeln!(std::io::stderr(), "{line}")
        } else {
            writeln!(std::io::stdout(), "{line}")
        };
    }

    pub(crate) fn flow(self, flow: &Flow) {
        self.say(line(flow));
    }
}

/// A flow in one line.
fn line(flow: &Flow) -> String {
    let what = match (flow.event, flow.verdict) {
        (FlowEvent::Open, _) => "open",
        (FlowEvent::Close, _) => "close",
        (FlowEvent::Refused, FlowVerdict::Denied) => "DENIED",
        (FlowEvent::Refused, _) => "FAILED",
    };
    let path = match flow.path {
        FlowPath::Tunnel => "mTLS",
        FlowPath::Plaintext => "plaintext",
        FlowPath::Kernel => "kernel",
        FlowPath::Nowhere => "-",
    };
    let mut line = format!(
        "{} {what:<6} {path:<9} {} -> {}",
        flow.node,
        peer(&flow.source),
        peer(&flow.destination)
    );
    if let Some(service) = &flow.service {
        line += &format!(" for {service}");
    }
    match flow.event {
        FlowEvent::Open => {}
        FlowEvent::Close => {
            line += &format!(
                ", {} sent, {} received",
                bytes(flow.bytes_sent),
                bytes(flow.bytes_received)
            );
            line += &format!(", {:.1} ms", flow.duration_us as f64 / 1000.0);
        }
        FlowEvent::Refused => {
            line += &format!(", {:?} {}", flow.reason, flow.detail.as_deref().unwrap_or(""));
        }
    }
    line
}

fn peer(peer: &FlowPeer) -> String {
    let identity = peer.identity.as_ref().map(ToString::to_string);
    match identity
        .as_deref()
        .and_then(|identity| identity.strip_prefix("spiffe://"))
    {
        Some(identity) => format!("{} [{identity}]", peer.address),
        None => peer.address.to_string(),
    }
}

/// A number of bytes in the unit that suits it.
pub(crate) fn bytes(count: u64) -> String {
    match count {
        0..10_000 => format!("{count} B"),
        10_000..10_000_000 => format!("{:.1} kB", count as f64 / 1e3),
        _ => format!("{:.1} MB", count as f64 / 1e6),
    }
}
