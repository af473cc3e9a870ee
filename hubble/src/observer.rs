//! Serves the records of one node.

pub(crate) mod answer;
mod stream;

use std::{collections::BTreeSet, sync::Arc};

use jiff::Timestamp;
use tokio::sync::{Semaphore, watch};
use tonic::{Request, Response, Status};
use weir_proto::{
    observer::{
        GetFlowsRequest, GetNamespacesRequest, GetNamespacesResponse, GetNodesRequest, GetNodesResponse,
        Namespace, Node, ServerStatusRequest, ServerStatusResponse, Tls, observer_server::Observer,
    },
    peer::{ChangeNotification, NotifyRequest, peer_server::Peer},
    relay::NodeState,
};
use weir_types::{
    Flow,
    explain::{ExplainRequest, Explanation},
};

use crate::{Origin, window::Query};
pub use answer::Answer;

/// Streams of flows at once, of all clients.
const STREAMS: usize = 1024;
/// The span over which the rate of records is told, in seconds.
const RATE_SPAN: i64 = 60;

/// Where records come from.
pub trait Source: Send + Sync + 'static {
    /// Whose they are.
    fn origin(&self) -> &Origin;
    /// The node's name.
    fn node(&self) -> &str;
    /// When the first could have been made.
    fn started(&self) -> Timestamp;
    /// How many are kept at most.
    fn capacity(&self) -> usize;
    /// The number of the oldest that is kept, and of the next that will be made.
    fn range(&self) -> (u64, u64);
    /// Records from this number on, this many at most.
    fn page(&self, from: u64, most: usize) -> Page;
    /// Told of the number of records whenever it rises.
    fn watch(&self) -> watch::Receiver<u64>;
    /// Events that were lost before they became records.
    fn lost(&self) -> u64;
    /// Who else serves, this node included.
    fn peers(&self) -> watch::Receiver<Peers>;
    /// What would become of a connection.
    ///
    /// # Errors
    /// Why that cannot be said.
    fn explain(&self, request: &ExplainRequest) -> Result<Explanation, String>;
}

/// One look at the records.
#[derive(Debug, Default)]
pub struct Page {
    /// Oldest first.
    pub flows: Vec<Arc<Flow>>,
    /// How many were overwritten before they could be read.
    pub lost: u64,
    /// Where to go on.
    pub next: u64,
}

/// Others that serve, by node.
pub type Peers = Arc<std::collections::BTreeMap<String, PeerAddress>>;

/// Where a peer serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerAddress {
    /// Host and port.
    pub address: String,
    /// The name in its certificate; without TLS none.
    pub server_name: Option<String>,
}

/// Who asks, and what he may see.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Viewer {
    /// Only flows with one of these namespaces at either end; `None`: all.
    pub namespaces: Option<Arc<BTreeSet<String>>>,
}

/// The services.
#[derive(Debug)]
pub struct Server<S> {
    source: Arc<S>,
    streams: Arc<Semaphore>,
}

// === impl Viewer ===

impl Viewer {
    /// Of the connection that a request came by. One of which nothing is known sees nothing.
    pub(crate) fn of<T>(request: &Request<T>) -> Self {
        request
            .extensions()
            .get::<Self>()
            .cloned()
            .unwrap_or_else(|| Self {
                namespaces: Some(Arc::default()),
            })
    }

    /// Whether anything of a namespace may be seen.
    #[must_use]
    pub fn knows(&self, namespace: &str) -> bool {
        let own = self.namespaces.as_ref();
        own.is_none_or(|own| own.contains(namespace))
    }

    /// Whether a flow may be seen that another server recorded.
    #[must_use]
    pub fn may_see_hubble(&self, flow: &weir_proto::flow::Flow) -> bool {
        let ends = [&flow.source, &flow.destination];
        self.namespaces.is_none() || ends.into_iter().flatten().any(|end| self.knows(&end.namespace))
    }

    /// Whether a flow may be seen.
    #[must_use]
    pub fn may_see(&self, flow: &Flow) -> bool {
        let Some(namespaces) = &self.namespaces else {
            return true;
        };
        let ends = [&flow.source, &flow.destination];
        ends.into_iter()
            .filter_map(|end| end.namespace.as_ref())
            .any(|namespace| namespaces.contains(namespace))
    }
}

// === impl Server ===

impl<S> Clone for Server<S> {
    fn clone(&self) -> Self {
        Self {
            source: self.source.clone(),
            streams: self.streams.clone(),
        }
    }
}

impl<S: Source> Server<S> {
    /// Serves these records.
    #[must_use]
    pub fn new(source: Arc<S>) -> Self {
        Self {
            source,
            streams: Arc::new(Semaphore::new(STREAMS)),
        }
    }

    pub(crate) fn source(&self) -> &S {
        &self.source
    }

    fn uptime(&self) -> u64 {
        let age = Timestamp::now().duration_since(self.source.started());
        u64::try_from(age.as_nanos()).unwrap_or_default()
    }

    /// Records a second, over the last minute or since the start.
    fn rate(&self) -> f64 {
        let (oldest, next) = self.source.range();
        let now = Timestamp::now();
        let since = Timestamp::from_second(now.as_second() - RATE_SPAN).unwrap_or(Timestamp::MIN);
        let page = self.source.page(oldest, usize::MAX);
        let young = page
            .flows
            .iter()
            .rev()
            .take_while(|flow| flow.time >= since)
            .count();
        let oldest_kept = page.flows.first().map_or(now, |flow| flow.time);
        // What was overwritten is not counted: the span is that of what is kept.
        let begin = if oldest < next {
            since.max(oldest_kept)
        } else {
            since
        };
        let seconds = now.duration_since(begin.max(self.source.started())).as_secs_f64();
        f64::from(u32::try_from(young).unwrap_or(u32::MAX)) / seconds.max(1.0)
    }
}

#[tonic::async_trait]
impl<S: Source> Observer for Server<S> {
    type GetFlowsStream = Answer;

    async fn get_flows(&self, request: Request<GetFlowsRequest>) -> Result<Response<Answer>, Status> {
        let viewer = Viewer::of(&request);
        let query =
            Query::new(request.get_ref()).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let Ok(permit) = self.streams.clone().try_acquire_owned() else {
            return Err(Status::resource_exhausted("too many streams of flows are open"));
        };
        let (sink, answer) = Answer::new();
        let answer = answer.for_request(&request);
        let source = self.source.clone();
        tokio::spawn(async move {
            stream::run(&*source, &query, &viewer, sink).await;
            drop(permit);
        });
        Ok(Response::new(answer))
    }

    async fn get_nodes(&self, _: Request<GetNodesRequest>) -> Result<Response<GetNodesResponse>, Status> {
        let (oldest, next) = self.source.range();
        let peers = self.source.peers().borrow().clone();
        let own = peers.get(self.source.node());
        let node = Node {
            name: self.source.node().to_owned(),
            version: self.source.origin().version.clone(),
            address: own.map(|own| own.address.clone()).unwrap_or_default(),
            state: NodeState::NodeConnected.into(),
            tls: own.map(|own| Tls {
                enabled: own.server_name.is_some(),
                server_name: own.server_name.clone().unwrap_or_default(),
            }),
            uptime_ns: self.uptime(),
            num_flows: next - oldest,
            max_flows: self.source.capacity() as u64,
            seen_flows: next,
        };
        Ok(Response::new(GetNodesResponse { nodes: vec![node] }))
    }

    async fn get_namespaces(
        &self,
        request: Request<GetNamespacesRequest>,
    ) -> Result<Response<GetNamespacesResponse>, Status> {
        let viewer = Viewer::of(&request);
        let page = self.source.page(self.source.range().0, usize::MAX);
        let mut names = BTreeSet::new();
        for flow in page.flows.iter().filter(|flow| viewer.may_see(flow)) {
            for end in [&flow.source, &flow.destination] {
                let seen = end.namespace.iter().filter(|one| viewer.knows(one));
                names.extend(seen.cloned());
            }
        }
        let cluster = &self.source.origin().cluster;
        let namespaces = names.into_iter().map(|namespace| Namespace {
            cluster: cluster.clone(),
            namespace,
        });
        Ok(Response::new(GetNamespacesResponse {
            namespaces: namespaces.collect(),
        }))
    }

    async fn server_status(
        &self,
        _: Request<ServerStatusRequest>,
    ) -> Result<Response<ServerStatusResponse>, Status> {
        let (oldest, next) = self.source.range();
        Ok(Response::new(ServerStatusResponse {
            num_flows: next - oldest,
            max_flows: self.source.capacity() as u64,
            seen_flows: next,
            uptime_ns: self.uptime(),
            version: self.source.origin().version.clone(),
            flows_rate: self.rate(),
            ..ServerStatusResponse::default()
        }))
    }
}

#[tonic::async_trait]
impl<S: Source> Peer for Server<S> {
    type NotifyStream = tokio_stream::wrappers::ReceiverStream<Result<ChangeNotification, Status>>;

    async fn notify(&self, _: Request<NotifyRequest>) -> Result<Response<Self::NotifyStream>, Status> {
        let Ok(permit) = self.streams.clone().try_acquire_owned() else {
            return Err(Status::resource_exhausted("too many streams are open"));
        };
        let (sink, changes) = answer::changes();
        let peers = self.source.peers();
        tokio::spawn(async move {
            notify(peers, sink).await;
            drop(permit);
        });
        Ok(Response::new(changes))
    }
}

/// Tells of the peers that there are, and then of changes, until nobody listens.
async fn notify(
    mut peers: watch::Receiver<Peers>,
    sink: tokio::sync::mpsc::Sender<Result<ChangeNotification, Status>>,
) {
    use weir_proto::peer::{ChangeNotificationType as Type, Tls};
    let mut told = Peers::default();
    loop {
        let now = peers.borrow_and_update().clone();
        let change = |name: &String, peer: &PeerAddress, kind: Type| ChangeNotification {
            name: name.clone(),
            address: peer.address.clone(),
            r#type: kind.into(),
            tls: peer.server_name.clone().map(|server_name| Tls { server_name }),
        };
        let gone = told.iter().filter(|(name, _)| !now.contains_key(*name));
        let mut news: Vec<_> = gone
            .map(|(name, peer)| change(name, peer, Type::PeerDeleted))
            .collect();
        news.extend(now.iter().filter_map(|(name, peer)| match told.get(name) {
            None => Some(change(name, peer, Type::PeerAdded)),
            Some(before) if before != peer => Some(change(name, peer, Type::PeerUpdated)),
            Some(_) => None,
        }));
        for one in news {
            if sink.send(Ok(one)).await.is_err() {
                return;
            }
        }
        told = now;
        tokio::select! {
            // Whoever asked and is told that it is over asks again.
            changed = peers.changed() => if changed.is_err() {
                return sink.closed().await;
            },
            () = sink.closed() => return,
        }
    }
}

#[cfg(test)]
mod tests;
