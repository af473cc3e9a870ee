//! A stream's requests, read from the body of its HTTP request.
//!
//! tonic's reader keeps a buffer of the largest message so far, which is a reconnecting agent's list of all that it
//! has: with an agent on each node, many times the whole mesh. This one gives each message's buffer back.

use bytes::{Buf as _, Bytes, BytesMut};
use http_body_util::BodyExt as _;
use prost::Message as _;
use tonic::body::Body;
use weir_proto::envoy::service::discovery::v3::DeltaDiscoveryRequest;

use super::close::Close;

/// A gRPC message's header: whether it is compressed, and its length.
const HEADER: usize = 5;

/// The requests of one stream.
pub(super) struct Requests {
    body: Body,
    buffer: BytesMut,
    limit: usize,
}

impl Requests {
    /// Reads messages of at most `limit` bytes.
    pub(super) fn new(body: Body, limit: usize) -> Self {
        Self {
            body,
            buffer: BytesMut::new(),
            limit,
        }
    }

    /// The next request, or none if the client sends no more. Nothing is lost if this is cancelled.
    pub(super) async fn next(&mut self) -> Result<Option<DeltaDiscoveryRequest>, Close> {
        loop {
            if let Some(message) = self.take()? {
                return DeltaDiscoveryRequest::decode(message)
                    .map(Some)
                    .map_err(|_| Close::Malformed);
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                Some(Err(_)) => return Err(Close::Client),
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(Close::Malformed),
            }
        }
    }

    /// A whole message, if there is one.
    fn take(&mut self) -> Result<Option<Bytes>, Close> {
        let Some(&[compressed, a, b, c, d]) = self.buffer.first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).map_err(|_| Close::Malformed)?;
        // We said that we understand no compression.
        if compressed != 0 || length > self.limit {
            return Err(Close::Malformed);
        }
        if self.buffer.len() < HEADER + length {
            self.buffer.reserve(HEADER + length - self.buffer.len());
            return Ok(None);
        }
        self.buffer.advance(HEADER);
        let message = self.buffer.split_to(length).freeze();
        // The rest gets a buffer of its own: it would keep the message's.
        self.buffer = BytesMut::from(&*self.buffer);
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::{Full, StreamBody};

    fn message(type_url: &str) -> Vec<u8> {
        let request = DeltaDiscoveryRequest {
            type_url: type_url.to_owned(),
            ..DeltaDiscoveryRequest::default()
        };
        let length = u32::try_from(request.encoded_len()).unwrap().to_be_bytes();
        [vec![0], length.to_vec(), request.encode_to_vec()].concat()
    }

    fn whole(bytes: Vec<u8>) -> Requests {
        Requests::new(Body::new(Full::new(Bytes::from(bytes))), 100)
    }

    #[tokio::test]
    async fn messages_are_found_however_the_bytes_come() {
        let bytes = [message("first"), message(""), message("third")].concat();
        for size in 1..bytes.len() {
            let frames: Vec<_> = bytes
                .chunks(size)
                .map(|chunk| Ok::<_, tonic::Status>(http_body::Frame::data(Bytes::copy_from_slice(chunk))))
                .collect();
            let body = Body::new(StreamBody::new(tokio_stream::iter(frames)));
            let mut requests = Requests::new(body, 100);
            for expected in ["first", "", "third"] {
                assert_eq!(requests.next().await.unwrap().unwrap().type_url, expected);
            }
            assert!(requests.next().await.unwrap().is_none());
        }
    }

    #[tokio::test]
    async fn what_is_no_message_is_refused() {
        let mut compressed = message("x");
        compressed[0] = 1;
        let cut = message("x")[..6].to_vec();
        // The length alone is enough: the bytes are not waited for.
        let large = vec![0, 0, 0, 0, 101];
        for bytes in [compressed, cut, large, vec![0, 0, 0, 0, 1, 0xff], vec![0]] {
            assert_eq!(
                whole(bytes.clone()).next().await,
                Err(Close::Malformed),
                "{bytes:?}"
            );
        }
    }
}
