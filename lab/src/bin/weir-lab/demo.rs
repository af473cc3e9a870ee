//! `weir-lab demo`: a small shop on two nodes, its traffic, the flows as they happen, and what the wire really carried.

mod traffic;

use std::{
    collections::HashMap,
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use anyhow::Result;
use clap::Args;
use serde::Serialize;
use weir::style::bytes;
use weir_lab::{Agent, Findings, Lab, Pod, PodSpec, config::ServiceConfig, run, signal};
use weir_types::{Flow, FlowEvent, FlowPath, TrafficDirection};

use crate::narrator::Narrator;

/// The tunnel's port; nothing else may pass between the nodes.
const TUNNEL_PORT: u16 = 15008;
/// How long the last flows may take to be recorded after their connections ended.
const SETTLE: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cargo xtask demo
  cargo xtask demo --keep
  cargo xtask demo --json | jq .bytes_tunnelled")]
pub(crate) struct Demo {
    /// Leave it running until Ctrl-C.
    #[arg(long)]
    keep: bool,
    /// Print the summary as JSON on standard output, and all else on standard error.
    #[arg(long)]
    json: bool,
}

/// The shop: two pods on each node.
struct Shop {
    frontend: Pod,
    checkout: Pod,
    cart: Pod,
    store: Pod,
}

#[derive(Debug, Serialize)]
struct Summary {
    connections_captured: u64,
    bytes_tunnelled: u64,
    tls_bytes_on_link: u64,
    plaintext_on_link: bool,
    packets_on_link: u64,
    /// What did not happen as it should.
    failures: Vec<String>,
    flows: Vec<Flow>,
}

/// A service address that no interface has.
const CART_V4: [u8; 4] = [10, 96, 0, 10];
const CART_V6: [u16; 8] = [0xfd00, 0x96, 0, 0, 0, 0, 0, 0x10];

impl Demo {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let tell = Narrator { json: self.json };
        weir_lab::require_root()?;
        for id in run::sweep()? {
            tell.say(format!("removed what an earlier run ({id}) left"));
        }
        let lab = Lab::new("demo")?;
        tell.say(format!("lab {}: two nodes, joined by a link", lab.id()));
        let shop = Shop::open(&lab)?;
        for pod in [&shop.frontend, &shop.checkout, &shop.cart, &shop.store] {
            tell.say(format!(
                "  {} pod {:<14} {} {}",
                pod.spec().node,
                pod.uid(),
                pod.v4(),
                pod.v6()
            ));
        }
        let service = ServiceConfig::new(
            "shop",
            "cart",
            [CART_V4.into(), CART_V6.into()],
            (80, traffic::HTTP),
            [shop.cart.uid()],
        );
        let agents = lab.start_agents_with(|config| config.services.push(service.clone()))?;
        tell.say("  an agent on each node is ready; live flows:");
        let flows = follow(&agents, tell)?;

        let canary = format!("weir-demo-canary-{}", lab.id());
        let servers = traffic::start_servers(&lab, &shop, &canary)?;
        let capture = lab.capture("node1", &[canary.as_bytes()])?;
        let failures = traffic::run(&shop, &canary, tell);
        settle(&flows);
        let findings = capture.stop()?;
        let recorded = flows.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let summary = Summary::new(recorded, &findings, failures);
        summary.tell(tell);
        if self.json {
            println!("{}", serde_json::to_string(&summary)?);
        }
        let outcome = if summary.failures.is_empty() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        };
        if self.keep {
            let interrupts = signal::interrupts();
            how_to_look_around(&lab, &shop, &agents, tell);
            interrupts.recv()?;
            tell.say("removing the lab");
        }
        drop(servers);
        drop(agents);
        lab.close()?;
        Ok(outcome)
    }
}

impl Shop {
    fn open(lab: &Lab) -> Result<Self> {
        Ok(Self {
            frontend: lab.add_pod(PodSpec::new("node1", "shop", "frontend"))?,
            checkout: lab.add_pod(PodSpec::new("node1", "shop", "checkout"))?,
            cart: lab.add_pod(PodSpec::new("node2", "shop", "cart"))?,
            store: lab.add_pod(PodSpec::new("node2", "data", "store"))?,
        })
    }
}

impl Summary {
    fn new(flows: Vec<Flow>, findings: &Findings, mut failures: Vec<String>) -> Self {
        // The last record of each connection, where its client is: the server's node has the same one again.
        let mut last = HashMap::new();
        for flow in flows
            .iter()
            .filter(|flow| flow.direction == TrafficDirection::Egress)
        {
            last.insert((flow.node.clone(), flow.connection), flow);
        }
        let through_agent = |flow: &&&Flow| matches!(flow.path, FlowPath::Tunnel | FlowPath::Plaintext);
        let tunnelled = last.values().filter(|flow| flow.path == FlowPath::Tunnel);
        let (mut connections, mut both_identities) = (0, 0);
        let mut bytes_tunnelled = 0;
        for flow in tunnelled {
            connections += 1;
            bytes_tunnelled += flow.bytes_sent + flow.bytes_received;
            both_identities +=
                u64::from(flow.source.identity.is_some() && flow.destination.identity.is_some());
        }
        let elsewhere: Vec<_> = findings
            .tcp_bytes
            .iter()
            .filter(|(port, _)| **port != TUNNEL_PORT)
            .collect();
        let plaintext_on_link =
            findings.canary_seen() || findings.other_bytes_on_tunnel_port > 0 || !elsewhere.is_empty();
        for (wrong, what) in [
            (
                connections == 0,
                "no tunnelled connection was recorded".to_owned(),
            ),
            (
                both_identities < connections,
                "a tunnelled flow lacks an identity".to_owned(),
            ),
            (
                findings.canary_seen(),
                "the plaintext canary was on the link".to_owned(),
            ),
            (findings.tls_bytes == 0, "no TLS was on the link".to_owned()),
            (
                findings.other_bytes_on_tunnel_port > 0,
                "port 15008 carried something that is not TLS".to_owned(),
            ),
            (
                !elsewhere.is_empty(),
                format!("TCP payload passed the link outside of the tunnel: {elsewhere:?}"),
            ),
        ] {
            if wrong {
                failures.push(what);
            }
        }
        Self {
            connections_captured: last.values().filter(through_agent).count() as u64,
            bytes_tunnelled,
            tls_bytes_on_link: findings.tls_bytes,
            plaintext_on_link,
            packets_on_link: findings.packets,
            failures,
            flows,
        }
    }

    fn tell(&self, tell: Narrator) {
        let plaintext = if self.plaintext_on_link {
            "PLAINTEXT WAS SEEN"
        } else {
            "none of the plaintext"
        };
        tell.say("");
        tell.say(format!("connections captured   {}", self.connections_captured));
        tell.say(format!("bytes tunnelled        {}", bytes(self.bytes_tunnelled)));
        tell.say(format!("flow records           {}", self.flows.len()));
        tell.say(format!(
            "on the link            {} of TLS on port {TUNNEL_PORT} in {} packets, {plaintext}",
            bytes(self.tls_bytes_on_link),
            self.packets_on_link
        ));
        for failure in &self.failures {
            tell.say(format!("FAILED: {failure}"));
        }
    }
}

/// Prints each agent's flows as they come, and collects them.
fn follow(agents: &[Agent], tell: Narrator) -> Result<Arc<Mutex<Vec<Flow>>>> {
    let flows = Arc::<Mutex<Vec<Flow>>>::default();
    for agent in agents {
        let stream = agent.follow()?;
        let flows = flows.clone();
        // Ends with the agent.
        thread::spawn(move || {
            for flow in stream.map_while(Result::ok) {
                tell.flow(&flow);
                flows.lock().unwrap_or_else(PoisonError::into_inner).push(flow);
            }
        });
    }
    Ok(flows)
}

/// Waits until every connection that was opened is closed in the records of both its ends.
fn settle(flows: &Mutex<Vec<Flow>>) {
    let _ = weir_lab::poll("all flows to be closed", SETTLE, || {
        let flows = flows.lock().unwrap_or_else(PoisonError::into_inner);
        let count = |event| flows.iter().filter(|flow| flow.event == event).count();
        Ok((count(FlowEvent::Open) > 0 && count(FlowEvent::Open) <= count(FlowEvent::Close)).then_some(()))
    });
}

fn how_to_look_around(lab: &Lab, shop: &Shop, agents: &[Agent], tell: Narrator) {
    let own = std::env::current_exe().unwrap_or_else(|_| "weir-lab".into());
    let enter = format!("{} enter", own.display());
    let weir = own.with_file_name("weir");
    let [http, v4] = [
        traffic::HTTP.to_string(),
        std::net::Ipv4Addr::from(CART_V4).to_string(),
    ];
    tell.say("\nIt is left running until Ctrl-C. To enter a pod (its network namespace and its cgroup):");
    tell.say(format!("  {enter} {} -- sh", shop.frontend.uid()));
    tell.say("Commands to try:");
    let testapp = own.with_file_name("weir-testapp");
    tell.say(format!("  {enter} {} -- curl http://{v4}/", shop.frontend.uid()));
    tell.say(format!(
        "  {enter} {} -- {} http-client http://{}:{http}/",
        shop.checkout.uid(),
        testapp.display(),
        shop.cart.v4()
    ));
    for agent in agents {
        let socket = agent.config().api.socket.display();
        tell.say(format!("  {} flows --follow --socket {socket}", weir.display()));
    }
    if let Some(agent) = agents.first() {
        tell.say(format!(
            "  {} status --socket {}",
            weir.display(),
            agent.config().api.socket.display()
        ));
    }
    tell.say(format!(
        "Configurations, which the agents take up when they change, and logs: {}\n",
        lab.folder().display()
    ));
}
