//! Whatever happens in whatever order, a client that applies responses ends with what the store has for it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::prelude::*;
use prost::Message as _;
use weir_proto::{
    WILDCARD,
    envoy::service::discovery::v3::{DeltaDiscoveryResponse, Resource as WireResource},
    weir::node::v1::Pod,
};

use super::*;
use crate::ads::resource::{Change, Resource};

const NAMES: [&str; 4] = ["r0", "r1", "r2", "r3"];
const ALIASES: [&str; 3] = ["a0", "a1", "a2"];
const NODES: [&str; 2] = ["node1", "node2"];

/// One thing that happens.
#[derive(Clone, Debug)]
enum Step {
    Set {
        name: usize,
        content: u8,
        aliases: u8,
        node: usize,
    },
    Remove {
        name: usize,
    },
    Subscribe {
        key: usize,
    },
    Unsubscribe {
        key: usize,
    },
    Reconnect,
    /// The client's oldest request arrives.
    Request,
    /// The server looks for something to say.
    Push,
    /// The server's oldest response arrives.
    Response {
        reject: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let key = 0..=NAMES.len() + ALIASES.len();
    prop_oneof![
        4 => (0..NAMES.len(), 0..3u8, 0..8u8, 0..NODES.len())
            .prop_map(|(name, content, aliases, node)| Step::Set { name, content, aliases, node }),
        2 => (0..NAMES.len()).prop_map(|name| Step::Remove { name }),
        2 => key.clone().prop_map(|key| Step::Subscribe { key }),
        2 => key.prop_map(|key| Step::Unsubscribe { key }),
        1 => Just(Step::Reconnect),
        4 => Just(Step::Request),
        4 => Just(Step::Push),
        4 => any::<bool>().prop_map(|reject| Step::Response { reject }),
    ]
}

/// Names, aliases, and last the wildcard.
fn key(index: usize) -> &'static str {
    NAMES
        .iter()
        .chain(&ALIASES)
        .nth(index)
        .copied()
        .unwrap_or(WILDCARD)
}

/// A client of one type.
#[derive(Default)]
struct Client {
    subscribed: BTreeSet<String>,
    content: BTreeMap<String, WireResource>,
}

impl Client {
    fn wants(&self, resource: &WireResource) -> bool {
        let mut keys = std::iter::once(&resource.name).chain(&resource.aliases);
        self.subscribed.contains(WILDCARD) || keys.any(|key| self.subscribed.contains(key))
    }

    fn apply(&mut self, response: DeltaDiscoveryResponse) {
        for name in response.removed_resources {
            self.content.remove(&name);
        }
        for resource in response.resources {
            if self.wants(&resource) {
                self.content.insert(resource.name.clone(), resource);
            } else {
                self.content.remove(&resource.name);
            }
        }
    }

    fn forget_unwanted(&mut self) {
        let content = std::mem::take(&mut self.content);
        self.content = content
            .into_iter()
            .filter(|(_, resource)| self.wants(resource))
            .collect();
    }

    /// The first request of a stream.
    fn connect(&self) -> DeltaDiscoveryRequest {
        let mut request = DeltaDiscoveryRequest {
            initial_resource_versions: self
                .content
                .values()
                .map(|resource| (resource.name.clone(), resource.version.clone()))
                .collect(),
            ..request()
        };
        if self.subscribed.is_empty() {
            request.resource_names_subscribe = vec![WILDCARD.to_owned()];
            request.resource_names_unsubscribe = vec![WILDCARD.to_owned()];
        } else if self.subscribed.len() > 1 || !self.subscribed.contains(WILDCARD) {
            request.resource_names_subscribe = self.subscribed.iter().cloned().collect();
        }
        request
    }
}

fn request() -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: ResourceType::Pod.url().to_owned(),
        ..DeltaDiscoveryRequest::default()
    }
}

/// Store, server and client, with what is between them.
struct World {
    state: State,
    client: Client,
    session: Session,
    requests: VecDeque<DeltaDiscoveryRequest>,
    responses: VecDeque<DeltaDiscoveryResponse>,
}

impl World {
    fn new(log: usize) -> Self {
        let mut world = Self {
            state: State::new(log),
            client: Client::default(),
            session: Session::new(NODES[0].into(), &Limits::default()),
            requests: VecDeque::new(),
            responses: VecDeque::new(),
        };
        world.connect();
        world
    }

    fn connect(&mut self) {
        self.session = Session::new(NODES[0].into(), &Limits::default());
        self.responses.clear();
        self.requests = [self.client.connect()].into();
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Set {
                name,
                content,
                aliases,
                node,
            } => {
                let message = Pod {
                    name: content.to_string(),
                    ..Pod::default()
                };
                let chosen = ALIASES
                    .iter()
                    .enumerate()
                    .filter(|(bit, _)| aliases >> bit & 1 == 1);
                let resource = Resource::aliased_of_node(
                    NODES[node],
                    NAMES[name],
                    chosen.map(|(_, alias)| (*alias).to_owned()),
                    &message,
                );
                self.state.apply([Change::Set(resource)]);
            }
            Step::Remove { name } => {
                self.state
                    .apply([Change::Remove(ResourceType::Pod, NAMES[name].into())]);
            }
            Step::Subscribe { key: index } => {
                if self.client.subscribed.insert(key(index).to_owned()) {
                    let resource_names_subscribe = vec![key(index).to_owned()];
                    self.requests.push_back(DeltaDiscoveryRequest {
                        resource_names_subscribe,
                        ..request()
                    });
                }
            }
            Step::Unsubscribe { key: index } => {
                if self.client.subscribed.remove(key(index)) {
                    self.client.forget_unwanted();
                    let resource_names_unsubscribe = vec![key(index).to_owned()];
                    self.requests.push_back(DeltaDiscoveryRequest {
                        resource_names_unsubscribe,
                        ..request()
                    });
                }
            }
            Step::Reconnect => self.connect(),
            Step::Request => {
                if let Some(request) = self.requests.pop_front() {
                    self.session.receive(request).unwrap();
                }
            }
            Step::Push => match self.session.next(&self.state) {
                Ok(push) => {
                    let encoded = push.map(|push| push.response.encode_to_vec());
                    self.responses.extend(
                        encoded.map(|bytes| DeltaDiscoveryResponse::decode(bytes.as_slice()).unwrap()),
                    );
                }
                Err(close) => {
                    assert_eq!(close, Close::Behind);
                    self.connect();
                }
            },
            Step::Response { reject } => {
                if let Some(response) = self.responses.pop_front() {
                    let response_nonce = response.nonce.clone();
                    let error_detail = reject.then(Status::default);
                    self.client.apply(response);
                    self.requests.push_back(DeltaDiscoveryRequest {
                        response_nonce,
                        error_detail,
                        ..request()
                    });
                }
            }
        }
    }

    /// Lets everything arrive.
    fn settle(&mut self) {
        for _ in 0..200 {
            self.step(&Step::Request);
            self.step(&Step::Push);
            self.step(&Step::Response { reject: false });
        }
        assert!(
            self.requests.is_empty() && self.responses.is_empty(),
            "client and server never come to rest"
        );
    }

    /// What the client should have.
    fn expected(&self) -> BTreeMap<String, WireResource> {
        let resources = self.state.view(ResourceType::Pod, NODES[0]).all();
        let decoded = resources.map(|resource| WireResource::decode(resource.encoded()).unwrap());
        let wanted = decoded.filter(|resource| self.client.wants(resource));
        wanted.map(|resource| (resource.name.clone(), resource)).collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_client_ends_with_the_stores_content(
        steps in prop::collection::vec(step(), 0..60),
        log in prop_oneof![Just(4usize), Just(64)],
    ) {
        let mut world = World::new(log);
        for step in &steps {
            world.step(step);
        }
        world.settle();
        prop_assert_eq!(&world.client.content, &world.expected());
    }
}
