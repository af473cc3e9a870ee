//! `/metrics` and `/readyz` over HTTP.

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode, body::Bytes, body::Incoming, header::CONTENT_TYPE,
    server::conn::http1, service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, sync::Semaphore, time::timeout};

/// A server as who watches over it sees it.
pub trait Admin: Send + Sync + 'static {
    /// Its metrics in the Prometheus text format, as they are now.
    fn metrics(&self) -> Vec<u8>;

    /// Why it is not ready for what it is there for, if it is not.
    fn not_ready(&self) -> Option<String>;
}

/// Connections at once: a few scrapers and the kubelet.
const CONNECTIONS: usize = 64;
/// A client must have sent its headers in this time.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection lives no longer than this; scrapers open another.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(120);
/// The Prometheus text format, version 0.0.4.
const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Opens the port.
///
/// # Errors
/// As bind(2).
pub async fn bind(address: SocketAddr) -> io::Result<Arc<TcpListener>> {
    TcpListener::bind(address).await.map(Arc::new)
}

/// Serves clients, for ever.
pub async fn serve(listener: Arc<TcpListener>, admin: Arc<dyn Admin>) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = connections.clone().acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "accept failed on the metrics port");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let admin = admin.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let response = respond(&request, &*admin);
                async move { Ok::<_, Infallible>(response) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service);
            // An error or a timeout here: the client's own doing.
            let _ = timeout(CONNECTION_TIMEOUT, connection).await;
            drop(permit);
        });
    }
}

fn respond(request: &Request<Incoming>, admin: &dyn Admin) -> Response<Full<Bytes>> {
    let (status, kind, body) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => (StatusCode::OK, TEXT_FORMAT, Bytes::from(admin.metrics())),
        (&Method::GET, "/readyz") => match admin.not_ready() {
            None => (StatusCode::OK, "text/plain", Bytes::from_static(b"ready\n")),
            Some(why) => (
                StatusCode::SERVICE_UNAVAILABLE,
                "text/plain",
                Bytes::from(format!("not ready: {why}\n")),
            ),
        },
        (&Method::GET, _) => (
            StatusCode::NOT_FOUND,
            "text/plain",
            Bytes::from_static(b"try /metrics or /readyz\n"),
        ),
        _ => (
            StatusCode::METHOD_NOT_ALLOWED,
            "text/plain",
            Bytes::from_static(b"GET only\n"),
        ),
    };
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, ::http::HeaderValue::from_static(kind));
    response
}
