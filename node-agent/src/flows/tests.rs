use super::*;

fn flow(log: &FlowLog, pod: &str, port: u16) -> Connection {
    let peer = |pod: &str, port| FlowPeer {
        pod: Some(pod.to_owned()),
        namespace: Some("shop".to_owned()),
        ..FlowPeer::unknown(SocketAddr::from(([10, 0, 0, 1], port)))
    };
    log.connection(
        TrafficDirection::Egress,
        FlowPath::Tunnel,
        peer(pod, 1),
        peer("server", port),
    )
}

async fn filled(log: &FlowLog, count: u64) {
    let mut newest = log.watch();
    newest.wait_for(|n| *n >= count).await.unwrap();
}

#[tokio::test]
async fn a_full_ring_keeps_the_newest_and_tells_what_it_dropped() {
    let log = FlowLog::new("n", 3, Metrics::new());
    for port in 1..=5 {
        flow(&log, "a", port).refuse(Reason::NoEndpoint, None);
    }
    filled(&log, 5).await;
    let page = log.page(0, &FlowsRequest::default());
    let sequences: Vec<u64> = page.flows.iter().map(|f| f.sequence).collect();
    assert_eq!((sequences, page.lost, page.next), (vec![2, 3, 4], 2, 5));
}

#[tokio::test]
async fn values_of_a_filter_are_alternatives_and_filters_all_count() {
    let log = FlowLog::new("n", 10, Metrics::new());
    flow(&log, "a", 80).refuse(Reason::NoEndpoint, None);
    flow(&log, "b", 81).refuse(Reason::PlaintextToStrict, None);
    filled(&log, 2).await;
    let count = |request: FlowsRequest| log.page(0, &request).flows.len();
    let pods = |pods: &[&str]| FlowsRequest {
        pods: pods.iter().map(|p| (*p).to_owned()).collect(),
        ..Default::default()
    };
    assert_eq!(count(pods(&["a", "b"])), 2);
    assert_eq!(count(pods(&["shop/a"])), 1);
    assert_eq!(count(pods(&["other/a"])), 0);
    assert_eq!(count(pods(&["server"])), 2);
    assert_eq!(
        count(FlowsRequest {
            ports: vec![80],
            ..pods(&["a", "b"])
        }),
        1
    );
    assert_eq!(
        count(FlowsRequest {
            verdicts: vec![FlowVerdict::Denied],
            ..Default::default()
        }),
        1
    );
    assert_eq!(
        count(FlowsRequest {
            namespaces: vec!["nowhere".into()],
            ..Default::default()
        }),
        0
    );
}

#[tokio::test]
async fn a_connection_whose_task_is_dropped_is_still_closed_in_the_record() {
    let log = FlowLog::new("n", 10, Metrics::new());
    let mut connection = flow(&log, "a", 80);
    let _ = connection.open();
    drop(connection);
    filled(&log, 2).await;
    let events: Vec<_> = log
        .page(0, &FlowsRequest::default())
        .flows
        .iter()
        .map(|f| (f.event, f.reason))
        .collect();
    assert_eq!(
        events,
        [
            (FlowEvent::Open, Reason::None),
            (FlowEvent::Close, Reason::Shutdown)
        ]
    );
}
