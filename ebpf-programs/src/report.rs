//! What the agent is told: the ring buffer of events.

use core::intrinsics::{AtomicOrdering, atomic_xadd};

use aya_ebpf::{
    macros::map,
    maps::{Array, RingBuf},
};
use weir_abi::Event;

// Flags of `linux/bpf.h`.
const BPF_RB_NO_WAKEUP: u64 = 1;
const BPF_RB_FORCE_WAKEUP: u64 = 2;
const BPF_RB_AVAIL_DATA: u64 = 0;

/// Bytes of the ring buffer: about 6,500 events.
const EVENT_BYTES: u32 = 1 << 20;

/// Bytes in the ring buffer from which on the agent is woken for each event; below, it looks by itself often enough. A
/// wake-up is an interrupt, which costs more than all the rest of a program.
const WAKE_BYTES: u64 = (EVENT_BYTES / 4) as u64;

/// What the agent is told.
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(EVENT_BYTES, 0);

/// Events for which the ring buffer had no room.
#[map]
static LOST: Array<u64> = Array::with_max_entries(1, 0);

/// Reports an event, made in place, or counts that it was lost. `fill` must set every field: the memory is used again.
#[inline(always)]
pub(crate) fn report(fill: impl FnOnce(&mut Event)) {
    let flags = if EVENTS.query(BPF_RB_AVAIL_DATA) < WAKE_BYTES {
        BPF_RB_NO_WAKEUP
    } else {
        BPF_RB_FORCE_WAKEUP
    };
    if let Some(mut entry) = EVENTS.reserve::<Event>(0) {
        // SAFETY: the entry is as large and as aligned as an event, and every bit pattern is one.
        fill(unsafe { &mut *entry.as_mut_ptr() });
        entry.submit(flags);
    } else if let Some(lost) = LOST.get_ptr_mut(0) {
        add(lost, 1);
    }
}

/// Adds atomically to a counter in a map, wrapping.
///
/// `AtomicU64::fetch_add` does not exist for this target, which has no compare-and-swap in its baseline.
#[inline(always)]
pub(crate) fn add(counter: *mut u64, value: u64) {
    // SAFETY: the callers pass a valid pointer into a map, aligned for u64.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(counter, value) };
}
