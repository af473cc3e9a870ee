//! Arithmetic of moments that stops at the ends of time.

use std::time::Duration;

use jiff::Timestamp;
use time::OffsetDateTime;

pub(crate) fn after(moment: Timestamp, by: Duration) -> Timestamp {
    moment.checked_add(by).unwrap_or(Timestamp::MAX)
}

pub(crate) fn before(moment: Timestamp, by: Duration) -> Timestamp {
    moment.checked_sub(by).unwrap_or(Timestamp::MIN)
}

/// Whole seconds, which is what X.509 has.
pub(crate) fn offset(moment: Timestamp) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp(moment.as_second()).ok()
}
