//! What one request for flows is answered with.

use std::{future, time::Duration};

use jiff::Timestamp;
use tokio::time::MissedTickBehavior;
use weir_proto::{
    flow::{Flow as HubbleFlow, LostEvent, LostEventSource},
    observer::{GetFlowsResponse, get_flows_response::ResponseTypes},
};
use weir_types::Flow;

use super::{
    Source, Viewer,
    answer::{Gone, Sink},
};
use crate::{
    convert::{timestamp, to_hubble},
    window::{Number, Query},
};

/// What is recorded within this time goes together: to be woken for each record costs more than the record.
const TOGETHER: Duration = Duration::from_millis(20);
/// How often it is looked whether records were lost.
const LOOK: Duration = Duration::from_secs(1);
/// Records that are looked at before others have their turn.
const PAGE: usize = 512;

/// Answers until all is said, or the client is gone.
pub(super) async fn run(source: &impl Source, query: &Query, viewer: &Viewer, sink: Sink) {
    let reader = Reader {
        source,
        query,
        viewer,
        sink,
    };
    // The client went away: there is nobody to tell.
    let _ = reader.answer().await;
}

struct Reader<'a, S> {
    source: &'a S,
    query: &'a Query,
    viewer: &'a Viewer,
    sink: Sink,
}

impl<S: Source> Reader<'_, S> {
    async fn answer(&self) -> Result<(), Gone> {
        // Before anything is read: what is lost from here on is told.
        let lost = self.source.lost();
        let mut newest = self.source.watch();
        let (oldest, next) = self.source.range();
        let mut at = if self.query.wants_recorded() {
            match self.query.number {
                Some(Number::Last(most)) => {
                    let from = self.last(oldest, next, most).await;
                    self.forwards(from, next, usize::MAX).await?
                }
                Some(Number::First(most)) => return self.forwards(oldest, next, most).await.map(drop),
                None => self.forwards(oldest, next, usize::MAX).await?,
            }
        } else {
            next
        };
        if !self.query.follow {
            return Ok(());
        }
        let end = async {
            match self.query.remaining(Timestamp::now()) {
                // What happened just before it is recorded just after it.
                Some(remaining) => tokio::time::sleep(remaining + Duration::from_millis(200)).await,
                None => future::pending().await,
            }
        };
        tokio::pin!(end);
        let mut told = lost;
        // What is lost is also told where nothing is recorded any more.
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                changed = newest.wait_for(|count| *count > at) => if changed.is_err() { return Ok(()) },
                _ = looks.tick() => {}
                () = &mut end => return Ok(()),
                () = self.sink.closed() => return Err(Gone),
            }
            let lost = self.source.lost();
            self.lost(LostEventSource::PerfEventRingBuffer, lost - told)
                .await?;
            told = lost;
            at = self.page(at, u64::MAX, &mut usize::MAX.clone()).await?;
            if *newest.borrow() <= at {
                tokio::select! {
                    () = tokio::time::sleep(TOGETHER) => {}
                    () = self.sink.closed() => return Err(Gone),
                }
            }
        }
    }

    /// Where the newest that are wanted begin. They are read again from there: nothing is kept for a client that reads slowly.
    async fn last(&self, oldest: u64, next: u64, most: usize) -> u64 {
        let page = self.source.page(oldest, usize::MAX);
        let before = page.flows.iter().filter(|flow| flow.sequence < next);
        let (mut from, mut left) = (next, most);
        for (looked, flow) in before.rev().enumerate() {
            if looked % PAGE == 0 {
                tokio::task::yield_now().await;
            }
            if left == 0 {
                break;
            }
            if self.wanted(flow).is_some() {
                (from, left) = (flow.sequence, left - 1);
            }
        }
        from
    }

    /// Those of these records that are wanted, in their order. Gives where to go on.
    async fn forwards(&self, from: u64, to: u64, most: usize) -> Result<u64, Gone> {
        let mut at = from;
        let mut most = most;
        while at < to && most > 0 {
            at = self.page(at, to, &mut most).await?;
        }
        Ok(at)
    }

    /// As [`Self::forwards`], of a page. Gives where to go on.
    async fn page(&self, from: u64, to: u64, most: &mut usize) -> Result<u64, Gone> {
        let page = self.source.page(from, PAGE);
        self.lost(LostEventSource::HubbleRingBuffer, page.lost).await?;
        for flow in page.flows.iter().filter(|flow| flow.sequence < to) {
            if *most == 0 {
                break;
            }
            if let Some(flow) = self.wanted(flow) {
                *most -= 1;
                self.flow(flow).await?;
            }
        }
        tokio::task::yield_now().await;
        // What came meanwhile is not passed over.
        Ok(page.next.min(to.max(from + page.lost)))
    }

    fn wanted(&self, flow: &Flow) -> Option<HubbleFlow> {
        if !self.query.is_within(flow.time) || !self.viewer.may_see(flow) {
            return None;
        }
        let flow = to_hubble(flow, self.source.origin());
        self.query.filters.matches(&flow).then_some(flow)
    }

    async fn flow(&self, flow: HubbleFlow) -> Result<(), Gone> {
        let time = flow.time;
        let flow = match &self.query.mask {
            Some(mask) => mask.apply(&flow),
            None => flow,
        };
        let response = GetFlowsResponse {
            node_name: self.source.node().to_owned(),
            time,
            response_types: Some(ResponseTypes::Flow(flow)),
        };
        self.sink.send(response).await
    }

    async fn lost(&self, source: LostEventSource, count: u64) -> Result<(), Gone> {
        if count == 0 {
            return Ok(());
        }
        let event = LostEvent {
            source: source.into(),
            num_events_lost: count,
            cpu: None,
        };
        let response = GetFlowsResponse {
            node_name: self.source.node().to_owned(),
            time: Some(timestamp(Timestamp::now())),
            response_types: Some(ResponseTypes::LostEvents(event)),
        };
        self.sink.send(response).await
    }
}
