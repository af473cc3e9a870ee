//! How full queue and ring are.

use super::FlowLog;

/// Records there are, and records there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fill {
    /// On their way to the ring.
    pub queued: u64,
    /// That may be on their way.
    pub queue: u64,
    /// In the ring.
    pub kept: u64,
    /// That the ring has room for.
    pub ring: u64,
}

impl FlowLog {
    /// How full queue and ring are.
    #[must_use]
    pub fn fill(&self) -> Fill {
        let (room, queue) = (self.queue.capacity(), self.queue.max_capacity());
        let ring = self.shared.ring();
        Fill {
            queued: (queue - room) as u64,
            queue: queue as u64,
            kept: ring.flows.len() as u64,
            ring: ring.capacity as u64,
        }
    }
}
