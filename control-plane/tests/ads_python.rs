//! A client that shares no line with us: Python's gRPC, with stubs from the same `.proto` files.
//!
//! `cargo test -p weir-control --test ads_python -- --ignored`; the first run installs grpcio under `target/`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failed assertion is what a test is for"
)]

use std::{net::SocketAddr, path::Path, process::Stdio, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    net::TcpListener,
    process::{ChildStdout, Command},
    time::timeout,
};
use tokio_stream::{StreamExt as _, wrappers::TcpListenerStream};
use tonic::{metadata::MetadataMap, transport::Server};
use weir_control::ads::{Ads, Agent, Authenticate, Change, Limits, Refusal, Resource, Severable, Store};
use weir_proto::{
    ResourceType,
    istio::workload::{Address, Workload, address},
};

const PROTOS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../proto/protos");
const CLIENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/ads_python/client.py");
const FILES: [&str; 5] = [
    "envoy/config/core/v3/base.proto",
    "envoy/service/discovery/v3/ads.proto",
    "envoy/service/discovery/v3/discovery.proto",
    "google/rpc/status.proto",
    "istio/workload/workload.proto",
];

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

fn workload(name: &str, node: &str, address: &str) -> Change {
    let workload = Workload {
        uid: name.to_owned(),
        node: node.to_owned(),
        ..Workload::default()
    };
    let message = Address {
        r#type: Some(address::Type::Workload(workload)),
    };
    Change::Set(Resource::new(name, [format!("/{address}")], &message))
}

async fn run(command: &mut Command) {
    let status = command.status().await.unwrap();
    assert!(status.success(), "{command:?}: {status}");
}

async fn told(lines: &mut Lines<BufReader<ChildStdout>>) -> serde_json::Value {
    let line = timeout(Duration::from_secs(20), lines.next_line())
        .await
        .expect("the client says something");
    serde_json::from_str(&line.unwrap().unwrap()).unwrap()
}

#[tokio::test]
#[ignore = "installs grpcio from PyPI"]
async fn pythons_grpc_is_served() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("ads-python");
    let python = folder.join("venv/bin/python");
    if !folder.join("venv/installed").exists() {
        run(Command::new("python3")
            .args(["-m", "venv"])
            .arg(folder.join("venv")))
        .await;
        run(Command::new(&python).args(["-m", "pip", "install", "--quiet", "grpcio", "grpcio-tools"])).await;
        std::fs::write(folder.join("venv/installed"), "").unwrap();
    }
    let stubs = folder.join("stubs");
    std::fs::create_dir_all(&stubs).unwrap();
    let mut compile = Command::new(&python);
    compile
        .args(["-m", "grpc_tools.protoc", "-I", PROTOS])
        .args(FILES);
    for option in ["--python_out", "--grpc_python_out"] {
        compile.arg(format!("{option}={}", stubs.display()));
    }
    run(&mut compile).await;

    let store = Arc::new(Store::new());
    store.apply([workload("a", "n1", "10.0.0.1"), workload("b", "n2", "10.0.0.2")]);
    store.mark_ready();
    let registry = prometheus::Registry::new();
    let ads = Ads::new(store.clone(), Arc::new(ByName), Limits::default(), &registry).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let connections = TcpListenerStream::new(listener).map(|io| io.map(|io| Severable::new(io, None)));
    tokio::spawn(
        Server::builder()
            .add_service(ads.service())
            .serve_with_incoming(connections),
    );

    let mut client = Command::new(&python)
        .args([CLIENT, &address])
        .env("PYTHONPATH", &stubs)
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(client.stdout.take().unwrap()).lines();
    let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
    assert_eq!(
        told(&mut lines).await,
        json(r#"{"resources": {"a": "n1", "b": "n2"}, "removed": []}"#)
    );
    assert_eq!(
        told(&mut lines).await,
        json(r#"{"resources": {"a": "n1"}, "removed": ["nobody"]}"#)
    );
    store.apply([
        workload("a", "n3", "10.0.0.1"),
        Change::Remove(ResourceType::Address, "b".into()),
    ]);
    assert_eq!(
        told(&mut lines).await,
        json(r#"{"resources": {"a": "n3"}, "removed": ["b"]}"#)
    );
    ads.drain();
    assert_eq!(told(&mut lines).await, json(r#""UNAVAILABLE""#));
    assert!(
        timeout(Duration::from_secs(20), client.wait())
            .await
            .unwrap()
            .unwrap()
            .success()
    );
}
