//! A TCP SYN as somebody sends it who does not ask the kernel for a connection.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result};
use socket2::{Domain, Protocol, Socket, Type};

/// IPPROTO_RAW: the packet comes with its IP header, with whatever source it names.
const RAW: i32 = 255;
const TCP: u8 = 6;
const TCP_HEADER: u8 = 20;
const SYN: u8 = 2;
const TTL: u8 = 64;

/// Sends a SYN from the network namespace of the calling thread.
///
/// # Errors
/// When the caller lacks CAP_NET_RAW, or there is no way to the destination.
pub fn send_syn(from: SocketAddr, to: SocketAddr) -> Result<()> {
    let socket =
        Socket::new(Domain::for_address(to), Type::RAW, Some(Protocol::from(RAW))).context("a raw socket")?;
    // The address alone counts; as a port the kernel would take a protocol.
    let next = SocketAddr::new(to.ip(), 0);
    socket
        .send_to(&packet(from, to), &next.into())
        .with_context(|| format!("sending to {to}"))?;
    Ok(())
}

fn packet(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let (mut packet, addresses) = match (from.ip(), to.ip()) {
        (IpAddr::V4(source), IpAddr::V4(target)) => {
            let addresses = [source.octets(), target.octets()].concat();
            // The kernel fills in length and checksum (raw(7)).
            let mut header = vec![0x45, 0, 0, 0, 0, 0, 0, 0, TTL, TCP, 0, 0];
            header.extend(&addresses);
            (header, addresses)
        }
        (source, target) => {
            let octets = |ip| match ip {
                IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
                IpAddr::V6(v6) => v6.octets(),
            };
            let addresses = [octets(source), octets(target)].concat();
            let mut header = vec![0x60, 0, 0, 0, 0, TCP_HEADER, TCP, TTL];
            header.extend(&addresses);
            (header, addresses)
        }
    };
    let mut segment = Vec::new();
    segment.extend(from.port().to_be_bytes());
    segment.extend(to.port().to_be_bytes());
    // Sequence and acknowledgement numbers; header length in words; flags; window; checksum; urgent pointer.
    segment.extend([
        0,
        0,
        0,
        1,
        0,
        0,
        0,
        0,
        (TCP_HEADER / 4) << 4,
        SYN,
        0xff,
        0xff,
        0,
        0,
        0,
        0,
    ]);
    let pseudo = [&addresses[..], &[0, TCP, 0, TCP_HEADER], &segment].concat();
    segment[16..18].copy_from_slice(&checksum(&pseudo).to_be_bytes());
    packet.extend(segment);
    packet
}

/// RFC 1071, of a whole number of words.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}
