//! A log of refusals that an attacker cannot fill.

use std::{
    fmt::Display,
    net::SocketAddr,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// Refusals that are written in a second.
const PER_SECOND: u32 = 5;

/// Writes the first refusals of each second, and how many were not written.
#[derive(Debug)]
pub struct RefusalLog {
    started: Instant,
    window: Mutex<Window>,
}

#[derive(Debug, Default)]
struct Window {
    second: u64,
    written: u32,
    suppressed: u64,
}

// === impl RefusalLog ===

impl Default for RefusalLog {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            window: Mutex::default(),
        }
    }
}

impl RefusalLog {
    /// Says that something was refused to a peer, and why.
    pub fn warn(&self, what: &str, peer: Option<SocketAddr>, reason: &dyn Display) {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        let suppressed = window.admit(self.started.elapsed());
        drop(window);
        if let Some(suppressed) = suppressed {
            tracing::warn!(?peer, %reason, suppressed, "{what} is refused");
        }
    }
}

// === impl Window ===

impl Window {
    /// Whether one is written at `now`, and how many were not since the last that was.
    fn admit(&mut self, now: Duration) -> Option<u64> {
        if now.as_secs() != self.second {
            self.second = now.as_secs();
            self.written = 0;
        }
        if self.written >= PER_SECOND {
            self.suppressed += 1;
            return None;
        }
        self.written += 1;
        Some(std::mem::take(&mut self.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_of_each_second_are_written_and_the_others_counted() {
        let mut window = Window::default();
        let at = Duration::from_millis;
        let written = (0..100).filter(|n| window.admit(at(n * 5)).is_some()).count();
        assert_eq!(written, PER_SECOND as usize);
        assert_eq!(window.admit(at(1_000)), Some(95));
        assert_eq!(window.admit(at(1_001)), Some(0));
    }
}
