//! An exporter and a collector that does not do what it should.

use std::{
    net::SocketAddr,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use opentelemetry_proto::tonic::collector::logs::v1::{
    ExportLogsPartialSuccess, ExportLogsServiceRequest, ExportLogsServiceResponse,
    logs_service_server::{LogsService, LogsServiceServer},
};
use tokio::{net::TcpListener, task::JoinHandle};
use tonic::{
    Code, Request, Response, Status,
    transport::{Server, server::TcpIncoming},
};

use super::*;
use crate::export::tests::flow;

/// What a collector does with an export.
#[derive(Debug, Clone)]
enum Does {
    Take,
    TakeAfter(Duration),
    Reject(i64),
    Refuse(Status),
    /// Refuses the first so many.
    RefuseFirst(usize, Status),
    Nothing,
}

#[derive(Debug)]
struct Seen {
    does: Mutex<Does>,
    /// Records of each export, and when it came.
    exports: Mutex<Vec<(usize, Instant)>>,
    bytes: AtomicUsize,
    at_once: AtomicUsize,
    most_at_once: AtomicUsize,
    headers: Mutex<Option<String>>,
}

#[derive(Debug, Clone)]
struct Collector(Arc<Seen>);

/// Counts exports that are under way.
struct UnderWay<'a>(&'a Seen);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.at_once.fetch_sub(1, Ordering::Relaxed);
    }
}

#[tonic::async_trait]
impl LogsService for Collector {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        let seen = &*self.0;
        let now = seen.at_once.fetch_add(1, Ordering::Relaxed) + 1;
        let _under_way = UnderWay(seen);
        seen.most_at_once.fetch_max(now, Ordering::Relaxed);
        let tenant = request.metadata().get("x-tenant");
        *seen.headers.lock().unwrap() = tenant.map(|own| own.to_str().unwrap().to_owned());
        let own = request.into_inner();
        seen.bytes.fetch_max(own.encoded_len(), Ordering::Relaxed);
        let count = own.resource_logs[0].scope_logs[0].log_records.len();
        let number = {
            let mut exports = seen.exports.lock().unwrap();
            exports.push((count, Instant::now()));
            exports.len()
        };
        let does = seen.does.lock().unwrap().clone();
        let mut answer = ExportLogsServiceResponse::default();
        match does {
            Does::Take => {}
            Does::TakeAfter(pause) => sleep(pause).await,
            Does::RefuseFirst(most, status) if number <= most => return Err(status),
            Does::RefuseFirst(..) => {}
            Does::Reject(count) => {
                answer.partial_success = Some(ExportLogsPartialSuccess {
                    rejected_log_records: count,
                    error_message: "too old".to_owned(),
                });
            }
            Does::Refuse(status) => return Err(status),
            Does::Nothing => std::future::pending().await,
        }
        Ok(Response::new(answer))
    }
}

impl Collector {
    fn new(does: Does) -> Self {
        Self(Arc::new(Seen {
            does: Mutex::new(does),
            exports: Mutex::default(),
            bytes: AtomicUsize::new(0),
            at_once: AtomicUsize::new(0),
            most_at_once: AtomicUsize::new(0),
            headers: Mutex::default(),
        }))
    }

    async fn serve(&self, address: SocketAddr) -> (SocketAddr, JoinHandle<()>) {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = LogsServiceServer::new(self.clone());
        let server = Server::builder()
            .add_service(service)
            .serve_with_incoming(TcpIncoming::from(listener));
        (address, tokio::spawn(async move { server.await.unwrap() }))
    }

    fn exports(&self) -> Vec<(usize, Instant)> {
        self.0.exports.lock().unwrap().clone()
    }
}

/// A log of flows and what sends it.
struct Sender {
    flows: FlowLog,
    metrics: Metrics,
}

impl Sender {
    fn new(to: SocketAddr, capacity: usize, more: &serde_json::Value) -> Self {
        let mut config = serde_json::json!({ "endpoint": format!("http://{to}"), "timeout": "5s" });
        for (name, own) in more.as_object().unwrap() {
            config[name] = own.clone();
        }
        let metrics = Metrics::new();
        let flows = FlowLog::new("n1", capacity, metrics.clone());
        let about = About {
            node: "n1".to_owned(),
            cluster: None,
        };
        start(&serde_json::from_value(config).unwrap(), &flows, &metrics, about);
        Self { flows, metrics }
    }

    async fn record(&self, count: u64) {
        let wanted = self.flows.recorded() + count;
        for _ in 0..count {
            self.flows.record(flow(serde_json::json!({})));
        }
        self.flows.watch().wait_for(|own| *own >= wanted).await.unwrap();
    }

    /// Records that were sent, and that were dropped.
    fn counted(&self) -> (u64, u64) {
        let of = |family: &prometheus::IntCounterVec| family.with_label_values(&[LOGS]).get();
        (of(&self.metrics.exported), of(&self.metrics.export_dropped))
    }

    async fn until(&self, wanted: impl Fn((u64, u64)) -> bool) -> (u64, u64) {
        for _ in 0..1000 {
            if wanted(self.counted()) {
                return self.counted();
            }
            sleep(Duration::from_millis(10)).await;
        }
        panic!("{:?}", self.counted());
    }
}

const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

/// For what is given up: soon.
fn impatient() -> serde_json::Value {
    serde_json::json!({ "timeout": "200ms" })
}

#[tokio::test]
async fn what_is_recorded_arrives_once_with_the_headers() {
    let collector = Collector::new(Does::Take);
    let (address, _server) = collector.serve(ANY).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("headers");
    std::fs::write(&file, "X-Tenant: seven\n").unwrap();
    let sender = Sender::new(address, 2000, &serde_json::json!({ "headersFile": file }));
    sender.record(1200).await;
    assert_eq!(sender.until(|(sent, _)| sent == 1200).await, (1200, 0));
    let exports = collector.exports();
    assert_eq!(exports.iter().map(|(count, _)| count).sum::<usize>(), 1200);
    assert!(
        exports.iter().all(|(count, _)| *count <= MOST_RECORDS),
        "{exports:?}"
    );
    assert_eq!(collector.0.headers.lock().unwrap().as_deref(), Some("seven"));
}

#[tokio::test]
async fn while_the_collector_is_away_what_is_dropped_is_counted_exactly_and_then_it_goes_on() {
    let collector = Collector::new(Does::Take);
    let (address, server) = collector.serve(ANY).await;
    server.abort();
    let _ = server.await;
    let sender = Sender::new(address, 10, &impatient());
    sender.record(5).await;
    // Given up after its time.
    assert_eq!(sender.until(|(_, dropped)| dropped > 0).await, (0, 5));
    // And what is overwritten while another is tried again.
    sender.record(1).await;
    sleep(2 * LINGER).await;
    sender.record(30).await;
    assert_eq!(
        sender.until(|(_, dropped)| dropped >= 36).await,
        (0, 36),
        "5 + 1 + 20 overwritten + 10"
    );
    let (_, _server) = collector.serve(address).await;
    sender.record(3).await;
    assert_eq!(sender.until(|(sent, _)| sent > 0).await, (3, 36));
}

#[tokio::test]
async fn one_that_never_answers_has_one_export_at_a_time_and_recording_does_not_wait() {
    let collector = Collector::new(Does::Nothing);
    let (address, _server) = collector.serve(ANY).await;
    let sender = Sender::new(address, 1000, &impatient());
    let began = Instant::now();
    for _ in 0..10 {
        sender.record(1000).await;
    }
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    sender.until(|(_, dropped)| dropped >= 9000).await;
    assert_eq!(collector.0.most_at_once.load(Ordering::Relaxed), 1);
    *collector.0.does.lock().unwrap() = Does::Take;
    let (sent, dropped) = sender.until(|(sent, dropped)| sent + dropped >= 10_000).await;
    assert_eq!(
        sent + dropped,
        10_000,
        "each is sent or counted as dropped, and none twice"
    );
}

#[tokio::test]
async fn a_slow_one_gets_what_it_can_take_and_the_rest_is_counted() {
    let collector = Collector::new(Does::TakeAfter(Duration::from_millis(100)));
    let (address, _server) = collector.serve(ANY).await;
    let sender = Sender::new(address, 50, &serde_json::json!({}));
    for _ in 0..20 {
        sender.record(100).await;
        sleep(Duration::from_millis(20)).await;
    }
    let (sent, dropped) = sender.until(|(sent, dropped)| sent + dropped >= 2000).await;
    assert_eq!(sent + dropped, 2000);
    assert!(sent >= 100 && dropped >= 100, "{sent} sent, {dropped} dropped");
    let arrived: usize = collector.exports().iter().map(|(count, _)| count).sum();
    assert_eq!(arrived as u64, sent);
}

#[tokio::test]
async fn one_that_asks_to_be_left_alone_is_and_loses_nothing() {
    let asked = Duration::from_millis(300);
    let status = Status::with_details(Code::ResourceExhausted, "", retry::details(asked).into());
    let collector = Collector::new(Does::RefuseFirst(2, status));
    let (address, _server) = collector.serve(ANY).await;
    let sender = Sender::new(address, 100, &serde_json::json!({}));
    sender.record(7).await;
    assert_eq!(sender.until(|(sent, _)| sent > 0).await, (7, 0));
    let times: Vec<Instant> = collector.exports().iter().map(|(_, time)| *time).collect();
    assert_eq!(times.len(), 3);
    assert!(
        times.windows(2).all(|pair| pair[1] - pair[0] >= asked),
        "{times:?}"
    );
}

#[tokio::test]
async fn what_would_be_refused_again_is_dropped_at_once() {
    for status in [
        Status::resource_exhausted("no"),
        Status::unimplemented("no"),
        Status::unauthenticated("no"),
    ] {
        let collector = Collector::new(Does::Refuse(status));
        let (address, _server) = collector.serve(ANY).await;
        let sender = Sender::new(address, 100, &serde_json::json!({}));
        sender.record(4).await;
        assert_eq!(sender.until(|(_, dropped)| dropped > 0).await, (0, 4));
        assert_eq!(collector.exports().len(), 1);
    }
}

#[tokio::test]
async fn what_the_collector_rejects_is_counted_as_dropped() {
    for (rejects, expected) in [(2, (3, 2)), (0, (5, 0)), (-1, (5, 0)), (100, (0, 5))] {
        let collector = Collector::new(Does::Reject(rejects));
        let (address, _server) = collector.serve(ANY).await;
        let sender = Sender::new(address, 100, &serde_json::json!({}));
        sender.record(5).await;
        assert_eq!(sender.until(|(sent, dropped)| sent + dropped > 0).await, expected);
    }
}

#[tokio::test]
async fn large_records_make_more_exports_and_none_is_larger_than_collectors_take() {
    let collector = Collector::new(Does::Take);
    let (address, _server) = collector.serve(ANY).await;
    let sender = Sender::new(address, 100, &serde_json::json!({}));
    for _ in 0..40 {
        // Twice: in the line and as an attribute.
        let detail = "x".repeat(150 << 10);
        sender.flows.record(flow(serde_json::json!({ "detail": detail })));
    }
    // And one that no export has room for.
    let detail = "x".repeat(2 << 20);
    sender.flows.record(flow(serde_json::json!({ "detail": detail })));
    assert_eq!(
        sender.until(|(sent, dropped)| sent + dropped >= 41).await,
        (40, 1)
    );
    assert!(collector.exports().len() >= 4);
    assert!(collector.0.bytes.load(Ordering::Relaxed) < 4 << 20);
}

#[tokio::test]
async fn a_file_of_headers_may_come_later() {
    let collector = Collector::new(Does::Take);
    let (address, _server) = collector.serve(ANY).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("headers");
    let sender = Sender::new(
        address,
        100,
        &serde_json::json!({ "headersFile": file, "timeout": "2s" }),
    );
    sender.record(1).await;
    sleep(2 * LINGER).await;
    assert_eq!((collector.exports().len(), sender.counted()), (0, (0, 0)));
    std::fs::write(&file, "x-tenant: late").unwrap();
    assert_eq!(sender.until(|(sent, _)| sent > 0).await, (1, 0));
    assert_eq!(collector.0.headers.lock().unwrap().as_deref(), Some("late"));
}
