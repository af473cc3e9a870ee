//! What captured frames hold: TCP payload by port, TLS records on the tunnel's port, canaries anywhere. No I/O.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use memchr::memmem::Finder;
use serde::Serialize;

/// Where tunnels listen.
const TUNNEL_PORT: u16 = 15008;

/// What a capture found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Findings {
    /// Packets that the kernel saw.
    pub packets: u64,
    /// Packets that the capture missed.
    pub dropped: u64,
    /// TCP payload in bytes by the server's port, both directions, retransmissions counted again.
    pub tcp_bytes: BTreeMap<u16, u64>,
    /// Bytes on port 15008 that lie in well-formed TLS records.
    pub tls_bytes: u64,
    /// Bytes on port 15008 that do not.
    pub other_bytes_on_tunnel_port: u64,
    /// How often each canary was seen, in the order in which they were given.
    pub canaries: Vec<u64>,
}

/// Reads frames one after the other.
#[derive(Debug)]
pub(super) struct Analysis {
    findings: Findings,
    canaries: Vec<Finder<'static>>,
    longest: usize,
    /// By source and destination.
    streams: HashMap<(SocketAddr, SocketAddr), Stream>,
}

/// One direction of a TCP connection.
#[derive(Debug, Default)]
struct Stream {
    server_port: u16,
    /// Sequence number of the byte that comes next, once one is known.
    next: Option<u32>,
    /// The end of what was seen, too short for a canary.
    tail: Vec<u8>,
    records: Records,
}

/// Where a byte stream is in its TLS records.
#[derive(Debug, Default)]
enum Records {
    /// Inside of a record's header.
    Header { have: usize, bytes: [u8; 5] },
    /// Inside of a record, with this many bytes to come.
    Body(usize),
    /// Not TLS.
    #[default]
    Unknown,
}

struct Segment<'a> {
    source: SocketAddr,
    destination: SocketAddr,
    sequence: u32,
    syn: bool,
    ack: bool,
    payload: &'a [u8],
}

// === impl Findings ===

impl Findings {
    /// Whether any canary was seen.
    #[must_use]
    pub fn canary_seen(&self) -> bool {
        self.canaries.iter().any(|count| *count > 0)
    }
}

// === impl Analysis ===

impl Analysis {
    pub(super) fn new(canaries: &[&[u8]]) -> Self {
        Self {
            findings: Findings {
                canaries: vec![0; canaries.len()],
                ..Findings::default()
            },
            canaries: canaries
                .iter()
                .map(|canary| Finder::new(canary).into_owned())
                .collect(),
            longest: canaries.iter().map(|canary| canary.len()).max().unwrap_or(0),
            streams: HashMap::new(),
        }
    }

    pub(super) fn findings(&self) -> &Findings {
        &self.findings
    }

    pub(super) fn count(&mut self, packets: u64, dropped: u64) {
        self.findings.packets += packets;
        self.findings.dropped += dropped;
    }

    pub(super) fn frame(&mut self, frame: &[u8]) {
        match tcp_segment(frame) {
            Some(segment) => self.segment(&segment),
            // Not TCP, or a fragment: whatever it is, it must not hold a canary.
            None => self.search(frame, 0),
        }
    }

    fn segment(&mut self, segment: &Segment<'_>) {
        let (source, destination) = (segment.source, segment.destination);
        let key = (source, destination);
        if segment.syn || !self.streams.contains_key(&key) {
            let server_port = match (segment.syn, segment.ack) {
                (true, false) => destination.port(),
                (true, true) => source.port(),
                (false, _) => source.port().min(destination.port()),
            };
            // A SYN takes one number. A connection from before the capture is followed for canaries only.
            let next = segment.syn.then(|| segment.sequence.wrapping_add(1));
            let records = if segment.syn {
                Records::start()
            } else {
                Records::Unknown
            };
            self.streams.insert(
                key,
                Stream {
                    server_port,
                    next,
                    records,
                    tail: Vec::new(),
                },
            );
        }
        if segment.payload.is_empty() {
            return;
        }
        let sequence = segment.sequence.wrapping_add(u32::from(segment.syn));
        let Some(mut stream) = self.streams.remove(&key) else {
            return;
        };
        *self.findings.tcp_bytes.entry(stream.server_port).or_default() += segment.payload.len() as u64;

        let ahead = stream.next.map(|next| sequence.wrapping_sub(next).cast_signed());
        // A whole or partial repetition begins before what is next: only its end is new.
        let repeated = ahead.map_or(0, |ahead| {
            usize::try_from(-i64::from(ahead.min(0))).unwrap_or(usize::MAX)
        });
        let new = segment.payload.get(repeated..).unwrap_or_default();
        if ahead.is_some_and(|ahead| ahead > 0) {
            stream.tail.clear();
            stream.records = Records::Unknown;
        }
        if repeated > 0 {
            self.search(segment.payload, 0);
        }
        let before = stream.tail.len();
        let mut joined = std::mem::take(&mut stream.tail);
        joined.extend_from_slice(new);
        self.search(&joined, before);
        let keep = joined.len().min(self.longest.saturating_sub(1));
        stream.tail = joined.split_off(joined.len() - keep);

        if stream.server_port == TUNNEL_PORT {
            let in_records = stream.records.advance(new) as u64;
            self.findings.tls_bytes += in_records;
            self.findings.other_bytes_on_tunnel_port += new.len() as u64 - in_records;
        }
        if !new.is_empty() {
            stream.next = Some(sequence.wrapping_add(segment.payload.len() as u32));
        }
        self.streams.insert(key, stream);
    }

    /// Counts canaries that end after `before`.
    fn search(&mut self, bytes: &[u8], before: usize) {
        for (finder, count) in self.canaries.iter().zip(&mut self.findings.canaries) {
            let length = finder.needle().len();
            *count += finder.find_iter(bytes).filter(|at| at + length > before).count() as u64;
        }
    }
}

// === impl Records ===

impl Records {
    const fn start() -> Self {
        Self::Header {
            have: 0,
            bytes: [0; 5],
        }
    }

    /// Reads on; gives how many of the bytes lie in well-formed records.
    fn advance(&mut self, mut bytes: &[u8]) -> usize {
        let mut good = 0;
        while let Some((first, rest)) = bytes.split_first() {
            match self {
                Self::Unknown => return good,
                Self::Header { have, bytes: header } => {
                    header[*have] = *first;
                    *have += 1;
                    bytes = rest;
                    if *have == header.len() {
                        match record_length(*header) {
                            Some(length) => *self = Self::Body(length),
                            None => {
                                *self = Self::Unknown;
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

fn tcp_segment(frame: &[u8]) -> Option<Segment<'_>> {
    const ETHERNET: usize = 14;
    const TCP: u8 = 6;
    let kind = u16::from_be_bytes([*frame.get(12)?, *frame.get(13)?]);
    let packet = &frame[ETHERNET..];
    let (source, destination, tcp): (IpAddr, IpAddr, &[u8]) = match kind {
        0x0800 => {
            let header = usize::from(packet.first()? & 0xf) * 4;
            let total = usize::from(u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?]));
            let fragment = u16::from_be_bytes([*packet.get(6)?, *packet.get(7)?]) & 0x3fff;
            if *packet.get(9)? != TCP || fragment != 0 {
                return None;
            }
            let source = <[u8; 4]>::try_from(packet.get(12..16)?).ok()?;
            let destination = <[u8; 4]>::try_from(packet.get(16..20)?).ok()?;
            // Short frames are padded, which only the header tells.
            (
                Ipv4Addr::from(source).into(),
                Ipv4Addr::from(destination).into(),
                packet.get(header..total)?,
            )
        }
        0x86dd => {
            let length = usize::from(u16::from_be_bytes([*packet.get(4)?, *packet.get(5)?]));
            if *packet.get(6)? != TCP {
                return None;
            }
            let source = <[u8; 16]>::try_from(packet.get(8..24)?).ok()?;
            let destination = <[u8; 16]>::try_from(packet.get(24..40)?).ok()?;
            (
                Ipv6Addr::from(source).into(),
                Ipv6Addr::from(destination).into(),
                packet.get(40..40 + length)?,
            )
        }
        _ => return None,
    };
    let port = |at: usize| Some(u16::from_be_bytes([*tcp.get(at)?, *tcp.get(at + 1)?]));
    let header = usize::from(tcp.get(12)? >> 4) * 4;
    let flags = *tcp.get(13)?;
    Some(Segment {
        source: SocketAddr::new(source, port(0)?),
        destination: SocketAddr::new(destination, port(2)?),
        sequence: u32::from_be_bytes(<[u8; 4]>::try_from(tcp.get(4..8)?).ok()?),
        syn: flags & 0x02 != 0,
        ack: flags & 0x10 != 0,
        payload: tcp.get(header..)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYN: u8 = 0x02;
    const ACK: u8 = 0x10;

    fn frame(server: u16, sequence: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([0x08, 0x00, 0x45, 0]);
        frame.extend((40 + payload.len() as u16).to_be_bytes());
        frame.extend([0, 0, 0x40, 0, 64, 6, 0, 0, 10, 1, 0, 2, 10, 2, 0, 2]);
        frame.extend(40000_u16.to_be_bytes());
        frame.extend(server.to_be_bytes());
        frame.extend(sequence.to_be_bytes());
        frame.extend([0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0]);
        frame.extend(payload);
        // Padding, as of a short frame.
        frame.extend([0; 4]);
        frame
    }

    fn analyse(frames: &[Vec<u8>]) -> Findings {
        let mut analysis = Analysis::new(&[b"canary"]);
        frames.iter().for_each(|frame| analysis.frame(frame));
        analysis.findings().clone()
    }

    #[test]
    fn a_canary_is_seen_whole_split_repeated_and_outside_of_tcp() {
        let table: [(&str, Vec<Vec<u8>>, u64); 6] = [
            ("whole", vec![frame(80, 1, ACK, b"a canary!")], 1),
            (
                "split",
                vec![
                    frame(80, 9, SYN, b""),
                    frame(80, 10, ACK, b"a can"),
                    frame(80, 15, ACK, b"ary canary"),
                ],
                2,
            ),
            (
                "in three",
                vec![
                    frame(80, 1, ACK, b"ca"),
                    frame(80, 3, ACK, b"na"),
                    frame(80, 5, ACK, b"ry"),
                ],
                1,
            ),
            (
                "begun again half way",
                vec![frame(80, 1, ACK, b"xcana"), frame(80, 3, ACK, b"anary")],
                1,
            ),
            (
                "with a gap",
                vec![frame(80, 1, ACK, b"can"), frame(80, 9, ACK, b"ary")],
                0,
            ),
            ("not even IP", vec![[&[0; 20][..], b"canary"].concat()], 1),
        ];
        for (what, frames, expected) in table {
            assert_eq!(analyse(&frames).canaries, [expected], "{what}");
        }
    }

    #[test]
    fn bytes_on_the_tunnel_port_are_tls_only_in_well_formed_records() {
        let record = [&[23, 3, 3, 0, 4][..], b"abcd"].concat();
        let syn = frame(15008, 0, SYN, b"");
        let good = analyse(&[
            syn.clone(),
            frame(15008, 1, ACK, &record[..3]),
            frame(15008, 4, ACK, &[&record[3..], &record].concat()),
        ]);
        assert_eq!((good.tls_bytes, good.other_bytes_on_tunnel_port), (18, 0));
        assert_eq!(good.tcp_bytes, BTreeMap::from([(15008, 18)]));
        let bad = analyse(&[syn, frame(15008, 1, ACK, b"GET / HTTP/1.1\r\n\r\n")]);
        assert_eq!((bad.tls_bytes, bad.other_bytes_on_tunnel_port), (4, 14));
    }
}
