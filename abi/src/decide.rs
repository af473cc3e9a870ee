//! The decisions of the kernel programs, as plain functions: no maps, no helpers, no context.
//!
//! Whatever is not known here means no: a missing pod state is STRICT, a missing entry is not registered.

use crate::{
    Config, Conn, ConnKind, Endpoint, HBONE_PORT, ListenerSlot, Pod, Verdict, VerdictKind,
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
    /// Leave it alone and register it for this destination pod.
    Direct {
        /// Handle of the destination pod.
        dest_pod: u32,
    },
    /// Rewrite the destination to the pod's own address.
    Redirect {
        /// The pod's own address of the destination's family, and a port that stands for the destination.
        to: Endpoint,
    },
    /// Fail it.
    Deny(Reason),
}

/// Decides a `connect` of a pod's socket that is not the agent's.
///
/// `bound_port` is the port that the socket was bound to, 0 if it was not. `verdict` is what the agent cached for this pod and destination; it holds only under the current generation and
/// within the lease, and whatever else it says sends the connection to the agent.
#[inline(always)]
#[must_use]
pub fn connect(
    pod: &Pod,
    dst: &Endpoint,
    bound_port: u32,
    verdict: Option<&Verdict>,
    config: &Config,
    now_ns: u64,
) -> Connect {
    if is_loopback(&dst.addr) || is_unspecified(&dst.addr) {
        return Connect::Ignore;
    }
    let own = own_address(pod, dst.is_v4());
    if same_address(&own, &dst.addr) {
        return Connect::Direct { dest_pod: pod.handle };
    }
    if is_link_local(&dst.addr) {
        // Never a workload's, and only meaningful with the interface that the rewritten address would not have.
        return Connect::Pass;
    }
    if let Some(verdict) = verdict
        && verdict.generation == config.generation
        && now_ns < config.lease_until_ns
    {
        match verdict.kind {
            VerdictKind::PASS => return Connect::Pass,
            VerdictKind::DIRECT => {
                return Connect::Direct {
                    dest_pod: verdict.dest_pod,
                };
            }
            VerdictKind::DENY => return Connect::Deny(Reason::DeniedByVerdict),
            _ => {}
        }
    }
    if is_unspecified(&own) {
        return Connect::Deny(Reason::NoAddressOfFamily);
    }
    Connect::Redirect {
        to: Endpoint {
            addr: own,
            port: redirect_port(dst, bound_port),
        },
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
/// `registered` is the entry of exactly this 4-tuple. `strict` is the pod's mode, true when unknown.
#[inline(always)]
#[must_use]
pub fn lookup(own: &Pod, syn: &Syn, registered: Option<&Conn>, strict: bool, generation: u32) -> Lookup {
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
        if conn.kind == ConnKind::DIRECT && conn.dest_pod == own.handle {
            // A pod may always talk to itself; for anyone else the permission must be of this configuration.
            if conn.pod == own.handle || (conn.generation == generation && !from_own) {
                return Lookup::Pass;
            }
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
mod tests {
    use super::*;

    const POD: Pod = Pod {
        handle: 7,
        v4: 0x0200_010a,
        v6: [0xfd, 0, 0, 2],
    };
    const NOW: u64 = 100;
    const CONFIG: Config = Config {
        lease_until_ns: NOW + 1,
        generation: 3,
        next_handle: 0,
    };

    fn own_v4() -> Endpoint {
        Endpoint::v4(POD.v4, 80)
    }

    fn peer() -> Endpoint {
        Endpoint::v4(0x0900_010a, 80)
    }

    fn verdict(kind: u32) -> Verdict {
        Verdict {
            kind,
            generation: CONFIG.generation,
            dest_pod: 9,
            reason: 0,
        }
    }

    #[test]
    fn a_destination_without_a_verdict_goes_to_the_agent_at_the_pods_own_address() {
        assert_eq!(
            connect(&POD, &peer(), 0, None, &CONFIG, NOW),
            Connect::Redirect {
                to: Endpoint::v4(POD.v4, redirect_port(&peer(), 0)),
            }
        );
        let v6 = Endpoint::v6([0xfd, 0, 0, 9], 80);
        assert_eq!(
            connect(&POD, &v6, 0, None, &CONFIG, NOW),
            Connect::Redirect {
                to: Endpoint::v6(POD.v6, redirect_port(&v6, 0))
            }
        );
    }

    #[test]
    fn local_destinations_never_reach_the_agent() {
        for dst in [
            Endpoint::v4(0x0100_007f, 1),
            Endpoint::v4(0, 1),
            Endpoint::v6([0; 4], 1),
        ] {
            assert_eq!(connect(&POD, &dst, 0, None, &CONFIG, NOW), Connect::Ignore);
        }
        assert_eq!(
            connect(&POD, &own_v4(), 0, None, &CONFIG, NOW),
            Connect::Direct { dest_pod: 7 }
        );
        let own_v6 = Endpoint::v6(POD.v6, 80);
        assert_eq!(
            connect(&POD, &own_v6, 0, None, &CONFIG, NOW),
            Connect::Direct { dest_pod: 7 }
        );
    }

    #[test]
    fn a_verdict_holds_only_under_its_generation_and_within_the_lease() {
        let redirect = Connect::Redirect {
            to: Endpoint::v4(POD.v4, redirect_port(&peer(), 0)),
        };
        let table = [
            (VerdictKind::PASS, Connect::Pass),
            (VerdictKind::DIRECT, Connect::Direct { dest_pod: 9 }),
            (VerdictKind::DENY, Connect::Deny(Reason::DeniedByVerdict)),
            (VerdictKind::REDIRECT, redirect),
            (99, redirect),
        ];
        for (kind, expected) in table {
            let verdict = verdict(kind);
            assert_eq!(connect(&POD, &peer(), 0, Some(&verdict), &CONFIG, NOW), expected);
            let stale = Verdict {
                generation: CONFIG.generation - 1,
                ..verdict
            };
            assert_eq!(connect(&POD, &peer(), 0, Some(&stale), &CONFIG, NOW), redirect);
            let expired = CONFIG.lease_until_ns;
            assert_eq!(
                connect(&POD, &peer(), 0, Some(&verdict), &CONFIG, expired),
                redirect
            );
        }
    }

    #[test]
    fn a_family_that_the_pod_lacks_is_denied_rather_than_let_out() {
        let pod = Pod { v6: [0; 4], ..POD };
        let v6 = Endpoint::v6([0xfd, 0, 0, 9], 80);
        assert_eq!(
            connect(&pod, &v6, 0, None, &CONFIG, NOW),
            Connect::Deny(Reason::NoAddressOfFamily)
        );
        let pod = Pod { v4: 0, ..POD };
        assert_eq!(
            connect(&pod, &peer(), 0, None, &CONFIG, NOW),
            Connect::Deny(Reason::NoAddressOfFamily)
        );
    }

    fn conn(kind: u32, pod: u32, dest_pod: u32, generation: u32) -> Conn {
        Conn {
            kind,
            pod,
            dest_pod,
            generation,
            ..Conn::default()
        }
    }

    #[test]
    fn a_syn_is_decided_by_what_its_very_4_tuple_is_registered_as() {
        let closed = Conn {
            closed_ns: 1,
            ..conn(ConnKind::REDIRECT, 7, 0, CONFIG.generation)
        };
        let outbound = Lookup::Assign(ListenerSlot::OUTBOUND);
        let plaintext = Lookup::Assign(ListenerSlot::PLAINTEXT);
        let own_drop = Lookup::Drop(Reason::UnregisteredOwnAddress);
        let (own, other) = (own_v4(), peer());
        let generation = CONFIG.generation;
        let table = [
            // source, registered entry, expected
            (own, Some(conn(ConnKind::REDIRECT, 7, 0, generation)), outbound),
            (own, Some(closed), own_drop),
            (own, Some(conn(ConnKind::REDIRECT, 8, 0, generation)), own_drop),
            // Bound to another address of the pod.
            (other, Some(conn(ConnKind::REDIRECT, 7, 0, generation)), outbound),
            (
                own,
                Some(conn(ConnKind::DELIVERY, 7, 0, generation)),
                Lookup::Pass,
            ),
            (own, Some(conn(ConnKind::DELIVERY, 8, 0, generation)), own_drop),
            (
                other,
                Some(conn(ConnKind::DIRECT, 8, 7, generation)),
                Lookup::Pass,
            ),
            (
                other,
                Some(conn(ConnKind::DIRECT, 8, 7, generation - 1)),
                plaintext,
            ),
            (other, Some(conn(ConnKind::DIRECT, 8, 9, generation)), plaintext),
            (
                own,
                Some(conn(ConnKind::DIRECT, 7, 7, generation - 1)),
                Lookup::Pass,
            ),
            // Another pod that gave itself this pod's address.
            (own, Some(conn(ConnKind::DIRECT, 8, 7, generation)), own_drop),
            (other, Some(conn(ConnKind::PASS, 8, 7, generation)), plaintext),
            (other, Some(conn(ConnKind::AGENT, 8, 7, generation)), plaintext),
            (own, None, own_drop),
            (other, None, plaintext),
        ];
        for (src, registered, expected) in table {
            let syn = Syn {
                src,
                dst: own_v4(),
                ifindex: 5,
            };
            let got = lookup(&POD, &syn, registered.as_ref(), false, generation);
            assert_eq!(got, expected, "{src:?} {registered:?}");
        }
    }

    #[test]
    fn strict_refuses_what_is_neither_registered_nor_hbone() {
        let syn = |port| Syn {
            src: peer(),
            dst: Endpoint::v4(POD.v4, port),
            ifindex: 5,
        };
        assert_eq!(
            lookup(&POD, &syn(80), None, true, 3),
            Lookup::Drop(Reason::PlaintextToStrict)
        );
        let hbone = Lookup::Assign(ListenerSlot::HBONE);
        for strict in [true, false] {
            assert_eq!(lookup(&POD, &syn(15008), None, strict, 3), hbone);
        }
    }

    #[test]
    fn loopback_passes_only_when_it_came_in_by_loopback() {
        let loopback = Endpoint::v4(0x0100_007f, 80);
        let syn = |ifindex| Syn {
            src: loopback,
            dst: loopback,
            ifindex,
        };
        assert_eq!(lookup(&POD, &syn(1), None, true, 3), Lookup::Pass);
        assert_eq!(
            lookup(&POD, &syn(2), None, true, 3),
            Lookup::Drop(Reason::PlaintextToStrict)
        );
        // To the pod's own address by loopback: still only what is registered.
        let own = Syn {
            src: own_v4(),
            dst: own_v4(),
            ifindex: 1,
        };
        assert_eq!(
            lookup(&POD, &own, None, true, 3),
            Lookup::Drop(Reason::UnregisteredOwnAddress)
        );
    }

    #[test]
    fn a_pod_without_an_ipv6_address_has_no_own_ipv6_address() {
        let pod = Pod { v6: [0; 4], ..POD };
        let src = Endpoint::v6([0xfd, 0, 0, 9], 1);
        let syn = Syn {
            src,
            dst: Endpoint::v6([0xfd, 0, 0, 3], 80),
            ifindex: 5,
        };
        assert_eq!(
            lookup(&pod, &syn, None, false, 3),
            Lookup::Assign(ListenerSlot::PLAINTEXT)
        );
    }

    #[test]
    fn a_redirected_connection_never_goes_to_its_own_port_nor_to_one_that_the_kernel_could_give_it() {
        let mut ports = std::collections::HashSet::new();
        for host in 0..100_u32 {
            for port in [1, 80, 443, 8080, 32_768, 40_000, 65_535] {
                let dst = Endpoint::v4((0x0a01_0000 + host).to_be(), port);
                let to = redirect_port(&dst, 0);
                assert!((1..=1022).contains(&to), "{to}");
                assert_ne!(redirect_port(&dst, to), to);
                assert!((1..=1023).contains(&redirect_port(&dst, to)));
                ports.insert(to);
            }
        }
        assert!(ports.len() > 300, "destinations are spread: {}", ports.len());
    }

    #[test]
    fn link_local_destinations_are_let_pass() {
        for dst in [
            Endpoint::v4(0xa9fe_a9fe_u32.to_be(), 80),
            Endpoint::v6([0xfe80_0000_u32.to_be(), 0, 0, 1], 80),
        ] {
            assert_eq!(connect(&POD, &dst, 0, None, &CONFIG, NOW), Connect::Pass);
        }
    }
}
