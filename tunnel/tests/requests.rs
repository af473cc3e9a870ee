//! What a CONNECT gets: the status at the client, the reason at the server.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failed assertion is what a test is for"
)]

mod support;

use http::{Method, Request};
use support::*;
use weir_types::Reason;

#[tokio::test]
async fn requests_are_answered_by_the_table() {
    let store = store(authority());
    let mut server = TestServer::start(&store).await;
    let (listener, application_address) = application().await;
    let (send, _driver) = raw_h2(&store, server.address).await;
    let closed = {
        let (listener, address) = application().await;
        drop(listener);
        address
    };
    let good = application_address.to_string();
    let table = [
        (Method::CONNECT, good.clone(), 200, Reason::None),
        (Method::GET, format!("http://{good}/"), 400, Reason::BadRequest),
        (
            Method::POST,
            "https://web.shop/x?y".to_owned(),
            400,
            Reason::BadRequest,
        ),
        (Method::CONNECT, "127.0.0.1".to_owned(), 400, Reason::BadAuthority),
        (
            Method::CONNECT,
            "127.0.0.1:0".to_owned(),
            400,
            Reason::BadAuthority,
        ),
        (
            Method::CONNECT,
            "127.0.0.2:80".to_owned(),
            400,
            Reason::BadAuthority,
        ),
        (Method::CONNECT, "[::1]:80".to_owned(), 400, Reason::BadAuthority),
        (
            Method::CONNECT,
            "[::ffff:127.0.0.1]:80".to_owned(),
            400,
            Reason::BadAuthority,
        ),
        (
            Method::CONNECT,
            "web.shop:80".to_owned(),
            400,
            Reason::BadAuthority,
        ),
        (
            Method::CONNECT,
            "u@127.0.0.1:80".to_owned(),
            400,
            Reason::BadAuthority,
        ),
        (
            Method::CONNECT,
            "127.0.0.1:15001".to_owned(),
            503,
            Reason::LoopPort,
        ),
        (
            Method::CONNECT,
            "127.0.0.1:15006".to_owned(),
            503,
            Reason::LoopPort,
        ),
        (
            Method::CONNECT,
            "127.0.0.1:15008".to_owned(),
            503,
            Reason::LoopPort,
        ),
        (
            Method::CONNECT,
            "127.0.0.9:15008".to_owned(),
            503,
            Reason::LoopPort,
        ),
        (
            Method::CONNECT,
            closed.to_string(),
            503,
            Reason::ConnectionRefused,
        ),
    ];
    for (method, uri, status, reason) in table {
        let request = Request::builder()
            .method(method.clone())
            .uri(&uri)
            .body(())
            .unwrap();
        let (answer, _stream) = send
            .clone()
            .ready()
            .await
            .unwrap()
            .send_request(request, false)
            .unwrap();
        let answer = within(answer).await.unwrap();
        assert_eq!(answer.status().as_u16(), status, "{method} {uri}");
        if reason == Reason::None {
            within(listener.accept()).await.unwrap();
        } else {
            let refused = server.refused().await;
            assert_eq!(refused.reason, reason, "{method} {uri}");
            assert_eq!(refused.peer_identity, Some(identity("client")), "{method} {uri}");
        }
    }
}

#[tokio::test]
async fn an_extended_connect_is_refused() {
    let store = store(authority());
    let server = TestServer::start(&store).await;
    let (_listener, address) = application().await;
    let (mut send, _driver) = raw_h2(&store, server.address).await;
    let request = Request::builder()
        .method(Method::CONNECT)
        .uri(format!("https://{address}/chat"))
        .extension(h2::ext::Protocol::from_static("websocket"))
        .body(())
        .unwrap();
    let (answer, _stream) = send.send_request(request, false).unwrap();
    match within(answer).await {
        Ok(answer) => assert_eq!(answer.status(), 400),
        // RFC 8441 section 4: we do not advertise it, so to h2 the request is malformed.
        Err(error) => assert!(error.is_reset(), "{error}"),
    }
    assert!(server.handler.requests.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_request_that_policy_denies_gets_401() {
    let store = store(authority());
    let mut server = TestServer::with(&store, Default::default(), |handler| handler.deny = true).await;
    let (_listener, address) = application().await;
    let error = open(&pool(&store), server.address, address).await.unwrap_err();
    assert_eq!(error.status().unwrap(), 401);
    assert_eq!(error.reason(), Reason::PolicyDenied);
    assert!(!error.is_retryable());
    assert_eq!(server.refused().await.reason, Reason::PolicyDenied);
}

#[tokio::test]
async fn an_application_that_refuses_gets_503_and_another_may_be_tried() {
    let store = store(authority());
    let server = TestServer::start(&store).await;
    let (listener, address) = application().await;
    drop(listener);
    let error = open(&pool(&store), server.address, address).await.unwrap_err();
    assert_eq!(error.status().unwrap(), 503);
    assert_eq!(error.reason(), Reason::ConnectionRefused);
    assert!(error.is_retryable());
}

#[tokio::test]
async fn hints_reach_the_handler_unless_they_are_too_long() {
    let store = store(authority());
    let server = TestServer::start(&store).await;
    let (_listener, address) = application().await;
    let headers = weir_tunnel::hbone::ConnectHeaders {
        baggage: Some("k8s.namespace.name=shop".parse().unwrap()),
        forwarded: Some("for=\"10.0.0.1:1\"".parse().unwrap()),
        traceparent: Some("x".repeat(5000).parse().unwrap()),
    };
    let authority = weir_tunnel::hbone::Authority::Address(address);
    pool(&store)
        .open(&target(server.address), &authority, &headers)
        .await
        .unwrap();
    let requests = server.handler.requests.lock().unwrap();
    assert_eq!(requests[0].peer_identity, identity("client"));
    assert_eq!(requests[0].authority, authority);
    assert_eq!(requests[0].baggage, headers.baggage);
    assert_eq!(requests[0].forwarded, headers.forwarded);
    assert_eq!(requests[0].traceparent, None);
}
