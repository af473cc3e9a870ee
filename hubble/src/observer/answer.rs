//! The streams that clients read.

use std::{
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Status};
use weir_proto::{observer::GetFlowsResponse, peer::ChangeNotification};

use crate::form;

/// Responses that wait for a client to read them.
const WAITING: usize = 128;
/// A client that reads nothing for this long is given up.
const PATIENCE: Duration = Duration::from_secs(30);

/// Changes of peers.
pub(crate) type Changes = ReceiverStream<Result<ChangeNotification, Status>>;

/// The flows of one request.
#[derive(Debug)]
pub struct Answer {
    responses: mpsc::Receiver<GetFlowsResponse>,
    /// Why it ended early.
    problem: Arc<OnceLock<Status>>,
    ended: bool,
    /// Whether Weir's own message is left in it.
    is_own: bool,
    /// What it takes a share of, as long as it is read.
    _permit: Option<OwnedSemaphorePermit>,
}

/// Where they are put.
#[derive(Debug)]
pub(crate) struct Sink {
    responses: mpsc::Sender<GetFlowsResponse>,
    problem: Arc<OnceLock<Status>>,
}

/// The client is gone, or is given up.
#[derive(Debug)]
pub(crate) struct Gone;

pub(crate) fn changes() -> (mpsc::Sender<Result<ChangeNotification, Status>>, Changes) {
    let (sink, changes) = mpsc::channel(WAITING);
    (sink, ReceiverStream::new(changes))
}

// === impl Answer ===

impl Answer {
    pub(crate) fn new() -> (Sink, Self) {
        let (sink, responses) = mpsc::channel(WAITING);
        let problem = Arc::new(OnceLock::new());
        let answer = Self {
            responses,
            problem: problem.clone(),
            ended: false,
            is_own: true,
            _permit: None,
        };
        let sink = Sink {
            responses: sink,
            problem,
        };
        (sink, answer)
    }

    /// In the form that the request asks for.
    pub(crate) fn for_request<T>(mut self, request: &Request<T>) -> Self {
        self.is_own = form::wants_own(request);
        self
    }

    /// Holds a permit as long as it is read.
    pub(crate) fn with(mut self, permit: OwnedSemaphorePermit) -> Self {
        self._permit = Some(permit);
        self
    }
}

impl Stream for Answer {
    type Item = Result<GetFlowsResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if let Some(response) = ready!(self.responses.poll_recv(context)) {
            let response = if self.is_own {
                response
            } else {
                form::anybodys(response)
            };
            return Poll::Ready(Some(Ok(response)));
        }
        self.ended = true;
        Poll::Ready(self.problem.get().cloned().map(Err))
    }
}

// === impl Sink ===

impl Sink {
    /// Waits until the client has room for it, but not for ever.
    pub(crate) async fn send(&self, response: GetFlowsResponse) -> Result<(), Gone> {
        match self.responses.send_timeout(response, PATIENCE).await {
            Ok(()) => Ok(()),
            Err(mpsc::error::SendTimeoutError::Closed(_)) => Err(Gone),
            Err(mpsc::error::SendTimeoutError::Timeout(_)) => {
                let seconds = PATIENCE.as_secs();
                let problem = format!("nothing was read for {seconds} seconds; the stream is given up");
                let _ = self.problem.set(Status::aborted(problem));
                Err(Gone)
            }
        }
    }

    /// Says why the answer ends early.
    pub(crate) fn fail(&self, status: Status) {
        // What was said first counts.
        let _ = self.problem.set(status);
    }

    /// Waits until the client is gone.
    pub(crate) async fn closed(&self) {
        self.responses.closed().await;
    }
}
