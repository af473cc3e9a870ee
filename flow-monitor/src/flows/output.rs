//! The forms in which flows are printed.

use std::io::Write as _;

use jiff::tz::TimeZone;
use weir::{
    line::{compact, end_plain, path_name},
    style::{BOLD, DIM, WARN, bytes, clean, clean_json, duration, paint},
};
use weir_types::{Flow, FlowEvent, FlowVerdict, Reason};

use super::Output;
use crate::merge::Item;

/// The columns of a table: what stands at the head, and how wide.
const COLUMNS: [(&str, usize); 6] = [
    ("TIME", 15),
    ("SOURCE", 36),
    ("DESTINATION", 36),
    ("EVENT", 8),
    ("PATH", 10),
    ("SUMMARY", 0),
];

/// Prints flows in one form.
pub(crate) struct Printer {
    output: Output,
    /// If each line says its node: how wide.
    width: Option<usize>,
    out: anstream::AutoStream<std::io::Stdout>,
    begun: bool,
}

// === impl Printer ===

impl Printer {
    pub(crate) fn new(output: Output, width: Option<usize>) -> Self {
        Self {
            output,
            width,
            out: anstream::stdout(),
            begun: false,
        }
    }

    /// Prints one.
    ///
    /// # Errors
    /// When nobody reads the output.
    pub(crate) fn show(&mut self, item: &Item) -> anyhow::Result<()> {
        let begun = std::mem::replace(&mut self.begun, true);
        match item {
            Item::Flow(seen) => match self.output {
                Output::Compact => {
                    self.node(&seen.flow)?;
                    writeln!(self.out, "{}", compact(&seen.flow))?;
                }
                Output::Table => {
                    if !begun {
                        self.head()?;
                    }
                    self.node(&seen.flow)?;
                    self.row(&cells(&seen.flow))?;
                }
                Output::Json => {
                    let json = serde_json::to_string(&seen.flow)?;
                    writeln!(self.out, "{}", clean_json(&json))?;
                }
                Output::Jsonpb => {
                    let json = weir_hubble::json::to_line(&seen.response)?;
                    writeln!(self.out, "{}", clean_json(&json))?;
                }
                Output::Dict => {
                    if begun {
                        writeln!(self.out, "------------")?;
                    }
                    for (name, value) in fields(&seen.flow) {
                        writeln!(self.out, "{} {value}", paint(BOLD, format_args!("{name:>13}:")))?;
                    }
                }
            },
            Item::Lost(node, count) => {
                let node = node_of(node);
                let text = format!("{count} flow events{node} were lost here");
                match self.output {
                    Output::Compact | Output::Table => {
                        writeln!(self.out, "{}", paint(WARN, format_args!("-- {text} --")))?;
                    }
                    // On the error stream, so that each line of the output stays a flow.
                    Output::Json | Output::Jsonpb | Output::Dict => anstream::eprintln!("weir: {text}"),
                }
            }
            Item::Status(text) => super::say(text),
        }
        self.out.flush()?;
        Ok(())
    }

    fn node(&mut self, flow: &Flow) -> std::io::Result<()> {
        let Some(width) = self.width else { return Ok(()) };
        write!(
            self.out,
            "{} ",
            paint(DIM, format_args!("{:<width$}", clean(&flow.node)))
        )
    }

    fn head(&mut self) -> std::io::Result<()> {
        if let Some(width) = self.width {
            write!(self.out, "{} ", paint(BOLD, format_args!("{:<width$}", "NODE")))?;
        }
        let names = COLUMNS.map(|(name, _)| name.to_owned());
        self.row(&names)
    }

    fn row(&mut self, cells: &[String; 6]) -> std::io::Result<()> {
        let mut line = String::new();
        for (cell, (_, width)) in cells.iter().zip(COLUMNS) {
            line.push_str(&format!("{cell:<width$}  "));
        }
        writeln!(self.out, "{}", line.trim_end())
    }
}

fn node_of(node: &str) -> String {
    if node.is_empty() {
        String::new()
    } else {
        format!(" of {}", clean(node))
    }
}

fn event(flow: &Flow) -> &'static str {
    match (flow.event, flow.verdict) {
        (FlowEvent::Open, _) => "OPEN",
        (FlowEvent::Close, _) => "CLOSE",
        (FlowEvent::Refused, FlowVerdict::Denied) => "DENIED",
        (FlowEvent::Refused, _) => "FAILED",
    }
}

fn cells(flow: &Flow) -> [String; 6] {
    let time = flow.time.to_zoned(TimeZone::system()).strftime("%H:%M:%S%.3f");
    let service = flow
        .service
        .as_ref()
        .map(|service| format!("via {}", clean(service)));
    let carried = (flow.event == FlowEvent::Close).then(|| {
        format!(
            "{} out, {} in, {}",
            bytes(flow.bytes_sent),
            bytes(flow.bytes_received),
            duration(flow.duration_us)
        )
    });
    let why = (flow.reason != Reason::None).then(|| {
        let by = flow
            .policy
            .as_ref()
            .map(|policy| format!(" by {}", clean(&policy.to_string())));
        format!("{}{}", flow.reason.as_str(), by.unwrap_or_default())
    });
    let parts: Vec<String> = [service, carried, why].into_iter().flatten().collect();
    [
        time.to_string(),
        end_plain(&flow.source),
        end_plain(&flow.destination),
        event(flow).to_owned(),
        path_name(flow.path).to_owned(),
        parts.join(", "),
    ]
}

/// All that is known, by name.
fn fields(flow: &Flow) -> Vec<(&'static str, String)> {
    let identity = |peer: &weir_types::FlowPeer| {
        peer.identity
            .as_ref()
            .map(|own| clean(&own.to_string()).into_owned())
    };
    let text = |text: &Option<String>| text.as_deref().map(|text| clean(text).into_owned());
    let rows = [
        (
            "TIMESTAMP",
            Some(
                flow.time
                    .to_zoned(TimeZone::system())
                    .strftime("%Y-%m-%dT%H:%M:%S%.6f%:z")
                    .to_string(),
            ),
        ),
        ("NODE", Some(clean(&flow.node).into_owned())),
        ("SOURCE", Some(end_plain(&flow.source))),
        ("FROM IDENTITY", identity(&flow.source)),
        ("DESTINATION", Some(end_plain(&flow.destination))),
        ("TO IDENTITY", identity(&flow.destination)),
        ("SERVICE", text(&flow.service)),
        (
            "ASKED FOR",
            flow.original_destination.map(|asked| asked.to_string()),
        ),
        ("TYPE", Some(event(flow).to_owned())),
        (
            "VERDICT",
            Some(
                match flow.verdict {
                    FlowVerdict::Forwarded => "FORWARDED",
                    FlowVerdict::Denied => "DROPPED",
                    FlowVerdict::Failed => "ERROR",
                }
                .to_owned(),
            ),
        ),
        (
            "REASON",
            (flow.reason != Reason::None)
                .then(|| format!("{}: {}", flow.reason.as_str(), flow.reason.explanation())),
        ),
        ("DETAIL", text(&flow.detail)),
        (
            "POLICY",
            flow.policy
                .as_ref()
                .map(|own| clean(&own.to_string()).into_owned()),
        ),
        (
            "WOULD DENY",
            flow.dry_run
                .as_ref()
                .map(|own| clean(&own.to_string()).into_owned()),
        ),
        ("PATH", Some(path_name(flow.path).to_owned())),
        ("TLS", text(&flow.tls)),
        ("SENT", Some(bytes(flow.bytes_sent))),
        ("RECEIVED", Some(bytes(flow.bytes_received))),
        ("DURATION", Some(duration(flow.duration_us))),
        ("RTT", flow.rtt_us.map(|rtt| duration(rtt.into()))),
        ("RETRANSMITS", flow.retransmits.map(|count| count.to_string())),
        (
            "PROCESS",
            flow.process
                .as_ref()
                .map(|own| format!("{}[{}]", clean(&own.name), own.pid)),
        ),
        ("TRACE", flow.trace.map(|own| own.trace_id.to_string())),
    ];
    rows.into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
        .filter(|(_, value)| !value.is_empty())
        .collect()
}
