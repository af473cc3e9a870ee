//! Certificates and roots that change while connections are open.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failed assertion is what a test is for"
)]

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use rustls::time_provider::TimeProvider;
use rustls_pki_types::{CertificateDer, UnixTime};
use support::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use weir_tunnel::{
    ca::{CertificateAuthority, IssueError, Issued, Issuer},
    certs::{CertificateStore, Settings},
};
use weir_types::{Identity, Reason};

/// The time of day by tokio's clock, which a test can pause and advance.
#[derive(Debug, Clone)]
struct TokioClock {
    base: SystemTime,
    start: tokio::time::Instant,
}

impl TokioClock {
    fn new() -> Self {
        Self {
            base: SystemTime::now(),
            start: tokio::time::Instant::now(),
        }
    }

    fn now(&self) -> SystemTime {
        self.base + self.start.elapsed()
    }
}

impl TimeProvider for TokioClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(
            self.now().duration_since(SystemTime::UNIX_EPOCH).unwrap(),
        ))
    }
}

/// An authority by that clock, which can be made to fail and counts what it is asked.
struct ClockIssuer {
    authority: CertificateAuthority,
    clock: TokioClock,
    fails: AtomicBool,
    asked: AtomicUsize,
}

#[async_trait]
impl Issuer for ClockIssuer {
    async fn issue(&self, identity: &Identity, lifetime: Duration) -> Result<Issued, IssueError> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        tokio::task::yield_now().await;
        if self.fails.load(Ordering::Relaxed) {
            return Err(IssueError::Remote("out of order".into()));
        }
        Ok(self.authority.issue_at(identity, lifetime, self.clock.now())?)
    }

    fn roots(&self) -> Vec<CertificateDer<'static>> {
        self.authority.roots()
    }

    fn fingerprint(&self) -> [u8; 32] {
        self.authority.fingerprint()
    }
}

fn clocked(lifetime: Duration) -> (CertificateStore, Arc<ClockIssuer>) {
    let clock = TokioClock::new();
    let authority =
        CertificateAuthority::generate(&domain(), clock.now(), Duration::from_secs(1_000_000)).unwrap();
    let issuer = Arc::new(ClockIssuer {
        authority,
        clock: clock.clone(),
        fails: AtomicBool::new(false),
        asked: AtomicUsize::new(0),
    });
    let mut settings = Settings::new(domain());
    settings.lifetime = lifetime;
    settings.clock = Arc::new(clock);
    (CertificateStore::new(issuer.clone(), settings), issuer)
}

#[tokio::test]
async fn concurrent_demands_share_one_issue() {
    let (store, issuer) = clocked(Duration::from_secs(1000));
    let demands: Vec<_> = (0..50)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move { store.certificate(&identity("web")).await.unwrap().serial.clone() })
        })
        .collect();
    let mut serials = Vec::new();
    for demand in demands {
        serials.push(demand.await.unwrap());
    }
    assert!(serials.iter().all(|serial| *serial == serials[0]));
    assert_eq!(issuer.asked.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn a_certificate_is_renewed_at_half_life_and_kept_while_renewal_fails() {
    let (store, issuer) = clocked(Duration::from_secs(1000));
    let first = store.certificate(&identity("web")).await.unwrap();
    tokio::time::sleep(Duration::from_secs(490)).await;
    assert_eq!(
        store.certificate(&identity("web")).await.unwrap().serial,
        first.serial,
        "not before"
    );
    issuer.fails.store(true, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(400)).await;
    assert_eq!(
        store.certificate(&identity("web")).await.unwrap().serial,
        first.serial,
        "kept"
    );
    let status = store.status();
    assert!(
        status[0].problem.as_deref().unwrap().contains("out of order"),
        "{status:?}"
    );
    let asked = issuer.asked.load(Ordering::Relaxed);
    assert!((7..=20).contains(&asked), "backs off: {asked}");
    tokio::time::sleep(Duration::from_secs(200)).await;
    let error = store.certificate(&identity("web")).await.unwrap_err();
    assert_eq!(error.reason(), Reason::NoOwnCertificate, "expired");
    issuer.fails.store(false, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(61)).await;
    let last = store.certificate(&identity("web")).await.unwrap();
    assert_ne!(last.serial, first.serial);
    assert_eq!(store.status()[0].problem, None);
}

#[tokio::test]
async fn identities_that_are_not_retained_are_forgotten() {
    let store = store(authority());
    for name in ["a", "b"] {
        store.certificate(&identity(name)).await.unwrap();
    }
    store.retain(&[identity("b")].into());
    let status = store.status();
    assert_eq!(status.len(), 1);
    assert_eq!(status[0].identity, identity("b"));
    assert_eq!(store.roots().len(), 1);
}

#[tokio::test]
async fn a_new_certificate_serves_new_streams_and_leaves_old_ones_alone() {
    let (old, new) = (root("old"), root("new"));
    let issuer = |root| Arc::new(TestIssuer::new(root, |_| {}).trusting(&[&old, &new]));
    let settings = || Settings::new(domain());
    let near = CertificateStore::new(issuer(&old), settings());
    let far = CertificateStore::new(issuer(&old), settings());
    let mut server = TestServer::start(&far).await;
    let pool = pool(&near);
    let (listener, _) = application().await;
    let mut before = path(&pool, &server, &listener).await;

    // Rotation: both ends trust both roots and get certificates of the new one.
    for store in [&near, &far] {
        let serials = || {
            store
                .status()
                .into_iter()
                .map(|status| status.serial)
                .collect::<Vec<_>>()
        };
        let old_serials = serials();
        store.replace_issuer(issuer(&new));
        eventually("every certificate is issued anew", || {
            serials().iter().all(|s| !old_serials.contains(s))
        })
        .await;
    }
    let mut after = path(&pool, &server, &listener).await;
    assert_eq!(
        server.connections.load(Ordering::Relaxed),
        2,
        "the old connection is not used for new streams"
    );
    for path in [&mut before, &mut after] {
        path.client.write_all(b"x").await.unwrap();
        assert_eq!(within(path.server.read_u8()).await.unwrap(), b'x');
    }

    // The old root goes: what was verified by it ends, what the new one vouches for goes on.
    far.replace_issuer(Arc::new(TestIssuer::new(&new, |_| {})));
    let error = within(before.client.read_u8()).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(server.closed().await, Reason::TrustEnded);
    after.client.write_all(b"y").await.unwrap();
    assert_eq!(within(after.server.read_u8()).await.unwrap(), b'y');
    path(&pool, &server, &listener).await;
}

#[tokio::test]
async fn a_root_that_goes_ends_connections_at_the_client_too() {
    let (old, new) = (root("old"), root("new"));
    let near = store(TestIssuer::new(&old, |_| {}));
    let server = TestServer::start(&near.clone()).await;
    let far = store(TestIssuer::new(&old, |_| {}));
    let pool = pool(&far);
    let (listener, _) = application().await;
    let mut path = path(&pool, &server, &listener).await;
    far.replace_issuer(Arc::new(TestIssuer::new(&new, |_| {})));
    let error = within(path.client.read_u8()).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(within(path.copy).await.unwrap().ended, Reason::TrustEnded);
    let (_listener, address) = application().await;
    let error = open(&pool, server.address, address).await.unwrap_err();
    assert_eq!(
        error.reason(),
        Reason::UntrustedRoot,
        "the new trust is in force at once"
    );
}

#[tokio::test]
async fn connections_end_when_the_peers_certificate_expires() {
    let (store, _issuer) = clocked(Duration::from_secs(100));
    let mut server = TestServer::start(&store).await;
    let pool = pool(&store);
    let (listener, _) = application().await;
    let mut path = path(&pool, &server, &listener).await;
    path.client.write_all(b"x").await.unwrap();
    path.server.read_u8().await.unwrap();
    tokio::time::pause();
    let start = tokio::time::Instant::now();
    let mut rest = Vec::new();
    let error = path.client.read_to_end(&mut rest).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    let ended = path.copy.await.unwrap().ended;
    assert!(
        matches!(ended, Reason::TrustEnded | Reason::TunnelBroken),
        "{ended}"
    );
    assert!(
        (98..=101).contains(&start.elapsed().as_secs()),
        "{:?}",
        start.elapsed()
    );
    let ended = server.closed().await;
    assert!(
        matches!(
            ended,
            Reason::TrustEnded | Reason::TunnelReset | Reason::TunnelBroken
        ),
        "{ended}"
    );
}

#[tokio::test]
async fn connections_end_when_the_root_expires_even_if_the_certificate_does_not() {
    let clock = TokioClock::new();
    let mut params = rcgen::CertificateParams::default();
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, "ends soon");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.not_after = (clock.now() + Duration::from_secs(100)).into();
    let key = rcgen::KeyPair::generate().unwrap();
    let root = Arc::new(rcgen::CertifiedIssuer::self_signed(params, key).unwrap());
    let mut settings = Settings::new(domain());
    settings.clock = Arc::new(clock);
    // The leaves are valid for a thousand years.
    let store = CertificateStore::new(Arc::new(TestIssuer::new(&root, |_| {})), settings);
    let mut server = TestServer::start(&store).await;
    let pool = pool(&store);
    let (listener, _) = application().await;
    let mut path = path(&pool, &server, &listener).await;
    path.client.write_all(b"x").await.unwrap();
    path.server.read_u8().await.unwrap();
    tokio::time::pause();
    let start = tokio::time::Instant::now();
    let read = tokio::time::timeout(Duration::from_secs(1000), path.client.read_u8()).await;
    let error = read.expect("ended").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert!(
        (98..=101).contains(&start.elapsed().as_secs()),
        "{:?}",
        start.elapsed()
    );
    assert_ne!(server.closed().await, Reason::None);
}
