//! The kernel programs: thin entries over the decisions in `weir_abi::decide`.
//!
//! TCP only; a few runs per connection and none per packet. Lowest kernel: 6.1.
#![no_std]
#![no_main]
#![allow(internal_features)]
#![feature(core_intrinsics)]

mod connect;
mod getpeername;
mod maps;
mod report;
mod sk_lookup;
mod sock_ops;

/// Reads a field of a program's context.
///
/// Volatile, because LLVM otherwise merges reads of two address families into one through a computed pointer, and the
/// verifier refuses that ("dereference of modified ctx ptr").
macro_rules! field {
    ($place:expr) => {
        // SAFETY: the verifier checks each access to the context.
        unsafe { core::ptr::read_volatile(&raw const $place) }
    };
}
pub(crate) use field;

/// TCP's protocol number.
pub(crate) const IPPROTO_TCP: u32 = 6;
/// IPv4's address family.
pub(crate) const AF_INET: u32 = 2;

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
