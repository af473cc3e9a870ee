//! One stream's task: moves requests into its session and responses out of it, and watches the clock.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::Frame;
use prost::Message as _;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch},
    time::{Instant, sleep_until, timeout, timeout_at},
};
use tonic::{Status, codegen::http::HeaderMap};
use weir_proto::{ResourceType, SharedResponse, envoy::service::discovery::v3::DeltaDiscoveryRequest};

use super::{
    authenticate::Agent,
    bucket::TokenBucket,
    close::Close,
    requests::Requests,
    service::{Place, Shared},
    session::{Push, Received, Session},
    sever::Sever,
};

/// A response and the status that can end the stream behind it.
const CHANNEL: usize = 2;
/// Streams that began together end over a fifth of their age.
const AGE_JITTER: std::ops::Range<f64> = 0.9..1.1;

type Acquiring = Pin<Box<dyn Future<Output = Option<OwnedSemaphorePermit>> + Send>>;

/// The state of the task.
pub(super) struct Stream {
    shared: Arc<Shared>,
    agent: Agent,
    session: Session,
    requests: Requests,
    out: mpsc::Sender<Result<Outgoing, Status>>,
    bucket: TokenBucket,
    began: Instant,
    /// When the next request may be read.
    readable: Instant,
    /// The permit for a full push, while one is being made.
    permit: Option<OwnedSemaphorePermit>,
    acquiring: Option<Acquiring>,
    /// Ends when the last response has been written, and by when it must.
    transit: Option<(oneshot::Receiver<()>, Instant)>,
    /// By when the client must answer the last response of each type.
    unanswered: [Option<Instant>; ResourceType::ALL.len()],
}

/// A response on its way.
struct Outgoing {
    response: SharedResponse,
    transit: Transit,
}

/// Dropped with the last of the response's bytes: the task then hears of it, and another stream may make its full
/// push.
struct Transit {
    _permit: Option<OwnedSemaphorePermit>,
    _written: oneshot::Sender<()>,
}

/// Encoded, and what goes with the bytes. That the transport asks for more does not say that it has written what it
/// has; that it drops the bytes does.
struct Tracked {
    bytes: Vec<u8>,
    _transit: Transit,
}

/// The responses as the transport asks for them: a gRPC body.
pub(super) struct Outbound(Option<mpsc::Receiver<Result<Outgoing, Status>>>);

// === impl Outgoing ===

impl Outgoing {
    /// The response as a gRPC message: not compressed, its length, its bytes.
    fn encode(self) -> Result<Bytes, Status> {
        let length = self.response.encoded_len();
        let too_large = |_| Status::internal("the response is larger than gRPC allows");
        let header = u32::try_from(length).map_err(too_large)?.to_be_bytes();
        let mut bytes = Vec::with_capacity(1 + header.len() + length);
        bytes.push(0);
        bytes.extend_from_slice(&header);
        self.response
            .encode(&mut bytes)
            .map_err(|error| Status::internal(error.to_string()))?;
        Ok(Bytes::from_owner(Tracked {
            bytes,
            _transit: self.transit,
        }))
    }
}

impl AsRef<[u8]> for Tracked {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

// === impl Outbound ===

impl tokio_stream::Stream for Outbound {
    type Item = Result<Frame<Bytes>, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(responses) = &mut self.0 else {
            return Poll::Ready(None);
        };
        let next = ready!(responses.poll_recv(context)).unwrap_or_else(|| Err(Status::ok("")));
        let frame = next
            .and_then(Outgoing::encode)
            .map(Frame::data)
            .or_else(|status| {
                self.0 = None;
                let mut trailers = HeaderMap::new();
                status
                    .add_header(&mut trailers)
                    .map(|()| Frame::trailers(trailers))
            });
        Poll::Ready(Some(frame))
    }
}

// === impl Stream ===

impl Stream {
    /// Serves the agent in a task of its own.
    pub(super) fn spawn(
        shared: Arc<Shared>,
        agent: Agent,
        place: Place,
        requests: Requests,
        sever: Option<Sever>,
    ) -> Outbound {
        let (out, responses) = mpsc::channel(CHANNEL);
        let limits = &shared.limits;
        let began = Instant::now();
        let stream = Self {
            session: Session::new(agent.node.clone(), limits),
            bucket: TokenBucket::new(limits.requests_per_second, limits.request_burst),
            shared,
            agent,
            requests,
            out,
            began,
            readable: began,
            permit: None,
            acquiring: None,
            transit: None,
            unanswered: [None; ResourceType::ALL.len()],
        };
        tokio::spawn(stream.run(place, sever));
        Outbound(Some(responses))
    }

    async fn run(mut self, _place: Place, sever: Option<Sever>) {
        let close = self.serve().await;
        tracing::info!(node = %self.agent.node, reason = %close, "a stream ended");
        self.shared.metrics.closed(close.label());
        if let Some(status) = close.status() {
            // Without a reader there is nobody to tell.
            let _ = self.out.try_send(Err(status));
        }
        // What is not read stays in HTTP/2's buffers, whatever becomes of the stream.
        if let Some((written, deadline)) = self.transit.take()
            && let Some(sever) = sever
            && timeout_at(deadline, written).await.is_err()
        {
            sever.cut();
        }
    }

    /// Runs the stream to its end.
    async fn serve(&mut self) -> Close {
        let mut drain = self.shared.drain.subscribe();
        let mut revisions = self.shared.store.revisions();
        let age = self.began + self.shared.limits.age.mul_f64(rand::random_range(AGE_JITTER));
        if let Err(close) = self.first_request(&mut drain).await {
            return close;
        }
        let mut batch = None;
        let mut speak = true;
        loop {
            if speak && self.transit.is_none() && self.acquiring.is_none() {
                match self.speak() {
                    Ok(spoke) => speak = spoke,
                    Err(close) => return close,
                }
            }
            let deadline = self.deadline();
            tokio::select! {
                biased;
                Ok(_) = drain.wait_for(|drain| *drain) => return Close::Shutdown,
                () = sleep_until(age) => return Close::Age,
                () = self.out.closed() => return Close::Client,
                () = written(&mut self.transit), if self.transit.is_some() => self.transit = None,
                permit = acquired(&mut self.acquiring), if self.acquiring.is_some() => {
                    self.acquiring = None;
                    self.permit = permit;
                }
                () = until(deadline), if deadline.is_some() => return self.late(),
                () = until(batch), if batch.is_some() => batch = None,
                Ok(()) = revisions.changed(), if batch.is_none() => {
                    batch = Some(Instant::now() + self.shared.limits.batch);
                    continue;
                }
                request = read(&mut self.requests, self.readable) => match request {
                    Ok(Some(request)) => {
                        if let Err(close) = self.receive(request) {
                            return close;
                        }
                    }
                    Ok(None) => return Close::Client,
                    Err(close) => return close,
                },
            }
            speak = true;
        }
    }

    /// Reads the first request. It can list all that the agent has, megabytes once decoded, so when all agents
    /// reconnect at once they are read a few at a time; the permit then serves the response too.
    async fn first_request(&mut self, drain: &mut watch::Receiver<bool>) -> Result<(), Close> {
        let permits = self.shared.full_pushes.clone();
        let patience = self.shared.limits.first_request_timeout;
        let read = async {
            let permit = acquire(permits).await;
            (permit, timeout(patience, self.requests.next()).await)
        };
        let (permit, request) = tokio::select! {
            biased;
            Ok(_) = drain.wait_for(|drain| *drain) => return Err(Close::Shutdown),
            () = self.out.closed() => return Err(Close::Client),
            read = read => read,
        };
        self.permit = permit;
        match request {
            Ok(Ok(Some(request))) => self.receive(request),
            Ok(Ok(None)) => Err(Close::Client),
            Ok(Err(close)) => Err(close),
            Err(_) => Err(Close::Silent),
        }
    }

    fn receive(&mut self, request: DeltaDiscoveryRequest) -> Result<(), Close> {
        let now = Instant::now();
        self.readable = now + self.bucket.take(now - self.began);
        let node = &self.agent.node;
        match self.session.receive(request)? {
            Received::Request => {}
            Received::Nack(kind, error) => {
                self.shared.metrics.of(kind).nacks.inc();
                tracing::warn!(%node, kind = kind.label(), error, "the agent rejects a response");
            }
            Received::UnknownType(url) => {
                tracing::warn!(%node, url, "the agent asks for a type that is not served");
            }
        }
        for kind in ResourceType::ALL {
            if !self.session.awaits(kind) {
                self.unanswered[kind as usize] = None;
            }
        }
        Ok(())
    }

    /// Sends the next response, and says whether there can be another.
    fn speak(&mut self) -> Result<bool, Close> {
        if self.session.wants_everything() && self.permit.is_none() {
            self.acquiring = Some(Box::pin(acquire(self.shared.full_pushes.clone())));
            return Ok(true);
        }
        let push = self.shared.store.read(|state| self.session.next(state))?;
        let Some(Push { kind, response }) = push else {
            self.permit = None;
            return Ok(false);
        };
        let metrics = self.shared.metrics.of(kind);
        metrics.pushes.inc();
        metrics.bytes.inc_by(response.encoded_len() as u64);
        let now = Instant::now();
        let (sender, receiver) = oneshot::channel();
        let transit = Transit {
            _permit: self.permit.take(),
            _written: sender,
        };
        self.out
            .try_send(Ok(Outgoing { response, transit }))
            .map_err(|_| Close::Client)?;
        self.transit = Some((receiver, now + self.shared.limits.send_timeout));
        self.unanswered[kind as usize] = Some(now + self.shared.limits.ack_timeout);
        Ok(true)
    }

    /// When patience with the client ends.
    fn deadline(&self) -> Option<Instant> {
        let transit = self.transit.as_ref().map(|(_, deadline)| *deadline);
        self.unanswered.iter().copied().flatten().chain(transit).min()
    }

    /// Which deadline has passed.
    fn late(&self) -> Close {
        let now = Instant::now();
        match &self.transit {
            Some((_, deadline)) if *deadline <= now => Close::NotRead,
            _ => Close::NotAnswered,
        }
    }
}

/// None if the semaphore is closed, which it never is.
async fn acquire(permits: Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
    permits.acquire_owned().await.ok()
}

async fn acquired(acquiring: &mut Option<Acquiring>) -> Option<OwnedSemaphorePermit> {
    match acquiring {
        Some(acquiring) => acquiring.await,
        None => std::future::pending().await,
    }
}

async fn written(transit: &mut Option<(oneshot::Receiver<()>, Instant)>) {
    match transit {
        // An error is the sender's drop, which is the signal.
        Some((written, _)) => drop(written.await),
        None => std::future::pending().await,
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Reads a request, but not before `readable`: the client's own requests then wait in its transport, not here.
async fn read(requests: &mut Requests, readable: Instant) -> Result<Option<DeltaDiscoveryRequest>, Close> {
    if readable.saturating_duration_since(Instant::now()) > Duration::ZERO {
        sleep_until(readable).await;
    }
    requests.next().await
}
