//! Flows sent to a collector: records as OTLP's logs, connections as its spans.
//!
//! Nothing on the way of traffic waits for it. What is recorded lies in the ring of flows, from which each of the two takes what
//! comes next as soon as what it took before is done with; what was overwritten meanwhile is counted. One export is under way at
//! a time, of bounded size, and is given up after a bounded time.

mod client;
mod convert;
mod retry;

use std::{sync::Arc, time::Duration};

use prometheus::IntCounter;
use prost::Message;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use weir_types::Flow;

use crate::{
    config::OtlpConfig,
    flows::{FlowLog, Page},
    metrics::Metrics,
};
use client::{Client, ExportError};
use convert::{Logs, Spans};
use retry::{Next, Retry};

pub use convert::About;

/// Names of the two, for metrics and logs.
pub(super) const LOGS: &str = "otlp-logs";
pub(super) const SPANS: &str = "otlp-spans";

/// Records of one export.
const MOST_RECORDS: usize = 512;
/// Bytes of one export's records: collectors take 4 MiB by default, with what stands around them.
const MOST_BYTES: usize = 3 << 20;
/// How long it is waited for more, so that a connection is not an export of its own.
const LINGER: Duration = Duration::from_millis(200);

/// What is made of records and sent.
trait Signal: Send + Sync + 'static {
    /// Its name, for metrics and logs.
    const NAME: &'static str;
    /// What a record becomes.
    type Item: Message + Clone + Default;

    /// What a record becomes; nothing if it is not sent.
    fn item(&self, flow: &Flow) -> Option<Self::Item>;

    /// Sends some. Gives how many of them the collector rejected, and why.
    fn export(
        &self,
        client: &Client,
        items: Vec<Self::Item>,
    ) -> impl Future<Output = Result<(u64, String), ExportError>> + Send;
}

/// What is sent at once.
struct Batch<T> {
    items: Vec<T>,
    /// Of these records, those that were not looked at for want of room.
    untaken: u64,
    /// What is larger than an export may be.
    too_large: u64,
}

/// Sends what is recorded from now on.
struct Exporter<S> {
    signal: S,
    client: Client,
    flows: FlowLog,
    /// Where it goes on in them.
    at: u64,
    sent: IntCounter,
    dropped: IntCounter,
    is_failing: bool,
    is_rejected: bool,
}

/// Starts what the configuration asks for. Ends with the agent.
pub(super) fn start(config: &OtlpConfig, flows: &FlowLog, metrics: &Metrics, about: About) {
    let (client, about) = (Client::new(config), Arc::new(about));
    if config.logs {
        let signal = Logs(about.clone());
        tokio::spawn(Exporter::new(signal, client.clone(), flows, metrics).run());
    }
    if config.spans {
        let signal = Spans(about);
        tokio::spawn(Exporter::new(signal, client, flows, metrics).run());
    }
}

// === impl Batch ===

impl<T: Message> Batch<T> {
    /// As much of a page as one export may have.
    fn new(page: &Page, item: impl Fn(&Flow) -> Option<T>) -> Self {
        let mut batch = Self {
            items: Vec::new(),
            untaken: 0,
            too_large: 0,
        };
        let mut bytes = 0;
        for (number, flow) in page.flows.iter().enumerate() {
            let Some(item) = item(flow) else { continue };
            let length = item.encoded_len();
            if length > MOST_BYTES {
                batch.too_large += 1;
                continue;
            }
            if bytes + length > MOST_BYTES {
                batch.untaken = (page.flows.len() - number) as u64;
                break;
            }
            bytes += length;
            batch.items.push(item);
        }
        batch
    }
}

// === impl Exporter ===

impl<S: Signal> Exporter<S> {
    fn new(signal: S, client: Client, flows: &FlowLog, metrics: &Metrics) -> Self {
        Self {
            signal,
            client,
            at: flows.recorded(),
            flows: flows.clone(),
            sent: metrics.exported.with_label_values(&[S::NAME]),
            dropped: metrics.export_dropped.with_label_values(&[S::NAME]),
            is_failing: false,
            is_rejected: false,
        }
    }

    async fn run(mut self) {
        let mut newest = self.flows.watch();
        loop {
            // Ends with the log.
            if newest.wait_for(|count| *count > self.at).await.is_err() {
                return;
            }
            let full = newest.wait_for(|count| *count >= self.at + MOST_RECORDS as u64);
            // Either way there is something to send.
            let _ = timeout(LINGER, full).await;
            let page = self.flows.page(self.at, MOST_RECORDS);
            let batch = Batch::new(&page, |flow| self.signal.item(flow));
            self.at = page.next - batch.untaken;
            self.dropped.inc_by(page.lost + batch.too_large);
            if !batch.items.is_empty() {
                self.send(batch.items).await;
            }
        }
    }

    /// Sends it until it is taken, or given up.
    async fn send(&mut self, items: Vec<S::Item>) {
        let count = items.len() as u64;
        let each = self.client.timeout();
        let until = Instant::now() + retry::PATIENCE * each;
        let mut retry = Retry::new(each);
        loop {
            let answer = timeout_at(
                until.min(Instant::now() + each),
                self.signal.export(&self.client, items.clone()),
            );
            let error = match answer.await {
                Ok(Ok((rejected, why))) => return self.taken(count, rejected, &why),
                Ok(Err(error)) => error,
                Err(_) => ExportError::Timeout,
            };
            if !std::mem::replace(&mut self.is_failing, true) {
                tracing::warn!(
                    to = S::NAME, collector = %self.client.endpoint(), %error,
                    "flows cannot be sent; traffic does not wait for it, and what is dropped is counted"
                );
            }
            let left = until.saturating_duration_since(Instant::now());
            match retry.next(&error, rand::random()) {
                Next::After(pause) if pause < left => sleep(pause).await,
                // What the collector asked for counts for what comes next, too.
                Next::After(_) => {
                    sleep(left).await;
                    return self.dropped.inc_by(count);
                }
                Next::Never => return self.dropped.inc_by(count),
            }
        }
    }

    fn taken(&mut self, count: u64, rejected: u64, why: &str) {
        let rejected = rejected.min(count);
        self.sent.inc_by(count - rejected);
        self.dropped.inc_by(rejected);
        if std::mem::take(&mut self.is_failing) {
            tracing::info!(to = S::NAME, "flows are sent again");
        }
        if rejected > 0 && !std::mem::replace(&mut self.is_rejected, true) {
            tracing::warn!(
                to = S::NAME,
                rejected,
                why,
                "the collector rejects some flows; this is said once"
            );
        }
    }
}

#[cfg(test)]
mod tests;
