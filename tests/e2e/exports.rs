//! Flows that are written somewhere as they are recorded.

mod otlp;

use std::{fs, time::Duration};

use serde_json::json;
use weir_e2e::{Mesh, connect, serve};
use weir_lab::{PATIENCE, config::SameNodeMode, poll};
use weir_types::{Flow, FlowEvent, TrafficDirection};

#[test]
fn what_is_recorded_stands_in_the_file_and_each_connection_in_the_access_log() {
    let mesh = Mesh::with("exports", |config| {
        let file = config.api.socket.with_file_name(format!("{}.flows", config.node));
        config.flows = Some(json!({
            "export": { "file": file, "maxMib": 1, "keep": 1 },
            "accessLog": { "mode": "all" },
        }));
    });
    let _server = serve(&mesh.c, ["echo-server", "--port", "7000"]).0;
    connect(&mesh.a, &mesh.c, 7000);
    connect(&mesh.a, &mesh.c, 7001);
    let agent = mesh.agent(&mesh.a);
    let closed = mesh.flow(&mesh.a, TrafficDirection::Egress, FlowEvent::Close, 7000);
    let refused = mesh.flow(&mesh.a, TrafficDirection::Egress, FlowEvent::Refused, 7001);

    let file = mesh.lab.folder().join("node1.flows");
    let written = poll("the records in the file", PATIENCE, || {
        let text = fs::read_to_string(&file)?;
        let flows: Vec<Flow> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        Ok((flows == agent.flows()?).then_some(flows))
    });
    let written = written.unwrap();
    assert!(written.contains(&closed) && written.contains(&refused));
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&file).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);

    let line = |event: &str, port: u16| {
        let wanted = format!("event={event} ");
        let port = format!("dst_addr={}:{port}", mesh.c.v4());
        poll("a line of the access log", PATIENCE, || {
            let text = agent.stdout();
            let mut lines = text
                .lines()
                .filter(|line| line.contains(&wanted) && line.contains(&port));
            Ok(lines.next().map(str::to_owned))
        })
        .unwrap()
    };
    let open = line("close", 7000);
    for part in [
        "src=shop/a ",
        "dst=shop/c ",
        "path=tunnel ",
        "dst_id=spiffe://cluster.local/ns/shop/sa/c ",
    ] {
        assert!(open.contains(part), "{part}: {open}");
    }
    assert!(line("refused", 7001).contains("reason=connection_refused "));

    let page = agent.metrics().unwrap();
    let value = |name: &str| -> f64 {
        let line = page.lines().find(|line| line.starts_with(name)).unwrap();
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    assert!(value("weir_flows_exported_total{to=\"file\"}") >= 3.0);
    assert_eq!(value("weir_flows_export_dropped_total{to=\"file\"}"), 0.0);
}

#[test]
fn without_records_connections_are_made_and_nothing_is_known_of_them_but_their_number() {
    let mesh = Mesh::with("unrecorded", |config| {
        config.same_node(SameNodeMode::Direct);
        config.flows = Some(json!({ "record": false }));
    });
    let _servers = [&mesh.b, &mesh.c].map(|pod| serve(pod, ["echo-server", "--port", "7000"]).0);
    for (to, port) in [
        (&mesh.c, 7000),
        (&mesh.c, 7001),
        (&mesh.b, 7000),
        (&mesh.b, 7000),
        (&mesh.b, 7000),
    ] {
        connect(&mesh.a, to, port);
    }
    let agent = mesh.agent(&mesh.a);
    let sum = |page: &str, name: &str, label: &str| -> f64 {
        let lines = page
            .lines()
            .filter(|line| line.starts_with(name) && line.contains(label));
        lines
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    };
    let page = poll("what the agent carried", PATIENCE, || {
        let page = agent.metrics()?;
        let closed = sum(&page, "weir_connections_closed_total", "path=\"tunnel\"");
        let refused = sum(
            &page,
            "weir_connections_refused_total",
            "reason=\"connection_refused\"",
        );
        Ok((closed >= 1.0 && refused >= 1.0).then_some(page))
    });
    // The first one to a pod goes through the agent; the kernel has had time to tell of the others.
    std::thread::sleep(Duration::from_millis(500));
    let page = page.and_then(|_| agent.metrics()).unwrap();
    assert_eq!(
        sum(&page, "weir_connections_opened_total", "path=\"direct\""),
        0.0
    );
    assert_eq!(agent.status().unwrap().flows_recorded, 0);
    assert_eq!(agent.flows().unwrap(), []);
}
