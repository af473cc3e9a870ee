//! The ways that a connection can take.

use weir_e2e::{Mesh, run, serve};
use weir_types::{FlowEvent, FlowPath, FlowVerdict, TrafficDirection};

#[test]
fn pods_on_two_nodes_talk_through_a_tunnel_and_both_agents_record_both_identities() {
    let mesh = Mesh::new("cross");
    let (_server, _) = serve(&mesh.c, ["http-server", "--port", "8080", "--dual-stack"]);
    for host in [mesh.c.v4().to_string(), format!("[{}]", mesh.c.v6())] {
        let url = format!("http://{host}:8080/");
        run(&mesh.a, ["http-client", &url]).success().unwrap();
        for (pod, direction) in [
            (&mesh.a, TrafficDirection::Egress),
            (&mesh.c, TrafficDirection::Ingress),
        ] {
            let flow = mesh.flow(pod, direction, FlowEvent::Close, 8080);
            assert_eq!(
                (flow.path, flow.verdict),
                (FlowPath::Tunnel, FlowVerdict::Forwarded),
                "{flow:?}"
            );
            let identity = |name: &str| {
                Some(
                    format!("spiffe://cluster.local/ns/shop/sa/{name}")
                        .parse()
                        .unwrap(),
                )
            };
            assert_eq!(flow.source.identity, identity("a"), "{flow:?}");
            assert_eq!(flow.destination.identity, identity("c"), "{flow:?}");
            assert!(flow.bytes_sent > 0 && flow.bytes_received > 0, "{flow:?}");
        }
    }
}
