//! The size that the server is made for: 20,000 workloads, 200 agents, 20 changes a second, 400 MB.
//!
//! `cargo test -p weir-control --test ads_scale -- --ignored`. The server is a process of its own, so that its memory
//! is measured without its clients'.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failed assertion is what a test is for"
)]

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use tokio::{net::TcpListener, sync::mpsc, time::timeout};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream, wrappers::TcpListenerStream};
use tonic::{Streaming, metadata::MetadataMap, transport::Endpoint, transport::Server};
use weir_control::ads::{Ads, Agent, Authenticate, Change, Limits, Refusal, Resource, Severable, Store};
use weir_proto::{
    ResourceType,
    envoy::service::discovery::v3::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse,
        aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
    },
    istio::workload::{Address, Port, PortList, Workload, address},
};

const WORKLOADS: usize = 20_000;
const STREAMS: usize = 200;
const CHANGES: usize = 100;
const BETWEEN_CHANGES: Duration = Duration::from_millis(50);
const MEMORY_KB: u64 = 400 * 1_024;
const PATIENCE: Duration = Duration::from_secs(120);
/// Where the server process writes its address, and looks for when to begin.
const FOLDER: &str = "WEIR_ADS_SCALE_FOLDER";

struct ByName;

#[tonic::async_trait]
impl Authenticate for ByName {
    async fn authenticate(&self, metadata: &MetadataMap, _: Option<SocketAddr>) -> Result<Agent, Refusal> {
        let node = metadata
            .get("node")
            .and_then(|node| node.to_str().ok())
            .unwrap_or_default();
        Ok(Agent { node: node.into() })
    }
}

fn now() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros()
}

fn workload(number: usize, revision: u128) -> Change {
    let address = [10, (number >> 16) as u8, (number >> 8) as u8, number as u8];
    let ports = PortList {
        ports: vec![Port {
            service_port: 80,
            target_port: 8080,
            app_protocol: 0,
        }],
    };
    let workload = Workload {
        uid: format!(
            "cluster//Pod/namespace-{}/deployment-{number}-6f7d8c9b5-abcde",
            number % 50
        ),
        name: format!("deployment-{number}-6f7d8c9b5-abcde"),
        namespace: format!("namespace-{}", number % 50),
        addresses: vec![address.to_vec().into()],
        service_account: format!("account-{}", number % 500),
        node: format!("node-{}", number % STREAMS),
        canonical_name: format!("deployment-{number}"),
        canonical_revision: revision.to_string(),
        workload_name: format!("deployment-{number}"),
        services: [(
            format!("namespace/service-{}.svc.cluster.local", number % 2_000),
            ports,
        )]
        .into(),
        ..Workload::default()
    };
    let name = workload.uid.clone();
    let alias = format!("/{}", std::net::Ipv4Addr::from(address));
    let message = Address {
        r#type: Some(address::Type::Workload(workload)),
    };
    Change::Set(Resource::new(name, [alias], &message))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the server's half of the other test"]
async fn server_process() {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else {
        return;
    };
    let store = Arc::new(Store::new());
    store.apply((0..WORKLOADS).map(|number| workload(number, 0)));
    store.mark_ready();
    let ads = Ads::new(
        store.clone(),
        Arc::new(ByName),
        Limits::default(),
        &prometheus::Registry::new(),
    )
    .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    std::fs::write(folder.join("new"), listener.local_addr().unwrap().to_string()).unwrap();
    std::fs::rename(folder.join("new"), folder.join("address")).unwrap();
    let connections = TcpListenerStream::new(listener).map(|connection| {
        connection.map(|io| {
            io.set_nodelay(true).unwrap();
            Severable::new(io, None)
        })
    });
    tokio::spawn(
        Server::builder()
            .add_service(ads.service())
            .serve_with_incoming(connections),
    );
    while !folder.join("begin").exists() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for number in 0..CHANGES {
        store.apply([workload(number, now())]);
        tokio::time::sleep(BETWEEN_CHANGES).await;
    }
    std::future::pending::<()>().await;
}

struct ServerProcess(Child);

impl Drop for ServerProcess {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl ServerProcess {
    /// The most memory that it ever had, in KiB.
    fn peak(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }
}

struct Client {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl Client {
    async fn open(address: &str, number: usize, known: BTreeMap<String, String>) -> Self {
        let channel = Endpoint::from_shared(format!("http://{address}"))
            .unwrap()
            .connect()
            .await
            .unwrap();
        let (requests, outgoing) = mpsc::channel(16);
        let first = DeltaDiscoveryRequest {
            initial_resource_versions: known,
            ..Self::request(String::new())
        };
        requests.send(first).await.unwrap();
        let mut request = tonic::Request::new(ReceiverStream::new(outgoing));
        request
            .metadata_mut()
            .insert("node", format!("node-{number}").parse().unwrap());
        let mut client = AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(64 << 20);
        let responses = client
            .delta_aggregated_resources(request)
            .await
            .unwrap()
            .into_inner();
        Self { requests, responses }
    }

    fn request(response_nonce: String) -> DeltaDiscoveryRequest {
        let type_url = ResourceType::Address.url().to_owned();
        DeltaDiscoveryRequest {
            type_url,
            response_nonce,
            ..DeltaDiscoveryRequest::default()
        }
    }

    async fn next(&mut self) -> DeltaDiscoveryResponse {
        let response = timeout(PATIENCE, self.responses.message())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        self.requests
            .send(Self::request(response.nonce.clone()))
            .await
            .unwrap();
        response
    }

    /// Microseconds from each change to here.
    async fn changes(&mut self) -> Vec<u128> {
        let mut delays = Vec::new();
        while delays.len() < CHANGES {
            for resource in self.next().await.resources {
                let Some(address::Type::Workload(workload)) = resource.unpack::<Address>().unwrap().r#type
                else {
                    continue;
                };
                delays.push(now().saturating_sub(workload.canonical_revision.parse().unwrap()));
            }
        }
        delays
    }
}

fn start(folder: &Path) -> ServerProcess {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--ignored", "--exact", "server_process"])
        .env(FOLDER, folder);
    ServerProcess(command.spawn().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a minute"]
async fn a_large_cluster_fits() {
    let folder = tempfile::tempdir().unwrap();
    let server = start(folder.path());
    let file = folder.path().join("address");
    while !file.exists() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let address = std::fs::read_to_string(file).unwrap();
    let loaded = server.peak();

    let began = Instant::now();
    let connect = |number| {
        let address = address.clone();
        async move {
            let mut client = Client::open(&address, number, BTreeMap::new()).await;
            let everything = client.next().await;
            assert_eq!(everything.resources.len(), WORKLOADS);
            (client, (number == 0).then_some(everything))
        }
    };
    let opened = futures_util::future::join_all((0..STREAMS).map(connect)).await;
    let (connected, after_connecting) = (began.elapsed(), server.peak());
    let (mut clients, everything): (Vec<_>, Vec<_>) = opened.into_iter().unzip();

    std::fs::write(folder.path().join("begin"), "").unwrap();
    let delays = futures_util::future::join_all(clients.iter_mut().map(Client::changes)).await;
    let mut delays = delays.concat();
    delays.sort_unstable();
    let percentile = |percent: usize| delays[(delays.len() - 1) * percent / 100];
    let (median, slow, slowest) = (percentile(50), percentile(99), percentile(100));
    drop(clients);

    let known: BTreeMap<_, _> = everything
        .into_iter()
        .flatten()
        .flat_map(|everything| everything.resources)
        .map(|resource| (resource.name, resource.version))
        .collect();
    let began = Instant::now();
    let resume = |number| {
        let (address, known) = (address.clone(), known.clone());
        async move {
            let mut client = Client::open(&address, number, known).await;
            assert_eq!(client.next().await.resources.len(), CHANGES);
            client
        }
    };
    let clients = futures_util::future::join_all((0..STREAMS).map(resume)).await;
    let report = format!(
        "loaded {loaded} KiB; {STREAMS} connected in {connected:?}, peak {after_connecting} KiB; delay of a change \
         {median} us median, {slow} us 99 %, {slowest} us at most; resumed in {:?}, peak {} KiB",
        began.elapsed(),
        server.peak(),
    );
    drop(clients);
    std::fs::write(
        Path::new(env!("CARGO_TARGET_TMPDIR")).join("ads_scale.txt"),
        &report,
    )
    .unwrap();
    assert!(server.peak() < MEMORY_KB && slow < 100_000, "{report}");
}
