//! Corners in which a connection could go astray, or a change could open what is closed.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener},
    process::Command,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    time::Duration,
};

use weir_e2e::{Mesh, identity, run, serve};
use weir_lab::{PodSpec, Spawn as _, config::ServiceConfig};
use weir_types::{FlowEvent, FlowPath, Reason, TrafficDirection};

#[test]
fn a_client_on_the_servers_own_port_number_reaches_the_server_and_not_itself() {
    let mesh = Mesh::new("selfport");
    let (_server, _) = serve(
        &mesh.c,
        [
            "echo-server",
            "--port",
            "9101",
            "--dual-stack",
            "--greeting",
            "server",
        ],
    );
    for (bind, to) in [
        (format!("{}:9101", mesh.a.v4()), format!("{}:9101", mesh.c.v4())),
        (
            format!("[{}]:9101", mesh.a.v6()),
            format!("[{}]:9101", mesh.c.v6()),
        ),
    ] {
        let line = run(
            &mesh.a,
            ["connect", &to, "--bind", &bind, "--send", "x", "--read", "9"],
        )
        .json()
        .unwrap();
        assert_eq!(line["text"], "server\r\nx", "{line}");
    }
    // The same with ports that the kernel chooses, of which there are few.
    mesh.a
        .sysctl(&[("net/ipv4/ip_local_port_range", "40001 40006")])
        .unwrap();
    let (_server, _) = serve(
        &mesh.c,
        ["echo-server", "--port", "40002", "--greeting", "server"],
    );
    let to = format!("{}:40002", mesh.c.v4());
    for _ in 0..12 {
        let line = run(&mesh.a, ["connect", &to, "--read", "6"]).json().unwrap();
        assert!(line["connect"] != "ok" || line["text"] == "server", "{line}");
    }
    // Nobody there is nobody there.
    let line = run(
        &mesh.a,
        ["connect", &format!("{}:40003", mesh.d.v4()), "--read-all"],
    )
    .json()
    .unwrap();
    assert_ne!(line["end"], "eof", "{line}");
}

#[test]
fn a_client_bound_to_another_address_of_its_pod_reaches_the_server_and_not_its_own_pod() {
    let mesh = Mesh::new("second");
    mesh.a.ip(&["addr add 10.1.0.77/24 dev eth0"]).unwrap();
    let (_own, _) = serve(&mesh.a, ["echo-server", "--port", "9102", "--greeting", "myself"]);
    let (_server, _) = serve(&mesh.c, ["echo-server", "--port", "9102", "--greeting", "server"]);
    let to = format!("{}:9102", mesh.c.v4());
    let line = run(&mesh.a, ["connect", &to, "--bind", "10.1.0.77:0", "--read", "6"])
        .json()
        .unwrap();
    assert_eq!(line["text"], "server", "{line}");
    let flow = mesh.flow(&mesh.a, TrafficDirection::Egress, FlowEvent::Close, 9102);
    assert_eq!(
        (flow.path, flow.source.identity),
        (FlowPath::Tunnel, identity("a"))
    );
    // And others reach the pod at that address.
    let plain = mesh
        .lab
        .add_pod(PodSpec::new("node1", "shop", "plain").outside_mesh())
        .unwrap();
    let line = run(&plain, ["connect", "10.1.0.77:9102", "--read", "6"])
        .json()
        .unwrap();
    assert_eq!(line["text"], "myself", "{line}");
}

#[test]
fn a_change_of_labels_touches_no_connection_and_a_change_of_identity_opens_no_gap() {
    let mut mesh = Mesh::with("labels", |config| {
        config.strict();
    });
    let plain = mesh
        .lab
        .add_pod(PodSpec::new("node2", "shop", "plain").outside_mesh())
        .unwrap();
    let (_server, _) = serve(&mesh.c, ["echo-server", "--port", "7000"]);
    let to: SocketAddr = format!("{}:7000", mesh.c.v4()).parse().unwrap();
    let held = mesh
        .a
        .testapp([
            "connect",
            &to.to_string(),
            "--send",
            "x",
            "--read",
            "2",
            "--timeout-ms",
            "8000",
        ])
        .unwrap();
    let _ = mesh.flow(&mesh.c, TrafficDirection::Ingress, FlowEvent::Open, 7000);

    // Plaintext is tried all the time; none of it may ever get an answer.
    let (stop, tried, answered) = (AtomicBool::new(false), AtomicU32::new(0), AtomicU32::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            plain
                .inside(|| {
                    while !stop.load(Ordering::Relaxed) {
                        tried.fetch_add(1, Ordering::Relaxed);
                        let patience = Duration::from_millis(200);
                        let Ok(mut stream) = std::net::TcpStream::connect_timeout(&to, patience) else {
                            continue;
                        };
                        stream.set_read_timeout(Some(patience))?;
                        let mut byte = [0];
                        if stream
                            .write_all(b"x")
                            .and_then(|()| stream.read(&mut byte))
                            .is_ok_and(|count| count > 0)
                        {
                            answered.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                    Ok(())
                })
                .unwrap();
        });
        let agent = mesh
            .agents
            .iter_mut()
            .find(|agent| agent.node() == "node2")
            .unwrap();
        for label in ["one", "two", "three"] {
            let change = |config: &mut weir_lab::AgentConfig| {
                for workload in config
                    .workloads
                    .iter_mut()
                    .filter(|workload| workload.uid == "shop-c")
                {
                    workload.labels.insert("version".to_owned(), label.to_owned());
                }
            };
            assert_eq!(agent.reload(change).unwrap().config.rejected, None);
        }
        let line = held.wait(weir_lab::PATIENCE).unwrap().json().unwrap();
        assert_eq!(line["end"], "EAGAIN", "timed out, since nothing ended it: {line}");
        let change = |config: &mut weir_lab::AgentConfig| {
            for workload in config
                .workloads
                .iter_mut()
                .filter(|workload| workload.uid == "shop-c")
            {
                workload.service_account = "other".to_owned();
            }
            for pod in config.pods.iter_mut().filter(|pod| pod.uid == "shop-c") {
                pod.service_account = "other".to_owned();
            }
        };
        for _ in 0..3 {
            assert_eq!(agent.reload(change).unwrap().config.rejected, None);
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(tried.load(Ordering::Relaxed) > 100, "{tried:?}");
    assert_eq!(
        answered.load(Ordering::Relaxed),
        0,
        "plaintext got through to a STRICT pod"
    );
    let pods = mesh.agent(&mesh.c).status().unwrap().pods;
    let changed = pods.iter().find(|pod| pod.uid == "shop-c").unwrap();
    assert!(
        changed.enrolled && Some(changed.identity.clone()) == identity("other"),
        "{changed:?}"
    );
}

#[test]
fn an_agent_that_is_stopped_or_dies_resets_what_it_carries() {
    for signal in ["-TERM", "-KILL"] {
        let mesh = Mesh::new("truncate");
        let listener = mesh.c.inside(|| Ok(TcpListener::bind("0.0.0.0:7000")?)).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(&[7; 1000]).unwrap();
            // Not the end of the data.
            stream.read(&mut [0; 1]).map_err(|error| error.kind())
        });
        let to = format!("{}:7000", mesh.c.v4());
        let client = mesh
            .a
            .testapp(["connect", &to, "--read-all", "--timeout-ms", "30000"])
            .unwrap();
        let _ = mesh.flow(&mesh.a, TrafficDirection::Egress, FlowEvent::Open, 7000);
        let pid = mesh.agent(&mesh.a).pid().to_string();
        assert!(
            Command::new("kill")
                .args([signal, &pid])
                .status()
                .unwrap()
                .success()
        );
        let line = client.wait(weir_lab::PATIENCE).unwrap().json().unwrap();
        assert_eq!(line["end"], "ECONNRESET", "{signal}: {line}");
        assert_eq!(
            server.join().unwrap(),
            Err(std::io::ErrorKind::ConnectionReset),
            "{signal}"
        );
    }
}

#[test]
fn a_running_agents_programs_are_not_taken_from_it() {
    let mesh = Mesh::new("theft");
    let agent = &mesh.agents[0];
    let program = weir_lab::program("weir-agent").unwrap();
    let detach = Command::new(&program)
        .arg("--config")
        .arg(agent.config_file())
        .arg("--detach")
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&detach.stderr).into_owned();
    assert!(
        !detach.status.success() && error.contains("another agent uses these pins"),
        "{error}"
    );

    let mut other = agent.config().clone();
    other.api.socket = mesh.lab.folder().join("other.sock");
    other.metrics.address.set_port(15021);
    other.pods.clear();
    let second = mesh.lab.launch_agent(other).unwrap();
    assert!(!second.wait_end().unwrap().success());
    assert!(
        second.log().contains("another agent uses these pins"),
        "{}",
        second.log()
    );

    let (_server, _) = serve(&mesh.c, ["echo-server", "--port", "7000"]);
    run(&mesh.a, ["echo-client", &format!("{}:7000", mesh.c.v4())])
        .success()
        .unwrap();
    let flow = mesh.flow(&mesh.a, TrafficDirection::Egress, FlowEvent::Close, 7000);
    assert_eq!(flow.path, FlowPath::Tunnel);
}

#[test]
fn a_ca_whose_certificate_is_missing_is_told_and_not_made_anew() {
    let mesh = Mesh::new("cagone");
    let ca = mesh.lab.folder().join("ca");
    let key = fs::read(ca.join("ca.key")).unwrap();
    let roots = |mesh: &Mesh| mesh.agents[0].status().unwrap().roots;
    let before = roots(&mesh);
    fs::rename(ca.join("ca.crt"), ca.join("ca.crt.away")).unwrap();
    weir_lab::poll("the agents to say so", weir_lab::PATIENCE, || {
        let told = |agent: &weir_lab::Agent| !agent.status().unwrap().errors.is_empty();
        Ok(mesh.agents.iter().all(told).then_some(()))
    })
    .unwrap();
    assert!(
        fs::read(ca.join("ca.key")).unwrap() == key,
        "the key is as it was"
    );
    assert!(!ca.join("ca.crt").exists());
    assert_eq!(roots(&mesh), before);
    fs::rename(ca.join("ca.crt.away"), ca.join("ca.crt")).unwrap();
    weir_lab::poll("the agents to be content again", weir_lab::PATIENCE, || {
        Ok(mesh
            .agents
            .iter()
            .all(|agent| agent.status().unwrap().errors.is_empty())
            .then_some(()))
    })
    .unwrap();
}

#[test]
fn a_server_with_another_identity_is_refused_unless_the_service_allows_it() {
    let mesh = Mesh::with("sans", |config| {
        // Node 1 expects another identity of c than it has.
        if config.node == "node1" {
            for workload in config
                .workloads
                .iter_mut()
                .filter(|workload| workload.uid == "shop-c")
            {
                workload.service_account = "expected".to_owned();
            }
        }
        let mut service = ServiceConfig::new(
            "shop",
            "api",
            ["10.96.0.20".parse().unwrap()],
            (80, 7000),
            ["shop-c".to_owned()],
        );
        service.subject_alt_names = vec![identity("c").unwrap().to_string()];
        config.services.push(service);
    });
    let (_server, _) = serve(&mesh.c, ["echo-server", "--port", "7000"]);
    let line = run(
        &mesh.a,
        ["connect", &format!("{}:7000", mesh.c.v4()), "--read-all"],
    )
    .json()
    .unwrap();
    assert_eq!(line["end"], "ECONNRESET", "{line}");
    let flow = mesh.flow(&mesh.a, TrafficDirection::Egress, FlowEvent::Refused, 7000);
    assert_eq!(flow.reason, Reason::WrongIdentity, "{flow:?}");
    run(&mesh.a, ["echo-client", "10.96.0.20:80"]).success().unwrap();
    let flow = mesh.flow(&mesh.a, TrafficDirection::Egress, FlowEvent::Close, 7000);
    assert_eq!(
        flow.destination.identity,
        identity("c"),
        "the one that the certificate names"
    );
}
