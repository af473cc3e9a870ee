//! What the agents themselves say.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use weir_types::api::Status;

use super::finding::{Finding, count, named};

/// Beginnings of an agent's errors that are told on their own.
const TOLD: [&str; 2] = ["certificate of ", "control plane "];

/// What each node's agent said, or why it said nothing.
pub(crate) type Statuses = BTreeMap<String, Result<Box<Status>, String>>;

/// Control plane, certificates, faults, versions. `own` is the version of this program.
pub(crate) fn agents(statuses: &Statuses, own: &str, now: Timestamp) -> Vec<Finding> {
    let mut found = Found::default();
    for (node, status) in statuses {
        match status {
            Ok(status) => found.take(node, status, now),
            Err(why) => found.add(Kind::Silent, node, why),
        }
    }
    let mut findings = found.findings();
    let answered: Vec<&Status> = statuses.values().filter_map(|one| one.as_deref().ok()).collect();
    if findings.is_empty() && !answered.is_empty() {
        let certificates: usize = answered.iter().map(|status| status.certificates.len()).sum();
        findings.push(Finding::ok(
            "Agents",
            format!(
                "{} connected to the control plane; {} valid; no faults",
                count(answered.len(), "agent"),
                count(certificates, "certificate")
            ),
        ));
    }
    findings.extend(versions(&answered, own));
    findings
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Silent,
    NotConnected,
    NotReady,
    Expired,
    Renewal,
    Fault,
    Warning,
}

/// By what is wrong: the nodes where it is.
#[derive(Debug, Default)]
struct Found(BTreeMap<(Kind, String), BTreeSet<String>>);

impl Found {
    fn add(&mut self, kind: Kind, node: &str, text: &str) {
        let nodes = self.0.entry((kind, text.to_owned())).or_default();
        nodes.insert(node.to_owned());
    }

    fn take(&mut self, node: &str, status: &Status, now: Timestamp) {
        match &status.control_plane {
            Some(control) if control.connected => {}
            Some(control) => {
                let why = control.problem.as_deref().unwrap_or("no answer yet");
                self.add(Kind::NotConnected, node, &format!("{}: {why}", control.address));
            }
            None => self.add(Kind::NotConnected, node, "its configuration names none"),
        }
        if !status.ready {
            self.add(Kind::NotReady, node, "");
        }
        for certificate in &status.certificates {
            let identity = &certificate.identity;
            if certificate.not_after <= now {
                let text = format!("that of {identity} at {:.0}", certificate.not_after);
                self.add(Kind::Expired, node, &text);
            } else if let Some(problem) = &certificate.problem {
                let text = format!(
                    "that of {identity}, which ends {:.0}: {problem}",
                    certificate.not_after
                );
                self.add(Kind::Renewal, node, &text);
            }
        }
        for error in &status.errors {
            if !TOLD.iter().any(|told| error.starts_with(told)) {
                self.add(Kind::Fault, node, error);
            }
        }
        for warning in &status.warnings {
            self.add(Kind::Warning, node, warning);
        }
    }

    fn findings(self) -> Vec<Finding> {
        self.0
            .into_iter()
            .map(|((kind, text), nodes)| {
                let nodes: Vec<String> = nodes.into_iter().collect();
                let nodes = named(&nodes);
                match kind {
                    Kind::Silent => Finding::fail(
                        "Agents",
                        format!("the agent on {nodes} does not answer: {text}"),
                        "kubectl logs of its pod; you need the right to pods/portforward",
                    ),
                    Kind::NotConnected => Finding::fail(
                        "Agents",
                        format!("not connected to the control plane on {nodes}: {text}"),
                        "they go on with what they know, and certificates last a day at most: see weir-control's log",
                    ),
                    Kind::NotReady => Finding::fail(
                        "Agents",
                        format!("not ready to take traffic on {nodes}"),
                        "weir status --node NODE says what is missing",
                    ),
                    Kind::Expired => Finding::fail(
                        "Certificates",
                        format!("expired on {nodes}: {text}"),
                        "its pods cannot connect: see weir-control's log for why it signs nothing",
                    ),
                    Kind::Renewal => Finding::warn(
                        "Certificates",
                        format!("not renewed on {nodes}: {text}"),
                        "it is tried again until it ends; see weir-control's log",
                    ),
                    Kind::Fault => Finding::warn("Faults", format!("on {nodes}: {text}"), "weir status --node NODE"),
                    Kind::Warning => Finding::warn(
                        "Policies",
                        text,
                        "a policy may not do what was meant: docs/policy.md says what is understood",
                    ),
                }
            })
            .collect()
    }
}

fn versions(answered: &[&Status], own: &str) -> Option<Finding> {
    const ABOUT: &str = "Versions";
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for status in answered {
        versions.entry(&status.version).or_default().push(&status.node);
    }
    let mut known = versions.keys();
    let first = *known.next()?;
    if known.next().is_some() {
        let all: Vec<String> = versions
            .iter()
            .map(|(version, nodes)| format!("{version} on {}", named(nodes)))
            .collect();
        return Some(Finding::warn(
            ABOUT,
            format!("agents of several versions: {}", named(&all)),
            "wait for the rollout to end: kubectl rollout status daemonset weir-agent",
        ));
    }
    Some(if first == own {
        Finding::ok(ABOUT, format!("agents and this command are {own}"))
    } else {
        Finding::warn(
            ABOUT,
            format!("agents are {first}, this command is {own}"),
            "use the command of the agents' version",
        )
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{
        super::finding::{Level, tests::assert_found},
        *,
    };

    fn status(fields: &Value) -> Result<Box<Status>, String> {
        let time = "2026-01-01T00:00:00Z";
        let mut status = json!({
            "node": "a", "version": "1.0.0", "trustDomain": "t", "started": time, "ready": true,
            "config": {"file": "", "generation": 1, "applied": time},
            "controlPlane": {
                "address": "control:15012", "connected": true, "since": time, "workloads": 0, "services": 0, "policies": 0,
            },
            "pods": [], "certificates": [], "tunnels": [], "refusals": [], "programs": [], "roots": [],
            "flowsRecorded": 0, "flowsLost": 0, "kernelConnections": 0, "warnings": [], "errors": [],
        });
        for (name, value) in fields.as_object().unwrap() {
            status[name] = value.clone();
        }
        Ok(Box::new(serde_json::from_value(status).unwrap()))
    }

    fn certificate(not_after: &str, problem: Value) -> Value {
        json!({"certificates": [{
            "identity": "spiffe://t/ns/shop/sa/web", "serial": "1", "notBefore": "2026-01-01T00:00:00Z",
            "notAfter": not_after, "renewAt": not_after, "problem": problem,
        }]})
    }

    #[test]
    fn what_is_wrong_with_an_agent_is_told_once_with_its_nodes() {
        let now: Timestamp = "2026-01-02T00:00:00Z".parse().unwrap();
        let away = json!({
            "controlPlane": {
                "address": "control:15012", "connected": false, "since": "2026-01-01T00:00:00Z", "workloads": 0,
                "services": 0, "policies": 0, "problem": "connection refused",
            },
            "errors": ["control plane control:15012 is not connected: connection refused"],
        });
        let version = (Level::Ok, "agents and this command are 1.0.0");
        let table: [(Value, &[(Level, &str)]); 7] = [
            (
                certificate("2026-01-03T00:00:00Z", Value::Null),
                &[(Level::Ok, "1 certificate valid"), version],
            ),
            (
                certificate("2026-01-01T12:00:00Z", Value::Null),
                &[(Level::Fail, "expired on a, b: that of spiffe"), version],
            ),
            (
                certificate("2026-01-03T00:00:00Z", json!("refused")),
                &[(Level::Warn, "not renewed on a, b"), version],
            ),
            (
                away,
                &[
                    (Level::Fail, "on a, b: control:15012: connection refused"),
                    version,
                ],
            ),
            (json!({"ready": false}), &[(Level::Fail, "not ready"), version]),
            (
                json!({"errors": ["cni: /opt/cni/bin is read-only"]}),
                &[(Level::Warn, "cni: /opt/cni/bin"), version],
            ),
            (
                json!({"warnings": ["policy x"]}),
                &[(Level::Warn, "policy x"), version],
            ),
        ];
        for (fields, expected) in table {
            let statuses = Statuses::from([
                ("a".to_owned(), status(&fields)),
                ("b".to_owned(), status(&fields)),
            ]);
            let expected: Vec<(Level, &str)> = expected
                .iter()
                .map(|(level, words)| {
                    (
                        *level,
                        if *words == "1 certificate valid" {
                            "2 certificates valid"
                        } else {
                            words
                        },
                    )
                })
                .collect();
            assert_found(&agents(&statuses, "1.0.0", now), &expected);
        }
        let statuses = Statuses::from([("a".to_owned(), Err("the pod is gone".to_owned()))]);
        assert_found(
            &agents(&statuses, "1.0.0", now),
            &[(Level::Fail, "the agent on a does not answer: the pod is gone")],
        );
    }

    #[test]
    fn versions_are_to_be_one() {
        let now = Timestamp::UNIX_EPOCH;
        let (one, other) = (
            status(&json!({})),
            status(&json!({"version": "2.0.0", "node": "b"})),
        );
        let statuses = Statuses::from([("a".to_owned(), one.clone()), ("b".to_owned(), other)]);
        let found = agents(&statuses, "1.0.0", now);
        assert_found(
            &found,
            &[(Level::Ok, ""), (Level::Warn, "1.0.0 on a, 2.0.0 on b")],
        );
        let found = agents(&Statuses::from([("a".to_owned(), one)]), "3.0.0", now);
        assert_found(
            &found,
            &[
                (Level::Ok, ""),
                (Level::Warn, "agents are 1.0.0, this command is 3.0.0"),
            ],
        );
    }
}
