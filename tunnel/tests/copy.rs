//! What applications at both ends see: half-closes, resets, slow readers.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failed assertion is what a test is for"
)]

mod support;

use std::{sync::atomic::Ordering, time::Duration};

use support::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use weir_types::Reason;

#[tokio::test]
async fn a_client_that_shuts_down_its_write_side_gets_the_whole_answer() {
    let store = store(authority());
    let mut server = TestServer::start(&store).await;
    let (listener, _) = application().await;
    let pool = pool(&store);
    let mut path = path(&pool, &server, &listener).await;
    let answer: Vec<u8> = (0..3_000_000_u32).map(|i| (i * 7) as u8).collect();

    path.client.write_all(b"question").await.unwrap();
    path.client.shutdown().await.unwrap();
    let mut question = Vec::new();
    within(path.server.read_to_end(&mut question)).await.unwrap();
    assert_eq!(question, b"question");

    let expected = answer.clone();
    let writer = tokio::spawn(async move {
        path.server.write_all(&answer).await.unwrap();
        path.server.shutdown().await.unwrap();
        path.server
    });
    let mut received = Vec::new();
    within(path.client.read_to_end(&mut received)).await.unwrap();
    assert!(
        received == expected,
        "{} bytes of {}",
        received.len(),
        expected.len()
    );
    writer.await.unwrap();
    assert_eq!(within(path.copy).await.unwrap().ended, Reason::None);
    assert_eq!(server.closed().await, Reason::None);
    assert_eq!(path.counters.sent.load(Ordering::Relaxed), 8);
    assert_eq!(path.counters.received.load(Ordering::Relaxed), 3_000_000);
}

#[tokio::test]
async fn a_server_that_shuts_down_its_write_side_gets_the_rest_of_the_request() {
    let store = store(authority());
    let mut server = TestServer::start(&store).await;
    let (listener, _) = application().await;
    let pool = pool(&store);
    let mut path = path(&pool, &server, &listener).await;

    path.server.write_all(b"greeting").await.unwrap();
    path.server.shutdown().await.unwrap();
    let mut greeting = Vec::new();
    within(path.client.read_to_end(&mut greeting)).await.unwrap();
    assert_eq!(greeting, b"greeting");

    path.client.write_all(b"the rest").await.unwrap();
    path.client.shutdown().await.unwrap();
    let mut rest = Vec::new();
    within(path.server.read_to_end(&mut rest)).await.unwrap();
    assert_eq!(rest, b"the rest");
    assert_eq!(within(path.copy).await.unwrap().ended, Reason::None);
    assert_eq!(server.closed().await, Reason::None);
}

#[tokio::test]
async fn a_reset_of_the_client_is_a_reset_of_the_server() {
    let store = store(authority());
    let mut server = TestServer::start(&store).await;
    let (listener, _) = application().await;
    let pool = pool(&store);
    let mut path = path(&pool, &server, &listener).await;
    path.client.write_all(b"x").await.unwrap();
    path.server.read_u8().await.unwrap();
    path.client.set_zero_linger().unwrap();
    drop(path.client);
    let error = within(path.server.read_u8()).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(within(path.copy).await.unwrap().ended, Reason::ApplicationReset);
    assert_eq!(server.closed().await, Reason::TunnelReset);
}

#[tokio::test]
async fn a_reset_of_the_server_is_a_reset_of_the_client() {
    let store = store(authority());
    let mut server = TestServer::start(&store).await;
    let (listener, _) = application().await;
    let pool = pool(&store);
    let mut path = path(&pool, &server, &listener).await;
    path.server.set_zero_linger().unwrap();
    drop(path.server);
    let error = within(path.client.read_u8()).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(within(path.copy).await.unwrap().ended, Reason::TunnelReset);
    assert_eq!(server.closed().await, Reason::ApplicationReset);
}

#[tokio::test]
async fn a_reset_is_noticed_while_the_tunnel_is_full() {
    let store = store(authority());
    let mut server = TestServer::start(&store).await;
    let (listener, _) = application().await;
    let pool = pool(&store);
    let mut path = path(&pool, &server, &listener).await;
    // The server's application reads nothing: written until nothing more fits anywhere.
    fill(&mut path.client).await;
    path.client.set_zero_linger().unwrap();
    drop(path.client);
    assert_eq!(within(path.copy).await.unwrap().ended, Reason::ApplicationReset);
    assert_eq!(server.closed().await, Reason::TunnelReset);
    let mut rest = Vec::new();
    let error = within(path.server.read_to_end(&mut rest)).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_reset_is_noticed_after_a_half_close() {
    let store = store(authority());
    let mut server = TestServer::start(&store).await;
    let (listener, _) = application().await;
    let pool = pool(&store);
    let mut path = path(&pool, &server, &listener).await;
    path.client.shutdown().await.unwrap();
    assert_eq!(within(path.server.read(&mut [0; 8])).await.unwrap(), 0);
    path.server.set_zero_linger().unwrap();
    drop(path.server);
    let error = within(path.client.read_u8()).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(within(path.copy).await.unwrap().ended, Reason::TunnelReset);
    assert_eq!(server.closed().await, Reason::ApplicationReset);
}

#[tokio::test]
async fn a_dropped_copy_resets_both_ends() {
    let store = store(authority());
    let mut server = TestServer::start(&store).await;
    let (listener, _) = application().await;
    let pool = pool(&store);
    let mut path = path(&pool, &server, &listener).await;
    path.client.write_all(b"x").await.unwrap();
    path.server.read_u8().await.unwrap();
    path.copy.abort();
    for end in [&mut path.client, &mut path.server] {
        let error = within(end.read_u8()).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
    assert_eq!(server.closed().await, Reason::TunnelReset);
}

#[tokio::test]
async fn a_stopped_connection_is_reset_at_both_ends() {
    let store = store(authority());
    let mut server = TestServer::start(&store).await;
    let (listener, _) = application().await;
    let pool = pool(&store);
    let mut path = path(&pool, &server, &listener).await;
    server.handler.stop.cancel();
    for end in [&mut path.client, &mut path.server] {
        let error = within(end.read_u8()).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
    assert_eq!(server.closed().await, Reason::PolicyChanged);
    assert_eq!(within(path.copy).await.unwrap().ended, Reason::TunnelReset);
}

#[tokio::test]
async fn streams_whose_applications_do_not_read_leave_their_neighbours_alone() {
    let store = store(authority());
    let server = TestServer::start(&store).await;
    let (listener, _) = application().await;
    let pool = pool(&store);
    let mut stalled = Vec::new();
    for index in 0..24 {
        let mut path = path(&pool, &server, &listener).await;
        // Both directions, so that both ends hold unread data.
        fill(if index % 2 == 0 {
            &mut path.client
        } else {
            &mut path.server
        })
        .await;
        stalled.push(path);
    }
    let mut neighbour = path(&pool, &server, &listener).await;
    assert_eq!(
        server.connections.load(Ordering::Relaxed),
        1,
        "all share one connection"
    );
    let data = vec![7; 8 << 20];
    let expected = data.len();
    let (mut read, mut write) = neighbour.client.split();
    let (mut far_read, mut far_write) = neighbour.server.split();
    let send = async {
        write.write_all(&data).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let echo = async {
        tokio::io::copy(&mut far_read, &mut far_write).await.unwrap();
        far_write.shutdown().await.unwrap();
    };
    let receive = async {
        let mut received = Vec::new();
        read.read_to_end(&mut received).await.unwrap();
        received.len()
    };
    let ((), (), received) = within(async { tokio::join!(send, echo, receive) }).await;
    assert_eq!(received, expected);

    // And those that were stalled lose nothing when they are read again.
    let Some(mut path) = stalled.pop() else {
        unreachable!("24 of them")
    };
    let sent = path.server.local_addr().is_ok();
    assert!(sent);
    path.server.shutdown().await.unwrap();
    let mut rest = Vec::new();
    within(path.client.read_to_end(&mut rest)).await.unwrap();
    assert!(rest.len() > 1 << 20, "{}", rest.len());
    assert!(
        rest.iter()
            .enumerate()
            .all(|(index, byte)| *byte == (index % 251) as u8)
    );
}

#[tokio::test]
async fn a_slow_reader_of_small_messages_does_not_cost_its_neighbours_the_connection() {
    let store = store(authority());
    let server = TestServer::start(&store).await;
    let (listener, _) = application().await;
    let (mut send, driver) = raw_h2(&store, server.address).await;
    let mut open = async || {
        let uri = listener.local_addr().unwrap().to_string();
        let request = http::Request::builder()
            .method("CONNECT")
            .uri(uri)
            .body(())
            .unwrap();
        let (answer, stream) = send.send_request(request, false).unwrap();
        let (answer, accepted) = tokio::join!(answer, listener.accept());
        assert_eq!(answer.unwrap().status(), 200);
        (stream, accepted.unwrap().0)
    };
    let (mut slow, mut unread) = open().await;
    let (mut neighbour, mut read) = open().await;

    // Until the application's socket is full, but not the stream's window.
    let delivered = || {
        server.handler.counters.lock().unwrap()[0]
            .received
            .load(Ordering::Relaxed)
    };
    let mut sent = 0;
    let full = async {
        loop {
            slow.send_data(vec![1; 65536].into(), false).unwrap();
            sent += 65536;
            while delivered() < sent {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    };
    // It never ends by itself; what it sent last stays in the tunnel.
    let () = {
        tokio::pin!(full);
        let mut last = delivered();
        loop {
            assert!(
                tokio::time::timeout(Duration::from_millis(200), &mut full)
                    .await
                    .is_err()
            );
            let now = delivered();
            if now == last {
                break;
            }
            last = now;
        }
    };
    // Frames of one byte, which would spend h2's budget three times over were they left in h2.
    for index in 0..100_000_u64 {
        slow.send_data(vec![1].into(), false).unwrap();
        sent += 1;
        if index % 1000 == 0 {
            neighbour.send_data(vec![2].into(), false).unwrap();
            assert_eq!(within(read.read_u8()).await.unwrap(), 2, "after {index}");
        }
    }
    slow.send_data(Vec::new().into(), true).unwrap();
    let mut rest = Vec::new();
    within(unread.read_to_end(&mut rest)).await.unwrap();
    assert_eq!(rest.len() as u64, sent, "nothing is lost");
    assert!(!driver.is_finished(), "the connection goes on");
}

#[tokio::test]
async fn a_plain_copy_passes_half_closes_and_resets_on() {
    use weir_tunnel::copy::{Counters, copy_plain};
    let start = async || {
        let ((near, first), (second, far)) = (pair().await, pair().await);
        let counters = std::sync::Arc::new(Counters::default());
        let counted = counters.clone();
        let copy = tokio::spawn(async move { copy_plain(first, second, &counted).await });
        (near, far, copy, counters)
    };

    let (mut near, mut far, copy, counters) = start().await;
    let request = vec![1; 5_000_000];
    let send = async {
        near.write_all(&request).await.unwrap();
        near.shutdown().await.unwrap();
    };
    let mut received = Vec::new();
    let ((), read) = within(async { tokio::join!(send, far.read_to_end(&mut received)) }).await;
    assert_eq!(read.unwrap(), request.len());
    far.write_all(b"answer").await.unwrap();
    far.shutdown().await.unwrap();
    let mut answer = Vec::new();
    within(near.read_to_end(&mut answer)).await.unwrap();
    assert_eq!(answer, b"answer");
    assert_eq!(within(copy).await.unwrap().ended, Reason::None);
    assert_eq!(counters.sent.load(Ordering::Relaxed), 5_000_000);
    assert_eq!(counters.received.load(Ordering::Relaxed), 6);

    // While the other side is full, so that nothing is read.
    let (mut near, mut far, copy, _) = start().await;
    fill(&mut near).await;
    near.set_zero_linger().unwrap();
    drop(near);
    assert_eq!(within(copy).await.unwrap().ended, Reason::ApplicationReset);
    let mut rest = Vec::new();
    let error = within(far.read_to_end(&mut rest)).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);

    let (mut near, mut far, copy, _) = start().await;
    near.write_all(b"x").await.unwrap();
    far.read_u8().await.unwrap();
    copy.abort();
    for end in [&mut near, &mut far] {
        assert_eq!(
            within(end.read_u8()).await.unwrap_err().kind(),
            std::io::ErrorKind::ConnectionReset
        );
    }
}

#[tokio::test]
async fn what_was_written_before_an_orderly_end_arrives_however_late_it_is_read() {
    use weir_tunnel::copy::{Counters, copy_plain};
    // More than a receiver that does not read takes, so that the rest waits in the sender's kernel at the close.
    let data = vec![1; 1_000_000];
    let ((mut near, first), (second, mut far)) = (pair().await, pair().await);
    let copy = tokio::spawn(async move { copy_plain(first, second, &Counters::default()).await });
    far.shutdown().await.unwrap();
    near.write_all(&data).await.unwrap();
    near.shutdown().await.unwrap();
    assert_eq!(within(copy).await.unwrap().ended, Reason::None);
    let mut received = Vec::new();
    within(far.read_to_end(&mut received)).await.unwrap();
    assert_eq!(received.len(), data.len());

    let store = store(authority());
    let mut server = TestServer::start(&store).await;
    let (listener, _) = application().await;
    let mut path = path(&pool(&store), &server, &listener).await;
    path.server.shutdown().await.unwrap();
    path.client.write_all(&data).await.unwrap();
    path.client.shutdown().await.unwrap();
    assert_eq!(within(path.copy).await.unwrap().ended, Reason::None);
    assert_eq!(server.closed().await, Reason::None);
    let mut received = Vec::new();
    within(path.server.read_to_end(&mut received)).await.unwrap();
    assert_eq!(received.len(), data.len());
}

/// Where the process that copies connects to; set by the test that starts it.
const ENDS: &str = "WEIR_TEST_COPY_ENDS";

/// Not a test: another process, which copies between its parent's sockets until it is killed.
#[tokio::test]
#[ignore = "started by another test"]
async fn copies_until_killed() {
    let Ok(ends) = std::env::var(ENDS) else { return };
    let ends: Vec<std::net::SocketAddr> = ends.split(' ').map(|end| end.parse().unwrap()).collect();
    let connect = async |end: usize| tokio::net::TcpStream::connect(ends[end]).await.unwrap();
    let (first, second, client) = (connect(0).await, connect(1).await, connect(2).await);
    let plain = weir_tunnel::copy::Counters::default();
    let plain = weir_tunnel::copy::copy_plain(first, second, &plain);
    let store = store(authority());
    let server = TestServer::start(&store).await;
    let tunnel = open(&pool(&store), server.address, ends[3]).await.unwrap();
    let counters = weir_tunnel::copy::Counters::default();
    let tunnelled = weir_tunnel::copy::copy_bidirectional(client, tunnel, &counters);
    tokio::join!(plain, tunnelled);
}

#[tokio::test]
async fn a_process_that_dies_resets_what_it_copied() {
    let mut listeners = Vec::new();
    let mut addresses = Vec::new();
    for _ in 0..4 {
        let (listener, address) = application().await;
        listeners.push(listener);
        addresses.push(address.to_string());
    }
    let mut process = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "copies_until_killed"])
        .env(ENDS, addresses.join(" "))
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut ends = Vec::new();
    for listener in &listeners {
        ends.push(within(listener.accept()).await.unwrap().0);
    }
    for [from, to] in [[0, 1], [2, 3]] {
        ends[from].write_u8(7).await.unwrap();
        assert_eq!(within(ends[to].read_u8()).await.unwrap(), 7, "it copies");
    }
    process.kill().unwrap();
    process.wait().unwrap();
    for (index, end) in ends.iter_mut().enumerate() {
        let error = within(end.read_u8()).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "end {index}");
    }
}

/// Writes until nothing was taken for a while: all buffers on the way are full.
async fn fill(socket: &mut tokio::net::TcpStream) -> usize {
    let mut total = 0_usize;
    loop {
        let data: Vec<u8> = (total..total + 65536).map(|index| (index % 251) as u8).collect();
        match tokio::time::timeout(Duration::from_millis(100), socket.write(&data)).await {
            Ok(written) => total += written.unwrap(),
            Err(_) => return total,
        }
    }
}
