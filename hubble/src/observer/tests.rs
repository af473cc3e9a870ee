//! The services by a connection, with records that the test makes.

use std::{
    net::SocketAddr,
    sync::{Mutex, MutexGuard},
};

use tonic::{Code, transport::Channel};
use weir_proto::{
    flow::{KnownFlowFilter, LostEventSource},
    observer::{GetFlowsResponse, get_flows_response::ResponseTypes, observer_client::ObserverClient},
    peer::peer_client::PeerClient,
};
use weir_types::{FlowEvent, FlowPath, FlowPeer, FlowVerdict, Reason, TrafficDirection};

mod server;

use super::*;
use crate::{client, serve::Connections};

/// Records that are kept.
const CAPACITY: usize = 2000;

struct Records {
    origin: Origin,
    ring: Mutex<(u64, Vec<Arc<Flow>>)>,
    newest: watch::Sender<u64>,
    lost: Mutex<u64>,
    peers: watch::Sender<Peers>,
}

impl Records {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            origin: Origin {
                cluster: String::new(),
                version: "1".to_owned(),
                run: 1,
            },
            ring: Mutex::default(),
            newest: watch::Sender::default(),
            lost: Mutex::default(),
            peers: watch::Sender::default(),
        })
    }

    fn ring(&self) -> MutexGuard<'_, (u64, Vec<Arc<Flow>>)> {
        self.ring.lock().unwrap()
    }

    /// Makes records, of which each second one is of the namespace `cart`.
    fn make(&self, count: u64) {
        let mut ring = self.ring();
        for _ in 0..count {
            let sequence = ring.0;
            let namespace = if sequence.is_multiple_of(2) {
                "shop"
            } else {
                "cart"
            };
            ring.1.push(Arc::new(flow(sequence, namespace)));
            ring.0 += 1;
        }
        let over = ring.1.len().saturating_sub(CAPACITY);
        ring.1.drain(..over);
        let next = ring.0;
        drop(ring);
        self.newest.send_replace(next);
    }
}

impl Source for Records {
    fn origin(&self) -> &Origin {
        &self.origin
    }
    fn node(&self) -> &str {
        "n"
    }
    fn started(&self) -> Timestamp {
        Timestamp::UNIX_EPOCH
    }
    fn capacity(&self) -> usize {
        CAPACITY
    }
    fn range(&self) -> (u64, u64) {
        let ring = self.ring();
        (ring.0 - ring.1.len() as u64, ring.0)
    }
    fn page(&self, from: u64, most: usize) -> Page {
        let ring = self.ring();
        let oldest = ring.0 - ring.1.len() as u64;
        let skip = usize::try_from(from.saturating_sub(oldest)).unwrap();
        let flows: Vec<_> = ring.1.iter().skip(skip).take(most).cloned().collect();
        Page {
            lost: oldest.saturating_sub(from),
            next: from.max(oldest) + flows.len() as u64,
            flows,
        }
    }
    fn watch(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }
    fn lost(&self) -> u64 {
        *self.lost.lock().unwrap()
    }
    fn peers(&self) -> watch::Receiver<Peers> {
        self.peers.subscribe()
    }
    fn explain(&self, request: &ExplainRequest) -> Result<Explanation, String> {
        Err(format!("nobody knows {}", request.from))
    }
}

/// A record of this second, from a pod of the namespace to one of `pay`.
fn flow(sequence: u64, namespace: &str) -> Flow {
    let end = |namespace: &str| FlowPeer {
        namespace: Some(namespace.to_owned()),
        pod: Some("p".to_owned()),
        ..FlowPeer::unknown(SocketAddr::from(([10, 0, 0, 1], 80)))
    };
    Flow {
        sequence,
        time: Timestamp::from_second(i64::try_from(sequence).unwrap()).unwrap(),
        node: "n".to_owned(),
        connection: sequence,
        event: FlowEvent::Open,
        verdict: FlowVerdict::Forwarded,
        reason: Reason::None,
        detail: None,
        direction: TrafficDirection::Egress,
        path: FlowPath::Tunnel,
        source: end(namespace),
        destination: end("pay"),
        original_destination: None,
        service: None,
        tls: None,
        policy: None,
        dry_run: None,
        bytes_sent: 0,
        bytes_received: 0,
        duration_us: 0,
        rtt_us: None,
        retransmits: None,
        process: None,
        trace: None,
    }
}

async fn connect(records: &Arc<Records>, viewer: Viewer) -> Channel {
    let (connections, serving) = Connections::serve(records.clone());
    tokio::spawn(serving);
    let (own, other) = tokio::io::duplex(64 << 10);
    assert!(connections.take(other, viewer).await);
    client::channel(own).await.unwrap()
}

async fn ask(records: &Arc<Records>) -> ObserverClient<Channel> {
    ObserverClient::new(connect(records, Viewer::default()).await)
}

/// The second of a flow, which is its position; what was lost as a negative number.
fn shown(response: &GetFlowsResponse) -> i64 {
    match response.response_types.as_ref().unwrap() {
        ResponseTypes::Flow(flow) => flow.time.unwrap().seconds,
        ResponseTypes::LostEvents(lost) => -i64::try_from(lost.num_events_lost).unwrap(),
        ResponseTypes::NodeStatus(status) => panic!("{status:?}"),
    }
}

/// Flows of a request that does not follow.
async fn all(client: &mut ObserverClient<Channel>, request: GetFlowsRequest) -> Vec<i64> {
    let mut answer = client.get_flows(request).await.unwrap().into_inner();
    let mut all = Vec::new();
    while let Some(response) = answer.message().await.unwrap() {
        assert_eq!(response.node_name, "n");
        all.push(shown(&response));
    }
    all
}

fn since(seconds: i64) -> Option<prost_types::Timestamp> {
    Some(prost_types::Timestamp { seconds, nanos: 0 })
}

#[tokio::test]
async fn the_newest_the_oldest_and_those_of_a_window_are_found_among_those_that_are_wanted() {
    let records = Records::new();
    records.make(1500);
    let mut client = ask(&records).await;
    let cart = vec![
        KnownFlowFilter {
            source_pod: vec!["cart/".to_owned()],
            ..Default::default()
        }
        .into(),
    ];
    let request = GetFlowsRequest::default;
    let range = |from: i64, to: i64| (from..to).collect::<Vec<_>>();
    let table = [
        (request(), range(0, 1500)),
        (
            GetFlowsRequest {
                number: 3,
                ..request()
            },
            range(1497, 1500),
        ),
        (
            GetFlowsRequest {
                number: 600,
                ..request()
            },
            range(900, 1500),
        ),
        (
            GetFlowsRequest {
                number: u64::MAX,
                ..request()
            },
            range(0, 1500),
        ),
        (
            GetFlowsRequest {
                number: 3,
                first: true,
                ..request()
            },
            range(0, 3),
        ),
        (
            GetFlowsRequest {
                since: since(1498),
                ..request()
            },
            range(1498, 1500),
        ),
        (
            GetFlowsRequest {
                until: since(1),
                ..request()
            },
            range(0, 2),
        ),
        (
            GetFlowsRequest {
                since: since(700),
                until: since(702),
                ..request()
            },
            range(700, 703),
        ),
        (
            GetFlowsRequest {
                number: 2,
                until: since(702),
                ..request()
            },
            range(701, 703),
        ),
        (
            GetFlowsRequest {
                number: 2,
                first: true,
                since: since(700),
                ..request()
            },
            range(700, 702),
        ),
        (
            GetFlowsRequest {
                number: 2,
                whitelist: cart.clone(),
                ..request()
            },
            vec![1497, 1499],
        ),
        (
            GetFlowsRequest {
                number: 2,
                blacklist: cart.clone(),
                ..request()
            },
            vec![1496, 1498],
        ),
        (
            GetFlowsRequest {
                number: 2,
                first: true,
                whitelist: cart,
                ..request()
            },
            vec![1, 3],
        ),
        (
            GetFlowsRequest {
                since: since(2000),
                ..request()
            },
            vec![],
        ),
    ];
    for (request, wanted) in table {
        let said = format!("{request:?}");
        assert_eq!(all(&mut client, request).await, wanted, "{said}");
    }
}

#[tokio::test]
async fn a_follower_misses_nothing_of_what_is_recorded_while_it_reads_what_was() {
    let records = Records::new();
    records.make(1000);
    for (request, first) in [
        (
            GetFlowsRequest {
                follow: true,
                since: since(0),
                ..Default::default()
            },
            0,
        ),
        (
            GetFlowsRequest {
                follow: true,
                number: 700,
                ..Default::default()
            },
            300,
        ),
    ] {
        let records = Records::new();
        records.make(1000);
        let mut client = ask(&records).await;
        let mut answer = client.get_flows(request).await.unwrap().into_inner();
        let mut next = first;
        while next < 1500 {
            let response = answer.message().await.unwrap().unwrap();
            assert_eq!(shown(&response), next);
            next += 1;
            // The client has not read what was kept: the pages that are read now are not full yet.
            if next == first + 1 {
                records.make(500);
            }
        }
    }
}

#[tokio::test]
async fn a_follower_is_told_of_what_was_lost_and_from_what_on() {
    let records = Records::new();
    let mut client = ask(&records).await;
    let request = GetFlowsRequest {
        follow: true,
        ..Default::default()
    };
    let mut answer = client.get_flows(request).await.unwrap().into_inner();
    records.make(1);
    assert_eq!(shown(&answer.message().await.unwrap().unwrap()), 0);
    // Far more than waits for a client, and than is kept.
    records.make(10_000);
    *records.lost.lock().unwrap() += 7;
    records.make(1);
    let (mut next, mut told, mut before) = (1, 0, 0);
    while next < 10_002 {
        let response = answer.message().await.unwrap().unwrap();
        match &response.response_types {
            Some(ResponseTypes::LostEvents(lost)) => match lost.source() {
                LostEventSource::HubbleRingBuffer => {
                    told += lost.num_events_lost;
                    next += i64::try_from(lost.num_events_lost).unwrap();
                }
                LostEventSource::PerfEventRingBuffer => before += lost.num_events_lost,
                other => panic!("{other:?}"),
            },
            _ => {
                assert_eq!(shown(&response), next, "each gap is told");
                next += 1;
            }
        }
    }
    assert!(told >= 7000, "{told} of 10,000 were lost, with room for 2,000");
    assert_eq!(before, 7, "what was lost before it was recorded is told, too");
}

#[tokio::test]
async fn a_window_that_ends_ends_what_follows_it() {
    let records = Records::new();
    records.make(2);
    let mut client = ask(&records).await;
    let request = GetFlowsRequest {
        follow: true,
        since: since(0),
        until: since(1),
        ..Default::default()
    };
    assert_eq!(all(&mut client, request).await, [0, 1]);
}

#[tokio::test]
async fn a_client_sees_the_namespaces_that_it_may_and_one_that_nobody_vouches_for_sees_none() {
    let records = Records::new();
    records.make(4);
    let of = |names: &[&str]| Viewer {
        namespaces: Some(Arc::new(names.iter().map(|name| (*name).to_owned()).collect())),
    };
    for (viewer, flows, namespaces) in [
        (Viewer::default(), vec![0, 1, 2, 3], vec!["cart", "pay", "shop"]),
        (of(&["shop"]), vec![0, 2], vec!["shop"]),
        (of(&["cart", "other"]), vec![1, 3], vec!["cart"]),
        (of(&["pay"]), vec![0, 1, 2, 3], vec!["pay"]),
        (of(&[]), vec![], vec![]),
    ] {
        let mut client = ObserverClient::new(connect(&records, viewer.clone()).await);
        assert_eq!(
            all(&mut client, GetFlowsRequest::default()).await,
            flows,
            "{viewer:?}"
        );
        let answer = client.get_namespaces(GetNamespacesRequest {}).await.unwrap();
        let seen: Vec<_> = answer
            .into_inner()
            .namespaces
            .into_iter()
            .map(|one| one.namespace)
            .collect();
        assert_eq!(seen, namespaces, "{viewer:?}");
    }
    // Not by one of our connections: nothing is known of who asks.
    assert_eq!(Viewer::of(&Request::new(())), of(&[]));
}
