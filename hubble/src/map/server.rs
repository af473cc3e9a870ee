//! The map over HTTP.

use std::{
    convert::Infallible,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http_body_util::{Either, Full, StreamBody};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Body as _, Bytes, Frame, Incoming},
    header::{
        ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, LOCATION, REFERRER_POLICY,
        SET_COOKIE, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
    },
    http::request::Parts,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use jiff::Timestamp;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, watch},
    time::{sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;

use super::{
    Explain,
    access::{Access, COOKIE_NAME, Decision},
    state::{Shared, explained},
};
use crate::tls::TlsError;

/// Connections at once: browsers hold one a page, and a few more while it loads.
const CONNECTIONS: usize = 256;
/// Pages that are told of changes at once.
const PAGES: usize = 64;
/// A request must be there, and be answered, in this time.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// A node must have said what would become of a connection in this time.
const PATIENCE_WITH_NODES: Duration = Duration::from_secs(7);
/// A page that reads nothing for this long is given up.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most bytes of a request: its line and headers. The least that hyper can do with is 8 KiB.
const MAX_REQUEST: usize = 16 << 10;
/// Pause after a failure to accept, as when no descriptor is left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Nothing but what is served here, and no frame around it. No text becomes markup (Trusted Types).
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; \
                      trusted-types 'none'";

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";
/// The files of the page.
const FILES: [(&str, &str, &str); 7] = [
    ("/", HTML, include_str!("page/index.html")),
    (
        "/style.css",
        "text/css; charset=utf-8",
        include_str!("page/style.css"),
    ),
    ("/icon.svg", "image/svg+xml", include_str!("page/icon.svg")),
    ("/map.js", SCRIPT, include_str!("page/map.js")),
    ("/graph.js", SCRIPT, include_str!("page/graph.js")),
    ("/layout.js", SCRIPT, include_str!("page/layout.js")),
    ("/details.js", SCRIPT, include_str!("page/details.js")),
];

type Events = ReceiverStream<Result<Frame<Bytes>, Infallible>>;
type Body = Either<Full<Bytes>, StreamBody<Events>>;

/// What is served.
pub(super) struct Pages {
    pub(super) access: Arc<Access>,
    pub(super) shared: Arc<Shared>,
    pub(super) events: Vec<watch::Receiver<Arc<str>>>,
    pub(super) explain: Option<Explain>,
    pub(super) explaining: Semaphore,
}

/// What a connection is told of its only request.
#[derive(Debug, Default)]
struct Connection {
    /// What its certificate grants, if there are certificates.
    shown: Option<usize>,
    /// It is answered for ever.
    is_stream: AtomicBool,
    /// The client reads nothing.
    given_up: Notify,
}

/// Serves clients, for ever.
pub(super) async fn serve(listener: &TcpListener, pages: Arc<Pages>) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS));
    let streams = Arc::new(Semaphore::new(PAGES));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "accept failed on the map's port");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(permit) = connections.clone().try_acquire_owned() else {
            // Whoever comes now is sent away at once: those who are here are not disturbed.
            continue;
        };
        let (pages, streams) = (pages.clone(), streams.clone());
        tokio::spawn(async move {
            serve_one(stream, &pages, &streams).await;
            drop(permit);
        });
    }
}

async fn serve_one(stream: TcpStream, pages: &Pages, streams: &Arc<Semaphore>) {
    let _ = stream.set_nodelay(true);
    let Some(tls) = pages.access.tls() else {
        return serve_io(stream, None, pages, streams).await;
    };
    let handshake = async {
        let stream = tls.acceptor()?.accept(stream).await?;
        let viewer = tls.viewer(stream.get_ref().1)?;
        Ok::<_, TlsError>((stream, pages.access.grant(&viewer)))
    };
    match timeout(REQUEST_TIMEOUT, handshake).await {
        Ok(Ok((stream, grant))) => serve_io(stream, grant, pages, streams).await,
        Ok(Err(error)) => tracing::info!(%error, "a browser is refused"),
        Err(_) => tracing::info!("a browser is refused: the TLS handshake did not finish in time"),
    }
}

async fn serve_io(
    io: impl AsyncRead + AsyncWrite + Unpin,
    shown: Option<usize>,
    pages: &Pages,
    streams: &Arc<Semaphore>,
) {
    let own = Arc::new(Connection {
        shown,
        ..Connection::default()
    });
    let service =
        service_fn(|request| async { Ok::<_, Infallible>(pages.respond(request, streams, &own).await) });
    // One request a connection: what it may take is bounded by time, and who is asked for is not kept waiting by another.
    let mut serving = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(REQUEST_TIMEOUT)
            .max_buf_size(MAX_REQUEST)
            .keep_alive(false)
            .serve_connection(TokioIo::new(io), service)
    );
    // An error, here or below: the client's own doing.
    if timeout(REQUEST_TIMEOUT, serving.as_mut()).await.is_ok() || !own.is_stream.load(Ordering::Relaxed) {
        return;
    }
    tokio::select! {
        _ = serving => {}
        () = own.given_up.notified() => {}
    }
}

// === impl Pages ===

impl Pages {
    async fn respond(
        &self,
        request: Request<Incoming>,
        streams: &Arc<Semaphore>,
        connection: &Arc<Connection>,
    ) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let mut response = if !matches!(parts.method, Method::GET | Method::HEAD) {
            let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, TEXT, "GET and HEAD only\n");
            response
                .headers_mut()
                .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            response
        } else if !body.is_end_stream() {
            plain(StatusCode::PAYLOAD_TOO_LARGE, TEXT, "no body is taken\n")
        } else {
            match self.access.decide(&parts, connection.shown) {
                Decision::Allowed(grant) if parts.uri.path() == "/explain" => {
                    self.explain(&parts, grant).await
                }
                Decision::Allowed(grant) => self.answer(&parts, grant, streams, connection),
                Decision::Cookie(value) => enter(&value),
                Decision::Refused(status, why) => {
                    let mut response = plain(status, TEXT, why);
                    if status == StatusCode::UNAUTHORIZED {
                        let scheme = HeaderValue::from_static("Bearer");
                        response.headers_mut().insert(WWW_AUTHENTICATE, scheme);
                    }
                    response
                }
            }
        };
        let headers = response.headers_mut();
        for (name, value) in [
            (CONTENT_SECURITY_POLICY, POLICY),
            (X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (X_FRAME_OPTIONS, "DENY"),
            (REFERRER_POLICY, "no-referrer"),
            (CACHE_CONTROL, "no-store"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        for name in ["cross-origin-resource-policy", "cross-origin-opener-policy"] {
            headers.insert(name, HeaderValue::from_static("same-origin"));
        }
        response
    }

    fn answer(
        &self,
        request: &Parts,
        grant: usize,
        streams: &Arc<Semaphore>,
        connection: &Arc<Connection>,
    ) -> Response<Body> {
        let path = request.uri.path();
        if let Some((_, kind, text)) = FILES.iter().find(|file| file.0 == path) {
            return plain(StatusCode::OK, kind, *text);
        }
        match path {
            "/graph" => {
                let graph = self.shared.graph(self.access.viewer(grant), Timestamp::now());
                plain(StatusCode::OK, JSON, graph.to_string())
            }
            "/events" if request.method == Method::HEAD => plain(StatusCode::OK, "text/event-stream", ""),
            "/events" => match streams.clone().try_acquire_owned() {
                Ok(permit) => {
                    connection.is_stream.store(true, Ordering::Relaxed);
                    events(self.events[grant].clone(), permit, connection.clone())
                }
                Err(_) => plain(
                    StatusCode::SERVICE_UNAVAILABLE,
                    TEXT,
                    "too many pages look at the map\n",
                ),
            },
            "/flows" => match pair(request) {
                Some((from, to)) => {
                    let flows = self.shared.flows(self.access.viewer(grant), &from, &to);
                    plain(StatusCode::OK, JSON, flows)
                }
                None => no_pair(),
            },
            _ => plain(StatusCode::NOT_FOUND, TEXT, "there is /\n"),
        }
    }

    /// What would become of the next connection of a pair, as the node says that saw the last one.
    async fn explain(&self, request: &Parts, grant: usize) -> Response<Body> {
        let Some((from, to)) = pair(request) else {
            return no_pair();
        };
        let question = self.shared.question(self.access.viewer(grant), &from, &to);
        let (Some(explain), Some((node, question))) = (&self.explain, question) else {
            // No error, which browsers would complain of: there is nothing to say.
            return plain(StatusCode::OK, JSON, "{}");
        };
        let Ok(_permit) = self.explaining.try_acquire() else {
            return plain(StatusCode::SERVICE_UNAVAILABLE, TEXT, "too many ask at once\n");
        };
        let answer = timeout(PATIENCE_WITH_NODES, explain(node, question)).await;
        let answer = answer.unwrap_or_else(|_| Err("the node's agent does not answer".to_owned()));
        plain(StatusCode::OK, JSON, explained(answer))
    }
}

/// The pair that a request is about.
fn pair(request: &Parts) -> Option<(String, String)> {
    Some((parameter(request, "from")?, parameter(request, "to")?))
}

fn no_pair() -> Response<Body> {
    plain(StatusCode::BAD_REQUEST, TEXT, "expected from=PARTY&to=PARTY\n")
}

/// Takes the token out of the address: it would stay in the browser's history.
fn enter(cookie: &str) -> Response<Body> {
    let mut response = plain(StatusCode::SEE_OTHER, TEXT, "");
    let headers = response.headers_mut();
    headers.insert(LOCATION, HeaderValue::from_static("/"));
    let cookie = format!("{COOKIE_NAME}={cookie}; Path=/; HttpOnly; SameSite=Strict");
    if let Ok(cookie) = HeaderValue::from_str(&cookie) {
        headers.insert(SET_COOKIE, cookie);
    }
    response
}

/// Server-sent events: the graph whenever it is new. As it is each second, an event is the heartbeat, too.
fn events(
    mut graphs: watch::Receiver<Arc<str>>,
    permit: OwnedSemaphorePermit,
    connection: Arc<Connection>,
) -> Response<Body> {
    let (to, events) = mpsc::channel(1);
    graphs.mark_changed();
    tokio::spawn(async move {
        while graphs.changed().await.is_ok() {
            let graph = graphs.borrow_and_update().clone();
            let event = Frame::data(Bytes::from(format!("data: {graph}\n\n")));
            match to.send_timeout(Ok(event), PATIENCE).await {
                Ok(()) => {}
                Err(mpsc::error::SendTimeoutError::Closed(_)) => break,
                Err(mpsc::error::SendTimeoutError::Timeout(_)) => {
                    connection.given_up.notify_one();
                    break;
                }
            }
        }
        drop(permit);
    });
    let mut response = Response::new(Either::Right(StreamBody::new(ReceiverStream::new(events))));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    response
}

fn plain(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Either::Left(Full::new(body.into())));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// A parameter of the address, without its percent signs (RFC 3986, section 2.1).
fn parameter(request: &Parts, name: &str) -> Option<String> {
    let mut all = request.uri.query()?.split('&');
    let value = all.find_map(|one| one.strip_prefix(name)?.strip_prefix('='))?;
    let mut bytes = value.bytes();
    let mut plain = Vec::with_capacity(value.len());
    while let Some(byte) = bytes.next() {
        plain.push(match byte {
            b'%' => {
                let digits = [bytes.next()?, bytes.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(plain).ok()
}
