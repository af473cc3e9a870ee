//! The section of recorded flows.

use std::{num::NonZeroU32, path::PathBuf};

use schemars::JsonSchema;
use serde::Deserialize;

use super::OtlpConfig;
use crate::flows::Tracing;

/// Recorded flows.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct FlowsConfig {
    /// Whether flows are recorded. Without, there is nothing to be asked for, and of connections that the agent does not carry
    /// metrics count only those that were refused.
    pub record: bool,
    /// How many flow records are kept, 1 to 1,000,000; about 1 KiB each.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub capacity: u32,
    /// Write every record to a file; off if absent.
    pub export: Option<ExportConfig>,
    /// Write connections to the standard output, one line each.
    pub access_log: AccessLogConfig,
    /// Send records and connections to a collector; off if absent.
    pub otlp: Option<OtlpConfig>,
}

/// A file with every record, one JSON object a line.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExportConfig {
    /// The file, made with mode 0600. Full ones are kept beside it as `FILE.1`, `FILE.2` and so on, the newest first.
    pub file: PathBuf,
    /// How large it may become before the next is begun, in MiB, 1 to 10,000.
    #[serde(default = "default_max_mib")]
    #[schemars(range(min = 1, max = 10_000))]
    pub max_mib: u32,
    /// How many full ones are kept, 0 to 100.
    #[serde(default = "default_keep")]
    #[schemars(range(max = 100))]
    pub keep: u32,
    /// What stands in a line.
    #[serde(default)]
    pub format: ExportFormat,
}

/// What stands in a line of the file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ExportFormat {
    /// A record under Weir's names, as `weir flows -o json` prints it.
    #[default]
    Json,
    /// A record under Hubble's names, as `weir flows -o jsonpb` prints it.
    Jsonpb,
}

/// The access log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AccessLogConfig {
    /// Which connections.
    pub mode: AccessLogMode,
    /// With `mode: sampled` one in so many of those that were let through; refused and failed ones are all written.
    pub sample: NonZeroU32,
    /// What a line looks like.
    pub format: LogFormat,
}

/// Which connections are written to the access log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum AccessLogMode {
    /// None.
    #[default]
    Off,
    /// Some, and all that were refused or failed.
    Sampled,
    /// All.
    All,
}

/// What a line of the access log looks like.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// `name=value`, with a value in quotes where it has other characters than letters, digits and `-._:/[]`.
    #[default]
    Text,
    /// A JSON object.
    Json,
}

impl Default for FlowsConfig {
    fn default() -> Self {
        Self {
            record: true,
            capacity: 16_384,
            export: None,
            access_log: AccessLogConfig::default(),
            otlp: None,
        }
    }
}

impl Default for AccessLogConfig {
    fn default() -> Self {
        Self {
            mode: AccessLogMode::Off,
            sample: NonZeroU32::MIN.saturating_add(99),
            format: LogFormat::Text,
        }
    }
}

fn default_max_mib() -> u32 {
    100
}

fn default_keep() -> u32 {
    5
}

impl FlowsConfig {
    /// Which connections begin a trace; none if no spans are sent.
    #[must_use]
    pub fn tracing(&self) -> Option<Tracing> {
        let otlp = self.otlp.as_ref().filter(|otlp| otlp.spans);
        otlp.map(|otlp| Tracing::new(otlp.sample))
    }

    /// What is wrong with it: the field, and what was expected.
    pub(super) fn check(&self) -> Result<(), (&'static str, &'static str)> {
        let sent = self.export.is_some() || self.otlp.is_some();
        if !self.record && (sent || self.access_log.mode != AccessLogMode::Off) {
            return Err(("flows.record", "true, for an export or an access log"));
        }
        if let Some(otlp) = &self.otlp {
            otlp.check()?;
        }
        let Some(export) = &self.export else { return Ok(()) };
        if !export.file.is_absolute() || export.file.file_name().is_none() {
            return Err(("flows.export.file", "an absolute path of a file"));
        }
        if !(1..=10_000).contains(&export.max_mib) {
            return Err(("flows.export.maxMib", "1 to 10,000"));
        }
        if export.keep > 100 {
            return Err(("flows.export.keep", "0 to 100"));
        }
        Ok(())
    }
}
