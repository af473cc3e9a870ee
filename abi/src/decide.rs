//! The decisions of the kernel programs, as plain functions: no maps, no helpers, no context.
//!
//! Whatever is not known here means no: a missing pod state is STRICT, a missing entry is not registered.

use crate::{
    Backend, Config, Conn, ConnKind, Endpoint, HBONE_PORT, ListenerSlot, Pod, Verdict, VerdictKind,
    address::{is_link_local, is_loopback, is_unspecified, same_address},
    reason::Reason,
};

/// What `connect` does.
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(any(test, feature = "user"), derive(Debug))]
pub enum Connect {
    /// Leave it alone and forget it: loopback.
    Ignore,
    /// Leave it alone and report how it went.
    Pass,
    /// Register it for this destination pod; it goes where it was going, or to a service's backend.
    Direct {
        /// Handle of the destination pod.
        dest_pod: u32,
        /// The backend to rewrite the destination to.
        to: Option<Endpoint>,
    },
    /// Pick one of the backends of this set, and ask [`backend`].
    Service {
        /// The set.
        set: u32,
        /// Its backends.
        count: u32,
    },
    /// Rewrite the destination to the pod's own address.
    Redirect {
        /// The pod's own address of the destination's family, and a port that stands for the destination.
        to: Endpoint,
        /// The backend that was picked; port 0 if none was.
        pick: Endpoint,
    },
    /// Fail it.
    Deny(Reason),
}

/// Decides a `connect` of a pod's socket that is not the agent's.
///
/// `bound_port` is the port that the socket was bound to, 0 if it was not. `verdict` is what the agent cached for this pod
/// and destination, of kind REDIRECT if nothing; it holds only under the current generation and within the lease, and
/// whatever else it says sends the connection to the agent.
#[inline(always)]
#[must_use]
pub fn connect(
    pod: &Pod,
    dst: &Endpoint,
    bound_port: u32,
    verdict: &Verdict,
    config: &Config,
    now_ns: u64,
) -> Connect {
    if is_loopback(&dst.addr) || is_unspecified(&dst.addr) {
        return Connect::Ignore;
    }
    if pod.observed != 0 {
        return Connect::Pass;
    }
    let own = own_address(pod, dst.is_v4());
    if same_address(&own, &dst.addr) {
        return Connect::Direct {
            dest_pod: pod.handle,
            to: None,
        };
    }
    if is_link_local(&dst.addr) {
        // Never a workload's, and only meaningful with the interface that the rewritten address would not have.
        return Connect::Pass;
    }
    if verdict.generation == config.generation && now_ns < config.lease_until_ns {
        match verdict.kind {
            VerdictKind::PASS => return Connect::Pass,
            VerdictKind::DIRECT => {
                return Connect::Direct {
                    dest_pod: verdict.dest_pod,
                    to: None,
                };
            }
            VerdictKind::SERVICE if verdict.count > 0 => {
                return Connect::Service {
                    set: verdict.set,
                    count: verdict.count,
                };
            }
            VerdictKind::DENY => return Connect::Deny(Reason::DeniedByVerdict),
            _ => {}
        }
    }
    redirect(pod, dst, bound_port, Endpoint::default())
}

/// Decides a `connect` to a service whose backend was picked; with port 0 if the set has lost it meanwhile.
#[inline(always)]
#[must_use]
pub fn backend(pod: &Pod, dst: &Endpoint, bound_port: u32, backend: &Backend) -> Connect {
    if backend.address.port != 0 && backend.dest_pod != 0 && backend.address.is_v4() == dst.is_v4() {
        return Connect::Direct {
            dest_pod: backend.dest_pod,
            to: Some(backend.address),
        };
    }
    redirect(pod, dst, bound_port, backend.address)
}

/// One of `count` backends, each equally likely for a uniform `random`: the bias of the multiplication is below
/// count / 2^32.
#[inline(always)]
#[must_use]
pub const fn pick(random: u32, count: u32) -> u32 {
    ((random as u64 * count as u64) >> 32) as u32
}

#[inline(always)]
fn redirect(pod: &Pod, dst: &Endpoint, bound_port: u32, pick: Endpoint) -> Connect {
    let own = own_address(pod, dst.is_v4());
    if is_unspecified(&own) {
        return Connect::Deny(Reason::NoAddressOfFamily);
    }
    Connect::Redirect {
        to: Endpoint {
            addr: own,
            port: redirect_port(dst, bound_port),
        },
        pick,
    }
}

/// Ports that redirected connections go to, from 1: privileged ones, which the kernel never gives to a socket by itself.
const REDIRECT_PORTS: u32 = 1022;

/// A port for a redirected connection: never the socket's own, since one whose both ends are equal connects to itself
/// and no hook sees a SYN. It differs by destination, so that each has ephemeral ports of its own.
#[inline(always)]
#[must_use]
pub fn redirect_port(dst: &Endpoint, bound_port: u32) -> u32 {
    let mix = dst.addr[0]
        ^ dst.addr[1].rotate_left(7)
        ^ dst.addr[2].rotate_left(13)
        ^ dst.addr[3]
        ^ (dst.port << 8);
    let port = 1 + (mix ^ (mix >> 16)) % REDIRECT_PORTS;
    if port == bound_port {
        REDIRECT_PORTS + 1
    } else {
        port
    }
}

/// The pod's address of a family; unspecified if it has none.
#[inline(always)]
#[must_use]
pub fn own_address(pod: &Pod, v4: bool) -> [u32; 4] {
    if v4 { Endpoint::v4(pod.v4, 0).addr } else { pod.v6 }
}

/// What `sk_lookup` does with a SYN.
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(any(test, feature = "user"), derive(Debug))]
pub enum Lookup {
    /// To whichever socket listens.
    Pass,
    /// To the agent's listener in this slot (to be completed by the family).
    Assign(u32),
    /// To nobody.
    Drop(Reason),
}

/// A SYN that reached a pod.
#[derive(Clone, Copy)]
pub struct Syn {
    /// Who sent it.
    pub src: Endpoint,
    /// Where it went.
    pub dst: Endpoint,
    /// Index of the interface that it came in by; 1 is loopback.
    pub ifindex: u32,
}

/// Decides a SYN to the pod `own`.
///
/// `registered` is the entry of exactly this 4-tuple. `strict` is the pod's mode, true when unknown. `is_probed` tells
/// whether the kubelet probes the pod at the SYN's port.
#[inline(always)]
#[must_use]
pub fn lookup(
    own: &Pod,
    syn: &Syn,
    registered: Option<&Conn>,
    strict: bool,
    generation: u32,
    is_probed: impl FnOnce() -> bool,
) -> Lookup {
    if syn.ifindex == 1 && is_loopback(&syn.dst.addr) {
        return Lookup::Pass;
    }
    let from_own = same_address(&own_address(own, syn.src.is_v4()), &syn.src.addr);
    if let Some(conn) = registered {
        // A closed socket's entry is there for the agent, which has yet to accept; a SYN is somebody else's.
        let open = conn.closed_ns == 0;
        // Whatever source address the pod bound it to: it was not meant for this pod.
        if conn.kind == ConnKind::REDIRECT && conn.pod == own.handle && open {
            return Lookup::Assign(ListenerSlot::OUTBOUND);
        }
        if conn.kind == ConnKind::DELIVERY && conn.pod == own.handle {
            return Lookup::Pass;
        }
        if conn.kind == ConnKind::DIRECT {
            if conn.dest_pod != own.handle {
                // The address was another pod's when the socket connected.
                return Lookup::Drop(Reason::WrongIdentity);
            }
            // A pod may always talk to itself; for anyone else the permission must be of this configuration.
            if conn.pod == own.handle || (conn.generation == generation && !from_own) {
                return Lookup::Pass;
            }
            if !from_own {
                // The agent knows who it is, and decides again.
                return Lookup::Assign(ListenerSlot::PLAINTEXT);
            }
        }
        if conn.kind == ConnKind::HOST && !from_own && is_probed() {
            // Not straight to the application: a masquerade may have been given the port of a probe whose SYN has not left
            // yet. The agent sees whether the kubelet's own socket is connected.
            return Lookup::Assign(ListenerSlot::PLAINTEXT);
        }
    }
    if from_own {
        return Lookup::Drop(Reason::UnregisteredOwnAddress);
    }
    if syn.dst.port == HBONE_PORT as u32 {
        return Lookup::Assign(ListenerSlot::HBONE);
    }
    if strict {
        return Lookup::Drop(Reason::PlaintextToStrict);
    }
    Lookup::Assign(ListenerSlot::PLAINTEXT)
}

#[cfg(test)]
mod tests;
