//! Which failures are tried again, and when: as OTLP's specification says ("OTLP/gRPC Response" and "OTLP/gRPC Throttling").

use std::time::Duration;

use prost::Message as _;
use tonic::{Code, Status};
use weir_proto::{Any, google::rpc};

use super::client::ExportError;

/// A batch is given up after so many times as long as one export may take.
pub(super) const PATIENCE: u32 = 6;
/// The first pause, as a part of how long one export may take. Each is twice as long as the one before.
const FIRST: u32 = 20;

const RETRY_INFO: &str = "type.googleapis.com/google.rpc.RetryInfo";

/// What to do after a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Try again after this pause.
    After(Duration),
    /// The same would be refused again.
    Never,
}

/// The failures of one batch.
#[derive(Debug)]
pub(super) struct Retry {
    pause: Duration,
    most: Duration,
}

/// `google.rpc.RetryInfo`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    pub(super) retry_delay: Option<prost_types::Duration>,
}

// === impl Retry ===

impl Retry {
    /// For exports that may take so long each.
    pub(super) fn new(each: Duration) -> Self {
        Self {
            pause: each / FIRST,
            most: each,
        }
    }

    /// What comes after a failure; `jitter` is from 0 to 1, so that not all nodes come back at once.
    pub(super) fn next(&mut self, error: &ExportError, jitter: f64) -> Next {
        let asked = match error {
            ExportError::Timeout | ExportError::File { .. } => None,
            ExportError::Status(status) => {
                let asked = delay(status);
                let retryable = match status.code() {
                    Code::Cancelled
                    | Code::DeadlineExceeded
                    | Code::Aborted
                    | Code::OutOfRange
                    | Code::Unavailable
                    | Code::DataLoss => true,
                    Code::ResourceExhausted => asked.is_some(),
                    _ => false,
                };
                if !retryable {
                    return Next::Never;
                }
                asked
            }
        };
        let pause = self.pause;
        self.pause = (pause * 2).min(self.most);
        // Half of it at least.
        let pause = pause.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0);
        Next::After(asked.map_or(pause, |asked| asked.max(pause)))
    }
}

/// How long the collector asks to be left alone.
fn delay(status: &Status) -> Option<Duration> {
    let details = rpc::Status::decode(status.details()).ok()?;
    let info = details
        .details
        .iter()
        .find(|any: &&Any| any.type_url == RETRY_INFO)?;
    let delay = RetryInfo::decode(info.value.clone()).ok()?.retry_delay?;
    let seconds = u64::try_from(delay.seconds).ok()?;
    let nanos = u32::try_from(delay.nanos)
        .ok()
        .filter(|nanos| *nanos < 1_000_000_000)?;
    Some(Duration::new(seconds, nanos))
}

/// The details of a status that asks to be left alone for so long.
#[cfg(test)]
pub(super) fn details(delay: Duration) -> Vec<u8> {
    let info = RetryInfo {
        retry_delay: prost_types::Duration::try_from(delay).ok(),
    };
    let status = rpc::Status {
        details: vec![Any {
            type_url: RETRY_INFO.to_owned(),
            value: info.encode_to_vec().into(),
        }],
        ..rpc::Status::default()
    };
    status.encode_to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    const EACH: Duration = Duration::from_secs(10);

    fn first(status: Status) -> Next {
        Retry::new(EACH).next(&ExportError::Status(Box::new(status)), 1.0)
    }

    fn with(code: Code, delay: Duration) -> Status {
        Status::with_details(code, "", details(delay).into())
    }

    #[test]
    fn what_is_tried_again_is_what_the_specification_lists() {
        let pause = Next::After(Duration::from_millis(500));
        for number in 1..=16 {
            let code = Code::from_i32(number);
            let listed = [1, 4, 10, 11, 14, 15].contains(&number);
            let expected = if listed { pause } else { Next::Never };
            assert_eq!(first(Status::new(code, "")), expected, "{code:?}");
        }
        let asked = Duration::from_millis(7_250);
        assert_eq!(first(with(Code::ResourceExhausted, asked)), Next::After(asked));
        assert_eq!(first(with(Code::Unavailable, asked)), Next::After(asked));
        assert_eq!(first(with(Code::InvalidArgument, asked)), Next::Never);
        // Less than what would be waited anyway.
        assert_eq!(first(with(Code::Unavailable, Duration::ZERO)), pause);
        let garbage = Status::with_details(Code::ResourceExhausted, "", vec![0xff; 20].into());
        assert_eq!(first(garbage), Next::Never);
    }

    #[test]
    fn pauses_double_up_to_a_bound_and_differ_from_node_to_node() {
        let mut retry = Retry::new(EACH);
        let mut pauses = |jitter: f64| -> Vec<u128> {
            let next = (0..7).map(|_| retry.next(&ExportError::Timeout, jitter));
            next.map(|next| match next {
                Next::After(pause) => pause.as_millis(),
                Next::Never => 0,
            })
            .collect()
        };
        assert_eq!(pauses(1.0), [500, 1_000, 2_000, 4_000, 8_000, 10_000, 10_000]);
        assert_eq!(pauses(0.0), [5_000; 7]);
    }
}
