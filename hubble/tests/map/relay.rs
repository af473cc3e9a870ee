//! The map of what a relay's nodes record.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use jiff::Timestamp;
use serde_json::json;
use tokio::sync::watch;
use tonic::{Code, transport::Channel};
use weir_hubble::{
    Origin, client,
    map::{Access, Map},
    observer::{Page, Peers, Source, Viewer},
    relay::{Connect, Relay, Unreachable},
    serve::Connections,
};
use weir_proto::weir::flow::v1::{ExplainRequest as Asked, explainer_client::ExplainerClient};
use weir_types::{
    Flow,
    explain::{ExplainRequest, Explanation},
};

use crate::{browser::Browser, flows::flow, http::get};

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

    fn explain(&self, request: &ExplainRequest) -> Result<Explanation, String> {
        if request.from != "shop/web-0" {
            return Err(format!("there is no pod {}", request.from));
        }
        let end = |workload: &str| json!({ "address": "10.0.0.1", "workload": workload, "certificate": { "state": "none" } });
        let evil = "<img src=x onerror=alert(1)>";
        let explanation = json!({
            "node": self.name, "generation": 7, "source": end(&request.from), "destination": "10.0.0.9:8080",
            "verdict": "denied", "reason": "policy_denied",
            "candidates": [{
                "address": "10.0.0.9:8080", "end": end(&request.to), "path": "tunnel", "why": "its node has an agent",
                "verdict": "denied", "reason": "policy_denied", "policy": { "policy": evil, "rule": 0 },
                "policies": [evil],
            }],
            "steps": [{ "component": "agent", "does": format!("asks {evil}") }],
        });
        Ok(serde_json::from_value(explanation).unwrap())
    }
}

struct Cluster(BTreeMap<String, Arc<Node>>);

impl Connect for Cluster {
    async fn connect(&self, node: &str) -> Result<Channel, Unreachable> {
        let node = self
            .0
            .get(node)
            .ok_or_else(|| Unreachable("it is off".to_owned()))?;
        let (own, other) = tokio::io::duplex(PIPE);
        let (connections, serving) = Connections::serve(node.clone());
        tokio::spawn(serving);
        tokio::spawn(async move { connections.take(other, Viewer::default()).await });
        client::channel(own)
            .await
            .map_err(|error| Unreachable(error.to_string()))
    }
}

fn node(name: &str) -> Arc<Node> {
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
}

#[tokio::test]
async fn the_map_shows_what_all_nodes_record_and_which_of_them_are_away() {
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

    // What would become of the next connection is asked of the node that saw the last one.
    let edge = |pair: &str| format!("document.querySelector('[data-edge=\"{pair}\"]')");
    browser.click(&edge("shop/web shop/cart")).await;
    browser
        .until("document.querySelector('#answer details')?.textContent.includes('as n1 says')")
        .await;
    let answer = browser.text("#answer").await;
    for part in [
        "would be refused",
        "policy_denied: ",
        "shop/cart-0: mTLS",
        "its node has an agent · refused by <img src=x onerror=alert(1)>",
        "agent: asks <img",
    ] {
        assert!(answer.contains(part), "no {part} in {answer}");
    }
    assert_eq!(
        browser
            .eval("document.querySelectorAll('#answer img').length")
            .await,
        0
    );
    assert!(
        browser
            .text("#ask pre")
            .await
            .starts_with("weir explain --from shop/web-0")
    );
    browser.picture("explained").await;
    browser.click(&edge("shop/cart data/redis")).await;
    browser
        .until("document.querySelector('#answer')?.textContent === 'there is no pod shop/cart-0'")
        .await;
    assert_eq!(browser.complaints, Vec::<String>::new());
}

#[tokio::test]
async fn only_who_may_see_everything_is_told_what_would_become_of_a_connection() {
    let request = || Asked {
        from: "shop/web-0".to_owned(),
        to: "shop/cart-0".to_owned(),
        port: 8080,
    };
    let client = async |viewer: Viewer| {
        let (own, other) = tokio::io::duplex(PIPE);
        let (connections, serving) = Connections::serve(node("n1"));
        tokio::spawn(serving);
        tokio::spawn(async move { connections.take(other, viewer).await });
        ExplainerClient::new(client::channel(own).await.unwrap())
    };
    let mut all = client(Viewer::default()).await;
    let answer = all.explain(request()).await.unwrap().into_inner();
    assert!(answer.explanation.contains(r#""reason":"policy_denied""#));
    for (wrong, code) in [
        (Asked { port: 0, ..request() }, Code::InvalidArgument),
        (
            Asked {
                port: 70_000,
                ..request()
            },
            Code::InvalidArgument,
        ),
        (
            Asked {
                from: "x".repeat(513),
                ..request()
            },
            Code::InvalidArgument,
        ),
        (
            Asked {
                from: "x".repeat(5000),
                ..request()
            },
            Code::OutOfRange,
        ),
        (
            Asked {
                from: "nobody".to_owned(),
                ..request()
            },
            Code::NotFound,
        ),
    ] {
        assert_eq!(all.explain(wrong).await.unwrap_err().code(), code);
    }
    let limited = Viewer {
        namespaces: Some(Arc::new(["shop".to_owned()].into())),
    };
    let refused = client(limited).await.explain(request()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn a_token_for_some_namespaces_shows_their_flows_and_not_what_policies_say() {
    let (all, some) = ("all-0123456789abcdef", "shop-0123456789abcdef");
    let access = Access::tokens(&format!("{all}\n{some} shop\n")).unwrap();
    let map = Map::open("127.0.0.1:0".parse().unwrap(), access).await.unwrap();
    let address = map.address().unwrap();
    let first = node("n1");
    first.record(flow("shop/web", "shop/cart", "open", "tunnel", json!({})));
    let (_nodes, watched) = watch::channel(Arc::new([("n1".to_owned(), String::new())].into()));
    let cluster = Cluster([("n1".to_owned(), first)].into());
    tokio::spawn(map.serve(Relay::new(cluster, watched)));
    let asks = async |what: &str, token: &str| {
        let headers = format!("Host: map.example\r\nAuthorization: Bearer {token}\r\n");
        get(address, &format!("/{what}?from=shop/web&to=shop/cart"), &headers).await
    };
    // Once the map has the flow, both see it.
    while !asks("flows", all).await.contains("web-0") {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert!(asks("flows", some).await.contains("web-0"));
    assert!(asks("explain", all).await.contains("policy_denied"));
    let told = asks("explain", some).await;
    assert!(told.ends_with("\r\n\r\n{}"), "{told}");
}
