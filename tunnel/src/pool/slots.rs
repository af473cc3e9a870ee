//! The pool's bookkeeping: which connections there are for a target, and which are being made.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    sync::{oneshot, watch},
    task::AbortHandle,
};

use super::{Inner, OpenError, Target, client::Client};
use crate::{
    connection::{ConnectionState, PodKey, StreamGuard},
    hbone::CLIENT_STREAMS,
};

/// Connections by target.
#[derive(Default)]
pub(super) struct Slots {
    slots: Mutex<HashMap<Target, Slot>>,
}

#[derive(Default)]
struct Slot {
    clients: Vec<Arc<Client>>,
    attempts: Vec<Attempt>,
}

/// A connection that is being made.
#[derive(Clone)]
pub(super) struct Attempt {
    shared: Arc<Shared>,
    result: watch::Receiver<Option<Result<(), OpenError>>>,
}

struct Shared {
    /// Callers that wait for it: as many as it will have room for.
    waiting: AtomicUsize,
    sender: watch::Sender<Option<Result<(), OpenError>>>,
    task: OnceLock<AbortHandle>,
}

/// What to do for a stream.
pub(super) enum Acquired {
    /// Use this connection.
    Client(Arc<Client>, StreamGuard),
    /// Wait for this attempt, then ask again.
    Wait(Attempt),
    /// Make a connection; a place on it is the caller's.
    Connect(Attempt),
}

/// Where a new connection goes to the caller that made it, with the caller's stream counted. Dropped there, if
/// the caller is gone.
pub(super) type Ours = oneshot::Sender<(Arc<Client>, StreamGuard)>;

/// Tells the waiters of an attempt how it went.
pub(super) struct AttemptSender(Arc<Shared>);

// === impl Slots ===

impl Slots {
    /// A connection with room, or an attempt to wait for.
    pub(super) fn acquire(&self, target: &Target, usable: impl Fn(&Client) -> bool) -> Acquired {
        let mut slots = self.lock();
        let slot = match slots.get_mut(target) {
            Some(slot) => slot,
            None => slots.entry(target.clone()).or_default(),
        };
        for client in &slot.clients {
            if client.has_room()
                && usable(client)
                && let Some(guard) = client.reserve()
            {
                return Acquired::Client(client.clone(), guard);
            }
        }
        // Only an attempt whose task died is still here after its end.
        slot.attempts
            .retain(|attempt| attempt.shared.sender.borrow().is_none());
        for attempt in &slot.attempts {
            if attempt.shared.waiting.fetch_add(1, Ordering::Relaxed) < CLIENT_STREAMS as usize {
                return Acquired::Wait(attempt.clone());
            }
        }
        let (sender, result) = watch::channel(None);
        let shared = Shared {
            waiting: AtomicUsize::new(1),
            sender,
            task: OnceLock::new(),
        };
        let attempt = Attempt {
            shared: Arc::new(shared),
            result,
        };
        slot.attempts.push(attempt.clone());
        Acquired::Connect(attempt)
    }

    /// Ends an attempt. The new connection is dropped when its pod was removed meanwhile.
    pub(super) fn connected(
        &self,
        inner: &Arc<Inner>,
        target: &Target,
        sender: &AttemptSender,
        result: Result<Client, OpenError>,
        ours: Ours,
    ) {
        let result = {
            let mut slots = self.lock();
            let Some(slot) = slots.get_mut(target) else { return };
            let Some(index) = slot
                .attempts
                .iter()
                .position(|attempt| Arc::ptr_eq(&attempt.shared, &sender.0))
            else {
                return;
            };
            slot.attempts.swap_remove(index);
            match result {
                Ok(client) => {
                    let client = Arc::new(client);
                    client.drive(inner, target);
                    // Before the others can fill it.
                    let _ = ours.send((client.clone(), client.state().stream()));
                    slot.clients.push(client);
                    Ok(())
                }
                Err(error) => {
                    if slot.is_empty() {
                        slots.remove(target);
                    }
                    Err(error)
                }
            }
        };
        sender.0.sender.send_replace(Some(result));
    }

    /// Takes a connection out of the pool; its streams go on.
    pub(super) fn remove(&self, target: &Target, client: &Client) {
        let mut slots = self.lock();
        if let Some(slot) = slots.get_mut(target) {
            slot.clients.retain(|other| !std::ptr::eq(&**other, client));
            if slot.is_empty() {
                slots.remove(target);
            }
        }
    }

    /// Takes a connection out of the pool if it has no stream. Streams are reserved under the same lock, so none
    /// can come in between.
    pub(super) fn remove_if_unused(&self, target: &Target, client: &Client) -> bool {
        let mut slots = self.lock();
        if client.state().streams() > 0 {
            return false;
        }
        if let Some(slot) = slots.get_mut(target) {
            slot.clients.retain(|other| !std::ptr::eq(&**other, client));
            if slot.is_empty() {
                slots.remove(target);
            }
        }
        true
    }

    pub(super) fn close_source(&self, source: PodKey) {
        let mut gone = Vec::new();
        self.lock().retain(|target, slot| {
            let keep = target.source != source;
            if !keep {
                gone.push(std::mem::take(slot));
            }
            keep
        });
        for slot in gone {
            for attempt in slot.attempts {
                if let Some(task) = attempt.shared.task.get() {
                    task.abort();
                }
                attempt.shared.sender.send_replace(Some(Err(OpenError::Removed)));
            }
            for client in slot.clients {
                client.close();
            }
        }
    }

    pub(super) fn connections(&self) -> Vec<Arc<ConnectionState>> {
        self.lock()
            .values()
            .flat_map(|slot| &slot.clients)
            .map(|client| client.state().clone())
            .collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Target, Slot>> {
        // Each critical section leaves the map whole, so a panic elsewhere does not spoil it.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Slot ===

impl Slot {
    fn is_empty(&self) -> bool {
        self.clients.is_empty() && self.attempts.is_empty()
    }
}

// === impl Attempt ===

impl Attempt {
    pub(super) fn sender(&self) -> AttemptSender {
        AttemptSender(self.shared.clone())
    }

    pub(super) fn runs_in(&self, task: AbortHandle) {
        let _ = self.shared.task.set(task);
    }

    pub(super) async fn wait(mut self) -> Result<(), OpenError> {
        // The sender is in `self`, so the channel cannot close; a task that died says so through its guard.
        let result = self.result.wait_for(Option::is_some).await;
        result
            .ok()
            .and_then(|result| result.clone())
            .unwrap_or(Err(OpenError::Removed))
    }
}

// === impl AttemptSender ===

impl Drop for AttemptSender {
    fn drop(&mut self) {
        // Only for a task that was aborted or panicked: its waiters must not wait for ever.
        self.0.sender.send_if_modified(|result| {
            let silent = result.is_none();
            if silent {
                *result = Some(Err(OpenError::Removed));
            }
            silent
        });
    }
}
