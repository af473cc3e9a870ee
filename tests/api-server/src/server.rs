//! The API server in memory: the core behind a port.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response, header};
use http_body_util::{BodyExt as _, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use tokio::{sync::watch, time::Instant};

use crate::{
    access::Denied,
    core::{Core, Poll, Reply, Watch},
    discovery,
    forward::{self, Forwards},
    request,
    request::{Query, Target},
    serving::{self, Body, Handler, Serving},
    status::Status,
    store,
};

/// `MaxRequestBodyBytes` of the API server.
const MAX_BODY: usize = 3 * 1024 * 1024;

/// An API server in memory, on a port of loopback, over HTTP. Ends with all of its connections when dropped.
///
/// Requests without a token are an administrator's; those with one that it issued are that service account's.
///
/// Not there: CEL rules, admission by webhooks, RBAC, protobuf, tables, garbage collection by owner references,
/// and every controller but those for namespaces and definitions. Nothing schedules or runs pods.
#[derive(Debug)]
pub struct ApiServer {
    shared: Arc<Shared>,
    serving: Serving,
}

#[derive(Debug)]
struct Shared {
    core: Mutex<Core>,
    /// Tells watches that there may be something to read.
    changed: watch::Sender<()>,
    /// How far the server's clock is ahead.
    ahead: Mutex<SignedDuration>,
    forwards: Mutex<Forwards>,
}

impl ApiServer {
    /// Starts a server with nothing in it but the namespaces of every cluster.
    ///
    /// # Errors
    /// When there is no port or thread to be had.
    pub fn start() -> io::Result<Self> {
        let shared = Arc::new(Shared {
            core: Mutex::new(Core::new(rand::random(), Timestamp::now())),
            changed: watch::Sender::new(()),
            ahead: Mutex::new(SignedDuration::ZERO),
            forwards: Mutex::default(),
        });
        let handler = Front(Arc::clone(&shared));
        let serving = Serving::start(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), move || handler)?;
        Ok(Self { shared, serving })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.serving.address()
    }

    /// How to reach it.
    #[must_use]
    pub fn config(&self) -> kube::Config {
        serving::config(self.address())
    }

    /// A client, of the runtime that this is called on.
    ///
    /// # Errors
    /// When kube cannot make one.
    pub fn client(&self) -> kube::Result<kube::Client> {
        kube::Client::try_from(self.config())
    }

    /// A kubeconfig for subprocesses, as YAML.
    #[must_use]
    pub fn kubeconfig(&self) -> String {
        serving::kubeconfig(self.address())
    }

    /// Moves the server's clock, which decides over the expiry of tokens, forward.
    pub fn advance(&self, by: Duration) {
        let mut ahead = self.shared.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        *ahead += SignedDuration::try_from(by).unwrap_or(SignedDuration::ZERO);
    }

    /// Forbids something, to those who come with a token and in access reviews.
    pub fn deny(&self, denied: Denied) {
        self.shared.core().denied.push(denied);
    }

    /// Allows everything again.
    pub fn allow_all(&self) {
        self.shared.core().denied.clear();
    }

    /// Forgets the history, as compaction does: watches and continued lists of any version but the present one
    /// are told 410.
    pub fn compact(&self) {
        self.shared.core().store.compact();
    }

    /// Puts objects of a resource there as they are, under the name that they are stored by (`pods`,
    /// `authorizationpolicies.weir.dev`). Nothing is checked, defaulted or owned, and a status stands as given; who has
    /// no UID gets one. For clusters that would take minutes to make by requests.
    pub fn put(&self, stored: &str, objects: impl IntoIterator<Item = Value>) {
        let mut core = self.shared.core();
        for object in objects {
            core.put(stored, object);
        }
        self.shared.changed.send_replace(());
    }

    /// Takes an object away at once, without grace or finalizers. Says whether it was there.
    pub fn remove(&self, stored: &str, namespace: &str, name: &str) -> bool {
        let mut core = self.shared.core();
        let removed = core.store.remove(stored, &store::key(namespace, name)).is_some();
        self.shared.changed.send_replace(());
        removed
    }

    /// Leads port-forwards to a pod's port there. What no test leads anywhere is refused as a closed port is.
    pub fn forward(&self, namespace: &str, pod: &str, port: u16, to: SocketAddr) {
        self.shared.forwards().set(namespace, pod, port, to);
    }

    /// Stops it. Its port is free when this returns.
    pub fn stop(self) {}
}

impl Shared {
    fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forwards(&self) -> MutexGuard<'_, Forwards> {
        self.forwards.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Timestamp {
        let ahead = *self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        Timestamp::now().checked_add(ahead).unwrap_or(Timestamp::MAX)
    }

    fn answer(&self, request: &request::Request) -> Result<Reply, Status> {
        let mut core = self.core();
        let before = core.store.revision();
        let answer = core.answer(request, self.now());
        if core.store.revision() != before {
            self.changed.send_replace(());
        }
        answer
    }
}

#[derive(Debug)]
struct Front(Arc<Shared>);

impl Handler for Front {
    async fn handle(&self, request: Request<Incoming>) -> io::Result<Response<Body>> {
        if let Some(target) = forward::asked(request.uri().path()) {
            let switched = self.forward(request, &target);
            return Ok(switched.unwrap_or_else(|status| {
                serving::document(status.code, "application/json", &status.to_json())
            }));
        }
        let answer = match read(request).await {
            Ok(request) => self
                .0
                .answer(&request)
                .map(|reply| (reply, discovery::aggregated(&request))),
            Err(status) => Err(status),
        };
        Ok(match answer {
            Ok((Reply::Object { code, body }, false)) => serving::document(code, "application/json", &body),
            Ok((Reply::Object { code, body }, true)) => {
                let content_type = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
                serving::document(code, content_type, &body)
            }
            Ok((Reply::Text { code, body }, _)) => serving::text(code, "text/plain; charset=utf-8", body),
            Ok((Reply::Watch(watch), _)) => stream_watch(Arc::clone(&self.0), *watch),
            Err(status) => serving::document(status.code, "application/json", &status.to_json()),
        })
    }
}

impl Front {
    /// Switches to a port-forward, if whoever asks may, and there is the pod.
    fn forward(&self, request: Request<Incoming>, target: &Target) -> Result<Response<Body>, Status> {
        let head = head(&request);
        let port = head
            .query
            .number("ports")?
            .and_then(|port| u16::try_from(port).ok());
        let port = port.ok_or_else(|| Status::bad_request("you must specify at least 1 port"))?;
        self.0.core().may_forward(&head, target, self.0.now())?;
        let to = self.0.forwards().find(target, port);
        forward::switch(request, port, to)
    }
}

/// All of a request but its body.
fn head<B>(request: &Request<B>) -> request::Request {
    let header = |name: header::HeaderName| {
        let value = request.headers().get(name).and_then(|value| value.to_str().ok());
        value.unwrap_or_default().to_owned()
    };
    request::Request {
        method: request.method().as_str().to_owned(),
        path: request.uri().path().to_owned(),
        query: Query::parse(request.uri().query().unwrap_or_default()),
        accept: header(header::ACCEPT),
        content_type: header(header::CONTENT_TYPE),
        user_agent: header(header::USER_AGENT),
        bearer: header(header::AUTHORIZATION)
            .strip_prefix("Bearer ")
            .map(str::to_owned),
        body: Vec::new(),
    }
}

async fn read(request: Request<Incoming>) -> Result<request::Request, Status> {
    let head = head(&request);
    let body = Limited::new(request.into_body(), MAX_BODY)
        .collect()
        .await
        .map_err(|why| {
            if why.is::<http_body_util::LengthLimitError>() {
                Status::body_too_large(MAX_BODY)
            } else {
                Status::bad_request(format!("the body could not be read: {why}"))
            }
        })?;
    Ok(request::Request {
        body: body.to_bytes().to_vec(),
        ..head
    })
}

/// An open watch and its clocks.
struct Open {
    shared: Arc<Shared>,
    watch: Watch,
    changed: watch::Receiver<()>,
    until: Instant,
    bookmark: Option<Instant>,
    ended: bool,
}

fn stream_watch(shared: Arc<Shared>, watch: Watch) -> Response<Body> {
    let now = Instant::now();
    let open = Open {
        changed: shared.changed.subscribe(),
        until: now + watch.timeout,
        bookmark: watch.bookmark_due(watch.timeout).map(|due| now + due),
        shared,
        watch,
        ended: false,
    };
    let lines = stream::unfold(open, |mut open| async {
        let lines = open.next().await?;
        Some((Ok::<_, io::Error>(Frame::data(lines)), open))
    });
    serving::response(200, "application/json", StreamBody::new(lines).boxed_unsync())
}

impl Open {
    /// The next events, one a line; nothing when the watch is over.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if self.ended {
                return None;
            }
            // Marked as seen before it is read: what comes meanwhile wakes it again.
            self.changed.borrow_and_update();
            let events = match self.watch.poll(&self.shared.core()) {
                Poll::Events(events) => events,
                Poll::Ended(events) => {
                    self.ended = true;
                    events
                }
            };
            if !events.is_empty() {
                return Some(lines(&events));
            }
            tokio::select! {
                changed = self.changed.changed() => self.ended |= changed.is_err(),
                () = tokio::time::sleep_until(self.until) => self.ended = true,
                () = tokio::time::sleep_until(self.bookmark.unwrap_or(self.until)), if self.bookmark.is_some() => {
                    let now = Instant::now();
                    self.bookmark = self.watch.bookmark_due(self.until - now).map(|due| now + due);
                    return self.watch.bookmark().map(|bookmark| lines(&[bookmark]));
                }
            }
        }
    }
}

fn lines(events: &[Value]) -> Bytes {
    let mut text = String::new();
    for event in events {
        text.push_str(&event.to_string());
        text.push('\n');
    }
    text.into()
}
