//! An agent's flows, by gRPC.

use std::{net::TcpStream, sync::mpsc::Sender, thread};

use tokio_stream::{Stream, StreamExt as _, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, transport::Server};
use weir_hubble::{Origin, convert::timestamp, to_hubble};
use weir_proto::{
    flow::LostEvent,
    observer::{
        GetFlowsRequest, GetFlowsResponse, GetNamespacesRequest, GetNamespacesResponse, GetNodesRequest,
        GetNodesResponse, ServerStatusRequest, ServerStatusResponse,
        get_flows_response::ResponseTypes,
        observer_server::{Observer, ObserverServer},
    },
};
use weir_types::Flow;

/// What an agent says of flows.
#[derive(Clone)]
pub(crate) enum Said {
    Flow(Box<Flow>),
    Lost(u64),
}

/// Serves one client, who is told that it left by `left`.
pub(crate) fn serve(stream: TcpStream, said: Vec<Said>, left: Sender<()>) {
    thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            stream.set_nonblocking(true).unwrap();
            let stream = tokio::net::TcpStream::from_std(stream).unwrap();
            // The server ends with what comes in, and its connections with it.
            let incoming = tokio_stream::once(Ok::<_, std::io::Error>(stream)).chain(tokio_stream::pending());
            let server = ObserverServer::new(Fake { said, left });
            let _ = Server::builder()
                .add_service(server)
                .serve_with_incoming(incoming)
                .await;
        });
    });
}

struct Fake {
    said: Vec<Said>,
    left: Sender<()>,
}

type Answer = std::pin::Pin<Box<dyn Stream<Item = Result<GetFlowsResponse, Status>> + Send>>;

#[tonic::async_trait]
impl Observer for Fake {
    type GetFlowsStream = Answer;

    async fn get_flows(&self, request: Request<GetFlowsRequest>) -> Result<Response<Answer>, Status> {
        let request = request.into_inner();
        let origin = Origin {
            cluster: String::new(),
            version: "0".to_owned(),
            run: 1,
        };
        let mut responses: Vec<_> = self
            .said
            .iter()
            .map(|said| match said {
                Said::Flow(flow) => GetFlowsResponse {
                    node_name: flow.node.clone(),
                    time: Some(timestamp(flow.time)),
                    response_types: Some(ResponseTypes::Flow(to_hubble(flow, &origin))),
                },
                Said::Lost(count) => GetFlowsResponse {
                    response_types: Some(ResponseTypes::LostEvents(LostEvent {
                        num_events_lost: *count,
                        ..LostEvent::default()
                    })),
                    ..GetFlowsResponse::default()
                },
            })
            .collect();
        let most = usize::try_from(request.number).unwrap();
        if most > 0 {
            responses.drain(..responses.len().saturating_sub(most));
        }
        let recorded = tokio_stream::iter(responses).map(Ok);
        if !request.follow {
            return Ok(Response::new(Box::pin(recorded)));
        }
        // Nothing new comes; who leaves drops it.
        let (open, new) = tokio::sync::mpsc::channel(1);
        let left = self.left.clone();
        tokio::spawn(async move {
            open.closed().await;
            let _ = left.send(());
        });
        Ok(Response::new(Box::pin(recorded.chain(ReceiverStream::new(new)))))
    }

    async fn get_nodes(&self, _: Request<GetNodesRequest>) -> Result<Response<GetNodesResponse>, Status> {
        Err(Status::unimplemented("not asked"))
    }

    async fn get_namespaces(
        &self,
        _: Request<GetNamespacesRequest>,
    ) -> Result<Response<GetNamespacesResponse>, Status> {
        Err(Status::unimplemented("not asked"))
    }

    async fn server_status(
        &self,
        _: Request<ServerStatusRequest>,
    ) -> Result<Response<ServerStatusResponse>, Status> {
        Ok(Response::new(ServerStatusResponse::default()))
    }
}
