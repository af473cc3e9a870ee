//! The flows of several agents as one stream.

use anyhow::bail;
use tokio_stream::StreamExt as _;
use weir_hubble::{from_hubble, observer::Viewer, relay::Relay};
use weir_proto::{
    observer::{GetFlowsRequest, GetFlowsResponse, get_flows_response::ResponseTypes},
    relay::NodeState,
};
use weir_types::Flow;

use crate::{
    cluster::Agents,
    several::{complain, nobody},
    target::Usage,
    ways::Ways,
};

/// A flow as it came, and as Weir has it.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) response: GetFlowsResponse,
    pub(crate) flow: Flow,
}

/// What is shown.
#[derive(Debug, Clone)]
pub(crate) enum Item {
    Flow(Box<Seen>),
    /// So many events of a node were lost here.
    Lost(String, u64),
    /// What a relay says of nodes.
    Status(String),
}

impl Item {
    /// Of what a server said; `node` is the server's, if it names none. Nothing of a flow that is not one of TCP.
    pub(crate) fn of(response: GetFlowsResponse, node: &str) -> Option<Self> {
        match &response.response_types {
            Some(ResponseTypes::Flow(flow)) => {
                let flow = from_hubble(flow)?;
                Some(Self::Flow(Box::new(Seen { response, flow })))
            }
            Some(ResponseTypes::LostEvents(lost)) => {
                let node = if response.node_name.is_empty() {
                    node
                } else {
                    &response.node_name
                };
                Some(Self::Lost(node.to_owned(), lost.num_events_lost))
            }
            Some(ResponseTypes::NodeStatus(status)) => {
                let state = match status.state_change() {
                    NodeState::NodeUnavailable => "cannot be reached",
                    NodeState::NodeGone => "gone",
                    NodeState::NodeError => "failed",
                    NodeState::NodeConnected | NodeState::UnknownNodeState => return None,
                };
                let mut text = format!("{state}: {}", status.node_names.join(", "));
                if !status.message.is_empty() {
                    text.push_str(": ");
                    text.push_str(&status.message);
                }
                Some(Self::Status(text))
            }
            None => None,
        }
    }
}

/// Asks all agents for flows. What is recorded comes ordered by time; what is new in the order of its arrival, but for what
/// arrives together. An agent that cannot be reached is named, and while flows are followed tried again.
///
/// # Errors
/// When no agent answered, the request is refused, or the sink's own.
pub(crate) async fn flows(
    mut agents: Agents,
    request: GetFlowsRequest,
    mut sink: impl FnMut(Item) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    agents.complain();
    let mut asked = agents.found.len();
    let ways = Ways::of_agents(agents.found);
    let nodes = ways.nodes();
    let relay = Relay::new(ways, nodes);
    let answer = relay.flows(request, Viewer::default());
    let mut answer = answer.map_err(|error| Usage(error.to_string()))?;
    let mut answered = false;
    while let Some(response) = answer.next().await {
        let response = response.map_err(|status| crate::agent::refusal(&status))?;
        if let Some(ResponseTypes::NodeStatus(status)) = &response.response_types {
            let node = Some(response.node_name.as_str()).filter(|node| !node.is_empty());
            answered |= status.state_change() == NodeState::NodeConnected;
            if status.state_change() == NodeState::NodeUnavailable {
                complain(node, &anyhow::anyhow!("{}", status.message));
                // Nobody has answered yet, and nobody will.
                asked = asked.saturating_sub(1);
                if asked == 0 && !answered {
                    bail!(nobody());
                }
            }
            continue;
        }
        answered = true;
        if let Some(item) = Item::of(response, "") {
            sink(item)?;
        }
    }
    if asked == 0 && !answered {
        bail!(nobody());
    }
    Ok(())
}
