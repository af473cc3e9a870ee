//! Which of the records that are kept a request wants.

use std::time::Duration;

use prost_types::Timestamp;
use weir_proto::observer::GetFlowsRequest;

use crate::{
    filter::{FilterError, Filters},
    mask::Mask,
};

/// A request that was understood.
#[derive(Debug)]
pub struct Query {
    /// What a flow must be.
    pub filters: Filters,
    /// Which of its fields are wanted; all if none.
    pub mask: Option<Mask>,
    /// So many, and from which side.
    pub number: Option<Number>,
    /// Go on with new ones.
    pub follow: bool,
    /// Not before.
    pub since: Option<jiff::Timestamp>,
    /// Not after.
    pub until: Option<jiff::Timestamp>,
}

/// How many records, counted from which side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Number {
    /// The oldest.
    First(usize),
    /// The newest.
    Last(usize),
}

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// A filter.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// A time.
    #[error("{0}: not a time")]
    Time(&'static str),
    /// There can be no such flow.
    #[error("until is before since")]
    Backwards,
    /// The oldest records, and new ones.
    #[error("first cannot be asked with follow")]
    FirstAndFollow,
    /// A mask.
    #[error("field_mask: there is no field '{0}' of a flow")]
    Mask(String),
}

// === impl Query ===

impl Query {
    /// Understands a request.
    ///
    /// # Errors
    /// When something of it is not understood, or contradicts itself.
    pub fn new(request: &GetFlowsRequest) -> Result<Self, QueryError> {
        let time = |name, time: Option<Timestamp>| match time {
            None => Ok(None),
            Some(time) => jiff::Timestamp::new(time.seconds, time.nanos)
                .map(Some)
                .map_err(|_| QueryError::Time(name)),
        };
        let (since, until) = (time("since", request.since)?, time("until", request.until)?);
        if since.zip(until).is_some_and(|(since, until)| until < since) {
            return Err(QueryError::Backwards);
        }
        if request.first && request.follow {
            return Err(QueryError::FirstAndFollow);
        }
        let count = usize::try_from(request.number).unwrap_or(usize::MAX);
        #[allow(deprecated, reason = "older clients still set it")]
        let older = request
            .experimental
            .as_ref()
            .and_then(|own| own.field_mask.as_ref());
        let mask = request.field_mask.as_ref().or(older);
        Ok(Self {
            filters: Filters::new(&request.whitelist, &request.blacklist)?,
            mask: match mask.filter(|mask| !mask.paths.is_empty()) {
                Some(mask) => Some(Mask::new(&mask.paths).map_err(QueryError::Mask)?),
                None => None,
            },
            number: match count {
                0 => None,
                count if request.first => Some(Number::First(count)),
                count => Some(Number::Last(count)),
            },
            follow: request.follow,
            since,
            until,
        })
    }

    /// Whether records that are kept already are wanted.
    #[must_use]
    pub fn wants_recorded(&self) -> bool {
        !self.follow || self.number.is_some() || self.since.is_some()
    }

    /// Whether a flow of this time is wanted.
    #[must_use]
    pub fn is_within(&self, time: jiff::Timestamp) -> bool {
        self.since.is_none_or(|since| time >= since) && self.until.is_none_or(|until| time <= until)
    }

    /// How long new flows may still be wanted; `None`: for ever.
    #[must_use]
    pub fn remaining(&self, now: jiff::Timestamp) -> Option<Duration> {
        let until = self.until?;
        Some(Duration::try_from(until.duration_since(now)).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests;
