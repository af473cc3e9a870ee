//! Flows that are written somewhere as they are recorded. Nothing waits for a slow disk or reader: what was overwritten in the
//! ring before it could be written is counted.

mod file;
mod line;
mod names;
mod otlp;

use std::{
    io::{self, Write as _},
    num::NonZeroU32,
    thread,
};

use tokio::runtime::Handle;
use weir_hubble::Origin;
use weir_types::{Flow, FlowEvent, FlowVerdict};

use crate::{
    config::{AccessLogConfig, AccessLogMode, ExportConfig, ExportFormat, FlowsConfig, LogFormat},
    flows::FlowLog,
    metrics::Metrics,
};
use file::RotatingFile;

pub use otlp::About;

/// Records that are written before it is looked for new ones.
const PAGE: usize = 512;

/// Where records are written.
trait Target: Send + 'static {
    /// Its name, for metrics and logs.
    const NAME: &'static str;

    /// Writes some.
    fn write(&mut self, flows: &[std::sync::Arc<Flow>]) -> io::Result<()>;
}

/// Starts what the configuration asks for. Ends with the agent.
///
/// # Errors
/// When the file cannot be opened, or no thread can be made.
pub fn start(
    config: &FlowsConfig,
    flows: &FlowLog,
    metrics: &Metrics,
    origin: &Origin,
    about: About,
) -> io::Result<()> {
    for name in [Export::NAME, AccessLog::NAME, otlp::LOGS, otlp::SPANS] {
        // Zero is a number, too.
        metrics.exported.with_label_values(&[name]);
        metrics.export_dropped.with_label_values(&[name]);
    }
    if let Some(export) = &config.export {
        let file = Export::open(export, origin.clone())
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", export.file.display())))?;
        follow(file, flows.clone(), metrics.clone())?;
    }
    if config.access_log.mode != AccessLogMode::Off {
        follow(AccessLog::new(config.access_log), flows.clone(), metrics.clone())?;
    }
    if let Some(config) = &config.otlp {
        otlp::start(config, flows, metrics, about);
    }
    Ok(())
}

/// Writes what is recorded from now on, on a thread of its own: a disk may be slow.
fn follow<T: Target>(mut target: T, flows: FlowLog, metrics: Metrics) -> io::Result<()> {
    let runtime = Handle::current();
    let dropped = metrics.export_dropped.with_label_values(&[T::NAME]);
    let written = metrics.exported.with_label_values(&[T::NAME]);
    let mut at = flows.recorded();
    let mut newest = flows.watch();
    let work = move || {
        let mut is_failing = false;
        loop {
            // Ends with the log, or with the runtime.
            if runtime.block_on(newest.wait_for(|count| *count > at)).is_err() {
                return;
            }
            let page = flows.page(at, PAGE);
            at = page.next;
            dropped.inc_by(page.lost);
            let count = page.flows.len() as u64;
            match target.write(&page.flows) {
                Ok(()) => {
                    written.inc_by(count);
                    if std::mem::take(&mut is_failing) {
                        tracing::info!(to = T::NAME, "flows are written again");
                    }
                }
                Err(error) => {
                    dropped.inc_by(count);
                    if !std::mem::replace(&mut is_failing, true) {
                        tracing::error!(to = T::NAME, %error, "flows cannot be written; they are counted as dropped");
                    }
                }
            }
        }
    };
    thread::Builder::new()
        .name(format!("weir-{}", T::NAME))
        .spawn(work)?;
    Ok(())
}

/// The file with every record.
struct Export {
    file: RotatingFile,
    format: ExportFormat,
    origin: Origin,
    lines: Vec<u8>,
}

impl Export {
    fn open(config: &ExportConfig, origin: Origin) -> io::Result<Self> {
        Ok(Self {
            file: RotatingFile::open(&config.file, u64::from(config.max_mib) << 20, config.keep)?,
            format: config.format,
            origin,
            lines: Vec::new(),
        })
    }
}

impl Target for Export {
    const NAME: &'static str = "file";

    fn write(&mut self, flows: &[std::sync::Arc<Flow>]) -> io::Result<()> {
        self.lines.clear();
        for flow in flows {
            match self.format {
                ExportFormat::Json => serde_json::to_writer(&mut self.lines, &**flow)?,
                ExportFormat::Jsonpb => {
                    let line = weir_hubble::json::flow_to_line(flow, &self.origin);
                    self.lines.extend(line.map_err(io::Error::other)?.bytes());
                }
            }
            self.lines.push(b'\n');
        }
        self.file.write(&self.lines)
    }
}

/// Lines on the standard output.
struct AccessLog {
    format: LogFormat,
    /// One in so many of those that were let through.
    sample: NonZeroU32,
    seen: u32,
    lines: Vec<u8>,
}

impl AccessLog {
    fn new(config: AccessLogConfig) -> Self {
        Self {
            format: config.format,
            sample: match config.mode {
                AccessLogMode::Sampled => config.sample,
                AccessLogMode::All | AccessLogMode::Off => NonZeroU32::MIN,
            },
            seen: 0,
            lines: Vec::new(),
        }
    }

    /// A connection is written when it ends: then all is known of it.
    fn wants(&mut self, flow: &Flow) -> bool {
        match flow.event {
            FlowEvent::Open => false,
            FlowEvent::Refused => true,
            FlowEvent::Close if flow.verdict != FlowVerdict::Forwarded => true,
            FlowEvent::Close => {
                let wanted = self.seen == 0;
                self.seen = (self.seen + 1) % self.sample;
                wanted
            }
        }
    }
}

impl Target for AccessLog {
    const NAME: &'static str = "access-log";

    fn write(&mut self, flows: &[std::sync::Arc<Flow>]) -> io::Result<()> {
        self.lines.clear();
        for flow in flows {
            if self.wants(flow) {
                match self.format {
                    LogFormat::Text => self.lines.extend(line::text(flow).bytes()),
                    LogFormat::Json => serde_json::to_writer(&mut self.lines, &**flow)?,
                }
                self.lines.push(b'\n');
            }
        }
        let mut out = io::stdout().lock();
        out.write_all(&self.lines)?;
        out.flush()
    }
}

#[cfg(test)]
mod tests;
