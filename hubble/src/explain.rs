//! What would become of a connection, asked of one node's server.

use std::time::Duration;

use tokio::time::timeout;
use tonic::{Code, Request, Response, Status, transport::Channel};
use weir_proto::weir::flow::v1::{
    ExplainRequest as Asked, ExplainResponse, explainer_client::ExplainerClient, explainer_server::Explainer,
};
use weir_types::explain::{ExplainRequest, Explanation};

use crate::observer::{Server, Source, Viewer};

/// Longest name of an end, in bytes: a namespace and a pod have 63 and 253 at most.
const MAX_NAME: usize = 512;
/// How long a node may take: it only looks up what it knows.
const PATIENCE: Duration = Duration::from_secs(5);

#[tonic::async_trait]
impl<S: Source> Explainer for Server<S> {
    async fn explain(&self, request: Request<Asked>) -> Result<Response<ExplainResponse>, Status> {
        // An answer names policies, nodes and identities at both ends.
        if Viewer::of(&request).namespaces.is_some() {
            return Err(Status::permission_denied(
                "only who may see the flows of all namespaces is told what would become of a connection",
            ));
        }
        let Asked { from, to, port } = request.into_inner();
        let port = u16::try_from(port).ok().filter(|port| *port != 0);
        let Some(port) = port.filter(|_| from.len().max(to.len()) <= MAX_NAME) else {
            return Err(Status::invalid_argument(
                "expected names of up to 512 bytes, and a port from 1 to 65535",
            ));
        };
        let request = ExplainRequest { from, to, port };
        let explanation = self.source().explain(&request).map_err(Status::not_found)?;
        let explanation =
            serde_json::to_string(&explanation).map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(ExplainResponse { explanation }))
    }
}

/// Asks a node's server.
///
/// # Errors
/// What it says, or that it cannot be understood.
pub(crate) async fn ask(channel: Channel, request: ExplainRequest) -> Result<Explanation, String> {
    let ExplainRequest { from, to, port } = request;
    let mut client = ExplainerClient::new(channel);
    let asked = client.explain(Asked {
        from,
        to,
        port: port.into(),
    });
    let answer = timeout(PATIENCE, asked).await;
    let answer = answer.map_err(|_| format!("it said nothing for {PATIENCE:?}"))?;
    let answer = answer.map_err(|status| match status.code() {
        Code::Unimplemented => "its agent is of a version that cannot be asked from here".to_owned(),
        _ => status.message().to_owned(),
    })?;
    serde_json::from_str(&answer.into_inner().explanation)
        .map_err(|error| format!("its answer is not understood: {error}"))
}
