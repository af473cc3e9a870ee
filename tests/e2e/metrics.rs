//! Metrics, scraped as Prometheus does: they count what was done, promtool has nothing to say of them, and the documentation
//! has them all.

use std::time::Duration;

use serde_json::json;
use weir_e2e::{
    Mesh,
    cluster::Cluster,
    promtool::{check_documented, check_page, value},
    run, serve,
};
use weir_lab::{
    PATIENCE, PodSpec, Spawn as _,
    config::{AgentConfig, CertificatesConfig},
    poll,
};
use weir_types::{FlowEvent, TrafficDirection};

/// Of the application, of one that policy refuses, of none, and of a connection that stays.
const PORTS: [u16; 4] = [7000, 7001, 7002, 7003];
const ECHOES: u32 = 5;
/// What an `echo-client` sends, and gets back.
const ECHO_BYTES: u32 = 64;

fn policies(config: &mut AgentConfig) {
    let to = |port: u16| json!([{ "to": [{ "operation": { "ports": [port.to_string()] } }] }]);
    let selector = json!({ "matchLabels": { "app": "c" } });
    for (name, port, dry_run) in [("deny", PORTS[1], false), ("rehearse", PORTS[0], true)] {
        config.authorization_policies.push(json!({
            "name": name, "namespace": "shop", "action": "DENY", "rules": to(port),
            "dryRun": dry_run, "selector": selector,
        }));
    }
}

#[test]
fn the_agent_counts_what_was_done_and_its_page_is_as_documented() {
    let mut mesh = Mesh::with("counts", policies);
    let to = |port: u16| format!("{}:{port}", mesh.c.v4());
    let (_server, _) = serve(&mesh.c, ["echo-server", "--port", "7000"]);
    let (_other, _) = serve(&mesh.c, ["echo-server", "--port", "7003"]);
    for _ in 0..ECHOES {
        run(&mesh.a, ["echo-client", &to(PORTS[0])]).success().unwrap();
    }
    for port in [PORTS[1], PORTS[2]] {
        assert!(run(&mesh.a, ["echo-client", &to(port)]).success().is_err());
        let _ = mesh.flow(&mesh.a, TrafficDirection::Egress, FlowEvent::Refused, port);
    }
    let held = [
        "connect",
        &to(PORTS[3]),
        "--send",
        "12345",
        "--read",
        "6",
        "--timeout-ms",
        "60000",
    ];
    let _held = mesh.a.testapp(held).unwrap();
    let refused = mesh.lab.add_pod(PodSpec::new("node2", "shop", "late")).unwrap();
    let gone = refused.config();
    let workload = refused.workload();
    mesh.lab.remove_pod(&refused).unwrap();
    mesh.agents[1]
        .reload(|config| {
            config.workloads.push(workload.clone());
            config.pods.push(gone.clone());
        })
        .unwrap();

    let bytes = ECHOES * ECHO_BYTES + 5;
    let pair = |flow: &str| {
        format!(
            "weir_workload_bytes_total{{destination_namespace=\"shop\",destination_workload=\"c\",direction=\"ingress\",flow=\"{flow}\",source_namespace=\"shop\",source_workload=\"a\"}}"
        )
    };
    let expected: Vec<(String, u32)> = [
        (
            "weir_connections_opened_total{direction=\"ingress\",path=\"tunnel\"}",
            ECHOES + 1,
        ),
        ("weir_connections_open{direction=\"ingress\",path=\"tunnel\"}", 1),
        (
            "weir_connections_closed_total{direction=\"ingress\",path=\"tunnel\",reason=\"none\"}",
            ECHOES,
        ),
        (
            "weir_connections_refused_total{direction=\"ingress\",reason=\"policy_denied\"}",
            1,
        ),
        (
            "weir_workload_refused_total{namespace=\"shop\",reason=\"policy_denied\",workload=\"c\"}",
            1,
        ),
        (
            "weir_connections_failed_total{direction=\"ingress\",reason=\"connection_refused\"}",
            1,
        ),
        (
            "weir_workload_dry_run_denied_total{namespace=\"shop\",workload=\"c\"}",
            ECHOES,
        ),
        ("weir_bytes_total{direction=\"ingress\",flow=\"sent\"}", bytes),
        ("weir_bytes_total{direction=\"ingress\",flow=\"received\"}", bytes),
        (&pair("sent"), bytes),
        (&pair("received"), bytes),
        ("weir_connection_duration_seconds_count", ECHOES),
        // One tunnel carries them all.
        (
            "weir_tls_handshake_duration_seconds_count{direction=\"ingress\"}",
            1,
        ),
        ("weir_tunnels_open{direction=\"ingress\"}", 1),
        (
            "weir_upstream_connect_duration_seconds_count{to=\"application\"}",
            ECHOES + 1,
        ),
        ("weir_kernel_map_capacity{map=\"CONNECTIONS\"}", 131_072),
        ("weir_kernel_map_entries{map=\"PODS\"}", 2),
        ("weir_flow_queue_length", 0),
        ("weir_event_ring_bytes", 0),
        ("weir_event_ring_capacity_bytes", 1 << 20),
        ("weir_flows_lost_total", 0),
        ("weir_pods_enrolled", 2),
        ("weir_pods_refused", 1),
        ("weir_certificates_failing", 0),
    ]
    .map(|(series, count)| (series.to_owned(), count))
    .into();
    let agent = mesh.agent(&mesh.c);
    let mut page = String::new();
    let counted = poll("the agent to have counted all", PATIENCE, || {
        page = agent.metrics()?;
        let is_there = |(series, count): &(String, u32)| value(&page, series) == f64::from(*count);
        Ok(expected.iter().all(is_there).then_some(()))
    });
    if counted.is_err() {
        for (series, count) in &expected {
            let is = value(&page, series);
            assert!(
                is == f64::from(*count),
                "{series} is {is}, not {count}, in\n{page}"
            );
        }
    }
    // The delivery to the application of the connection that stays.
    assert!(
        value(&page, "weir_kernel_map_entries{map=\"CONNECTIONS\"}") >= 1.0,
        "{page}"
    );
    assert!(
        value(&page, "weir_flow_ring_records") >= f64::from(2 * ECHOES),
        "{page}"
    );
    assert!(value(&page, "weir_descriptors_used") >= 1.0, "{page}");
    check_page(&page);
    check_documented(&page, "Agent");

    let client = mesh.agent(&mesh.a).metrics().unwrap();
    check_page(&client);
    for (series, count) in [
        ("weir_upstream_connect_duration_seconds_count{to=\"tunnel\"}", 1),
        (
            "weir_tls_handshake_duration_seconds_count{direction=\"egress\"}",
            1,
        ),
        ("weir_bytes_total{direction=\"egress\",flow=\"sent\"}", bytes),
    ] {
        assert!(
            value(&client, series) == f64::from(count),
            "{series} is not {count} in\n{client}"
        );
    }
}

#[test]
fn renewals_of_certificates_are_counted_with_the_age_of_what_they_replace() {
    let lifetime = Duration::from_secs(10);
    let mesh = Mesh::with("ages", |config| {
        config.certificates = Some(CertificatesConfig {
            lifetime: format!("{}s", lifetime.as_secs()),
        });
    });
    let agent = &mesh.agents[0];
    let first = value(
        &agent.metrics().unwrap(),
        "weir_certificate_expiry_timestamp_seconds",
    );
    let page = poll("two renewals", 2 * lifetime, || {
        let page = agent.metrics()?;
        let renewed = value(&page, "weir_certificate_age_at_renewal_seconds_count") >= 2.0;
        let later = value(&page, "weir_certificate_expiry_timestamp_seconds") > first;
        Ok((renewed && later).then_some(page))
    })
    .unwrap();
    let issued = value(&page, "weir_certificate_renewals_total{result=\"issued\"}");
    assert!(issued >= 4.0, "two pods, twice each: {page}");
    assert!(value(&page, "weir_certificate_renewals_total{result=\"failed\"}") == 0.0);
    assert!(value(&page, "weir_certificates") == 2.0, "{page}");
    let left = value(&page, "weir_certificate_remaining_ratio");
    assert!(left > 0.0 && left < 1.0, "{page}");
    let (start, expiry) = (
        value(&page, "weir_certificate_oldest_start_timestamp_seconds"),
        value(&page, "weir_certificate_expiry_timestamp_seconds"),
    );
    assert!(start > 0.0 && start < expiry, "{page}");
    assert!(
        value(&page, "weir_root_expiry_timestamp_seconds") > expiry,
        "{page}"
    );
    check_page(&page);
}

#[test]
fn the_control_plane_counts_what_was_done_and_its_page_is_as_documented() {
    let mut cluster = Cluster::new("ctlcounts");
    let client = cluster.pod("node1", "shop", "a");
    let server = cluster.pod("node2", "shop", "c");
    cluster.wait_enrolled(&[&client, &server]);
    let expected = [
        ("weir_cluster_synced", 1),
        ("weir_ads_streams", 2),
        ("weir_ca_issued_total{authority=\"workloads\"}", 2),
        ("weir_ca_problem{authority=\"workloads\"}", 0),
        ("weir_node_reports", 2),
        ("weir_reported_pods{state=\"enrolled\"}", 2),
        ("weir_reported_pods{state=\"refused\"}", 0),
        ("weir_watch_queue_length", 0),
        ("weir_watch_failing{kind=\"Pod\"}", 0),
        ("weir_auth_refused_total{reason=\"not_a_token\"}", 0),
    ];
    let mut page = String::new();
    let counted = poll("the control plane to have counted all", PATIENCE, || {
        page = cluster.control_page();
        let is_there = |(series, count): &(&str, i32)| value(&page, series) == f64::from(*count);
        Ok(expected.iter().all(is_there).then_some(()))
    });
    if counted.is_err() {
        for (series, count) in expected {
            let is = value(&page, series);
            assert!(
                is == f64::from(count),
                "{series} is {is}, not {count}, in\n{page}"
            );
        }
    }
    check_page(&page);
    check_documented(&page, "Control plane");

    // Somebody without a token is seen.
    std::fs::write(cluster.lab.folder().join("node1.token"), "nonsense").unwrap();
    cluster.stop_control();
    cluster.start_control();
    poll("the caller to be refused", PATIENCE, || {
        let page = cluster.control_page();
        let refused = value(&page, "weir_auth_refused_total{reason=\"not_a_token\"}") > 0.0
            && value(&page, "weir_ads_refused_total{reason=\"unauthenticated\"}") > 0.0;
        Ok(refused.then_some(()))
    })
    .unwrap();
    let agent = cluster.agents[0].metrics().unwrap();
    assert!(value(&agent, "weir_control_plane_connected") == 0.0, "{agent}");
}
