//! `weir flows`.

use std::io::Write as _;

use clap::{Args, ValueEnum};
use weir_types::{
    FlowVerdict,
    api::{FlowsRequest, Request, Response},
};

use weir::{
    line::compact,
    style::{DIM, WARN, clean, clean_json, paint},
};

use crate::{
    agent::Agent,
    cluster::Agents,
    merge::{self, Item},
};

/// Shows recorded flows, and goes on with new ones if asked.
///
/// Of a cluster those of all nodes, recorded ones ordered by time; each line begins with the node that recorded it.
/// A connection between two nodes is recorded by both: '->' is the client's record, '=>' the server's.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    weir flows --follow\n  \
    weir flows --last 50 --pod shop/web-0\n  \
    weir flows --follow --verdict denied --verdict failed\n  \
    weir flows --node worker-1 --follow\n  \
    weir flows --namespace shop --port 443 -o json | jq .reason\n\n\
    Values of one option are alternatives; different options must all match.")]
pub(crate) struct Flows {
    /// Go on with new flows until interrupted.
    #[arg(long, short)]
    follow: bool,
    /// Only flows with this pod at either end: NAME or NAMESPACE/NAME.
    #[arg(long, value_name = "POD")]
    pod: Vec<String>,
    /// Only flows with this namespace at either end.
    #[arg(long, short, value_name = "NAMESPACE")]
    namespace: Vec<String>,
    /// Only flows with this verdict.
    #[arg(long, value_enum)]
    verdict: Vec<Verdict>,
    /// Only flows to this port.
    #[arg(long, value_name = "PORT")]
    port: Vec<u16>,
    /// At most this many recorded flows, the newest; with --follow none unless given.
    #[arg(long, value_name = "N")]
    last: Option<u64>,
    /// How to print.
    #[arg(long, visible_alias = "format", short, value_enum, default_value = "compact")]
    output: Output,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Verdict {
    Forwarded,
    Denied,
    Failed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// One line a flow, for people.
    Compact,
    /// One JSON object a line.
    Json,
}

impl From<Verdict> for FlowVerdict {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Forwarded => Self::Forwarded,
            Verdict::Denied => Self::Denied,
            Verdict::Failed => Self::Failed,
        }
    }
}

impl Flows {
    /// Shows the flows of these agents as one stream.
    pub(crate) async fn run(self, agents: Agents) -> anyhow::Result<()> {
        let output = self.output;
        let request = FlowsRequest {
            last: self.last.or(self.follow.then_some(0)),
            follow: self.follow,
            pods: self.pod,
            namespaces: self.namespace,
            verdicts: self.verdict.into_iter().map(Into::into).collect(),
            ports: self.port,
        };
        let mut out = anstream::stdout();
        // Of several nodes each line says which.
        let names = agents.found.iter().filter_map(Agent::node).map(str::len);
        let width = names
            .max()
            .filter(|_| agents.found.len() + agents.missing.len() > 1);
        let mut show = |item: Item| -> anyhow::Result<()> {
            match (item, output) {
                (Item::Flow(flow), Output::Compact) => {
                    if let Some(width) = width {
                        write!(
                            out,
                            "{} ",
                            paint(DIM, format_args!("{:<width$}", clean(&flow.node)))
                        )?;
                    }
                    writeln!(out, "{}", compact(&flow))?;
                }
                (Item::Flow(flow), Output::Json) => {
                    writeln!(out, "{}", clean_json(&serde_json::to_string(&flow)?))?;
                }
                (Item::Lost(node, count), Output::Compact) => {
                    let node = node_of(&node);
                    writeln!(
                        out,
                        "{}",
                        paint(
                            WARN,
                            format_args!("-- {count} flow events{node} were lost here --")
                        )
                    )?;
                }
                // On the error stream, so that each line of the output stays a flow.
                (Item::Lost(node, count), Output::Json) => {
                    anstream::eprintln!("weir: {count} flow events{} were lost here", node_of(&node));
                }
            }
            out.flush()?;
            Ok(())
        };
        if let ([agent], []) = (agents.found.as_slice(), agents.missing.as_slice()) {
            let node = agent.node().unwrap_or_default();
            return agent
                .ask(&Request::Flows(request), |response| match response {
                    Response::Flow(flow) => show(Item::Flow(Box::new(flow))),
                    Response::Lost(count) => show(Item::Lost(node.to_owned(), count)),
                    _ => Ok(()),
                })
                .await;
        }
        merge::flows(agents, request, show).await
    }
}

fn node_of(node: &str) -> String {
    if node.is_empty() {
        String::new()
    } else {
        format!(" of {}", clean(node))
    }
}
