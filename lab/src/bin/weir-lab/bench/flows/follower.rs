//! A client that reads all records of an agent and counts them, as one on another machine would: what it does with them is
//! not this machine's work.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow};
use bytes::Buf as _;
use http::uri::PathAndQuery;
use prost::Message as _;
use tokio::{net::UnixStream, sync::oneshot, time::timeout};
use tonic::{
    Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};
use weir_lab::Agent;
use weir_proto::observer::{GetFlowsRequest, GetFlowsResponse, get_flows_response::ResponseTypes};

/// The first byte of a response with a flow: field 1, length-delimited.
const FLOW: u8 = 0x0a;
const METHOD: &str = "/observer.Observer/GetFlows";
/// How long the last records may take.
const LAST: Duration = Duration::from_millis(500);
const START: Duration = Duration::from_secs(10);

/// A follower at work.
pub(super) struct Follower {
    stop: Arc<AtomicBool>,
    work: JoinHandle<Result<Seen>>,
}

/// What one saw.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Seen {
    pub(super) flows: u64,
    /// What it was told that it missed.
    pub(super) lost: u64,
}

// === impl Follower ===

impl Follower {
    /// Follows an agent from now on. One that stalls reads nothing until it is stopped.
    pub(super) fn start(agent: &Agent, stalls: bool) -> Result<Self> {
        let socket = agent.config().api.socket.clone();
        let stop = Arc::new(AtomicBool::new(false));
        let (ready, is_ready) = oneshot::channel();
        let until = stop.clone();
        let work = thread::Builder::new()
            .name("follower".to_owned())
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()?;
                runtime.block_on(follow(&socket, stalls, ready, &until))
            })?;
        is_ready
            .blocking_recv()
            .context("the follower could not connect")?;
        Ok(Self { stop, work })
    }

    /// What it saw, once nothing more comes.
    pub(super) fn stop(self) -> Result<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        self.work.join().map_err(|_| anyhow!("the follower panicked"))?
    }
}

async fn follow(socket: &Path, stalls: bool, ready: oneshot::Sender<()>, stop: &AtomicBool) -> Result<Seen> {
    let io = UnixStream::connect(socket).await?;
    let mut client = Grpc::new(weir_hubble::client::channel(io).await?);
    client.ready().await?;
    let request = GetFlowsRequest {
        follow: true,
        ..GetFlowsRequest::default()
    };
    let path = PathAndQuery::from_static(METHOD);
    let asked = client.server_streaming(weir_hubble::form::own(request), path, Counting);
    let mut responses = timeout(START, asked).await??.into_inner();
    // Nobody to tell: the bench has given up.
    let _ = ready.send(());
    let mut seen = Seen::default();
    loop {
        let stopped = stop.load(Ordering::Relaxed);
        if stalls && !stopped {
            tokio::time::sleep(LAST).await;
            continue;
        }
        match timeout(LAST, responses.message()).await {
            Ok(Ok(Some(one))) => {
                seen.flows += one.flows;
                seen.lost += one.lost;
            }
            // One that stalled is given up after a while.
            Ok(Ok(None)) => return Ok(seen),
            Ok(Err(_)) if stalls => return Ok(seen),
            Ok(Err(status)) => return Err(status.into()),
            Err(_) if stopped => return Ok(seen),
            Err(_) => {}
        }
    }
}

/// Counts responses without reading more of them than it must.
struct Counting;

impl Codec for Counting {
    type Encode = GetFlowsRequest;
    type Decode = Seen;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Counting {
    type Item = GetFlowsRequest;
    type Error = Status;

    fn encode(&mut self, request: GetFlowsRequest, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        request
            .encode(to)
            .map_err(|error| Status::internal(error.to_string()))
    }
}

impl Decoder for Counting {
    type Item = Seen;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Seen>, Status> {
        if from.chunk().first() == Some(&FLOW) {
            from.advance(from.remaining());
            return Ok(Some(Seen { flows: 1, lost: 0 }));
        }
        let response = GetFlowsResponse::decode(from).map_err(|error| Status::internal(error.to_string()))?;
        let lost = match response.response_types {
            Some(ResponseTypes::LostEvents(lost)) => lost.num_events_lost,
            _ => 0,
        };
        Ok(Some(Seen { flows: 0, lost }))
    }
}
