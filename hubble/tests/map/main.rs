//! The service map, as a browser shows it and as its server answers.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "tests")]

mod browser;
mod flows;
mod http;
mod page;
mod relay;
mod sizes;
mod tls;

use std::net::SocketAddr;

use tokio::task::JoinHandle;
use weir_hubble::map::{Access, Map};

/// A map that was given flows, served until the handle is aborted.
async fn served(access: Access, fill: impl FnOnce(&Map)) -> (SocketAddr, JoinHandle<()>) {
    let map = Map::open("127.0.0.1:0".parse().unwrap(), access).await.unwrap();
    fill(&map);
    let address = map.address().unwrap();
    (address, tokio::spawn(map.serve_pages()))
}
