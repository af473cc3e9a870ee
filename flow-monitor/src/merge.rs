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
use weir_types::{
    Flow,
    api::{FlowsRequest, Request, Response},
};

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

/// What is shown.
#[derive(Debug, Clone)]
pub(crate) enum Item {
    Flow(Box<Flow>),
    /// So many events of a node were lost here.
    Lost(String, u64),
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
    request: FlowsRequest,
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
async fn read(agent: Agent, request: Request, to: mpsc::Sender<Event>) {
    let node = agent.node().unwrap_or_default().to_owned();
    let reading = async {
        let mut answer = agent.open(&request).await?;
        let mut any = false;
        while let Some(response) = answer.next(any).await? {
            any = true;
            let item = match response {
                Response::Flow(flow) => Item::Flow(Box::new(flow)),
                Response::Lost(count) => Item::Lost(node.clone(), count),
                _ => continue,
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

/// One agent's stream, with its next record.
struct Head {
    events: mpsc::Receiver<Event>,
    next: Option<Box<Flow>>,
}

async fn recorded(
    agents: Vec<Agent>,
    request: FlowsRequest,
    mut sink: impl FnMut(Item) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut tasks = JoinSet::new();
    let mut last = Newest::new(request.last);
    let mut heads: Vec<Head> = agents
        .into_iter()
        .map(|agent| {
            let (to, events) = mpsc::channel(WAITING);
            tasks.spawn(read(agent, Request::Flows(request.clone()), to));
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
            .min_by_key(|head| head.next.as_ref().map_or(Timestamp::MAX, |flow| flow.time));
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
    request: FlowsRequest,
    mut sink: impl FnMut(Item) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let (to, mut events) = mpsc::channel(WAITING);
    let mut tasks = JoinSet::new();
    for agent in agents {
        tasks.spawn(read(agent, Request::Flows(request.clone()), to.clone()));
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
        let mut last = Newest::new(request.last.filter(|_| first));
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
            Item::Flow(flow) => {
                later.insert(flow.node.clone(), flow.time);
                flow.time
            }
            Item::Lost(node, _) => later.get(node).copied().unwrap_or(Timestamp::MAX),
        };
        keyed.push((time, item));
    }
    keyed.reverse();
    keyed.sort_by_key(|(time, _)| *time);
    keyed.into_iter().map(|(_, item)| item).collect()
}

/// Lets everything through, or at the end the newest only.
struct Newest {
    last: Option<usize>,
    kept: VecDeque<Item>,
    flows: usize,
}

impl Newest {
    fn new(last: Option<u64>) -> Self {
        Self {
            // What does not fit an address space is no bound.
            last: last.and_then(|last| usize::try_from(last).ok()),
            kept: VecDeque::new(),
            flows: 0,
        }
    }

    fn put(&mut self, item: Item, sink: &mut impl FnMut(Item) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let Some(last) = self.last else { return sink(item) };
        self.flows += usize::from(matches!(item, Item::Flow(_)));
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
        Item::Flow(Box::new(serde_json::from_value(flow).unwrap()))
    }

    fn shown(items: &[Item]) -> Vec<String> {
        let shown = |item: &Item| match item {
            Item::Flow(flow) => flow.time.as_second().to_string(),
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
        let mut newest = Newest::new(Some(2));
        for second in 1..=4 {
            newest.put(flow(second), &mut sink).unwrap();
        }
        newest.rest(&mut sink).unwrap();
        assert_eq!(shown(&seen), ["3", "4"]);
    }
}
