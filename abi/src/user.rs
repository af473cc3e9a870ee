//! What only user space needs: conversions to and from `std` types.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::{Endpoint, Event, Pod};

impl Endpoint {
    /// The address; v4-mapped ones as IPv4.
    #[must_use]
    pub fn ip(&self) -> IpAddr {
        IpAddr::V6(Ipv6Addr::from(address_bytes(self.addr))).to_canonical()
    }

    /// Address and port; v4-mapped addresses as IPv4. A port above 65535 (never seen) reads as 0.
    #[must_use]
    pub fn socket_addr(&self) -> SocketAddr {
        SocketAddr::new(self.ip(), u16::try_from(self.port).unwrap_or(0))
    }
}

impl Event {
    /// As it stands in the ring buffer.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; size_of::<Self>()] {
        // SAFETY: repr(C), of integers alone and without padding (its size is asserted): every byte has a value.
        unsafe { core::mem::transmute(*self) }
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(addr: SocketAddr) -> Self {
        Self {
            addr: address_words(addr.ip()),
            port: u32::from(addr.port()),
        }
    }
}

impl Pod {
    /// The same, whose connections are only recorded if that is so.
    #[must_use]
    pub fn observed(self, observed: bool) -> Self {
        Self {
            observed: observed.into(),
            ..self
        }
    }

    /// A pod with these addresses; the first of each family counts.
    #[must_use]
    pub fn new(handle: u32, addresses: &[IpAddr]) -> Self {
        let mut pod = Self {
            handle,
            ..Self::default()
        };
        for address in addresses.iter().rev() {
            match address.to_canonical() {
                IpAddr::V4(v4) => pod.v4 = u32::from_ne_bytes(v4.octets()),
                IpAddr::V6(_) => pod.v6 = address_words(*address),
            }
        }
        pod
    }
}

/// The words of an address, IPv4 as v4-mapped.
#[must_use]
pub fn address_words(ip: IpAddr) -> [u32; 4] {
    let octets = match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    let word = |i: usize| u32::from_ne_bytes([octets[i], octets[i + 1], octets[i + 2], octets[i + 3]]);
    [word(0), word(4), word(8), word(12)]
}

fn address_bytes(words: [u32; 4]) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (chunk, word) in bytes.chunks_exact_mut(4).zip(words) {
        chunk.copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn socket_addresses_survive_the_round_trip() {
        for text in ["10.1.0.2:80", "[fd00:1::2]:65535", "0.0.0.0:0", "[::]:1"] {
            let addr: SocketAddr = text.parse().unwrap();
            assert_eq!(Endpoint::from(addr).socket_addr(), addr, "{text}");
        }
        let mapped: SocketAddr = "[::ffff:10.0.0.1]:5".parse().unwrap();
        assert_eq!(
            Endpoint::from(mapped).socket_addr(),
            "10.0.0.1:5".parse::<SocketAddr>().unwrap()
        );
    }

    #[test]
    fn a_pod_takes_its_first_address_of_each_family() {
        let ips = ["10.0.0.1", "10.0.0.2", "fd00::1", "fd00::2"].map(|t| t.parse::<IpAddr>().unwrap());
        let pod = Pod::new(1, &ips);
        assert_eq!(pod.v4.to_ne_bytes(), [10, 0, 0, 1]);
        assert_eq!(pod.v6, address_words(ips[2]));
    }
}
