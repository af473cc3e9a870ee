//! From what was collected to what is reported: a plain function.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::{ResourceExt as _, api::DynamicObject};
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use weir_types::api::Status;

use super::{
    connections::{Connections, Way},
    enrolment::{Enrolment, enrolment, switched},
};
use crate::mesh::Switch;

/// Everything that was read.
#[derive(Debug, Default)]
pub(crate) struct Collected {
    pub(crate) cluster: String,
    /// The root namespace.
    pub(crate) root: String,
    pub(crate) api_server: String,
    pub(crate) now: Timestamp,
    /// The image of weir-control, and its replicas that are ready.
    pub(crate) control_plane: Option<(String, i32)>,
    /// Kernel versions by node.
    pub(crate) kernels: BTreeMap<String, String>,
    pub(crate) namespaces: BTreeMap<String, Namespace>,
    pub(crate) pods: Vec<Pod>,
    pub(crate) policies: Vec<DynamicObject>,
    pub(crate) agents: Vec<Agent>,
    pub(crate) connections: Connections,
    /// What could not be asked, and why.
    pub(crate) missing: Vec<Missing>,
}

impl Collected {
    /// What is wanted of pods of which neither they nor their namespaces say anything.
    pub(crate) fn mesh_default(&self) -> Option<Switch> {
        self.namespaces.get(&self.root).and_then(Switch::of_mesh)
    }
}

/// What an agent said.
#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) node: String,
    pub(crate) status: Status,
    /// Records that it gave, and the oldest.
    pub(crate) records: u64,
    pub(crate) oldest: Option<Timestamp>,
    /// Events that it said were lost between them.
    pub(crate) lost: u64,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Missing {
    pub(crate) what: String,
    pub(crate) why: String,
}

/// The evidence.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report {
    pub(crate) cluster: String,
    pub(crate) time: Timestamp,
    pub(crate) since: Timestamp,
    pub(crate) namespaces: Vec<String>,
    /// Whether all was asked that there is.
    pub(crate) complete: bool,
    pub(crate) missing: Vec<Missing>,
    pub(crate) versions: Versions,
    pub(crate) records: Vec<Records>,
    pub(crate) enrolment: Vec<Enrolment>,
    pub(crate) identities: Vec<String>,
    pub(crate) totals: Totals,
    pub(crate) connections: Vec<Connection>,
    pub(crate) exceptions: Exceptions,
    pub(crate) certificates: Certificates,
    pub(crate) roots: Vec<Root>,
    pub(crate) policies: Vec<Policy>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Versions {
    pub(crate) api_server: String,
    pub(crate) weir_control: Option<String>,
    pub(crate) weir_control_ready: i32,
    /// Nodes by the version of their agent.
    pub(crate) agents: BTreeMap<String, Vec<String>>,
    pub(crate) kernels: BTreeMap<String, Vec<String>>,
}

/// How far back a node's records go: they are kept in memory, and the newest only.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Records {
    pub(crate) node: String,
    pub(crate) from: Timestamp,
    pub(crate) count: u64,
    pub(crate) lost: u64,
    /// Whether that is the whole time that was asked for, without loss.
    pub(crate) whole: bool,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Totals {
    pub(crate) mutual_tls: u64,
    pub(crate) same_node: u64,
    pub(crate) plaintext: u64,
    pub(crate) plaintext_observed: u64,
    pub(crate) denied: u64,
    pub(crate) failed: u64,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Connection {
    pub(crate) source: String,
    pub(crate) destination: String,
    pub(crate) port: u16,
    pub(crate) services: Vec<String>,
    pub(crate) way: Way,
    pub(crate) tls: Vec<String>,
    pub(crate) count: u64,
    pub(crate) bytes: u64,
    pub(crate) first: Option<Timestamp>,
    pub(crate) last: Option<Timestamp>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Exceptions {
    pub(crate) plaintext: Vec<Connection>,
    pub(crate) denied: Vec<Denied>,
    /// Connections that policies in dry run would have refused, by policy.
    pub(crate) would_be_denied: BTreeMap<String, u64>,
    /// Enrolled pods that accept plaintext, by namespace.
    pub(crate) permissive: BTreeMap<String, Vec<String>>,
    /// Pods that are not in the mesh though their namespace is, with what they are.
    pub(crate) switched: BTreeMap<String, String>,
    /// How pods of one node reach each other: pods by way.
    pub(crate) same_node: BTreeMap<String, usize>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Denied {
    pub(crate) source: String,
    pub(crate) destination: String,
    pub(crate) port: u16,
    pub(crate) reason: String,
    pub(crate) policy: Option<String>,
    pub(crate) count: u64,
    pub(crate) first: Option<Timestamp>,
    pub(crate) last: Option<Timestamp>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Certificates {
    pub(crate) count: usize,
    pub(crate) first_expiry: Option<Timestamp>,
    /// `node: identity: why`.
    pub(crate) problems: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Root {
    pub(crate) fingerprint: String,
    pub(crate) subject: String,
    pub(crate) not_after: Timestamp,
    pub(crate) nodes: usize,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Policy {
    pub(crate) kind: String,
    pub(crate) name: String,
    /// The action, or the mode.
    pub(crate) action: String,
    pub(crate) accepted: String,
    pub(crate) bound: Option<i64>,
    pub(crate) dry_run: bool,
}

// === impl Report ===

impl Report {
    /// Of all that was collected.
    pub(crate) fn of(collected: &Collected) -> Self {
        let wanted = &collected.connections.namespaces;
        let concerns = |namespace: &str| wanted.is_empty() || wanted.iter().any(|one| one == namespace);
        let enrolment = enrolment(collected, &concerns);
        let all = connections(&collected.connections);
        let total = |way: Way| all.iter().filter(|one| one.way == way).map(|one| one.count).sum();
        let mut identities = BTreeSet::new();
        let (mut permissive, mut same_node) = (BTreeMap::<String, Vec<String>>::new(), BTreeMap::new());
        for pod in collected.agents.iter().flat_map(|agent| &agent.status.pods) {
            if !pod.enrolled || !concerns(&pod.namespace) {
                continue;
            }
            identities.insert(pod.identity.to_string());
            if pod.mode != "STRICT" {
                permissive
                    .entry(pod.namespace.clone())
                    .or_default()
                    .push(pod.name.clone());
            }
            if let Some(way) = &pod.same_node {
                *same_node.entry(way.clone()).or_default() += 1;
            }
        }
        permissive.values_mut().for_each(|pods| pods.sort());
        let denied: Vec<Denied> = denied(&collected.connections);
        Self {
            cluster: collected.cluster.clone(),
            time: collected.now,
            since: collected.connections.since,
            namespaces: wanted.clone(),
            complete: collected.missing.is_empty(),
            missing: collected.missing.clone(),
            versions: versions(collected),
            records: records(collected),
            identities: identities.into_iter().collect(),
            totals: Totals {
                mutual_tls: total(Way::MutualTls),
                same_node: total(Way::SameNode),
                plaintext: total(Way::Plaintext),
                plaintext_observed: total(Way::PlaintextObserved),
                denied: denied.iter().map(|one| one.count).sum(),
                failed: collected.connections.failed,
            },
            exceptions: Exceptions {
                plaintext: all
                    .iter()
                    .filter(|one| one.way == Way::Plaintext)
                    .cloned()
                    .collect(),
                denied,
                would_be_denied: collected.connections.would_be_denied.clone(),
                permissive,
                switched: switched(&enrolment),
                same_node,
            },
            connections: all,
            enrolment,
            certificates: certificates(collected),
            roots: roots(collected),
            policies: collected.policies.iter().map(policy).collect(),
        }
    }

    /// The report as JSON, and the SHA-256 of that without white space, with the names in order.
    ///
    /// # Errors
    /// None that can be met: there is nothing in it that JSON cannot say.
    pub(crate) fn json(&self) -> serde_json::Result<(Value, String)> {
        let value = serde_json::to_value(self)?;
        let sum = Sha256::digest(serde_json::to_string(&value)?);
        Ok((value, sum.iter().map(|byte| format!("{byte:02x}")).collect()))
    }
}

fn versions(collected: &Collected) -> Versions {
    let mut agents: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for agent in &collected.agents {
        agents
            .entry(agent.status.version.clone())
            .or_default()
            .push(agent.node.clone());
    }
    let mut kernels: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (node, kernel) in &collected.kernels {
        kernels.entry(kernel.clone()).or_default().push(node.clone());
    }
    let (weir_control, ready) = match &collected.control_plane {
        Some((version, ready)) => (Some(version.clone()), *ready),
        None => (None, 0),
    };
    Versions {
        api_server: collected.api_server.clone(),
        weir_control,
        weir_control_ready: ready,
        agents,
        kernels,
    }
}

fn records(collected: &Collected) -> Vec<Records> {
    let since = collected.connections.since;
    let agents = collected.agents.iter();
    agents
        .map(|agent| {
            // Nothing was overwritten while it has all that it made.
            let started = agent.status.started;
            let all = agent.status.flows_recorded <= agent.records;
            let from = if all {
                started
            } else {
                agent.oldest.unwrap_or(collected.now)
            };
            let lost = agent.status.flows_lost.max(agent.lost);
            Records {
                node: agent.node.clone(),
                from,
                count: agent.records,
                lost,
                whole: from <= since && lost == 0,
            }
        })
        .collect()
}

fn connections(connections: &Connections) -> Vec<Connection> {
    let all = connections.made.iter();
    let mut all: Vec<Connection> = all
        .map(|(key, sums)| Connection {
            source: key.source.clone(),
            destination: key.destination.clone(),
            port: key.port,
            services: sums.services.iter().cloned().collect(),
            way: key.way,
            tls: sums.tls.iter().cloned().collect(),
            count: sums.count(),
            bytes: sums.bytes(),
            first: sums.first,
            last: sums.last,
        })
        .collect();
    all.sort_by(|a, b| (a.way, b.count).cmp(&(b.way, a.count)));
    all
}

fn denied(connections: &Connections) -> Vec<Denied> {
    let all = connections.denied.iter();
    let mut all: Vec<Denied> = all
        .map(|(key, sums)| Denied {
            source: key.source.clone(),
            destination: key.destination.clone(),
            port: key.port,
            reason: key.reason.clone(),
            policy: key.policy.clone(),
            count: sums.count(),
            first: sums.first,
            last: sums.last,
        })
        .collect();
    all.sort_by_key(|one| std::cmp::Reverse(one.count));
    all
}

fn certificates(collected: &Collected) -> Certificates {
    let all = || {
        let agents = collected.agents.iter();
        agents.flat_map(|agent| {
            agent
                .status
                .certificates
                .iter()
                .map(move |one| (&agent.node, one))
        })
    };
    let problems = all().filter_map(|(node, one)| {
        let problem = one.problem.as_ref()?;
        Some(format!("{node}: {}: {problem}", one.identity))
    });
    Certificates {
        count: all().count(),
        first_expiry: all().map(|(_, one)| one.not_after).min(),
        problems: problems.collect(),
    }
}

fn roots(collected: &Collected) -> Vec<Root> {
    let mut roots: BTreeMap<&str, Root> = BTreeMap::new();
    for root in collected.agents.iter().flat_map(|agent| &agent.status.roots) {
        let found = roots.entry(&root.fingerprint).or_insert_with(|| Root {
            fingerprint: root.fingerprint.clone(),
            subject: root.subject.clone(),
            not_after: root.not_after,
            nodes: 0,
        });
        found.nodes += 1;
    }
    roots.into_values().collect()
}

fn policy(object: &DynamicObject) -> Policy {
    let kind = object
        .types
        .as_ref()
        .map(|types| types.kind.clone())
        .unwrap_or_default();
    let spec = &object.data["spec"];
    let action = if kind == "PeerAuthentication" {
        let ports = spec["portLevelMtls"]
            .as_object()
            .is_some_and(|ports| !ports.is_empty());
        let mode = spec["mtls"]["mode"].as_str().unwrap_or("UNSET");
        format!("{mode}{}", if ports { ", ports of their own" } else { "" })
    } else {
        spec["action"].as_str().unwrap_or("ALLOW").to_owned()
    };
    let conditions = object.data["status"]["conditions"]
        .as_array()
        .into_iter()
        .flatten();
    let accepted = conditions
        .filter(|one| one["type"] == "Accepted")
        .find_map(|one| {
            let status = one["status"].as_str()?;
            Some(match status {
                "True" => "yes".to_owned(),
                _ => format!("no: {}", one["message"].as_str().unwrap_or_default()),
            })
        });
    Policy {
        kind,
        name: format!("{}/{}", object.namespace().unwrap_or_default(), object.name_any()),
        action,
        accepted: accepted.unwrap_or_else(|| "not said".to_owned()),
        bound: object.data["status"]["bound"].as_i64(),
        dry_run: spec["dryRun"] == true,
    }
}
