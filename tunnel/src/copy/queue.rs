//! What came through a tunnel and waits for the application to read.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::net::tcp::WriteHalf;

/// Data shorter than this is copied together while it waits: many short pieces would each hold on to the whole
/// buffer that they were read into.
const COALESCE: usize = 16 * 1024;

/// Pieces written at once; the kernel takes up to 1024, but sixty-four of them are large enough.
const SLICES: usize = 64;

/// Bytes in order. Its length is bounded by the stream's window, which the caller gives back.
#[derive(Debug, Default)]
pub(super) struct Queue {
    pieces: VecDeque<Bytes>,
    /// Behind `pieces`: short pieces copied together.
    tail: BytesMut,
}

impl Queue {
    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty() && self.tail.is_empty()
    }

    pub(super) fn push(&mut self, data: Bytes) {
        if data.is_empty() {
            return;
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

#[cfg(test)]
mod tests {
    use super::*;

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
            queue.push(piece.into());
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
