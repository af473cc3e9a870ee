//! The flows of several agents as one stream.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use anyhow::bail;
use jiff::Timestamp;
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, timeout_at},
};
use weir_hubble::from_hubble;
use weir_proto::{
    observer::{GetFlowsRequest, GetFlowsResponse, get_flows_response::ResponseTypes},
    relay::NodeState,
};
use weir_types::Flow;

use crate::{
    agent::Agent,
    cluster::Agents,
    several::{complain, nobody},
};

/// Records of one agent that wait for those of others.
const WAITING: usize = 256;
/// While flows are followed: how long a record waits for earlier ones of other nodes. A person does not notice it.
const WINDOW: Duration = Duration::from_millis(200);
/// The recorded flows that a follower asks for are complete when nothing more has come for this long: the agents are
/// asked at once, and the first of them have to wait for the last.
const QUIET: Duration = Duration::from_millis(500);
/// But no longer than this: an agent that cannot be reached must not hold up the others.
const QUIET_MOST: Duration = Duration::from_secs(3);
/// More is not kept waiting.
const WINDOW_MOST: usize = 10_000;

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

enum Event {
    Item(Item),
    /// The agent closed the stream.
    Ended(String),
    Failed(String, anyhow::Error),
}

/// Asks all agents for flows. What is recorded comes ordered by time; what is new in the order of its arrival, but for
/// what arrives together.
///
/// # Errors
/// When no agent answered, or the sink's own.
pub(crate) async fn flows(
    mut agents: Agents,
    request: GetFlowsRequest,
    sink: impl FnMut(Item) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    agents.complain();
    if request.follow {
        followed(agents.found, request, sink).await
    } else {
        recorded(agents.found, request, sink).await
    }
}

/// Reads one agent until it closes. Ends when nobody listens any more.
async fn read(agent: Agent, request: GetFlowsRequest, to: mpsc::Sender<Event>) {
    let node = agent.node().unwrap_or_default().to_owned();
    let reading = async {
        let mut responses = agent.flows(request).await?;
        while let Some(response) = responses.message().await.map_err(|status| broken(&status))? {
            let Some(item) = Item::of(response, &node) else {
                continue;
            };
            if to.send(Event::Item(item)).await.is_err() {
                break;
            }
        }
        Ok(())
    };
    let last = match reading.await {
        Ok(()) => Event::Ended(node),
        Err(error) => Event::Failed(node, error),
    };
    // Nobody listens any more.
    let _ = to.send(last).await;
}

fn broken(status: &tonic::Status) -> anyhow::Error {
    anyhow::anyhow!("the agent's answer broke off: {}", status.message())
}

/// One agent's stream, with its next record.
struct Head {
    events: mpsc::Receiver<Event>,
    next: Option<Box<Seen>>,
}

async fn recorded(
    agents: Vec<Agent>,
    request: GetFlowsRequest,
    mut sink: impl FnMut(Item) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut tasks = JoinSet::new();
    let mut last = Newest::new(&request);
    let mut heads: Vec<Head> = agents
        .into_iter()
        .map(|agent| {
            let (to, events) = mpsc::channel(WAITING);
            tasks.spawn(read(agent, request.clone(), to));
            Head { events, next: None }
        })
        .collect();
    let mut answered = false;
    loop {
        let mut index = 0;
        while index < heads.len() {
            let head = &mut heads[index];
            while head.next.is_none() {
                match head.events.recv().await {
                    Some(Event::Item(Item::Flow(flow))) => head.next = Some(flow),
                    Some(Event::Item(lost)) => last.put(lost, &mut sink)?,
                    Some(Event::Failed(node, error)) => complain(Some(&node), &error),
                    Some(Event::Ended(_)) => answered = true,
                    None => break,
                }
            }
            if head.next.is_some() {
                index += 1;
            } else {
                heads.remove(index);
            }
        }
        let earliest = heads
            .iter_mut()
            .min_by_key(|head| head.next.as_ref().map_or(Timestamp::MAX, |seen| seen.flow.time));
        let Some(flow) = earliest.and_then(|head| head.next.take()) else {
            break;
        };
        answered = true;
        last.put(Item::Flow(flow), &mut sink)?;
    }
    last.rest(&mut sink)?;
    if !answered {
        bail!(nobody());
    }
    Ok(())
}

async fn followed(
    agents: Vec<Agent>,
    request: GetFlowsRequest,
    mut sink: impl FnMut(Item) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let (to, mut events) = mpsc::channel(WAITING);
    let mut tasks = JoinSet::new();
    for agent in agents {
        tasks.spawn(read(agent, request.clone(), to.clone()));
    }
    drop(to);
    let mut answered = false;
    let mut first = true;
    loop {
        let Some(event) = events.recv().await else { break };
        let now = Instant::now();
        let (pause, most) = if first {
            (QUIET, QUIET_MOST)
        } else {
            (WINDOW, WINDOW)
        };
        let mut window = Vec::new();
        let mut event = Some(event);
        while let Some(one) = event {
            match one {
                Event::Item(item) => window.push(item),
                Event::Failed(node, error) => complain(Some(&node), &error),
                Event::Ended(node) => {
                    answered = true;
                    let ended =
                        anyhow::anyhow!("its agent has ended the stream: nothing more of it is shown");
                    complain(Some(&node), &ended);
                }
            }
            let until = (Instant::now() + pause).min(now + most);
            event = match window.len() {
                WINDOW_MOST.. => None,
                _ => timeout_at(until, events.recv()).await.ok().flatten(),
            };
        }
        answered |= !window.is_empty();
        let mut last = if first {
            Newest::new(&request)
        } else {
            Newest::all()
        };
        first = false;
        for item in in_order(window) {
            last.put(item, &mut sink)?;
        }
        last.rest(&mut sink)?;
    }
    if !answered {
        bail!(nobody());
    }
    Ok(())
}

/// By time; what was lost stays before the record of its node that came after it.
fn in_order(items: Vec<Item>) -> Vec<Item> {
    let mut keyed: Vec<(Timestamp, Item)> = Vec::with_capacity(items.len());
    // The time of each node's next record.
    let mut later: HashMap<String, Timestamp> = HashMap::new();
    for item in items.into_iter().rev() {
        let time = match &item {
            Item::Flow(seen) => {
                later.insert(seen.flow.node.clone(), seen.flow.time);
                seen.flow.time
            }
            Item::Status(_) => Timestamp::MIN,
            Item::Lost(node, _) => later.get(node).copied().unwrap_or(Timestamp::MAX),
        };
        keyed.push((time, item));
    }
    keyed.reverse();
    keyed.sort_by_key(|(time, _)| *time);
    keyed.into_iter().map(|(_, item)| item).collect()
}

/// Lets everything through, or the oldest only, or at the end the newest.
struct Newest {
    first: Option<usize>,
    last: Option<usize>,
    kept: VecDeque<Item>,
    flows: usize,
}

impl Newest {
    fn new(request: &GetFlowsRequest) -> Self {
        // What does not fit an address space is no bound.
        let count = usize::try_from(request.number).ok().filter(|count| *count > 0);
        Self {
            first: count.filter(|_| request.first),
            last: count.filter(|_| !request.first),
            ..Self::all()
        }
    }

    fn all() -> Self {
        Self {
            first: None,
            last: None,
            kept: VecDeque::new(),
            flows: 0,
        }
    }

    fn put(&mut self, item: Item, sink: &mut impl FnMut(Item) -> anyhow::Result<()>) -> anyhow::Result<()> {
        self.flows += usize::from(matches!(item, Item::Flow(_)));
        if self.first.is_some_and(|first| self.flows > first) {
            return Ok(());
        }
        let Some(last) = self.last else { return sink(item) };
        self.kept.push_back(item);
        while self.flows > last {
            if let Some(Item::Flow(_)) = self.kept.pop_front() {
                self.flows -= 1;
            }
        }
        Ok(())
    }

    fn rest(self, sink: &mut impl FnMut(Item) -> anyhow::Result<()>) -> anyhow::Result<()> {
        self.kept.into_iter().try_for_each(sink)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(second: i64) -> Item {
        let flow = serde_json::json!({
            "sequence": 1, "time": Timestamp::from_second(second).unwrap(), "node": "n", "connection": 1, "event": "open",
            "verdict": "forwarded", "reason": "none", "direction": "egress", "path": "tunnel",
            "source": {"address": "10.0.0.1:4000"}, "destination": {"address": "10.0.1.1:80"},
            "bytesSent": 0, "bytesReceived": 0, "durationUs": 0,
        });
        Item::Flow(Box::new(Seen {
            response: GetFlowsResponse::default(),
            flow: serde_json::from_value(flow).unwrap(),
        }))
    }

    fn shown(items: &[Item]) -> Vec<String> {
        let shown = |item: &Item| match item {
            Item::Flow(seen) => seen.flow.time.as_second().to_string(),
            Item::Status(text) => text.clone(),
            Item::Lost(node, count) => format!("{node} lost {count}"),
        };
        items.iter().map(shown).collect()
    }

    #[test]
    fn what_was_lost_stays_before_what_came_after_it() {
        let lost = |node: &str| Item::Lost(node.to_owned(), 7);
        let ordered = in_order(vec![flow(3), lost("n"), flow(5), flow(4), flow(1)]);
        assert_eq!(shown(&ordered), ["1", "3", "4", "n lost 7", "5"]);
        // Of a node that has no record after it: last, whatever others have.
        let ordered = in_order(vec![lost("other"), flow(3), flow(1)]);
        assert_eq!(shown(&ordered), ["1", "3", "other lost 7"]);
    }

    #[test]
    fn the_newest_of_all_nodes_are_kept() {
        let mut seen = Vec::new();
        let mut sink = |item| {
            seen.push(item);
            Ok(())
        };
        let mut newest = Newest {
            last: Some(2),
            ..Newest::all()
        };
        for second in 1..=4 {
            newest.put(flow(second), &mut sink).unwrap();
        }
        newest.rest(&mut sink).unwrap();
        assert_eq!(shown(&seen), ["3", "4"]);
    }
}
