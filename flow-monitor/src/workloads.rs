//! `weir workloads`.

use std::io::Write as _;

use clap::Args;
use weir::style::clean_json;
use weir_types::api::{Request, Response};

use crate::{
    client::Agent,
    status::{Output, cells, table},
};

/// Shows the workloads that the agent knows.
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
    pub(crate) fn run(self, agent: &Agent) -> anyhow::Result<()> {
        let mut workloads = Vec::new();
        agent.ask(&Request::Workloads, |response| {
            if let Response::Workload(workload) = response
                && (self.namespace.is_empty() || self.namespace.contains(&workload.namespace))
            {
                workloads.push(workload);
            }
            Ok(())
        })?;
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
            let node = if workload.local {
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
