//! Watches. A watch has no queue: it remembers how far it has read the history, and reads on when asked.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};

use super::{
    Call, Core, Reply,
    read::{Selection, invalid_options, partial},
};
use crate::{
    request::Representation,
    resource::{Resource, shown},
    status::{Cause, Status},
    store::{Change, Compacted},
};

/// `--min-request-timeout` of the API server, for watches that name no timeout.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1800);
/// How often the watch cache sends bookmarks.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// How long before its end a watch is sent a last bookmark.
const BOOKMARK_BEFORE_END: Duration = Duration::from_secs(2);

/// A watch that is open.
#[derive(Debug)]
pub(crate) struct Watch {
    resource: Arc<Resource>,
    selection: Selection,
    representation: Representation,
    /// The revision up to which everything has been sent.
    read: u64,
    /// Sent before any change.
    initial: Vec<Value>,
    bookmarks: bool,
    /// How long it stays open.
    pub(crate) timeout: Duration,
}

/// What a watch has to send.
#[derive(Debug)]
pub(crate) enum Poll {
    Events(Vec<Value>),
    /// The events, and then nothing any more.
    Ended(Vec<Value>),
}

impl Core {
    pub(super) fn watch(&self, call: &Call<'_>) -> Result<Reply, Status> {
        let query = &call.request.query;
        let representation = Representation::accepted(&call.request.accept, false)?;
        let asked = query.number("resourceVersion")?.unwrap_or(0);
        let timeout = query.number("timeoutSeconds")?.filter(|seconds| *seconds > 0);
        let bookmarks = query.flag("allowWatchBookmarks");
        let streaming = query.flag("sendInitialEvents");
        let how = query.text("resourceVersionMatch");
        if !query.text("sendInitialEvents").is_empty() && how != "NotOlderThan" {
            let why = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
            return Err(invalid_options("resourceVersionMatch", why));
        }
        if query.text("sendInitialEvents").is_empty() && !how.is_empty() {
            let why = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
            return Err(invalid_options("resourceVersionMatch", why));
        }
        if streaming && !bookmarks {
            let cause = Cause::forbidden(
                "allowWatchBookmarks",
                "sendInitialEvents requires allowWatchBookmarks",
            );
            return Err(Status::invalid("meta.k8s.io", "ListOptions", "", &[cause]));
        }
        let mut watch = Watch {
            resource: Arc::clone(&call.resource),
            selection: Selection::of(call)?,
            representation,
            read: asked,
            initial: Vec::new(),
            bookmarks,
            timeout: timeout.map_or(DEFAULT_TIMEOUT, Duration::from_secs),
        };
        if asked == 0 || streaming {
            watch.begin(self, streaming);
        }
        Ok(Reply::Watch(Box::new(watch)))
    }
}

impl Watch {
    /// Begins with the present state, told as if every object had just been added.
    fn begin(&mut self, core: &Core, streaming: bool) {
        let storage = self.resource.storage();
        let objects = core.store.all(&storage).map(|(_, object)| object);
        let matching = objects.filter(|object| self.selection.matches(&self.resource, object));
        self.initial = matching.map(|object| self.event("ADDED", object)).collect();
        self.read = core.store.revision();
        if streaming {
            self.initial
                .push(self.bookmark_with(json!({"k8s.io/initial-events-end": "true"})));
        }
    }

    /// What there is to send since the last time.
    pub(crate) fn poll(&mut self, core: &Core) -> Poll {
        let mut events = std::mem::take(&mut self.initial);
        if core.registry.stored_as(&self.resource.storage()).is_none() {
            return Poll::Ended(events);
        }
        let storage = self.resource.storage();
        match core.store.changes(&storage, self.read) {
            Ok(changes) => events.extend(changes.filter_map(|change| self.told(change))),
            Err(Compacted(oldest)) => {
                events.push(json!({"type": "ERROR", "object": Status::too_old(self.read, oldest).to_json()}));
                return Poll::Ended(events);
            }
        }
        self.read = self.read.max(core.store.revision());
        Poll::Events(events)
    }

    /// A change as a watcher of a selection sees it: what begins to match is added, what ceases to is deleted.
    fn told(&self, change: &Change) -> Option<Value> {
        let matches = |object: &Value| self.selection.matches(&self.resource, object);
        let before = change.before.as_deref().filter(|object| matches(object));
        let now = change.now.as_deref().filter(|object| matches(object));
        match (before, now) {
            (None, None) => None,
            (None, Some(now)) => Some(self.event("ADDED", now)),
            (Some(_), Some(now)) => Some(self.event("MODIFIED", now)),
            (Some(before), None) => {
                let mut last = before.clone();
                last["metadata"]["resourceVersion"] = change.last["metadata"]["resourceVersion"].clone();
                Some(self.event("DELETED", &last))
            }
        }
    }

    fn event(&self, kind: &str, object: &Value) -> Value {
        let whole = shown(&self.resource, object);
        let object = match self.representation {
            Representation::Whole => whole,
            Representation::Metadata => partial(&whole),
        };
        json!({"type": kind, "object": object})
    }

    /// How far the watch is, for those who want to know.
    pub(crate) fn bookmark(&self) -> Option<Value> {
        self.bookmarks.then(|| self.bookmark_with(Value::Null))
    }

    fn bookmark_with(&self, annotations: Value) -> Value {
        let mut metadata = json!({"resourceVersion": self.read.to_string(), "creationTimestamp": null});
        if !annotations.is_null() {
            metadata["annotations"] = annotations;
        }
        self.event("BOOKMARK", &json!({ "metadata": metadata }))
    }

    /// How long after its beginning, or its last bookmark, `left` before its end, the next bookmark is due.
    pub(crate) fn bookmark_due(&self, left: Duration) -> Option<Duration> {
        let last = left
            .checked_sub(BOOKMARK_BEFORE_END)
            .filter(|wait| !wait.is_zero());
        self.bookmarks
            .then(|| last.map_or(BOOKMARK_EVERY, |last| last.min(BOOKMARK_EVERY)))
    }
}
