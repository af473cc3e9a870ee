use super::*;
use crate::VerdictKey;

const POD: Pod = Pod {
    handle: 7,
    v4: 0x0200_010a,
    v6: [0xfd, 0, 0, 2],
    observed: 0,
};
const NOW: u64 = 100;
const CONFIG: Config = Config {
    lease_until_ns: NOW + 1,
    generation: 3,
    next_handle: 0,
    kubelet_cgroup: 0,
    host_netns: 0,
};

/// What is cached for a destination of which nothing is known.
const NOTHING: Verdict = Verdict {
    kind: VerdictKind::REDIRECT,
    generation: CONFIG.generation,
    dest_pod: 0,
    reason: 0,
    set: 0,
    count: 0,
    key: VerdictKey {
        pod: 0,
        dst: Endpoint::v4(0, 0),
    },
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
        set: 5,
        count: 2,
        ..Verdict::default()
    }
}

fn redirected(dst: &Endpoint, pod: &Pod) -> Connect {
    Connect::Redirect {
        to: Endpoint {
            addr: own_address(pod, dst.is_v4()),
            port: redirect_port(dst, 0),
        },
        pick: Endpoint::default(),
    }
}

#[test]
fn a_destination_without_a_verdict_goes_to_the_agent_at_the_pods_own_address() {
    assert_eq!(
        connect(&POD, &peer(), 0, &NOTHING, &CONFIG, NOW),
        redirected(&peer(), &POD)
    );
    let v6 = Endpoint::v6([0xfd, 0, 0, 9], 80);
    assert_eq!(
        connect(&POD, &v6, 0, &NOTHING, &CONFIG, NOW),
        redirected(&v6, &POD)
    );
}

#[test]
fn local_destinations_never_reach_the_agent() {
    for dst in [
        Endpoint::v4(0x0100_007f, 1),
        Endpoint::v4(0, 1),
        Endpoint::v6([0; 4], 1),
    ] {
        assert_eq!(connect(&POD, &dst, 0, &NOTHING, &CONFIG, NOW), Connect::Ignore);
    }
    assert_eq!(
        connect(&POD, &own_v4(), 0, &NOTHING, &CONFIG, NOW),
        Connect::Direct {
            dest_pod: 7,
            to: None
        }
    );
    let own_v6 = Endpoint::v6(POD.v6, 80);
    assert_eq!(
        connect(&POD, &own_v6, 0, &NOTHING, &CONFIG, NOW),
        Connect::Direct {
            dest_pod: 7,
            to: None
        }
    );
}

#[test]
fn an_observed_pods_connections_pass_whatever_is_remembered() {
    let pod = Pod { observed: 1, ..POD };
    for kind in [VerdictKind::REDIRECT, VerdictKind::DIRECT, VerdictKind::DENY] {
        assert_eq!(
            connect(&pod, &peer(), 0, &verdict(kind), &CONFIG, NOW),
            Connect::Pass
        );
    }
    let own = Endpoint::v4(POD.v4, 80);
    assert_eq!(connect(&pod, &own, 0, &NOTHING, &CONFIG, NOW), Connect::Pass);
}

#[test]
fn a_verdict_holds_only_under_its_generation_and_within_the_lease() {
    let redirect = redirected(&peer(), &POD);
    let table = [
        (VerdictKind::PASS, Connect::Pass),
        (
            VerdictKind::DIRECT,
            Connect::Direct {
                dest_pod: 9,
                to: None,
            },
        ),
        (VerdictKind::SERVICE, Connect::Service { set: 5, count: 2 }),
        (VerdictKind::DENY, Connect::Deny(Reason::DeniedByVerdict)),
        (VerdictKind::REDIRECT, redirect),
        (99, redirect),
    ];
    for (kind, expected) in table {
        let verdict = verdict(kind);
        assert_eq!(connect(&POD, &peer(), 0, &verdict, &CONFIG, NOW), expected);
        let stale = Verdict {
            generation: CONFIG.generation - 1,
            ..verdict
        };
        assert_eq!(connect(&POD, &peer(), 0, &stale, &CONFIG, NOW), redirect);
        let expired = CONFIG.lease_until_ns;
        assert_eq!(connect(&POD, &peer(), 0, &verdict, &CONFIG, expired), redirect);
    }
}

#[test]
fn a_family_that_the_pod_lacks_is_denied_rather_than_let_out() {
    let pod = Pod { v6: [0; 4], ..POD };
    let v6 = Endpoint::v6([0xfd, 0, 0, 9], 80);
    assert_eq!(
        connect(&pod, &v6, 0, &NOTHING, &CONFIG, NOW),
        Connect::Deny(Reason::NoAddressOfFamily)
    );
    let pod = Pod { v4: 0, ..POD };
    assert_eq!(
        connect(&pod, &peer(), 0, &NOTHING, &CONFIG, NOW),
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
        (
            other,
            Some(conn(ConnKind::DIRECT, 8, 9, generation)),
            Lookup::Drop(Reason::WrongIdentity),
        ),
        (own, Some(conn(ConnKind::DIRECT, 8, 7, generation - 1)), own_drop),
        (other, Some(conn(ConnKind::HOST, 0, 0, generation)), plaintext),
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
        let got = lookup(&POD, &syn, registered.as_ref(), false, generation, || false);
        assert_eq!(got, expected, "{src:?} {registered:?}");
    }
}

#[test]
fn the_kubelet_reaches_a_strict_pod_at_its_probed_ports_only() {
    let syn = |src| Syn {
        src,
        dst: own_v4(),
        ifindex: 5,
    };
    let host = conn(ConnKind::HOST, 0, 0, 0);
    let strict = Lookup::Drop(Reason::PlaintextToStrict);
    for (src, is_probed, expected) in [
        (peer(), true, Lookup::Assign(ListenerSlot::PLAINTEXT)),
        (peer(), false, strict),
        (own_v4(), true, Lookup::Drop(Reason::UnregisteredOwnAddress)),
    ] {
        let got = lookup(&POD, &syn(src), Some(&host), true, 3, || is_probed);
        assert_eq!(got, expected, "{src:?} {is_probed}");
    }
}

#[test]
fn a_picked_backend_is_reached_directly_only_on_this_node_and_in_the_clients_family() {
    let vip = Endpoint::v4(0x0100_600a, 80);
    let local = Backend {
        address: peer(),
        dest_pod: 9,
        ..Backend::default()
    };
    let remote = Backend { dest_pod: 0, ..local };
    let v6 = Backend {
        address: Endpoint::v6([0xfd, 0, 0, 9], 80),
        ..local
    };
    let redirected = |pick| Connect::Redirect {
        to: Endpoint::v4(POD.v4, redirect_port(&vip, 0)),
        pick,
    };
    let direct = Connect::Direct {
        dest_pod: 9,
        to: Some(peer()),
    };
    assert_eq!(backend(&POD, &vip, 0, &local), direct);
    assert_eq!(backend(&POD, &vip, 0, &remote), redirected(peer()));
    assert_eq!(backend(&POD, &vip, 0, &v6), redirected(v6.address));
    assert_eq!(
        backend(&POD, &vip, 0, &Backend::default()),
        redirected(Endpoint::default())
    );
}

#[test]
fn every_backend_is_picked_equally_often() {
    for count in [1, 2, 3, 7, 1000] {
        let mut picked = vec![0_u32; count as usize];
        let draws = count * 1000;
        for draw in 0..draws {
            // Evenly spread over all random numbers.
            let random = ((u64::from(draw) << 32) / u64::from(draws)) as u32;
            picked[pick(random, count) as usize] += 1;
        }
        assert!(
            picked.iter().all(|n| (999..=1001).contains(n)),
            "{count}: {picked:?}"
        );
    }
    assert_eq!(pick(u32::MAX, 3), 2);
}

#[test]
fn strict_refuses_what_is_neither_registered_nor_hbone() {
    let syn = |port| Syn {
        src: peer(),
        dst: Endpoint::v4(POD.v4, port),
        ifindex: 5,
    };
    assert_eq!(
        lookup(&POD, &syn(80), None, true, 3, || true),
        Lookup::Drop(Reason::PlaintextToStrict)
    );
    let hbone = Lookup::Assign(ListenerSlot::HBONE);
    for strict in [true, false] {
        assert_eq!(lookup(&POD, &syn(15008), None, strict, 3, || true), hbone);
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
    assert_eq!(lookup(&POD, &syn(1), None, true, 3, || true), Lookup::Pass);
    assert_eq!(
        lookup(&POD, &syn(2), None, true, 3, || true),
        Lookup::Drop(Reason::PlaintextToStrict)
    );
    // To the pod's own address by loopback: still only what is registered.
    let own = Syn {
        src: own_v4(),
        dst: own_v4(),
        ifindex: 1,
    };
    assert_eq!(
        lookup(&POD, &own, None, true, 3, || true),
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
        lookup(&pod, &syn, None, false, 3, || true),
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
        assert_eq!(connect(&POD, &dst, 0, &NOTHING, &CONFIG, NOW), Connect::Pass);
    }
}
