use std::net::SocketAddr;

use weir_types::FlowPeer;

use super::*;
use crate::flows::{Connection, FlowLog, Outcome};

fn end(name: &str, verified: bool) -> FlowPeer {
    let identity = format!("spiffe://cluster.local/ns/shop/sa/{name}");
    FlowPeer {
        namespace: Some("shop".to_owned()),
        pod: Some(name.to_owned()),
        identity: verified.then(|| identity.parse().unwrap()),
        ..FlowPeer::unknown(SocketAddr::from(([10, 0, 0, 1], 80)))
    }
}

fn ingress(log: &FlowLog, from: FlowPeer, to: &str) -> Connection {
    log.connection(TrafficDirection::Ingress, FlowPath::Tunnel, from, end(to, true))
}

fn text(metrics: &Metrics) -> String {
    String::from_utf8(metrics.render()).unwrap()
}

/// The series of a family, without its comments.
fn series(metrics: &Metrics, family: &str) -> Vec<String> {
    let text = text(metrics);
    let lines = text
        .lines()
        .filter(|line| line.starts_with(&format!("{family}{{")));
    lines.map(str::to_owned).collect()
}

#[test]
fn labels_are_those_of_their_variants() {
    let paths = [
        (FlowPath::Tunnel, "tunnel"),
        (FlowPath::Plaintext, "plaintext"),
        (FlowPath::Direct, "direct"),
        (FlowPath::Kernel, "kernel"),
        (FlowPath::Nowhere, "nowhere"),
    ];
    for (path, label) in paths {
        assert_eq!(PATHS[path as usize], label);
    }
    assert_eq!(direction(TrafficDirection::Egress), "egress");
    assert_eq!(direction(TrafficDirection::Ingress), "ingress");
}

#[tokio::test]
async fn bytes_of_an_open_connection_are_counted_as_they_flow_and_once() {
    let metrics = Metrics::new();
    let log = FlowLog::new("n", 10, metrics.clone());
    // As of a tunnel's server: what is "sent" by its counters is what the client gets.
    let mut connection = ingress(&log, end("web", true), "api").reversed();
    let counters = connection.open();
    let expect = |sent: u64, received: u64| {
        let total = |flow: &str, count: u64| {
            let line = format!("weir_bytes_total{{direction=\"ingress\",flow=\"{flow}\"}} {count}");
            assert!(
                series(&metrics, "weir_bytes_total").contains(&line),
                "{line} in\n{}",
                text(&metrics)
            );
        };
        total("sent", sent);
        total("received", received);
        let pair = format!(
            "weir_workload_bytes_total{{destination_namespace=\"shop\",destination_workload=\"api\",direction=\"ingress\",flow=\"sent\",source_namespace=\"shop\",source_workload=\"web\"}} {sent}"
        );
        let pairs = series(&metrics, "weir_workload_bytes_total");
        assert!(pairs.contains(&pair), "{pair} in {pairs:#?}");
    };
    expect(0, 0);
    counters.received.fetch_add(5, Ordering::Relaxed);
    expect(5, 0);
    expect(5, 0);
    counters.received.fetch_add(3, Ordering::Relaxed);
    counters.sent.fetch_add(100, Ordering::Relaxed);
    connection.close(Reason::None, Outcome::default());
    expect(8, 100);
    expect(8, 100);
    let closed = series(&metrics, "weir_connections_closed_total");
    assert_eq!(
        closed,
        ["weir_connections_closed_total{direction=\"ingress\",path=\"tunnel\",reason=\"none\"} 1"]
    );
}

#[tokio::test]
async fn an_end_without_a_verified_identity_has_no_name_of_its_own() {
    let metrics = Metrics::new();
    let log = FlowLog::new("n", 10, metrics.clone());
    let mut connection = ingress(&log, end("claims-to-be-web", false), "api");
    let _ = connection.open();
    let pairs = series(&metrics, "weir_workload_bytes_total");
    assert_eq!(pairs.len(), 2);
    for pair in pairs {
        assert!(
            pair.contains("source_namespace=\"_unknown\",source_workload=\"_unknown\"")
                && !pair.contains("claims"),
            "{pair}"
        );
    }
}

#[tokio::test]
async fn pairs_beyond_the_cap_are_counted_together_and_a_pod_that_left_frees_its_room() {
    let metrics = Metrics::new();
    let log = FlowLog::new("n", 10, metrics.clone());
    let connect = |from: &str, to: &str| {
        let mut connection = ingress(&log, end(from, true), to);
        connection.open().sent.fetch_add(1, Ordering::Relaxed);
        connection.close(Reason::None, Outcome::default());
    };
    for number in 0..3 * SERIES {
        connect(
            &format!("client-{number}"),
            if number % 2 == 0 { "even" } else { "odd" },
        );
    }
    let pairs = series(&metrics, "weir_workload_bytes_total");
    assert_eq!(pairs.len(), SERIES + 2);
    let other = pairs
        .iter()
        .filter(|line| line.contains(OTHER))
        .collect::<Vec<_>>();
    assert_eq!(other.len(), 2, "one for each flow: {other:#?}");
    let total: u64 = pairs
        .iter()
        .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .sum();
    assert_eq!(total, 3 * SERIES as u64, "nothing is uncounted");
    metrics.forget_pod("shop", "even");
    assert_eq!(
        series(&metrics, "weir_workload_bytes_total").len(),
        SERIES / 2 + 2
    );
    connect("late", "odd");
    let pairs = series(&metrics, "weir_workload_bytes_total");
    assert!(pairs.iter().any(|line| line.contains("\"late\"")), "{pairs:#?}");
}

#[tokio::test]
async fn refusals_by_workload_have_a_cap() {
    let metrics = Metrics::new();
    let log = FlowLog::new("n", 10, metrics.clone());
    for number in 0..2 * SERIES {
        ingress(&log, end("web", true), &format!("pod-{number}")).refuse(Reason::PolicyDenied, None);
    }
    let refused = series(&metrics, "weir_workload_refused_total");
    assert_eq!(refused.len(), SERIES + 1);
    let other = format!(
        "weir_workload_refused_total{{namespace=\"{OTHER}\",reason=\"policy_denied\",workload=\"{OTHER}\"}} {SERIES}"
    );
    assert!(refused.contains(&other), "{other}");
    for number in 0..SERIES {
        metrics.forget_pod("shop", &format!("pod-{number}"));
    }
    assert_eq!(series(&metrics, "weir_workload_refused_total").len(), 1);
}

#[tokio::test]
async fn what_failed_is_told_from_what_was_denied() {
    let metrics = Metrics::new();
    let log = FlowLog::new("n", 10, metrics.clone());
    for reason in [Reason::PolicyDenied, Reason::ConnectTimeout] {
        ingress(&log, end("web", true), "api").refuse(reason, None);
    }
    assert_eq!(series(&metrics, "weir_connections_refused_total").len(), 2);
    assert_eq!(
        series(&metrics, "weir_connections_failed_total"),
        ["weir_connections_failed_total{direction=\"ingress\",reason=\"connect_timeout\"} 1"]
    );
}

#[test]
fn renewals_are_counted_with_the_age_of_what_they_replace() {
    let metrics = Metrics::new();
    metrics.issued(None);
    metrics.failed();
    metrics.issued(Some(Duration::from_secs(43_000)));
    let text = text(&metrics);
    for line in [
        "weir_certificate_renewals_total{result=\"issued\"} 2",
        "weir_certificate_renewals_total{result=\"failed\"} 1",
        "weir_certificate_age_at_renewal_seconds_count 1",
        "weir_certificate_age_at_renewal_seconds_bucket{le=\"21600\"} 0",
        "weir_certificate_age_at_renewal_seconds_bucket{le=\"43200\"} 1",
    ] {
        assert!(text.contains(line), "{line} in\n{text}");
    }
}
