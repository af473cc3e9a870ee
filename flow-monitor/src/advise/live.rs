//! Records and state of running agents.

use futures_util::{StreamExt as _, stream};
use jiff::Timestamp;
use weir_proto::observer::GetFlowsRequest;
use weir_types::api::{Request, Response};

use super::{record::Record, state::State};
use crate::{
    agent::Agent,
    cluster::Agents,
    merge::{self, Item},
    several::{complain, nobody},
};

/// Agents that are asked at once.
const AT_ONCE: usize = 16;

/// Counts all recorded flows of all agents.
///
/// # Errors
/// When none answers.
pub(super) async fn flows(agents: Agents, record: &mut Record) -> anyhow::Result<()> {
    merge::flows(agents, GetFlowsRequest::default(), |item| {
        match item {
            Item::Flow(seen) => record.add(&seen.flow),
            Item::Lost(node, count) => record.lost(&node, count),
            Item::Status(_) => {}
        }
        Ok(())
    })
    .await
}

/// What agents say of themselves. Who does not answer is missing.
pub(super) async fn state(agents: &Agents, now: Timestamp) -> State {
    let mut state = State {
        asked: true,
        now,
        ..State::default()
    };
    state
        .missing
        .extend(agents.missing.iter().map(ToString::to_string));
    let mut answers = stream::iter(&agents.found)
        .map(|agent| async move { (agent, all(agent, &Request::Status).await) })
        .buffered(AT_ONCE);
    while let Some((agent, answer)) = answers.next().await {
        match answer {
            Ok(responses) => state
                .statuses
                .extend(responses.into_iter().filter_map(|one| match one {
                    Response::Status(status) => Some(*status),
                    _ => None,
                })),
            Err(error) => state.missing.push(match agent.node() {
                Some(node) if !format!("{error:#}").contains(node) => format!("node {node}: {error:#}"),
                _ => format!("{error:#}"),
            }),
        }
    }
    // All know the same.
    for agent in &agents.found {
        if let Ok(responses) = all(agent, &Request::Workloads).await {
            state.workloads = responses
                .into_iter()
                .filter_map(|one| match one {
                    Response::Workload(workload) => Some(workload),
                    _ => None,
                })
                .collect();
            break;
        }
    }
    state
}

/// Whether anybody answered.
///
/// # Errors
/// When nobody did; who and why is told.
pub(super) fn answered(state: &State) -> anyhow::Result<()> {
    if state.statuses.is_empty() {
        for missing in &state.missing {
            complain(None, &anyhow::anyhow!("{missing}"));
        }
        anyhow::bail!(nobody());
    }
    Ok(())
}

async fn all(agent: &Agent, request: &Request) -> anyhow::Result<Vec<Response>> {
    let mut responses = Vec::new();
    agent
        .ask(request, |response| {
            responses.push(response);
            Ok(())
        })
        .await?;
    Ok(responses)
}
