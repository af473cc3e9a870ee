//! Watching the API server: objects go in as they come, events for the compiler come out.
//!
//! A watch that breaks is taken up again, with a new list where the API server has forgotten the place (410 Gone); what went
//! away meanwhile is found by comparing names. So nothing is missed, and what comes twice changes nothing.

mod kinds;

use std::{collections::HashSet, fmt::Debug, hash::Hash, sync::Arc, time::Duration};

use futures_util::{Stream, StreamExt as _};
use kube::{
    Api, Resource,
    api::DynamicObject,
    runtime::{
        utils::Backoff,
        watcher::{self, DefaultBackoff, watcher},
    },
};
use prometheus::IntGauge;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

use crate::{
    cluster::{Event, ObjectName, PolicyApi},
    compile::PolicyKind,
    status::{PresentNode, PresentPod},
};

pub use kinds::start;

/// Objects that a list brings at once: a page of pods is some megabytes.
const PAGE: u32 = 500;
/// The API server ends a watch after this long, and the next one begins where it was.
const WATCH_TIMEOUT: u32 = 290;
/// Sets of events that wait for the compiler.
pub const QUEUE: usize = 256;
/// An error that lasts is logged this often.
const LOG_INTERVAL: Duration = Duration::from_secs(30);
/// A watch that was interrupted and has had no error for this long goes on: where nothing changes, nothing says so. Longer
/// than connecting may take, which is 30 seconds.
pub(crate) const SETTLED: Duration = Duration::from_secs(60);
/// Not found: the kind is not there.
const NOT_FOUND: u16 = 404;

/// What a watch has to tell.
#[derive(Debug)]
pub struct Batch {
    /// The kind that it is of.
    pub kind: &'static str,
    /// What happened.
    pub events: Vec<Event>,
    /// What stands in the cluster, for what is written there.
    pub seen: Vec<Seen>,
    /// Whether all objects of the kind are known now.
    pub synced: bool,
}

/// What of an object matters to what is written to it.
#[derive(Debug)]
pub enum Seen {
    /// A pod.
    Pod(ObjectName, Box<PresentPod>),
    /// A node.
    Node(Arc<str>, PresentNode),
    /// A policy.
    Policy(PolicyKind, PolicyApi, Box<DynamicObject>),
}

/// What an object that is there comes to.
type There<K, N> = Box<dyn Fn(&K, N) -> Option<Event> + Send + Sync>;

/// How objects of a kind become events.
struct Convert<K, N> {
    kind: &'static str,
    name: fn(&K) -> Option<N>,
    /// The object as it concerns the mesh; `None` if it does not.
    there: There<K, N>,
    see: fn(&K) -> Option<Seen>,
    /// Whether a cluster may do without the kind.
    may_be_absent: bool,
    gone: Box<dyn Fn(N) -> Event + Send + Sync>,
}

/// Watches a kind for ever.
async fn run<K, N>(api: Api<K>, convert: Convert<K, N>, failing: IntGauge, batches: mpsc::Sender<Batch>)
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    N: Clone + Eq + Hash,
{
    let config = watcher::Config::default().page_size(PAGE).timeout(WATCH_TIMEOUT);
    Watch::new(convert, failing)
        .follow(watcher(api, config), batches, DefaultBackoff::default())
        .await;
}

struct Watch<K, N> {
    convert: Convert<K, N>,
    /// What the compiler knows.
    known: HashSet<N>,
    /// What the list that is under way has brought.
    listed: HashSet<N>,
    events: Vec<Event>,
    seen: Vec<Seen>,
    is_listing: bool,
    /// 1 while what is new does not arrive.
    failing: IntGauge,
    logged: Option<tokio::time::Instant>,
    /// Whether it was said that nobody defines the kind.
    is_absent: bool,
}

// === impl Watch ===

impl<K, N> Watch<K, N>
where
    N: Clone + Eq + Hash,
{
    fn new(convert: Convert<K, N>, failing: IntGauge) -> Self {
        Self {
            convert,
            known: HashSet::new(),
            listed: HashSet::new(),
            events: Vec::new(),
            seen: Vec::new(),
            is_listing: false,
            failing,
            logged: None,
            is_absent: false,
        }
    }

    async fn follow(
        &mut self,
        events: impl Stream<Item = Result<watcher::Event<K>, watcher::Error>>,
        batches: mpsc::Sender<Batch>,
        mut pauses: impl Backoff,
    ) {
        let mut events = std::pin::pin!(events);
        let mut pause = None;
        loop {
            // Here, not as the watcher's own: that takes the beginning of each list for success, and never waits for longer.
            if let Some(pause) = pause.take() {
                tokio::time::sleep(pause).await;
            }
            let is_resuming = self.failing.get() != 0 && !self.is_listing;
            let longest = if is_resuming { SETTLED } else { Duration::MAX };
            let Ok(event) = tokio::time::timeout(longest, events.next()).await else {
                self.failing.set(0);
                pauses.reset();
                continue;
            };
            let Some(event) = event else {
                return;
            };
            let batch = match event {
                Ok(event) => {
                    if !matches!(event, watcher::Event::Init) {
                        self.failing.set(0);
                        pauses.reset();
                    }
                    self.take(event)
                }
                Err(error) => {
                    pause = pauses.next();
                    self.failed(&error)
                }
            };
            if let Some(batch) = batch
                && batches.send(batch).await.is_err()
            {
                return;
            }
        }
    }

    /// Takes an event in; gives what there is to tell.
    fn take(&mut self, event: watcher::Event<K>) -> Option<Batch> {
        match event {
            watcher::Event::Init => {
                self.is_listing = true;
                self.listed.clear();
                self.events.clear();
                self.seen.clear();
                None
            }
            watcher::Event::InitApply(object) => {
                self.apply(&object);
                None
            }
            watcher::Event::InitDone => {
                self.is_listing = false;
                // What was there before and is not in the list is gone.
                let listed = std::mem::take(&mut self.listed);
                let gone: Vec<N> = self
                    .known
                    .iter()
                    .filter(|name| !listed.contains(*name))
                    .cloned()
                    .collect();
                for name in gone {
                    self.known.remove(&name);
                    self.events.push((self.convert.gone)(name));
                }
                Some(self.batch(true))
            }
            watcher::Event::Apply(object) => {
                self.apply(&object);
                self.tell()
            }
            watcher::Event::Delete(object) => {
                let name = (self.convert.name)(&object)?;
                if self.known.remove(&name) {
                    self.events.push((self.convert.gone)(name));
                }
                self.tell()
            }
        }
    }

    fn apply(&mut self, object: &K) {
        let Some(name) = (self.convert.name)(object) else {
            return;
        };
        self.seen.extend((self.convert.see)(object));
        match (self.convert.there)(object, name.clone()) {
            Some(event) => {
                self.events.push(event);
                if self.is_listing {
                    self.listed.insert(name.clone());
                }
                self.known.insert(name);
            }
            // It concerns the mesh no more.
            None if self.known.remove(&name) => self.events.push((self.convert.gone)(name)),
            None => {}
        }
    }

    fn tell(&mut self) -> Option<Batch> {
        let has_something = !(self.events.is_empty() && self.seen.is_empty());
        (has_something && !self.is_listing).then(|| self.batch(false))
    }

    fn batch(&mut self, synced: bool) -> Batch {
        Batch {
            kind: self.convert.kind,
            events: std::mem::take(&mut self.events),
            seen: std::mem::take(&mut self.seen),
            synced,
        }
    }

    /// A kind that is defined by nobody has no objects; all other errors pass, or are for people to see.
    fn failed(&mut self, error: &watcher::Error) -> Option<Batch> {
        // Where something of the kind was known, it is the API server that knows no better for the moment: deleting a kind
        // deletes its objects first.
        if self.convert.may_be_absent && self.known.is_empty() && is_not_found(error) {
            self.failing.set(0);
            if !self.is_absent {
                self.is_absent = true;
                tracing::info!(kind = self.convert.kind, "the cluster does not have the kind yet");
            }
            return Some(self.batch(true));
        }
        let now = tokio::time::Instant::now();
        self.failing.set(1);
        if self.logged.is_none_or(|last| now - last >= LOG_INTERVAL) {
            self.logged = Some(now);
            tracing::warn!(kind = self.convert.kind, %error, "watching is interrupted; trying again");
        }
        None
    }
}

fn is_not_found(error: &watcher::Error) -> bool {
    matches!(
        error,
        watcher::Error::InitialListFailed(kube::Error::Api(status)) if status.code == NOT_FOUND
    )
}

#[cfg(test)]
mod tests;
