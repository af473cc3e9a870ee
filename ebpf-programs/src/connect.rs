//! `connect`: decides where a pod's connection goes, before the first packet.

use aya_ebpf::{
    bindings::bpf_sock_addr,
    helpers::generated::{bpf_get_current_comm, bpf_ktime_get_coarse_ns},
    helpers::{
        bpf_get_current_cgroup_id, bpf_get_current_pid_tgid, bpf_get_netns_cookie, bpf_get_prandom_u32,
        bpf_get_socket_cookie, bpf_set_retval,
    },
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use weir_abi::{
    BackendKey, Conn, ConnKind, Endpoint, Event, EventKind, HOST_HANDLE, Pending, Pod, Reason, SockState,
    VerdictKey,
    decide::{self, Connect},
};

use crate::{
    IPPROTO_TCP, field,
    maps::{CONNECTING, PENDING, PODS, SOCKETS, backend, config, now_ns, unregister, verdict},
    report::report,
};

/// Let the call go on.
const PASS: i32 = 1;
/// Fail the call.
const REJECT: i32 = 0;
/// What a refused `connect` returns (`bpf_set_retval`, kernel 6.1).
const ECONNREFUSED: i32 = 111;

/// `connect` on an IPv4 socket.
#[cgroup_sock_addr(connect4)]
fn weir_connect4(ctx: SockAddrContext) -> i32 {
    let sa = ctx.sock_addr;
    let (addr, port) = (field!((*sa).user_ip4), field!((*sa).user_port));
    connect(&ctx, Endpoint::v4(addr, host_port(port)), false)
}

/// `connect` on an IPv6 socket; IPv4 comes as v4-mapped.
#[cgroup_sock_addr(connect6)]
fn weir_connect6(ctx: SockAddrContext) -> i32 {
    let sa = ctx.sock_addr;
    let addr = [
        field!((*sa).user_ip6[0]),
        field!((*sa).user_ip6[1]),
        field!((*sa).user_ip6[2]),
        field!((*sa).user_ip6[3]),
    ];
    let port = field!((*sa).user_port);
    connect(&ctx, Endpoint::v6(addr, host_port(port)), true)
}

#[inline(always)]
fn host_port(port: u32) -> u32 {
    u32::from(u16::from_be(port as u16))
}

#[inline(always)]
fn connect(ctx: &SockAddrContext, dst: Endpoint, v6: bool) -> i32 {
    let sa = ctx.sock_addr;
    if field!((*sa).protocol) != IPPROTO_TCP {
        return PASS;
    }
    // SAFETY: the context's socket is valid during the call.
    let state = unsafe { SOCKETS.get_ptr_mut(ctx) };
    if !state.is_null() {
        // SAFETY: checked for null; the state lives as long as the socket.
        let state = unsafe { &mut *state };
        if state.conn.kind == ConnKind::AGENT || state.conn.kind == ConnKind::DELIVERY {
            return PASS;
        }
        forget(state);
    }
    // SAFETY: the helper takes the context (kernel 5.12).
    let netns = unsafe { bpf_get_netns_cookie(sa.cast()) };
    // SAFETY: pods are removed only with their namespace; the value is copied at once.
    let Some(pod) = (unsafe { PODS.get(netns) }).copied() else {
        return host(ctx, netns, dst);
    };
    // Good enough for a lease of seconds, and cheaper (kernel 5.11).
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    let verdict = verdict(&VerdictKey { pod: pod.handle, dst });
    let config = config();
    // SAFETY: the context's socket is valid during the call, and the verifier checks each access.
    let sk = unsafe { (*sa).__bindgen_anon_1.sk };
    let bound_port = field!((*sk).src_port);
    let mut decision = decide::connect(&pod, &dst, bound_port, &verdict, &config, now);
    if let Connect::Service { set, count } = decision {
        // SAFETY: the helper has no preconditions.
        let index = decide::pick(unsafe { bpf_get_prandom_u32() }, count);
        let backend = backend(BackendKey { set, index });
        decision = decide::backend(&pod, &dst, bound_port, &backend);
    }
    let (kind, dest_pod, to, pick) = match decision {
        Connect::Ignore => return PASS,
        Connect::Deny(reason) => {
            let reason = match reason {
                Reason::DeniedByVerdict => verdict.reason,
                reason => reason as u32,
            };
            return deny(&pod, &dst, reason);
        }
        Connect::Pass => (ConnKind::PASS, 0, None, Endpoint::default()),
        Connect::Direct { dest_pod, to } => (ConnKind::DIRECT, dest_pod, to, Endpoint::default()),
        Connect::Redirect { to, pick } => (ConnKind::REDIRECT, 0, Some(to), pick),
        // Decided above; a set of a set there is not.
        Connect::Service { .. } => return refuse(&pod, &dst, Reason::Internal),
    };
    // SAFETY: the helper takes the context.
    let cookie = unsafe { bpf_get_socket_cookie(sa.cast()) };
    let src = decide::own_address(&pod, dst.is_v4());
    let describe = |to: &mut Pending| {
        to.src = src;
        to.conn = Conn {
            netns,
            cookie,
            kind,
            pod: pod.handle,
            dest_pod,
            generation: config.generation,
            orig: dst,
            pick,
            // Precisely when the SYN leaves; this is for what never sends one.
            started_ns: now,
            ..Conn::default()
        };
        note_process(&mut to.conn);
    };
    // What the destination's verdict says can be found out once more if this processor's note is lost.
    let is_plain = kind == ConnKind::DIRECT && to.is_none() && dest_pod != pod.handle;
    if is_plain
        && state.is_null()
        && let Some(at) = CONNECTING.get_ptr_mut(0)
    {
        // SAFETY: a valid pointer into the map. Volatile, since another task may write there in between.
        unsafe {
            (&raw mut (*at).before).write_volatile(cookie);
            describe(&mut (*at).pending);
            (&raw mut (*at).after).write_volatile(cookie);
        }
        return PASS;
    }
    let mut pending = Pending::default();
    describe(&mut pending);
    if !keep(ctx, &pending, state.is_null()) {
        return refuse(&pod, &dst, Reason::Internal);
    }
    if let Some(to) = to {
        rewrite(sa, to, v6);
    }
    PASS
}

/// Remembers what was decided until the SYN leaves: in the socket's own storage, which a direct connection that has none
/// does without.
#[inline(always)]
fn keep(ctx: &SockAddrContext, pending: &Pending, is_new: bool) -> bool {
    if is_new
        && pending.conn.kind == ConnKind::DIRECT
        && PENDING.insert(pending.conn.cookie, pending, 0).is_ok()
    {
        return true;
    }
    // SAFETY: the context's socket is valid during the call.
    let state = unsafe { SOCKETS.get_or_insert_ptr_mut(ctx, None) };
    if state.is_null() {
        return false;
    }
    // SAFETY: checked for null; the state lives as long as the socket.
    let state = unsafe { &mut *state };
    state.conn = pending.conn;
    state.key.src.addr = pending.src;
    true
}

/// `connect` outside of the pods: the kubelet's connections are registered, so that its probes are known for what they are.
#[inline(always)]
fn host(ctx: &SockAddrContext, netns: u64, dst: Endpoint) -> i32 {
    let config = config();
    if config.kubelet_cgroup == 0 || netns != config.host_netns {
        return PASS;
    }
    // SAFETY: the helper has no preconditions (kernel 5.6 in this hook).
    if unsafe { bpf_get_current_cgroup_id() } != config.kubelet_cgroup {
        return PASS;
    }
    // SAFETY: the context's socket is valid during the call.
    let state = unsafe { SOCKETS.get_or_insert_ptr_mut(ctx, None) };
    if state.is_null() {
        // Not registered: a STRICT pod will refuse it.
        return PASS;
    }
    // SAFETY: checked for null.
    let state = unsafe { &mut *state };
    if state.conn.kind == ConnKind::AGENT {
        return PASS;
    }
    forget(state);
    state.conn.established = 0;
    state.conn.closed_ns = 0;
    state.conn.netns = netns;
    state.conn.kind = ConnKind::HOST;
    state.conn.pod = HOST_HANDLE;
    state.conn.dest_pod = 0;
    state.conn.generation = config.generation;
    state.conn.orig = dst;
    state.conn.pick = Endpoint::default();
    note_process(&mut state.conn);
    PASS
}

/// Notes who called `connect`.
#[inline(always)]
fn note_process(conn: &mut Conn) {
    conn.pid = (bpf_get_current_pid_tgid() >> 32) as u32;
    // In place: aya's wrapper copies it twice. Fails only for a buffer of no size.
    // SAFETY: the buffer is as large as the size says.
    unsafe { bpf_get_current_comm(conn.comm.as_mut_ptr().cast(), conn.comm.len() as u32) };
}

/// Makes a socket's state say nothing; a socket can be connected again elsewhere.
#[inline(always)]
fn forget(state: &mut SockState) {
    unregister(state);
    state.conn.established = 0;
    state.conn.kind = ConnKind::NONE;
}

#[inline(always)]
fn rewrite(sa: *mut bpf_sock_addr, to: Endpoint, v6: bool) {
    // SAFETY: the verifier checks each write to the context.
    unsafe {
        if v6 {
            (*sa).user_ip6[0] = to.addr[0];
            (*sa).user_ip6[1] = to.addr[1];
            (*sa).user_ip6[2] = to.addr[2];
            (*sa).user_ip6[3] = to.addr[3];
        } else {
            (*sa).user_ip4 = to.addr[3];
        }
        (*sa).user_port = u32::from((to.port as u16).to_be());
    }
}

#[inline(always)]
fn refuse(pod: &Pod, dst: &Endpoint, reason: Reason) -> i32 {
    deny(pod, dst, reason as u32)
}

#[inline(always)]
fn deny(pod: &Pod, dst: &Endpoint, reason: u32) -> i32 {
    let own = decide::own_address(pod, dst.is_v4());
    report(|event| {
        *event = Event::default();
        event.time_ns = now_ns();
        event.key.src.addr = own;
        event.key.dst = *dst;
        event.kind = EventKind::CONNECT_DENIED;
        event.pod = pod.handle;
        event.orig = *dst;
        event.reason = reason;
        event.pid = (bpf_get_current_pid_tgid() >> 32) as u32;
        // SAFETY: the buffer is as large as the size says.
        unsafe { bpf_get_current_comm(event.comm.as_mut_ptr().cast(), event.comm.len() as u32) };
    });
    // SAFETY: the helper has no preconditions in this hook.
    unsafe { bpf_set_retval(-ECONNREFUSED) };
    REJECT
}
