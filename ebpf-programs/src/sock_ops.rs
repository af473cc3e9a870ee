//! `sock_ops`: registers a connection before its SYN leaves, removes it when its socket closes, reports how it went.

use aya_ebpf::{
    bindings::bpf_sock_ops,
    helpers::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_sock_ops_cb_flags_set},
    macros::sock_ops,
    programs::SockOpsContext,
};
use weir_abi::{
    Conn, ConnKind, Endpoint, Event, EventKind, FlowKey, Pending, Reason, SockState, VerdictKey,
    address::{is_loopback, same_address},
    decide::{self, Connect},
};

use crate::{
    AF_INET, field,
    maps::{
        CONNECTING, CONNECTIONS, PENDING, PODS, config, first_denial, give_back, now_ns, register,
        socket_state, unregister, verdict,
    },
    report::report,
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
    // Most runs end here: this hook is also called for what nobody asked for.
    if op != TCP_CONNECT_CB && op != ACTIVE_ESTABLISHED_CB && op != STATE_CB {
        return 0;
    }
    // SAFETY: a union of words.
    if op == STATE_CB && field!((*ops).__bindgen_anon_1.args[1]) != TCP_CLOSE {
        return 0;
    }
    // SAFETY: the verifier checks the access.
    let sk = unsafe { (*ops).__bindgen_anon_2.sk };
    if sk.is_null() {
        return 0;
    }
    let state = socket_state(sk);
    if state.is_null() {
        without_state(ops, op);
        return 0;
    }
    // SAFETY: checked for null; the state lives as long as the socket.
    let state = unsafe { &mut *state };
    if state.conn.kind == ConnKind::NONE || state.conn.kind == ConnKind::AGENT {
        return 0;
    }
    match op {
        TCP_CONNECT_CB => connecting(ops, state),
        ACTIVE_ESTABLISHED_CB => established(&mut state.conn, &state.key),
        _ => {
            unregister(state);
            closed(ops, &state.conn, &state.key);
            state.conn.kind = ConnKind::NONE;
        }
    }
    0
}

/// A socket without storage: a direct connection, or nothing that concerns us.
#[inline(always)]
fn without_state(ops: *mut bpf_sock_ops, op: u32) {
    // SAFETY: the helper takes the context.
    let cookie = unsafe { bpf_get_socket_cookie(ops.cast()) };
    let key = key_of(ops);
    if op == TCP_CONNECT_CB {
        if let Some(mut pending) = noted(cookie, &key) {
            direct(ops, &key, &mut pending);
        } else if let Some(pending) = PENDING.get_ptr_mut(cookie) {
            // SAFETY: a valid pointer into the map; nobody else knows this cookie's entry.
            direct(ops, &key, unsafe { &mut *pending });
            let _ = PENDING.remove(cookie);
        } else if let Some(mut pending) = decided_again(ops, cookie, &key) {
            direct(ops, &key, &mut pending);
        }
        return;
    }
    let Some(conn) = CONNECTIONS.get_ptr_mut(key) else {
        return;
    };
    // SAFETY: a valid pointer into the map.
    let conn = unsafe { &mut *conn };
    if conn.cookie != cookie || conn.kind != ConnKind::DIRECT {
        return;
    }
    if op == ACTIVE_ESTABLISHED_CB {
        established(conn, &key);
    } else {
        give_back(conn.pod);
        closed(ops, conn, &key);
        let _ = CONNECTIONS.remove(key);
    }
}

/// What `connect` noted on this processor a moment ago, if it is about this socket and destination.
#[inline(always)]
fn noted(cookie: u64, key: &FlowKey) -> Option<Pending> {
    let at = CONNECTING.get_ptr_mut(0)?;
    if field!((*at).after) != cookie {
        return None;
    }
    // SAFETY: a valid pointer into the map.
    let pending = unsafe { (&raw const (*at).pending).read() };
    // Whoever wrote there meanwhile, or while `connect` did, put another cookie first.
    let before = field!((*at).before);
    if before != cookie || pending.conn.cookie != cookie || !is_to(&pending.conn.orig, &key.dst) {
        return None;
    }
    Some(pending)
}

#[inline(always)]
fn is_to(orig: &Endpoint, dst: &Endpoint) -> bool {
    orig.port == dst.port && same_address(&orig.addr, &dst.addr)
}

/// The same from the destination's verdict, for who was interrupted between `connect` and here, or sends the SYN later. Which
/// process it is cannot be told any more.
#[inline(always)]
fn decided_again(ops: *mut bpf_sock_ops, cookie: u64, key: &FlowKey) -> Option<Pending> {
    // SAFETY: the helper takes the context (kernel 5.12).
    let netns = unsafe { bpf_get_netns_cookie(ops.cast()) };
    // SAFETY: pods are removed only with their namespace; the value is copied at once.
    let pod = unsafe { PODS.get(netns) }.copied()?;
    let verdict = verdict(&VerdictKey {
        pod: pod.handle,
        dst: key.dst,
    });
    let config = config();
    let decision = decide::connect(&pod, &key.dst, key.src.port, &verdict, &config, now_ns());
    let Connect::Direct { dest_pod, to: None } = decision else {
        return None;
    };
    if dest_pod == pod.handle {
        // A connection to the pod itself was noted elsewhere, and a redirected one looks the same here.
        return None;
    }
    let mut pending = Pending {
        src: decide::own_address(&pod, key.dst.is_v4()),
        ..Pending::default()
    };
    let conn = &mut pending.conn;
    conn.netns = netns;
    conn.kind = ConnKind::DIRECT;
    conn.pod = pod.handle;
    conn.dest_pod = dest_pod;
    conn.generation = config.generation;
    conn.orig = key.dst;
    conn.cookie = cookie;
    Some(pending)
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
    let foreign = is_foreign(&state.conn, &state.key.src.addr, &key);
    // The agent marks its sockets before it can know this.
    // SAFETY: the helper takes the context.
    state.conn.cookie = unsafe { bpf_get_socket_cookie(ops.cast()) };
    state.conn.started_ns = now_ns();
    state.key = key;
    state.conn.tag = key.tag();
    if foreign {
        not_registered(&mut state.conn, &key, Reason::ForeignSource);
    } else if is_late(&state.conn) {
        not_registered(&mut state.conn, &key, Reason::LeaseEnded);
    } else if state.conn.kind != ConnKind::PASS {
        match register(&key, &state.conn) {
            Ok(()) => state.registered = 1,
            Err(reason) => not_registered(&mut state.conn, &key, reason),
        }
    }
    watch(ops);
}

/// The same for a direct connection whose socket has no storage.
#[inline(always)]
fn direct(ops: *mut bpf_sock_ops, key: &FlowKey, pending: &mut Pending) {
    pending.conn.started_ns = now_ns();
    pending.conn.tag = key.tag();
    if is_foreign(&pending.conn, &pending.src, key) {
        not_registered(&mut pending.conn, key, Reason::ForeignSource);
    } else if is_late(&pending.conn) {
        not_registered(&mut pending.conn, key, Reason::LeaseEnded);
    } else {
        match register(key, &pending.conn) {
            Ok(()) => watch(ops),
            Err(reason) => not_registered(&mut pending.conn, key, reason),
        }
    }
}

/// Whether a direct connection comes from an address that is not the pod's. Its identity is that of its own address:
/// whoever gave the pod another one may speak for somebody else.
#[inline(always)]
fn is_foreign(conn: &Conn, own: &[u32; 4], key: &FlowKey) -> bool {
    let src = &key.src.addr;
    let is_own = same_address(own, src) || (conn.pod == conn.dest_pod && is_loopback(src));
    conn.kind == ConnKind::DIRECT && !is_own
}

/// Whether the agent's decision about a direct connection to another pod has run out since `connect`: a socket may hold its
/// SYN back until it has something to send (TCP Fast Open).
#[inline(always)]
fn is_late(conn: &Conn) -> bool {
    conn.kind == ConnKind::DIRECT && conn.pod != conn.dest_pod && conn.started_ns >= config().lease_until_ns
}

/// Asks for the socket's changes of state.
#[inline(always)]
fn watch(ops: *mut bpf_sock_ops) {
    // SAFETY: the helper takes the context.
    unsafe { bpf_sock_ops_cb_flags_set(ops, STATE_CB_FLAG) };
}

/// Reports a connection that `sk_lookup` will refuse, or take for a stranger's, because it is not in the table.
#[inline(always)]
fn not_registered(conn: &mut Conn, key: &FlowKey, reason: Reason) {
    let now = now_ns();
    if first_denial(key, now) {
        report(|event| {
            describe(event, conn, key, EventKind::CONNECT_DENIED, now);
            event.reason = reason as u32;
            event.key.dst = conn.orig;
        });
    }
    if conn.kind == ConnKind::DIRECT {
        // If the destination takes it for a stranger's and accepts, that is what it is.
        conn.kind = ConnKind::PASS;
    }
}

#[inline(always)]
fn established(conn: &mut Conn, key: &FlowKey) {
    conn.established = 1;
    if conn.kind == ConnKind::HOST
        && let Some(entry) = CONNECTIONS.get_ptr_mut(key)
    {
        // For the agent, before the other end knows: this runs before the handshake's last segment is sent.
        // SAFETY: a valid pointer into the map.
        unsafe { (*entry).established = 1 };
    }
    if is_observed(conn) {
        report(|event| describe(event, conn, key, EventKind::ESTABLISHED, now_ns()));
    }
}

#[inline(always)]
fn closed(ops: *mut bpf_sock_ops, conn: &Conn, key: &FlowKey) {
    if !is_observed(conn) {
        return;
    }
    // The kernel's counters number the SYN and, once acknowledged or received, the FIN as a byte each.
    let before = field!((*ops).__bindgen_anon_1.args[0]);
    let fin_acked = matches!(before, TCP_FIN_WAIT2 | TCP_TIME_WAIT | TCP_LAST_ACK | TCP_CLOSING);
    let fin_received = matches!(
        before,
        TCP_FIN_WAIT1 | TCP_TIME_WAIT | TCP_FIN_WAIT2 | TCP_LAST_ACK | TCP_CLOSING
    );
    let acked = field!((*ops).bytes_acked);
    let received = field!((*ops).bytes_received);
    // The kernel keeps eight times the microseconds.
    let rtt_us = field!((*ops).srtt_us) >> 3;
    let retransmits = field!((*ops).total_retrans);
    report(|event| {
        describe(event, conn, key, EventKind::CLOSED, now_ns());
        event.bytes_sent = acked.saturating_sub(1 + u64::from(fin_acked));
        event.bytes_received = received.saturating_sub(u64::from(fin_received));
        event.rtt_us = rtt_us;
        event.retransmits = retransmits;
    });
}

/// Whether connections that were let through are to be reported, 0 if not. A constant, so that the verifier leaves out what
/// is not asked for.
#[unsafe(no_mangle)]
static RECORDS: u32 = 1;

/// Whether somebody wants to know how the connection went, and nobody but the kernel can tell.
#[inline(always)]
fn is_observed(conn: &Conn) -> bool {
    // SAFETY: a static of the program; volatile since the loader writes it.
    if unsafe { core::ptr::read_volatile(&raw const RECORDS) } == 0 {
        return false;
    }
    conn.kind == ConnKind::PASS || (conn.kind == ConnKind::DIRECT && conn.pod != conn.dest_pod)
}

/// Sets every field of an event to what is known of a connection.
#[inline(always)]
fn describe(event: &mut Event, conn: &Conn, key: &FlowKey, kind: u32, now_ns: u64) {
    event.time_ns = now_ns;
    event.duration_ns = now_ns - conn.started_ns;
    event.cookie = conn.cookie;
    event.bytes_sent = 0;
    event.bytes_received = 0;
    event.key = *key;
    event.kind = kind;
    event.conn_kind = conn.kind;
    event.pod = conn.pod;
    event.dest_pod = conn.dest_pod;
    event.reason = 0;
    event.established = conn.established;
    event.rtt_us = 0;
    event.retransmits = 0;
    event.pid = conn.pid;
    event.orig = conn.orig;
    event.comm = conn.comm;
}
