//! `getpeername` and `accept`: show an application the address that it asked for, or the client that asked for it.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use weir_abi::{Conn, ConnKind, Endpoint, FlowKey};

use crate::{
    IPPROTO_TCP, field,
    maps::{CONNECTIONS, SOCKETS},
};

/// The call always goes on.
const PASS: i32 = 1;

/// The peer of an IPv4 socket.
#[cgroup_sock_addr(getpeername4)]
fn weir_getpeer4(ctx: SockAddrContext) -> i32 {
    let sa = ctx.sock_addr;
    if !is_tcp(field!((*sa).protocol)) {
        return PASS;
    }
    let (addr, port) = (field!((*sa).user_ip4), field!((*sa).user_port));
    let peer = Endpoint::v4(addr, u32::from(u16::from_be(port as u16)));
    // SAFETY: the context's socket is valid during the call, and the verifier checks each access.
    let sk = unsafe { (*sa).__bindgen_anon_1.sk };
    let local = Endpoint::v4(field!((*sk).src_ip4), field!((*sk).src_port));
    // A client of the other family cannot be shown in an IPv4 address.
    if let Some(orig) = original(&ctx, local, peer).filter(Endpoint::is_v4) {
        // SAFETY: the verifier checks each write to the context.
        unsafe {
            (*sa).user_ip4 = orig.addr[3];
            (*sa).user_port = u32::from((orig.port as u16).to_be());
        }
    }
    PASS
}

/// The peer of an IPv6 socket; IPv4 comes as v4-mapped.
#[cgroup_sock_addr(getpeername6)]
fn weir_getpeer6(ctx: SockAddrContext) -> i32 {
    let sa = ctx.sock_addr;
    if !is_tcp(field!((*sa).protocol)) {
        return PASS;
    }
    let addr = [
        field!((*sa).user_ip6[0]),
        field!((*sa).user_ip6[1]),
        field!((*sa).user_ip6[2]),
        field!((*sa).user_ip6[3]),
    ];
    let peer = Endpoint::v6(addr, u32::from(u16::from_be(field!((*sa).user_port) as u16)));
    // SAFETY: as above.
    let sk = unsafe { (*sa).__bindgen_anon_1.sk };
    let local = [
        field!((*sk).src_ip6[0]),
        field!((*sk).src_ip6[1]),
        field!((*sk).src_ip6[2]),
        field!((*sk).src_ip6[3]),
    ];
    let local = Endpoint::v6(local, field!((*sk).src_port));
    if let Some(orig) = original(&ctx, local, peer) {
        // SAFETY: the verifier checks each write to the context.
        unsafe {
            (*sa).user_ip6[0] = orig.addr[0];
            (*sa).user_ip6[1] = orig.addr[1];
            (*sa).user_ip6[2] = orig.addr[2];
            (*sa).user_ip6[3] = orig.addr[3];
            (*sa).user_port = u32::from((orig.port as u16).to_be());
        }
    }
    PASS
}

/// Multipath TCP's protocol number: what an application's own socket has, while its subflows are TCP's.
const IPPROTO_MPTCP: u32 = 262;

#[inline(always)]
fn is_tcp(protocol: u32) -> bool {
    protocol == IPPROTO_TCP || protocol == IPPROTO_MPTCP
}

/// The address to show instead of `peer`, if any.
///
/// The socket's own state first. Then by 4-tuple: a direct connection's socket has no state, an MPTCP application holds
/// another socket than the one that connected, and a server's accepted socket is the other end of the agent's delivery.
#[inline(always)]
fn original(ctx: &SockAddrContext, local: Endpoint, peer: Endpoint) -> Option<Endpoint> {
    // SAFETY: the context's socket is valid during the call.
    let state = unsafe { SOCKETS.get_ptr_mut(ctx) };
    if !state.is_null() {
        // SAFETY: checked for null.
        let conn = unsafe { &(*state).conn };
        if is_rewritten(conn) {
            return Some(conn.orig);
        }
        if conn.kind != ConnKind::NONE {
            return None;
        }
    }
    // An accepted socket first: its entry was touched a moment ago, and most calls are accept's.
    let key = FlowKey {
        src: peer,
        dst: local,
    };
    // SAFETY: the value is copied before the program ends.
    if let Some(conn) = unsafe { CONNECTIONS.get(key) } {
        return (conn.kind == ConnKind::DELIVERY && conn.orig.port != 0).then_some(conn.orig);
    }
    // SAFETY: as above.
    if let Some(conn) = unsafe { CONNECTIONS.get(key.reversed()) }
        && is_rewritten(conn)
    {
        return Some(conn.orig);
    }
    None
}

/// Whether the socket's real peer may be another than the one that the application asked for.
#[inline(always)]
fn is_rewritten(conn: &Conn) -> bool {
    conn.kind == ConnKind::REDIRECT || conn.kind == ConnKind::DIRECT
}
