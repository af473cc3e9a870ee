//! HTTP on loopback, from a thread of its own: a test that waits for a subprocess does not stop its server.

use std::{
    future::Future,
    io,
    net::{SocketAddr, TcpListener},
    sync::Arc,
    thread::{self, JoinHandle},
};

use bytes::Bytes;
use http::{Request, Response, header};
use http_body_util::{BodyExt as _, Full, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::Value;
use tokio::{sync::oneshot, task::JoinSet};

/// The body of an answer.
pub(crate) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Who answers.
pub(crate) trait Handler: Send + Sync + 'static {
    /// Answers a request, or breaks its connection.
    fn handle(&self, request: Request<Incoming>) -> impl Future<Output = io::Result<Response<Body>>> + Send;
}

/// A server, which ends with all of its connections when this is dropped.
#[derive(Debug)]
pub(crate) struct Serving {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Serving {
    /// Listens on an address. `make` is called on the server's own runtime.
    pub(crate) fn start<H: Handler>(
        address: SocketAddr,
        make: impl FnOnce() -> H + Send + 'static,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let thread = thread::Builder::new()
            .name("api-server".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    let handler = Arc::new(make());
                    tokio::select! {
                        _ = stopped => {}
                        () = accept(listener, handler) => {}
                    }
                });
            })?;
        Ok(Self {
            address,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            // A panic of the server has been printed, and its connections are closed all the same.
            let _ = thread.join();
        }
    }
}

async fn accept<H: Handler>(listener: TcpListener, handler: Arc<H>) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(why) => return tracing::error!(%why, "cannot listen"),
    };
    // Ends with this future, and every connection with it.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                let handler = Arc::clone(&handler);
                connections.spawn(async move {
                    let service = service_fn(|request| handler.handle(request));
                    let connection = http1::Builder::new()
                        .timer(TokioTimer::new())
                        .serve_connection(TokioIo::new(stream), service)
                        .with_upgrades();
                    if let Err(why) = connection.await {
                        tracing::debug!(%why, "connection ended");
                    }
                });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// An answer that is one JSON document.
pub(crate) fn document(code: u16, content_type: &str, body: &Value) -> Response<Body> {
    text(code, content_type, body.to_string())
}

/// An answer that is a text.
pub(crate) fn text(code: u16, content_type: &str, body: impl Into<Bytes>) -> Response<Body> {
    response(
        code,
        content_type,
        Full::new(body.into())
            .map_err(|never| match never {})
            .boxed_unsync(),
    )
}

/// An answer of any body.
pub(crate) fn response(code: u16, content_type: &str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() =
        http::StatusCode::from_u16(code).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
    if let Ok(content_type) = header::HeaderValue::from_str(content_type) {
        response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    }
    response
}

/// A configuration for clients of a server on loopback, which asks nobody who they are.
pub(crate) fn config(address: SocketAddr) -> kube::Config {
    let uri = http::Uri::builder()
        .scheme("http")
        .authority(address.to_string())
        .path_and_query("/")
        .build()
        .unwrap_or_default();
    kube::Config::new(uri)
}

/// The same for subprocesses.
pub(crate) fn kubeconfig(address: SocketAddr) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: test\nclusters:\n- name: test\n  cluster:\n    server: \
         http://{address}\ncontexts:\n- name: test\n  context:\n    cluster: test\n    user: test\nusers:\n- name: \
         test\n  user: {{}}\n"
    )
}
