//! One question to several agents.

use anyhow::bail;
use futures_util::{StreamExt as _, stream};
use weir_types::api::{Request, Response};

use crate::{
    agent::{Agent, Unreachable},
    cluster::Agents,
};

/// Agents that are asked at once. Each takes a port-forward for as long as its answer is long.
const AT_ONCE: usize = 16;

/// Says on the error stream what went wrong with an agent, whose words may be in it.
pub(crate) fn complain(node: Option<&str>, error: &anyhow::Error) {
    let text = match (node, error.downcast_ref::<Unreachable>()) {
        (Some(node), None) => format!("node {node}: {error:#}"),
        _ => format!("{error:#}"),
    };
    anstream::eprintln!("weir: {}", weir::style::clean(&text));
}

impl Agents {
    /// One agent alone.
    pub(crate) fn only(agent: Agent) -> Self {
        Self {
            found: vec![agent],
            missing: Vec::new(),
        }
    }

    /// Names those that cannot be asked.
    pub(crate) fn complain(&mut self) {
        for missing in self.missing.drain(..) {
            complain(None, &missing.into());
        }
    }

    /// Asks all, and hands on the answers in the order of the agents, each as soon as it can.
    ///
    /// # Errors
    /// When none answered; those that did not are named.
    pub(crate) async fn ask_all(
        mut self,
        request: &Request,
        mut sink: impl FnMut(Response) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        if let ([agent], []) = (self.found.as_slice(), self.missing.as_slice()) {
            return agent.ask(request, sink).await;
        }
        self.complain();
        let mut answers = stream::iter(&self.found)
            .map(|agent| async move { (agent.node(), whole(agent, request).await) })
            .buffered(AT_ONCE);
        let mut answered = false;
        while let Some((node, answer)) = answers.next().await {
            match answer {
                Ok(responses) => {
                    answered = true;
                    responses.into_iter().try_for_each(&mut sink)?;
                }
                Err(error) => complain(node, &error),
            }
        }
        if !answered {
            bail!(nobody());
        }
        Ok(())
    }

    /// Asks one, whichever answers, and says which.
    ///
    /// # Errors
    /// When none answers.
    pub(crate) async fn ask_any(
        mut self,
        request: &Request,
    ) -> anyhow::Result<(Option<String>, Vec<Response>)> {
        if let ([agent], []) = (self.found.as_slice(), self.missing.as_slice()) {
            return Ok((agent.node().map(str::to_owned), whole(agent, request).await?));
        }
        for agent in &self.found {
            match whole(agent, request).await {
                Ok(responses) => return Ok((agent.node().map(str::to_owned), responses)),
                Err(error) if error.downcast_ref::<Unreachable>().is_some() => complain(agent.node(), &error),
                // It has answered: another will not say anything else.
                Err(error) => return Err(error),
            }
        }
        self.complain();
        bail!(nobody())
    }
}

/// None of several agents answered, for reasons that were told.
pub(crate) fn nobody() -> Unreachable {
    Unreachable::Cluster("no agent could be reached".to_owned())
}

async fn whole(agent: &Agent, request: &Request) -> anyhow::Result<Vec<Response>> {
    let mut responses = Vec::new();
    agent
        .ask(request, |response| {
            responses.push(response);
            Ok(())
        })
        .await?;
    Ok(responses)
}
