//! What captured frames hold: TCP payload by port, TLS records on the tunnel's port, canaries anywhere. No I/O.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use memchr::memmem::Finder;
use serde::Serialize;

use super::stream::{Order, Piece, Records};

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
    /// Bytes on port 15008 of which neither can be said: the capture began in the middle of their connection, or
    /// bytes before them were not seen.
    pub unfollowed_bytes_on_tunnel_port: u64,
    /// How often bytes of a TCP connection, on any port, were missing and were not seen later either.
    pub unresolved_gaps: u64,
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
    order: Order,
    /// The end of what was seen, too short for a canary.
    tail: Vec<u8>,
    records: Records,
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

    /// Counts what still waits behind a gap, of a stream of which no more is expected.
    fn leave(&mut self, stream: &Stream) {
        let held = stream.order.held() as u64;
        self.unresolved_gaps += u64::from(held > 0);
        if stream.server_port == TUNNEL_PORT {
            self.unfollowed_bytes_on_tunnel_port += held;
        }
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

    /// What was found so far.
    pub(super) fn findings(&self) -> Findings {
        let mut findings = self.findings.clone();
        self.streams.values().for_each(|stream| findings.leave(stream));
        findings
    }

    pub(super) fn count(&mut self, packets: u64, dropped: u64) {
        self.findings.packets += packets;
        self.findings.dropped += dropped;
    }

    pub(super) fn frame(&mut self, frame: &[u8]) {
        match tcp_segment(frame) {
            Some(segment) => self.segment(&segment),
            // Not TCP, or a fragment: whatever it is, it must not hold a canary.
            None => self.search(frame, 0, frame.len()),
        }
    }

    fn segment(&mut self, segment: &Segment<'_>) {
        let (source, destination) = (segment.source, segment.destination);
        let key = (source, destination);
        // A SYN takes one number. One that is sent again begins nothing.
        let first = segment.sequence.wrapping_add(1);
        let known = self.streams.get(&key);
        if known.is_none_or(|known| segment.syn && !known.order.starts_at(first)) {
            let server_port = match (segment.syn, segment.ack) {
                (true, false) => destination.port(),
                (true, true) => source.port(),
                (false, _) => source.port().min(destination.port()),
            };
            // A connection from before the capture is followed for canaries only.
            let (order, records) = if segment.syn {
                (Order::starting(first), Records::start())
            } else {
                (Order::default(), Records::default())
            };
            let stream = Stream {
                server_port,
                order,
                records,
                tail: Vec::new(),
            };
            if let Some(left) = self.streams.insert(key, stream) {
                self.findings.leave(&left);
            }
        }
        if segment.payload.is_empty() {
            return;
        }
        let sequence = segment.sequence.wrapping_add(u32::from(segment.syn));
        let Some(mut stream) = self.streams.remove(&key) else {
            return;
        };
        *self.findings.tcp_bytes.entry(stream.server_port).or_default() += segment.payload.len() as u64;
        let arrival = stream.order.accept(sequence, segment.payload);
        if arrival.repeated || arrival.early {
            self.search(segment.payload, 0, segment.payload.len());
        }
        for piece in arrival.pieces {
            match piece {
                Piece::Next(bytes) => self.read(&mut stream, bytes, bytes.len()),
                // Searched when it came, so now for what it continues alone.
                Piece::Waited(bytes) => self.read(&mut stream, &bytes, 0),
                Piece::Gap => {
                    self.findings.unresolved_gaps += 1;
                    stream.tail.clear();
                    stream.records.lose();
                }
            }
        }
        self.streams.insert(key, stream);
    }

    /// Reads on in a stream; canaries that begin after the first `unsearched` of the bytes were counted already.
    fn read(&mut self, stream: &mut Stream, bytes: &[u8], unsearched: usize) {
        let before = stream.tail.len();
        let mut joined = std::mem::take(&mut stream.tail);
        joined.extend_from_slice(bytes);
        self.search(&joined, before, before + unsearched);
        let keep = joined.len().min(self.longest.saturating_sub(1));
        stream.tail = joined.split_off(joined.len() - keep);
        if stream.server_port == TUNNEL_PORT {
            let sorted = stream.records.read(bytes);
            self.findings.tls_bytes += sorted.tls;
            self.findings.other_bytes_on_tunnel_port += sorted.other;
            self.findings.unfollowed_bytes_on_tunnel_port += sorted.unfollowed;
        }
    }

    /// Counts canaries that end after `before` and begin before `limit`.
    fn search(&mut self, bytes: &[u8], before: usize, limit: usize) {
        for (finder, count) in self.canaries.iter().zip(&mut self.findings.canaries) {
            let length = finder.needle().len();
            let new = |at: &usize| at + length > before && *at < limit;
            *count += finder.find_iter(bytes).filter(new).count() as u64;
        }
    }
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
        analysis.findings()
    }

    #[test]
    fn a_canary_is_seen_whole_split_repeated_and_outside_of_tcp() {
        let table: [(&str, Vec<Vec<u8>>, u64); 9] = [
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
            (
                "behind a gap that is never filled",
                vec![frame(80, 1, ACK, b"x"), frame(80, 9, ACK, b"a canary")],
                1,
            ),
            (
                "overtaken",
                vec![
                    frame(80, 1, ACK, b"x"),
                    frame(80, 5, ACK, b"ary canary"),
                    frame(80, 2, ACK, b"can"),
                ],
                2,
            ),
            (
                "all overtaken",
                vec![
                    frame(80, 1, ACK, b"x"),
                    frame(80, 5, ACK, b"ry"),
                    frame(80, 3, ACK, b"na"),
                    frame(80, 2, ACK, b"a"),
                    frame(80, 2, ACK, b"a"),
                ],
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
        let bad = analyse(&[syn.clone(), frame(15008, 1, ACK, b"GET / HTTP/1.1\r\n\r\n")]);
        assert_eq!((bad.tls_bytes, bad.other_bytes_on_tunnel_port), (4, 14));
    }

    #[test]
    fn tls_that_comes_late_twice_or_not_at_all_is_not_something_else() {
        let records = [&[23, 3, 3, 0, 4][..], b"abcd"].concat().repeat(3);
        let syn = frame(15008, 0, SYN, b"");
        let part = |from: usize, to: usize| frame(15008, from as u32 + 1, ACK, &records[from..to]);
        type Case = (&'static str, Vec<Vec<u8>>, [u64; 4]);
        // TLS, other, unfollowed, gaps.
        let table: Vec<Case> = vec![
            (
                "sent again",
                vec![syn.clone(), part(0, 9), part(0, 9), part(4, 20), part(20, 27)],
                [27, 0, 0, 0],
            ),
            (
                "overtaken",
                vec![syn.clone(), part(3, 11), part(20, 27), part(0, 3), part(11, 20)],
                [27, 0, 0, 0],
            ),
            (
                "the SYN sent again",
                vec![syn.clone(), part(0, 9), syn.clone(), part(9, 27)],
                [27, 0, 0, 0],
            ),
            (
                "a part never seen",
                vec![syn.clone(), part(0, 9), part(11, 27)],
                [9, 0, 16, 1],
            ),
            (
                "from before the capture",
                vec![part(3, 9), part(9, 27)],
                [0, 0, 24, 0],
            ),
            (
                "and then the port used again",
                vec![
                    part(3, 9),
                    part(11, 15),
                    frame(15008, 999, SYN, b""),
                    frame(15008, 1000, ACK, &records),
                ],
                [27, 0, 10, 1],
            ),
            (
                "plaintext, in whatever order",
                vec![
                    syn.clone(),
                    frame(15008, 8, ACK, b" more"),
                    frame(15008, 1, ACK, b"GET / x"),
                ],
                [4, 8, 0, 0],
            ),
        ];
        for (what, frames, expected) in table {
            let found = analyse(&frames);
            let counts = [
                found.tls_bytes,
                found.other_bytes_on_tunnel_port,
                found.unfollowed_bytes_on_tunnel_port,
                found.unresolved_gaps,
            ];
            assert_eq!(counts, expected, "{what}");
        }
    }
}
