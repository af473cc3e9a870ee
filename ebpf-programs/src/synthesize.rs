//! Events of connections that never were, to measure how many the agent takes in. No part of the agent: the bench loads it and
//! lets the kernel run it (`BPF_PROG_TEST_RUN`, kernel 4.12).
#![no_std]
#![no_main]
#![allow(internal_features)]
#![feature(core_intrinsics)]

mod report;

use aya_ebpf::{
    helpers::bpf_ktime_get_ns,
    macros::{classifier, map},
    maps::Array,
    programs::TcContext,
};
use weir_abi::{Event, EventKind};

use crate::report::{add, report};

/// Connections so far, and their last cookie.
#[map]
static MADE: Array<u64> = Array::with_max_entries(1, 0);

/// Reports that the connection of the event in the packet began, and that it ended, under a cookie of its own.
#[classifier]
fn weir_synthesize(ctx: TcContext) -> i32 {
    let (Some(made), Ok(event)) = (MADE.get_ptr_mut(0), ctx.load::<Event>(0)) else {
        return -1;
    };
    add(made, 1);
    // SAFETY: a valid pointer into the map; runs follow one another.
    let number = unsafe { made.read_volatile() };
    for kind in [EventKind::ESTABLISHED, EventKind::CLOSED] {
        report(|entry| {
            *entry = event;
            entry.kind = kind;
            entry.cookie = number;
            // SAFETY: the helper has no preconditions.
            entry.time_ns = unsafe { bpf_ktime_get_ns() };
        });
    }
    0
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
