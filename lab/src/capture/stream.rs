//! One direction of a TCP connection: its segments put into order, and its TLS records followed. No I/O.

use std::borrow::Cow;

/// Bytes that may wait for a segment that was lost or overtaken: more than a sender has on the way at the default
/// limits of Linux (`tcp_rmem`, 6 MiB).
const HELD: usize = 8 << 20;

/// Puts segments into order.
#[derive(Debug, Default)]
pub(super) struct Order {
    /// Sequence number of the first byte, if the connection's begin was seen.
    first: Option<u32>,
    /// Sequence number of the byte that comes next, once one is known.
    next: Option<u32>,
    /// Segments behind a gap.
    waiting: Vec<(u32, Vec<u8>)>,
    held: usize,
}

/// What a segment brought.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Arrival<'a> {
    /// In the order of the stream.
    pub(super) pieces: Vec<Piece<'a>>,
    /// Some of it had come before.
    pub(super) repeated: bool,
    /// It waits behind a gap.
    pub(super) early: bool,
}

/// A part of the stream.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece<'a> {
    /// Bytes that follow those before.
    Next(&'a [u8]),
    /// Bytes that follow those before, and came early.
    Waited(Cow<'a, [u8]>),
    /// Something is missing here and is not waited for any longer.
    Gap,
}

/// Where a byte stream is in its TLS records.
#[derive(Debug, Default)]
pub(super) enum Records {
    /// Inside of a record's header.
    Header { have: usize, bytes: [u8; 5] },
    /// Inside of a record, with this many bytes to come.
    Body(usize),
    /// Not TLS.
    NotTls,
    /// Somewhere: the begin of the connection, or a part of it, was not seen.
    #[default]
    Lost,
}

/// Bytes by what they are.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sorted {
    /// In well-formed TLS records.
    pub(super) tls: u64,
    /// Not in TLS records.
    pub(super) other: u64,
    /// Not known.
    pub(super) unfollowed: u64,
}

// === impl Order ===

impl Order {
    /// A stream whose first byte has this number.
    pub(super) fn starting(first: u32) -> Self {
        Self {
            first: Some(first),
            next: Some(first),
            ..Self::default()
        }
    }

    /// Whether the first byte is known to have this number: a SYN that says so was sent again.
    pub(super) fn starts_at(&self, first: u32) -> bool {
        self.first == Some(first)
    }

    /// Bytes that still wait.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    pub(super) fn accept<'a>(&mut self, sequence: u32, payload: &'a [u8]) -> Arrival<'a> {
        let mut arrival = Arrival::default();
        let next = *self.next.get_or_insert(sequence);
        let ahead = distance(next, sequence);
        if ahead > 0 {
            arrival.early = true;
            self.hold(sequence, payload);
            if self.held > HELD {
                arrival.pieces.push(Piece::Gap);
                let nearest = self.waiting.iter().map(|(at, _)| *at);
                self.next = nearest.min_by_key(|at| distance(next, *at));
                self.release(&mut arrival.pieces);
            }
            return arrival;
        }
        // A whole or partial repetition begins before what is next: only its end is new.
        let repeated = ahead.unsigned_abs() as usize;
        arrival.repeated = repeated > 0;
        let new = payload.get(repeated..).unwrap_or_default();
        if !new.is_empty() {
            self.next = Some(next.wrapping_add(new.len() as u32));
            arrival.pieces.push(Piece::Next(new));
            self.release(&mut arrival.pieces);
        }
        arrival
    }

    fn hold(&mut self, sequence: u32, payload: &[u8]) {
        let known = |(at, bytes): &(u32, Vec<u8>)| *at == sequence && bytes.len() >= payload.len();
        if !self.waiting.iter().any(known) {
            self.held += payload.len();
            self.waiting.push((sequence, payload.to_vec()));
        }
    }

    /// Gives what waited for what has come.
    fn release(&mut self, pieces: &mut Vec<Piece<'_>>) {
        let Some(mut next) = self.next else { return };
        if !self.waiting.iter().any(|(at, _)| distance(next, *at) <= 0) {
            return;
        }
        self.waiting.sort_by_key(|(at, _)| distance(next, *at));
        for (at, mut bytes) in std::mem::take(&mut self.waiting) {
            let ahead = distance(next, at);
            if ahead > 0 {
                self.waiting.push((at, bytes));
                continue;
            }
            self.held -= bytes.len();
            let repeated = (ahead.unsigned_abs() as usize).min(bytes.len());
            let new = bytes.split_off(repeated);
            if !new.is_empty() {
                next = next.wrapping_add(new.len() as u32);
                pieces.push(Piece::Waited(new.into()));
            }
        }
        self.next = Some(next);
    }
}

/// How far `to` lies behind `from`; numbers wrap (RFC 9293 section 3.4).
fn distance(from: u32, to: u32) -> i32 {
    to.wrapping_sub(from).cast_signed()
}

// === impl Records ===

impl Records {
    pub(super) const fn start() -> Self {
        Self::Header {
            have: 0,
            bytes: [0; 5],
        }
    }

    /// Bytes are missing. What was known not to be TLS stays so.
    pub(super) fn lose(&mut self) {
        if !matches!(self, Self::NotTls) {
            *self = Self::Lost;
        }
    }

    /// Reads on.
    pub(super) fn read(&mut self, bytes: &[u8]) -> Sorted {
        let tls = self.advance(bytes) as u64;
        let rest = bytes.len() as u64 - tls;
        let (other, unfollowed) = if matches!(self, Self::Lost) {
            (0, rest)
        } else {
            (rest, 0)
        };
        Sorted {
            tls,
            other,
            unfollowed,
        }
    }

    /// Gives how many of the bytes lie in well-formed records.
    fn advance(&mut self, mut bytes: &[u8]) -> usize {
        let mut good = 0;
        while let Some((first, rest)) = bytes.split_first() {
            match self {
                Self::NotTls | Self::Lost => return good,
                Self::Header { have, bytes: header } => {
                    header[*have] = *first;
                    *have += 1;
                    bytes = rest;
                    if *have == header.len() {
                        match record_length(*header) {
                            Some(length) => *self = Self::Body(length),
                            None => {
                                *self = Self::NotTls;
                                return good;
                            }
                        }
                    }
                    good += 1;
                }
                Self::Body(0) => *self = Self::start(),
                Self::Body(left) => {
                    let taken = bytes.len().min(*left);
                    *left -= taken;
                    good += taken;
                    bytes = &bytes[taken..];
                }
            }
        }
        good
    }
}

/// Length of a record from its header (RFC 8446, 5.1 and 5.2: types 20 to 23, legacy versions, at most 2^14 + 256).
fn record_length(header: [u8; 5]) -> Option<usize> {
    let [kind, 3, 1 | 3, high, low] = header else {
        return None;
    };
    let length = usize::from(u16::from_be_bytes([high, low]));
    ((20..=23).contains(&kind) && length <= (1 << 14) + 256).then_some(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The stream that these segments make, with `|` for a gap.
    fn stream(first: u32, segments: &[(u32, &[u8])]) -> (Vec<u8>, usize) {
        let mut order = Order::starting(first);
        let mut stream = Vec::new();
        for (offset, payload) in segments {
            for piece in order.accept(first.wrapping_add(*offset), payload).pieces {
                match piece {
                    Piece::Next(bytes) => stream.extend_from_slice(bytes),
                    Piece::Waited(bytes) => stream.extend_from_slice(&bytes),
                    Piece::Gap => stream.push(b'|'),
                }
            }
        }
        (stream, order.held())
    }

    #[test]
    fn segments_are_put_into_order_wherever_the_numbers_wrap() {
        type Case = (
            &'static str,
            &'static [(u32, &'static [u8])],
            &'static [u8],
            usize,
        );
        let table: &[Case] = &[
            ("in order", &[(0, b"abc"), (3, b"def")], b"abcdef", 0),
            ("repeated", &[(0, b"abc"), (0, b"abc"), (3, b"def")], b"abcdef", 0),
            ("repeated with more", &[(0, b"abc"), (1, b"bcdef")], b"abcdef", 0),
            ("keep-alive", &[(0, b"abc"), (2, b"c"), (3, b"d")], b"abcd", 0),
            ("overtaken", &[(3, b"def"), (0, b"abc")], b"abcdef", 0),
            (
                "lost twice, and sent again",
                &[(2, b"c"), (6, b"gh"), (2, b"c"), (0, b"ab"), (3, b"def")],
                b"abcdefgh",
                0,
            ),
            (
                "overlaps what waits",
                &[(2, b"cde"), (3, b"defg"), (0, b"abc")],
                b"abcdefg",
                0,
            ),
            ("never filled", &[(0, b"a"), (2, b"cd")], b"a", 2),
        ];
        for first in [0, 7, u32::MAX, u32::MAX - 3] {
            for (what, segments, expected, held) in table {
                assert_eq!(
                    stream(first, segments),
                    (expected.to_vec(), *held),
                    "{what} from {first}"
                );
            }
        }
    }

    #[test]
    fn a_gap_is_given_up_when_too_much_waits_behind_it() {
        const LENGTH: usize = 60_000;
        let part = vec![7; LENGTH];
        let parts = HELD / LENGTH + 1;
        let segments: Vec<(u32, &[u8])> = (0..parts)
            .map(|at| ((at * LENGTH) as u32 + 1, &part[..]))
            .collect();
        let (stream, held) = stream(3, &segments);
        assert_eq!((stream[0], stream.len(), held), (b'|', parts * LENGTH + 1, 0));
    }
}
