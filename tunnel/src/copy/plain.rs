//! Copies between two sockets without a tunnel: pass-through, and plaintext to a PERMISSIVE workload.

use std::{
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    sync::atomic::{AtomicU64, Ordering},
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, BytesMut};
use tokio::{
    io::Interest,
    net::{
        TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
};
use tokio_util::io::poll_read_buf;
use weir_types::Reason;

use super::{CopyOutcome, Counters, LARGE_READ, SMALL_READ, close_by_reset, close_orderly};

/// Copies between two sockets until both directions ended or one side failed; then the other is reset.
///
/// Dropping it resets both.
pub async fn copy_plain(first: TcpStream, second: TcpStream, counters: &Counters) -> CopyOutcome {
    let mut ends = Ends {
        first,
        second,
        finished: false,
    };
    let ended = run(&mut ends, counters).await;
    ends.finished = ended == Reason::None;
    CopyOutcome { ended }
}

struct Ends {
    first: TcpStream,
    second: TcpStream,
    finished: bool,
}

struct Direction {
    buffer: BytesMut,
    ask: usize,
    ended: bool,
}

async fn run(ends: &mut Ends, counters: &Counters) -> Reason {
    close_by_reset(&ends.first);
    close_by_reset(&ends.second);
    if ends.first.set_nodelay(true).is_err() || ends.second.set_nodelay(true).is_err() {
        return Reason::ApplicationReset;
    }
    let (mut first_read, first_write) = ends.first.split();
    let (mut second_read, second_write) = ends.second.split();
    // A reset must be noticed also while nothing is read because the other side is full.
    let mut first_error = pin!(first_write.ready(Interest::ERROR));
    let mut second_error = pin!(second_write.ready(Interest::ERROR));
    let (mut there, mut back) = (Direction::new(), Direction::new());
    poll_fn(|cx| {
        let up = there.poll(cx, &mut first_read, &second_write, &counters.sent);
        let down = back.poll(cx, &mut second_read, &first_write, &counters.received);
        match (up, down) {
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => return Poll::Ready(Reason::None),
            (Poll::Ready(Err(_)), _) | (_, Poll::Ready(Err(_))) => {
                return Poll::Ready(Reason::ApplicationReset);
            }
            _ => {}
        }
        if first_error.as_mut().poll(cx).is_ready() || second_error.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Reason::ApplicationReset);
        }
        Poll::Pending
    })
    .await
}

// === impl Ends ===

impl Drop for Ends {
    fn drop(&mut self) {
        if self.finished {
            close_orderly(&self.first);
            close_orderly(&self.second);
        }
    }
}

// === impl Direction ===

impl Direction {
    fn new() -> Self {
        Self {
            buffer: BytesMut::new(),
            ask: SMALL_READ,
            ended: false,
        }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut ReadHalf<'_>,
        to: &WriteHalf<'_>,
        count: &AtomicU64,
    ) -> Poll<io::Result<()>> {
        while !self.ended {
            while !self.buffer.is_empty() {
                ready!(to.as_ref().poll_write_ready(cx))?;
                match to.try_write(&self.buffer) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Poll::Ready(Err(error)),
                    Ok(written) => {
                        self.buffer.advance(written);
                        count.fetch_add(written as u64, Ordering::Relaxed);
                    }
                }
            }
            self.buffer.reserve(self.ask);
            match poll_read_buf(Pin::new(&mut *from), cx, &mut self.buffer) {
                Poll::Pending => {
                    // Nothing to hold: give the memory back until there is.
                    self.buffer = BytesMut::new();
                    return Poll::Pending;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Ready(Ok(0)) => {
                    self.buffer = BytesMut::new();
                    self.ended = true;
                    // Fails only when the socket is gone, and then its reset is noticed elsewhere.
                    let _ = socket2::SockRef::from(to.as_ref()).shutdown(std::net::Shutdown::Write);
                }
                Poll::Ready(Ok(read)) if read >= self.ask => self.ask = (self.ask * 4).min(LARGE_READ),
                Poll::Ready(Ok(read)) if read <= SMALL_READ => self.ask = SMALL_READ,
                Poll::Ready(Ok(_)) => {}
            }
        }
        Poll::Ready(Ok(()))
    }
}
