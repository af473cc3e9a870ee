//! Reading what the kernel programs report.

use std::time::Duration;

use aya::maps::{MapData, RingBuf};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::MissedTickBehavior,
};
use weir_abi::Event;

/// Most events that are read before others of the runtime's tasks get a turn.
const BATCH: usize = 256;
/// How often events are looked for: the programs wake the agent only when a quarter of the ring buffer is full.
const LOOK: Duration = Duration::from_millis(50);

/// Hands each event to `sink`, for ever.
///
/// # Errors
/// When the ring buffer cannot be waited for.
pub async fn read(ring: RingBuf<MapData>, mut sink: impl FnMut(&Event)) -> std::io::Result<()> {
    // SAFETY: the ring buffer owns its map's descriptor, the same for as long as it lives, and lives as long as this.
    let mut ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE)? };
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            ready = ring.readable() => ready?.clear_ready(),
            _ = looks.tick() => {}
        }
        let mut count = 0;
        while let Some(item) = ring.get_mut().next() {
            if let Some(event) = parse(&item) {
                sink(&event);
            } else {
                tracing::error!(
                    bytes = item.len(),
                    "the kernel programs sent an event of another size"
                );
            }
            count += 1;
            if count % BATCH == 0 {
                drop(item);
                tokio::task::yield_now().await;
            }
        }
    }
}

fn parse(bytes: &[u8]) -> Option<Event> {
    if bytes.len() < size_of::<Event>() {
        return None;
    }
    // SAFETY: as many bytes as the type has, and every bit pattern is a value of it; alignment is not assumed.
    Some(unsafe { bytes.as_ptr().cast::<Event>().read_unaligned() })
}
