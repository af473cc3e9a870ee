//! One task an identity: issues its certificate, renews it at half-life, and tries again after failures.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use rand::Rng as _;
use tokio::sync::watch;
use weir_types::Identity;

use super::{
    store::{Current, Inner, State, system_time},
    trust::TrustBundle,
};
use crate::ca::IssueError;

/// First wait after a failure; doubled each time.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// Longest wait after a failure: short against half a day, long enough to spare a service that recovers.
const LAST_RETRY: Duration = Duration::from_secs(60);
/// Longest sleep before the clock is read again: a clock that was set, or a machine that slept, is noticed.
const CLOCK_CHECK: Duration = Duration::from_secs(60);
/// An issuer that does not answer in this time has failed.
const ISSUE_TIMEOUT: Duration = Duration::from_secs(20);

/// Keeps `state` up to date until the store is dropped or forgets the identity.
pub(super) async fn run(store: Weak<Inner>, identity: Identity, state: watch::Sender<State>) {
    let Some(mut issuers) = store.upgrade().map(|store| store.issuer.subscribe()) else {
        return;
    };
    let mut failures = 0;
    loop {
        let issuer = issuers.borrow_and_update().clone();
        let Some(lifetime) = store.upgrade().map(|store| store.settings.lifetime) else {
            return;
        };
        let fingerprint = issuer.fingerprint();
        let issued = tokio::time::timeout(ISSUE_TIMEOUT, issuer.issue(&identity, lifetime)).await;
        let Some(inner) = store.upgrade() else { return };
        let now = system_time(inner.now());
        let current = issued
            .map_err(|_| IssueError::Timeout)
            .flatten()
            .and_then(|issued| Current::new(&issued, fingerprint, now));
        match current {
            Ok(current) => {
                failures = 0;
                // Unless it was replaced meanwhile: then its roots are no longer those in force.
                if issuers.has_changed().is_ok_and(|changed| !changed) {
                    inner.trust.replace(TrustBundle::new(&issuer.roots()));
                }
                let before = state.borrow().current.clone();
                let age = before.map(|before| now.duration_since(before.not_before).unwrap_or_default());
                inner.settings.observer.issued(age);
                tracing::info!(%identity, serial = %current.serial, "certificate issued");
                state.send_replace(State {
                    current: Some(Arc::new(current)),
                    problem: None,
                });
            }
            Err(error) => {
                failures += 1;
                inner.settings.observer.failed();
                tracing::warn!(%identity, %error, failures, "no certificate issued; trying again");
                state.send_modify(|state| state.problem = Some(Arc::new(error)));
            }
        }
        drop(inner);
        let retry = tokio::time::Instant::now() + back_off(failures);
        loop {
            let Some(inner) = store.upgrade() else { return };
            let now = system_time(inner.now());
            drop(inner);
            let current = state.borrow().current.clone();
            let due = match &current {
                Some(current) if failures == 0 => current.renew_at.duration_since(now).unwrap_or_default(),
                _ => retry.saturating_duration_since(tokio::time::Instant::now()),
            };
            if due.is_zero() {
                break;
            }
            tokio::select! {
                () = tokio::time::sleep(due.min(CLOCK_CHECK)) => {}
                changed = issuers.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let fingerprint = issuers.borrow_and_update().fingerprint();
                    if current.is_none_or(|current| current.issuer != fingerprint) {
                        failures = 0;
                        break;
                    }
                }
            }
        }
    }
}

/// Doubling from one second to a minute, and a random part of half of it, so that many agents do not return at
/// once.
fn back_off(failures: u32) -> Duration {
    if failures == 0 {
        return Duration::ZERO;
    }
    let full = FIRST_RETRY
        .saturating_mul(1 << failures.saturating_sub(1).min(10))
        .min(LAST_RETRY);
    full.mul_f64(rand::rng().random_range(0.5..1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn back_off_grows_and_is_bounded() {
        for (failures, least, most) in [
            (1, 0.5, 1.0),
            (2, 1.0, 2.0),
            (3, 2.0, 4.0),
            (7, 30.0, 60.0),
            (99, 30.0, 60.0),
        ] {
            let wait = back_off(failures).as_secs_f64();
            assert!((least..=most).contains(&wait), "{failures}: {wait}");
        }
    }
}
