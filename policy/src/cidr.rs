//! Blocks of addresses.

use std::{fmt, net::IpAddr, str::FromStr};

/// Bits of a v4-mapped IPv6 address before the IPv4 address (RFC 4291, section 2.5.5.2).
const MAPPED_BITS: u8 = 96;

/// A block of addresses, as `10.0.0.0/8` or `fd00::/8`; one address is a block too.
///
/// Host bits are ignored. v4-mapped IPv6 addresses are IPv4, so `::/0` holds no IPv4 address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cidr {
    network: Address,
    /// Counts from the first of 128 bits, for IPv4 too.
    length: u8,
}

/// Why a text is not a block of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CidrError {
    /// The address is malformed.
    #[error("expected an address, as 10.0.0.1 or fd00::1, or a block, as 10.0.0.0/8 or fd00::/8")]
    Address,
    /// The prefix length is not a number, or too large.
    #[error("expected a prefix length of 0 to {most} after the /")]
    Length {
        /// The largest that the address allows.
        most: u8,
    },
    /// The block holds more than the v4-mapped addresses.
    #[error("expected a prefix length of 96 to 128 for an IPv4 address that is written as IPv6")]
    Mapped,
}

/// An address in canonical form, as bits: IPv4 is v4-mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Address(pub(crate) u128);

// === impl Cidr ===

impl Cidr {
    /// The block of this length, in bits, around an address.
    ///
    /// # Errors
    /// When the length is too large for the address.
    pub fn new(address: IpAddr, length: u8) -> Result<Self, CidrError> {
        let (most, skipped) = match address {
            IpAddr::V4(_) => (32, MAPPED_BITS),
            IpAddr::V6(_) => (128, 0),
        };
        if length > most {
            return Err(CidrError::Length { most });
        }
        let (network, length) = (Address::from(address), length + skipped);
        if network.is_v4() && length < MAPPED_BITS {
            return Err(CidrError::Mapped);
        }
        Ok(Self {
            network: network.masked(length),
            length,
        })
    }

    /// Every IPv4 address.
    pub const EVERY_V4: Self = Self {
        network: Address(0xffff << 32),
        length: MAPPED_BITS,
    };

    /// Every IPv6 address.
    pub const EVERY_V6: Self = Self {
        network: Address(0),
        length: 0,
    };

    /// The first address.
    #[must_use]
    pub fn network(&self) -> IpAddr {
        IpAddr::V6(self.network.0.into()).to_canonical()
    }

    /// How many bits the addresses of the block have in common: 0 to 32, or 128 for IPv6.
    #[must_use]
    pub fn prefix_length(&self) -> u8 {
        if self.network.is_v4() {
            self.length - MAPPED_BITS
        } else {
            self.length
        }
    }

    /// Whether an address is in the block.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = Address::from(address);
        address.is_v4() == self.network.is_v4() && address.masked(self.length) == self.network
    }

    /// The first address, and the length as it counts in 128 bits.
    pub(crate) fn parts(&self) -> (Address, u8) {
        (self.network, self.length)
    }
}

impl From<IpAddr> for Cidr {
    fn from(address: IpAddr) -> Self {
        Self {
            network: Address::from(address),
            length: 128,
        }
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| CidrError::Address)?;
        let Some(length) = length else {
            return Ok(address.into());
        };
        let most = if address.is_ipv4() { 32 } else { 128 };
        // `u8::from_str` takes a sign, which no block has.
        if !length.bytes().all(|b| b.is_ascii_digit()) {
            return Err(CidrError::Length { most });
        }
        Self::new(address, length.parse().map_err(|_| CidrError::Length { most })?)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = std::net::Ipv6Addr::from(self.network.0).to_canonical();
        let length = match address {
            IpAddr::V4(_) => self.length - MAPPED_BITS,
            IpAddr::V6(_) => self.length,
        };
        write!(f, "{address}/{length}")
    }
}

// === impl Address ===

impl Address {
    pub(crate) fn is_v4(self) -> bool {
        self.0 >> 32 == 0xffff
    }

    /// With the bits after the first `length` cleared.
    pub(crate) fn masked(self, length: u8) -> Self {
        let host_bits = 128 - u32::from(length);
        // A shift by all 128 bits overflows.
        Self(u128::MAX.checked_shl(host_bits).map_or(0, |mask| self.0 & mask))
    }
}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        let address = match address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        Self(address.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_read_without_host_bits_and_ipv4_is_ipv4_however_written() {
        let table = [
            ("10.0.0.0/8", Ok("10.0.0.0/8")),
            ("10.1.2.3/8", Ok("10.0.0.0/8")),
            ("10.1.2.3", Ok("10.1.2.3/32")),
            ("0.0.0.0/0", Ok("0.0.0.0/0")),
            ("255.255.255.255/32", Ok("255.255.255.255/32")),
            ("fd00::1:2/8", Ok("fd00::/8")),
            ("FD00::1", Ok("fd00::1/128")),
            ("::/0", Ok("::/0")),
            ("::ffff:10.1.2.3", Ok("10.1.2.3/32")),
            ("::ffff:10.1.2.3/104", Ok("10.0.0.0/8")),
            ("::ffff:10.1.2.3/96", Ok("0.0.0.0/0")),
            ("::ffff:10.1.2.3/95", Err(CidrError::Mapped)),
            ("10.0.0.0/33", Err(CidrError::Length { most: 32 })),
            ("10.0.0.0/256", Err(CidrError::Length { most: 32 })),
            ("10.0.0.0/+8", Err(CidrError::Length { most: 32 })),
            ("10.0.0.0/-1", Err(CidrError::Length { most: 32 })),
            ("10.0.0.0/", Err(CidrError::Length { most: 32 })),
            ("10.0.0.0/8/8", Err(CidrError::Length { most: 32 })),
            ("fd00::/129", Err(CidrError::Length { most: 128 })),
            ("10.0.0", Err(CidrError::Address)),
            ("10.0.0.0.0/8", Err(CidrError::Address)),
            ("010.0.0.1", Err(CidrError::Address)),
            ("fe80::1%eth0", Err(CidrError::Address)),
            ("[fd00::]/8", Err(CidrError::Address)),
            ("/8", Err(CidrError::Address)),
            ("", Err(CidrError::Address)),
            (" 10.0.0.1", Err(CidrError::Address)),
            ("*", Err(CidrError::Address)),
        ];
        for (text, expected) in table {
            let read = text.parse::<Cidr>();
            assert_eq!(
                read.map(|block| block.to_string()),
                expected.map(str::to_owned),
                "{text}"
            );
        }
    }

    #[test]
    fn a_block_contains_the_addresses_of_its_family_that_begin_as_it_does() {
        let table = [
            ("10.0.0.0/8", "10.255.255.255", true),
            ("10.0.0.0/8", "9.255.255.255", false),
            ("10.0.0.0/8", "11.0.0.0", false),
            ("10.0.0.128/25", "10.0.0.127", false),
            ("10.0.0.128/25", "::ffff:10.0.0.128", true),
            ("10.0.0.1", "10.0.0.0", false),
            ("0.0.0.0/0", "255.0.0.1", true),
            ("0.0.0.0/0", "::1", false),
            ("::/0", "::1", true),
            ("::/0", "1.2.3.4", false),
            ("::/0", "::ffff:1.2.3.4", false),
            // The deprecated form of IPv4 in IPv6 is IPv6.
            ("0.0.0.0/0", "::1.2.3.4", false),
            ("fd00::/9", "fd7f::", true),
            ("fd00::/9", "fd80::", false),
        ];
        for (block, address, expected) in table {
            let (parsed, parsed_address): (Cidr, IpAddr) = (block.parse().unwrap(), address.parse().unwrap());
            assert_eq!(parsed.contains(parsed_address), expected, "{block} {address}");
        }
    }
}
