//! How streams share connections, and what happens when connections end.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failed assertion is what a test is for"
)]

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use h2::server::SendResponse;
use http::{Request, Response};
use support::*;
use tokio::{
    io::AsyncReadExt as _,
    net::{TcpListener, TcpStream},
};
use weir_tunnel::{
    PodKey, Registry,
    certs::CertificateStore,
    hbone::{Authority, ConnectHeaders, TunnelStream},
    pool::{OpenError, Pool},
};
use weir_types::Reason;

#[tokio::test]
async fn streams_that_open_together_share_connections_of_a_hundred() {
    let store = store(authority());
    let server = TestServer::start(&store).await;
    let (listener, address) = application().await;
    tokio::spawn(async move {
        let mut accepted = Vec::new();
        while let Ok(socket) = listener.accept().await {
            accepted.push(socket);
        }
    });
    let pool = pool(&store);
    let opens: Vec<_> = (0..150)
        .map(|_| {
            let (pool, server) = (pool.clone(), server.address);
            tokio::spawn(async move { open(&pool, server, address).await.unwrap() })
        })
        .collect();
    let mut streams = Vec::new();
    for open in opens {
        streams.push(open.await.unwrap());
    }
    assert_eq!(server.connections.load(Ordering::Relaxed), 2);
    let mut counts: Vec<_> = pool
        .connections()
        .iter()
        .map(|connection| connection.streams())
        .collect();
    counts.sort_unstable();
    assert_eq!(counts.iter().sum::<usize>(), 150);
    assert!(counts[1] <= 100, "{counts:?}");
    let status = server.settings.registry.status(|pod| format!("pod-{}", pod.0));
    assert_eq!(status.iter().map(|status| status.streams).sum::<u64>(), 150);
    assert_eq!(
        (status[0].pod.as_str(), &status[0].peer),
        ("pod-1", &identity("client"))
    );
    drop(streams);
    eventually("no streams", || {
        pool.connections()
            .iter()
            .all(|connection| connection.streams() == 0)
    })
    .await;
    open(&pool, server.address, address).await.unwrap();
    assert_eq!(server.connections.load(Ordering::Relaxed), 2, "used again");
}

#[tokio::test]
async fn pods_and_identities_do_not_share_connections() {
    let store = store(authority());
    let server = TestServer::start(&store).await;
    let (_listener, address) = application().await;
    let pool = pool(&store);
    let first = target(server.address);
    let mut other_pod = first.clone();
    other_pod.source = PodKey(8);
    let mut other_identity = first.clone();
    other_identity.source_identity = identity("other");
    let mut other_expected = first.clone();
    other_expected.expected = [identity("server"), identity("x")].into();
    for target in [&first, &other_pod, &other_identity, &other_expected, &first] {
        pool.open(target, &Authority::Address(address), &ConnectHeaders::default())
            .await
            .unwrap();
    }
    assert_eq!(server.connections.load(Ordering::Relaxed), 4);
}

#[tokio::test]
async fn a_pod_that_is_removed_takes_its_connections_along() {
    let store = store(authority());
    let server = TestServer::start(&store).await;
    let (listener, address) = application().await;
    let pool = pool(&store);
    let mut path = path(&pool, &server, &listener).await;
    pool.close_source(PodKey(8));
    assert!(!path.copy.is_finished());
    pool.close_source(PodKey(7));
    assert_eq!(within(path.copy).await.unwrap().ended, Reason::PolicyChanged);
    assert_eq!(
        within(path.client.read_u8()).await.unwrap_err().kind(),
        std::io::ErrorKind::ConnectionReset
    );
    assert!(pool.connections().is_empty());
    open(&pool, server.address, address).await.unwrap();
}

#[tokio::test]
async fn an_open_that_is_dropped_gives_its_request_up() {
    let store = store(authority());
    let mut server = TestServer::with(&store, Default::default(), |handler| handler.hang = true).await;
    let (_listener, address) = application().await;
    let pool = pool(&store);
    let (other, to) = (pool.clone(), server.address);
    let task = tokio::spawn(async move { open(&other, to, address).await });
    let handler = server.handler.clone();
    eventually("the request has come", || {
        !handler.requests.lock().unwrap().is_empty()
    })
    .await;
    task.abort();
    assert_eq!(server.refused().await.reason, Reason::TunnelReset);
    eventually("no streams", || {
        pool.connections()
            .iter()
            .all(|connection| connection.streams() == 0)
    })
    .await;
}

#[tokio::test]
async fn failures_to_connect_are_told_apart() {
    let store = store(authority());
    let (listener, address) = application().await;
    drop(listener);
    let error = open(&pool(&store), address, address).await.unwrap_err();
    assert_eq!(
        (error.reason(), error.is_retryable()),
        (Reason::ConnectionRefused, true)
    );

    // One that accepts and closes at once.
    let (listener, address) = application().await;
    tokio::spawn(async move { while listener.accept().await.is_ok() {} });
    let error = open(&pool(&store), address, address).await.unwrap_err();
    assert_eq!(
        (error.reason(), error.is_retryable()),
        (Reason::HandshakeFailed, true)
    );
}

#[tokio::test(start_paused = true)]
async fn a_server_that_says_nothing_is_given_up() {
    let store = store(authority());
    let (_silent, address) = application().await;
    let error = pool(&store)
        .open(
            &target(address),
            &Authority::Address(address),
            &ConnectHeaders::default(),
        )
        .await
        .unwrap_err();
    assert_eq!(error.reason(), Reason::HandshakeTimeout);
}

#[tokio::test]
async fn an_unused_connection_is_closed_after_a_while() {
    let store = store(authority());
    let server = TestServer::start(&store).await;
    let (_listener, address) = application().await;
    let pool = pool(&store);
    drop(open(&pool, server.address, address).await.unwrap());
    eventually("no streams", || {
        pool.connections()
            .iter()
            .all(|connection| connection.streams() == 0)
    })
    .await;
    tokio::time::pause();
    let start = tokio::time::Instant::now();
    while !pool.connections().is_empty() {
        assert!(start.elapsed() < Duration::from_secs(1000));
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(
        start.elapsed() >= Duration::from_secs(290),
        "{:?}",
        start.elapsed()
    );
}

#[tokio::test]
async fn draining_lets_streams_finish_and_takes_no_more() {
    let store = store(authority());
    let mut server = TestServer::start(&store).await;
    let (listener, address) = application().await;
    let pool = pool(&store);
    let mut path = path(&pool, &server, &listener).await;
    server.settings.drain.cancel();
    for byte in [1, 2] {
        tokio::io::AsyncWriteExt::write_u8(&mut path.client, byte)
            .await
            .unwrap();
        assert_eq!(within(path.server.read_u8()).await.unwrap(), byte);
    }
    drop(path.client);
    drop(path.server);
    assert_eq!(server.closed().await, Reason::None);
    eventually("the connection closes", || {
        server.settings.registry.open().is_empty()
    })
    .await;
    let error = open(&pool, server.address, address).await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
}

/// What a scripted server does with a request.
#[derive(Clone, Copy)]
enum Step {
    Accept,
    /// Accept, and send GOAWAY.
    AcceptAndGoAway,
    Reset(h2::Reason),
    /// Close the connection.
    Close,
}

/// A server that follows a script, a step for each request, and counts connections.
async fn scripted(
    store: &CertificateStore,
    script: &'static [Step],
) -> (std::net::SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let config = store.server_config(&identity("server")).await.unwrap();
    let (connections, steps) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let count = connections.clone();
    tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            count.fetch_add(1, Ordering::Relaxed);
            let (config, steps) = (config.clone(), steps.clone());
            tokio::spawn(follow(socket, config, script, steps));
        }
    });
    (address, connections)
}

async fn follow(
    socket: TcpStream,
    config: Arc<rustls::ServerConfig>,
    script: &'static [Step],
    steps: Arc<AtomicUsize>,
) {
    let tls = tokio_rustls::TlsAcceptor::from(config)
        .accept(socket)
        .await
        .unwrap();
    let mut connection = h2::server::handshake(tls).await.unwrap();
    let mut open = Vec::new();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let mut accept = |request: Request<h2::RecvStream>, respond: &mut SendResponse<Bytes>| {
            open.push((
                request.into_body(),
                respond.send_response(Response::new(()), false).unwrap(),
            ));
        };
        match script[steps.fetch_add(1, Ordering::Relaxed)] {
            Step::Accept => accept(request, &mut respond),
            Step::AcceptAndGoAway => {
                accept(request, &mut respond);
                connection.graceful_shutdown();
            }
            Step::Reset(reason) => respond.send_reset(reason),
            Step::Close => return,
        }
    }
}

async fn open_scripted(
    script: &'static [Step],
    count: usize,
) -> (Vec<Result<TunnelStream, OpenError>>, usize) {
    let store = store(authority());
    let (address, connections) = scripted(&store, script).await;
    let pool = Pool::new(store, Arc::new(LocalConnector), Registry::default());
    let mut results = Vec::new();
    for _ in 0..count {
        results.push(open(&pool, address, address).await);
    }
    (results, connections.load(Ordering::Relaxed))
}

#[tokio::test]
async fn a_refused_request_is_sent_again_once() {
    const AGAIN: &[Step] = &[Step::Reset(h2::Reason::REFUSED_STREAM), Step::Accept];
    let (results, _) = open_scripted(AGAIN, 1).await;
    assert!(results[0].is_ok());
    const TWICE: &[Step] = &[
        Step::Reset(h2::Reason::REFUSED_STREAM),
        Step::Reset(h2::Reason::REFUSED_STREAM),
        Step::Accept,
    ];
    let (results, _) = open_scripted(TWICE, 1).await;
    assert_eq!(results[0].as_ref().unwrap_err().reason(), Reason::TunnelReset);
}

#[tokio::test]
async fn a_request_that_may_have_been_processed_is_not_sent_again() {
    let (results, _) = open_scripted(&[Step::Reset(h2::Reason::INTERNAL_ERROR), Step::Accept], 1).await;
    assert_eq!(results[0].as_ref().unwrap_err().reason(), Reason::TunnelReset);
    let (results, connections) = open_scripted(&[Step::Close, Step::Accept], 2).await;
    assert_eq!(results[0].as_ref().unwrap_err().reason(), Reason::TunnelBroken);
    assert!(results[1].is_ok(), "on a new connection");
    assert_eq!(connections, 2);
}

#[tokio::test]
async fn a_connection_that_goes_away_is_replaced_and_its_streams_go_on() {
    const SCRIPT: &[Step] = &[Step::Accept, Step::AcceptAndGoAway, Step::Accept, Step::Accept];
    let (mut results, connections) = open_scripted(SCRIPT, 4).await;
    assert_eq!(connections, 2);
    for result in &mut results {
        let stream = result.as_mut().unwrap();
        assert_eq!(stream.connection().ended(), None);
    }
}
