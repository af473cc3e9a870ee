//! `weir check`: whether Weir can work here, and whether it does.

mod agents;
mod api_server;
mod fetch;
mod finding;
mod install;
mod meshes;
mod network;
mod network_policies;
mod node_local;
mod nodes;
mod pods;
mod policies;

use std::io::{self, Write as _};

use anyhow::bail;
use clap::Args;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use weir::style::{BAD, BOLD, DIM, GOOD, WARN, clean, clean_json, paint};

use self::{
    fetch::Facts,
    finding::{Finding, Level},
};
use crate::{
    cluster::Cluster,
    status::Output,
    target::{Options, Usage},
};

/// Says whether Weir can work here, and whether it does, and what to do if not.
///
/// Of a cluster, before Weir is installed and afterwards. Looks at the API server, the nodes, the network and other meshes, and where Weir is installed at its parts, its agents
/// and the pods that are meant to be in the mesh. Changes nothing.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    weir check                         the cluster of the kubeconfig\n  \
    weir check -o json | jq '.findings[] | select(.level == \"FAIL\")'\n  \
    weir check --node-local            this machine, without Kubernetes\n\n\
    Exit codes: 0 nothing FAILs, 1 something does, 2 wrong usage, 3 the API server cannot be reached.")]
pub(crate) struct Check {
    /// Check whether this machine can have an agent, without asking Kubernetes.
    #[arg(long)]
    node_local: bool,
    /// How to print.
    #[arg(long, visible_alias = "format", short, value_enum, default_value = "text")]
    output: Output,
}

impl Check {
    /// Whether nothing fails.
    pub(crate) async fn run(self, options: &Options) -> anyhow::Result<bool> {
        let findings = if self.node_local {
            node_local::machine(&node_local::Machine::look())
        } else {
            cluster(options).await?
        };
        let mut out = anstream::stdout();
        match self.output {
            Output::Json => {
                let count = |level| findings.iter().filter(|one| one.level == level).count();
                let report = serde_json::json!({
                    "failed": count(Level::Fail), "warned": count(Level::Warn), "findings": findings,
                });
                writeln!(out, "{}", clean_json(&serde_json::to_string_pretty(&report)?))?;
            }
            Output::Text => print(&mut out, &findings)?,
        }
        Ok(findings.iter().all(|finding| finding.level != Level::Fail))
    }
}

async fn cluster(options: &Options) -> anyhow::Result<Vec<Finding>> {
    if options.socket.is_some() || options.node.is_some() {
        bail!(Usage(
            "this asks the whole cluster: --socket and --node say nothing here; --node-local checks this machine".to_owned()
        ));
    }
    let cluster = Cluster::new(options).await?;
    let version = cluster.answer(cluster.client.apiserver_version()).await;
    let version = match version {
        Ok(version) => version,
        Err(why) => return Err(cluster.unreachable(why)),
    };
    let facts = Facts::fetch(&cluster).await;
    let mut findings = vec![api_server::version(&version)];
    findings.extend(all(&facts, &cluster.namespace, Timestamp::now()));
    Ok(findings)
}

/// Everything there is to say of what was fetched.
fn all(facts: &Facts, namespace: &str, now: Timestamp) -> Vec<Finding> {
    let installed = facts.installed(namespace);
    let failed = |what: &str| facts.problems.iter().any(|(problem, _)| *problem == what);
    let mut findings = Vec::new();
    for (what, why) in &facts.problems {
        findings.push(Finding::warn(
            "Not looked at",
            format!("{what}: {why}"),
            "ask somebody who may see it, or for the right to",
        ));
    }
    if !facts.rights.is_empty() {
        findings.extend(api_server::rights(&facts.rights, installed));
    }
    if !failed("nodes") {
        findings.extend(nodes::nodes(&facts.nodes));
    }
    if let Some(config) = &facts.cilium {
        findings.extend(network::cilium(config));
    }
    findings.extend(network::calico(&facts.felix));
    let (namespaces, pods) = (&facts.namespaces, &facts.pods);
    findings.extend(meshes::ambient(&facts.daemon_sets, namespaces, pods));
    findings.extend(meshes::sidecars(&facts.webhooks, namespaces, pods));
    findings.extend(network_policies::network_policies(
        &facts.network_policies,
        namespaces,
        pods,
    ));
    if installed {
        if !failed("definitions") {
            findings.extend(install::definitions(&facts.definitions));
        }
        if !failed("the control plane's Deployment") {
            let own: Vec<&Pod> = pods.iter().filter(|pod| is_control(pod, namespace)).collect();
            findings.extend(install::control_plane(facts.control_plane.as_ref(), &own));
        }
        if !failed("DaemonSets") {
            let set = facts.agents(namespace);
            findings.extend(install::daemon_set(set, &facts.agent_pods, &facts.nodes));
        }
        findings.extend(agents::agents(&facts.statuses, env!("CARGO_PKG_VERSION"), now));
        if !failed("the roots") {
            findings.extend(policies::roots(facts.roots.as_ref(), now));
        }
        findings.extend(policies::policies(&facts.policies));
    } else {
        let what = format!("not installed in the namespace {namespace}");
        findings.push(Finding::ok("Weir", what));
    }
    if !failed("pods") {
        findings.extend(pods::pods(namespaces, namespace, pods, installed));
    }
    findings
}

fn is_control(pod: &Pod, namespace: &str) -> bool {
    let name = pod.labels().get("app.kubernetes.io/name");
    pod.namespace().as_deref() == Some(namespace) && name.is_some_and(|name| name == "weir-control")
}

/// Columns: level, what was looked at, what was found and below it what to do. Long texts go on in their column.
fn print(out: &mut impl io::Write, findings: &[Finding]) -> io::Result<()> {
    let width = findings
        .iter()
        .map(|one| one.about.chars().count())
        .max()
        .unwrap_or(0);
    let indent = 6 + width + 2;
    let text = TEXT.max(TOTAL.saturating_sub(indent));
    for finding in findings {
        let (style, level) = match finding.level {
            Level::Ok => (GOOD, "OK  "),
            Level::Warn => (WARN, "WARN"),
            Level::Fail => (BAD, "FAIL"),
        };
        let about = format!("{:<width$}", clean(&finding.about));
        let mut lines = wrapped(&clean(&finding.what), text).into_iter();
        writeln!(
            out,
            "{}  {}  {}",
            paint(style, level),
            paint(BOLD, about),
            lines.next().unwrap_or_default()
        )?;
        for line in lines {
            writeln!(out, "{:indent$}{line}", "")?;
        }
        let todo = finding.todo.as_deref().unwrap_or_default();
        for (number, line) in wrapped(&clean(todo), text - 3).into_iter().enumerate() {
            let arrow = if number == 0 { "-> " } else { "   " };
            writeln!(out, "{:indent$}{}", "", paint(DIM, format_args!("{arrow}{line}")))?;
        }
    }
    let count = |level| findings.iter().filter(|one| one.level == level).count();
    let summary = match (count(Level::Fail), count(Level::Warn)) {
        (0, 0) => paint(GOOD, "All is well."),
        (0, warned) => paint(WARN, format_args!("Nothing fails; {warned} worth a look.")),
        (failed, warned) => paint(BAD, format_args!("{failed} failed, {warned} worth a look.")),
    };
    writeln!(out, "\n{summary}")
}

/// Characters in a line, and at least so many of them for texts.
const TOTAL: usize = 110;
const TEXT: usize = 40;

/// Words in lines of a width; a word that is longer has a line of its own.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_stay_in_their_column_and_nothing_in_them_acts() {
        let what = "word ".repeat(40) + "\u{1b}[2J";
        let findings = [
            Finding::fail("Nodes", what, "do this"),
            Finding::ok("Longer name", "fine"),
        ];
        let mut out = Vec::new();
        print(&mut out, &findings).unwrap();
        let text = anstream::adapter::strip_str(std::str::from_utf8(&out).unwrap()).to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("FAIL  Nodes        word word"), "{text}");
        assert!(lines[1].starts_with("                   word"), "{text}");
        assert!(lines.iter().all(|line| line.chars().count() <= TOTAL), "{text}");
        assert!(
            text.contains("\\u{1b}[2J") && text.contains("                   -> do this"),
            "{text}"
        );
        assert!(text.ends_with("\n1 failed, 0 worth a look.\n"), "{text}");
    }

    #[test]
    fn what_could_not_be_looked_at_is_told_and_not_judged() {
        let problem = |what| (what, "forbidden".to_owned());
        let facts = Facts {
            problems: vec![problem("nodes"), problem("pods")],
            ..Facts::default()
        };
        let found = all(&facts, "weir-system", Timestamp::UNIX_EPOCH);
        let expected = [
            (Level::Warn, "nodes: forbidden"),
            (Level::Warn, "pods: forbidden"),
            (Level::Ok, "not installed"),
        ];
        finding::tests::assert_found(&found, &expected);
    }
}
