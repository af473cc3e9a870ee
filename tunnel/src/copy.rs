//! Moves bytes between an application's socket and a tunnel, as one TCP connection would behave.
//!
//! A FIN is a half-close of the stream and the other direction goes on; a reset is a reset. Dropping a copy
//! before it ended resets both sides, and so does the end of this process: sockets are copied with SO_LINGER 0, since
//! the kernel would otherwise close them with a FIN, which an application takes for the end of the data.

mod plain;
mod queue;

use std::{
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    sync::atomic::{AtomicU64, Ordering},
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use h2::{RecvStream, SendStream};
use tokio::{
    io::Interest,
    net::{
        TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
};
use tokio_util::io::poll_read_buf;
use weir_types::Reason;

pub use plain::copy_plain;
use queue::Queue;

use crate::hbone::{STREAM_WINDOW, TunnelStream};

/// First read of an application, in bytes: idle and chatty connections need no more.
const SMALL_READ: usize = 8 * 1024;

/// Largest read of an application, in bytes, and so our largest DATA frame: sixteen TLS records, long enough to
/// spread the costs of a turn, short enough that the other end starts on it early.
const LARGE_READ: usize = 256 * 1024;

/// Window that is given back at once, in bytes: each time takes the connection's lock.
const RELEASE_STEP: usize = STREAM_WINDOW as usize / 8;

/// Bytes of one connection so far.
#[derive(Debug, Default)]
pub struct Counters {
    /// From the first socket of a copy to the second: for a tunnel, what the application sent.
    pub sent: AtomicU64,
    /// The other way.
    pub received: AtomicU64,
}

/// How a copy ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyOutcome {
    /// [`Reason::None`] when both directions ended with a FIN.
    pub ended: Reason,
}

/// Copies both ways until both directions ended or one side failed.
///
/// Cancel safe in the sense that dropping it resets both sides; it cannot be resumed.
pub async fn copy_bidirectional(
    application: TcpStream,
    tunnel: TunnelStream,
    counters: &Counters,
) -> CopyOutcome {
    let mut ends = Ends {
        application,
        tunnel,
        finished: false,
    };
    let ended = run(&mut ends, counters).await;
    ends.finished = ended == Reason::None;
    CopyOutcome { ended }
}

/// Makes every close of the socket a reset, also the kernel's when the process ends. Both this and
/// [`close_orderly`] fail only for a socket that is closed already.
fn close_by_reset(socket: &TcpStream) {
    let _ = socket.set_zero_linger();
}

/// Lets the close that follows deliver what was written.
fn close_orderly(socket: &TcpStream) {
    let _ = socket2::SockRef::from(socket).set_linger(None);
}

/// Both ends; reset when dropped unless finished.
struct Ends {
    application: TcpStream,
    tunnel: TunnelStream,
    finished: bool,
}

/// From the application into the tunnel.
struct Upward {
    buffer: BytesMut,
    /// How much to ask the application for: grows while reads fill it, shrinks when they don't.
    ask: usize,
    state: UpwardState,
}

#[derive(PartialEq, Eq)]
enum UpwardState {
    Reading,
    /// HTTP/2 holds what was sent last until the peer's window or the socket takes it.
    Blocked,
    Ended,
}

/// From the tunnel to the application.
struct Downward {
    queue: Queue,
    /// Written to the application, but its window not given back yet.
    owed: usize,
    end_of_stream: bool,
    ended: bool,
}

async fn run(ends: &mut Ends, counters: &Counters) -> Reason {
    close_by_reset(&ends.application);
    // No request and response of small messages waits for an acknowledgement (Nagle's algorithm).
    if ends.application.set_nodelay(true).is_err() {
        return Reason::ApplicationReset;
    }
    let (mut read, write) = ends.application.split();
    // A reset must be noticed also while nothing is read because the tunnel is full.
    let mut error = pin!(write.ready(Interest::ERROR));
    let mut upward = Upward::new();
    let mut downward = Downward::new();
    let tunnel = &mut ends.tunnel;
    let ended = poll_fn(|cx| {
        // Both directions are polled at each turn: either may have been woken.
        let up = upward.poll(cx, &mut read, &mut tunnel.send, counters);
        let down = downward.poll(cx, &write, &mut tunnel.recv, counters);
        match (up, down) {
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => return Poll::Ready(None),
            (_, Poll::Ready(Err(failure))) | (Poll::Ready(Err(failure)), _) => {
                return Poll::Ready(Some(failure));
            }
            _ => {}
        }
        if error.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Some(Failed::Application));
        }
        match tunnel.send.poll_reset(cx) {
            // The peer's application closed: it read all that it wants. What it sent is delivered first.
            Poll::Ready(Ok(h2::Reason::NO_ERROR)) if !downward.ended => Poll::Pending,
            Poll::Ready(Ok(_)) => Poll::Ready(Some(Failed::Reset)),
            Poll::Ready(Err(error)) => Poll::Ready(Some(Failed::Tunnel(error))),
            Poll::Pending => Poll::Pending,
        }
    })
    .await;
    match ended {
        None => Reason::None,
        Some(Failed::Application) => Reason::ApplicationReset,
        Some(Failed::Reset) => Reason::TunnelReset,
        Some(Failed::SlowReader) => Reason::SlowReader,
        Some(Failed::Tunnel(error)) => tunnel.failure(&error),
    }
}

enum Failed {
    Application,
    Reset,
    SlowReader,
    Tunnel(h2::Error),
}

// === impl Ends ===

impl Drop for Ends {
    fn drop(&mut self) {
        if self.finished {
            close_orderly(&self.application);
        } else {
            self.tunnel.reset();
        }
    }
}

// === impl Upward ===

impl Upward {
    fn new() -> Self {
        Self {
            buffer: BytesMut::new(),
            ask: SMALL_READ,
            state: UpwardState::Reading,
        }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        application: &mut ReadHalf<'_>,
        tunnel: &mut SendStream<Bytes>,
        counters: &Counters,
    ) -> Poll<Result<(), Failed>> {
        loop {
            match self.state {
                UpwardState::Ended => return Poll::Ready(Ok(())),
                UpwardState::Blocked => {
                    ready!(poll_drained(cx, tunnel))?;
                    self.state = UpwardState::Reading;
                }
                UpwardState::Reading => {
                    self.buffer.reserve(self.ask);
                    match poll_read_buf(Pin::new(&mut *application), cx, &mut self.buffer) {
                        Poll::Pending => {
                            // Nothing to hold: give the memory back until there is.
                            self.buffer = BytesMut::new();
                            return Poll::Pending;
                        }
                        Poll::Ready(Err(_)) => return Poll::Ready(Err(Failed::Application)),
                        Poll::Ready(Ok(0)) => {
                            tunnel.send_data(Bytes::new(), true).map_err(Failed::Tunnel)?;
                            self.buffer = BytesMut::new();
                            self.state = UpwardState::Ended;
                        }
                        Poll::Ready(Ok(read)) => {
                            self.adapt(read);
                            counters.sent.fetch_add(read as u64, Ordering::Relaxed);
                            tunnel
                                .send_data(self.buffer.split().freeze(), false)
                                .map_err(Failed::Tunnel)?;
                            self.state = UpwardState::Blocked;
                        }
                    }
                }
            }
        }
    }

    fn adapt(&mut self, read: usize) {
        if read >= self.ask {
            self.ask = (self.ask * 4).min(LARGE_READ);
        } else if read <= SMALL_READ {
            self.ask = SMALL_READ;
        }
    }
}

/// Waits until HTTP/2 has room for more.
///
/// One byte of capacity is asked for beyond what is buffered: it is granted when the windows have room behind the
/// buffered data and the buffer is not full. Asking for more, and holding it while the application is idle, would
/// take the connection's window from other streams.
fn poll_drained(cx: &mut Context<'_>, tunnel: &mut SendStream<Bytes>) -> Poll<Result<(), Failed>> {
    tunnel.reserve_capacity(1);
    loop {
        if tunnel.capacity() > 0 {
            return Poll::Ready(Ok(()));
        }
        match ready!(tunnel.poll_capacity(cx)) {
            Some(Ok(_)) => {}
            Some(Err(error)) => return Poll::Ready(Err(Failed::Tunnel(error))),
            None => return Poll::Ready(Err(Failed::Reset)),
        }
    }
}

// === impl Downward ===

impl Downward {
    fn new() -> Self {
        Self {
            queue: Queue::default(),
            owed: 0,
            end_of_stream: false,
            ended: false,
        }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        application: &WriteHalf<'_>,
        tunnel: &mut RecvStream,
        counters: &Counters,
    ) -> Poll<Result<(), Failed>> {
        if self.ended {
            return Poll::Ready(Ok(()));
        }
        loop {
            let waiting = self.take_all(cx, tunnel)?;
            if self.queue.is_empty() {
                if waiting.is_pending() {
                    return Poll::Pending;
                }
                // Fails only when the application's socket is gone, and then a reset of it is noticed elsewhere.
                let _ = socket2::SockRef::from(application.as_ref()).shutdown(std::net::Shutdown::Write);
                self.ended = true;
                return Poll::Ready(Ok(()));
            }
            let written =
                ready!(self.queue.poll_write(cx, application)).map_err(|_: io::Error| Failed::Application)?;
            counters.received.fetch_add(written as u64, Ordering::Relaxed);
            self.owed += written;
            if self.owed >= RELEASE_STEP {
                tunnel
                    .flow_control()
                    .release_capacity(self.owed)
                    .map_err(Failed::Tunnel)?;
                self.owed = 0;
            }
        }
    }

    /// Takes all that HTTP/2 holds for this stream, also while the application does not read: the stream's window
    /// bounds it, and h2's budget for small frames, which all streams share, is not touched by this one.
    /// Ready at the end of the stream.
    fn take_all(&mut self, cx: &mut Context<'_>, tunnel: &mut RecvStream) -> Result<Poll<()>, Failed> {
        while !self.end_of_stream {
            match tunnel.poll_data(cx) {
                Poll::Pending => return Ok(Poll::Pending),
                Poll::Ready(Some(Ok(data))) => self.queue.push(data).map_err(|_| Failed::SlowReader)?,
                Poll::Ready(Some(Err(error))) => return Err(Failed::Tunnel(error)),
                Poll::Ready(None) => self.end_of_stream = true,
            }
        }
        Ok(Poll::Ready(()))
    }
}
