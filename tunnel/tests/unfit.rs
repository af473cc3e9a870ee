//! Connections that the pool's own rules find unfit as soon as they are made: they serve whoever made them, and are
//! not made again and again.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failed assertion is what a test is for"
)]

mod support;

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use rcgen::{CertifiedIssuer, KeyPair};
use support::*;
use time::OffsetDateTime;
use tokio::net::{TcpListener, TcpStream};
use weir_tunnel::{
    PodKey, Registry,
    certs::CertificateStore,
    hbone::{Authority, ConnectHeaders},
    pool::{Connector, OPEN_TIMEOUT, Pool},
};

#[tokio::test]
async fn a_server_whose_certificate_is_in_its_last_quarter_is_served_by_one_connection() {
    let root = root("root");
    let near = store(TestIssuer::new(&root, |_| {}));
    let far = store(TestIssuer::new(&root, |params| {
        params.not_before = OffsetDateTime::now_utc() - Duration::from_secs(1000);
        params.not_after = OffsetDateTime::now_utc() + Duration::from_secs(100);
    }));
    let server = TestServer::start(&far).await;
    let (_listener, application) = application().await;
    let pool = pool(&near);
    let mut streams = Vec::new();
    for _ in 0..3 {
        streams.push(open(&pool, server.address, application).await.unwrap());
    }
    assert_eq!(server.connections.load(Ordering::Relaxed), 1);
}

/// The client's certificate is replaced while each connection is made.
struct Renewing {
    store: CertificateStore,
    roots: [Arc<CertifiedIssuer<'static, KeyPair>>; 2],
    connects: AtomicUsize,
}

impl Renewing {
    fn issuer(roots: &[Arc<CertifiedIssuer<'static, KeyPair>>; 2], which: usize) -> TestIssuer {
        TestIssuer::new(&roots[which % 2], |_| {}).trusting(&[&roots[0], &roots[1]])
    }
}

#[async_trait]
impl Connector for Renewing {
    async fn connect(&self, _source: PodKey, address: SocketAddr) -> io::Result<TcpStream> {
        let count = self.connects.fetch_add(1, Ordering::Relaxed);
        let serial = || self.store.status()[0].serial.clone();
        let old = serial();
        self.store
            .replace_issuer(Arc::new(Self::issuer(&self.roots, count + 1)));
        eventually("another certificate", || serial() != old).await;
        TcpStream::connect(address).await
    }
}

#[tokio::test]
async fn a_certificate_of_ours_that_is_replaced_during_each_connect_does_not_keep_us_connecting() {
    let roots = [root("a"), root("b")];
    let server = TestServer::start(&store(Renewing::issuer(&roots, 0))).await;
    let near = store(Renewing::issuer(&roots, 0));
    let connector = Arc::new(Renewing {
        store: near.clone(),
        roots,
        connects: AtomicUsize::new(0),
    });
    let pool = Pool::new(near, connector.clone(), Registry::default());
    let (_listener, application) = application().await;
    open(&pool, server.address, application).await.unwrap();
    assert_eq!(connector.connects.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_server_that_allows_no_streams_is_given_up_after_few_connections() {
    const CALLERS: usize = 3;
    let store = store(authority());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let config = store.server_config(&identity("server")).await.unwrap();
    let connections = Arc::new(AtomicUsize::new(0));
    let count = connections.clone();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let config = config.clone();
            count.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(async move {
                let tls = tokio_rustls::TlsAcceptor::from(config)
                    .accept(socket)
                    .await
                    .unwrap();
                let mut builder = h2::server::Builder::new();
                let handshake = builder
                    .max_concurrent_streams(0)
                    .handshake::<_, bytes::Bytes>(tls);
                let mut connection = handshake.await.unwrap();
                while connection.accept().await.is_some() {}
            });
        }
    });
    let pool = pool(&store);
    let opens: Vec<_> = (0..CALLERS)
        .map(|_| {
            let pool = pool.clone();
            let open = async move {
                let headers = ConnectHeaders::default();
                pool.open(&target(address), &Authority::Address(address), &headers)
                    .await
            };
            tokio::spawn(open)
        })
        .collect();
    eventually("a connection", || !pool.connections().is_empty()).await;
    tokio::time::pause();
    let start = tokio::time::Instant::now();
    for open in opens {
        assert!(open.await.unwrap().unwrap_err().is_retryable());
    }
    assert!(
        start.elapsed() <= OPEN_TIMEOUT + Duration::from_secs(1),
        "{:?}",
        start.elapsed()
    );
    let connections = connections.load(Ordering::Relaxed);
    assert!(connections <= CALLERS, "{connections}");
    // And they are not kept, or those of every open would add up.
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(pool.connections().is_empty());
}
