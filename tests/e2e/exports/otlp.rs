//! Flows that a collector of other make is sent.

use std::path::Path;

use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};
use weir_e2e::{
    Mesh, connect, lines,
    peers::{client, python},
    serve,
};
use weir_lab::{PATIENCE, PodSpec, Process, Spawn as _, config::AgentConfig, poll};
use weir_types::{Flow, FlowEvent, TrafficDirection};

/// Where the collectors are: each on its node's loopback.
const PORT: u16 = 4317;

/// `flows.otlp`, with everything sent at once.
fn section(more: &Value) -> Value {
    let mut own =
        json!({ "endpoint": format!("http://127.0.0.1:{PORT}"), "spans": true, "timeout": "500ms" });
    for (name, value) in more.as_object().unwrap() {
        own[name] = value.clone();
    }
    json!({ "otlp": own })
}

fn plain(config: &mut AgentConfig) {
    config.flows = Some(section(&json!({})));
}

/// Starts a collector on a node.
fn collector(mesh: &Mesh, node: &str, options: &[&str]) -> Process {
    let mut command = python("collector.py");
    command
        .args(["--listen", &format!("127.0.0.1:{PORT}")])
        .args(options);
    let collector = mesh.lab.node(node).unwrap().spawn(command).unwrap();
    collector.wait_json("listening").unwrap();
    collector
}

/// A certificate for `localhost` in `collector.pem`, which is its own root, and its key in `collector.key`.
fn certificate(folder: &Path) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(["localhost".to_owned()]).unwrap();
    let certificate = params.self_signed(&key).unwrap();
    std::fs::write(folder.join("collector.pem"), certificate.pem()).unwrap();
    std::fs::write(folder.join("collector.key"), key.serialize_pem()).unwrap();
}

/// The first span or log record (`what`) that is as it is wanted.
fn first(collector: &Process, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let found = poll(&format!("a {what}"), PATIENCE, || {
        let all = lines(collector, what, 0);
        Ok(all.into_iter().find(|line| wanted(&line[what])))
    });
    found.unwrap()
}

fn port(own: &Value) -> u64 {
    own["attributes"]["destination.port"].as_u64().unwrap()
}

/// Value of a counter of an agent.
fn counter(mesh: &Mesh, agent: usize, name: &str, to: &str) -> u64 {
    let page = mesh.agents[agent].metrics().unwrap();
    let start = format!("{name}{{to=\"{to}\"}} ");
    let mut found = page
        .lines()
        .filter_map(|line| line.strip_prefix(&start)?.parse().ok());
    found.next().unwrap()
}

#[test]
fn the_spans_of_both_nodes_are_of_one_trace_and_the_records_bear_their_numbers() {
    let folder = tempfile::tempdir().unwrap();
    certificate(folder.path());
    let path = |file: &str| folder.path().join(file).display().to_string();
    let (certificate, key) = (path("collector.pem"), path("collector.key"));
    std::fs::write(path("headers"), "X-Tenant: seven\n").unwrap();
    let secure = section(&json!({
        "endpoint": format!("https://localhost:{PORT}"), "roots": certificate, "headersFile": path("headers"),
    }));
    let mesh = Mesh::with("otlp", |config| {
        let plain = section(&json!({}));
        config.flows = Some(if config.node == "node2" {
            secure.clone()
        } else {
            plain
        });
    });
    let one = collector(&mesh, "node1", &[]);
    let two = collector(&mesh, "node2", &["--certificate", &certificate, "--key", &key]);
    let _server = serve(&mesh.c, ["echo-server", "--port", "7000"]).0;
    connect(&mesh.a, &mesh.c, 7000);
    connect(&mesh.a, &mesh.c, 7001);

    for (to, status, event) in [
        (7000, "STATUS_CODE_UNSET", "weir.connection.close"),
        (7001, "STATUS_CODE_ERROR", "weir.connection.refused"),
    ] {
        let ours = |own: &Value| port(own) == to;
        let client = first(&one, "span", ours);
        let server = first(&two, "span", ours);
        let (own, other) = (&client["span"], &server["span"]);
        assert_eq!(
            (&own["kind"], &own["parent"]),
            (&"SPAN_KIND_CLIENT".into(), &"".into()),
            "{client}"
        );
        assert_eq!(other["kind"], "SPAN_KIND_SERVER", "{server}");
        assert_eq!(
            (&other["trace"], &other["parent"]),
            (&own["trace"], &own["span"]),
            "{server}"
        );
        assert_ne!(other["span"], own["span"]);
        assert_eq!([&own["status"], &other["status"]], [status, status]);
        assert_eq!(client["resource"]["k8s.node.name"], "node1");
        assert_eq!(server["resource"]["service.name"], "weir-agent");
        assert_eq!(server["headers"]["x-tenant"], "seven");
        for (collector, span) in [(&one, own), (&two, other)] {
            let log = first(collector, "log", |own| own["event"] == event && port(own) == to);
            assert_eq!(
                (&log["log"]["trace"], &log["log"]["span"]),
                (&span["trace"], &span["span"])
            );
            assert_eq!(log["log"]["severity"], if to == 7000 { "INFO" } else { "WARN" });
            let body = log["log"]["body"].as_str().unwrap();
            assert!(body.contains(span["trace"].as_str().unwrap()), "{body}");
        }
    }
    let open = first(&one, "log", |own| own["event"] == "weir.connection.open");
    let attributes = &open["log"]["attributes"];
    assert_eq!(attributes["source.address"], mesh.a.v4().to_string());
    assert_eq!(
        attributes["weir.destination.identity"],
        "spiffe://cluster.local/ns/shop/sa/c"
    );
    // As it stands in the record itself.
    let flow = mesh.flow(&mesh.c, TrafficDirection::Ingress, FlowEvent::Close, 7000);
    let span = first(&two, "span", |own| port(own) == 7000);
    let trace = flow.trace.unwrap();
    assert_eq!(span["span"]["trace"], trace.trace_id.to_string());
    assert_eq!(span["span"]["span"], trace.span_id.to_string());
    assert_eq!(span["span"]["nanoseconds"], flow.duration_us * 1000);
}

#[test]
fn a_connection_between_pods_of_a_node_is_one_span_with_its_records() {
    let mesh = Mesh::with("otlpsame", plain);
    let one = collector(&mesh, "node1", &[]);
    let _server = serve(&mesh.b, ["echo-server", "--port", "7000"]).0;
    // The second goes past the agent.
    connect(&mesh.a, &mesh.b, 7000);
    connect(&mesh.a, &mesh.b, 7000);
    let kernel = first(&one, "span", |own| own["attributes"]["weir.path"] == "direct");
    let trace = &kernel["span"]["trace"];
    for event in ["weir.connection.open", "weir.connection.close"] {
        let log = first(&one, "log", |own| own["event"] == event && own["trace"] == *trace);
        assert_eq!(log["log"]["span"], kernel["span"]["span"]);
    }
    let spans = lines(&one, "span", 1);
    assert_eq!(
        spans
            .iter()
            .filter(|line| line["span"]["trace"] == *trace)
            .count(),
        1,
        "{spans:#?}"
    );
}

#[test]
fn while_no_collector_is_there_connections_go_on_and_what_is_dropped_is_counted() {
    let mesh = Mesh::with("otlpaway", plain);
    let mut one = collector(&mesh, "node1", &[]);
    let _server = serve(&mesh.c, ["echo-server", "--port", "7000"]).0;
    connect(&mesh.a, &mesh.c, 7000);
    let dropped = |to: &str| counter(&mesh, 0, "weir_flows_export_dropped_total", to);
    let sent = |to: &str| counter(&mesh, 0, "weir_flows_exported_total", to);
    let first_sent = poll("the first to be sent", PATIENCE, || {
        Ok((sent("otlp-logs") == 2 && sent("otlp-spans") == 1).then_some(()))
    });
    first_sent.unwrap();
    one.kill().unwrap();
    assert_eq!((dropped("otlp-logs"), dropped("otlp-spans")), (0, 0));
    for _ in 0..5 {
        connect(&mesh.a, &mesh.c, 7000);
    }
    let closed = |flows: Vec<Flow>| flows.iter().filter(|flow| flow.event == FlowEvent::Close).count();
    let all = poll("the records", PATIENCE, || {
        let flows = mesh.agents[0].flows()?;
        Ok((closed(flows.clone()) == 6).then_some(flows))
    });
    let all = all.unwrap().len() as u64;
    let counted = poll("all of them to be dropped", PATIENCE, || {
        let own = (dropped("otlp-logs"), dropped("otlp-spans"));
        Ok((own.0 + 2 >= all && own.1 >= 5).then_some(own))
    });
    assert_eq!(counted.unwrap(), (all - 2, 5));
    // Nobody else is concerned: it goes on once one is there.
    let again = collector(&mesh, "node1", &[]);
    connect(&mesh.a, &mesh.c, 7001);
    first(&again, "span", |own| port(own) == 7001);
}

#[test]
fn what_a_client_of_other_make_says_of_its_trace_is_kept_and_garbage_does_no_harm() {
    let mesh = Mesh::with("otlppeer", plain);
    let two = collector(&mesh, "node2", &[]);
    let peer = PodSpec::new("node1", "shop", "peer").outside_mesh();
    let peer = mesh.lab.add_pod(peer).unwrap();
    let _server = serve(&mesh.c, ["echo-server", "--port", "7000"]).0;
    let (application, hbone) = (format!("{}:7000", mesh.c.v4()), format!("{}:15008", mesh.c.v4()));
    let (trace, span) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
    let long = "0".repeat(5000);
    let zero = format!("00-{}-{span}-01", "0".repeat(32));
    let ours = |traceparent: &str| {
        let mut arguments = vec!["echo", "--to", &hbone, "--authority", &application];
        arguments.extend(["--traceparent", traceparent]);
        let answers = client(&mesh.lab, &peer, &arguments);
        assert_eq!(
            (&answers[0]["status"], &answers[0]["intact"]),
            (&200.into(), &true.into())
        );
        let port = answers[0]["port"].as_u64().unwrap();
        (port, move |own: &Value| own["attributes"]["source.port"] == port)
    };
    let (_, is_it) = ours(&format!("00-{trace}-{span}-01"));
    let kept = first(&two, "span", is_it);
    let kept = &kept["span"];
    assert_eq!((&kept["trace"], &kept["parent"]), (&trace.into(), &span.into()));
    assert_eq!(kept["kind"], "SPAN_KIND_SERVER");
    // Its word that the trace is not recorded.
    let (unsampled, is_it) = ours(&format!("00-{trace}-{span}-00"));
    let log = first(&two, "log", is_it);
    assert_eq!(log["log"]["trace"], trace);
    for garbage in ["garbage", &long, &zero, "ff-x"] {
        let (_, is_it) = ours(garbage);
        let own = first(&two, "span", is_it);
        assert_eq!(own["span"]["parent"], "", "{garbage}");
        assert_ne!(own["span"]["trace"], trace);
    }
    let spans = lines(&two, "span", 1);
    let is_unsampled = |line: &&Value| line["span"]["attributes"]["source.port"] == unsampled;
    assert_eq!(spans.iter().filter(is_unsampled).count(), 0);
}
