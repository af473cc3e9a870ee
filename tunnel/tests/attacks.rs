//! A verified peer that is hostile: what it sends is bounded, and others do not notice.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failed assertion is what a test is for"
)]

mod support;

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use support::*;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::client::TlsStream;
use weir_tunnel::{
    copy::Counters,
    hbone::{PEER_CONNECTIONS, SERVER_STREAMS},
};
use weir_types::Reason;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// A header block of literals without indexing (RFC 7541 section 6.2.2): CONNECT to this authority.
fn connect_block(authority: &str) -> Vec<u8> {
    let mut block = vec![0x02, 7];
    block.extend(b"CONNECT");
    block.extend([0x01, u8::try_from(authority.len()).unwrap()]);
    block.extend(authority.as_bytes());
    block
}

struct Attacker {
    tls: TlsStream<TcpStream>,
}

impl Attacker {
    async fn new(store: &weir_tunnel::certs::CertificateStore, server: &TestServer) -> Self {
        let mut attacker = Self {
            tls: raw_tls(store, server.address).await,
        };
        attacker.send(PREFACE).await.unwrap();
        attacker.send(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
        attacker
    }

    async fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.tls.write_all(bytes).await?;
        self.tls.flush().await
    }

    /// Sends again and again until the server closes; returns how often.
    async fn until_closed(&mut self, limit: usize, mut next: impl FnMut(usize) -> Vec<u8>) -> usize {
        let attack = async {
            for count in 0..limit {
                if self.send(&next(count)).await.is_err() {
                    return count;
                }
                // Read what comes, or the server could not write and would not read on.
                let mut sink = [0; 16384];
                while let Ok(read) = tokio::time::timeout(Duration::ZERO, self.tls.read(&mut sink)).await {
                    match read {
                        Ok(0) | Err(_) => return count,
                        Ok(_) => {}
                    }
                }
            }
            let mut rest = Vec::new();
            // An error is the end as well.
            let _ = self.tls.read_to_end(&mut rest).await;
            limit
        };
        tokio::time::timeout(Duration::from_secs(60), attack)
            .await
            .expect("the server closes")
    }
}

struct Scene {
    store: weir_tunnel::certs::CertificateStore,
    server: TestServer,
    listener: tokio::net::TcpListener,
    neighbour: Path,
    /// The neighbour's server.
    _good: TestServer,
}

impl Scene {
    async fn new(hang: bool) -> Self {
        let store = store(authority());
        let good = TestServer::start(&store).await;
        let (listener, _) = application().await;
        let neighbour = path(&pool(&store), &good, &listener).await;
        let server = TestServer::with(&store, Default::default(), |handler| handler.hang = hang).await;
        Self {
            store,
            server,
            listener,
            neighbour,
            _good: good,
        }
    }

    async fn neighbour_goes_on(&mut self) {
        self.neighbour.client.write_all(b"x").await.unwrap();
        assert_eq!(within(self.neighbour.server.read_u8()).await.unwrap(), b'x');
    }
}

#[tokio::test]
async fn a_million_empty_data_frames_end_the_connection_early() {
    let mut scene = Scene::new(false).await;
    let mut attacker = Attacker::new(&scene.store, &scene.server).await;
    let block = connect_block(&scene.listener.local_addr().unwrap().to_string());
    attacker
        .send(&frame(HEADERS, END_HEADERS, 1, &block))
        .await
        .unwrap();
    let thousand = frame(DATA, 0, 1, &[]).repeat(1000);
    let sent = attacker.until_closed(1000, |_| thousand.clone()).await;
    assert!(sent < 500, "closed after {sent} thousand");
    scene.neighbour_goes_on().await;
}

#[tokio::test]
async fn headers_without_end_end_the_connection_early() {
    let mut scene = Scene::new(false).await;
    let mut attacker = Attacker::new(&scene.store, &scene.server).await;
    attacker
        .send(&frame(HEADERS, 0, 1, &connect_block("127.0.0.1:80")))
        .await
        .unwrap();
    // A literal header of 16,000 bytes in each.
    let mut literal = vec![0x00, 1, b'x', 0x7f, 0x81, 0x7c];
    literal.extend(vec![b'y'; 16_000]);
    let more = frame(CONTINUATION, 0, 1, &literal);
    let sent = attacker.until_closed(10_000, |_| more.clone()).await;
    assert!(sent < 1000, "closed after {sent}");
    assert!(scene.server.handler.requests.lock().unwrap().len() <= 1);
    scene.neighbour_goes_on().await;
}

#[tokio::test]
async fn requests_that_are_reset_at_once_end_the_connection_early() {
    let mut scene = Scene::new(true).await;
    let mut attacker = Attacker::new(&scene.store, &scene.server).await;
    let block = connect_block(&scene.listener.local_addr().unwrap().to_string());
    let sent = attacker
        .until_closed(100_000, |count| {
            let stream = u32::try_from(count).unwrap() * 2 + 1;
            let mut both = frame(HEADERS, END_HEADERS, stream, &block);
            both.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
            both
        })
        .await;
    assert!(sent < 10_000, "closed after {sent}");
    let requests = scene.server.handler.requests.lock().unwrap().len();
    assert!(requests <= 600, "{requests} reached the handler");
    scene.neighbour_goes_on().await;
}

#[tokio::test]
async fn streams_beyond_the_limit_are_refused() {
    let mut scene = Scene::new(true).await;
    let mut attacker = Attacker::new(&scene.store, &scene.server).await;
    let block = connect_block(&scene.listener.local_addr().unwrap().to_string());
    for count in 0..300 {
        attacker
            .send(&frame(HEADERS, END_HEADERS, count * 2 + 1, &block))
            .await
            .unwrap();
    }
    let server = &scene.server;
    eventually("two hundred are taken", || {
        server.handler.requests.lock().unwrap().len() >= 200
    })
    .await;
    assert_eq!(server.handler.requests.lock().unwrap().len(), 200);
    assert_eq!(server.settings.registry.open()[0].streams(), 200);
    drop(attacker);
    eventually("all are given up", || server.settings.registry.open().is_empty()).await;
    scene.neighbour_goes_on().await;
}

#[tokio::test]
async fn streams_that_ended_count_until_the_application_has_taken_them() {
    const STREAMS: usize = SERVER_STREAMS as usize;
    const ACK: u8 = 1;
    const END_STREAM: u8 = 1;
    let small = |handler: &mut TestHandler| handler.send_buffer = Some(4096);
    let mut scene = Scene::new(false).await;
    let mut server = TestServer::with(&scene.store, Default::default(), small).await;
    let mut attacker = Attacker::new(&scene.store, &server).await;
    // Our settings hold from here: a window of a megabyte.
    attacker.send(&frame(SETTINGS, ACK, 0, &[])).await.unwrap();
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1024).unwrap();
    let block = connect_block(&listener.local_addr().unwrap().to_string());
    let data = vec![7; 200_000];
    let mut unread = Vec::new();
    for index in 0..STREAMS {
        let stream = u32::try_from(index).unwrap() * 2 + 1;
        let mut request = frame(HEADERS, END_HEADERS, stream, &block);
        request.extend(frame(DATA, END_STREAM, stream, &data));
        attacker.send(&request).await.unwrap();
        unread.push(within(listener.accept()).await.unwrap());
        let handler = &server.handler;
        eventually("the end of the stream is taken from HTTP/2", || {
            let counters = handler.counters.lock().unwrap();
            let received = |one: &Arc<Counters>| one.received.load(Ordering::Relaxed) > 0;
            counters.get(index).is_some_and(received)
        })
        .await;
        attacker
            .send(&frame(RST_STREAM, 0, stream, &[0; 4]))
            .await
            .unwrap();
    }
    let stream = u32::try_from(STREAMS).unwrap() * 2 + 1;
    attacker
        .send(&frame(HEADERS, END_HEADERS, stream, &block))
        .await
        .unwrap();
    let refused = server.refused().await;
    assert_eq!(
        (refused.reason, refused.peer_identity),
        (Reason::ConnectionLimit, Some(identity("client")))
    );
    assert_eq!(server.handler.requests.lock().unwrap().len(), STREAMS);

    // The connection goes; what is left is not kept for ever.
    drop(attacker);
    scene.neighbour_goes_on().await;
    eventually("the connection has ended", || {
        server.settings.registry.open()[0].ended().is_some()
    })
    .await;
    tokio::time::pause();
    let start = tokio::time::Instant::now();
    let mut left = STREAMS;
    while left > 0 {
        if let Event::Closed(_) = server.events.recv().await.unwrap() {
            left -= 1;
        }
    }
    assert!(
        start.elapsed() <= Duration::from_secs(61),
        "{:?}",
        start.elapsed()
    );
}

#[tokio::test]
async fn connections_of_one_peer_are_bounded() {
    let mut scene = Scene::new(false).await;
    let mut held = Vec::new();
    let registry = scene.server.settings.registry.clone();
    for count in 1..=PEER_CONNECTIONS {
        held.push(Attacker::new(&scene.store, &scene.server).await);
        eventually("it is served", || registry.open().len() == count).await;
    }
    let _one_more = Attacker::new(&scene.store, &scene.server).await;
    let refused = scene.server.refused().await;
    assert_eq!(
        (refused.reason, refused.peer_identity),
        (Reason::ConnectionLimit, Some(identity("client")))
    );
    held.pop();
    eventually("one has gone", || registry.open().len() < PEER_CONNECTIONS).await;
    let _another = Attacker::new(&scene.store, &scene.server).await;
    eventually("another is served", || registry.open().len() == PEER_CONNECTIONS).await;
    scene.neighbour_goes_on().await;
}

#[tokio::test]
async fn a_peer_that_answers_no_ping_is_given_up() {
    let scene = Scene::new(false).await;
    let mut server = TestServer::start(&scene.store).await;
    let mut attacker = Attacker::new(&scene.store, &server).await;
    let (listener, address) = application().await;
    let block = connect_block(&address.to_string());
    attacker
        .send(&frame(HEADERS, END_HEADERS, 1, &block))
        .await
        .unwrap();
    let (_application, _) = within(listener.accept()).await.unwrap();
    let registry = server.settings.registry.clone();
    eventually("it is listed", || !registry.open().is_empty()).await;
    tokio::time::pause();
    let start = tokio::time::Instant::now();
    let reason = loop {
        match server.events.recv().await.unwrap() {
            Event::Closed(reason) => break reason,
            _ => continue,
        }
    };
    assert_eq!(reason, Reason::KeepAliveTimeout);
    assert!(
        (25..=40).contains(&start.elapsed().as_secs()),
        "{:?}",
        start.elapsed()
    );
}
