//! Clients that connect in a particular way.

use std::net::SocketAddr;

use weir_e2e::{Mesh, identity, run, serve};
use weir_types::{FlowEvent, FlowPath, TrafficDirection};

#[test]
fn bound_device_bound_non_blocking_multipath_and_mapped_clients_are_tunnelled() {
    let mesh = Mesh::new("clients");
    let (_server, _) = serve(&mesh.c, ["echo-server", "--port", "7000", "--dual-stack"]);
    let to = format!("{}:7000", mesh.c.v4());
    let to6 = format!("[{}]:7000", mesh.c.v6());
    let (own, own6) = (format!("{}:6000", mesh.a.v4()), format!("[{}]:6000", mesh.a.v6()));
    let device = "eth0";
    let table: Vec<Vec<&str>> = vec![
        vec![&to, "--bind", &own],
        vec![&to6, "--bind", &own6],
        vec![&to, "--device", device],
        vec![&to6, "--device", device],
        vec![&to, "--non-blocking"],
        vec![&to6, "--non-blocking"],
        vec![&to, "--mptcp"],
        vec![&to6, "--mptcp"],
        vec![&to, "--mapped"],
        vec![&to, "--mapped", "--non-blocking"],
    ];
    let count = table.len();
    for extra in table {
        let mut arguments = vec!["connect"];
        arguments.extend(&extra);
        arguments.extend(["--send", "hello", "--read", "5"]);
        let line = weir_lab::Spawn::run_testapp(&mesh.a, arguments)
            .unwrap()
            .json()
            .unwrap();
        assert_eq!(
            (&line["connect"], &line["text"]),
            (&"ok".into(), &"hello".into()),
            "{extra:?}: {line}"
        );
        let peer: SocketAddr = line["getpeername"].as_str().unwrap().parse().unwrap();
        let asked: SocketAddr = extra[0].parse().unwrap();
        assert_eq!(
            (peer.ip().to_canonical(), peer.port()),
            (asked.ip(), asked.port()),
            "{extra:?}: {line}"
        );
    }
    let recorded = || {
        let flows = mesh.agent(&mesh.a).flows().unwrap();
        flows
            .iter()
            .filter(|flow| flow.event == FlowEvent::Close && flow.path == FlowPath::Tunnel)
            .count()
    };
    weir_lab::poll("a record of each", weir_lab::PATIENCE, || {
        Ok((recorded() == count).then_some(()))
    })
    .unwrap();
}

#[test]
fn a_socket_that_is_connected_again_elsewhere_reaches_the_new_destination() {
    let mesh = Mesh::new("again");
    let (_c, _) = serve(&mesh.c, ["echo-server", "--port", "7000"]);
    let (_d, _) = serve(&mesh.d, ["echo-server", "--port", "7001"]);
    let (first, second) = (format!("{}:7000", mesh.c.v4()), format!("{}:7001", mesh.d.v4()));
    let line = run(
        &mesh.a,
        ["connect", &first, "--send", "x", "--read", "1", "--then", &second],
    )
    .json()
    .unwrap();
    assert_eq!(line["connect"], "ok", "{line}");
    assert_eq!(
        (&line["then"]["connect"], &line["then"]["text"]),
        (&"ok".into(), &"x".into()),
        "{line}"
    );
    assert_eq!(line["then"]["getpeername"], second.as_str(), "{line}");
    for (pod, port, name) in [(&mesh.c, 7000, "c"), (&mesh.d, 7001, "d")] {
        let flow = mesh.flow(pod, TrafficDirection::Ingress, FlowEvent::Close, port);
        assert_eq!(
            (flow.source.identity, flow.destination.identity),
            (identity("a"), identity(name))
        );
    }
    let kernel = || mesh.agent(&mesh.a).status().unwrap().kernel_connections;
    weir_lab::poll("no entry left behind", weir_lab::PATIENCE, || {
        Ok((kernel() == 0).then_some(()))
    })
    .unwrap();
}
