//! `sk_lookup`: decides who gets a SYN that reached a pod. One instance a pod, in the pod's network namespace.

use aya_ebpf::{macros::sk_lookup, programs::SkLookupContext};
use weir_abi::{
    Endpoint, Event, EventKind, FlowKey, ListenerSlot, Pod, ProbePort, Reason,
    decide::{self, Lookup, Syn},
    slot,
};

use crate::{
    AF_INET, IPPROTO_TCP, field,
    maps::{CONNECTIONS, LISTENERS, POD_STATES, PROBE_PORTS, config, first_denial, now_ns},
    report::report,
};

/// The pod that this instance belongs to; the loader writes it.
///
/// A constant, because this hook can read no namespace cookie (as of kernel 6.18) and an address proves nothing: a pod
/// with NET_ADMIN can give itself another pod's.
#[unsafe(no_mangle)]
static OWN_POD: Pod = Pod {
    handle: 0,
    v4: 0,
    v6: [0; 4],
    observed: 0,
};

/// Go on: to the assigned socket, else to whichever listens.
const SK_PASS: u32 = 1;
/// To nobody: the client sees a reset.
const SK_DROP: u32 = 0;

/// A TCP SYN (or stray segment) without an established socket.
#[sk_lookup]
fn weir_sk_lookup(ctx: SkLookupContext) -> u32 {
    let lookup = ctx.lookup;
    // First of all: this hook also runs for each datagram of an unconnected UDP socket.
    if field!((*lookup).protocol) != IPPROTO_TCP {
        return SK_PASS;
    }
    // SAFETY: a static of the program; volatile since the loader writes it.
    let own = unsafe { core::ptr::read_volatile(&raw const OWN_POD) };
    let v4 = field!((*lookup).family) == AF_INET;
    let (local4, remote4) = (field!((*lookup).local_ip4), field!((*lookup).remote_ip4));
    let local6 = [
        field!((*lookup).local_ip6[0]),
        field!((*lookup).local_ip6[1]),
        field!((*lookup).local_ip6[2]),
        field!((*lookup).local_ip6[3]),
    ];
    let remote6 = [
        field!((*lookup).remote_ip6[0]),
        field!((*lookup).remote_ip6[1]),
        field!((*lookup).remote_ip6[2]),
        field!((*lookup).remote_ip6[3]),
    ];
    let local_port = field!((*lookup).local_port);
    let remote_port = u32::from(u16::from_be(field!((*lookup).remote_port)));
    let (src, dst) = if v4 {
        (
            Endpoint::v4(remote4, remote_port),
            Endpoint::v4(local4, local_port),
        )
    } else {
        (
            Endpoint::v6(remote6, remote_port),
            Endpoint::v6(local6, local_port),
        )
    };
    let key = FlowKey { src, dst };
    let syn = Syn {
        src,
        dst,
        ifindex: field!((*lookup).ingress_ifindex),
    };
    // SAFETY: the value is copied at once. The kernel gives the memory of a removed element to the next one at once, also
    // while a program reads it: the tag tells whose it was.
    let registered = unsafe { CONNECTIONS.get(key) }
        .copied()
        .filter(|conn| conn.tag == key.tag());
    // No state means that the agent is not done with this pod: refuse.
    let strict = POD_STATES
        .get(slot(own.handle))
        .is_none_or(|state| state.pod != own.handle || state.strict != 0);
    let is_probed = || {
        let is_known = |port: u32| {
            let port = ProbePort {
                pod: own.handle,
                port,
            };
            PROBE_PORTS.get_ptr(port).is_some()
        };
        is_known(dst.port) || is_known(ProbePort::ANY.into())
    };
    match decide::lookup(
        &own,
        &syn,
        registered.as_ref(),
        strict,
        config().generation,
        is_probed,
    ) {
        Lookup::Pass => SK_PASS,
        Lookup::Drop(reason) => refuse(&key, &own, reason),
        Lookup::Assign(slot) => {
            let slot = if v4 { slot } else { slot + ListenerSlot::V6 };
            match LISTENERS.redirect_sk_lookup(&ctx, ListenerSlot::key(own.handle, slot), 0) {
                Ok(()) => SK_PASS,
                Err(_) => refuse(&key, &own, Reason::NoListener),
            }
        }
    }
}

#[inline(always)]
fn refuse(key: &FlowKey, own: &Pod, reason: Reason) -> u32 {
    let now = now_ns();
    if first_denial(key, now) {
        report(|event| {
            *event = Event {
                time_ns: now,
                key: *key,
                kind: EventKind::SYN_DENIED,
                pod: own.handle,
                reason: reason as u32,
                ..Event::default()
            };
        });
    }
    SK_DROP
}
