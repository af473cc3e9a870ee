//! Services: which endpoint the kernel and the agent pick.

use std::{collections::BTreeMap, time::Duration};

use serde_json::Value;
use weir_e2e::{Mesh, serve};
use weir_lab::{
    Pod, PodSpec, Process, Spawn as _,
    config::{SameNodeMode, ServiceConfig},
};
use weir_types::FlowPath;

const VIP: &str = "10.96.0.10";
/// Connections of the test of the kernel's picks.
const MANY: u64 = 100_000;
/// Connections of the test with endpoints on both nodes, half of which the agent carries.
const SOME: u64 = 6_000;
/// Longest that they may take.
const LONG: Duration = Duration::from_secs(120);

/// A service of these pods, on port 80 of [`VIP`].
fn service(pods: &[&str], distribution: Option<&str>) -> ServiceConfig {
    let endpoints = pods.iter().map(|pod| format!("shop-{pod}"));
    let mut service = ServiceConfig::new("shop", "api", [VIP.parse().unwrap()], (80, 7000), endpoints);
    service.traffic_distribution = distribution.map(str::to_owned);
    service
}

fn named(pod: &Pod) -> Process {
    serve(pod, ["name-server", "--name", &pod.spec().name, "--port", "7000"]).0
}

/// How many connections of a pod to the service each server answered.
fn counts(client: &Pod, connections: u64) -> BTreeMap<String, u64> {
    let program = client
        .testapp([
            "many",
            &format!("{VIP}:80"),
            "--connections",
            &connections.to_string(),
            "--threads",
            "4",
        ])
        .unwrap();
    let result = program.wait(LONG).unwrap().success().unwrap().json().unwrap();
    assert_eq!(result["errors"], Value::Object(Default::default()), "{result}");
    serde_json::from_value(result["counts"].clone()).unwrap()
}

/// Fails when the counts are not what even picks give once in a thousand runs (chi-square).
fn assert_even(counts: &BTreeMap<String, u64>, servers: &[&str; 3]) {
    assert_eq!(counts.keys().map(String::as_str).collect::<Vec<_>>(), servers);
    let total: u64 = counts.values().sum();
    let expected = total as f64 / servers.len() as f64;
    let deviation = |count: &u64| (*count as f64 - expected).powi(2) / expected;
    let chi_square: f64 = counts.values().map(deviation).sum();
    assert!(chi_square < CRITICAL, "{counts:?}: chi-square {chi_square}");
}

/// Critical value of the chi-square distribution at 0.001, for 2 degrees of freedom: three servers.
const CRITICAL: f64 = 13.816;

#[test]
fn the_kernel_picks_each_of_the_endpoints_that_policy_allows_equally_often() {
    let deny_f = serde_json::json!({
        "name": "not-f", "namespace": "shop", "action": "DENY", "rules": [{}],
        "selector": { "matchLabels": { "app": "f" } },
    });
    let mut mesh = Mesh::with("chi", |_| {});
    let more: Vec<Pod> = ["e", "f", "g"]
        .iter()
        .map(|name| mesh.lab.add_pod(PodSpec::new("node1", "shop", name)).unwrap())
        .collect();
    for agent in &mut mesh.agents {
        agent
            .reload(|config| {
                config.workloads.extend(more.iter().map(Pod::workload));
                if config.node == "node1" {
                    config.pods.extend(more.iter().map(Pod::config));
                }
                config.same_node(SameNodeMode::Direct);
                config.strict();
                config.authorization_policies.push(deny_f.clone());
                config.services.push(service(&["b", "e", "f", "g"], None));
            })
            .unwrap();
    }
    let _servers: Vec<Process> = more.iter().chain([&mesh.b]).map(named).collect();
    let counts = counts(&mesh.a, MANY);
    assert_even(&counts, &["b", "e", "g"]);
    // All but the first went straight to their pod.
    let flows = mesh.agent(&mesh.a).flows().unwrap();
    let direct = flows.iter().filter(|flow| flow.path == FlowPath::Direct).count();
    assert!(
        direct * 10 > flows.len() * 9,
        "{direct} of {} flows are direct",
        flows.len()
    );
}

#[test]
fn endpoints_of_both_nodes_are_picked_equally_often() {
    let mesh = Mesh::with("even", |config| {
        config.same_node(SameNodeMode::Direct);
        config.services.push(service(&["b", "c", "d"], None));
    });
    let _servers = [named(&mesh.b), named(&mesh.c), named(&mesh.d)];
    assert_even(&counts(&mesh.a, SOME), &["b", "c", "d"]);
}

#[test]
fn endpoints_of_one_node_are_picked_first_where_the_service_asks_for_it() {
    for mode in [SameNodeMode::Direct, SameNodeMode::Mtls] {
        let mut mesh = Mesh::with("near", |config| {
            config.same_node(mode);
            config
                .services
                .push(service(&["b", "c", "d"], Some("PreferSameNode")));
        });
        let _servers = [named(&mesh.b), named(&mesh.c), named(&mesh.d)];
        let all_b: BTreeMap<String, u64> = [("b".to_owned(), 200)].into();
        assert_eq!(counts(&mesh.a, 200), all_b, "{mode:?}");
        // Not healthy: the others serve.
        for agent in &mut mesh.agents {
            agent
                .reload(|config| config.services = vec![service(&["c", "d"], Some("PreferSameNode"))])
                .unwrap();
        }
        let others = counts(&mesh.a, 200);
        assert_eq!(
            others.keys().map(String::as_str).collect::<Vec<_>>(),
            ["c", "d"],
            "{mode:?}"
        );
    }
}

#[test]
fn endpoints_of_the_clients_zone_are_picked_first_where_the_service_asks_for_it() {
    let mesh = Mesh::with("zone", |config| {
        for workload in &mut config.workloads {
            let near = workload.name != "d";
            workload.zone = Some(if near { "z1" } else { "z2" }.to_owned());
        }
        config.same_node(SameNodeMode::Direct);
        config
            .services
            .push(service(&["b", "c", "d"], Some("PreferSameZone")));
    });
    let _servers = [named(&mesh.b), named(&mesh.c), named(&mesh.d)];
    let counts = counts(&mesh.a, 1_000);
    assert_eq!(
        counts.keys().map(String::as_str).collect::<Vec<_>>(),
        ["b", "c"],
        "{counts:?}"
    );
    assert!(counts.values().all(|count| *count > 400), "{counts:?}");
}
