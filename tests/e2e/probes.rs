//! The kubelet's probes: who may come to a STRICT pod in plaintext, and who only seems to be the kubelet.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
};

use serde_json::Value;
use weir_e2e::{
    Mesh,
    direct::{both, client, from, policy},
    identity, serve,
};
use weir_lab::{PATIENCE, Place, Pod, PodSpec, Process, Spawn};
use weir_types::{Flow, FlowEvent, FlowPath, Reason, TrafficDirection::Ingress};

/// A port at which `a` is probed, and `b` serves too.
const OF_A: u16 = 9090;
/// A port at which `b` is probed, and `a` serves too.
const OF_B: u16 = 8080;
/// A port at which nobody is probed.
const OTHER: u16 = 7000;

/// The first node's address towards its pods.
const NODE: &str = "10.1.0.1";

/// All pods are STRICT; `a` and `b` have a probe port each, and serve at all three.
struct Stage {
    mesh: Mesh,
    kubelet: Place,
    _servers: Vec<Process>,
}

impl Stage {
    fn new(name: &str) -> Self {
        let mesh = Mesh::with(name, |config| {
            config.strict();
            let folder = config.cgroup.join("kubelet");
            fs::create_dir(&folder).unwrap();
            config.kubelet_cgroup = Some(folder);
            for pod in &mut config.pods {
                pod.probe_ports = match pod.uid.as_str() {
                    "shop-a" => vec![OF_A],
                    "shop-b" => vec![OF_B],
                    _ => Vec::new(),
                };
            }
        });
        let node = mesh.lab.node("node1").unwrap();
        let kubelet = node.place().in_cgroup(node.cgroup().join("kubelet")).unwrap();
        let served = [&mesh.a, &mesh.b].into_iter().flat_map(|pod| {
            [OF_A, OF_B, OTHER].map(|port| {
                let (name, port) = (&pod.spec().name, port.to_string());
                serve(
                    pod,
                    ["name-server", "--name", name, "--port", &port, "--dual-stack"],
                )
                .0
            })
        });
        let _servers = served.collect();
        Self {
            mesh,
            kubelet,
            _servers,
        }
    }

    /// Waits for the record that a connection to `b` was refused as plaintext.
    fn refused_by_b(&self, port: u16) -> Flow {
        let refused = |flow: &Flow| flow.reason == Reason::PlaintextToStrict;
        self.mesh
            .flow_where(&self.mesh.b, Ingress, FlowEvent::Refused, port, refused)
    }
}

fn connect(place: &impl Spawn, host: IpAddr, port: u16) -> Value {
    let to = SocketAddr::new(host, port).to_string();
    let arguments = ["connect", &to, "--read", "2", "--timeout-ms", "3000"];
    place.run_testapp(arguments).unwrap().json().unwrap()
}

/// Whether the pod that has this address and name answers.
fn reaches(place: &impl Spawn, host: IpAddr, port: u16, name: &str) -> bool {
    connect(place, host, port)["text"] == format!("{name}\n")
}

fn assert_refused(place: &impl Spawn, host: IpAddr, port: u16) {
    let line = connect(place, host, port);
    assert_eq!(line["connect"], "ECONNREFUSED", "{line}");
}

#[test]
fn a_probe_reaches_a_strict_pod_at_its_own_probe_ports_and_at_no_others() {
    let stage = Stage::new("probe");
    let Stage { mesh, kubelet, .. } = &stage;
    for (a, b) in both(&mesh.a).into_iter().zip(both(&mesh.b)) {
        assert!(reaches(kubelet, b, OF_B, "b"), "{b}");
        assert!(reaches(kubelet, a, OF_A, "a"), "{a}");
        let wanted = |flow: &Flow| flow.destination.address.ip() == b;
        let flow = mesh.flow_where(&mesh.b, Ingress, FlowEvent::Close, OF_B, wanted);
        assert_eq!((flow.path, &flow.source.identity), (FlowPath::Plaintext, &None));
        assert_eq!(flow.destination.identity, identity("b"));
        let process = flow.process.unwrap();
        assert_eq!(process.name, "weir-testapp", "{process:?}");
        // Whoever writes a pod may point its probes at any address: only the port of the pod that is there counts.
        assert_refused(kubelet, b, OF_A);
        assert_refused(kubelet, a, OF_B);
        assert_refused(kubelet, b, OTHER);
        assert_refused(kubelet, a, OTHER);
        // The tunnel's port is not the kubelet's either.
        let line = connect(kubelet, b, 15008);
        assert_eq!(line["text"], "", "{line}");
    }
    for port in [OF_A, OTHER] {
        assert_eq!(stage.refused_by_b(port).source.identity, None);
    }
}

#[test]
fn a_port_that_is_no_probe_port_any_more_is_closed_to_the_kubelet() {
    let mut stage = Stage::new("unprobe");
    let b = stage.mesh.b.v4().into();
    assert!(reaches(&stage.kubelet, b, OF_B, "b"));
    let mut set = |port: u16| {
        stage.mesh.change(|config| {
            for pod in config.pods.iter_mut().filter(|pod| pod.uid == "shop-b") {
                pod.probe_ports = vec![port];
            }
        });
    };
    set(OTHER);
    assert_refused(&stage.kubelet, b, OF_B);
    assert!(reaches(&stage.kubelet, b, OTHER, "b"));
}

#[test]
fn a_process_of_the_node_outside_of_the_kubelets_cgroup_is_refused_at_a_probe_port_too() {
    let stage = Stage::new("node");
    let node = stage.mesh.lab.node("node1").unwrap();
    let cgroup = |name: &str| node.place().in_cgroup(node.cgroup().join(name)).unwrap();
    let beside = [
        cgroup("kubelet2"),
        cgroup("system/kubelet"),
        // What somebody starts below is not the kubelet itself.
        cgroup("kubelet/below"),
        node.place().clone(),
    ];
    for b in both(&stage.mesh.b) {
        for place in &beside {
            assert_refused(place, b, OF_B);
        }
    }
    assert_eq!(stage.refused_by_b(OF_B).source.identity, None);
    // Of another node: its address is no pass, its kubelet not this one's.
    let far = stage.mesh.lab.node("node2").unwrap();
    let far_kubelet = far.place().in_cgroup(far.cgroup().join("kubelet")).unwrap();
    assert_refused(&far_kubelet, stage.mesh.b.v4().into(), OF_B);
}

/// Connects again and again from the same fifty ports; gives what came of it.
fn from_ports(place: &impl Spawn, bind: &str, to: &str) -> Process {
    let ends = ["ports", "--to", to, "--bind", bind, "--seconds", "3"];
    client(
        place,
        &[&ends[..], &["--first", "20000", "--count", "50"]].concat(),
    )
}

fn ends(client: Process) -> Value {
    let line = client.wait(PATIENCE).unwrap().success().unwrap().json().unwrap();
    line["ends"].clone()
}

#[test]
fn a_port_that_the_kubelet_used_a_moment_ago_lets_no_other_process_of_the_node_in() {
    let stage = Stage::new("handover");
    let node = stage.mesh.lab.node("node1").unwrap();
    let to = SocketAddr::new(stage.mesh.b.v4().into(), OF_B).to_string();
    let kubelet = from_ports(&stage.kubelet, NODE, &to);
    let other = from_ports(node, NODE, &to);
    let (kubelet, other) = (ends(kubelet), ends(other));
    assert!(kubelet["b"].as_u64() > Some(100), "{kubelet}");
    assert_eq!(other.get("b"), None, "{other}");
    assert!(other["ECONNREFUSED"].as_u64() > Some(100), "{other}");
}

/// A pod outside of the mesh whose connections to `b` go through the node, which gives them its own address.
fn masqueraded(mesh: &Mesh) -> Pod {
    let spec = PodSpec::new("node1", "shop", "near").outside_mesh();
    let near = mesh.lab.add_pod(spec).unwrap();
    // Not over the bridge, where nothing is translated.
    let b = mesh.b.v4();
    near.ip(&[&format!("route add {b}/32 via {NODE}")]).unwrap();
    let rules = format!(
        "add table ip weir; add chain ip weir out {{ type nat hook postrouting priority 100; }}; \
         add rule ip weir out ip saddr {} snat to {NODE}",
        near.v4()
    );
    let mut nft = std::process::Command::new("nft");
    nft.arg(rules);
    let node = mesh.lab.node("node1").unwrap();
    node.run(nft).unwrap().success().unwrap();
    near
}

#[test]
fn what_is_masqueraded_to_the_nodes_address_is_not_the_kubelet() {
    let stage = Stage::new("masqprobe");
    let near = masqueraded(&stage.mesh);
    let b = IpAddr::from(stage.mesh.b.v4());
    for port in [OF_B, OTHER] {
        assert_refused(&near, b, port);
        let flow = stage.refused_by_b(port);
        assert_eq!(flow.source.address.ip().to_string(), NODE, "it was masqueraded");
    }
    // Nor from the port of a probe that is under way.
    let (to, own) = (SocketAddr::new(b, OF_B).to_string(), format!("{NODE}:5000"));
    let held = client(&stage.kubelet, &["late", "--to", &to, "--bind", &own]);
    held.wait_json("connected").unwrap();
    let bind = format!("{}:5000", near.v4());
    let line = near.run_testapp(["connect", &to, "--bind", &bind, "--read", "2"]);
    let line = line.unwrap().json().unwrap();
    assert_eq!(line["connect"], "ECONNREFUSED", "{line}");
}

#[test]
fn a_masquerade_that_races_for_the_ports_of_probes_wins_none() {
    let stage = Stage::new("masqrace");
    let near = masqueraded(&stage.mesh);
    let to = SocketAddr::new(stage.mesh.b.v4().into(), OF_B).to_string();
    let kubelet = from_ports(&stage.kubelet, NODE, &to);
    let other = from_ports(&near, &near.v4().to_string(), &to);
    let (kubelet, other) = (ends(kubelet), ends(other));
    assert!(kubelet["b"].as_u64() > Some(100), "{kubelet}");
    assert_eq!(other.get("b"), None, "{other}, the kubelet: {kubelet}");
}

#[test]
fn a_kubelet_whose_cgroup_is_made_anew_is_known_again() {
    let stage = Stage::new("anew");
    let b = IpAddr::from(stage.mesh.b.v4());
    assert!(reaches(&stage.kubelet, b, OF_B, "b"));
    // As a service manager does that restarts it.
    fs::remove_dir(stage.kubelet.cgroup()).unwrap();
    let agent = &stage.mesh.agents[0];
    weir_lab::poll("the agent to say that it is gone", PATIENCE, || {
        let errors = agent.status()?.errors;
        Ok(errors
            .iter()
            .any(|error| error.contains("kubelet's cgroup"))
            .then_some(()))
    })
    .unwrap();
    fs::create_dir(stage.kubelet.cgroup()).unwrap();
    weir_lab::poll("probes to pass again", PATIENCE, || {
        Ok(reaches(&stage.kubelet, b, OF_B, "b").then_some(()))
    })
    .unwrap();
    assert_eq!(agent.status().unwrap().errors, [""; 0]);
}

#[test]
fn a_process_of_the_kubelets_cgroup_inside_a_pods_namespace_is_the_pods() {
    let mut stage = Stage::new("inpod");
    stage.mesh.set_policies(&[policy("DENY", "b", &from("a"))]);
    let cgroup = stage.kubelet.cgroup().to_owned();
    let inside = |pod: &Pod| pod.place().in_cgroup(cgroup.clone()).unwrap();
    let mesh = &stage.mesh;
    let plain = mesh
        .lab
        .add_pod(PodSpec::new("node1", "shop", "plain").outside_mesh())
        .unwrap();
    for b in both(&mesh.b) {
        let line = connect(&inside(&mesh.a), b, OF_B);
        assert_eq!(line["text"], "", "{line}");
        assert_refused(&inside(&plain), b, OF_B);
    }
    stage.mesh.set_policies(&[]);
    let mesh = &stage.mesh;
    for b in both(&mesh.b) {
        assert!(reaches(&inside(&mesh.a), b, OF_B, "b"));
        let wanted = |flow: &Flow| flow.destination.address.ip() == b;
        let flow = mesh.flow_where(&mesh.b, Ingress, FlowEvent::Close, OF_B, wanted);
        assert_eq!(flow.source.identity, identity("a"), "{flow:?}");
        // Nor is a port of a probe anything special to it.
        assert!(reaches(&inside(&mesh.a), b, OTHER, "b"));
    }
}
