//! The log.

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

/// What is logged, and how.
#[derive(Debug, Clone, Args)]
pub struct LogOptions {
    /// What to log: a level, or as `weir_agent=debug,weir_tunnel=trace`.
    #[arg(long, value_name = "FILTER", default_value = "info", env = "WEIR_LOG")]
    log: String,
    /// How to log.
    #[arg(long, value_enum, default_value = "text")]
    log_format: LogFormat,
}

/// Libraries that warn of what their callers deal with, and say themselves where it matters; unless the filter names them.
const QUIET: &str = "kube_client::client=error";

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

impl LogOptions {
    /// Begins to log, on standard error.
    ///
    /// # Errors
    /// When the filter is none.
    pub fn start(&self) -> anyhow::Result<()> {
        let filter = EnvFilter::try_new(format!("{QUIET},{}", self.log))
            .with_context(|| format!("--log: expected a level or a filter, not '{}'", self.log))?;
        let log = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr);
        match self.log_format {
            LogFormat::Text => log
                .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
                .init(),
            LogFormat::Json => log.json().init(),
        }
        Ok(())
    }
}
