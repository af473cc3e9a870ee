//! `weir advise`: what recorded flows say of the next steps of a roll-out.
//!
//! Records become a [`record::Record`], and that, with what agents say of themselves, becomes a [`report::Advice`]: functions
//! without input and output. [`input`] and [`live`] read, [`text`] and [`manifest`] write.

mod cost;
mod input;
mod layers;
mod live;
mod manifest;
mod policy;
#[cfg(test)]
mod properties;
mod record;
mod report;
mod state;
mod strict;
#[cfg(test)]
mod tests;
mod text;

use std::{io::Write as _, path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};
use jiff::Timestamp;
use weir::style::clean_json;

use self::{
    record::Record,
    report::{Advice, Basis, NodeBasis},
    state::State,
};
use crate::{
    audit::span,
    cluster::Agents,
    target::{Options, Usage},
};

/// A record of less than this lacks what runs once a day.
const SHORT: i64 = 24 * 3600;

/// Says from recorded flows what could be done next: what could go strict, the least policies, what needs layer 7, what it costs.
///
/// Without a word, all of it. Nothing is changed: policies are written, and are dry runs.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    weir advise                                       all of it, to read\n  \
    weir advise strict --namespace shop               who would break if shop went strict\n  \
    weir advise policy -o yaml | kubectl apply -f -   the least policies, as dry runs\n  \
    weir flows -o json > flows.json; weir advise --input-file flows.json\n  \
    hubble observe -o jsonpb --last 10000 | weir advise policy --input-file -\n  \
    weir advise cost -o json | jq .cost.total\n\n\
    How good it is depends on the record: what was not seen is not in it. Its span, and what was lost of it, is said first.")]
pub(crate) struct Advise {
    /// What about; all of it if left out.
    #[arg(value_enum)]
    what: Option<What>,
    /// Only connections to this namespace.
    #[arg(long, short, value_name = "NAMESPACE")]
    namespace: Vec<String>,
    /// Only records of this time until now: 90m, 24h, 7d [else: all there are].
    #[arg(long, value_name = "TIME", value_parser = span)]
    since: Option<Duration>,
    /// Saved flows instead of the agents': one JSON object a line, of 'weir flows -o json' or 'hubble observe -o jsonpb'; '-' is
    /// the standard input.
    #[arg(long, value_name = "FILE")]
    input_file: Vec<PathBuf>,
    /// How to print; 'policy' in YAML is what kubectl applies.
    #[arg(long, visible_alias = "format", short, value_enum, default_value = "text")]
    output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// Which namespaces could refuse plaintext, and which clients would break.
    Strict,
    /// The least AuthorizationPolicies that allow what was seen.
    Policy,
    /// Which workloads need layer 4 only, and which ask for a waypoint.
    Layers,
    /// What the agents take: CPU time and memory.
    Cost,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    Text,
    /// For programs.
    Json,
    /// For programs, and for kubectl.
    Yaml,
}

impl Advise {
    /// Whether agents are asked, and not files read.
    ///
    /// # Errors
    /// When both are said, or a file is to say what none does.
    pub(crate) fn asks_agents(&self, options: &Options) -> Result<bool, Usage> {
        if self.input_file.is_empty() {
            return Ok(true);
        }
        let whom = [
            (options.socket.is_some(), "--socket"),
            (options.node.is_some(), "--node"),
            (options.all_nodes, "--all-nodes"),
            (options.context.is_some(), "--context"),
            (options.kubeconfig.is_some(), "--kubeconfig"),
        ];
        if let Some((_, name)) = whom.into_iter().find(|(given, _)| *given) {
            return Err(Usage(format!(
                "--input-file asks nobody: {name} says nothing here"
            )));
        }
        if self.what == Some(What::Cost) {
            return Err(Usage(
                "flows do not say what the agents take: leave --input-file out, to ask running ones"
                    .to_owned(),
            ));
        }
        Ok(false)
    }

    /// Reads, and prints what comes of it. `root` is the namespace whose policies concern all.
    pub(crate) async fn run(self, root: &str, agents: Option<Agents>) -> anyhow::Result<()> {
        let now = Timestamp::now();
        let since = self.since.map_or(Timestamp::MIN, |since| {
            // Further back than there is time is all of it.
            now.checked_sub(since).unwrap_or(Timestamp::MIN)
        });
        let mut record = Record::new(since, self.namespace.clone());
        let mut state = State::default();
        match agents {
            Some(agents) => {
                state = live::state(&agents, now).await;
                record.learn(&state.workloads);
                if self.what == Some(What::Cost) {
                    live::answered(&state)?;
                } else {
                    live::flows(agents, &mut record).await?;
                }
            }
            None => input::files(&self.input_file, &mut record)?,
        }
        let advice = advice(&record, &state, root, self.what);
        let text = match (self.output, &advice.policy) {
            (Output::Text, _) => text::text(&advice),
            (Output::Json, _) => {
                let json = serde_json::to_string_pretty(&advice)?;
                format!("{}\n", clean_json(&json))
            }
            (Output::Yaml, Some(policy)) if self.what == Some(What::Policy) => {
                manifest::manifests(&advice.basis, policy)?
            }
            (Output::Yaml, _) => clean_json(&serde_saphyr::to_string(&advice)?).into_owned(),
        };
        let mut out = anstream::stdout();
        out.write_all(text.as_bytes())?;
        out.flush()?;
        Ok(())
    }
}

/// What is advised of what was recorded.
fn advice(record: &Record, state: &State, root: &str, what: Option<What>) -> Advice {
    let wanted = |one: What| what.is_none_or(|what| what == one);
    Advice {
        basis: basis(record, state),
        strict: wanted(What::Strict).then(|| strict::strict(record, state)),
        layers: wanted(What::Layers).then(|| layers::layers(record, state, root)),
        policy: wanted(What::Policy).then(|| policy::policy(record, state, root)),
        cost: wanted(What::Cost).then(|| cost::cost(state)),
    }
}

fn basis(record: &Record, state: &State) -> Basis {
    let span = record.span();
    let seconds = span.map_or(0, |(from, until)| until.as_second() - from.as_second());
    let mut weak = Vec::new();
    if record.flows == 0 {
        weak.push("nothing was recorded: it is made from nothing".to_owned());
    } else if seconds < SHORT {
        weak.push(format!(
            "the record spans {}: what runs once a day or less is not in it",
            text::span(seconds)
        ));
    }
    for (name, node) in &record.nodes {
        let own = node.from.zip(node.until);
        let own = own.map_or(0, |(from, until)| until.as_second() - from.as_second());
        // The newest records push the oldest out: a busy node's go back less far.
        if own < SHORT && seconds >= SHORT {
            weak.push(format!("the records of {name} span {} only", text::span(own)));
        }
        if node.lost > 0 {
            weak.push(format!(
                "{} events of {name} were lost, says its agent",
                node.lost
            ));
        }
        if node.missing > 0 {
            weak.push(format!(
                "{} records of {name} are missing: lost, or left out when they were saved",
                node.missing
            ));
        }
        if node.restarts > 0 {
            weak.push(format!(
                "the agent of {name} began anew {} times: what it recorded before may be gone",
                node.restarts
            ));
        }
        if node.disordered > 0 {
            weak.push(format!(
                "{} records of {name} came after later ones: counts may be too high",
                node.disordered
            ));
        }
    }
    if record.left_out > 0 {
        weak.push(format!(
            "{} records were not counted, of too many different clients: --namespace or --since make fewer of them",
            record.left_out
        ));
    }
    weak.extend(
        state
            .missing
            .iter()
            .map(|missing| format!("not asked: {missing}")),
    );
    let nodes = record.nodes.iter().map(|(name, node)| NodeBasis {
        node: name.clone(),
        flows: node.flows,
        from: node.from,
        until: node.until,
        missing: node.missing,
        lost: node.lost,
    });
    Basis {
        flows: record.flows,
        from: span.map(|(from, _)| from),
        until: span.map(|(_, until)| until),
        seconds,
        nodes: nodes.collect(),
        outside: record.outside.connections(),
        others: record.others,
        weak,
    }
}
