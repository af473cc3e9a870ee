//! A small mesh on loopback: certificates, an HBONE server in front of any application, and a pool.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    reason = "each test file uses a part"
)]

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use rcgen::{
    CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    SanType,
};
use rustls_pki_types::CertificateDer;
use sha2::Digest as _;
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::mpsc,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use weir_tunnel::{
    ConnectionState, PodKey, Registry,
    ca::{CertificateAuthority, IssueError, Issued, Issuer, WorkloadKey},
    certs::{CertificateStore, Settings},
    copy::{CopyOutcome, Counters},
    hbone::{
        Accepted, Authority, ConnectHeaders, ConnectRequest, Handler, Observer, Refusal, Refused, Server,
        ServerSettings,
    },
    pool::{Connector, OpenError, Pool, Target, connect_reason},
};
use weir_types::{Identity, Reason, TrustDomain};

/// Nothing here takes nearly this long; a test that waits for it has failed.
pub const DEADLINE: Duration = Duration::from_secs(20);

pub fn domain() -> TrustDomain {
    "mesh.test".parse().unwrap()
}

pub fn identity(name: &str) -> Identity {
    Identity::new(&domain(), "shop", name).unwrap()
}

pub fn authority() -> CertificateAuthority {
    CertificateAuthority::generate(&domain(), SystemTime::now(), Duration::from_secs(3600)).unwrap()
}

pub fn store(issuer: impl Issuer) -> CertificateStore {
    CertificateStore::new(Arc::new(issuer), Settings::new(domain()))
}

/// Waits for a condition, by looking again and again.
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !condition() {
        assert!(start.elapsed() < DEADLINE, "still not: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Fails a test that hangs.
pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future)
        .await
        .expect("did not end in time")
}

/// What a handler was told.
#[derive(Debug, Clone)]
pub enum Event {
    Opened,
    Closed(Reason),
    Refused(Refused),
}

/// Connects to what the authority names, and remembers all that it was told.
pub struct TestHandler {
    events: mpsc::UnboundedSender<Event>,
    pub requests: Mutex<Vec<ConnectRequest>>,
    pub deny: bool,
    pub any_authority: bool,
    /// Never answers a request.
    pub hang: bool,
    /// Kernel memory for what an application does not read.
    pub send_buffer: Option<u32>,
    pub stop: CancellationToken,
    pub counters: Mutex<Vec<Arc<Counters>>>,
}

pub struct TestObserver(mpsc::UnboundedSender<Event>);

impl Observer for TestObserver {
    fn opened(&mut self, _connection: &Arc<ConnectionState>) {
        let _ = self.0.send(Event::Opened);
    }

    fn closed(&mut self, outcome: CopyOutcome) {
        let _ = self.0.send(Event::Closed(outcome.ended));
    }
}

impl Handler for TestHandler {
    fn accepts_authority(&self, request: &ConnectRequest) -> bool {
        self.any_authority || request.is_for_local_address()
    }

    async fn connect(
        &self,
        _pod: PodKey,
        request: &ConnectRequest,
        _connection: &Arc<ConnectionState>,
    ) -> Result<Accepted, Refusal> {
        self.requests.lock().unwrap().push(request.clone());
        if self.deny {
            return Err(Refusal::POLICY);
        }
        if self.hang {
            std::future::pending::<()>().await;
        }
        let Authority::Address(address) = &request.authority else {
            return Err(Refusal::unavailable(Reason::Unreachable));
        };
        let socket = TcpSocket::new_v4().unwrap();
        if let Some(size) = self.send_buffer {
            socket.set_send_buffer_size(size).unwrap();
        }
        let application = socket
            .connect(*address)
            .await
            .map_err(|error| Refusal::unavailable(connect_reason(&error)))?;
        let counters = Arc::new(Counters::default());
        self.counters.lock().unwrap().push(counters.clone());
        let observer = Box::new(TestObserver(self.events.clone()));
        Ok(Accepted {
            application,
            counters,
            observer,
            stop: self.stop.child_token(),
        })
    }

    fn refused(&self, refused: Refused) {
        let _ = self.events.send(Event::Refused(refused));
    }
}

/// A server of one identity on loopback.
pub struct TestServer {
    pub address: SocketAddr,
    pub handler: Arc<TestHandler>,
    pub settings: ServerSettings,
    pub events: mpsc::UnboundedReceiver<Event>,
    pub connections: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl TestServer {
    pub async fn start(store: &CertificateStore) -> Self {
        Self::with(store, ServerSettings::default(), |_| {}).await
    }

    pub async fn with(
        store: &CertificateStore,
        settings: ServerSettings,
        change: impl FnOnce(&mut TestHandler),
    ) -> Self {
        let (sender, events) = mpsc::unbounded_channel();
        let mut handler = TestHandler {
            events: sender,
            requests: Mutex::default(),
            deny: false,
            any_authority: false,
            hang: false,
            send_buffer: None,
            stop: CancellationToken::new(),
            counters: Mutex::default(),
        };
        change(&mut handler);
        let handler = Arc::new(handler);
        let server = Arc::new(Server::new(store.clone(), handler.clone(), settings.clone()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let count = connections.clone();
        let task = tokio::spawn(async move {
            let mut tasks = tokio::task::JoinSet::new();
            loop {
                let (socket, peer) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::Relaxed);
                let local = socket.local_addr().unwrap();
                let server = server.clone();
                tasks.spawn(async move {
                    server
                        .serve(socket, local, peer, PodKey(1), &identity("server"))
                        .await;
                });
            }
        });
        Self {
            address,
            handler,
            settings,
            events,
            connections,
            task,
        }
    }

    pub async fn event(&mut self) -> Event {
        within(self.events.recv()).await.unwrap()
    }

    pub async fn refused(&mut self) -> Refused {
        loop {
            if let Event::Refused(refused) = self.event().await {
                return refused;
            }
        }
    }

    pub async fn closed(&mut self) -> Reason {
        loop {
            if let Event::Closed(reason) = self.event().await {
                return reason;
            }
        }
    }
}

/// Connects from wherever the test runs.
#[derive(Default)]
pub struct LocalConnector;

#[async_trait]
impl Connector for LocalConnector {
    async fn connect(&self, _source: PodKey, address: SocketAddr) -> io::Result<TcpStream> {
        TcpStream::connect(address).await
    }
}

pub fn pool(store: &CertificateStore) -> Pool {
    Pool::new(store.clone(), Arc::new(LocalConnector), Registry::default())
}

pub fn target(server: SocketAddr) -> Target {
    Target {
        source: PodKey(7),
        source_identity: identity("client"),
        expected: [identity("server")].into(),
        address: server,
    }
}

pub async fn open(
    pool: &Pool,
    server: SocketAddr,
    application: SocketAddr,
) -> Result<weir_tunnel::hbone::TunnelStream, OpenError> {
    within(pool.open(
        &target(server),
        &Authority::Address(application),
        &ConnectHeaders::default(),
    ))
    .await
}

/// A listener for an application.
pub async fn application() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// A connected pair of sockets.
pub async fn pair() -> (TcpStream, TcpStream) {
    let (listener, address) = application().await;
    let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    (client.unwrap(), accepted.unwrap().0)
}

/// One whole path: client application, client's copy, server, server application.
pub struct Path {
    pub client: TcpStream,
    pub server: TcpStream,
    pub copy: JoinHandle<CopyOutcome>,
    pub counters: Arc<Counters>,
}

pub async fn path(pool: &Pool, server: &TestServer, listener: &TcpListener) -> Path {
    let address = listener.local_addr().unwrap();
    let (tunnel, accepted) = tokio::join!(open(pool, server.address, address), listener.accept());
    let tunnel = tunnel.unwrap();
    let (client, ours) = pair().await;
    let counters = Arc::new(Counters::default());
    let counted = counters.clone();
    let copy =
        tokio::spawn(async move { weir_tunnel::copy::copy_bidirectional(ours, tunnel, &counted).await });
    Path {
        client,
        server: accepted.unwrap().0,
        copy,
        counters,
    }
}

/// An authority that issues whatever a test wants.
pub struct TestIssuer {
    pub issuer: Arc<CertifiedIssuer<'static, KeyPair>>,
    pub roots: Vec<CertificateDer<'static>>,
    pub change: Box<dyn Fn(&mut CertificateParams) + Send + Sync>,
}

pub fn root(name: &str) -> Arc<CertifiedIssuer<'static, KeyPair>> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    Arc::new(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
}

impl TestIssuer {
    pub fn new(
        issuer: &Arc<CertifiedIssuer<'static, KeyPair>>,
        change: impl Fn(&mut CertificateParams) + Send + Sync + 'static,
    ) -> Self {
        let roots = vec![issuer.der().clone()];
        Self {
            issuer: issuer.clone(),
            roots,
            change: Box::new(change),
        }
    }

    /// Trusts these instead of its own root.
    pub fn trusting(mut self, roots: &[&Arc<CertifiedIssuer<'static, KeyPair>>]) -> Self {
        self.roots = roots.iter().map(|root| root.der().clone()).collect();
        self
    }
}

pub fn uri(text: &str) -> SanType {
    SanType::URI(text.to_owned().try_into().unwrap())
}

#[async_trait]
impl Issuer for TestIssuer {
    async fn issue(&self, identity: &Identity, lifetime: Duration) -> Result<Issued, IssueError> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![uri(&identity.to_string())];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        (self.change)(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &**self.issuer).unwrap();
        Ok(Issued {
            chain: vec![certificate.der().clone()],
            key: WorkloadKey::from_pkcs8(key.serialize_der()),
            not_before: SystemTime::now(),
            not_after: SystemTime::now() + lifetime,
            serial: format!("{:x}", rand::random::<u64>()).into(),
        })
    }

    fn roots(&self) -> Vec<CertificateDer<'static>> {
        self.roots.clone()
    }

    fn fingerprint(&self) -> [u8; 32] {
        sha2::Sha256::digest(self.issuer.der()).into()
    }
}

/// An HTTP/2 connection to a server, for requests that the pool would not send.
pub async fn raw_h2(
    store: &CertificateStore,
    server: SocketAddr,
) -> (
    h2::client::SendRequest<bytes::Bytes>,
    JoinHandle<Result<(), h2::Error>>,
) {
    let tls = raw_tls(store, server).await;
    let (send, connection) = h2::client::handshake(tls).await.unwrap();
    (send, tokio::spawn(connection))
}

pub async fn raw_tls(
    store: &CertificateStore,
    server: SocketAddr,
) -> tokio_rustls::client::TlsStream<TcpStream> {
    let (config, _) = store
        .client_config(&identity("client"), &[identity("server")].into())
        .await
        .unwrap();
    let socket = TcpStream::connect(server).await.unwrap();
    let name = rustls_pki_types::ServerName::IpAddress(IpAddr::from([127, 0, 0, 1]).into());
    tokio_rustls::TlsConnector::from(config)
        .connect(name, socket)
        .await
        .unwrap()
}
