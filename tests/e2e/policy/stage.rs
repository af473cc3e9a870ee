//! A server and a client of each kind on each path to it; plays rows of policies and compares.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use weir_e2e::serve;
use weir_lab::{Agent, Lab, PATIENCE, Pod, PodSpec, Process, Spawn as _, config::SameNodeMode};
use weir_types::{Flow, FlowEvent, FlowPath, FlowVerdict, PolicyMatch, Reason, TrafficDirection};

const PORT: u16 = 7000;
/// Clients bind to ports from here on, below those that the kernel gives, so that each record is known by its port.
const FIRST_PORT: u16 = 10_000;
/// More than one row has on a node.
const RECENT: u64 = 100;

/// Policies, and what becomes of connections of `web` (namespace `shop`), `job` (namespace `batch`) and a client in
/// plaintext.
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) policies: Vec<Value>,
    pub(super) expected: [Outcome; 3],
    /// Whether the agents warn of them.
    pub(super) warns: bool,
}

/// What becomes of a connection. Policies as records show them: `shop/p rule 0`; none if empty.
#[derive(Clone, Copy)]
pub(super) struct Outcome {
    pub(super) reason: Reason,
    pub(super) policy: &'static str,
    pub(super) dry_run: &'static str,
}

#[derive(Clone, Copy)]
pub(super) enum Family {
    V4,
    V6,
}

/// How a connection came to be decided on.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Decided {
    /// By the destination's agent: from another node.
    Tunnel,
    /// By the destination's agent: from outside of the mesh.
    Plaintext,
    /// By the agent of both: the first of a pod to a destination.
    First,
    /// By the kernel: each further one.
    Kernel,
}

struct Client {
    pod: Pod,
    /// Which of a row's outcomes is its own.
    kind: usize,
    decided: Decided,
}

/// An attempt of a client.
struct Attempt<'a> {
    client: &'a Client,
    decided: Decided,
    from: SocketAddr,
    process: Process,
}

/// `web` and `job` on node 1 and on node 2, `plain` outside of the mesh, `server` on node 2.
pub(super) struct Stage {
    agents: Vec<Agent>,
    server: Pod,
    _process: Process,
    clients: Vec<Client>,
    next_port: u16,
    /// Refusals that the server's agent must have counted.
    refused: BTreeMap<Reason, u64>,
    /// Connections that it must have counted as refused by a dry-run policy.
    dry_run: u64,
    _lab: Lab,
}

// === impl Outcome ===

impl Outcome {
    pub(super) const fn of(reason: Reason, policy: &'static str) -> Self {
        Self {
            reason,
            policy,
            dry_run: "",
        }
    }

    fn is_allowed(self) -> bool {
        self.reason == Reason::None
    }
}

// === impl Stage ===

impl Stage {
    pub(super) fn new(name: &str) -> Self {
        let lab = Lab::builder(name).build().unwrap();
        // The addresses are in the tables: 10.<node>.0.<host>, fd00:<node>::<host>.
        let add = |node: &str, namespace: &str, name: &str, account: &str, host: u8| {
            let spec = PodSpec::new(node, namespace, name)
                .service_account(account)
                .host(host);
            lab.add_pod(if account.is_empty() {
                spec.outside_mesh()
            } else {
                spec
            })
            .unwrap()
        };
        let server = add("node2", "shop", "server", "server", 2);
        let clients = [
            ("node1", "shop", "web1", "web", 2, 0, Decided::Tunnel),
            ("node1", "batch", "job1", "job", 3, 1, Decided::Tunnel),
            ("node1", "shop", "plain", "", 4, 2, Decided::Plaintext),
            ("node2", "shop", "web2", "web", 3, 0, Decided::First),
            ("node2", "batch", "job2", "job", 4, 1, Decided::First),
        ];
        let clients = clients.map(|(node, namespace, name, account, host, kind, decided)| Client {
            pod: add(node, namespace, name, account, host),
            kind,
            decided,
        });
        let agents = lab
            .start_agents_with(|config| config.same_node(SameNodeMode::Direct))
            .unwrap();
        let (process, _) = serve(&server, ["echo-server", "--port", "7000", "--dual-stack"]);
        Self {
            agents,
            server,
            _process: process,
            clients: clients.into(),
            next_port: FIRST_PORT,
            refused: BTreeMap::new(),
            dry_run: 0,
            _lab: lab,
        }
    }

    /// Plays all rows, whatever becomes of some, and then tells of those.
    pub(super) fn play(&mut self, family: Family, rows: &[Row]) {
        let mut failures = Vec::new();
        for row in rows {
            if let Err(error) = self.play_row(family, row) {
                failures.push(format!("{}: {error:#}", row.name));
            }
        }
        assert!(
            failures.is_empty(),
            "{} of {}:\n{}",
            failures.len(),
            rows.len(),
            failures.join("\n")
        );
        self.check_metrics();
    }

    /// What `weir` says to this of the server's node.
    pub(super) fn command_line(&self, what: &str) -> String {
        let weir = weir_lab::program("weir").unwrap();
        let socket = &self.agents[1].config().api.socket;
        let output = Command::new(weir)
            .arg("--socket")
            .arg(socket)
            .arg(what)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn play_row(&mut self, family: Family, row: &Row) -> Result<()> {
        self.reload(row)?;
        let since = self.agents[1].status()?.flows_recorded;
        let to = SocketAddr::new(address(&self.server, family), PORT);
        let mut failures = Vec::new();
        // Pods of the server's node connect twice: the kernel remembers what the agent said.
        for round in [|decided: Decided| decided, |_| Decided::Kernel] {
            let clients = self.clients.iter();
            let again = round(Decided::First) == Decided::Kernel;
            let clients = clients.filter(|client| !again || client.decided == Decided::First);
            let mut attempts = Vec::new();
            for client in clients {
                let from = SocketAddr::new(address(&client.pod, family), self.next_port);
                self.next_port += 1;
                let (to, bind) = (to.to_string(), from.to_string());
                let process = client
                    .pod
                    .testapp(["connect", &to, "--bind", &bind, "--send", "x", "--read", "1"])?;
                attempts.push(Attempt {
                    client,
                    decided: round(client.decided),
                    from,
                    process,
                });
            }
            for attempt in attempts {
                let expected = row.expected[attempt.client.kind];
                if !expected.is_allowed() {
                    *self.refused.entry(expected.reason).or_default() += 1;
                } else if !expected.dry_run.is_empty() {
                    self.dry_run += 1;
                }
                let what = format!("{} ({:?})", attempt.client.pod.spec().name, attempt.decided);
                if let Err(error) = attempt.check(&self.agents, since, expected) {
                    failures.push(format!("  {what}: {error:#}"));
                }
            }
        }
        ensure!(failures.is_empty(), "\n{}", failures.join("\n"));
        Ok(())
    }

    /// Gives the policies to both agents at once.
    fn reload(&mut self, row: &Row) -> Result<()> {
        let statuses = std::thread::scope(|scope| {
            let reload = |agent| {
                scope.spawn(move || {
                    Agent::reload(agent, |config| {
                        config.authorization_policies.clone_from(&row.policies);
                    })
                })
            };
            let threads: Vec<_> = self.agents.iter_mut().map(reload).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().expect("no panic"))
                .collect::<Result<Vec<_>>>()
        })?;
        for status in statuses {
            ensure!(status.config.rejected.is_none(), "{:?}", status.config.rejected);
            ensure!(
                status.warnings.is_empty() != row.warns,
                "warnings: {:?}",
                status.warnings
            );
        }
        Ok(())
    }

    /// The server's agent has counted each refusal, and each connection that a dry-run policy would refuse, once.
    fn check_metrics(&self) {
        let line = |name: &str, labels: &str, count: u64| {
            format!("weir_workload_{name}{{namespace=\"shop\",{labels}workload=\"server\"}} {count}\n")
        };
        let refused = self.refused.iter();
        let mut lines: Vec<String> = refused
            .map(|(reason, count)| line("refused_total", &format!("reason=\"{reason}\","), *count))
            .collect();
        if self.dry_run > 0 {
            lines.push(line("dry_run_denied_total", "", self.dry_run));
        }
        let metrics = self.agents[1].metrics().unwrap();
        for line in lines {
            assert!(metrics.contains(&line), "{line} in\n{metrics}");
        }
    }
}

// === impl Attempt ===

impl Attempt<'_> {
    fn check(self, agents: &[Agent], since: u64, expected: Outcome) -> Result<()> {
        let Self {
            decided,
            from,
            process,
            ..
        } = self;
        let pid = process.pid();
        let line = process.wait(PATIENCE)?.json()?;
        // How it ended: by `connect` if that failed, by reading if not.
        let seen = if line["connect"] == "ok" {
            &line["end"]
        } else {
            &line["connect"]
        };
        let wanted = match decided {
            _ if expected.is_allowed() => "enough",
            Decided::Kernel => "ECONNREFUSED",
            _ => "ECONNRESET",
        };
        ensure!(seen == wanted, "expected {wanted}: {line}");
        if decided == Decided::Kernel && !expected.is_allowed() {
            ensure!(line["connect"] == wanted, "expected connect to fail: {line}");
        }

        let refused = !expected.is_allowed();
        let (direction, path) = match decided {
            Decided::First | Decided::Kernel if refused => (TrafficDirection::Egress, FlowPath::Nowhere),
            Decided::Tunnel | Decided::First => (TrafficDirection::Ingress, FlowPath::Tunnel),
            Decided::Plaintext => (TrafficDirection::Ingress, FlowPath::Plaintext),
            Decided::Kernel => (TrafficDirection::Egress, FlowPath::Direct),
        };
        // A connection that the kernel refuses never had a port.
        let source = if decided == Decided::Kernel && refused {
            SocketAddr::new(from.ip(), 0)
        } else {
            from
        };
        let event = if refused {
            FlowEvent::Refused
        } else {
            FlowEvent::Close
        };
        let flow = flow(&agents[1], since, |flow| {
            (flow.direction, flow.event, flow.source.address) == (direction, event, source)
        })?;
        let verdict = if refused {
            FlowVerdict::Denied
        } else {
            FlowVerdict::Forwarded
        };
        ensure!(
            (flow.path, flow.verdict, flow.reason) == (path, verdict, expected.reason)
                && name(flow.policy.as_ref()) == expected.policy
                && name(flow.dry_run.as_ref()) == expected.dry_run,
            "expected {path:?}, {:?}, by {:?}, dry-run {:?}: {}",
            expected.reason,
            expected.policy,
            expected.dry_run,
            serde_json::to_string(&flow)?
        );
        if decided == Decided::Kernel && flow.process.as_ref().map(|process| process.pid) != Some(pid) {
            bail!("expected process {pid}: {}", serde_json::to_string(&flow)?);
        }
        if decided == Decided::Tunnel && refused {
            // The client's agent learns that it was policy, not which.
            let flow = self::flow(&agents[0], 0, |flow| {
                flow.event == FlowEvent::Refused && flow.source.address == from
            })?;
            ensure!(
                (flow.direction, flow.reason, &flow.policy)
                    == (TrafficDirection::Egress, Reason::PolicyDenied, &None),
                "at the client's node: {}",
                serde_json::to_string(&flow)?
            );
        }
        Ok(())
    }
}

/// Waits for one of an agent's newest records.
fn flow(agent: &Agent, since: u64, wanted: impl Fn(&Flow) -> bool) -> Result<Flow> {
    let mut all = Vec::new();
    let found = weir_lab::poll("a record", PATIENCE, || {
        all = agent.last_flows(RECENT)?;
        all.retain(|flow| flow.sequence >= since);
        Ok(all.iter().find(|flow| wanted(flow)).cloned())
    });
    found.with_context(|| {
        let lines: Vec<_> = all
            .iter()
            .filter_map(|flow| serde_json::to_string(flow).ok())
            .collect();
        format!("records since {since} on {}:\n{}", agent.node(), lines.join("\n"))
    })
}

fn name(policy: Option<&PolicyMatch>) -> String {
    policy.map(ToString::to_string).unwrap_or_default()
}

fn address(pod: &Pod, family: Family) -> IpAddr {
    match family {
        Family::V4 => pod.v4().into(),
        Family::V6 => pod.v6().into(),
    }
}
