//! `weir explain` says what live connections then do.

use std::process::Command;

use serde_json::{Value, json};
use weir_e2e::{
    Mesh,
    direct::{self, at, from, policy},
    run, serve,
};
use weir_lab::{
    Agent, Pod, PodSpec,
    config::{AgentConfig, SameNodeMode, ServiceConfig},
};

/// Sets of generated policies that are put in force one after the other.
const SETS: u64 = 30;

/// SplitMix64: the same policies in each run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }

    fn one_of<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::try_from(self.below(of.len() as u64)).unwrap()]
    }

    fn policy(&mut self, index: u64) -> Value {
        let mut rule = json!({});
        if self.below(4) > 0 {
            let value = self.one_of(&[
                ("principals", "cluster.local/ns/shop/sa/a"),
                ("principals", "*/sa/d"),
                ("principals", "*"),
                ("notPrincipals", "cluster.local/ns/shop/sa/a"),
                ("namespaces", "shop"),
                ("notNamespaces", "shop"),
                ("serviceAccounts", "d"),
                ("ipBlocks", "10.1.0.0/24"),
                ("notIpBlocks", "10.1.0.2"),
            ]);
            rule["from"] = json!([{ "source": { value.0: [value.1] } }]);
        }
        if self.below(2) == 0 {
            let field = self.one_of(&["ports", "notPorts"]);
            rule["to"] = json!([{ "operation": { field: [self.one_of(&["7000", "7001"])] } }]);
        }
        let mut policy = json!({
            "name": format!("p{index}"),
            "namespace": self.one_of(&["shop", "shop", "weir-system", "elsewhere"]),
            "action": self.one_of(&["ALLOW", "DENY"]),
            "dryRun": self.below(6) == 0,
            "rules": [rule],
        });
        if self.below(3) == 0 {
            policy["selector"] = json!({ "matchLabels": { "app": self.one_of(&["b", "c"]) } });
        }
        policy
    }
}

fn explain(agent: &Agent, from: &str, to: &str, port: &str) -> Value {
    let output = Command::new(weir_lab::program("weir").unwrap())
        .arg("--socket")
        .arg(&agent.config().api.socket)
        .args([
            "explain", "--from", from, "--to", to, "--port", port, "--format", "json",
        ])
        .output()
        .unwrap();
    let code = output.status.code().unwrap();
    assert!(
        [0, 4].contains(&code),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let explanation: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(explanation["verdict"] == "forwarded", code == 0);
    explanation
}

/// Whether the server's word came back.
fn connects(pod: &Pod, host: &str, port: &str) -> bool {
    let to = format!("{host}:{port}");
    let result = run(pod, ["many", &to, "--connections", "1"]).json().unwrap();
    let got = result["counts"]
        .as_object()
        .is_some_and(|counts| !counts.is_empty());
    let failed = result["errors"]
        .as_object()
        .is_some_and(|errors| !errors.is_empty());
    assert_ne!(got, failed, "{result}");
    got
}

#[test]
fn explain_says_what_live_connections_then_do_under_generated_policies() {
    let vip = "10.96.0.10";
    let change = |config: &mut AgentConfig| {
        config.same_node(SameNodeMode::Direct);
        let api = ["shop-b".to_owned(), "shop-c".to_owned()];
        let service = ServiceConfig::new("shop", "api", [vip.parse().unwrap()], (7000, 7001), api);
        config.services.push(service);
    };
    let mut mesh = Mesh::with("explain", change);
    let plain = mesh
        .lab
        .add_pod(PodSpec::new("node1", "shop", "plain").outside_mesh())
        .unwrap();
    let mut servers = Vec::new();
    for (pod, name) in [(&mesh.b, "b"), (&mesh.c, "c")] {
        for port in ["7000", "7001"] {
            servers.push(serve(pod, ["name-server", "--name", name, "--port", port]));
        }
    }
    let (b, c) = (mesh.b.v4().to_string(), mesh.c.v4().to_string());
    let mut dice = Dice(7);
    let mut seen = [0_u32; 2];
    for set in 0..SETS {
        let policies: Vec<Value> = (0..=dice.below(4)).map(|index| dice.policy(index)).collect();
        for agent in &mut mesh.agents {
            let status = agent
                .reload(|config| {
                    config.authorization_policies.clone_from(&policies);
                    config.peer_authentications.clear();
                    match set % 3 {
                        0 => config.strict(),
                        1 => config.strict_workload("shop", "b"),
                        _ => {}
                    }
                })
                .unwrap();
            assert_eq!(status.config.rejected, None);
        }
        let plain_address = plain.v4().to_string();
        for (client, from, host, to) in [
            (&mesh.a, "shop/a", b.as_str(), "pod/shop/b"),
            (&mesh.a, "shop/a", b.as_str(), "shop/b"),
            (&mesh.a, "shop/a", c.as_str(), "shop/c"),
            (&mesh.d, "shop/d", b.as_str(), "shop/b"),
            (&mesh.d, "shop/d", c.as_str(), "shop/c"),
            (&mesh.a, "shop/a", vip, "shop/api"),
            (&plain, plain_address.as_str(), b.as_str(), "shop/b"),
            (&plain, plain_address.as_str(), c.as_str(), "shop/c"),
        ] {
            for port in ["7000", "7001"] {
                if host == vip && port == "7001" {
                    continue;
                }
                // Each agent has the same configuration: the one of the client's node is asked.
                let agent = mesh
                    .agents
                    .iter()
                    .find(|agent| agent.node() == client.spec().node)
                    .unwrap();
                let explanation = explain(agent, from, to, port);
                let lives = connects(client, host, port);
                assert_eq!(
                    explanation["verdict"] == "forwarded",
                    lives,
                    "{from} to {to}:{port} under {policies:#?}: {explanation:#}"
                );
                seen[usize::from(lives)] += 1;
            }
        }
    }
    assert!(seen.iter().all(|count| *count > 50), "both happen: {seen:?}");
}

#[test]
fn explain_names_the_agent_only_as_long_as_it_would_be_asked() {
    let mut mesh = direct::mesh("asked");
    let (_server, _) = serve(&mesh.b, ["echo-server", "--port", "7000"]);
    let to = at(mesh.b.v4(), 7000);
    let components = |mesh: &Mesh| {
        let explanation = explain(mesh.agent(&mesh.a), "shop/a", &mesh.b.v4().to_string(), "7000");
        let steps = explanation["steps"].as_array().unwrap().iter();
        let components = steps.map(|step| step["component"].as_str().unwrap().to_owned());
        components.collect::<Vec<_>>()
    };
    let (kernel, agent) = ("kernel of node1".to_owned(), "agent of node1".to_owned());
    assert_eq!(components(&mesh), [&kernel, &agent, &kernel].map(Clone::clone));
    mesh.learn(&mesh.a, &to);
    assert_eq!(components(&mesh), [&kernel, &kernel].map(Clone::clone));
    mesh.set_policies(&[policy("DENY", "b", &from("a"))]);
    assert_eq!(components(&mesh), [&kernel, &agent].map(Clone::clone));
    let line = run(&mesh.a, ["connect", &to, "--send", "x", "--read", "1"])
        .json()
        .unwrap();
    assert_eq!(line["text"], "", "{line}");
    assert_eq!(components(&mesh), [kernel]);
}
