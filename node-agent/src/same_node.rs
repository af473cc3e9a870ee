//! How two pods of this node reach each other: directly, authenticated by the kernel, or over mutual TLS.

use std::{fs, io};

use weir_policy::{Request, Verdict};

use crate::{config::SameNodeMode, mesh::Mesh, netns::NetNs};

/// How a pod hangs on its node's network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// Everything goes by a gateway: no other pod sees its packets.
    PointToPoint,
    /// Some addresses are on its link: other pods may be neighbours who can read and alter its packets.
    Shared,
}

/// How connections between two pods of this node go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SameNode {
    /// Straight from socket to socket.
    pub direct: bool,
    /// Why, for a person.
    pub why: &'static str,
}

/// What a decision about a pod of this node needs to know besides the configuration.
#[derive(Debug, Clone, Copy)]
pub struct Ends {
    /// How the source hangs on the network.
    pub source: Link,
    /// How the destination does.
    pub destination: Link,
    /// Whether this kernel ends a direct connection on request: without, none is made.
    pub can_destroy: bool,
}

/// Ports of the mesh itself: HBONE, and those that its peers use for their own.
pub const MESH_PORTS: [u16; 3] = [15001, 15006, weir_abi::HBONE_PORT];

/// Decides how a connection between two pods of this node goes, by their uids. `anonymous` is the connection as it would be
/// judged if nobody vouched for its client.
#[must_use]
pub fn resolve(
    mesh: &Mesh,
    source: &str,
    destination: &str,
    anonymous: &Request<'_>,
    ends: Ends,
) -> SameNode {
    let (Some(from), Some(to)) = (mesh.local().get(source), mesh.local().get(destination)) else {
        return mtls("one of them is not a pod of this node");
    };
    let modes = [from.same_node, to.same_node];
    if MESH_PORTS.contains(&anonymous.destination_port) {
        return mtls("a port of the mesh itself");
    }
    if modes.contains(&SameNodeMode::Mtls) {
        return mtls("sameNode is mtls");
    }
    if !ends.can_destroy {
        return mtls("this kernel cannot end direct connections (CONFIG_INET_DIAG_DESTROY)");
    }
    if modes.contains(&SameNodeMode::Direct) {
        return direct("sameNode is direct");
    }
    if ends.source == Link::PointToPoint && ends.destination == Link::PointToPoint {
        return direct("auto: both pods hang on point-to-point links");
    }
    // Whoever could pose as the client gains nothing by it.
    let decision = mesh.policies_of(&to.workload).decide(anonymous);
    if matches!(decision.verdict, Verdict::Allowed(_)) {
        return direct("auto: the destination accepts it in plaintext, from anybody at that address");
    }
    mtls("auto: the destination asks who it is, and pods that share a layer 2 segment could pose as another")
}

fn direct(why: &'static str) -> SameNode {
    SameNode { direct: true, why }
}

fn mtls(why: &'static str) -> SameNode {
    SameNode { direct: false, why }
}

// === impl Link ===

impl Link {
    /// Looks at the routes of a pod's namespace.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn of(netns: &NetNs) -> io::Result<Self> {
        let read = |path: &str| match fs::read_to_string(path) {
            // No IPv6 in this kernel.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
            other => other,
        };
        let (v4, v6) = netns.run(|| {
            io::Result::Ok((
                read("/proc/thread-self/net/route")?,
                read("/proc/thread-self/net/ipv6_route")?,
            ))
        })??;
        Ok(Self::from_routes(&v4, &v6))
    }

    /// From the texts of `/proc/net/route` and `/proc/net/ipv6_route`, with the columns that net/ipv4/fib_trie.c and
    /// net/ipv6/route.c print. What is not understood counts as shared.
    fn from_routes(v4: &str, v6: &str) -> Self {
        let shared = v4.lines().skip(1).any(|line| is_on_link_v4(line).unwrap_or(true))
            || v6.lines().any(|line| is_on_link_v6(line).unwrap_or(true));
        if shared { Self::Shared } else { Self::PointToPoint }
    }
}

/// The route goes by a gateway (linux/route.h).
const RTF_GATEWAY: u32 = 0x2;
/// The route refuses what it matches.
const RTF_REJECT: u32 = 0x200;
/// The route is to an address of this host (linux/ipv6_route.h).
const RTF_LOCAL: u32 = 0x8000_0000;
/// Loopback's name, in every namespace.
const LOOPBACK: &str = "lo";

/// Whether a route leads to more than one address without a gateway.
fn is_on_link_v4(line: &str) -> Option<bool> {
    let columns: Vec<&str> = line.split_whitespace().collect();
    let (interface, flags, mask) = (columns.first()?, columns.get(3)?, columns.get(7)?);
    let flags = u32::from_str_radix(flags, 16).ok()?;
    let mask = u32::from_str_radix(mask, 16).ok()?;
    Some(*interface != LOOPBACK && flags & (RTF_GATEWAY | RTF_REJECT) == 0 && mask != u32::MAX)
}

fn is_on_link_v6(line: &str) -> Option<bool> {
    let columns: Vec<&str> = line.split_whitespace().collect();
    let (destination, length) = (columns.first()?, columns.get(1)?);
    let (flags, interface) = (columns.get(8)?, columns.get(9)?);
    let length = u32::from_str_radix(length, 16).ok()?;
    let flags = u32::from_str_radix(flags, 16).ok()?;
    // Link-local and multicast addresses are on every link; no pod is known by one.
    let is_for_the_link = destination.starts_with("fe8") || destination.starts_with("ff");
    Some(
        *interface != LOOPBACK
            && flags & (RTF_GATEWAY | RTF_REJECT | RTF_LOCAL) == 0
            && length < 128
            && !is_for_the_link,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str =
        "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n";
    const DEFAULT: &str = "eth0\t00000000\t0101FEA9\t0003\t0\t0\t0\t00000000\t0\t0\t0\n";
    const GATEWAY: &str = "eth0\t0101FEA9\t00000000\t0001\t0\t0\t0\tFFFFFFFF\t0\t0\t0\n";
    const SUBNET: &str = "eth0\t0000010A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
    const DEFAULT_6: &str = "00000000000000000000000000000000 00 00000000000000000000000000000000 00 fe800000000000000000000000000001 00000400 00000001 00000000 00000003     eth0\n";
    const LINK_LOCAL_6: &str = "fe800000000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00000001     eth0\n";
    const OWN_6: &str = "fd000001000000000000000000000002 80 00000000000000000000000000000000 00 00000000000000000000000000000000 00000000 00000002 00000000 80200001     eth0\n";
    const SUBNET_6: &str = "fd000001000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00000001     eth0\n";

    #[test]
    fn a_pod_whose_routes_all_go_by_a_gateway_hangs_on_a_point_to_point_link() {
        let gateway_only = format!("{HEAD}{DEFAULT}{GATEWAY}");
        let v6 = format!("{DEFAULT_6}{LINK_LOCAL_6}{OWN_6}");
        for (v4, v6, expected) in [
            (gateway_only.clone(), v6.clone(), Link::PointToPoint),
            (gateway_only.clone(), String::new(), Link::PointToPoint),
            (HEAD.to_owned(), String::new(), Link::PointToPoint),
            (format!("{gateway_only}{SUBNET}"), v6.clone(), Link::Shared),
            (gateway_only.clone(), format!("{v6}{SUBNET_6}"), Link::Shared),
            (format!("{HEAD}eth0 what is this\n"), v6, Link::Shared),
        ] {
            assert_eq!(Link::from_routes(&v4, &v6), expected, "{v4}{v6}");
        }
    }
}
