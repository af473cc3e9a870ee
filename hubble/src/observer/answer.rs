//! The streams that clients read.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
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
    responses: Arc<Mutex<mpsc::Receiver<GetFlowsResponse>>>,
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
    /// The other end: who is given up must not keep what waits for him.
    waiting: Arc<Mutex<mpsc::Receiver<GetFlowsResponse>>>,
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
        let responses = Arc::new(Mutex::new(responses));
        let problem = Arc::new(OnceLock::new());
        let answer = Self {
            responses: responses.clone(),
            problem: problem.clone(),
            ended: false,
            is_own: true,
            _permit: None,
        };
        let sink = Sink {
            responses: sink,
            waiting: responses,
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
        let response = ready!(receiver(&self.responses).poll_recv(context));
        if let Some(response) = response {
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

fn receiver(
    of: &Mutex<mpsc::Receiver<GetFlowsResponse>>,
) -> MutexGuard<'_, mpsc::Receiver<GetFlowsResponse>> {
    // It is whole whatever its holder did.
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Answer {
    /// The client is gone: the sink holds the queue, too.
    fn drop(&mut self) {
        let mut responses = receiver(&self.responses);
        responses.close();
        while responses.try_recv().is_ok() {}
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
                let mut waiting = receiver(&self.waiting);
                waiting.close();
                while waiting.try_recv().is_ok() {}
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

#[cfg(test)]
mod tests {
    use tokio_stream::StreamExt as _;

    use super::*;

    fn response(number: usize) -> GetFlowsResponse {
        GetFlowsResponse {
            node_name: number.to_string(),
            ..GetFlowsResponse::default()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_reads_nothing_is_given_up_and_keeps_nothing() {
        let (sink, mut answer) = Answer::new();
        let shared = Arc::downgrade(&answer.responses);
        for number in 0..WAITING {
            sink.send(response(number)).await.unwrap();
        }
        let began = tokio::time::Instant::now();
        sink.send(response(WAITING)).await.unwrap_err();
        assert_eq!(began.elapsed(), PATIENCE);
        assert_eq!(receiver(&answer.responses).len(), 0);
        let told = answer.next().await.unwrap().unwrap_err();
        assert_eq!(told.code(), tonic::Code::Aborted);
        assert!(answer.next().await.is_none());
        drop((sink, answer));
        assert_eq!(shared.strong_count(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_reads_in_time_gets_all() {
        let (sink, mut answer) = Answer::new();
        let writer = tokio::spawn(async move {
            for number in 0..3 * WAITING {
                sink.send(response(number)).await.unwrap();
            }
        });
        for number in 0..3 * WAITING {
            tokio::time::sleep(PATIENCE / 2).await;
            let read = answer.next().await.unwrap().unwrap();
            assert_eq!(read.node_name, number.to_string());
        }
        assert!(answer.next().await.is_none());
        writer.await.unwrap();
    }

    #[tokio::test]
    async fn the_sink_hears_that_the_client_is_gone() {
        let (sink, answer) = Answer::new();
        sink.send(response(0)).await.unwrap();
        drop(answer);
        sink.closed().await;
        sink.send(response(1)).await.unwrap_err();
    }
}
