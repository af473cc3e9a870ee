//! `weir audit`: evidence of what is encrypted, and who may do what.

mod collect;
mod connections;
mod enrolment;
mod markdown;
mod report;
#[cfg(test)]
mod tests;

use std::{fs, io::Write as _, path::PathBuf, time::Duration};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use jiff::Timestamp;
use weir::style::clean_json;

use self::report::Report;
use crate::{cluster::Cluster, target::Options};

/// Writes what a security review asks for: what was encrypted, what was not, and who may do what.
///
/// Of a cluster: versions, what is in the mesh, the connections that the agents recorded, exceptions, certificates and
/// policies. Changes nothing.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    weir audit --out audit.md\n  \
    weir audit --since 7d --namespace shop\n  \
    weir audit --output json --out audit.json; jq -cSj .report audit.json | sha256sum\n\n\
    Exit codes: 0 complete, 1 something could not be asked, 2 wrong usage, 3 the API server cannot be reached.")]
pub(crate) struct Audit {
    /// How far back connections are told: 90m, 24h, 7d. Agents keep their newest records only.
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = span)]
    since: Duration,
    /// Only what concerns this namespace.
    #[arg(long, short, value_name = "NAMESPACE")]
    namespace: Vec<String>,
    /// How to write.
    #[arg(long, visible_alias = "format", short, value_enum, default_value = "markdown")]
    output: Output,
    /// Where to write [else: the standard output].
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Output {
    /// For people.
    Markdown,
    /// For programs, with the SHA-256 of the report.
    Json,
}

/// `90m`, `24h` or `7d`.
pub(crate) fn span(text: &str) -> Result<Duration, String> {
    let wrong = || "expected minutes, hours or days: 90m, 24h, 7d".to_owned();
    let units = [('m', 60), ('h', 3600), ('d', 86_400)];
    let (number, seconds) = units
        .into_iter()
        .find_map(|(unit, seconds)| Some((text.strip_suffix(unit)?, seconds)))
        .ok_or_else(wrong)?;
    let number: u32 = number.parse().map_err(|_| wrong())?;
    Ok(Duration::from_secs(u64::from(number) * seconds))
}

impl Audit {
    /// Whether all was asked that there is.
    pub(crate) async fn run(self, options: &Options) -> anyhow::Result<bool> {
        options.only_cluster()?;
        let cluster = Cluster::new(options).await?;
        let now = Timestamp::now();
        // Further back than there is time is all of it.
        let since = now.checked_sub(self.since).unwrap_or(Timestamp::MIN);
        let collected = collect::collect(&cluster, since, self.namespace, now).await?;
        let report = Report::of(&collected);
        let text = written(&report, self.output)?;
        match &self.out {
            Some(path) => fs::write(path, text).with_context(|| path.display().to_string())?,
            None => {
                let mut out = anstream::stdout();
                out.write_all(text.as_bytes())?;
                out.flush()?;
            }
        }
        for missing in &report.missing {
            let text = format!("incomplete: {}: {}", missing.what, missing.why);
            anstream::eprintln!("weir: {}", weir::style::clean(&text));
        }
        Ok(report.complete)
    }
}

fn written(report: &Report, output: Output) -> anyhow::Result<String> {
    let (value, sum) = report.json()?;
    Ok(match output {
        Output::Markdown => markdown::markdown(report, &sum),
        Output::Json => {
            let json = serde_json::json!({"sha256": sum, "report": value});
            format!("{}\n", clean_json(&serde_json::to_string_pretty(&json)?))
        }
    })
}
