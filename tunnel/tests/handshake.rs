//! Who gets in: every fault of a certificate is named at the end that refuses and at the end that is refused.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failed assertion is what a test is for"
)]

mod support;

use std::sync::Arc;

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, SanType};
use support::*;
use tokio::{io::AsyncWriteExt as _, net::TcpStream};
use weir_tunnel::{
    certs::{CertificateStore, Settings},
    hbone::{HandshakeLimiter, ServerSettings},
    pool::OpenError,
};
use weir_types::Reason;

type Change = fn(&mut CertificateParams);

/// What is wrong with a certificate, the change that makes it so, and the reason at both ends.
fn faults() -> Vec<(&'static str, Change, Reason)> {
    vec![
        (
            "expired",
            |p| p.not_after = rcgen::date_time_ymd(2020, 1, 1),
            Reason::CertificateExpired,
        ),
        (
            "not valid yet",
            |p| p.not_before = rcgen::date_time_ymd(4000, 1, 1),
            Reason::CertificateExpired,
        ),
        (
            "other trust domain",
            |p| p.subject_alt_names = vec![uri("spiffe://other.test/ns/shop/sa/server")],
            Reason::WrongTrustDomain,
        ),
        (
            "two URIs",
            |p| p.subject_alt_names.push(uri("spiffe://mesh.test/ns/a/sa/b")),
            Reason::BadCertificate,
        ),
        (
            "DNS name alone",
            |p| p.subject_alt_names = vec![SanType::DnsName("server.test".try_into().unwrap())],
            Reason::BadCertificate,
        ),
        (
            "no name",
            |p| p.subject_alt_names = vec![],
            Reason::BadCertificate,
        ),
        (
            "no workload's identity",
            |p| p.subject_alt_names = vec![uri("spiffe://mesh.test/node/1")],
            Reason::BadCertificate,
        ),
        (
            "another use",
            |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning],
            Reason::BadCertificate,
        ),
    ]
}

async fn refusal_of(
    client: &CertificateStore,
    server: &CertificateStore,
) -> (OpenError, weir_tunnel::hbone::Refused) {
    let mut server = TestServer::start(server).await;
    let (_listener, application) = application().await;
    let error = open(&pool(client), server.address, application)
        .await
        .unwrap_err();
    let refused = server.refused().await;
    assert!(
        server.handler.requests.lock().unwrap().is_empty(),
        "nothing was forwarded"
    );
    (error, refused)
}

fn by_peer(error: &OpenError) -> bool {
    matches!(error, OpenError::Handshake { failure, .. } if failure.by_peer)
}

#[tokio::test]
async fn a_client_with_a_bad_certificate_is_refused_and_told_why() {
    let root = root("root");
    let good = store(TestIssuer::new(&root, |_| {}));
    for (fault, change, reason) in faults() {
        let bad = store(TestIssuer::new(&root, change));
        let (error, refused) = refusal_of(&bad, &good).await;
        assert_eq!(refused.reason, reason, "{fault}: at the server");
        assert!(!refused.by_peer, "{fault}: at the server");
        assert_eq!(error.reason(), reason, "{fault}: at the client: {error}");
        assert!(by_peer(&error), "{fault}: at the client");
        assert!(!error.is_retryable(), "{fault}: its neighbours judge alike");
    }
}

#[tokio::test]
async fn a_server_with_a_bad_certificate_is_refused_and_told_why() {
    let root = root("root");
    let good = store(TestIssuer::new(&root, |_| {}));
    let mut faults = faults();
    faults.push((
        "other identity",
        |p| p.subject_alt_names = vec![uri("spiffe://mesh.test/ns/shop/sa/other")],
        Reason::WrongIdentity,
    ));
    for (fault, change, reason) in faults {
        let bad = store(TestIssuer::new(&root, change));
        let (error, refused) = refusal_of(&good, &bad).await;
        assert_eq!(error.reason(), reason, "{fault}: at the client: {error}");
        assert!(!by_peer(&error), "{fault}: at the client");
        assert!(error.is_retryable(), "{fault}: another server may be in order");
        assert_eq!(refused.reason, reason, "{fault}: at the server");
        assert!(refused.by_peer, "{fault}: at the server");
    }
}

#[tokio::test]
async fn roots_of_the_same_name_are_told_apart() {
    let (ours, theirs) = (root("root"), root("root"));
    let good = store(TestIssuer::new(&ours, |_| {}));
    let stranger = || store(TestIssuer::new(&theirs, |_| {}).trusting(&[&ours, &theirs]));
    let (error, refused) = refusal_of(&stranger(), &good).await;
    assert_eq!((error.reason(), by_peer(&error)), (Reason::UntrustedRoot, true));
    assert_eq!((refused.reason, refused.by_peer), (Reason::UntrustedRoot, false));
    let (error, refused) = refusal_of(&good, &stranger()).await;
    assert_eq!((error.reason(), by_peer(&error)), (Reason::UntrustedRoot, false));
    assert_eq!((refused.reason, refused.by_peer), (Reason::UntrustedRoot, true));
}

#[tokio::test]
async fn a_trust_domain_that_is_an_alias_is_accepted() {
    let root = root("root");
    let issuer = || {
        TestIssuer::new(&root, |p: &mut CertificateParams| {
            p.subject_alt_names = vec![uri("spiffe://old.test/ns/shop/sa/server")];
        })
    };
    let mut settings = Settings::new(domain());
    settings.trust_domain_aliases = vec!["old.test".parse().unwrap()];
    let server_store = CertificateStore::new(Arc::new(issuer()), settings);
    let server = TestServer::start(&server_store).await;
    let (_listener, application) = application().await;
    let mut target = target(server.address);
    target.expected = ["spiffe://old.test/ns/shop/sa/server".parse().unwrap()].into();
    let opened = pool(&server_store)
        .open(
            &target,
            &weir_tunnel::hbone::Authority::Address(application),
            &Default::default(),
        )
        .await
        .unwrap();
    assert_eq!(
        opened.connection().tls.as_ref(),
        "TLS1.3 AES_256_GCM X25519MLKEM768"
    );
    assert_eq!(
        opened.connection().peer.to_string(),
        "spiffe://old.test/ns/shop/sa/server"
    );
    let statistics = opened
        .connection()
        .socket
        .with(|fd| std::os::fd::AsRawFd::as_raw_fd(&fd));
    assert!(statistics.is_some_and(|fd| fd > 0));
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let root = root("root");
    let good = store(TestIssuer::new(&root, |_| {}));
    let mut server = TestServer::start(&good).await;
    let (config, _) = good
        .client_config(&identity("client"), &[identity("server")].into())
        .await
        .unwrap();
    let mut config = Arc::unwrap_or_clone(config);
    config.client_auth_cert_resolver = Arc::new(NoClientCertificate);
    let error = raw_handshake(config, &server).await;
    assert_eq!(server.refused().await.reason, Reason::NoCertificate);
    assert!(error.contains("CertificateRequired"), "{error}");
}

#[tokio::test]
async fn a_client_that_does_not_speak_http2_is_refused() {
    let good = store(authority());
    let mut server = TestServer::start(&good).await;
    for protocols in [vec![], vec![b"http/1.1".to_vec()]] {
        let (config, _) = good
            .client_config(&identity("client"), &[identity("server")].into())
            .await
            .unwrap();
        let mut config = Arc::unwrap_or_clone(config);
        config.alpn_protocols = protocols;
        raw_handshake(config, &server).await;
        assert_eq!(server.refused().await.reason, Reason::HandshakeFailed);
    }
}

#[tokio::test]
async fn garbage_is_refused_before_and_after_the_handshake() {
    let good = store(authority());
    let mut server = TestServer::start(&good).await;
    let mut socket = TcpStream::connect(server.address).await.unwrap();
    socket.write_all(&[0x5a; 10_000]).await.unwrap();
    assert_eq!(server.refused().await.reason, Reason::HandshakeFailed);
    let mut tls = raw_tls(&good, server.address).await;
    tls.write_all(&[0x5a; 10_000]).await.unwrap();
    tls.flush().await.unwrap();
    assert_eq!(server.refused().await.reason, Reason::HandshakeFailed);
}

#[tokio::test(start_paused = true)]
async fn a_handshake_that_does_not_end_is_given_up() {
    let good = store(authority());
    let mut server = TestServer::start(&good).await;
    let _silent = TcpStream::connect(server.address).await.unwrap();
    assert_eq!(server.refused().await.reason, Reason::HandshakeTimeout);
}

#[tokio::test]
async fn handshakes_under_way_are_bounded_for_each_source() {
    let good = store(authority());
    let settings = ServerSettings {
        limiter: HandshakeLimiter::new(100, 100, 3),
        ..Default::default()
    };
    let mut server = TestServer::with(&good, settings, |_| {}).await;
    let mut held = Vec::new();
    for _ in 0..4 {
        // The last may be reset before `connect` has returned.
        held.push(TcpStream::connect(server.address).await);
    }
    assert_eq!(server.refused().await.reason, Reason::HandshakeLimit);
    drop(held);
    for _ in 0..3 {
        assert_eq!(server.refused().await.reason, Reason::HandshakeFailed);
    }
    let (_listener, application) = application().await;
    open(&pool(&good), server.address, application).await.unwrap();
}

#[derive(Debug)]
struct NoClientCertificate;

impl rustls::client::ResolvesClientCert for NoClientCertificate {
    fn resolve(
        &self,
        _hints: &[&[u8]],
        _schemes: &[rustls::SignatureScheme],
    ) -> Option<Arc<rustls::sign::CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

/// The error of a TLS session, as text: of the handshake, or of the first read.
async fn raw_handshake(config: rustls::ClientConfig, server: &TestServer) -> String {
    let socket = TcpStream::connect(server.address).await.unwrap();
    let name = rustls_pki_types::ServerName::IpAddress(std::net::IpAddr::from([127, 0, 0, 1]).into());
    let connect = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, socket);
    match within(connect).await {
        Err(error) => error.to_string(),
        Ok(mut tls) => match within(tokio::io::AsyncReadExt::read_u8(&mut tls)).await {
            Err(error) => error.to_string(),
            Ok(byte) => panic!("answered with {byte}"),
        },
    }
}
