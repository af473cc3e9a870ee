//! From what happens in the cluster to what agents are served.

use std::{
    collections::HashSet,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
};

use tokio::sync::{mpsc, watch};

use crate::{
    ads::Store,
    compile::{Compiler, Settings},
    watch::Batch,
};

/// The compiler, and the store that it fills.
pub struct Engine {
    compiler: RwLock<Compiler>,
    store: Arc<Store>,
    /// Counts what was taken in.
    revision: watch::Sender<u64>,
    synced: watch::Sender<bool>,
}

// === impl Engine ===

impl Engine {
    /// Of a cluster of which nothing is known.
    #[must_use]
    pub fn new(settings: Settings, store: Arc<Store>) -> Self {
        Self {
            compiler: RwLock::new(Compiler::new(settings)),
            store,
            revision: watch::Sender::new(0),
            synced: watch::Sender::new(false),
        }
    }

    /// What is known of the cluster.
    pub fn compiler(&self) -> RwLockReadGuard<'_, Compiler> {
        // Its maps are changed one by one: after a panic they are as good as the next list of everything makes them.
        self.compiler.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says when something was taken in.
    #[must_use]
    pub fn revisions(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    /// Whether all there is has been taken in once.
    #[must_use]
    pub fn synced(&self) -> watch::Receiver<bool> {
        self.synced.subscribe()
    }

    /// Takes in what the watches tell, until they end. Nothing is served before each of `kinds` is known as a whole: what is
    /// missing would be taken for gone.
    pub async fn run(&self, mut batches: mpsc::Receiver<Batch>, kinds: &[&'static str]) {
        let mut missing: HashSet<&'static str> = kinds.iter().copied().collect();
        let mut waiting = Vec::new();
        while let Some(batch) = batches.recv().await {
            let mut events = batch.events;
            if batch.synced {
                missing.remove(batch.kind);
            }
            while let Ok(batch) = batches.try_recv() {
                events.extend(batch.events);
                if batch.synced {
                    missing.remove(batch.kind);
                }
            }
            waiting.append(&mut events);
            if !missing.is_empty() {
                continue;
            }
            let events = std::mem::take(&mut waiting);
            if !events.is_empty() {
                self.take(events);
            }
            if !*self.synced.borrow() {
                tracing::info!("all there is in the cluster is known");
                self.store.mark_ready();
                self.synced.send_replace(true);
            }
        }
    }

    fn take(&self, events: Vec<crate::cluster::Event>) {
        let changes = {
            let mut compiler = self.compiler.write().unwrap_or_else(PoisonError::into_inner);
            compiler.apply(events)
        };
        self.store.apply(changes);
        self.revision.send_modify(|revision| *revision += 1);
    }
}
