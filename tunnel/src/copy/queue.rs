//! What came through a tunnel and waits for the application to read.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    sync::atomic::{AtomicUsize, Ordering},
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::net::tcp::WriteHalf;

/// Data shorter than this is copied together while it waits: many short pieces would each hold on to the whole
/// buffer that they were read into.
const COALESCE: usize = 16 * 1024;

/// Pieces written at once; the kernel takes up to 1024, but sixty-four of them are large enough.
const SLICES: usize = 64;

/// Bytes that all streams of the process together may hold for applications that do not read. A stream's window
/// bounds what one holds; a peer with a valid certificate can open many.
const TOTAL: usize = 512 * 1024 * 1024;

/// What a stream may hold even then: a reader that is merely slow is not cut off for the sake of others.
const FLOOR: usize = 64 * 1024;

/// Bytes that all queues hold.
static HELD: AtomicUsize = AtomicUsize::new(0);

/// Bytes in order. Its length is bounded by the stream's window, which the caller gives back, and by the memory for
/// all of them together.
#[derive(Debug, Default)]
pub(super) struct Queue {
    pieces: VecDeque<Bytes>,
    /// Behind `pieces`: short pieces copied together.
    tail: BytesMut,
    length: usize,
}

/// The process has no more memory for this queue.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct OutOfMemory;

fn is_too_much(total: usize, own: usize) -> bool {
    total > TOTAL && own > FLOOR
}

impl Queue {
    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty() && self.tail.is_empty()
    }

    pub(super) fn push(&mut self, data: Bytes) -> Result<(), OutOfMemory> {
        if data.is_empty() {
            return Ok(());
        }
        self.length += data.len();
        let total = HELD.fetch_add(data.len(), Ordering::Relaxed) + data.len();
        if is_too_much(total, self.length) {
            return Err(OutOfMemory);
        }
        if data.len() < COALESCE && !self.is_empty() {
            self.tail.extend_from_slice(&data);
            if self.tail.len() >= COALESCE {
                self.seal();
            }
        } else {
            self.seal();
            self.pieces.push_back(data);
        }
        Ok(())
    }

    fn seal(&mut self) {
        if !self.tail.is_empty() {
            self.pieces.push_back(std::mem::take(&mut self.tail).freeze());
        }
    }

    /// Writes as much as the socket takes at once.
    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        socket: &WriteHalf<'_>,
    ) -> Poll<io::Result<usize>> {
        self.seal();
        loop {
            ready!(socket.as_ref().poll_write_ready(cx))?;
            let result = if let [piece] = self.pieces.as_slices().0 {
                socket.try_write(piece)
            } else {
                let mut slices = [IoSlice::new(&[]); SLICES];
                let count = self.pieces.len().min(SLICES);
                for (slice, piece) in slices.iter_mut().zip(&self.pieces) {
                    *slice = IoSlice::new(piece);
                }
                socket.try_write_vectored(&slices[..count])
            };
            match result {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
                Ok(written) => {
                    self.advance(written);
                    return Poll::Ready(Ok(written));
                }
            }
        }
    }

    fn advance(&mut self, mut count: usize) {
        self.length -= count;
        HELD.fetch_sub(count, Ordering::Relaxed);
        while count > 0 {
            let Some(first) = self.pieces.front_mut() else {
                return;
            };
            if first.len() > count {
                first.advance(count);
                return;
            }
            count -= first.len();
            self.pieces.pop_front();
        }
        if self.pieces.is_empty() && self.pieces.capacity() > SLICES {
            self.pieces = VecDeque::new();
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        HELD.fetch_sub(self.length, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_stream_that_holds_much_is_cut_off_when_all_together_hold_too_much() {
        // held by all, by this one, cut off
        let table = [
            (TOTAL, TOTAL, false),
            (TOTAL + 1, FLOOR, false),
            (TOTAL + 1, FLOOR + 1, true),
            (0, 0, false),
        ];
        for (total, own, expected) in table {
            assert_eq!(is_too_much(total, own), expected, "{total} {own}");
        }
    }

    #[test]
    fn short_pieces_are_copied_together_and_order_is_kept() {
        let mut queue = Queue::default();
        let mut expected = Vec::new();
        for index in 0..10_000_u32 {
            let length = if index % 1000 == 7 {
                20_000
            } else {
                index as usize % 5
            };
            let piece: Vec<u8> = (0..length).map(|byte| (byte as u32 ^ index) as u8).collect();
            expected.extend_from_slice(&piece);
            queue.push(piece.into()).unwrap();
        }
        queue.seal();
        assert!(queue.pieces.len() < 40, "{}", queue.pieces.len());
        let mut actual = Vec::new();
        let mut step = 1;
        while !queue.is_empty() {
            let first = queue.pieces[0].clone();
            let count = step.min(first.len());
            actual.extend_from_slice(&first[..count]);
            queue.advance(count);
            step = step % 7919 + 13;
        }
        assert!(actual == expected);
    }
}
