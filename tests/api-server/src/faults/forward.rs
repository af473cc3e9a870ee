//! Hands requests on, and does to them and to their answers what the faults say.

use std::{collections::VecDeque, io, sync::Arc};

use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http::{Request, Response, header};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use serde_json::json;
use tokio::sync::watch;

use super::{Effect, Seen, State};
use crate::serving::{self, Body, Handler};

/// Headers that the server's answer depends on. Encodings are not among them: bodies are read here.
const REQUEST_HEADERS: [header::HeaderName; 4] = [
    header::ACCEPT,
    header::AUTHORIZATION,
    header::CONTENT_TYPE,
    header::USER_AGENT,
];

/// The handler, with its own client of the server behind.
pub(super) struct Forward {
    state: Arc<State>,
    client: kube::Result<kube::Client>,
}

impl Forward {
    pub(super) fn new(state: Arc<State>, behind: kube::Config) -> Self {
        Self {
            state,
            client: kube::Client::try_from(behind),
        }
    }

    async fn send(&self, request: Request<Incoming>) -> io::Result<Response<kube::client::Body>> {
        let client = self.client.as_ref().map_err(broken)?;
        let (parts, body) = request.into_parts();
        let body = body.collect().await.map_err(broken)?.to_bytes();
        let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
        let mut onward = Request::builder().method(parts.method).uri(target);
        for name in REQUEST_HEADERS {
            for value in parts.headers.get_all(&name) {
                onward = onward.header(&name, value);
            }
        }
        let onward = onward
            .body(kube::client::Body::from(body.to_vec()))
            .map_err(broken)?;
        client.send(onward).await.map_err(broken)
    }
}

fn broken(why: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, why.to_string())
}

impl Handler for Forward {
    async fn handle(&self, request: Request<Incoming>) -> io::Result<Response<Body>> {
        let query = request.uri().query().unwrap_or_default().to_owned();
        let accept = request.headers().get(http::header::ACCEPT);
        let seen = Seen {
            method: request.method().clone(),
            path: request.uri().path().to_owned(),
            watch: query
                .split('&')
                .any(|pair| matches!(pair, "watch=true" | "watch=1")),
            query,
            accept: accept
                .and_then(|accept| accept.to_str().ok())
                .unwrap_or_default()
                .to_owned(),
        };
        let effects = self.state.meets(&seen);
        let cut = self.state.cut.subscribe();
        let (mut left, mut lost) = (None, false);
        for effect in effects {
            match effect {
                Effect::Delay(delay) => tokio::time::sleep(delay).await,
                Effect::Refuse(code) => return Ok(refusal(code)),
                Effect::GoneStatus => return Ok(serving::document(410, "application/json", &gone())),
                Effect::GoneEvent => {
                    let event = json!({"type": "ERROR", "object": gone()});
                    return Ok(serving::text(200, "application/json", format!("{event}\n")));
                }
                Effect::CutAfter(events) => left = Some(events),
                Effect::LoseResponse => lost = true,
                // Looked at with every bookmark.
                Effect::HoldBookmarks => {}
            }
        }
        let (parts, body) = self.send(request).await?.into_parts();
        if lost {
            body.collect().await.map_err(broken)?;
            return Err(broken("the response is lost, by request"));
        }
        let body = match seen.watch {
            true => Lines::body(body, Arc::clone(&self.state), seen, left, cut),
            false => body.map_err(broken).boxed_unsync(),
        };
        let content_type = parts
            .headers
            .get(header::CONTENT_TYPE)
            .and_then(|value| value.to_str().ok());
        let mut response = serving::response(
            parts.status.as_u16(),
            content_type.unwrap_or("application/json"),
            body,
        );
        for name in [header::RETRY_AFTER, header::WARNING] {
            if let Some(value) = parts.headers.get(&name) {
                response.headers_mut().insert(name, value.clone());
            }
        }
        Ok(response)
    }
}

fn gone() -> serde_json::Value {
    crate::status::Status::expired("too old resource version: 1 (2)").to_json()
}

fn refusal(code: u16) -> Response<Body> {
    let (reason, message) = match code {
        429 => ("TooManyRequests", "too many requests, please try again later"),
        503 => (
            "ServiceUnavailable",
            "the server is currently unable to handle the request",
        ),
        504 => ("Timeout", "the request timed out"),
        _ => (
            "InternalError",
            "an error on the server has prevented the request from succeeding",
        ),
    };
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    });
    let mut response = serving::document(code, "application/json", &status);
    if matches!(code, 429 | 503) {
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, header::HeaderValue::from_static("1"));
    }
    response
}

/// The events of a watch, one a line, with what the faults leave of them.
struct Lines {
    body: kube::client::Body,
    buffer: BytesMut,
    ready: VecDeque<Bytes>,
    state: Arc<State>,
    seen: Seen,
    /// How many events are still handed on.
    left: Option<usize>,
    cut: watch::Receiver<()>,
    broken: bool,
}

impl Lines {
    /// The body that hands them on.
    fn body(
        body: kube::client::Body,
        state: Arc<State>,
        seen: Seen,
        left: Option<usize>,
        cut: watch::Receiver<()>,
    ) -> Body {
        let lines = Self {
            body,
            buffer: BytesMut::new(),
            ready: VecDeque::new(),
            state,
            seen,
            left,
            cut,
            broken: false,
        };
        let stream = stream::unfold(lines, |mut lines| async {
            let line = lines.next().await?;
            Some((line.map(Frame::data), lines))
        });
        StreamBody::new(stream).boxed_unsync()
    }

    /// The next line, an error where the connection is to break, nothing at the end.
    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        loop {
            if self.broken {
                return None;
            }
            if self.left == Some(0) {
                self.broken = true;
                // What was handed on before is written only once this waits.
                tokio::task::yield_now().await;
                return Some(Err(broken("the watch is cut, by request")));
            }
            if let Some(line) = self.ready.pop_front() {
                if is_bookmark(&line) && self.state.holds_bookmarks(&self.seen) {
                    continue;
                }
                self.left = self.left.map(|left| left - 1);
                return Some(Ok(line));
            }
            tokio::select! {
                _ = self.cut.changed() => {
                    self.broken = true;
                    return Some(Err(broken("the watch is cut, by request")));
                }
                frame = self.body.frame() => match frame {
                    Some(Ok(frame)) => self.take(frame),
                    Some(Err(why)) => {
                        self.broken = true;
                        return Some(Err(broken(why)));
                    }
                    None => {
                        self.broken = true;
                        let rest = self.buffer.split().freeze();
                        return (!rest.is_empty()).then_some(Ok(rest));
                    }
                },
            }
        }
    }

    fn take(&mut self, frame: Frame<Bytes>) {
        if let Ok(data) = frame.into_data() {
            self.buffer.extend_from_slice(&data);
        }
        while let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
            self.ready.push_back(self.buffer.split_to(end + 1).freeze());
        }
    }
}

fn is_bookmark(line: &[u8]) -> bool {
    let event: Result<serde_json::Value, _> = serde_json::from_slice(line);
    event.is_ok_and(|event| event["type"] == "BOOKMARK")
}
