//! Inbound connections that are open through the agent, so that a change of policy ends those that it forbids.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use tokio_util::sync::CancellationToken;
use weir_policy::{Request, WorkloadPolicies};
use weir_types::Identity;

use crate::{
    node::Pod,
    policy::{self, Judgement},
};

/// The inbound connections of one pod.
#[derive(Debug, Default)]
pub struct OpenConnections(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    entries: HashMap<u64, Arc<Entry>>,
    next: u64,
}

#[derive(Debug)]
struct Entry {
    source: Option<Identity>,
    /// Where the connection that is judged comes from: the client's, or the tunnel's.
    peer: SocketAddr,
    destination: SocketAddr,
    ended: CancellationToken,
    why: OnceLock<Judgement>,
}

/// An inbound connection, entered until it is dropped.
///
/// Enter it first and ask policy afterwards, with the policies that are in force then: whichever of the two a change of
/// policy sees, it is decided under the new one.
pub struct OpenConnection {
    pod: Arc<Pod>,
    number: u64,
    entry: Arc<Entry>,
}

// === impl OpenConnections ===

impl OpenConnections {
    /// Ends the connections that these policies forbid.
    pub fn revalidate(&self, policies: &WorkloadPolicies) {
        // Judged outside of the lock.
        let entries: Vec<Arc<Entry>> = self.table().entries.values().cloned().collect();
        for entry in entries {
            let judgement = entry.judge(policies);
            if !judgement.is_allowed() {
                // Only the first counts: it is ended already.
                let _ = entry.why.set(judgement);
                entry.ended.cancel();
            }
        }
    }

    /// Clients and destinations of those that the agent carries.
    #[must_use]
    pub fn carried(&self) -> HashSet<(SocketAddr, SocketAddr)> {
        let ends = |entry: &Arc<Entry>| (entry.peer, entry.destination);
        self.table().entries.values().map(ends).collect()
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Each change is one insertion or removal, so a panic elsewhere does not spoil it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl OpenConnection ===

impl OpenConnection {
    /// Enters a connection to a pod.
    #[must_use]
    pub fn enter(
        pod: &Arc<Pod>,
        source: Option<Identity>,
        peer: SocketAddr,
        destination: SocketAddr,
    ) -> Self {
        let entry = Arc::new(Entry {
            source,
            peer,
            destination,
            ended: CancellationToken::new(),
            why: OnceLock::new(),
        });
        let mut table = pod.open.table();
        let number = table.next;
        table.next += 1;
        table.entries.insert(number, entry.clone());
        drop(table);
        Self {
            pod: pod.clone(),
            number,
            entry,
        }
    }

    /// What policies say of it.
    #[must_use]
    pub fn judge(&self, policies: &WorkloadPolicies) -> Judgement {
        self.entry.judge(policies)
    }

    /// Cancelled when a change of policy forbids it.
    #[must_use]
    pub fn ended(&self) -> CancellationToken {
        self.entry.ended.clone()
    }

    /// What forbade it, if something did.
    #[must_use]
    pub fn why(&self) -> Option<&Judgement> {
        self.entry.why.get()
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.pod.open.table().entries.remove(&self.number);
    }
}

impl Entry {
    fn judge(&self, policies: &WorkloadPolicies) -> Judgement {
        let request = Request {
            source: self.source.as_ref(),
            source_ip: self.peer.ip(),
            destination_ip: self.destination.ip(),
            destination_port: self.destination.port(),
        };
        policy::judge(policies, &request)
    }
}
