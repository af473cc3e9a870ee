//! A report for a person.

use std::{collections::BTreeMap, fmt::Write as _};

use jiff::Timestamp;
use weir::style::{bytes, clean};

use super::{connections::Way, report::Report};

/// Names in a cell before the rest is only counted.
const NAMED: usize = 8;

/// The whole report. `sum` is that of its JSON.
pub(super) fn markdown(report: &Report, sum: &str) -> String {
    let mut out = String::new();
    // Writing to a String does not fail.
    let mut line = |text: String| {
        let _ = writeln!(out, "{text}");
    };
    line(format!("# Encryption and access in {}", text(&report.cluster)));
    line(String::new());
    if !report.complete {
        line("**This evidence is incomplete.** Not asked or read:".to_owned());
        line(String::new());
        for missing in &report.missing {
            line(format!("- {}: {}", text(&missing.what), text(&missing.why)));
        }
        line(String::new());
    }
    let shorter: Vec<String> = report
        .records
        .iter()
        .filter(|one| !one.whole)
        .map(|one| one.node.clone())
        .collect();
    if !shorter.is_empty() {
        line(format!(
            "**Not all of the time is covered** on {}: see [Records](#records).",
            names(&shorter)
        ));
        line(String::new());
    }
    line(format!("- Written: {}", time(report.time)));
    line(format!("- Connections since: {}", time(report.since)));
    if !report.namespaces.is_empty() {
        line(format!("- Namespaces: {} alone", names(&report.namespaces)));
    }
    line(format!("- SHA-256 of the same as JSON: `{sum}`"));
    let totals = &report.totals;
    line(String::new());
    line(table(
        &["Connections", "Count"],
        [
            ("mutual TLS", totals.mutual_tls),
            (
                "same node, authenticated by its kernel, in the clear",
                totals.same_node,
            ),
            ("plaintext", totals.plaintext),
            (
                "plaintext of pods that are only observed",
                totals.plaintext_observed,
            ),
            ("denied", totals.denied),
            ("failed for another cause", totals.failed),
        ]
        .map(|(what, count)| vec![what.to_owned(), count.to_string()]),
    ));
    line("## Versions\n".to_owned());
    let versions = &report.versions;
    line(format!("- Kubernetes {}", text(&versions.api_server)));
    line(match &versions.weir_control {
        Some(image) => format!(
            "- weir-control `{}`, {} ready",
            text(image),
            versions.weir_control_ready
        ),
        None => "- weir-control: not found".to_owned(),
    });
    for (what, by_version) in [("weir-agent", &versions.agents), ("Linux", &versions.kernels)] {
        for (version, nodes) in by_version {
            line(format!("- {what} {}: {}", text(version), names(nodes)));
        }
    }
    line("\n## In the mesh\n".to_owned());
    let enrolment = report.enrolment.iter().map(|one| {
        vec![
            one.namespace.clone(),
            one.mesh.clone(),
            one.enrolled.len().to_string(),
            one.wanted.len().to_string(),
            one.observed.len().to_string(),
            one.disabled.len().to_string(),
            one.outside.to_string(),
        ]
    });
    let header = [
        "Namespace",
        "weir.dev/mesh",
        "Enrolled",
        "Wanted, and not",
        "Observed",
        "Disabled",
        "Outside",
    ];
    line(table(&header, enrolment));
    let wanted = report.enrolment.iter().flat_map(|one| {
        let pods = one.wanted.iter();
        pods.map(|(pod, why)| vec![format!("{}/{pod}", one.namespace), why.clone()])
    });
    section(
        &mut line,
        "Wanted in the mesh, and not in it",
        &["Pod", "Why"],
        wanted.collect(),
    );
    line(format!("{} identities:\n", report.identities.len()));
    for identity in &report.identities {
        line(format!("- `{}`", text(identity)));
    }
    line("\n## Exceptions\n".to_owned());
    exceptions(&mut line, report);
    line("## Connections\n".to_owned());
    line(connections(&report.connections));
    line("## Certificates\n".to_owned());
    let certificates = &report.certificates;
    line(format!(
        "{} of workloads; the first expires {}.\n",
        certificates.count,
        certificates
            .first_expiry
            .map_or_else(|| "never: there is none".to_owned(), time)
    ));
    for problem in &certificates.problems {
        line(format!("- not renewed: {}", text(problem)));
    }
    if !certificates.problems.is_empty() {
        line(String::new());
    }
    let roots = report.roots.iter().map(|root| {
        vec![
            root.subject.clone(),
            root.fingerprint.clone(),
            time(root.not_after),
            root.nodes.to_string(),
        ]
    });
    section(
        &mut line,
        "Roots that agents trust",
        &["Subject", "SHA-256", "Expires", "Nodes"],
        roots.collect(),
    );
    line("## Policies\n".to_owned());
    let policies = report.policies.iter().map(|policy| {
        vec![
            policy.kind.clone(),
            policy.name.clone(),
            policy.action.clone(),
            policy.accepted.clone(),
            policy
                .bound
                .map_or_else(|| "not said".to_owned(), |bound| bound.to_string()),
            if policy.dry_run { "yes" } else { "" }.to_owned(),
        ]
    });
    line(table(
        &["Kind", "Name", "Action or mode", "Accepted", "Pods", "Dry run"],
        policies,
    ));
    line("## Records\n".to_owned());
    line("Each agent keeps its newest records in memory: what is older is not in this report.\n".to_owned());
    let records = report.records.iter().map(|one| {
        vec![
            one.node.clone(),
            time(one.from),
            one.count.to_string(),
            one.lost.to_string(),
            if one.whole { "yes" } else { "**no**" }.to_owned(),
        ]
    });
    line(table(
        &["Node", "From", "Records", "Lost events", "Whole time"],
        records,
    ));
    out.truncate(out.trim_end().len());
    out.push('\n');
    out
}

fn exceptions(line: &mut impl FnMut(String), report: &Report) {
    let exceptions = &report.exceptions;
    if exceptions.plaintext.is_empty() {
        line("No plaintext of enrolled pods was recorded.\n".to_owned());
    } else {
        line("### Plaintext to or from enrolled pods\n".to_owned());
        line(connections(&exceptions.plaintext));
    }
    let denied = exceptions.denied.iter().map(|one| {
        vec![
            one.source.clone(),
            format!("{} :{}", one.destination, one.port),
            one.reason.clone(),
            one.policy.clone().unwrap_or_default(),
            one.count.to_string(),
            maybe(one.first),
            maybe(one.last),
        ]
    });
    let header = ["From", "To", "Reason", "Policy", "Count", "First", "Last"];
    section(line, "Denied", &header, denied.collect());
    let would = exceptions.would_be_denied.iter();
    let would = would.map(|(policy, count)| vec![policy.clone(), count.to_string()]);
    section(
        line,
        "Let through that a policy in dry run would deny",
        &["Policy", "Records"],
        would.collect(),
    );
    by_namespace(
        line,
        "Namespaces with pods that accept plaintext (PERMISSIVE)",
        &exceptions.permissive,
    );
    let switched = exceptions.switched.iter();
    let switched = switched.map(|(pod, what)| vec![pod.clone(), what.clone()]);
    section(
        line,
        "Pods kept out of namespaces that are in the mesh",
        &["Pod", "weir.dev/mesh"],
        switched.collect(),
    );
    let same_node = exceptions.same_node.iter();
    let same_node = same_node.map(|(way, pods)| vec![way.clone(), pods.to_string()]);
    section(
        line,
        "How pods of one node reach each other",
        &["sameNode", "Pods"],
        same_node.collect(),
    );
}

fn by_namespace(line: &mut impl FnMut(String), title: &str, pods: &BTreeMap<String, Vec<String>>) {
    let rows = pods
        .iter()
        .map(|(namespace, pods)| vec![namespace.clone(), pods.len().to_string(), names(pods)]);
    section(line, title, &["Namespace", "Pods", ""], rows.collect());
}

/// Nothing where there are no rows.
fn section(line: &mut impl FnMut(String), title: &str, header: &[&str], rows: Vec<Vec<String>>) {
    if !rows.is_empty() {
        line(format!("### {title}\n"));
        line(table(header, rows));
    }
}

fn connections(connections: &[super::report::Connection]) -> String {
    let rows = connections.iter().map(|one| {
        let way = match one.way {
            Way::MutualTls if one.tls.is_empty() => "mutual TLS".to_owned(),
            Way::MutualTls => format!("mutual TLS: {}", one.tls.join(", ")),
            Way::SameNode => "same node".to_owned(),
            Way::Plaintext => "PLAINTEXT".to_owned(),
            Way::PlaintextObserved => "plaintext (observed)".to_owned(),
        };
        vec![
            one.source.clone(),
            one.destination.clone(),
            one.port.to_string(),
            one.services.join(", "),
            way,
            one.count.to_string(),
            bytes(one.bytes),
            maybe(one.first),
            maybe(one.last),
        ]
    });
    table(
        &[
            "From", "To", "Port", "Service", "How", "Count", "Bytes", "First", "Last",
        ],
        rows,
    )
}

/// A table with an empty line behind it.
fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut out = format!("| {} |\n|{}\n", header.join(" | "), "---|".repeat(header.len()));
    let mut any = false;
    for row in rows {
        any = true;
        let cells: Vec<String> = row.iter().map(|cell| text(cell)).collect();
        let _ = writeln!(out, "| {} |", cells.join(" | "));
    }
    if any { out } else { "None.\n".to_owned() }
}

fn names(names: &[String]) -> String {
    let shown: Vec<String> = names.iter().take(NAMED).map(|name| text(name)).collect();
    match names.len() - shown.len() {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// What others wrote, as text of Markdown and no more.
fn text(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in clean(text).chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '|' | '[' | ']' | '`' | '*' => out.extend(['\\', c]),
            c => out.push(c),
        }
    }
    out
}

fn maybe(at: Option<Timestamp>) -> String {
    at.map_or_else(String::new, time)
}

/// To the second.
fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%SZ").to_string()
}
