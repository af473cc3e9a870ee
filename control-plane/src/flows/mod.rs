//! Certificates of the ports that serve flows.
//!
//! Clients of flows have no SPIFFE identity, so the certificates are of a small authority of their own: the same code as the
//! workloads' ([`crate::ca`]), with another Secret and another [`crate::ca::Scope`], and no word to the workloads' trust. It is made when the
//! first certificate is asked for, and replaced by itself ([`rotation`]).

pub mod rotation;
mod service;

use std::{sync::Arc, time::Duration};

use tokio::sync::{Notify, watch};

use crate::ca::{InForce, Keys};

pub use service::{FlowLimits, FlowService};

/// The longest life of a certificate that is not of an agent or a relay: nothing replaces it but its owner.
pub const LONGEST_CLIENT: Duration = Duration::from_secs(365 * 24 * 3600);

/// The authority, which begins when it is first wanted.
#[derive(Clone)]
pub struct Authority {
    in_force: watch::Receiver<Option<Arc<InForce>>>,
    wanted: Arc<Notify>,
}

// === impl Authority ===

impl Authority {
    /// Of these keys. Nothing happens before [`Self::run`].
    #[must_use]
    pub fn new(keys: &Keys) -> Self {
        Self {
            in_force: keys.in_force(),
            wanted: Arc::default(),
        }
    }

    /// Waits until it is wanted, then keeps up with its Secret and replaces the root in time. Never ends.
    pub async fn run(&self, keys: &Keys) {
        self.wanted.notified().await;
        tokio::join!(keys.run(), rotation::keep(keys.secret(), self.in_force.clone()));
    }

    /// What is in force, as soon as something is.
    async fn wait(&self) -> Option<Arc<InForce>> {
        self.wanted.notify_one();
        let mut in_force = self.in_force.clone();
        let found = in_force.wait_for(Option::is_some).await.ok()?;
        found.clone()
    }
}
