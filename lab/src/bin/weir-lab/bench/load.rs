//! A mesh that is large and does not stand still: policies and workloads in the agents' configuration, and workloads
//! whose addresses change while something is measured.

use std::{
    net::IpAddr,
    path::PathBuf,
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use serde_json::{Value, json};
use weir_lab::{
    Agent, AgentConfig, PATIENCE,
    config::{TunnelProtocol, WorkloadConfig},
    replace_file,
};

use super::system::{CLIENT, NAMESPACE, SERVER_LABEL};

/// Workloads besides those that are measured.
const WORKLOADS: u32 = 10_000;
/// Policies that deny the measured servers to others.
const DENY_SERVER: usize = 500;
/// Policies that allow the measured namespace to others; one more allows the client.
const ALLOW_NAMESPACE: usize = 99;
/// Policies of namespaces that are not measured.
const ELSEWHERE: usize = 400;
/// Namespaces of the workloads that are not measured.
const NAMESPACES: u32 = 100;
/// Addresses that change at once.
const CHANGES: u32 = 20;
/// How often they do.
const PERIOD: Duration = Duration::from_secs(1);
/// Between two questions whether an agent has taken the last change: an answer names all workloads.
const ASK: Duration = Duration::from_millis(100);

/// The agents' configuration files, ready to be changed.
pub(crate) struct Load {
    documents: Vec<Document>,
    /// Counts changes; change `n` gives workload `n % WORKLOADS` the address `WORKLOADS + n`.
    next: u32,
}

/// A configuration file's text, and where the addresses in it are.
struct Document {
    file: PathBuf,
    text: Vec<u8>,
    slots: Vec<usize>,
}

/// Adds a large mesh to a configuration.
pub(crate) fn add(config: &mut AgentConfig) {
    config.authorization_policies.extend(policies());
    config.workloads.extend((0..WORKLOADS).map(workload));
}

// === impl Load ===

impl Load {
    /// For agents that were started with what [`add`] makes.
    pub(crate) fn new(agents: &[Agent]) -> Result<Self> {
        let documents = agents.iter().map(|agent| {
            let text = serde_saphyr::to_string(agent.config()).context("the configuration as YAML")?;
            Document::new(agent.config_file().to_owned(), text)
        });
        Ok(Self {
            documents: documents.collect::<Result<_>>()?,
            next: 0,
        })
    }

    /// Does some work while addresses change for the first of the agents, at once and then every second. Returns when
    /// the agents have taken the last change, so that they are at rest.
    pub(crate) fn during<T>(&mut self, agents: &[Agent], work: impl FnOnce() -> Result<T>) -> Result<T> {
        let (working, done) = channel::<()>();
        let worked = thread::scope(|scope| {
            let load = &mut *self;
            let changes = scope.spawn(move || load.change_until(agents.len(), &done));
            let worked = work();
            drop(working);
            changes
                .join()
                .map_err(|_| anyhow!("the thread that changes configurations panicked"))??;
            worked
        })?;
        let (changed, address) = self.last()?;
        agents
            .iter()
            .try_for_each(|agent| taken(agent, &changed, address))?;
        Ok(worked)
    }

    fn change_until(&mut self, agents: usize, done: &Receiver<()>) -> Result<()> {
        let mut due = Instant::now();
        loop {
            self.change(agents)?;
            // By the clock, not by pauses: twenty a second however long writing takes.
            due += PERIOD;
            let pause = due.saturating_duration_since(Instant::now());
            if done.recv_timeout(pause) != Err(RecvTimeoutError::Timeout) {
                return Ok(());
            }
        }
    }

    /// In the text of all agents, and in the files of some: the others' hear of it with the next change.
    fn change(&mut self, agents: usize) -> Result<()> {
        for _ in 0..CHANGES {
            let new = address(WORKLOADS.wrapping_add(self.next));
            for document in &mut self.documents {
                let slot = document.slots[(self.next % WORKLOADS) as usize];
                document.text[slot..slot + new.len()].copy_from_slice(new.as_bytes());
            }
            self.next = self.next.wrapping_add(1);
        }
        for document in self.documents.iter().take(agents) {
            replace_file(&document.file, &document.text)?;
        }
        Ok(())
    }

    /// The workload that was changed last and its address.
    fn last(&self) -> Result<(String, IpAddr)> {
        let last = self.next.wrapping_sub(1);
        let address = address(WORKLOADS.wrapping_add(last)).parse()?;
        Ok((uid(last % WORKLOADS), address))
    }
}

/// Waits until an agent has taken a change: without that something else was measured.
fn taken(agent: &Agent, uid: &str, address: IpAddr) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(problem) = agent.status()?.config.rejected {
            bail!("{} rejected its configuration: {problem}", agent.node());
        }
        let workloads = agent.workloads()?;
        let workload = workloads.iter().find(|workload| workload.uid == uid);
        if workload.is_some_and(|workload| workload.addresses.contains(&address)) {
            return Ok(());
        }
        ensure!(
            Instant::now() < end,
            "{} did not take its new configuration",
            agent.node()
        );
        thread::sleep(ASK);
    }
}

// === impl Document ===

impl Document {
    fn new(file: PathBuf, text: String) -> Result<Self> {
        let text = text.into_bytes();
        let mut from = 0;
        let slots = (0..WORKLOADS).map(|number| {
            let found = memchr::memmem::find(&text[from..], address(number).as_bytes());
            from += found.with_context(|| format!("no {} in the configuration", address(number)))?;
            Ok(from)
        });
        let slots = slots.collect::<Result<_>>()?;
        Ok(Self { file, text, slots })
    }
}

fn uid(number: u32) -> String {
    format!("load-{number:05}")
}

/// An address of 10.64.0.0/10. All have the same length as text, so that one takes another's place; 681,408 differ.
fn address(number: u32) -> String {
    /// Three digits: 100 to 255, and 100 to 127 for the one that ends the prefix.
    const BYTES: u32 = 156;
    const FIRST: u32 = 28;
    let (a, b, c) = (
        number / BYTES / BYTES % FIRST,
        number / BYTES % BYTES,
        number % BYTES,
    );
    format!("10.{}.{}.{}", 100 + a, 100 + b, 100 + c)
}

fn workload(number: u32) -> WorkloadConfig {
    WorkloadConfig {
        uid: uid(number),
        name: uid(number),
        namespace: namespace(number),
        service_account: "default".to_owned(),
        addresses: address(number).parse().into_iter().collect(),
        node: "elsewhere".to_owned(),
        zone: None,
        labels: std::collections::BTreeMap::new(),
        tunnel: TunnelProtocol::Hbone,
    }
}

fn namespace(number: u32) -> String {
    format!("load-{}", number % NAMESPACES)
}

/// A thousand: half of them concern the measured servers by their label, a tenth by their namespace, and of all these
/// only the last concerns the client, which it allows.
fn policies() -> Vec<Value> {
    let (label, value) = SERVER_LABEL;
    let client = format!("cluster.local/ns/{NAMESPACE}/sa/{CLIENT}");
    let deny = (0..DENY_SERVER).map(|number| {
        let mut policy = policy(&format!("deny-{number}"), NAMESPACE, "DENY", &other(number));
        policy["selector"] = json!({ "matchLabels": { label: value } });
        policy
    });
    let allow = (0..ALLOW_NAMESPACE)
        .map(|number| policy(&format!("allow-{number}"), NAMESPACE, "ALLOW", &other(number)));
    let elsewhere = (0..ELSEWHERE).map(|number| {
        let action = if number % 2 == 0 { "ALLOW" } else { "DENY" };
        let namespace = format!("load-{}", number % NAMESPACES as usize);
        let mut policy = policy(&format!("elsewhere-{number}"), &namespace, action, &other(number));
        if number % 4 < 2 {
            policy["selector"] = json!({ "matchLabels": { "app": format!("app-{number}") } });
        }
        policy
    });
    let client = policy("allow-client", NAMESPACE, "ALLOW", &client);
    elsewhere.chain(deny).chain(allow).chain([client]).collect()
}

fn policy(name: &str, namespace: &str, action: &str, principal: &str) -> Value {
    json!({
        "name": name,
        "namespace": namespace,
        "action": action,
        "rules": [{ "from": [{ "source": { "principals": [principal] } }] }],
    })
}

/// A principal that makes no connection here.
fn other(number: usize) -> String {
    format!(
        "cluster.local/ns/load-{}/sa/other-{number}",
        number % NAMESPACES as usize
    )
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    #[test]
    fn addresses_have_one_length_and_are_in_one_prefix() {
        for number in [0, 155, 156, 9_999, 10_000, 681_407, 681_408, u32::MAX] {
            let text = address(number);
            assert_eq!(text.len(), address(0).len(), "{text}");
            let IpAddr::V4(v4) = text.parse().unwrap() else {
                panic!("{text}");
            };
            assert_eq!(
                v4.to_bits() >> 22,
                u32::from_be_bytes([10, 64, 0, 0]) >> 22,
                "{text}"
            );
        }
        let different: BTreeSet<_> = (0..681_408).map(address).collect();
        assert_eq!(different.len(), 681_408);
    }

    #[test]
    fn a_change_gives_some_workloads_new_addresses_and_leaves_all_else() {
        let folder = std::env::temp_dir().join(format!("weir-lab-load-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join("workloads.yaml");
        let before: Vec<_> = (0..WORKLOADS).map(workload).collect();
        let text =
            serde_saphyr::to_string(&json!({ "authorizationPolicies": policies(), "workloads": before }));
        let document = Document::new(file.clone(), text.unwrap()).unwrap();
        let mut load = Load {
            documents: vec![document],
            // Round the end, with the second ten.
            next: WORKLOADS - CHANGES / 2,
        };
        load.change(1).unwrap();
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
        let mut after: Value = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(after["authorizationPolicies"], Value::from(policies()));
        let after: Vec<WorkloadConfig> = serde_json::from_value(after["workloads"].take()).unwrap();
        let changed: Vec<_> = (0..WORKLOADS as usize)
            .filter(|number| before[*number] != after[*number])
            .collect();
        assert_eq!(changed, (0..10).chain(9_990..10_000).collect::<Vec<_>>());
        let addresses: BTreeSet<_> = after.iter().map(|workload| workload.addresses[0]).collect();
        assert_eq!(addresses.len(), WORKLOADS as usize);
        let (uid, address) = load.last().unwrap();
        assert_eq!((uid.as_str(), address), ("load-00009", after[9].addresses[0]));
    }

    #[test]
    fn of_a_thousand_policies_one_concerns_the_client() {
        let policies = policies();
        assert_eq!(policies.len(), 1000);
        let names: BTreeMap<_, _> = policies
            .iter()
            .map(|policy| {
                (
                    policy["namespace"].to_string() + &policy["name"].to_string(),
                    policy,
                )
            })
            .collect();
        assert_eq!(names.len(), policies.len());
        let concerned: Vec<_> = policies
            .iter()
            .filter(|policy| policy.to_string().contains("ns/bench/sa/client"))
            .map(|policy| (policy["action"].as_str().unwrap(), &policy["selector"]))
            .collect();
        assert_eq!(concerned, [("ALLOW", &Value::Null)]);
    }
}
