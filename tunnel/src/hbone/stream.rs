//! One tunnelled connection: a stream of a tunnel connection after its CONNECT was answered with 200.

use std::sync::Arc;

use bytes::Bytes;
use h2::{RecvStream, SendStream};
use weir_types::Reason;

use crate::connection::{ConnectionState, StreamGuard};

/// An open stream. Dropped before both directions ended, it is reset.
#[derive(Debug)]
pub struct TunnelStream {
    pub(crate) send: SendStream<Bytes>,
    pub(crate) recv: RecvStream,
    guard: StreamGuard,
}

impl TunnelStream {
    pub(crate) fn new(send: SendStream<Bytes>, recv: RecvStream, guard: StreamGuard) -> Self {
        Self { send, recv, guard }
    }

    /// The connection that carries the stream.
    #[must_use]
    pub fn connection(&self) -> &Arc<ConnectionState> {
        self.guard.connection()
    }

    /// Resets the stream with the code for a tunnelled connection that was reset (RFC 9113 section 8.5).
    pub fn reset(&mut self) {
        self.send.send_reset(h2::Reason::CONNECT_ERROR);
    }

    /// What an error of the stream means.
    pub(crate) fn failure(&self, error: &h2::Error) -> Reason {
        let of_connection = error.is_io() || error.is_go_away();
        match self.connection().ended() {
            _ if error.is_reset() && error.is_remote() => Reason::TunnelReset,
            Some(reason) => reason,
            None if of_connection => Reason::TunnelBroken,
            // h2 calls it the user's error to send on a stream that the peer has reset.
            None => Reason::TunnelReset,
        }
    }
}
