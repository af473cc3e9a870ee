//! The relay as a server.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::{sync::Semaphore, task::JoinSet, time::timeout};
use tonic::{Request, Response, Status};
use weir_proto::{
    observer::{
        GetFlowsRequest, GetNamespacesRequest, GetNamespacesResponse, GetNodesRequest, GetNodesResponse,
        Namespace, Node, ServerStatusRequest, ServerStatusResponse, observer_server::Observer,
    },
    relay::NodeState,
};

use super::{Connect, Relay};
use crate::{
    client,
    observer::{Answer, Viewer},
};

/// Streams of flows at once, of all clients: each is one of every node.
const STREAMS: usize = 256;
/// How long a node may take to say what it is.
const PATIENCE: Duration = Duration::from_secs(5);

/// Serves what all nodes have.
#[derive(Debug)]
pub struct RelayServer<C> {
    relay: Relay<C>,
    version: String,
    started: Timestamp,
    streams: Arc<Semaphore>,
}

// === impl RelayServer ===

impl<C: Connect> RelayServer<C> {
    /// Serves a relay.
    #[must_use]
    pub fn new(relay: Relay<C>, version: &str) -> Self {
        Self {
            relay,
            version: version.to_owned(),
            started: Timestamp::now(),
            streams: Arc::new(Semaphore::new(STREAMS)),
        }
    }

    /// Asks all nodes at once. Those that do not answer are left out, or named by the state that they are given.
    async fn ask<T: Send + 'static, F>(
        &self,
        ask: impl Fn(weir_proto::observer::observer_client::ObserverClient<tonic::transport::Channel>) -> F
        + Copy
        + Send
        + Sync
        + 'static,
    ) -> Vec<(String, String, Option<T>)>
    where
        F: Future<Output = Result<T, Status>> + Send,
    {
        let mut asking = JoinSet::new();
        for (node, address) in self.relay.nodes().iter() {
            let (node, address, connect) = (node.clone(), address.clone(), self.relay.connect.clone());
            asking.spawn(async move {
                let answer = async {
                    let channel = connect.connect(&node).await.ok()?;
                    ask(client::observer(channel)).await.ok()
                };
                let answer = timeout(PATIENCE, answer).await.ok().flatten();
                (node, address, answer)
            });
        }
        let mut answers = asking.join_all().await;
        answers.sort_by(|a, b| a.0.cmp(&b.0));
        answers
    }
}

#[tonic::async_trait]
impl<C: Connect> Observer for RelayServer<C> {
    type GetFlowsStream = Answer;

    async fn get_flows(&self, request: Request<GetFlowsRequest>) -> Result<Response<Answer>, Status> {
        let viewer = Viewer::of(&request);
        let Ok(permit) = self.streams.clone().try_acquire_owned() else {
            return Err(Status::resource_exhausted("too many streams of flows are open"));
        };
        let answer = self.relay.flows(request.get_ref().clone(), viewer);
        let answer = answer.map_err(|error| Status::invalid_argument(error.to_string()))?;
        Ok(Response::new(answer.for_request(&request).with(permit)))
    }

    async fn get_nodes(&self, _: Request<GetNodesRequest>) -> Result<Response<GetNodesResponse>, Status> {
        let answers = self
            .ask(async |mut client| Ok(client.get_nodes(GetNodesRequest {}).await?.into_inner()))
            .await;
        let nodes = answers.into_iter().map(|(name, address, answer)| {
            let own = answer.and_then(|answer| answer.nodes.into_iter().next());
            match own {
                Some(own) => Node { name, address, ..own },
                None => Node {
                    name,
                    address,
                    state: NodeState::NodeUnavailable.into(),
                    ..Node::default()
                },
            }
        });
        Ok(Response::new(GetNodesResponse {
            nodes: nodes.collect(),
        }))
    }

    async fn get_namespaces(
        &self,
        request: Request<GetNamespacesRequest>,
    ) -> Result<Response<GetNamespacesResponse>, Status> {
        let viewer = Viewer::of(&request);
        let answers = self
            .ask(async |mut client| Ok(client.get_namespaces(GetNamespacesRequest {}).await?.into_inner()))
            .await;
        let all = answers.into_iter().filter_map(|(.., answer)| answer);
        let names: BTreeSet<(String, String)> = all
            .flat_map(|answer| answer.namespaces)
            .map(|one| (one.cluster, one.namespace))
            .filter(|(_, namespace)| viewer.knows(namespace))
            .collect();
        let namespaces = names
            .into_iter()
            .map(|(cluster, namespace)| Namespace { cluster, namespace });
        Ok(Response::new(GetNamespacesResponse {
            namespaces: namespaces.collect(),
        }))
    }

    async fn server_status(
        &self,
        _: Request<ServerStatusRequest>,
    ) -> Result<Response<ServerStatusResponse>, Status> {
        let answers = self
            .ask(async |mut client| Ok(client.server_status(ServerStatusRequest {}).await?.into_inner()))
            .await;
        let mut status = ServerStatusResponse {
            version: self.version.clone(),
            ..ServerStatusResponse::default()
        };
        let (mut connected, mut missing) = (0, 0);
        for (node, _, answer) in answers {
            let Some(own) = answer else {
                missing += 1;
                status.unavailable_nodes.push(node);
                continue;
            };
            connected += 1;
            status.num_flows += own.num_flows;
            status.max_flows += own.max_flows;
            status.seen_flows += own.seen_flows;
            status.flows_rate += own.flows_rate;
            status.uptime_ns = status.uptime_ns.max(own.uptime_ns);
        }
        if connected == 0 {
            let age = Timestamp::now().duration_since(self.started);
            status.uptime_ns = u64::try_from(age.as_nanos()).unwrap_or_default();
        }
        (status.num_connected_nodes, status.num_unavailable_nodes) = (Some(connected), Some(missing));
        Ok(Response::new(status))
    }
}
