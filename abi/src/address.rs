//! Addresses as the kernel gives them: IPv6 words in network order, IPv4 as v4-mapped IPv6.

/// An address and a TCP port.
///
/// `addr` holds the 16 address bytes in network order, as four words like the kernel's context fields do;
/// IPv4 is `::ffff:a.b.c.d`. `port` is in host order.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
#[cfg_attr(any(test, feature = "user"), derive(Debug))]
pub struct Endpoint {
    /// Address words, network order.
    pub addr: [u32; 4],
    /// TCP port, host order.
    pub port: u32,
}

/// The third word of a v4-mapped address, in network order.
pub const V4_MAPPED_WORD: u32 = 0xffff_u32.to_be();

impl Endpoint {
    /// An IPv4 endpoint; `addr` in network order.
    #[inline(always)]
    #[must_use]
    pub const fn v4(addr: u32, port: u32) -> Self {
        Self {
            addr: [0, 0, V4_MAPPED_WORD, addr],
            port,
        }
    }

    /// An IPv6 (or v4-mapped) endpoint; words in network order.
    #[inline(always)]
    #[must_use]
    pub const fn v6(addr: [u32; 4], port: u32) -> Self {
        Self { addr, port }
    }

    /// Whether the address is IPv4 (v4-mapped).
    #[inline(always)]
    #[must_use]
    pub const fn is_v4(&self) -> bool {
        is_v4(&self.addr)
    }
}

/// Whether address words are a v4-mapped IPv6 address (RFC 4291, section 2.5.5.2).
#[inline(always)]
#[must_use]
pub const fn is_v4(addr: &[u32; 4]) -> bool {
    addr[0] == 0 && addr[1] == 0 && addr[2] == V4_MAPPED_WORD
}

/// Whether two addresses are equal, word by word (no memcmp: the kernel has none).
#[inline(always)]
#[must_use]
pub const fn same_address(a: &[u32; 4], b: &[u32; 4]) -> bool {
    a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3]
}

/// Whether the address is unspecified: `::`, or 0.0.0.0 in its v4-mapped form.
#[inline(always)]
#[must_use]
pub const fn is_unspecified(addr: &[u32; 4]) -> bool {
    addr[0] == 0 && addr[1] == 0 && addr[3] == 0 && (addr[2] == 0 || addr[2] == V4_MAPPED_WORD)
}

/// Whether the address is loopback: `::1`, or 127.0.0.0/8 (RFC 1122, section 3.2.1.3).
#[inline(always)]
#[must_use]
pub const fn is_loopback(addr: &[u32; 4]) -> bool {
    if is_v4(addr) {
        u32::from_be(addr[3]) >> 24 == 127
    } else {
        addr[0] == 0 && addr[1] == 0 && addr[2] == 0 && addr[3] == 1_u32.to_be()
    }
}

/// Whether the address is link-local: `fe80::/10`, or 169.254.0.0/16 (RFC 4291 section 2.5.6, RFC 3927).
#[inline(always)]
#[must_use]
pub const fn is_link_local(addr: &[u32; 4]) -> bool {
    if is_v4(addr) {
        u32::from_be(addr[3]) >> 16 == 0xa9fe
    } else {
        u32::from_be(addr[0]) >> 22 == 0xfe80 >> 6
    }
}

/// A connection's whole 4-tuple, as its client sees it.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
#[cfg_attr(any(test, feature = "user"), derive(Debug))]
pub struct FlowKey {
    /// The end that sent the SYN.
    pub src: Endpoint,
    /// The end that received the SYN.
    pub dst: Endpoint,
}

impl FlowKey {
    /// A number that differs between two connections that are alike in all but a port, and nearly always else.
    #[inline(always)]
    #[must_use]
    pub const fn tag(&self) -> u64 {
        let ports = ((self.src.port as u64) << 16) | self.dst.port as u64;
        let (a, b) = (&self.src.addr, &self.dst.addr);
        let mix = a[0] ^ a[1].rotate_left(3) ^ a[2].rotate_left(7) ^ a[3].rotate_left(11);
        let mix =
            mix ^ b[0].rotate_left(15) ^ b[1].rotate_left(19) ^ b[2].rotate_left(23) ^ b[3].rotate_left(27);
        ports << 32 | mix as u64
    }

    /// The same connection seen from the other end.
    #[inline(always)]
    #[must_use]
    pub const fn reversed(&self) -> Self {
        Self {
            src: self.dst,
            dst: self.src,
        }
    }
}

const _: () = assert!(size_of::<Endpoint>() == 20);
const _: () = assert!(size_of::<FlowKey>() == 40);

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> [u32; 4] {
        let octets = match text.parse::<core::net::IpAddr>().unwrap() {
            core::net::IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            core::net::IpAddr::V6(v6) => v6.octets(),
        };
        core::array::from_fn(|i| u32::from_ne_bytes(octets[i * 4..i * 4 + 4].try_into().unwrap()))
    }

    #[test]
    fn addresses_are_classified_by_family_and_scope() {
        // address, IPv4, unspecified, loopback
        let table = [
            ("0.0.0.0", true, true, false),
            ("::", false, true, false),
            ("::ffff:0.0.0.0", true, true, false),
            ("127.0.0.1", true, false, true),
            ("127.255.255.254", true, false, true),
            ("::ffff:127.0.0.1", true, false, true),
            ("::1", false, false, true),
            ("128.0.0.1", true, false, false),
            ("126.0.0.1", true, false, false),
            ("::2", false, false, false),
            ("::127.0.0.1", false, false, false),
            ("1::1", false, false, false),
            ("10.0.0.1", true, false, false),
            ("fd00::1", false, false, false),
            ("0.0.0.1", true, false, false),
        ];
        for (text, v4, unspecified, loopback) in table {
            let addr = words(text);
            assert_eq!(is_v4(&addr), v4, "{text} is IPv4");
            assert_eq!(is_unspecified(&addr), unspecified, "{text} is unspecified");
            assert_eq!(is_loopback(&addr), loopback, "{text} is loopback");
        }
    }

    #[test]
    fn link_local_addresses_are_told_from_others() {
        for (text, expected) in [
            ("169.254.169.254", true),
            ("::ffff:169.254.0.1", true),
            ("169.253.0.1", false),
            ("fe80::1", true),
            ("febf::1", true),
            ("fec0::1", false),
            ("fd00::1", false),
        ] {
            assert_eq!(is_link_local(&words(text)), expected, "{text}");
        }
    }

    #[test]
    fn a_reversed_key_is_the_other_ends_view() {
        let key = FlowKey {
            src: Endpoint::v4(1, 2),
            dst: Endpoint::v4(3, 4),
        };
        assert_eq!(
            key.reversed(),
            FlowKey {
                src: Endpoint::v4(3, 4),
                dst: Endpoint::v4(1, 2)
            }
        );
        assert_eq!(key.reversed().reversed(), key);
        assert_ne!(key.reversed().tag(), key.tag());
    }
}
