//! The flows of several nodes as one stream.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use prost_types::Timestamp as Time;
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, timeout_at},
};
use weir_proto::{
    observer::{GetFlowsRequest, GetFlowsResponse, get_flows_response::ResponseTypes},
    relay::{NodeState, NodeStatusEvent},
};

use super::{
    Connect, Relay,
    read::{self, Event},
};
use crate::{
    convert::timestamp,
    observer::{
        Viewer,
        answer::{Gone, Sink},
    },
    window::{Number, Query},
};

/// Records of nodes that wait for those of others.
pub(super) const WAITING: usize = 256;
/// While flows are followed: how long a record waits for earlier ones of other nodes. A person does not notice it.
const WINDOW: Duration = Duration::from_millis(200);
/// The recorded flows that a follower asks for are complete when nothing more has come for this long: the nodes are asked at
/// once, and the first of them have to wait for the last.
const QUIET: Duration = Duration::from_millis(500);
/// But no longer than this: a node that cannot be reached must not hold up the others.
const QUIET_MOST: Duration = Duration::from_secs(3);
/// More is not kept waiting.
const WINDOW_MOST: usize = 10_000;

type NodeEvent = (Arc<str>, Event);

/// Where merged flows go.
pub(super) struct Out<'a> {
    query: &'a Query,
    viewer: &'a Viewer,
    sink: &'a Sink,
    /// So many more, where the oldest are wanted.
    left: usize,
}

// === impl Out ===

impl<'a> Out<'a> {
    pub(super) fn new(query: &'a Query, viewer: &'a Viewer, sink: &'a Sink) -> Self {
        let left = match query.number {
            Some(Number::First(most)) => most,
            _ => usize::MAX,
        };
        Self {
            query,
            viewer,
            sink,
            left,
        }
    }

    fn newest(&self) -> Option<usize> {
        match self.query.number {
            Some(Number::Last(most)) => Some(most),
            _ => None,
        }
    }

    fn may_see(&self, response: &GetFlowsResponse) -> bool {
        match &response.response_types {
            Some(ResponseTypes::Flow(flow)) => self.viewer.may_see_hubble(flow),
            _ => true,
        }
    }

    async fn put(&mut self, mut response: GetFlowsResponse) -> Result<(), Gone> {
        if let Some(ResponseTypes::Flow(flow)) = &mut response.response_types {
            let Some(left) = self.left.checked_sub(1) else {
                return Ok(());
            };
            self.left = left;
            if let Some(mask) = &self.query.mask {
                *flow = mask.apply(flow);
            }
        }
        self.sink.send(response).await
    }

    async fn status(&self, node: &str, state: NodeState, message: String) -> Result<(), Gone> {
        let event = NodeStatusEvent {
            state_change: state.into(),
            node_names: vec![node.to_owned()],
            message,
        };
        let response = GetFlowsResponse {
            node_name: node.to_owned(),
            time: Some(timestamp(Timestamp::now())),
            response_types: Some(ResponseTypes::NodeStatus(event)),
        };
        self.sink.send(response).await
    }
}

fn is_flow(response: &GetFlowsResponse) -> bool {
    matches!(response.response_types, Some(ResponseTypes::Flow(_)))
}

fn time(response: &GetFlowsResponse) -> (i64, i32) {
    response
        .time
        .map_or((i64::MAX, 0), |time: Time| (time.seconds, time.nanos))
}

/// One node's stream, with its next record.
struct Head {
    events: mpsc::Receiver<NodeEvent>,
    next: Option<GetFlowsResponse>,
}

/// Those that are kept, of all nodes that there are now.
pub(super) async fn recorded<C: Connect>(
    relay: &Relay<C>,
    request: GetFlowsRequest,
    mut out: Out<'_>,
) -> Result<(), Gone> {
    let mut tasks = JoinSet::new();
    let mut heads: Vec<Head> = Vec::new();
    for node in relay.nodes().keys() {
        let (to, events) = mpsc::channel::<NodeEvent>(WAITING);
        tasks.spawn(read::node(
            relay.connect.clone(),
            node.as_str().into(),
            request.clone(),
            to,
        ));
        heads.push(Head { events, next: None });
    }
    let mut newest: VecDeque<GetFlowsResponse> = VecDeque::new();
    let mut flows = 0;
    let most = out.newest();
    loop {
        let mut index = 0;
        while index < heads.len() {
            let head = &mut heads[index];
            while head.next.is_none() {
                match head.events.recv().await {
                    Some((_, Event::Response(response))) if out.may_see(&response) => {
                        head.next = Some(*response);
                    }
                    Some((_, Event::Response(_) | Event::Connected | Event::Ended)) => {}
                    Some((node, Event::Unavailable(problem))) => {
                        out.status(&node, NodeState::NodeUnavailable, problem).await?;
                    }
                    Some((_, Event::Refused(status))) => {
                        out.sink.fail(status);
                        return Err(Gone);
                    }
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
            .min_by_key(|head| head.next.as_ref().map_or((i64::MAX, 0), time));
        let Some(response) = earliest.and_then(|head| head.next.take()) else {
            break;
        };
        let Some(most) = most else {
            out.put(response).await?;
            if out.left == 0 {
                return Ok(());
            }
            continue;
        };
        flows += usize::from(is_flow(&response));
        newest.push_back(response);
        while flows > most {
            flows -= usize::from(newest.pop_front().is_some_and(|gone| is_flow(&gone)));
        }
    }
    for response in newest {
        out.put(response).await?;
    }
    Ok(())
}

/// Those that are wanted of what is kept, and new ones, of all nodes that there are at the time.
pub(super) async fn followed<C: Connect>(
    relay: &Relay<C>,
    request: GetFlowsRequest,
    to: mpsc::Sender<NodeEvent>,
    mut events: mpsc::Receiver<NodeEvent>,
    mut out: Out<'_>,
) -> Result<(), Gone> {
    let mut readers: BTreeMap<String, tokio::task::AbortHandle> = BTreeMap::new();
    let mut tasks = JoinSet::new();
    let mut nodes = relay.nodes.clone();
    let mut first = true;
    let end = async {
        match out.query.remaining(Timestamp::now()) {
            Some(remaining) => tokio::time::sleep(remaining + 2 * WINDOW).await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(end);
    loop {
        // Of a node that comes later, what it records from then on.
        let now = nodes.borrow_and_update().clone();
        for node in now
            .keys()
            .filter(|node| !readers.contains_key(*node))
            .cloned()
            .collect::<Vec<_>>()
        {
            let mut own = request.clone();
            if !first {
                (own.number, own.since) = (0, Some(timestamp(Timestamp::now())));
            }
            let task = read::node(relay.connect.clone(), node.as_str().into(), own, to.clone());
            readers.insert(node, tasks.spawn(task));
        }
        let gone: Vec<String> = readers
            .keys()
            .filter(|node| !now.contains_key(*node))
            .cloned()
            .collect();
        for node in gone {
            if let Some(reader) = readers.remove(&node) {
                reader.abort();
            }
            out.status(&node, NodeState::NodeGone, String::new()).await?;
        }
        let event = tokio::select! {
            event = events.recv() => event,
            changed = nodes.changed() => match changed {
                Ok(()) => continue,
                // They are all that there will ever be.
                Err(_) => events.recv().await,
            },
            () = &mut end => return Ok(()),
            () = out.sink.closed() => return Err(Gone),
        };
        let Some(event) = event else { return Ok(()) };
        let window = window(event, &mut events, first, &mut out).await?;
        let most = if std::mem::take(&mut first) {
            out.newest()
        } else {
            None
        };
        let mut ordered = in_order(window);
        if let Some(most) = most {
            let flows = ordered.iter().filter(|one| is_flow(one)).count();
            let mut unwanted = flows.saturating_sub(most);
            ordered.retain(|one| {
                let goes = is_flow(one) && unwanted > 0;
                unwanted -= usize::from(goes);
                !goes
            });
        }
        for response in ordered {
            out.put(response).await?;
        }
    }
}

/// What comes together with an event.
async fn window(
    event: NodeEvent,
    events: &mut mpsc::Receiver<NodeEvent>,
    first: bool,
    out: &mut Out<'_>,
) -> Result<Vec<GetFlowsResponse>, Gone> {
    let began = Instant::now();
    let (pause, most) = if first {
        (QUIET, QUIET_MOST)
    } else {
        (WINDOW, WINDOW)
    };
    let mut window = Vec::new();
    let mut event = Some(event);
    while let Some((node, one)) = event {
        match one {
            Event::Response(response) if out.may_see(&response) => window.push(*response),
            Event::Response(_) | Event::Ended => {}
            Event::Unavailable(problem) => out.status(&node, NodeState::NodeUnavailable, problem).await?,
            Event::Connected => out.status(&node, NodeState::NodeConnected, String::new()).await?,
            Event::Refused(status) => {
                out.sink.fail(status);
                return Err(Gone);
            }
        }
        let until = (Instant::now() + pause).min(began + most);
        event = match window.len() {
            WINDOW_MOST.. => None,
            _ => timeout_at(until, events.recv()).await.ok().flatten(),
        };
    }
    Ok(window)
}

/// By time; what was lost stays before the record of its node that came after it.
fn in_order(responses: Vec<GetFlowsResponse>) -> Vec<GetFlowsResponse> {
    let mut keyed = Vec::with_capacity(responses.len());
    // The time of each node's next record.
    let mut later: HashMap<String, (i64, i32)> = HashMap::new();
    for response in responses.into_iter().rev() {
        let time = if is_flow(&response) {
            let time = time(&response);
            later.insert(response.node_name.clone(), time);
            time
        } else {
            later.get(&response.node_name).copied().unwrap_or((i64::MAX, 0))
        };
        keyed.push((time, response));
    }
    keyed.reverse();
    keyed.sort_by_key(|(time, _)| *time);
    keyed.into_iter().map(|(_, response)| response).collect()
}

#[cfg(test)]
mod tests {
    use weir_proto::flow::{Flow, LostEvent};

    use super::*;

    fn of(node: &str, second: i64) -> GetFlowsResponse {
        GetFlowsResponse {
            node_name: node.to_owned(),
            time: Some(Time {
                seconds: second,
                nanos: 0,
            }),
            response_types: Some(ResponseTypes::Flow(Flow::default())),
        }
    }

    fn lost(node: &str) -> GetFlowsResponse {
        GetFlowsResponse {
            response_types: Some(ResponseTypes::LostEvents(LostEvent::default())),
            ..of(node, 99)
        }
    }

    fn shown(all: &[GetFlowsResponse]) -> Vec<String> {
        let shown = |one: &GetFlowsResponse| match is_flow(one) {
            true => time(one).0.to_string(),
            false => format!("{} lost", one.node_name),
        };
        all.iter().map(shown).collect()
    }

    #[test]
    fn what_was_lost_stays_before_what_came_after_it() {
        let ordered = in_order(vec![of("n", 3), lost("n"), of("n", 5), of("n", 4), of("n", 1)]);
        assert_eq!(shown(&ordered), ["1", "3", "4", "n lost", "5"]);
        // Of a node that has no record after it: last, whatever others have.
        let ordered = in_order(vec![lost("other"), of("n", 3), of("n", 1)]);
        assert_eq!(shown(&ordered), ["1", "3", "other lost"]);
    }
}
