//! Changes while it runs.

use weir_e2e::{Mesh, identity, run, serve};
use weir_lab::{PodSpec, Spawn as _};
use weir_types::{FlowEvent, FlowPath, TrafficDirection};

#[test]
fn a_pod_is_enrolled_and_removed_at_run_time_without_touching_others() {
    let mut mesh = Mesh::new("enrol");
    let (_server, _) = serve(&mesh.c, ["echo-server", "--port", "7000"]);
    let to = format!("{}:7000", mesh.c.v4());
    let held = mesh
        .a
        .testapp([
            "connect",
            &to,
            "--send",
            "x",
            "--read",
            "2",
            "--timeout-ms",
            "6000",
        ])
        .unwrap();
    let _ = mesh.flow(&mesh.a, TrafficDirection::Egress, FlowEvent::Open, 7000);

    let late = mesh.lab.add_pod(PodSpec::new("node1", "shop", "late")).unwrap();
    for agent in &mut mesh.agents {
        let status = agent
            .reload(|config| {
                config.workloads.push(late.workload());
                if config.node == "node1" {
                    config.pods.push(late.config());
                }
            })
            .unwrap();
        assert_eq!(status.config.rejected, None);
    }
    let enrolled = mesh.agents[0].status().unwrap().pods;
    assert!(
        enrolled.iter().any(|pod| pod.uid == "shop-late" && pod.enrolled),
        "{enrolled:?}"
    );
    run(&late, ["echo-client", &to]).success().unwrap();
    let flow = mesh.flow(&late, TrafficDirection::Egress, FlowEvent::Close, 7000);
    assert_eq!(
        (flow.path, flow.source.identity),
        (FlowPath::Tunnel, identity("late"))
    );

    for agent in &mut mesh.agents {
        agent
            .reload(|config| {
                config.pods.retain(|pod| pod.uid != "shop-late");
                config.workloads.retain(|workload| workload.uid != "shop-late");
            })
            .unwrap();
    }
    // Plaintext again, as any other host outside the mesh.
    run(&late, ["echo-client", &to]).success().unwrap();
    let flow = mesh.flow_where(
        &mesh.c,
        TrafficDirection::Ingress,
        FlowEvent::Close,
        7000,
        |flow| flow.path == FlowPath::Plaintext,
    );
    assert_eq!(flow.source.address.ip(), std::net::IpAddr::from(late.v4()));
    let line = held.wait(weir_lab::PATIENCE).unwrap().json().unwrap();
    assert_eq!(
        (&line["received"], &line["end"]),
        (&1.into(), &"EAGAIN".into()),
        "untouched to its own end: {line}"
    );
}

#[test]
fn a_pod_whose_namespace_is_gone_is_removed_and_one_that_appears_is_enrolled() {
    let mut mesh = Mesh::new("gone");
    let pod = |name: &str| mesh.lab.add_pod(PodSpec::new("node1", "shop", name)).unwrap();
    let late = pod("late");
    mesh.agents[0]
        .reload(|config| {
            config.workloads.push(late.workload());
            config.pods.push(late.config());
        })
        .unwrap();
    let state = |mesh: &Mesh, wanted: bool| {
        weir_lab::poll("the pod's state", weir_lab::PATIENCE, || {
            let status = mesh.agents[0].status()?;
            let pod = status.pods.into_iter().find(|pod| pod.uid == "shop-late");
            Ok(pod.filter(|pod| pod.enrolled == wanted))
        })
        .unwrap()
    };
    let _ = state(&mesh, true);
    let programs = mesh.agents[0].status().unwrap().programs.len();
    mesh.lab.remove_pod(&late).unwrap();
    let gone = state(&mesh, false);
    assert!(
        gone.problem
            .is_some_and(|problem| problem.contains("network namespace"))
    );
    assert_eq!(mesh.agents[0].status().unwrap().programs.len(), programs - 1);
    mesh.agents[0]
        .reload(|config| config.pods.retain(|pod| pod.uid != "shop-late"))
        .unwrap();
    assert!(mesh.agents[0].status().unwrap().errors.is_empty());
}

#[test]
fn a_wrong_configuration_is_told_and_the_old_one_stays_in_force() {
    let mesh = Mesh::new("wrong");
    let agent = &mesh.agents[0];
    let good = std::fs::read_to_string(agent.config_file()).unwrap();
    let status = agent.reload_text(&format!("{good}\nnonsense: 1\n")).unwrap();
    let rejected = status.config.rejected.unwrap();
    let file = agent.config_file().display().to_string();
    let line = good.lines().count() + 2;
    assert!(
        rejected.starts_with(&format!("{file}:{line}:")) && rejected.contains("nonsense"),
        "{rejected}"
    );
    assert!(agent.log().contains("nonsense"), "{}", agent.log());
    let (_server, _) = serve(&mesh.c, ["echo-server", "--port", "7000"]);
    run(&mesh.a, ["echo-client", &format!("{}:7000", mesh.c.v4())])
        .success()
        .unwrap();
    let flow = mesh.flow(&mesh.a, TrafficDirection::Egress, FlowEvent::Close, 7000);
    assert_eq!(flow.path, FlowPath::Tunnel);
    let status = agent.reload_text(&format!("{good}\n# right again\n")).unwrap();
    assert_eq!(status.config.rejected, None);
}

#[test]
fn metrics_and_readiness_are_served() {
    let mesh = Mesh::new("metrics");
    let (_server, _) = serve(&mesh.c, ["echo-server", "--port", "7000"]);
    run(&mesh.a, ["echo-client", &format!("{}:7000", mesh.c.v4())])
        .success()
        .unwrap();
    let _ = mesh.flow(&mesh.a, TrafficDirection::Egress, FlowEvent::Close, 7000);
    let agent = mesh.agent(&mesh.a);
    let metrics = agent.metrics().unwrap();
    for line in [
        "weir_connections_opened_total{direction=\"egress\",path=\"tunnel\"} 1",
        "weir_bytes_total{direction=\"egress\",flow=\"sent\"} 64",
        "weir_pods_enrolled 2",
        "weir_config_rejected 0",
    ] {
        assert!(metrics.contains(line), "{line} in\n{metrics}");
    }
    assert_eq!(agent.http("/readyz").unwrap().trim(), "ready");
}
