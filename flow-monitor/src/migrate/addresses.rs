//! Sets of addresses, exactly: what is in some blocks and not in others.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Addresses of both families, as ranges that neither overlap nor touch, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Addresses {
    v4: Ranges,
    v6: Ranges,
}

/// First and last.
type Ranges = Vec<(u128, u128)>;

/// The last address of each family.
const LAST_V4: u128 = u32::MAX as u128;
const LAST_V6: u128 = u128::MAX;

impl Addresses {
    pub(crate) fn all() -> Self {
        Self {
            v4: vec![(0, LAST_V4)],
            v6: vec![(0, LAST_V6)],
        }
    }

    /// A block, as `10.0.0.0/8`, or an address. Host bits are ignored.
    pub(crate) fn block(text: &str) -> Option<Self> {
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length.parse::<u32>().ok()?)),
            None => (text, None),
        };
        let (address, bits) = match address.parse().ok()? {
            IpAddr::V4(v4) => (u128::from(u32::from(v4)), 32),
            // Weir takes it for IPv4, others do not: nobody means it.
            IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => return None,
            IpAddr::V6(v6) => (u128::from(v6), 128),
        };
        let length = length.unwrap_or(bits);
        if length > bits {
            return None;
        }
        let hosts = match bits - length {
            128 => u128::MAX,
            free => (1 << free) - 1,
        };
        let range = vec![(address & !hosts, address | hosts)];
        Some(if bits == 32 {
            Self {
                v4: range,
                v6: Vec::new(),
            }
        } else {
            Self {
                v4: Vec::new(),
                v6: range,
            }
        })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    pub(crate) fn is_all(&self) -> bool {
        *self == Self::all()
    }

    pub(crate) fn and(&self, other: &Self) -> Self {
        Self {
            v4: both(&self.v4, &other.v4),
            v6: both(&self.v6, &other.v6),
        }
    }

    pub(crate) fn complement(&self) -> Self {
        Self {
            v4: rest(&self.v4, LAST_V4),
            v6: rest(&self.v6, LAST_V6),
        }
    }

    pub(crate) fn without(&self, other: &Self) -> Self {
        self.and(&other.complement())
    }

    pub(crate) fn or(&self, other: &Self) -> Self {
        self.complement().and(&other.complement()).complement()
    }

    /// The fewest blocks that hold these addresses and no other.
    pub(crate) fn blocks(&self) -> Vec<String> {
        let mut blocks = Vec::new();
        for (ranges, bits, last) in [(&self.v4, 32, LAST_V4), (&self.v6, 128, LAST_V6)] {
            for &(first, end) in ranges {
                let mut next = first;
                loop {
                    // The largest block that begins here and ends in time.
                    let mut free = next.trailing_zeros().min(bits);
                    while free > 0 && next.checked_add(size(free)).is_none_or(|last| last > end) {
                        free -= 1;
                    }
                    let address = if bits == 32 {
                        IpAddr::V4(Ipv4Addr::from(u32::try_from(next).unwrap_or(u32::MAX)))
                    } else {
                        IpAddr::V6(Ipv6Addr::from(next))
                    };
                    blocks.push(format!("{address}/{}", bits - free));
                    let reached = next + size(free);
                    if reached >= end || reached == last {
                        break;
                    }
                    next = reached + 1;
                }
            }
        }
        blocks
    }
}

/// Addresses of a block after its first.
fn size(free: u32) -> u128 {
    match free {
        128 => u128::MAX,
        free => (1 << free) - 1,
    }
}

fn both(one: &Ranges, other: &Ranges) -> Ranges {
    let mut common = Vec::new();
    let (mut i, mut j) = (0, 0);
    while i < one.len() && j < other.len() {
        let (first, last) = (one[i].0.max(other[j].0), one[i].1.min(other[j].1));
        if first <= last {
            common.push((first, last));
        }
        if one[i].1 < other[j].1 {
            i += 1;
        } else {
            j += 1;
        }
    }
    common
}

fn rest(ranges: &Ranges, last: u128) -> Ranges {
    let mut rest = Vec::new();
    let mut next = Some(0);
    for &(first, end) in ranges {
        if let Some(from) = next
            && from < first
        {
            rest.push((from, first - 1));
        }
        next = (end < last).then(|| end + 1);
    }
    if let Some(from) = next {
        rest.push((from, last));
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(blocks: &[&str]) -> Addresses {
        let blocks = blocks.iter().map(|block| Addresses::block(block).unwrap());
        blocks.fold(Addresses::default(), |all, block| all.or(&block))
    }

    #[test]
    fn sets_are_written_in_the_fewest_blocks() {
        let table: [(Addresses, &[&str]); 8] = [
            (Addresses::all(), &["0.0.0.0/0", "::/0"]),
            (Addresses::default(), &[]),
            (of(&["10.0.0.0/9", "10.128.0.0/9"]), &["10.0.0.0/8"]),
            (of(&["10.1.2.3"]), &["10.1.2.3/32"]),
            (of(&["10.0.0.7/8"]), &["10.0.0.0/8"]),
            (
                of(&["10.0.0.0/8"]).without(&of(&["10.0.0.0/10"])),
                &["10.64.0.0/10", "10.128.0.0/9"],
            ),
            (of(&["::/0"]).without(&of(&["8000::/1"])), &["::/1"]),
            (
                of(&["255.255.255.254/31", "fd00::1"]),
                &["255.255.255.254/31", "fd00::1/128"],
            ),
        ];
        for (set, blocks) in table {
            assert_eq!(set.blocks(), blocks);
            let again: Vec<&str> = blocks.to_vec();
            assert_eq!(of(&again), set);
            assert_eq!(set.complement().complement(), set);
            assert!(set.and(&set.complement()).is_empty());
            assert!(set.or(&set.complement()).is_all());
        }
        for wrong in ["10.0.0.0/33", "x", "10.0.0.0/", "::ffff:10.0.0.1", "fd00::/129"] {
            assert_eq!(Addresses::block(wrong), None, "{wrong}");
        }
    }
}
