//! `weir status`.

use std::io::{self, Write as _};

use clap::{Args, ValueEnum};
use comfy_table::{Table, presets};
use jiff::Timestamp;
use weir_types::{
    TrafficDirection,
    api::{Request, Response, Status as State},
};

use weir::style::{BAD, BOLD, GOOD, WARN, clean, clean_json, duration, paint};

use crate::cluster::Agents;

/// Shows the agent's state: pods, programs, certificates, tunnels, errors.
///
/// Of a cluster, one block a node.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  weir status\n  weir status --node worker-1\n  weir status -o json | jq .certificates"
)]
pub(crate) struct Status {
    /// How to print.
    #[arg(long, visible_alias = "format", short, value_enum, default_value = "text")]
    output: Output,
}

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// Tables, for people.
    Text,
    /// JSON.
    Json,
}

impl Status {
    /// Shows one block an agent.
    pub(crate) async fn run(self, agents: Agents) -> anyhow::Result<()> {
        let mut first = true;
        agents
            .ask_all(&Request::Status, |response| {
                if let Response::Status(state) = response {
                    let mut out = anstream::stdout();
                    match self.output {
                        Output::Json => {
                            writeln!(out, "{}", clean_json(&serde_json::to_string_pretty(&state)?))?;
                        }
                        Output::Text => {
                            if !first {
                                writeln!(out, "\n")?;
                            }
                            print(&mut out, &state)?;
                        }
                    }
                    first = false;
                }
                Ok(())
            })
            .await
    }
}

fn print(out: &mut impl io::Write, state: &State) -> io::Result<()> {
    let ready = if state.ready {
        paint(GOOD, "ready")
    } else {
        paint(BAD, "not ready")
    };
    writeln!(
        out,
        "{} {}  weir {}, trust domain {}",
        paint(BOLD, clean(&state.node)),
        ready,
        clean(&state.version),
        clean(&state.trust_domain)
    )?;
    let config = &state.config;
    writeln!(
        out,
        "configuration {} (generation {}), applied {}",
        clean(&config.file),
        config.generation,
        ago(config.applied)
    )?;
    if let Some(control) = &state.control_plane {
        let connected = if control.connected {
            paint(GOOD, "connected")
        } else {
            paint(BAD, "not connected")
        };
        let updated = control.updated.map_or_else(|| "never".to_owned(), ago);
        writeln!(
            out,
            "control plane {} {connected} for {}; {} workloads, {} services, {} policies, last change {updated}",
            clean(&control.address),
            age(control.since),
            control.workloads,
            control.services,
            control.policies,
        )?;
    }
    writeln!(
        out,
        "flows {} recorded, {}; {} connections in the kernel's table; up {}",
        state.flows_recorded,
        if state.flows_lost == 0 {
            "none lost".to_owned()
        } else {
            paint(WARN, format_args!("{} lost", state.flows_lost))
        },
        state.kernel_connections,
        age(state.started),
    )?;
    if let Some(own) = &state.flows_certificate {
        let end = own.not_after.map_or_else(
            || paint(BAD, "no certificate yet, so nobody can connect"),
            |end| format!("certificate ends {}", until(end)),
        );
        writeln!(out, "port for flows {}: {end}", clean(&own.name))?;
    }
    section(
        out,
        "Pods",
        &[
            "POD",
            "IDENTITY",
            "ADDRESSES",
            "MODE",
            "POLICIES",
            "ENROLLED",
            "CONNECTIONS",
            "SAME NODE",
        ],
        state.pods.iter().map(|pod| {
            vec![
                format!("{}/{}", pod.namespace, pod.name),
                pod.identity.to_string(),
                pod.addresses
                    .iter()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>()
                    .join(" "),
                pod.mode.clone(),
                pod.policies.to_string(),
                if pod.enrolled {
                    "yes".to_owned()
                } else {
                    "NO".to_owned()
                },
                pod.connections.to_string(),
                pod.same_node.clone().unwrap_or_default(),
            ]
        }),
    )?;
    section(
        out,
        "Programs",
        &["PROGRAM", "ATTACHED TO", "LINK", "ID"],
        state.programs.iter().map(|program| {
            vec![
                program.name.clone(),
                program.attached_to.clone(),
                program.link_id.to_string(),
                program.program_id.to_string(),
            ]
        }),
    )?;
    section(
        out,
        "Certificates",
        &["IDENTITY", "SERIAL", "EXPIRES", "RENEWAL"],
        state.certificates.iter().map(|certificate| {
            vec![
                certificate.identity.to_string(),
                certificate.serial.clone(),
                until(certificate.not_after),
                certificate
                    .problem
                    .clone()
                    .unwrap_or_else(|| until(certificate.renew_at)),
            ]
        }),
    )?;
    section(
        out,
        "Trusted roots",
        &["SUBJECT", "SHA-256", "EXPIRES"],
        state.roots.iter().map(|root| {
            let fingerprint: String = root.fingerprint.chars().take(16).collect();
            vec![
                root.subject.clone(),
                format!("{fingerprint}..."),
                until(root.not_after),
            ]
        }),
    )?;
    section(
        out,
        "Tunnels",
        &["POD", "", "PEER", "ADDRESS", "STREAMS", "AGE"],
        state.tunnels.iter().map(|tunnel| {
            let arrow = match tunnel.direction {
                TrafficDirection::Egress => "->",
                TrafficDirection::Ingress => "<-",
            };
            vec![
                tunnel.pod.clone(),
                arrow.to_owned(),
                tunnel.peer.to_string(),
                tunnel.address.to_string(),
                tunnel.streams.to_string(),
                age(tunnel.since),
            ]
        }),
    )?;
    section(
        out,
        "Refused and failed",
        &["REASON", "COUNT", ""],
        state.refusals.iter().map(|(reason, count)| {
            vec![
                reason.to_string(),
                count.to_string(),
                reason.explanation().to_owned(),
            ]
        }),
    )?;
    if !state.warnings.is_empty() {
        writeln!(out, "\n{}", paint(WARN, "Warnings"))?;
    }
    for warning in &state.warnings {
        writeln!(out, "  {}", clean(warning))?;
    }
    if state.errors.is_empty() {
        return writeln!(out, "\n{}", paint(GOOD, "No errors."));
    }
    writeln!(out, "\n{}", paint(BAD, "Errors"))?;
    state
        .errors
        .iter()
        .try_for_each(|error| writeln!(out, "  {}", clean(error)))
}

fn section(
    out: &mut impl io::Write,
    title: &str,
    header: &[&str],
    rows: impl Iterator<Item = Vec<String>>,
) -> io::Result<()> {
    let mut table = table(header);
    table.add_rows(rows.map(cells));
    if table.is_empty() {
        return Ok(());
    }
    writeln!(out, "\n{}\n{}", paint(BOLD, title), table.trim_fmt())
}

/// The cells of a row, whose text others wrote.
pub(crate) fn cells(row: impl IntoIterator<Item = String>) -> Vec<String> {
    row.into_iter().map(|cell| clean(&cell).into_owned()).collect()
}

/// A table without lines.
pub(crate) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_header(header.iter().copied());
    table
}

fn age(since: Timestamp) -> String {
    let us = Timestamp::now().as_microsecond() - since.as_microsecond();
    duration(u64::try_from(us).unwrap_or(0))
}

fn ago(since: Timestamp) -> String {
    format!("{} ago", age(since))
}

fn until(time: Timestamp) -> String {
    let seconds = time.as_second() - Timestamp::now().as_second();
    match seconds {
        ..=0 => "PAST".to_owned(),
        1..120 => format!("in {seconds}s"),
        120..7200 => format!("in {}m", seconds / 60),
        7200..172_800 => format!("in {}h", seconds / 3600),
        _ => format!("in {}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_the_agent_says_reaches_the_terminal_raw() {
        let evil = "\u{1b}]0;pwned\u{7}\r\u{9b}2J";
        let time = "2026-01-01T00:00:00Z";
        let state = serde_json::from_value(serde_json::json!({
            "node": evil, "version": evil, "trustDomain": evil, "started": time, "ready": true,
            "config": {"file": evil, "generation": 1, "applied": time},
            "pods": [], "certificates": [], "tunnels": [], "refusals": [],
            "programs": [{"name": evil, "attachedTo": evil, "linkId": 1, "programId": 1}],
            "roots": [{"subject": evil, "fingerprint": "00", "notAfter": time}],
            "flowsRecorded": 1, "flowsLost": 0, "kernelConnections": 1, "warnings": [evil], "errors": [evil],
        }))
        .unwrap();
        let mut out = Vec::new();
        print(&mut out, &state).unwrap();
        let text = String::from_utf8(out).unwrap();
        let ours = ["\u{1b}[0m", "\u{1b}[1m", "\u{1b}[31m", "\u{1b}[32m", "\u{1b}[33m"];
        let rest = ours.iter().fold(text, |text, ours| text.replace(ours, ""));
        assert!(!rest.contains(|c: char| c != '\n' && c.is_control()), "{rest:?}");
        assert_eq!(rest.matches("pwned").count(), 9, "{rest:?}");
    }
}
