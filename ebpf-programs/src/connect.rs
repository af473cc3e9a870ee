//! `connect`: decides where a pod's connection goes, before the first packet.

use aya_ebpf::{
    bindings::bpf_sock_addr,
    helpers::{
        bpf_get_current_ancestor_cgroup_id, bpf_get_current_comm, bpf_get_current_pid_tgid,
        bpf_get_netns_cookie, bpf_get_prandom_u32, bpf_get_socket_cookie, bpf_set_retval,
    },
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use weir_abi::{
    BackendKey, Conn, ConnKind, Endpoint, Event, EventKind, FlowKey, HOST_HANDLE, Pending, Pod, Reason,
    SockState, VerdictKey,
    decide::{self, Connect},
};

use crate::{
    IPPROTO_TCP, field,
    maps::{BACKENDS, PENDING, PODS, SOCKETS, VERDICTS, config, now_ns, report, unregister},
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
    let now = now_ns();
    // Not copied out of the map: LLVM would keep the absent value's fields in registers that were never written.
    // SAFETY: the entry stays valid until the program ends; a concurrent write is a newer decision of the agent.
    let verdict = unsafe { VERDICTS.get(VerdictKey { pod: pod.handle, dst }) };
    let config = config();
    // SAFETY: the context's socket is valid during the call, and the verifier checks each access.
    let sk = unsafe { (*sa).__bindgen_anon_1.sk };
    let bound_port = field!((*sk).src_port);
    let mut decision = decide::connect(&pod, &dst, bound_port, verdict, &config, now);
    if let Connect::Service { set, count } = decision {
        // SAFETY: the helper has no preconditions.
        let index = decide::pick(unsafe { bpf_get_prandom_u32() }, count);
        // SAFETY: as with the verdict.
        let backend = unsafe { BACKENDS.get(BackendKey { set, index }) };
        decision = decide::backend(&pod, &dst, bound_port, backend);
    }
    let (kind, dest_pod, to, pick) = match decision {
        Connect::Ignore => return PASS,
        Connect::Deny(reason) => {
            let reason = match (reason, verdict) {
                (Reason::DeniedByVerdict, Some(verdict)) => verdict.reason,
                (reason, _) => reason as u32,
            };
            return deny(&pod, &dst, reason);
        }
        Connect::Pass => (ConnKind::PASS, 0, None, Endpoint::default()),
        Connect::Direct { dest_pod, to } => (ConnKind::DIRECT, dest_pod, to, Endpoint::default()),
        Connect::Redirect { to, pick } => (ConnKind::REDIRECT, 0, Some(to), pick),
        // Decided above; a set of a set there is not.
        Connect::Service { .. } => return refuse(&pod, &dst, Reason::Internal),
    };
    let is_direct = kind == ConnKind::DIRECT;
    let Some((conn, src)) = slot(ctx, is_direct && state.is_null()) else {
        return refuse(&pod, &dst, Reason::Internal);
    };
    conn.started_ns = now;
    conn.netns = netns;
    conn.kind = kind;
    conn.pod = pod.handle;
    conn.dest_pod = dest_pod;
    conn.generation = config.generation;
    conn.orig = dst;
    conn.pick = pick;
    conn.closed_ns = 0;
    conn.established = 0;
    note_process(conn);
    // SAFETY: the helper takes the context.
    conn.cookie = unsafe { bpf_get_socket_cookie(sa.cast()) };
    *src = decide::own_address(&pod, dst.is_v4());
    if let Some(to) = to {
        rewrite(sa, to, v6);
    }
    PASS
}

/// Where a socket's state is kept until the SYN leaves, and the address that it must leave from: the socket's own storage,
/// which a direct connection that has none does without.
#[inline(always)]
fn slot<'a>(ctx: &SockAddrContext, may_wait: bool) -> Option<(&'a mut Conn, &'a mut [u32; 4])> {
    if may_wait {
        // SAFETY: the helper takes the context.
        let cookie = unsafe { bpf_get_socket_cookie(ctx.sock_addr.cast()) };
        if PENDING.insert(cookie, &EMPTY, 0).is_ok()
            && let Some(pending) = PENDING.get_ptr_mut(cookie)
        {
            // SAFETY: a valid pointer into the map; nobody else knows this cookie's entry.
            let pending = unsafe { &mut *pending };
            return Some((&mut pending.conn, &mut pending.src));
        }
    }
    // SAFETY: the context's socket is valid during the call.
    let state = unsafe { SOCKETS.get_or_insert_ptr_mut(ctx, None) };
    if state.is_null() {
        return None;
    }
    // SAFETY: checked for null; the state lives as long as the socket.
    let state = unsafe { &mut *state };
    Some((&mut state.conn, &mut state.key.src.addr))
}

/// What an entry is made from before it is filled in place: the stack has no room for another.
static EMPTY: Pending = Pending::EMPTY;

/// `connect` outside of the pods: the kubelet's connections are registered, so that its probes are known for what they are.
#[inline(always)]
fn host(ctx: &SockAddrContext, netns: u64, dst: Endpoint) -> i32 {
    let config = config();
    if config.kubelet_cgroup == 0 || netns != config.host_netns {
        return PASS;
    }
    // SAFETY: the helper has no preconditions (kernel 5.7 in this hook).
    let cgroup = unsafe { bpf_get_current_ancestor_cgroup_id(config.kubelet_level as i32) };
    if cgroup != config.kubelet_cgroup {
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
    state.conn.started_ns = now_ns();
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
    conn.comm = bpf_get_current_comm().unwrap_or_default();
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
    report(&Event {
        time_ns: now_ns(),
        key: FlowKey {
            src: Endpoint::v6(own, 0),
            dst: *dst,
        },
        kind: EventKind::CONNECT_DENIED,
        pod: pod.handle,
        orig: *dst,
        reason,
        pid: (bpf_get_current_pid_tgid() >> 32) as u32,
        comm: bpf_get_current_comm().unwrap_or_default(),
        ..Event::default()
    });
    // SAFETY: the helper has no preconditions in this hook.
    unsafe { bpf_set_retval(-ECONNREFUSED) };
    REJECT
}
