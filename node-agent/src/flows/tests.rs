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

/// All records, once there are so many.
async fn records(log: &FlowLog, count: u64) -> Vec<Arc<Flow>> {
    filled(log, count).await;
    log.page(0, usize::MAX).flows
}

fn spans() -> Option<Tracing> {
    Some(Tracing::new(std::num::NonZeroU32::MIN))
}

#[tokio::test]
async fn without_spans_a_record_is_in_a_trace_only_if_the_peer_says_so() {
    let log = FlowLog::new("n", 10, Metrics::new());
    let own = flow(&log, "a", 1);
    assert_eq!(own.traceparent(), None);
    own.refuse(Reason::NoEndpoint, None);
    let mut traced = flow(&log, "a", 2);
    let sent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
    traced.traced(Some(&HeaderValue::from_static(sent)));
    traced.refuse(Reason::NoEndpoint, None);
    let records = records(&log, 2).await;
    assert_eq!(records[0].trace, None);
    let trace = records[1].trace.unwrap();
    let parent = trace.parent_span_id.unwrap();
    assert_eq!(format!("00-{}-{parent}-00", trace.trace_id), sent);
    assert!(trace.span_id != parent && !trace.sampled);
}

#[tokio::test]
async fn all_records_of_a_connection_are_of_one_span_and_a_failed_attempt_is_one_below() {
    let log = FlowLog::new("n", 10, Metrics::new()).tracing(spans());
    let mut own = flow(&log, "a", 1);
    let told = own.traceparent().unwrap();
    own.failed_attempt(Reason::ConnectionRefused, String::new());
    let _ = own.open();
    own.close(Reason::None, Outcome::default());
    flow(&log, "a", 2).refuse(Reason::NoEndpoint, None);
    let records = records(&log, 4).await;
    let traces: Vec<FlowTrace> = records.iter().map(|flow| flow.trace.unwrap()).collect();
    let (attempt, open, close, other) = (traces[0], traces[1], traces[2], traces[3]);
    assert_eq!(open, close);
    assert_eq!(open.parent().to_string(), told.to_str().unwrap());
    assert_eq!((open.parent_span_id, open.sampled), (None, true));
    assert_eq!(
        (attempt.trace_id, attempt.parent_span_id),
        (open.trace_id, Some(open.span_id))
    );
    assert!(attempt.span_id != open.span_id);
    assert!(other.trace_id != open.trace_id && other.span_id != open.span_id);
}

#[tokio::test]
async fn what_is_no_traceparent_is_as_none() {
    let log = FlowLog::new("n", 10, Metrics::new()).tracing(spans());
    let garbage = [
        HeaderValue::from_static("garbage"),
        HeaderValue::from_static("00-00000000000000000000000000000000-00f067aa0ba902b7-01"),
        HeaderValue::from_bytes(&[0xff; 55]).unwrap(),
    ];
    for value in garbage {
        let mut own = flow(&log, "a", 1);
        let before = own.traceparent();
        own.traced(Some(&value));
        assert_eq!(own.traceparent(), before);
    }
}

#[tokio::test]
async fn a_connection_of_the_kernels_has_one_trace_whenever_it_is_asked_for() {
    let log = FlowLog::new("n", 10, Metrics::new()).tracing(spans());
    assert_eq!(log.trace(7), log.clone().trace(7));
    assert_ne!(log.trace(7), log.trace(8));
    let other = FlowLog::new("n", 10, Metrics::new()).tracing(spans());
    assert_ne!(log.trace(7), other.trace(7), "no two agents number alike");
    let sparse = Tracing::new(std::num::NonZeroU32::new(10).unwrap());
    let sampled = (0..2000).filter(|number| sparse.begin(*number).sampled).count();
    assert!((100..300).contains(&sampled), "{sampled}");
}

#[tokio::test]
async fn records_are_in_the_order_of_time_unless_the_clock_was_set_back() {
    let log = FlowLog::new("n", 10, Metrics::new());
    let base = Timestamp::from_second(1_000_000).unwrap();
    let at = |milliseconds: i64| base + SignedDuration::from_millis(milliseconds);
    let given = [0, 80, 30, 79, 81, -3_600_000, -3_599_999];
    let shared = &log.shared;
    let record = |time| Flow {
        time,
        ..flow(&log, "a", 1).event(FlowEvent::Open, Reason::None, None, Outcome::default())
    };
    // In batches, as they come.
    for batch in given.chunks(2) {
        shared.push(
            batch
                .iter()
                .map(|milliseconds| Arc::new(record(at(*milliseconds)))),
        );
    }
    let page = log.page(0, given.len());
    let times: Vec<Timestamp> = page.flows.iter().map(|flow| flow.time).collect();
    assert_eq!(times, [0, 80, 80, 80, 81, -3_600_000, -3_599_999].map(at));
}
