//! Remembers why a TLS stream failed: h2 keeps an error's kind and text, but not the error.

use std::{
    io,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::certs::{Failure, Side, classify_io};

/// How much is read at a time, and at most, after a write failed, in bytes: an alert is a record of its own behind
/// at most what HTTP/2 says first.
const ALERT_READ: usize = 1024;
const ALERT_LIMIT: usize = 64 * 1024;

/// A stream that records the first TLS error of reads and writes.
#[derive(Debug)]
pub(crate) struct Tap<T> {
    stream: T,
    side: Side,
    failure: Arc<OnceLock<Failure>>,
    /// Why writing failed, as long as the peer's last words are awaited.
    broken: Option<io::Error>,
    /// Bytes of them so far.
    heard: usize,
}

impl<T> Tap<T> {
    pub(crate) fn new(stream: T, side: Side) -> (Self, Arc<OnceLock<Failure>>) {
        let failure = Arc::new(OnceLock::new());
        (
            Self {
                stream,
                side,
                failure: failure.clone(),
                broken: None,
                heard: 0,
            },
            failure,
        )
    }

    fn note<R>(&self, result: Poll<io::Result<R>>) -> Poll<io::Result<R>> {
        if let Poll::Ready(Err(error)) = &result
            && let Some(failure) = classify_io(error, self.side)
        {
            let _ = self.failure.set(failure);
        }
        result
    }
}

impl<T: AsyncRead + Unpin> Tap<T> {
    /// As `note`, for what was to be sent. A peer that refuses our certificate sends its alert and closes with our
    /// request unread, which resets the connection: a write may fail before the alert is read, so it is read now.
    fn note_sent<R>(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<R>>) -> Poll<io::Result<R>> {
        use io::ErrorKind::{BrokenPipe, ConnectionReset};
        match self.note(result) {
            Poll::Ready(Err(error)) if matches!(error.kind(), BrokenPipe | ConnectionReset) => {
                self.broken = Some(error);
                self.poll_last_words(cx).map(Err)
            }
            other => other,
        }
    }

    /// Reads what came before the connection broke, then gives the error of the write that found it broken.
    fn poll_last_words(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let mut bytes = [0; ALERT_READ];
        while self.failure.get().is_none() && self.heard < ALERT_LIMIT {
            let mut out = ReadBuf::new(&mut bytes);
            let read = Pin::new(&mut self.stream).poll_read(cx, &mut out);
            // The kernel wakes the reader of a broken connection.
            let read = ready!(self.note(read));
            if read.is_err() || out.filled().is_empty() {
                break;
            }
            self.heard += out.filled().len();
        }
        let broken = self.broken.take();
        Poll::Ready(broken.unwrap_or_else(|| io::ErrorKind::BrokenPipe.into()))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Tap<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_read(cx, out);
        self.note(result)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Tap<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.broken.is_some() {
            return self.poll_last_words(cx).map(Err);
        }
        let result = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.note_sent(cx, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.broken.is_some() {
            return self.poll_last_words(cx).map(Err);
        }
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.note_sent(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.broken.is_some() {
            return self.poll_last_words(cx).map(Err);
        }
        let result = Pin::new(&mut self.stream).poll_flush(cx);
        self.note_sent(cx, result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.note(result)
    }
}
