//! The maps. Key, value, owner and lifetime of each are listed in `docs/architecture.md`.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::SkStorage,
    helpers::{bpf_ktime_get_ns, bpf_sk_storage_get},
    macros::{btf_map, map},
    maps::{Array, HashMap, LruHashMap, PerCpuArray, SockHash},
};
use weir_abi::{
    Backend, BackendKey, Budget, Config, Conn, ConnKind, Connecting, Endpoint, FlowKey, MAX_PODS, Pending,
    Pod, PodState, ProbePort, Reason, SockState, Verdict, VerdictKey, VerdictKind, address::same_address,
    slot,
};

use crate::{field, report::add};

// A flag of `linux/bpf.h`.
const BPF_NOEXIST: u64 = 1;

/// Registered connections of all pods of a node. Their memory, 27 MiB, is there from the start: allocating each took a fifth
/// of all that the programs take for a connection.
const MAX_CONNECTIONS: u32 = 131_072;
/// Direct connections of all pods that are about to send their SYN. They stay for microseconds, or until the agent sweeps
/// those that never sent one.
const MAX_PENDING: u32 = 8192;
/// Cached verdicts of all pods of a node.
const MAX_VERDICTS: u32 = 131_072;
/// Backends of all cached services of all pods.
const MAX_BACKENDS: u32 = 262_144;
/// Ports that the kubelet probes, of all pods.
const MAX_PROBE_PORTS: u32 = 16_384;
/// Refused 4-tuples that are remembered so that each is reported once.
const MAX_DENIALS: u32 = 8192;

/// State of a socket; goes with the socket.
#[btf_map]
pub(crate) static SOCKETS: SkStorage<SockState> = SkStorage::new();

/// What holds for all programs.
#[map]
pub(crate) static CONFIG: Array<Config> = Array::with_max_entries(1, 0);

/// Enrolled pods by network namespace cookie.
#[map]
pub(crate) static PODS: HashMap<u64, Pod> = HashMap::with_max_entries(MAX_PODS, 0);

/// What may change of a pod, by handle.
#[map]
pub(crate) static POD_STATES: Array<PodState> = Array::with_max_entries(MAX_PODS, 0);

/// A pod's share of `CONNECTIONS`, by handle.
#[map]
pub(crate) static BUDGETS: Array<Budget> = Array::with_max_entries(MAX_PODS, 0);

/// The plain direct connection that this processor is about to send the SYN of. Its loss is no harm: who finds another's
/// here decides again.
#[map]
pub(crate) static CONNECTING: PerCpuArray<Connecting> = PerCpuArray::with_max_entries(1, 0);

/// Direct connections between `connect` and SYN, by socket cookie: those whose SYN cannot tell what was decided.
#[map]
pub(crate) static PENDING: HashMap<u64, Pending> = HashMap::with_max_entries(MAX_PENDING, 0);

/// Registered connections by their whole 4-tuple. A plain hash: an entry is never evicted for another.
#[map]
pub(crate) static CONNECTIONS: HashMap<FlowKey, Conn> = HashMap::with_max_entries(MAX_CONNECTIONS, 0);

/// Decisions of the agent by pod and destination.
#[map]
pub(crate) static VERDICTS: HashMap<VerdictKey, Verdict> =
    HashMap::with_max_entries(MAX_VERDICTS, BPF_F_NO_PREALLOC);

/// Backends of the services that verdicts name.
#[map]
pub(crate) static BACKENDS: HashMap<BackendKey, Backend> =
    HashMap::with_max_entries(MAX_BACKENDS, BPF_F_NO_PREALLOC);

/// Ports that the kubelet probes: presence is all.
#[map]
pub(crate) static PROBE_PORTS: HashMap<ProbePort, u32> =
    HashMap::with_max_entries(MAX_PROBE_PORTS, BPF_F_NO_PREALLOC);

/// The agent's listeners in the pods' namespaces.
#[map]
pub(crate) static LISTENERS: SockHash<u32> = SockHash::with_max_entries(MAX_PODS * 8, 0);

/// When a 4-tuple was last refused: a stray segment must not be reported as another refusal.
#[map]
static DENIALS: LruHashMap<FlowKey, u64> = LruHashMap::with_max_entries(MAX_DENIALS, 0);

/// A refused 4-tuple is reported again after this long, nanoseconds.
const DENIAL_QUIET_NS: u64 = 1_000_000_000;

/// What the agent cached for a pod and a destination; of kind REDIRECT if nothing.
///
/// The kernel gives the memory of a removed element to the next one at once, also while a program reads it. So the fields
/// are read first, and then the key that they belong to.
#[inline(always)]
pub(crate) fn verdict(key: &VerdictKey) -> Verdict {
    let mut verdict = Verdict::default();
    if let Some(found) = VERDICTS.get_ptr(key) {
        verdict.kind = field!((*found).kind);
        verdict.generation = field!((*found).generation);
        verdict.dest_pod = field!((*found).dest_pod);
        verdict.reason = field!((*found).reason);
        verdict.set = field!((*found).set);
        verdict.count = field!((*found).count);
        let pod = field!((*found).key.pod);
        // SAFETY: a valid pointer into the map, of which only a part is taken.
        let dst = endpoint(unsafe { &raw const (*found).key.dst });
        if pod != key.pod || dst.port != key.dst.port || !same_address(&dst.addr, &key.dst.addr) {
            verdict.kind = VerdictKind::REDIRECT;
        }
    }
    verdict
}

/// A service's backend; with port 0 if the set has none of this number. Read as a verdict is.
#[inline(always)]
pub(crate) fn backend(key: BackendKey) -> Backend {
    let mut backend = Backend::default();
    if let Some(found) = BACKENDS.get_ptr(key) {
        // SAFETY: as above.
        backend.address = endpoint(unsafe { &raw const (*found).address });
        backend.dest_pod = field!((*found).dest_pod);
        if field!((*found).key.set) != key.set || field!((*found).key.index) != key.index {
            backend.address.port = 0;
        }
    }
    backend
}

#[inline(always)]
fn endpoint(at: *const Endpoint) -> Endpoint {
    Endpoint {
        addr: [
            field!((*at).addr[0]),
            field!((*at).addr[1]),
            field!((*at).addr[2]),
            field!((*at).addr[3]),
        ],
        port: field!((*at).port),
    }
}

/// The configuration; zeroes (no verdict holds) until the agent wrote it.
#[inline(always)]
pub(crate) fn config() -> Config {
    CONFIG.get(0).copied().unwrap_or_default()
}

/// Nanoseconds of CLOCK_MONOTONIC.
#[inline(always)]
pub(crate) fn now_ns() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_ktime_get_ns() }
}

/// The state of a socket, null if it has none.
///
/// `bpf_sk_storage_get` without the create flag (kernel 5.2).
#[inline(always)]
pub(crate) fn socket_state(sk: *mut aya_ebpf::bindings::bpf_sock) -> *mut SockState {
    // SAFETY: the map is an sk_storage map of SockState, and the verifier knows `sk` to be a checked socket.
    unsafe {
        bpf_sk_storage_get(
            (&raw const SOCKETS).cast_mut().cast(),
            sk.cast(),
            core::ptr::null_mut(),
            0,
        )
        .cast()
    }
}

/// Whether a refusal of this 4-tuple is to be reported, remembering that it was.
#[inline(always)]
pub(crate) fn first_denial(key: &FlowKey, now_ns: u64) -> bool {
    // SAFETY: the value is copied at once.
    if let Some(last) = unsafe { DENIALS.get(key) }
        && now_ns - *last < DENIAL_QUIET_NS
    {
        return false;
    }
    let _ = DENIALS.insert(key, now_ns, 0);
    true
}

/// Enters a connection into the table, within its pod's budget.
///
/// The budget counts sockets: it is taken here and given back when the socket closes, whatever becomes of the entry.
#[inline(always)]
pub(crate) fn register(key: &FlowKey, conn: &Conn) -> Result<(), Reason> {
    let Some(budget) = budget(conn.pod) else {
        return Err(Reason::TableFull);
    };
    // SAFETY: a valid pointer into the map; volatile, since other processors count there too.
    let full = unsafe {
        (&raw const (*budget).used).read_volatile() >= (&raw const (*budget).limit).read_volatile()
    };
    if full {
        return Err(Reason::TableFull);
    }
    if CONNECTIONS.insert(key, conn, BPF_NOEXIST).is_err() {
        // Of this namespace it can only be a leftover: its socket is gone, or this one could not have the port. Of another
        // it is not this socket's to replace.
        match CONNECTIONS.get_ptr(key) {
            None => return Err(Reason::TableFull),
            Some(found) if field!((*found).netns) != conn.netns => return Err(Reason::Collision),
            Some(_) => {}
        }
        if CONNECTIONS.insert(key, conn, 0).is_err() {
            return Err(Reason::TableFull);
        }
    }
    // SAFETY: as above.
    add(unsafe { &raw mut (*budget).used }, 1);
    Ok(())
}

/// A pod's share, unless it is another's by now.
#[inline(always)]
fn budget(pod: u32) -> Option<*mut Budget> {
    let budget = BUDGETS.get_ptr_mut(slot(pod))?;
    (field!((*budget).pod) == pod).then_some(budget)
}

/// Gives back a socket's part of its pod's budget.
#[inline(always)]
pub(crate) fn give_back(pod: u32) {
    if let Some(budget) = budget(pod) {
        // SAFETY: a valid pointer into the map. Never below zero, whatever an earlier agent left there: a share that seems
        // endless would be none.
        if unsafe { (&raw const (*budget).used).read_volatile() } != 0 {
            // SAFETY: as above.
            add(unsafe { &raw mut (*budget).used }, u64::MAX);
        }
    }
}

/// Takes a closed socket's connection out of the table, unless the agent has to do that.
#[inline(always)]
pub(crate) fn unregister(state: &mut SockState) {
    if state.registered == 0 {
        return;
    }
    state.registered = 0;
    give_back(state.conn.pod);
    let Some(conn) = CONNECTIONS.get_ptr_mut(state.key) else {
        return;
    };
    // SAFETY: a valid pointer into the map.
    let conn = unsafe { &mut *conn };
    // Another socket may have the 4-tuple by now.
    if conn.cookie != state.conn.cookie {
        return;
    }
    if conn.kind == ConnKind::REDIRECT && state.conn.established != 0 {
        conn.closed_ns = now_ns();
    } else {
        let _ = CONNECTIONS.remove(state.key);
    }
}
