//! `weir workloads`.

use std::io::Write as _;

use clap::Args;
use weir::style::clean_json;
use weir_types::api::{Request, Response, WorkloadStatus};

use crate::{
    cluster::Agents,
    status::{Output, cells, table},
};

/// Shows the workloads that the agent knows.
///
/// Of a cluster one agent is asked, whichever answers: all know the same.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  weir workloads\n  weir workloads --namespace shop\n  weir workloads -o json | jq -r .identity"
)]
pub(crate) struct Workloads {
    /// Only this namespace.
    #[arg(long, short, value_name = "NAMESPACE")]
    namespace: Vec<String>,
    /// How to print; JSON is one object a line.
    #[arg(long, visible_alias = "format", short, value_enum, default_value = "text")]
    output: Output,
}

impl Workloads {
    /// Shows what one of these agents knows: all know the same.
    pub(crate) async fn run(self, agents: Agents) -> anyhow::Result<()> {
        let (asked, responses) = agents.ask_any(&Request::Workloads).await?;
        let workloads = responses.into_iter().filter_map(|response| match response {
            Response::Workload(workload) => Some(workload),
            _ => None,
        });
        let wanted = |workload: &WorkloadStatus| {
            self.namespace.is_empty() || self.namespace.contains(&workload.namespace)
        };
        let workloads: Vec<WorkloadStatus> = workloads.filter(wanted).collect();
        let mut out = anstream::stdout();
        if self.output == Output::Json {
            for workload in &workloads {
                writeln!(out, "{}", clean_json(&serde_json::to_string(workload)?))?;
            }
            return Ok(());
        }
        if workloads.is_empty() {
            writeln!(out, "No workloads.")?;
            return Ok(());
        }
        let mut table = table(&["WORKLOAD", "IDENTITY", "ADDRESSES", "NODE", "TUNNEL", "SERVICES"]);
        for workload in workloads {
            let addresses: Vec<String> = workload.addresses.iter().map(ToString::to_string).collect();
            // Of a cluster, "here" is nowhere.
            let node = if workload.local && asked.is_none() {
                format!("{} (here)", workload.node)
            } else {
                workload.node
            };
            table.add_row(cells([
                format!("{}/{}", workload.namespace, workload.name),
                workload.identity.to_string(),
                addresses.join(" "),
                node,
                workload.tunnel,
                workload.services.join(" "),
            ]));
        }
        writeln!(out, "{}", table.trim_fmt())?;
        Ok(())
    }
}
