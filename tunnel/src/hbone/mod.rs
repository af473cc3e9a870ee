//! HBONE: HTTP/2 `CONNECT` over mutual TLS (RFC 9113 section 8.5).
//!
//! Flow control is for each stream alone. h2 gives a stream's window and the connection's back together, when
//! the application has read; were the connection's window smaller than those of its streams together, a few
//! applications that stop reading would take all of it and stop their neighbours. So the connection's window is
//! the sum of the streams' windows, and the memory that a peer can make us hold is bounded by the streams.

mod answer;
mod keepalive;
mod limiter;
mod request;
mod server;
mod stream;
mod tap;

pub(crate) use keepalive::{KeepAlive, TrustWatch};
pub use limiter::{
    DEFAULT_PER_POD, DEFAULT_PER_SOURCE, DEFAULT_TOTAL, HandshakeLimiter, HandshakePermit, PEER_CONNECTIONS,
};
pub use request::{Authority, ConnectHeaders, ConnectRequest, RequestError};
pub use server::{Accepted, Handler, Observer, Refusal, Refused, Server, ServerSettings};
pub use stream::TunnelStream;
pub(crate) use tap::Tap;

/// Streams that a server lets a client have open on one connection, as other implementations do.
pub const SERVER_STREAMS: u32 = 200;

/// Streams that our client opens on one connection; then it opens another connection.
pub const CLIENT_STREAMS: u32 = 100;

/// What a peer may send on a stream before the application has read, in bytes. At a round trip of 0.5 ms this
/// carries 16 Gb/s. An application that does not read makes us hold this much, at 200 streams 200 MiB a
/// connection; our own peers send no more than the application's peer gave them.
pub const STREAM_WINDOW: u32 = 1024 * 1024;

/// Connection window of a server: see the module's text. 201 MiB, of which only what stalled applications leave
/// unread is ever held.
pub const SERVER_WINDOW: u32 = (SERVER_STREAMS + 1) * STREAM_WINDOW;

/// Connection window of a client.
pub const CLIENT_WINDOW: u32 = (CLIENT_STREAMS + 1) * STREAM_WINDOW;

/// Largest DATA frame that we accept, in bytes: fewer frames for bulk data, as other implementations do.
pub const FRAME_SIZE: u32 = 1024 * 1024;

/// What HTTP/2 may hold of a stream's data that was not sent yet, in bytes: enough to keep the socket busy while
/// the application is read again, and no more, since it is memory for each stream whose peer does not read.
pub const SEND_BUFFER: usize = 512 * 1024;

/// What rustls may hold of encrypted records that the socket did not take yet, in bytes: one of our DATA frames, so
/// that it leaves with one system call rather than with one for each of rustls's 64 KiB.
pub(crate) const TLS_BUFFER: usize = 320 * 1024;

/// Budget for DATA frames of less than 256 bytes that wait in h2, in bytes short of 256 (see h2's
/// `data_frame_budget`): when it is spent, h2 closes the connection with all its streams. Streams take frames
/// from h2 at once, also while the application does not read, so this is spent only between two runs of their
/// tasks: 32,896 frames of one byte, about 5 MB of bookkeeping.
pub const DATA_FRAME_BUDGET: usize = 8 * 1024 * 1024;

/// Header list that a server accepts, in bytes.
pub const SERVER_HEADER_LIST: u32 = 64 * 1024;

/// Header list that a client accepts, in bytes.
pub const CLIENT_HEADER_LIST: u32 = 16 * 1024;

/// Streams that the peer reset before we accepted them; more is the "rapid reset" attack (CVE-2023-44487).
const PENDING_RESETS: usize = 50;

/// Streams reset by us for the peer's protocol errors over a connection's life; more closes it.
const ERROR_RESETS: usize = 256;

/// Ports of the mesh's own listeners (outbound capture, inbound plaintext, HBONE): an authority that names one
/// would come back to us.
pub const LOOP_PORTS: [u16; 3] = [15001, 15006, 15008];

pub(crate) fn server_builder() -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(SERVER_WINDOW)
        .max_frame_size(FRAME_SIZE)
        .max_header_list_size(SERVER_HEADER_LIST)
        .max_concurrent_streams(SERVER_STREAMS)
        .max_pending_accept_reset_streams(PENDING_RESETS)
        .max_local_error_reset_streams(Some(ERROR_RESETS))
        .max_send_buffer_size(SEND_BUFFER)
        .data_frame_budget(DATA_FRAME_BUDGET);
    builder
}

pub(crate) fn client_builder() -> h2::client::Builder {
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CLIENT_WINDOW)
        .max_frame_size(FRAME_SIZE)
        .max_header_list_size(CLIENT_HEADER_LIST)
        .enable_push(false)
        .initial_max_send_streams(CLIENT_STREAMS as usize)
        .max_local_error_reset_streams(Some(ERROR_RESETS))
        .max_send_buffer_size(SEND_BUFFER)
        .data_frame_budget(DATA_FRAME_BUDGET);
    builder
}
