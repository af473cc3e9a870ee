//! What is known of the connection to the control plane, for people and metrics.

use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use weir_types::api::ControlPlaneStatus;

/// The connection's state.
#[derive(Debug)]
pub struct State(Mutex<ControlPlaneStatus>);

impl State {
    /// Not connected yet.
    #[must_use]
    pub fn new(address: &str) -> Self {
        Self(Mutex::new(ControlPlaneStatus {
            address: address.to_owned(),
            connected: false,
            since: Timestamp::now(),
            updated: None,
            workloads: 0,
            services: 0,
            policies: 0,
            problem: Some("not connected yet".to_owned()),
        }))
    }

    /// As it is now.
    #[must_use]
    pub fn status(&self) -> ControlPlaneStatus {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut ControlPlaneStatus)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(super) fn connected(&self) {
        self.change(|status| {
            if !status.connected {
                status.since = Timestamp::now();
            }
            status.connected = true;
            status.problem = None;
        });
    }

    pub(crate) fn disconnected(&self, problem: String) {
        self.change(|status| {
            if status.connected {
                status.since = Timestamp::now();
            }
            status.connected = false;
            status.problem = Some(problem);
        });
    }
}
