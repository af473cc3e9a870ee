//! The map of what a relay's nodes record.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use jiff::Timestamp;
use serde_json::json;
use tokio::sync::watch;
use tonic::transport::Channel;
use weir_hubble::{
    Origin, client,
    map::{Access, Map},
    observer::{Page, Peers, Source, Viewer},
    relay::{Connect, Relay, Unreachable},
    serve::Connections,
};
use weir_proto::observer::observer_client::ObserverClient;
use weir_types::Flow;

use crate::{browser::Browser, flows::flow};

/// Most bytes on their way between the relay and a node.
const PIPE: usize = 64 << 10;

/// A node, and what it recorded.
#[derive(Debug)]
struct Node {
    name: String,
    origin: Origin,
    flows: Mutex<Vec<Arc<Flow>>>,
    number: watch::Sender<u64>,
}

impl Node {
    fn record(&self, flow: Flow) {
        let mut flows = self.flows.lock().unwrap();
        let sequence = flows.len() as u64;
        flows.push(Arc::new(Flow {
            sequence,
            node: self.name.clone(),
            ..flow
        }));
        self.number.send_replace(sequence + 1);
    }
}

impl Source for Node {
    fn origin(&self) -> &Origin {
        &self.origin
    }

    fn node(&self) -> &str {
        &self.name
    }

    fn started(&self) -> Timestamp {
        Timestamp::UNIX_EPOCH
    }

    fn capacity(&self) -> usize {
        1024
    }

    fn range(&self) -> (u64, u64) {
        (0, self.flows.lock().unwrap().len() as u64)
    }

    fn page(&self, from: u64, most: usize) -> Page {
        let flows = self.flows.lock().unwrap();
        let page: Vec<_> = flows.iter().skip(from as usize).take(most).cloned().collect();
        Page {
            next: from + page.len() as u64,
            flows: page,
            lost: 0,
        }
    }

    fn watch(&self) -> watch::Receiver<u64> {
        self.number.subscribe()
    }

    fn lost(&self) -> u64 {
        0
    }

    fn peers(&self) -> watch::Receiver<Peers> {
        watch::channel(Peers::default()).1
    }
}

struct Cluster(BTreeMap<String, Arc<Node>>);

impl Connect for Cluster {
    async fn connect(&self, node: &str) -> Result<ObserverClient<Channel>, Unreachable> {
        let node = self
            .0
            .get(node)
            .ok_or_else(|| Unreachable("it is off".to_owned()))?;
        let (own, other) = tokio::io::duplex(PIPE);
        let (connections, serving) = Connections::serve(node.clone());
        tokio::spawn(serving);
        tokio::spawn(async move { connections.take(other, Viewer::default()).await });
        client::over(own)
            .await
            .map_err(|error| Unreachable(error.to_string()))
    }
}

#[tokio::test]
async fn the_map_shows_what_all_nodes_record_and_which_of_them_are_away() {
    let node = |name: &str| {
        Arc::new(Node {
            name: name.to_owned(),
            origin: Origin {
                cluster: String::new(),
                version: "test".to_owned(),
                run: 1,
            },
            flows: Mutex::default(),
            number: watch::Sender::new(0),
        })
    };
    let (first, second) = (node("n1"), node("n2"));
    first.record(flow("shop/web", "shop/cart", "open", "tunnel", json!({})));
    let all = BTreeMap::from([
        ("n1".to_owned(), first.clone()),
        ("n2".to_owned(), second.clone()),
    ]);
    let named = all
        .keys()
        .cloned()
        .chain(["n3".to_owned()])
        .map(|name| (name, String::new()));
    let (_nodes, watched) = watch::channel(Arc::new(named.collect::<BTreeMap<_, _>>()));
    let map = Map::open("127.0.0.1:0".parse().unwrap(), Access::open())
        .await
        .unwrap();
    let address = map.address().unwrap();
    tokio::spawn(map.serve(Relay::new(Cluster(all), watched)));
    let mut browser = Browser::open(&format!("http://{address}/")).await;
    browser
        .until("document.querySelector('[data-edge=\"shop/web shop/cart\"].mtls')")
        .await;
    browser
        .until("document.querySelector('#state').textContent === 'live; not reached: n3'")
        .await;
    second.record(flow("shop/cart", "data/redis", "open", "plaintext", json!({})));
    browser
        .until("document.querySelector('[data-edge=\"shop/cart data/redis\"].plaintext')")
        .await;
}
