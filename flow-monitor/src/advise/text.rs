//! Advice for people.

use std::fmt::Write as _;

use jiff::Timestamp;
use weir::style::{BAD, BOLD, DIM, GOOD, WARN, bytes, clean, paint};

use super::report::{
    Advice, AdvisedRule, Attempt, Basis, Cost, LayerAnswer, Layers, NodeCost, Policy, Strict, StrictAnswer,
};
use crate::status::{cells, table};

/// Lines of one kind that are shown; `-o json` has all.
const MOST: usize = 20;

/// What it says, to be read from the top.
pub(super) fn text(advice: &Advice) -> String {
    let mut out = Lines(String::new());
    if advice.strict.is_some() || advice.layers.is_some() || advice.policy.is_some() {
        let mut made = made_from(&advice.basis).into_iter();
        made.by_ref().take(1).for_each(|line| out.line(0, &line));
        made.for_each(|line| out.painted(0, WARN, &line));
    }
    if let Some(strict) = &advice.strict {
        self::strict(&mut out, strict, &advice.basis);
    }
    if let Some(layers) = &advice.layers {
        self::layers(&mut out, layers);
    }
    if let Some(policy) = &advice.policy {
        self::policy(&mut out, policy);
    }
    if let Some(cost) = &advice.cost {
        self::cost(&mut out, cost);
    }
    out.0
}

/// Lines of text that others wrote parts of.
struct Lines(String);

impl Lines {
    fn line(&mut self, depth: usize, text: &str) {
        // Writing to a String does not fail.
        let _ = writeln!(self.0, "{:width$}{}", "", clean(text), width = 2 * depth);
    }

    fn painted(&mut self, depth: usize, style: anstyle::Style, text: &str) {
        let text = paint(style, clean(text));
        let _ = writeln!(self.0, "{:width$}{text}", "", width = 2 * depth);
    }

    fn title(&mut self, text: &str) {
        if !self.0.is_empty() {
            self.0.push('\n');
        }
        self.painted(0, BOLD, text);
    }

    fn notes(&mut self, depth: usize, notes: &[String]) {
        for note in notes {
            self.painted(depth, DIM, &format!("note: {note}"));
        }
    }

    /// As many as are to be read, and how many there are more.
    fn some<T>(&mut self, depth: usize, all: &[T], mut show: impl FnMut(&mut Self, &T)) {
        for one in all.iter().take(MOST) {
            show(self, one);
        }
        if all.len() > MOST {
            self.line(depth, &format!("and {} more: -o json has all", all.len() - MOST));
        }
    }
}

/// Of how many records, and what makes the advice weak: a line each.
pub(super) fn made_from(basis: &Basis) -> Vec<String> {
    let nodes = basis.nodes.len();
    let first = match (basis.from, basis.until) {
        (Some(from), Some(until)) => format!(
            "Made from {} of {} over {}: {} to {}.",
            count(basis.flows, "record"),
            count(nodes as u64, "node"),
            span(basis.seconds),
            time(from),
            time(until),
        ),
        _ => "Made from no records.".to_owned(),
    };
    let mut lines = vec![first];
    lines.extend(basis.weak.iter().map(|weak| format!("Weak: {weak}.")));
    if basis.others > 0 {
        lines.push(format!(
            "Not looked at: {} of other things than TCP connections.",
            count(basis.others, "record")
        ));
    }
    lines
}

fn strict(out: &mut Lines, strict: &[Strict], basis: &Basis) {
    out.title("Strict: which namespaces could refuse plaintext");
    if strict.is_empty() {
        out.line(1, "No namespace was seen.");
    }
    for one in strict {
        let seen = format!("{} with identity, {} in plaintext", one.verified, one.plaintext);
        let (style, what) = match one.answer {
            StrictAnswer::IsStrict => (GOOD, "is STRICT already".to_owned()),
            StrictAnswer::CouldGoStrict => (
                GOOD,
                format!(
                    "could go strict: {seen}, in the {} that were seen",
                    span(basis.seconds)
                ),
            ),
            StrictAnswer::ClientsWouldBreak => (BAD, format!("clients would break: {seen}")),
            StrictAnswer::NothingSeen => (
                WARN,
                "nobody connected to it: nothing speaks for it or against it".to_owned(),
            ),
            StrictAnswer::NotInMesh => (DIM, "is not in the mesh".to_owned()),
        };
        let name = clean(&one.namespace);
        let _ = writeln!(out.0, "  {} {}", paint(BOLD, name), paint(style, what));
        for workload in &one.workloads {
            if workload.clients.is_empty() {
                continue;
            }
            out.some(2, &workload.clients, |out, client| {
                let last = client.last.map_or_else(|| "never".to_owned(), time);
                let refused = match client.refused {
                    0 => String::new(),
                    refused => format!(", {refused} refused already"),
                };
                out.line(
                    2,
                    &format!(
                        "{} -> {}:{}  {}{refused}, last {last}",
                        client.client,
                        workload.workload,
                        ports(&client.ports),
                        count(client.connections, "connection"),
                    ),
                );
            });
        }
        if one.probes > 0 {
            out.line(
                2,
                &format!(
                    "{} of the kubelet, which STRICT lets through",
                    count(one.probes, "probe")
                ),
            );
        }
        out.notes(2, &one.notes);
    }
}

fn layers(out: &mut Lines, layers: &Layers) {
    out.title("Layers: which workloads ask for a waypoint");
    let (asking, enough): (Vec<_>, Vec<_>) = layers
        .workloads
        .iter()
        .partition(|one| one.answer == LayerAnswer::AsksForWaypoint);
    out.some(1, &asking, |out, one| {
        out.painted(
            1,
            WARN,
            &format!(
                "{} asks for layer 7, by {}",
                one.workload,
                one.policies.join(", ")
            ),
        );
    });
    out.some(1, &layers.asks, |out, ask| {
        out.line(1, &format!("{}: {}: now {}", ask.policy, ask.field, ask.now));
    });
    out.some(1, &enough, |out, one| {
        out.line(
            1,
            &format!("{} layer 4 is enough (ports {})", one.workload, ports(&one.ports)),
        );
    });
    if layers.workloads.is_empty() {
        out.line(1, "No workload was seen.");
    }
    out.notes(1, &layers.notes);
}

fn policy(out: &mut Lines, policy: &Policy) {
    out.title("Policy: the least that allows what was seen");
    out.some(1, &policy.policies, |out, one| {
        let labels: Vec<String> = one
            .selector
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        let whom = if labels.is_empty() {
            "all pods of the namespace".to_owned()
        } else {
            labels.join(",")
        };
        let name = paint(BOLD, clean(&format!("{}/{}", one.namespace, one.name)));
        let rest = format!("for {whom}: {} of connections", percent(one.share));
        let _ = writeln!(out.0, "  {name} {}", clean(&rest));
        let rules: Vec<_> = one.rules.iter().enumerate().collect();
        out.some(2, &rules, |out, (index, rule)| {
            let from = rule.principals.iter().chain(&rule.ip_blocks).map(String::as_str);
            out.line(
                2,
                &format!(
                    "rule {index}: {} to {}: {}",
                    list(&from.collect::<Vec<_>>()),
                    ports(&rule.ports),
                    covers(rule)
                ),
            );
        });
        out.notes(2, &one.notes);
    });
    for (title, attempts) in [
        ("Would be denied:", &policy.would_deny),
        ("No policy can be written for:", &policy.not_covered),
    ] {
        if !attempts.is_empty() {
            out.line(1, title);
        }
        out.some(2, attempts, |out, one| out.line(2, &attempt(one)));
    }
    out.notes(1, &policy.notes);
    if !policy.policies.is_empty() {
        out.line(1, "'weir advise policy -o yaml' writes them.");
    }
}

fn cost(out: &mut Lines, cost: &Cost) {
    out.title("Cost: what the agents take");
    if !cost.nodes.is_empty() {
        let header = [
            "NODE",
            "UP",
            "CPU",
            "CORES",
            "MEMORY",
            "CARRIED",
            "CPU PER GB",
            "CONNECTIONS",
            "CPU PER CONNECTION",
        ];
        let mut table = table(&header);
        let several = cost.nodes.len() > 1;
        let total = cost.total.iter().filter(|_| several);
        for node in cost.nodes.iter().chain(total) {
            table.add_row(cells(row(node)));
        }
        for line in table.trim_fmt().lines() {
            let _ = writeln!(out.0, "  {line}");
        }
    }
    out.notes(1, &cost.notes);
}

fn row(node: &NodeCost) -> Vec<String> {
    let shared = |value: Option<f64>, unit: &str| {
        value.map_or_else(|| "-".to_owned(), |value| format!("{value}{unit}"))
    };
    vec![
        node.node.clone(),
        span(node.up_seconds as i64),
        format!("{}s", node.cpu_seconds),
        node.cores.to_string(),
        bytes(node.resident_bytes),
        bytes(node.bytes),
        shared(node.cpu_seconds_per_gigabyte, "s"),
        node.connections.to_string(),
        shared(node.cpu_ms_per_connection, "ms"),
    ]
}

/// How much a rule covers, of what, and when last.
pub(super) fn covers(rule: &AdvisedRule) -> String {
    let last = rule.last.map_or_else(|| "never".to_owned(), time);
    let pods = if rule.pods.is_empty() {
        String::new()
    } else {
        let pods: Vec<&str> = rule.pods.iter().map(String::as_str).collect();
        format!(", of {} without identity", list(&pods))
    };
    format!(
        "{}, {} of all, last {last}{pods}",
        count(rule.connections, "connection"),
        percent(rule.share)
    )
}

pub(super) fn attempt(attempt: &Attempt) -> String {
    let last = attempt.last.map_or_else(|| "never".to_owned(), time);
    format!(
        "{} to {}:{}: {}, last {last}: {}",
        attempt.client,
        attempt.workload,
        attempt.port,
        count(attempt.count, "time"),
        attempt.why
    )
}

pub(super) fn percent(share: f64) -> String {
    format!("{:.1}%", share * 100.0)
}

/// `2d03h`, `5h12m`, `3m20s`.
pub(super) fn span(seconds: i64) -> String {
    match seconds {
        ..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

fn time(time: Timestamp) -> String {
    format!("{time:.0}")
}

pub(super) fn count(count: u64, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {what}{plural}")
}

fn ports(ports: &[u16]) -> String {
    let ports: Vec<String> = ports.iter().map(ToString::to_string).collect();
    list(&ports.iter().map(String::as_str).collect::<Vec<_>>())
}

fn list(all: &[&str]) -> String {
    let shown = &all[..all.len().min(MOST)];
    let more = match all.len() - shown.len() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("{}{more}", shown.join(","))
}
