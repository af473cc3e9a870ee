//! Much data, and many connections.

use std::time::Duration;

use weir_e2e::{Mesh, run, serve};
use weir_lab::Spawn as _;
use weir_types::{FlowEvent, TrafficDirection};

/// One machine with two busy cores moves a GiB both ways through an unoptimised build in this time.
const LONG: Duration = Duration::from_secs(300);

#[test]
fn a_gibibyte_both_ways_at_once_arrives_intact() {
    const GIB: u64 = 1 << 30;
    let mesh = Mesh::new("gib");
    let (_server, _) = serve(&mesh.c, ["bulk-server", "--port", "7000"]);
    let to = format!("{}:7000", mesh.c.v4());
    let client = mesh
        .a
        .testapp(["bulk-client", &to, "--bytes", &GIB.to_string(), "--both"])
        .unwrap();
    let line = client.wait(LONG).unwrap().success().unwrap().json().unwrap();
    assert_eq!(line["verified"], true, "{line}");
    let flow = mesh.flow(&mesh.a, TrafficDirection::Egress, FlowEvent::Close, 7000);
    assert!(flow.bytes_sent >= GIB && flow.bytes_received >= GIB, "{flow:?}");
}

#[test]
fn two_thousand_connections_at_once_are_all_served() {
    let mesh = Mesh::new("many");
    let (_server, _) = serve(&mesh.c, ["rr-server", "--port", "7000"]);
    let to = format!("{}:7000", mesh.c.v4());
    let client = mesh
        .a
        .testapp(["hold-client", &to, "--connections", "2000", "--concurrency", "64"])
        .unwrap();
    let held = client.wait_json("held").unwrap();
    assert_eq!(held, 2000, "{held}");
    let status = mesh.agent(&mesh.a).status().unwrap();
    let pod = status.pods.iter().find(|pod| pod.uid == "shop-a").unwrap();
    assert_eq!(pod.connections, 2000);
    drop(client);
    let open = || {
        mesh.agents
            .iter()
            .map(|agent| agent.status().unwrap().kernel_connections)
            .sum::<u64>()
    };
    weir_lab::poll("every entry removed", weir_lab::PATIENCE, || {
        Ok((open() == 0).then_some(()))
    })
    .unwrap();
    // And the mesh still works.
    run(&mesh.a, ["crr-client", &to, "--seconds", "0.2"])
        .success()
        .unwrap();
}
