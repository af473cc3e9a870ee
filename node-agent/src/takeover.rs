//! From one agent of a node to the next, without a moment in which there is none.
//!
//! The next agent starts while the one before is at work, and stands by. When that one is told to stop it gives up the
//! kernel's maps, and goes on accepting until the next one says that it is ready; then it lets its open connections end.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use anyhow::Context as _;

use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, UnixStream},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use weir_types::api::{Request, Response};

use crate::datapath::{DatapathError, Pins};

/// How often a waiting agent tries to take over.
const TRY: Duration = Duration::from_millis(20);
/// How long an agent that stops waits for another one to take over.
const CLAIM: Duration = Duration::from_millis(500);
/// How long the one that took over may need until it is ready.
const READY: Duration = Duration::from_secs(30);
/// How often it is asked, and how long it may take to answer.
const ASK: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// What a waiting agent says at its `/readyz`: it is ready to take over, which is what whoever replaces the one before needs
/// to know.
#[derive(Debug)]
pub struct Standby;

impl weir_admin::Admin for Standby {
    fn metrics(&self) -> Vec<u8> {
        b"# HELP weir_standby Whether the agent waits for the one before it to stop.\n# TYPE weir_standby gauge\nweir_standby 1\n".to_vec()
    }

    fn not_ready(&self) -> Option<String> {
        None
    }
}

/// What an agent says at its `/readyz` that has detached.
struct Detached;

impl weir_admin::Admin for Detached {
    fn metrics(&self) -> Vec<u8> {
        Vec::new()
    }

    fn not_ready(&self) -> Option<String> {
        None
    }
}

/// Answers at `address` until this process is told to stop.
///
/// # Errors
/// When the port cannot be opened.
pub async fn hold(address: SocketAddr) -> anyhow::Result<()> {
    let port = weir_admin::bind(address)
        .await
        .with_context(|| format!("the metrics port {address} cannot be opened"))?;
    tokio::select! {
        () = weir_admin::serve(port, Arc::new(Detached)) => Ok(()),
        stopped = crate::agent::stop_signal() => stopped,
    }
}

/// Waits until no other agent has the pins, and answers at `port` meanwhile.
///
/// # Errors
/// When the pins cannot be used.
pub async fn stand_by(pins: &Path, port: &Arc<TcpListener>) -> Result<Pins, DatapathError> {
    let mut answering = JoinSet::new();
    loop {
        match Pins::claim(pins) {
            Err(DatapathError::InUse { .. }) => {}
            claimed => return claimed,
        }
        if answering.is_empty() {
            tracing::info!(pins = %pins.display(), "another agent is at work here: standing by until it stops");
            answering.spawn(weir_admin::serve(port.clone(), Arc::new(Standby)));
        }
        sleep(TRY).await;
    }
}

/// Waits, when this agent gave up its pins, until another one took over and is ready. False if none did.
pub async fn handed_over(pins: &Path, socket: &Path) -> bool {
    let deadline = Instant::now() + CLAIM;
    while !Pins::are_claimed(pins) {
        if Instant::now() > deadline {
            return false;
        }
        sleep(TRY).await;
    }
    tracing::info!("another agent takes over");
    let deadline = Instant::now() + READY;
    while Instant::now() < deadline {
        if timeout(ASK.1, is_ready(socket)).await.unwrap_or(false) {
            tracing::info!("the other agent is ready");
            return true;
        }
        sleep(ASK.0).await;
    }
    tracing::warn!("the agent that took over is not ready in {READY:?}");
    true
}

/// Whether the agent that serves this socket is ready.
async fn is_ready(socket: &Path) -> bool {
    let ask = async {
        let mut stream = UnixStream::connect(socket).await.ok()?;
        let mut request = serde_json::to_vec(&Request::Status).ok()?;
        request.push(b'\n');
        stream.write_all(&request).await.ok()?;
        let line = BufReader::new(stream).lines().next_line().await.ok()??;
        serde_json::from_str::<Response>(&line).ok()
    };
    matches!(ask.await, Some(Response::Status(status)) if status.ready)
}
