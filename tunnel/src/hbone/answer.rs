//! One request: decided, connected to the application, copied, and told of.

use std::sync::Arc;

use bytes::Bytes;
use h2::server::SendResponse;
use http::{Request, Response, StatusCode};
use weir_types::Reason;

use super::{
    Authority, ConnectRequest, Handler, Observer, Refused, TunnelStream, request::parse_authority,
    server::End,
};
use crate::{
    connection::ConnectionState,
    copy::{CopyOutcome, copy_bidirectional},
};

/// What became of a request.
pub(super) enum Answered {
    /// With 200, and the tunnelled connection ended.
    Served,
    /// With another status.
    Refused,
    /// The peer reset the stream before it was answered.
    GivenUp,
}

/// Answers one request.
pub(super) struct Answer<H> {
    pub(super) handler: Arc<H>,
    pub(super) state: Arc<ConnectionState>,
    pub(super) end: End,
}

// === impl Answered ===

impl Answered {
    /// The number of requests that the peer reset early, with this one: each that was served makes up for one.
    pub(super) fn count(self, early_resets: u32) -> u32 {
        match self {
            Self::Served => early_resets.saturating_sub(1),
            Self::GivenUp => early_resets.saturating_add(1),
            Self::Refused => early_resets,
        }
    }
}

// === impl Answer ===

impl<H: Handler> Answer<H> {
    pub(super) async fn run(
        self,
        request: Request<h2::RecvStream>,
        mut respond: SendResponse<Bytes>,
    ) -> Answered {
        let guard = self.state.stream();
        let (parts, body) = request.into_parts();
        let authority = match parse_authority(&parts) {
            Ok(authority) => authority,
            Err(error) => return self.refuse(respond, error.status(), error.reason(), None),
        };
        let (peer, local) = (self.end.peer, self.end.local);
        let request = ConnectRequest::new(&parts.headers, authority, self.state.peer.clone(), peer, local);
        drop(parts);
        if !self.handler.accepts_authority(&request) {
            let authority = Some(request.authority);
            return self.refuse(respond, StatusCode::BAD_REQUEST, Reason::BadAuthority, authority);
        }
        let decision = tokio::select! {
            decision = self.handler.connect(self.end.pod, &request, &self.state) => decision,
            _ = std::future::poll_fn(|cx| respond.poll_reset(cx)) => {
                self.refused(Some(request.authority), Reason::TunnelReset);
                return Answered::GivenUp;
            }
        };
        let accepted = match decision {
            Ok(accepted) => accepted,
            Err(refusal) => {
                answer(&mut respond, refusal.status);
                if !refusal.told {
                    self.refused(Some(request.authority), refusal.reason);
                }
                return Answered::Refused;
            }
        };
        let mut closing = Closing {
            observer: accepted.observer,
            state: self.state.clone(),
            outcome: None,
        };
        let Ok(send) = respond.send_response(Response::new(()), false) else {
            let _ = accepted.application.set_zero_linger();
            closing.outcome = Some(CopyOutcome {
                ended: Reason::TunnelReset,
            });
            return Answered::GivenUp;
        };
        closing.observer.opened(&self.state);
        let tunnel = TunnelStream::new(send, body, guard);
        let copy = copy_bidirectional(accepted.application, tunnel, &accepted.counters);
        closing.outcome = Some(tokio::select! {
            outcome = copy => outcome,
            () = accepted.stop.cancelled() => CopyOutcome { ended: Reason::PolicyChanged },
        });
        Answered::Served
    }

    fn refuse(
        &self,
        mut respond: SendResponse<Bytes>,
        status: StatusCode,
        reason: Reason,
        authority: Option<Authority>,
    ) -> Answered {
        answer(&mut respond, status);
        self.refused(authority, reason);
        Answered::Refused
    }

    fn refused(&self, authority: Option<Authority>, reason: Reason) {
        self.handler.refused(Refused {
            pod: self.end.pod,
            peer: self.end.peer,
            local: self.end.local,
            peer_identity: Some(self.state.peer.clone()),
            authority,
            reason,
            by_peer: false,
        });
    }
}

/// Answers with a status and nothing else.
fn answer(respond: &mut SendResponse<Bytes>, status: StatusCode) {
    let mut response = Response::new(());
    *response.status_mut() = status;
    // Fails only when the peer gave up meanwhile.
    let _ = respond.send_response(response, true);
}

/// Tells the observer how the connection ended, also when the task is dropped.
struct Closing {
    observer: Box<dyn Observer>,
    state: Arc<ConnectionState>,
    outcome: Option<CopyOutcome>,
}

impl Drop for Closing {
    fn drop(&mut self) {
        let ended = || CopyOutcome {
            ended: self.state.ended().unwrap_or(Reason::Shutdown),
        };
        let outcome = self.outcome.unwrap_or_else(ended);
        self.observer.closed(outcome);
    }
}
