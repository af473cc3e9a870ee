//! `sock_ops`: registers a connection before its SYN leaves, removes it when its socket closes, reports how it went.

use aya_ebpf::{
    bindings::bpf_sock_ops,
    helpers::{bpf_get_socket_cookie, bpf_sock_ops_cb_flags_set},
    macros::sock_ops,
    programs::SockOpsContext,
};
use weir_abi::{ConnKind, Endpoint, Event, EventKind, FlowKey, Reason, SockState, address::same_address};

use crate::{
    AF_INET, field,
    maps::{first_denial, now_ns, register, report, socket_state, unregister},
};

// Callback operations and flags of `linux/bpf.h`.
const TCP_CONNECT_CB: u32 = 3;
const ACTIVE_ESTABLISHED_CB: u32 = 4;
const STATE_CB: u32 = 10;
const STATE_CB_FLAG: i32 = 4;

// TCP states of `net/tcp_states.h`.
const TCP_FIN_WAIT1: u32 = 4;
const TCP_FIN_WAIT2: u32 = 5;
const TCP_TIME_WAIT: u32 = 6;
const TCP_CLOSE: u32 = 7;
const TCP_LAST_ACK: u32 = 9;
const TCP_CLOSING: u32 = 11;

/// State changes of TCP sockets. The function must not bear its section's name.
#[sock_ops]
fn weir_sock_ops(ctx: SockOpsContext) -> u32 {
    let ops = ctx.ops;
    let op = field!((*ops).op);
    if op != TCP_CONNECT_CB && op != ACTIVE_ESTABLISHED_CB && op != STATE_CB {
        return 0;
    }
    // SAFETY: the verifier checks the access.
    let sk = unsafe { (*ops).__bindgen_anon_2.sk };
    if sk.is_null() {
        return 0;
    }
    let state = socket_state(sk);
    if state.is_null() {
        return 0;
    }
    // SAFETY: checked for null; the state lives as long as the socket.
    let state = unsafe { &mut *state };
    if state.conn.kind == ConnKind::NONE || state.conn.kind == ConnKind::AGENT {
        return 0;
    }
    match op {
        TCP_CONNECT_CB => connecting(ops, state),
        ACTIVE_ESTABLISHED_CB => established(state),
        // SAFETY: a union of words.
        _ if field!((*ops).__bindgen_anon_1.args[1]) == TCP_CLOSE => closed(ops, state),
        _ => {}
    }
    0
}

#[inline(always)]
fn key_of(ops: *mut bpf_sock_ops) -> FlowKey {
    let (local4, remote4) = (field!((*ops).local_ip4), field!((*ops).remote_ip4));
    let local6 = [
        field!((*ops).local_ip6[0]),
        field!((*ops).local_ip6[1]),
        field!((*ops).local_ip6[2]),
        field!((*ops).local_ip6[3]),
    ];
    let remote6 = [
        field!((*ops).remote_ip6[0]),
        field!((*ops).remote_ip6[1]),
        field!((*ops).remote_ip6[2]),
        field!((*ops).remote_ip6[3]),
    ];
    let local_port = field!((*ops).local_port);
    let remote_port = u32::from_be(field!((*ops).remote_port));
    if field!((*ops).family) == AF_INET {
        FlowKey {
            src: Endpoint::v4(local4, local_port),
            dst: Endpoint::v4(remote4, remote_port),
        }
    } else {
        FlowKey {
            src: Endpoint::v6(local6, local_port),
            dst: Endpoint::v6(remote6, remote_port),
        }
    }
}

/// Runs in the `connect` call, before the SYN is built.
#[inline(always)]
fn connecting(ops: *mut bpf_sock_ops, state: &mut SockState) {
    let key = key_of(ops);
    // The pod's identity is that of its own address: whoever gave the pod another one may speak for somebody else.
    let foreign = state.conn.kind == ConnKind::DIRECT
        && state.conn.pod != state.conn.dest_pod
        && !same_address(&state.key.src.addr, &key.src.addr);
    state.key = key;
    // SAFETY: the helper takes the context.
    state.conn.cookie = unsafe { bpf_get_socket_cookie(ops.cast()) };
    if foreign {
        not_registered(state, Reason::ForeignSource);
    } else if state.conn.kind != ConnKind::PASS && !register(state) {
        not_registered(state, Reason::TableFull);
    }
    // SAFETY: the helper takes the context.
    unsafe { bpf_sock_ops_cb_flags_set(ops, STATE_CB_FLAG) };
}

/// Reports a connection that `sk_lookup` will refuse, or take for a stranger's, because it is not in the table.
#[inline(always)]
fn not_registered(state: &mut SockState, reason: Reason) {
    let now = now_ns();
    if first_denial(&state.key, now) {
        let mut refused = event(state, EventKind::CONNECT_DENIED, now);
        refused.reason = reason as u32;
        refused.key.dst = state.conn.orig;
        report(&refused);
    }
    if state.conn.kind == ConnKind::DIRECT {
        // If the destination takes it for a stranger's and accepts, that is what it is.
        state.conn.kind = ConnKind::PASS;
    }
}

#[inline(always)]
fn established(state: &mut SockState) {
    state.established = 1;
    if is_observed(state) {
        report(&event(state, EventKind::ESTABLISHED, now_ns()));
    }
}

#[inline(always)]
fn closed(ops: *mut bpf_sock_ops, state: &mut SockState) {
    unregister(state);
    if is_observed(state) {
        // The kernel's counters number the SYN and, once acknowledged or received, the FIN as a byte each.
        let before = field!((*ops).__bindgen_anon_1.args[0]);
        let fin_acked = matches!(before, TCP_FIN_WAIT2 | TCP_TIME_WAIT | TCP_LAST_ACK | TCP_CLOSING);
        let fin_received = matches!(
            before,
            TCP_FIN_WAIT1 | TCP_TIME_WAIT | TCP_FIN_WAIT2 | TCP_LAST_ACK | TCP_CLOSING
        );
        let acked = field!((*ops).bytes_acked);
        let received = field!((*ops).bytes_received);
        report(&Event {
            bytes_sent: acked.saturating_sub(1 + u64::from(fin_acked)),
            bytes_received: received.saturating_sub(u64::from(fin_received)),
            // The kernel keeps eight times the microseconds.
            rtt_us: field!((*ops).srtt_us) >> 3,
            retransmits: field!((*ops).total_retrans),
            ..event(state, EventKind::CLOSED, now_ns())
        });
    }
    state.conn.kind = ConnKind::NONE;
}

/// Whether nobody but the kernel can tell how the connection went.
#[inline(always)]
fn is_observed(state: &SockState) -> bool {
    let conn = &state.conn;
    conn.kind == ConnKind::PASS
        || conn.kind == ConnKind::HOST
        || (conn.kind == ConnKind::DIRECT && conn.pod != conn.dest_pod)
}

#[inline(always)]
fn event(state: &SockState, kind: u32, now_ns: u64) -> Event {
    Event {
        time_ns: now_ns,
        duration_ns: now_ns - state.started_ns,
        cookie: state.conn.cookie,
        key: state.key,
        kind,
        conn_kind: state.conn.kind,
        pod: state.conn.pod,
        dest_pod: state.conn.dest_pod,
        established: state.established,
        pid: state.conn.pid,
        orig: state.conn.orig,
        comm: state.conn.comm,
        ..Event::default()
    }
}
