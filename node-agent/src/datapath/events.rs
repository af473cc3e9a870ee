//! Reading what the kernel programs report.

use aya::maps::{MapData, RingBuf};
use tokio::io::{Interest, unix::AsyncFd};
use weir_abi::Event;

/// Most events that are read before others of the runtime's tasks get a turn.
const BATCH: usize = 256;

/// Hands each event to `sink`, for ever.
///
/// # Errors
/// When the ring buffer cannot be waited for.
pub async fn read(ring: RingBuf<MapData>, mut sink: impl FnMut(&Event)) -> std::io::Result<()> {
    // SAFETY: the ring buffer owns its map's descriptor, the same for as long as it lives, and lives as long as this.
    let mut ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE)? };
    loop {
        let mut ready = ring.readable_mut().await?;
        let mut count = 0;
        while let Some(item) = ready.get_inner_mut().next() {
            if let Some(event) = parse(&item) {
                sink(&event);
            } else {
                tracing::error!(
                    bytes = item.len(),
                    "the kernel programs sent an event of another size"
                );
            }
            count += 1;
            if count == BATCH {
                break;
            }
        }
        if count < BATCH {
            ready.clear_ready();
        } else {
            drop(ready);
            tokio::task::yield_now().await;
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
