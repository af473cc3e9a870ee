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
    let page = log.page(0, usize::MAX);
    let sequences: Vec<u64> = page.flows.iter().map(|f| f.sequence).collect();
    assert_eq!((sequences, page.lost, page.next), (vec![2, 3, 4], 2, 5));
    let page = log.page(3, 1);
    assert_eq!((page.flows[0].sequence, page.lost, page.next), (3, 0, 4));
}

#[tokio::test]
async fn a_connection_whose_task_is_dropped_is_still_closed_in_the_record() {
    let log = FlowLog::new("n", 10, Metrics::new());
    let mut connection = flow(&log, "a", 80);
    let _ = connection.open();
    drop(connection);
    filled(&log, 2).await;
    let events: Vec<_> = log
        .page(0, usize::MAX)
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
