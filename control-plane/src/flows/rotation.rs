//! The root is replaced by itself, long before it ends and without an outage.
//!
//! A new root is trusted for longer than any certificate lives before it signs, and so is the old one when it does not sign any
//! more. Whoever holds a certificate was then told of both roots with it, also a person who asks for one a year.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};

use super::LONGEST_CLIENT;
use crate::ca::{AuthoritySecret, Contents, InForce, NextAuthority, Phase, SecretError, clock::after};

/// How long each of the two steps takes: no certificate of before lives any more, whatever the clocks say.
pub const WAIT: Duration = Duration::from_secs(LONGEST_CLIENT.as_secs() + 24 * 3600);
/// How long before its end a root is replaced: two waits, and a year in which nobody need hurry.
pub const BEFORE_END: Duration = Duration::from_secs(2 * WAIT.as_secs() + 365 * 24 * 3600);
/// How often it is looked whether something is to be done.
const LOOK: Duration = Duration::from_secs(3600);

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Make a new root, which is trusted.
    Begin,
    /// Have it sign.
    Activate,
    /// Trust the old root no more.
    Retire,
}

/// What is to be done with an authority that ends then, if anything is.
#[must_use]
pub fn due(contents: &Contents, end: Timestamp, now: Timestamp) -> Option<Step> {
    let has_waited = contents.since().is_some_and(|since| now >= after(since, WAIT));
    match contents.phase() {
        Phase::Stable => (after(now, BEFORE_END) >= end).then_some(Step::Begin),
        Phase::Prepared => has_waited.then_some(Step::Activate),
        Phase::Activated => has_waited.then_some(Step::Retire),
    }
}

/// Does what is due, if the Secret says so still: of several replicas that do this at once, one does it.
///
/// # Errors
/// When the Secret cannot be read or written.
pub async fn advance(
    secret: &AuthoritySecret,
    end: Timestamp,
    now: Timestamp,
) -> Result<Option<Step>, SecretError> {
    let step = due(&secret.contents().await?, end, now);
    match step {
        None => {}
        Some(Step::Begin) => secret.begin(NextAuthority::Generate, now).await?,
        // Their own wait is that of workloads' certificates, which is shorter.
        Some(Step::Activate) => secret.activate(now, false).await?,
        Some(Step::Retire) => secret.retire(now, false).await?,
    }
    Ok(step)
}

/// Looks after the root, for ever.
pub(super) async fn keep(secret: &AuthoritySecret, in_force: watch::Receiver<Option<Arc<InForce>>>) {
    let mut ticks = interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let end = in_force
            .borrow()
            .as_ref()
            .map(|in_force| in_force.authority().not_after());
        let Some(end) = end else { continue };
        match advance(secret, end, Timestamp::now()).await {
            Ok(None) => {}
            Ok(Some(step)) => tracing::info!(?step, "the root of the flows' certificates is being replaced"),
            // Another replica was faster.
            Err(SecretError::Rotation(_)) => {}
            Err(error) => {
                tracing::error!(%error, "the root of the flows' certificates cannot be replaced; tried again");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use zeroize::Zeroizing;

    use super::*;
    use crate::ca::Material;

    fn at(days: i64) -> Timestamp {
        let start: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        start + jiff::SignedDuration::from_hours(24 * days)
    }

    fn material(name: &str) -> Material {
        Material {
            chain: name.into(),
            key: Zeroizing::new(name.into()),
            roots: name.into(),
        }
    }

    #[test]
    fn both_roots_are_trusted_for_longer_than_any_certificate_lives_before_the_new_one_signs_and_after() {
        let end = at(3650);
        let mut contents = Contents::new(material("old"));
        let due = |contents: &Contents, day| due(contents, end, at(day));
        assert_eq!(due(&contents, 0), None);
        assert_eq!(due(&contents, 2552), None);
        let begun = 2553;
        assert_eq!(due(&contents, begun), Some(Step::Begin));
        contents.begin(material("new"), at(begun)).unwrap();
        assert_eq!(
            due(&contents, begun + 365),
            None,
            "a client of the last day does not know it yet"
        );
        let activated = begun + 366;
        assert_eq!(due(&contents, activated), Some(Step::Activate));
        contents.activate(at(activated), false).unwrap();
        assert_eq!(
            due(&contents, activated + 365),
            None,
            "the old one's certificates live"
        );
        let retired = activated + 366;
        assert_eq!(due(&contents, retired), Some(Step::Retire));
        assert!(at(retired) < end, "all of it before the old root ends");
        contents.retire(at(retired), false).unwrap();
        assert_eq!(super::due(&contents, at(retired + 3650), at(retired)), None);
    }
}
