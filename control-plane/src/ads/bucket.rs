//! A token bucket without a clock.

use std::time::Duration;

/// Allows a burst, and a rate in the long run.
#[derive(Debug)]
pub(super) struct TokenBucket {
    per_second: f64,
    burst: f64,
    tokens: f64,
    at: Duration,
}

impl TokenBucket {
    pub(super) fn new(per_second: f64, burst: f64) -> Self {
        Self {
            per_second,
            burst,
            tokens: burst,
            at: Duration::ZERO,
        }
    }

    /// Takes a token at `now`, counted from any fixed moment, and says how long to wait before taking another.
    pub(super) fn take(&mut self, now: Duration) -> Duration {
        let elapsed = now.saturating_sub(self.at).as_secs_f64();
        self.at = now;
        self.tokens = (self.tokens + elapsed * self.per_second).min(self.burst) - 1.0;
        if self.tokens >= 1.0 {
            return Duration::ZERO;
        }
        Duration::try_from_secs_f64((1.0 - self.tokens) / self.per_second).unwrap_or(Duration::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_free_and_then_the_rate_counts() {
        let mut bucket = TokenBucket::new(10.0, 3.0);
        let now = Duration::from_secs(100);
        assert_eq!(bucket.take(now), Duration::ZERO);
        assert_eq!(bucket.take(now), Duration::ZERO);
        let wait = bucket.take(now);
        assert!(
            wait.abs_diff(Duration::from_millis(100)) < Duration::from_millis(1),
            "{wait:?}"
        );
        let wait = bucket.take(now + wait);
        assert!(
            wait.abs_diff(Duration::from_millis(100)) < Duration::from_millis(1),
            "{wait:?}"
        );
    }

    #[test]
    fn a_rest_does_not_save_up_more_than_the_burst() {
        let mut bucket = TokenBucket::new(10.0, 2.0);
        assert_eq!(bucket.take(Duration::from_secs(1_000)), Duration::ZERO);
        assert!(bucket.take(Duration::from_secs(1_000)) > Duration::ZERO);
    }
}
