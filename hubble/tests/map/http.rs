//! What the map's server answers, and what it refuses.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use weir_hubble::map::{Access, AccessError, Map};

use crate::{
    flows::{connect, shop},
    served,
};

const PATIENCE: Duration = Duration::from_secs(20);
const ALL: &str = "all-0123456789abcdef";
const SHOP: &str = "shop-0123456789abcdef";

/// Everything that is answered to some bytes, until the server ends it.
async fn raw(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // A server that refuses may close before it has read all of it.
    let _ = stream.write_all(request.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut answer))
        .await
        .expect("no end");
    String::from_utf8(answer).unwrap()
}

pub(crate) async fn get(address: SocketAddr, path: &str, headers: &str) -> String {
    raw(address, &format!("GET {path} HTTP/1.1\r\n{headers}\r\n")).await
}

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or("none")
}

#[tokio::test]
async fn on_loopback_only_names_of_loopback_are_answered() {
    let (address, _) = served(Access::open(), shop).await;
    for (host, expected) in [
        ("Host: localhost:4246\r\n", "200"),
        ("Host: LOCALHOST\r\n", "200"),
        ("Host: 127.0.0.1:1\r\n", "200"),
        ("Host: [::1]:4246\r\n", "200"),
        ("Host: rebound.example:4246\r\n", "421"),
        ("Host: localhost.rebound.example\r\n", "421"),
        ("Host: 127.0.0.1.rebound.example\r\n", "421"),
        ("Host: 192.0.2.1\r\n", "421"),
        ("Host: localhost\r\nHost: rebound.example\r\n", "421"),
        ("Host:\r\n", "421"),
        ("", "421"),
        (
            "Host: localhost\r\nSec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: no-cors\r\n",
            "403",
        ),
        (
            "Host: localhost\r\nSec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate\r\n",
            "200",
        ),
        (
            "Host: localhost\r\nSec-Fetch-Site: same-origin\r\nSec-Fetch-Mode: cors\r\n",
            "200",
        ),
    ] {
        for path in ["/", "/graph"] {
            assert_eq!(status(&get(address, path, host).await), expected, "{path} {host}");
        }
    }
    let elsewhere = get(address, "http://rebound.example/graph", "Host: localhost\r\n").await;
    assert_eq!(status(&elsewhere), "421");
}

#[tokio::test]
async fn other_methods_bodies_and_huge_requests_are_refused() {
    let (address, _) = served(Access::open(), shop).await;
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH"] {
        let answer = raw(
            address,
            &format!("{method} / HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        )
        .await;
        assert_eq!(status(&answer), "405", "{method}");
    }
    let body = "Host: localhost\r\nContent-Length: 5\r\n";
    assert_eq!(status(&get(address, "/", body).await), "413");
    let long = format!("Host: localhost\r\nX: {}\r\n", "x".repeat(100_000));
    assert_eq!(status(&get(address, "/", &long).await), "431");
    let path = format!("/flows?from={}&to=b", "x".repeat(100_000));
    assert!(["414", "431"].contains(&status(&get(address, &path, "Host: localhost\r\n").await)));
    for (path, expected) in [
        ("/nothing", "404"),
        ("/../Cargo.toml", "404"),
        ("/flows", "400"),
        ("/flows?from=a&to=%zz", "400"),
        ("/flows?from=a&to=%f", "400"),
        ("/flows?from=%ff&to=a", "400"),
        ("/flows?from=shop%2Fweb&to=shop/cart", "200"),
    ] {
        assert_eq!(
            status(&get(address, path, "Host: localhost\r\n").await),
            expected,
            "{path}"
        );
    }
    let head = raw(address, "HEAD / HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    assert!(head.ends_with("\r\n\r\n") && status(&head) == "200", "{head}");
    // Whoever sends a part of a request and no more is not waited for.
    let slow = raw(address, "GET / HTTP/1.1\r\nHost:").await;
    assert!(!slow.contains("200 OK"), "{slow}");
}

#[tokio::test]
async fn every_answer_says_what_a_browser_may_do_with_it() {
    let (address, _) = served(Access::open(), shop).await;
    for path in ["/", "/map.js", "/graph", "/nothing"] {
        let answer = get(address, path, "Host: localhost\r\n").await.to_lowercase();
        for header in [
            "content-security-policy: default-src 'none'; script-src 'self'; ",
            "connect-src 'self'",
            "frame-ancestors 'none'",
            "x-content-type-options: nosniff",
            "referrer-policy: no-referrer",
            "cache-control: no-store",
            "cross-origin-resource-policy: same-origin",
        ] {
            assert!(answer.contains(header), "{path}: no {header}");
        }
        assert!(!answer.contains("access-control-allow"), "{path}");
    }
}

async fn with_tokens() -> SocketAddr {
    let access = Access::tokens(&format!("# who\n{ALL}\n\n{SHOP} shop,edge\n")).unwrap();
    let fill = |map: &Map| {
        connect(map, "shop/web", "shop/cart", "tunnel", 2);
        connect(map, "pay/payments", "data/postgres", "tunnel", 2);
        connect(map, "pay/payments", "edge/gateway", "tunnel", 2);
    };
    served(access, fill).await.0
}

#[tokio::test]
async fn a_token_is_needed_where_there_are_tokens_and_becomes_a_cookie() {
    let address = with_tokens().await;
    let host = "Host: map.example\r\n";
    for headers in [
        String::new(),
        format!("Authorization: Bearer {ALL}x\r\n"),
        "Authorization: Bearer \r\n".to_owned(),
        format!("Authorization: Basic {ALL}\r\n"),
        format!("Authorization: Bearer {}\r\n", &ALL[1..]),
        format!("Cookie: weir-map={ALL}\r\n"),
        "Cookie: weir-map=\r\n".to_owned(),
    ] {
        for path in [
            "/",
            "/map.js",
            "/graph",
            "/events",
            "/flows?from=a&to=b",
            "/explain?from=a&to=b",
        ] {
            let answer = get(address, path, &format!("{host}{headers}")).await;
            assert_eq!(status(&answer), "401", "{path} {headers}");
            assert!(!answer.contains("shop/web"), "{answer}");
        }
    }
    assert_eq!(
        status(&get(address, "/?token=wrong-0123456789abcdef", host).await),
        "401"
    );
    assert_eq!(
        status(&get(address, &format!("/graph?token={ALL}"), host).await),
        "401"
    );
    let bearer = format!("{host}Authorization: Bearer {ALL}\r\n");
    assert!(get(address, "/graph", &bearer).await.contains("data/postgres"));

    let answer = get(address, &format!("/?token={ALL}"), host).await;
    assert_eq!(status(&answer), "303");
    let cookie = answer
        .lines()
        .find_map(|line| line.strip_prefix("set-cookie: "))
        .unwrap();
    assert!(
        cookie.ends_with("; Path=/; HttpOnly; SameSite=Strict"),
        "{cookie}"
    );
    assert!(!answer.contains(ALL), "the token itself is not kept: {answer}");
    let pair = cookie.split(';').next().unwrap();
    let graph = get(address, "/graph", &format!("{host}Cookie: other=1; {pair}\r\n")).await;
    assert!(graph.contains("data/postgres"), "{graph}");
}

#[tokio::test]
async fn who_is_limited_to_namespaces_sees_nothing_of_others() {
    let address = with_tokens().await;
    let own = format!("Host: map.example\r\nAuthorization: Bearer {SHOP}\r\n");
    let graph = get(address, "/graph", &own).await;
    for (part, is_seen) in [
        ("shop/cart", true),
        ("edge/gateway", true),
        ("data/postgres", false),
    ] {
        assert_eq!(graph.contains(part), is_seen, "{part}: {graph}");
    }
    let flows = |to: &str| format!("/flows?from=pay/payments&to={to}");
    assert!(
        get(address, &flows("edge/gateway"), &own)
            .await
            .contains("gateway-0")
    );
    assert!(
        get(address, &flows("data/postgres"), &own)
            .await
            .ends_with(r#"{"flows":[]}"#)
    );
    let all = format!("Host: map.example\r\nAuthorization: Bearer {ALL}\r\n");
    assert!(
        get(address, &flows("data/postgres"), &all)
            .await
            .contains("postgres-0")
    );
}

#[tokio::test]
async fn events_come_each_second_and_too_many_who_listen_are_refused() {
    let (address, _) = served(Access::open(), shop).await;
    let request = b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let mut listeners = Vec::new();
    for _ in 0..64 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request).await.unwrap();
        let mut begin = [0; 15];
        stream.read_exact(&mut begin).await.unwrap();
        assert_eq!(&begin, b"HTTP/1.1 200 OK");
        listeners.push(stream);
    }
    assert_eq!(
        status(&get(address, "/events", "Host: localhost\r\n").await),
        "503"
    );
    assert_eq!(
        status(&get(address, "/", "Host: localhost\r\n").await),
        "200",
        "pages are still served"
    );
    let mut first = listeners.pop().unwrap();
    let mut heard = String::new();
    let several = async {
        let mut buffer = [0; 65536];
        while heard.matches("data: {").count() < 3 {
            let count = first.read(&mut buffer).await.unwrap();
            assert!(count > 0, "ended: {heard}");
            heard.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
    };
    timeout(PATIENCE, several).await.expect("no events");
    assert!(heard.contains("content-type: text/event-stream"), "{heard}");
    // Whoever goes makes room.
    drop((first, listeners));
    let again = async {
        loop {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(request).await.unwrap();
            let mut begin = [0; 12];
            stream.read_exact(&mut begin).await.unwrap();
            if &begin == b"HTTP/1.1 200" {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(PATIENCE, again).await.expect("no room");
}

#[tokio::test]
async fn a_page_that_reads_nothing_is_given_up_and_others_are_served() {
    let (address, _) = served(Access::open(), |map| {
        // Some 800 kB a second: what the kernel keeps for the page is soon full.
        for number in 0..2000 {
            connect(map, &format!("n{number}/client"), "shop/server", "tunnel", 1);
        }
    })
    .await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut deaf = socket.connect(address).await.unwrap();
    let request = format!("GET /events HTTP/1.1\r\nHost: {address}\r\n\r\n");
    deaf.write_all(request.as_bytes()).await.unwrap();
    let mut reader = TcpStream::connect(address).await.unwrap();
    reader.write_all(request.as_bytes()).await.unwrap();
    let until = tokio::time::Instant::now() + Duration::from_secs(22);
    let mut read = 0;
    let mut buffer = vec![0; 1 << 20];
    while tokio::time::Instant::now() < until {
        let some = timeout(PATIENCE, reader.read(&mut buffer)).await.unwrap();
        read += some.unwrap();
    }
    assert!(read > 10 << 20, "who reads gets all: {read}");
    // What was sent before is there; then it ends, in order or not.
    let mut rest = Vec::new();
    let _ = timeout(PATIENCE, deaf.read_to_end(&mut rest))
        .await
        .expect("it goes on for ever");
    assert!(rest.len() < read, "{} of {read}", rest.len());
}

#[test]
fn a_file_of_tokens_is_understood_or_refused() {
    for (text, expected) in [
        ("", AccessError::Empty),
        ("# nothing\n", AccessError::Empty),
        ("short", AccessError::Line(1)),
        ("\nall-0123456789abcdef shop, cart", AccessError::Line(2)),
        ("all-0123456789abcdef shop,,cart", AccessError::Line(1)),
        ("all-0123456789&abcdef", AccessError::Line(1)),
        (
            "all-0123456789abcdef\nall-0123456789abcdef shop",
            AccessError::Twice(2),
        ),
    ] {
        assert_eq!(Access::tokens(text).unwrap_err(), expected, "{text}");
    }
    let many: String = (0..65).map(|number| format!("token-{number:016}\n")).collect();
    assert_eq!(Access::tokens(&many).unwrap_err(), AccessError::Many);
}
