//! `weir flows`: a client of the Hubble API.

mod file;
mod filters;
mod output;
mod server;
pub(crate) mod values;

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use jiff::Timestamp;
use weir_hubble::convert::timestamp;
use weir_proto::observer::GetFlowsRequest;

use crate::{
    cluster::Agents,
    merge::{self, Item},
    several::complain,
    target::Usage,
};
pub(crate) use filters::Filters;
use output::Printer;
pub(crate) use server::{Given, ServerOptions};

/// Shows recorded flows, and goes on with new ones if asked.
///
/// Of a cluster those of all nodes, recorded ones ordered by time; each line begins with the node that recorded it.
/// A connection between two nodes is recorded by both: '->' is the client's record, '=>' the server's.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    weir flows --follow\n  \
    weir flows --last 50 --pod shop/web\n  \
    weir flows --follow --verdict denied --verdict failed\n  \
    weir flows --since 10m --from-namespace shop --not --to-port 53 -o table\n  \
    weir flows --from-label 'app=web,tier!=test' --to-service shop/api\n  \
    weir flows --node worker-1 --follow\n  \
    weir flows --namespace shop --port 443 -o json | jq .reason\n  \
    weir flows --last 10000 -o jsonpb > flows.json; weir flows --input-file flows.json --verdict denied\n  \
    weir flows --server relay.weir-system.svc:4245 --tls-ca ca.pem --tls-cert me.pem --tls-key me.key\n\n\
    Values of one option are alternatives; different options must all match.")]
pub(crate) struct Flows {
    /// Go on with new flows until interrupted.
    #[arg(long, short)]
    follow: bool,
    /// At most this many recorded flows, the newest; with --follow none unless given.
    #[arg(long, value_name = "N", conflicts_with = "first")]
    last: Option<u64>,
    /// At most this many recorded flows, the oldest.
    #[arg(long, value_name = "N", conflicts_with = "follow")]
    first: Option<u64>,
    /// Only flows from then on: how long ago, as 5m, or a time.
    #[arg(long, value_name = "TIME", value_parser = values::time)]
    since: Option<Timestamp>,
    /// Only flows until then.
    #[arg(long, value_name = "TIME", value_parser = values::time)]
    until: Option<Timestamp>,
    #[command(flatten)]
    filters: Filters,
    /// How to print.
    #[arg(long, visible_alias = "format", short, value_enum, default_value = "compact")]
    output: Output,
    /// Read flows that were saved with -o jsonpb or -o json, instead of asking; '-' is standard input.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["follow", "server"])]
    input_file: Option<PathBuf>,
    #[command(flatten)]
    server: ServerOptions,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// One line a flow, for people.
    Compact,
    /// Columns.
    Table,
    /// One JSON object a line, with all that Weir knows.
    Json,
    /// One JSON object a line, as Hubble's tools write and read them.
    Jsonpb,
    /// A line for each field.
    Dict,
}

impl Flows {
    /// Whether agents are to be found: neither a file nor a server is named.
    pub(crate) fn asks_agents(&self) -> bool {
        self.input_file.is_none() && self.server.server.is_none()
    }

    /// Shows flows of a file, or of the server that is named.
    pub(crate) async fn run_elsewhere(self) -> anyhow::Result<()> {
        let request = self.request()?;
        if let Some(file) = &self.input_file {
            let mut printer = Printer::new(self.output, None);
            return file::read(file, &request, |item| printer.show(&item));
        }
        let mut responses = self.server.flows(request).await?;
        // A relay tells of several nodes.
        let mut printer = Printer::new(self.output, Some(0));
        while let Some(response) = responses
            .message()
            .await
            .map_err(|status| crate::agent::refusal(&status))?
        {
            if let Some(item) = Item::of(response, "") {
                printer.show(&item)?;
            }
        }
        Ok(())
    }

    /// Shows the flows of these agents as one stream.
    pub(crate) async fn run(self, agents: Agents) -> anyhow::Result<()> {
        let request = self.request()?;
        // Of several nodes each line says which.
        let names = agents
            .found
            .iter()
            .filter_map(crate::agent::Agent::node)
            .map(str::len);
        let width = names
            .max()
            .filter(|_| agents.found.len() + agents.missing.len() > 1);
        let mut printer = Printer::new(self.output, width);
        merge::flows(agents, request, |item| printer.show(&item)).await
    }

    fn request(&self) -> Result<GetFlowsRequest, Usage> {
        if self
            .since
            .zip(self.until)
            .is_some_and(|(since, until)| until < since)
        {
            return Err(Usage("--until is before --since".to_owned()));
        }
        let zero = [("--last", self.last), ("--first", self.first)];
        if let Some((name, _)) = zero.iter().find(|(_, count)| *count == Some(0)) {
            // With --follow it asks for new ones only, as leaving it out does.
            if !(self.follow && *name == "--last") {
                return Err(Usage(format!("{name} 0 asks for nothing")));
            }
        }
        Ok(GetFlowsRequest {
            number: self.first.or(self.last).unwrap_or_default(),
            first: self.first.is_some(),
            follow: self.follow,
            since: self.since.map(timestamp),
            until: self.until.map(timestamp),
            whitelist: self.filters.allow.clone(),
            blacklist: self.filters.deny.clone(),
            ..GetFlowsRequest::default()
        })
    }
}

/// Says of a node what the relay said of it.
pub(crate) fn say(text: &str) {
    complain(None, &anyhow::anyhow!("{text}"));
}
