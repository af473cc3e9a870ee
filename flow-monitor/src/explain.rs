//! `weir explain`.

use std::io::{self, Write as _};

use clap::{Args, ValueEnum};
use jiff::Timestamp;
use weir::style::{BAD, BOLD, DIM, GOOD, WARN, clean, clean_json, paint};
use weir_types::{
    FlowVerdict,
    api::{Request, Response},
    explain::{
        CertificateState, ExplainRequest, ExplainedCandidate, ExplainedEnd, ExplainedPath, Explanation,
    },
};

use crate::cluster::Agents;

/// Says what would become of a connection, and why, without sending anything.
///
/// Of a cluster, the agent of the client's node is asked: it knows how its pods reach others, and what its kernel
/// remembers. The agent of another node (--node, --socket) answers too, by the same policies, and says what it does not
/// know.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    weir explain --from shop/web --to shop/api --port 8080     a pod to a pod or service\n  \
    weir explain --from web --to svc/shop/api --port 80        the service, where a pod has that name too\n  \
    weir explain --from web --to 192.0.2.1 --port 443          a pod to an address\n  \
    weir explain --from 192.0.2.1 --to shop/api --port 8080    from outside of the mesh\n  \
    weir explain --from web --to api --port 80 --format json | jq .verdict\n\n\
    Exit codes: 0 it would be let through, 4 it would not, 1 the question cannot be answered, 3 no agent.")]
pub(crate) struct Explain {
    /// Who connects: a pod ('namespace/name', 'name' or uid) or an address.
    #[arg(long, value_name = "POD")]
    from: String,
    /// Where to: a pod, a service ('svc/' before it if a pod has that name too), or an address.
    #[arg(long, value_name = "POD|SERVICE|IP")]
    to: String,
    /// The port that is connected to.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// How to print.
    #[arg(
        long,
        visible_alias = "output",
        short = 'o',
        value_enum,
        default_value = "text"
    )]
    format: Format,
}

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Text,
    /// JSON.
    Json,
}

impl Explain {
    /// Who connects.
    pub(crate) fn from(&self) -> &str {
        &self.from
    }

    /// Whether the connection would be let through, as one of these agents says.
    pub(crate) async fn run(self, agents: Agents) -> anyhow::Result<bool> {
        let request = Request::Explain(ExplainRequest {
            from: self.from,
            to: self.to,
            port: self.port,
        });
        let (_, responses) = agents.ask_any(&request).await?;
        let mut forwarded = false;
        for response in responses {
            let Response::Explanation(explanation) = response else {
                continue;
            };
            forwarded = explanation.verdict == FlowVerdict::Forwarded;
            let mut out = anstream::stdout();
            match self.format {
                Format::Json => {
                    let json = serde_json::to_string_pretty(&explanation)?;
                    writeln!(out, "{}", clean_json(&json))?;
                }
                Format::Text => print(&mut out, &explanation)?,
            }
        }
        Ok(forwarded)
    }
}

fn print(out: &mut impl io::Write, explanation: &Explanation) -> io::Result<()> {
    let to = match &explanation.service {
        Some(service) => format!("service {} {}", clean(service), explanation.destination),
        None => match explanation.candidates.first() {
            Some(first) => format!("{}:{}", name(&first.end), explanation.destination.port()),
            None => explanation.destination.to_string(),
        },
    };
    let from = name(&explanation.source);
    writeln!(out, "{} -> {}", paint(BOLD, from), paint(BOLD, to))?;
    if explanation.verdict == FlowVerdict::Forwarded {
        writeln!(out, "{}", paint(GOOD, "would be let through"))?;
    } else {
        writeln!(
            out,
            "{}  {}: {}",
            paint(BAD, "would be refused"),
            explanation.reason,
            explanation.reason.explanation()
        )?;
    }
    writeln!(out, "\n{}", paint(BOLD, "Client"))?;
    end(out, &explanation.source)?;
    let title = if explanation.service.is_some() {
        "Endpoint"
    } else {
        "Destination"
    };
    for candidate in &explanation.candidates {
        writeln!(out, "\n{} {}", paint(BOLD, title), candidate.address)?;
        end(out, &candidate.end)?;
        describe(out, candidate)?;
    }
    if let Some(remembered) = &explanation.remembered {
        writeln!(
            out,
            "\n{}\n  {}",
            paint(BOLD, "The kernel remembers"),
            clean(remembered)
        )?;
    }
    writeln!(out, "\n{}", paint(BOLD, "Step by step"))?;
    for (number, step) in (1..).zip(&explanation.steps) {
        writeln!(
            out,
            "  {number}. {}: {}",
            clean(&step.component),
            clean(&step.does)
        )?;
    }
    writeln!(
        out,
        "\n{}",
        paint(
            DIM,
            format_args!(
                "By configuration {} of {}.",
                explanation.generation,
                clean(&explanation.node)
            )
        )
    )
}

fn describe(out: &mut impl io::Write, candidate: &ExplainedCandidate) -> io::Result<()> {
    let path = match candidate.path {
        ExplainedPath::Direct => paint(GOOD, "direct"),
        ExplainedPath::Tunnel => paint(GOOD, "tunnel (mutual TLS)"),
        ExplainedPath::Plaintext => paint(WARN, "plaintext, without identity"),
        ExplainedPath::Outside => paint(WARN, "outside of the mesh, plaintext"),
        ExplainedPath::Itself => paint(GOOD, "the pod itself"),
    };
    row(out, "path", &format!("{path}: {}", clean(&candidate.why)))?;
    if let Some(mode) = &candidate.end.mode {
        row(out, "mode", &clean(mode))?;
    }
    if !candidate.policies.is_empty() {
        row(out, "policies", &clean(&candidate.policies.join(", ")))?;
    }
    let by = candidate
        .policy
        .as_ref()
        .map(|policy| clean(&policy.to_string()).into_owned());
    let verdict = match (candidate.verdict, by) {
        (FlowVerdict::Forwarded, Some(by)) => format!("{} by {by}", paint(GOOD, "allowed")),
        (FlowVerdict::Forwarded, None) => format!("{}: no policy forbids it", paint(GOOD, "allowed")),
        (_, Some(by)) => format!("{} by {by} ({})", paint(BAD, "refused"), candidate.reason),
        (_, None) => format!("{} ({})", paint(BAD, "refused"), candidate.reason),
    };
    let detail = candidate
        .detail
        .as_ref()
        .map(|detail| format!(": {}", clean(detail)));
    row(
        out,
        "verdict",
        &format!("{verdict}{}", detail.unwrap_or_default()),
    )?;
    if let Some(policy) = &candidate.dry_run {
        let text = format!(
            "{} by {}",
            paint(WARN, "would be refused"),
            clean(&policy.to_string())
        );
        row(out, "dry-run", &text)?;
    }
    Ok(())
}

fn end(out: &mut impl io::Write, end: &ExplainedEnd) -> io::Result<()> {
    let place = match (&end.node, end.enrolled) {
        (Some(node), Some(true)) => format!(", enrolled on {}", clean(node)),
        (Some(node), Some(false)) => format!(", on {} and {}", clean(node), paint(BAD, "not enrolled")),
        (Some(node), None) => format!(", on {}", clean(node)),
        (None, _) => String::new(),
    };
    let address = match &end.workload {
        Some(workload) => format!("{} {}", clean(workload), end.address),
        None => end.address.to_string(),
    };
    row(out, "workload", &format!("{address}{place}"))?;
    let identity = match &end.identity {
        Some(identity) => clean(&identity.to_string()).into_owned(),
        None => "none: outside of the mesh".to_owned(),
    };
    row(out, "identity", &identity)?;
    row(out, "certificate", &certificate(&end.certificate))
}

fn certificate(state: &CertificateState) -> String {
    let seen = |seen: &Option<Timestamp>| seen.map_or_else(String::new, |seen| format!(" (seen {seen:.0})"));
    match state {
        CertificateState::None => "none".to_owned(),
        CertificateState::Unknown => "unknown: not seen since this agent started".to_owned(),
        CertificateState::Valid {
            not_after,
            seen: at,
            problem,
        } => {
            let problem = problem.as_ref().map(|problem| {
                format!(
                    "; {}",
                    paint(WARN, format_args!("renewal fails: {}", clean(problem)))
                )
            });
            format!(
                "{} until {not_after:.0}{}{}",
                paint(GOOD, "valid"),
                seen(at),
                problem.unwrap_or_default()
            )
        }
        CertificateState::Expired { not_after, seen: at } => {
            format!("{} at {not_after:.0}{}", paint(BAD, "expired"), seen(at))
        }
        CertificateState::Missing { problem } => format!("{}: {}", paint(BAD, "missing"), clean(problem)),
    }
}

fn name(end: &ExplainedEnd) -> String {
    match &end.workload {
        Some(workload) => clean(workload).into_owned(),
        None => end.address.to_string(),
    }
}

fn row(out: &mut impl io::Write, label: &str, text: &str) -> io::Result<()> {
    writeln!(out, "  {label:<12} {text}")
}
