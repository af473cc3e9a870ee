//! One node's flows.

use std::{sync::Arc, time::Duration};

use prost_types::Timestamp;
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};
use tonic::{Code, Status};
use weir_proto::observer::{GetFlowsRequest, GetFlowsResponse, get_flows_response::ResponseTypes};

use super::{Connect, Unreachable};
use crate::{client, convert::timestamp, form};

/// How long a node may take to begin its answer, which it does at once.
const PATIENCE: Duration = Duration::from_secs(10);

/// Waits between attempts to reach a node: doubled from the first to the last.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));

/// What happens with a node.
#[derive(Debug)]
pub(super) enum Event {
    Response(Box<GetFlowsResponse>),
    /// It cannot be reached, or its stream broke.
    Unavailable(String),
    /// It answers, where flows are followed: at first, and when it can be reached again.
    Connected,
    /// It has said all.
    Ended,
    /// It does not take the request: no other node will.
    Refused(Status),
}

/// Reads a node until it has said all, or, where flows are followed, for ever.
pub(super) async fn node<C: Connect, T: From<(Arc<str>, Event)> + Send>(
    connect: Arc<C>,
    node: Arc<str>,
    mut request: GetFlowsRequest,
    to: mpsc::Sender<T>,
) {
    let began = timestamp(jiff::Timestamp::now());
    let mut failures = 0_u32;
    let mut is_away = false;
    loop {
        let tell = async |event: Event| to.send((node.clone(), event).into()).await.is_ok();
        let problem = match stream(&*connect, &node, &mut request, &to, &mut is_away).await {
            Ok(Heard::Nobody) => return,
            Ok(Heard::All) if !request.follow => {
                tell(Event::Ended).await;
                return;
            }
            Ok(Heard::All) => {
                failures = 0;
                "it ended the stream".to_owned()
            }
            Err(Problem::Refused(status)) => {
                tell(Event::Refused(status)).await;
                return;
            }
            Err(Problem::Broken(problem)) => {
                failures = 0;
                problem
            }
            Err(Problem::Unreachable(error)) => {
                failures += 1;
                error.0
            }
        };
        if !is_away && !tell(Event::Unavailable(problem)).await {
            return;
        }
        is_away = true;
        if !request.follow {
            tell(Event::Ended).await;
            return;
        }
        if request.number == 0 {
            // What it records before it is reached again is new, too.
            request.since.get_or_insert(began);
        }
        let wait = BACK_OFF.0.saturating_mul(1 << failures.min(10)).min(BACK_OFF.1);
        tokio::select! {
            () = sleep(wait) => {}
            () = to.closed() => return,
        }
    }
}

/// Why a stream ended well.
enum Heard {
    All,
    /// Nobody listens any more.
    Nobody,
}

enum Problem {
    Unreachable(Unreachable),
    Broken(String),
    Refused(Status),
}

async fn stream<T: From<(Arc<str>, Event)>>(
    connect: &impl Connect,
    node: &Arc<str>,
    request: &mut GetFlowsRequest,
    to: &mpsc::Sender<T>,
    is_away: &mut bool,
) -> Result<Heard, Problem> {
    let channel = connect.connect(node).await.map_err(Problem::Unreachable)?;
    let mut client = client::observer(channel);
    let answer = timeout(PATIENCE, client.get_flows(form::own(request.clone()))).await;
    let answer = answer.map_err(|_| Problem::Broken(format!("it said nothing for {PATIENCE:?}")))?;
    let mut responses = answer.map_err(|status| refusal(&status))?.into_inner();
    *is_away = false;
    let connected = (node.clone(), Event::Connected).into();
    if request.follow && to.send(connected).await.is_err() {
        return Ok(Heard::Nobody);
    }
    loop {
        let response = tokio::select! {
            response = responses.message() => response,
            () = to.closed() => return Ok(Heard::Nobody),
        };
        let Some(mut response) = response.map_err(|status| refusal(&status))? else {
            return Ok(Heard::All);
        };
        if response.node_name.is_empty() {
            response.node_name = node.to_string();
        }
        let is_flow = matches!(response.response_types, Some(ResponseTypes::Flow(_)));
        if let Some(time) = response.time.filter(|_| request.follow && is_flow) {
            // Where a stream that breaks is to go on. Records do not come strictly by time.
            let key = |time: &Timestamp| (time.seconds, time.nanos);
            request.since = request.since.into_iter().chain([after(time)]).max_by_key(key);
            request.number = 0;
        }
        if to
            .send((node.clone(), Event::Response(Box::new(response))).into())
            .await
            .is_err()
        {
            return Ok(Heard::Nobody);
        }
    }
}

fn refusal(status: &Status) -> Problem {
    match status.code() {
        Code::InvalidArgument | Code::Unimplemented | Code::PermissionDenied => {
            Problem::Refused(status.clone())
        }
        _ => Problem::Broken(status.message().to_owned()),
    }
}

fn after(time: Timestamp) -> Timestamp {
    match time.nanos {
        999_999_999.. => Timestamp {
            seconds: time.seconds + 1,
            nanos: 0,
        },
        nanos => Timestamp {
            nanos: nanos + 1,
            ..time
        },
    }
}
