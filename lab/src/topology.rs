//! How a lab's namespaces are wired: a bridge a node, a cable between the nodes (or a switch), a cable a pod.
//!
//! Addresses follow from numbers: pod `h` of node `n` is 10.n.0.h and fd00:n::h, its node 10.n.0.1 and fd00:n::1;
//! node `n` is 10.255.0.n and fd00:ff::n to other nodes; the host outside is .254 there.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    path::Path,
};

use anyhow::Result;

use crate::netns;

/// The host outside, on the link between the nodes.
pub(crate) const OUTSIDE: u8 = 254;
/// A node's interface towards the other nodes.
pub(crate) const UPLINK: &str = "up0";

/// A node's own address on its bridge.
const GATEWAY: u8 = 1;
const LINK: u8 = 255;

pub(crate) fn pod_v4(node: u8, host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, node, 0, host)
}

pub(crate) fn pod_v6(node: u8, host: u8) -> Ipv6Addr {
    // Written as the IPv4 address is, in decimal digits: pod 10.1.0.12 is fd00:1::12.
    Ipv6Addr::new(0xfd00, digits(node), 0, 0, 0, 0, 0, digits(host))
}

pub(crate) fn link_v4(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, LINK, 0, host)
}

pub(crate) fn link_v6(host: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0xff, 0, 0, 0, 0, 0, digits(host))
}

fn digits(number: u8) -> u16 {
    let number = u16::from(number);
    ((number / 100) << 8) | ((number / 10 % 10) << 4) | (number % 10)
}

/// Settings that must be there before a namespace's links are, since links copy them when they are made.
pub(crate) fn prepare(netns: &Path) -> Result<()> {
    netns::sysctl(
        netns,
        &[
            // Addresses are usable at once, and only those that the lab gave.
            ("net/ipv6/conf/all/disable_ipv6", "0"),
            ("net/ipv6/conf/default/disable_ipv6", "0"),
            ("net/ipv6/conf/default/accept_dad", "0"),
            ("net/ipv6/conf/default/accept_ra", "0"),
            // A node that routes between two pods of one bridge would tell them to go round it.
            ("net/ipv4/conf/all/send_redirects", "0"),
            ("net/ipv4/conf/default/send_redirects", "0"),
            ("net/ipv4/conf/all/accept_redirects", "0"),
            ("net/ipv4/conf/default/accept_redirects", "0"),
            ("net/ipv6/conf/all/accept_redirects", "0"),
            ("net/ipv6/conf/default/accept_redirects", "0"),
            // Distributions differ, and IPv4 inherits theirs.
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/default/rp_filter", "0"),
        ],
    )
}

/// Wires `nodes` nodes, and the host outside if there is one, through a switch where a cable is not enough.
pub(crate) fn wire_nodes(nodes: &[String], outside: Option<&str>, switch: Option<&str>) -> Result<()> {
    if let Some(switch) = switch {
        netns::ip(Some(switch), &bridge("sw0"))?;
        let members = numbered(nodes).chain(outside.map(|name| (OUTSIDE, name)));
        for (number, name) in members {
            let port = format!("p{number}");
            netns::ip(
                None,
                &[format!(
                    "link add {UPLINK} netns {name} type veth peer name {port} netns {switch}"
                )],
            )?;
            netns::ip(Some(switch), &[format!("link set {port} master sw0 up")])?;
        }
    } else if let [one, two] = nodes {
        netns::ip(
            None,
            &[format!(
                "link add {UPLINK} netns {one} type veth peer name {UPLINK} netns {two}"
            )],
        )?;
    }
    for (number, name) in numbered(nodes) {
        let mut lines = bridge("br0");
        lines.push("link set lo up".to_owned());
        lines.push(format!("addr add {}/24 dev br0", pod_v4(number, GATEWAY)));
        lines.push(format!("addr add {}/64 dev br0 nodad", pod_v6(number, GATEWAY)));
        if switch.is_some() || nodes.len() > 1 {
            lines.extend(uplink(number));
            lines.extend(routes(nodes, Some(number)));
        }
        netns::ip(Some(name), &lines)?;
        netns::sysctl(
            &netns::path(name),
            &[
                ("net/ipv4/ip_forward", "1"),
                ("net/ipv6/conf/all/forwarding", "1"),
            ],
        )?;
    }
    if let Some(name) = outside {
        let mut lines = vec!["link set lo up".to_owned()];
        lines.extend(uplink(OUTSIDE));
        lines.extend(routes(nodes, None));
        netns::ip(Some(name), &lines)?;
    }
    Ok(())
}

/// Wires a pod to its node's bridge. `port` is the node's end of the cable.
pub(crate) fn wire_pod(
    netns_of_node: &str,
    netns_of_pod: &str,
    node: u8,
    host: u8,
    port: &str,
) -> Result<()> {
    // A link address that follows from the pod's, so that a neighbour's memory of an earlier pod with it stays true.
    let mac = format!("02:00:0a:{node:02x}:00:{host:02x}");
    netns::ip(
        None,
        &[format!(
            "link add eth0 netns {netns_of_pod} address {mac} type veth peer name {port} netns {netns_of_node}"
        )],
    )?;
    netns::ip(Some(netns_of_node), &[format!("link set {port} master br0 up")])?;
    netns::ip(
        Some(netns_of_pod),
        &[
            "link set lo up".to_owned(),
            "link set eth0 up".to_owned(),
            format!("addr add {}/24 dev eth0", pod_v4(node, host)),
            format!("addr add {}/64 dev eth0 nodad", pod_v6(node, host)),
            format!("route add default via {}", pod_v4(node, GATEWAY)),
            format!("route add ::/0 via {} dev eth0", pod_v6(node, GATEWAY)),
        ],
    )
}

fn numbered(nodes: &[String]) -> impl Iterator<Item = (u8, &str)> {
    (1..).zip(nodes.iter().map(String::as_str))
}

fn bridge(name: &str) -> Vec<String> {
    // Neighbour discovery is multicast, and must reach a port that has just come up.
    vec![
        format!("link add {name} type bridge forward_delay 0 stp_state 0 mcast_snooping 0"),
        format!("link set {name} up"),
    ]
}

fn uplink(number: u8) -> Vec<String> {
    vec![
        format!("link set {UPLINK} up"),
        format!("addr add {}/24 dev {UPLINK}", link_v4(number)),
        format!("addr add {}/64 dev {UPLINK} nodad", link_v6(number)),
    ]
}

fn routes(nodes: &[String], own: Option<u8>) -> Vec<String> {
    let others = numbered(nodes)
        .map(|(number, _)| number)
        .filter(|number| Some(*number) != own);
    others
        .flat_map(|number| {
            [
                format!("route add {}/24 via {}", pod_v4(number, 0), link_v4(number)),
                format!(
                    "route add {}/64 via {} dev {UPLINK}",
                    pod_v6(number, 0),
                    link_v6(number)
                ),
            ]
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_addresses_of_a_pod_read_alike() {
        for (node, host, v4, v6) in [
            (1, 2, "10.1.0.2", "fd00:1::2"),
            (12, 254, "10.12.0.254", "fd00:12::254"),
        ] {
            assert_eq!(pod_v4(node, host).to_string(), v4);
            assert_eq!(pod_v6(node, host).to_string(), v6);
        }
    }
}
