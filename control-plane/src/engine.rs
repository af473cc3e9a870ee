//! From what happens in the cluster to what agents are served.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard},
};

use tokio::sync::{mpsc, watch};

use crate::{
    ads::Store,
    cluster::{Event, ObjectName},
    compile::{Compiler, PolicyKind, Settings},
    status::Present,
    watch::{Batch, Seen},
};

/// The compiler, and the store that it fills.
pub struct Engine {
    compiler: RwLock<Compiler>,
    /// What stands in the cluster of what we write there.
    present: RwLock<Present>,
    /// Pods of which something changed since they were last asked for.
    touched: Mutex<HashSet<ObjectName>>,
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
            present: RwLock::default(),
            touched: Mutex::default(),
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

    /// What stands in the cluster of what is written there.
    pub fn present(&self) -> RwLockReadGuard<'_, Present> {
        self.present.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Pods of which something changed, here or in the cluster, since this was last asked. Whoever asks looks at them after.
    #[must_use]
    pub fn take_touched(&self) -> HashSet<ObjectName> {
        std::mem::take(&mut self.touched.lock().unwrap_or_else(PoisonError::into_inner))
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
        let (mut events, mut seen) = (Vec::new(), Vec::new());
        while let Some(first) = batches.recv().await {
            let mut next = Some(first);
            while let Some(batch) = next {
                events.extend(batch.events);
                seen.extend(batch.seen);
                if batch.synced {
                    missing.remove(batch.kind);
                }
                next = batches.try_recv().ok();
            }
            if !missing.is_empty() {
                continue;
            }
            if !(events.is_empty() && seen.is_empty()) {
                self.take(std::mem::take(&mut events), std::mem::take(&mut seen));
            }
            if !*self.synced.borrow() {
                tracing::info!("all there is in the cluster is known");
                self.store.mark_ready();
                self.synced.send_replace(true);
            }
        }
    }

    fn take(&self, events: Vec<Event>, seen: Vec<Seen>) {
        let mut touched = HashSet::new();
        {
            // Before the compiler: what is said of a policy is said of the version that stands here.
            let mut present = self.present.write().unwrap_or_else(PoisonError::into_inner);
            for seen in seen {
                match seen {
                    Seen::Pod(name, pod) => {
                        present.set_pod(name.clone(), *pod);
                        touched.insert(name);
                    }
                    Seen::Node(name, node) => present.set_node(name, node),
                    Seen::Policy(kind, api, object) => present.set_policy(kind, api, &object),
                }
            }
            for event in &events {
                match event {
                    Event::Pod(name, None) => present.remove_pod(name),
                    Event::Node(name, None) => present.remove_node(name),
                    Event::AuthorizationPolicy(api, name, None) => {
                        present.remove_policy(PolicyKind::Authorization, *api, name);
                    }
                    Event::PeerAuthentication(api, name, None) => {
                        present.remove_policy(PolicyKind::PeerAuthentication, *api, name);
                    }
                    _ => {}
                }
            }
        }
        let changes = {
            let mut compiler = self.compiler.write().unwrap_or_else(PoisonError::into_inner);
            let changes = compiler.apply(events);
            touched.extend(compiler.touched().iter().cloned());
            changes
        };
        self.store.apply(changes);
        self.touched
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(touched);
        self.revision.send_modify(|revision| *revision += 1);
    }
}
