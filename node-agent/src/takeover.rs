//! From one agent of a node to the next, without a moment in which there is none.
//!
//! The next agent starts while the one before is at work, and stands by. When that one is told to stop it gives up the
//! kernel's maps, and goes on accepting until the next one says that it is ready; then it lets its open connections end.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context as _;

use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, UnixStream},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use weir_types::api::{Request, Response};

use crate::{
    control::{self, ControlPlane},
    datapath::{self, DatapathError, Pins},
};

/// How often a waiting agent tries to take over.
const TRY: Duration = Duration::from_millis(20);
/// How often an agent that could not take over tries again.
const REHEARSE: Duration = Duration::from_secs(2);
/// How long an agent that stops waits for another one to take over.
const CLAIM: Duration = Duration::from_millis(500);
/// How long the one that took over may need until it is ready.
const READY: Duration = Duration::from_secs(30);
/// How often it is asked, and how long it may take to answer.
const ASK: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// What a waiting agent says at its `/readyz`: whether it is ready to take over, which is what whoever replaces the one before
/// needs to know. Of an agent that could not, the one before must not be stopped.
#[derive(Debug)]
struct Standby {
    missing: Mutex<Option<String>>,
}

impl Standby {
    fn say(&self, missing: Option<String>) {
        *self.missing.lock().unwrap_or_else(PoisonError::into_inner) = missing;
    }
}

impl weir_admin::Admin for Standby {
    fn metrics(&self) -> Vec<u8> {
        b"# HELP weir_standby Whether the agent waits for the one before it to stop.\n# TYPE weir_standby gauge\nweir_standby 1\n".to_vec()
    }

    fn not_ready(&self) -> Option<String> {
        self.missing
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// Tries what taking over needs, until all of it is there: the kernel takes the programs, and the control plane answers.
async fn rehearse(standby: Arc<Standby>, control_plane: Option<ControlPlane>) {
    let mut loaded = false;
    loop {
        let tried = async {
            if !loaded {
                tokio::task::block_in_place(datapath::rehearse).map_err(|error| error.to_string())?;
                loaded = true;
            }
            match &control_plane {
                Some(control_plane) => control::rehearse(control_plane)
                    .await
                    .map_err(|error| format!("the control plane: {error}")),
                None => Ok(()),
            }
        };
        let Err(problem) = tried.await else {
            tracing::info!("ready to take over");
            return standby.say(None);
        };
        tracing::warn!(problem, "not ready to take over; trying again");
        standby.say(Some(format!("it could not take over: {problem}")));
        sleep(REHEARSE).await;
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
pub async fn stand_by(
    pins: &Path,
    port: &Arc<TcpListener>,
    control_plane: Option<&ControlPlane>,
) -> Result<Pins, DatapathError> {
    let mut waiting = JoinSet::new();
    loop {
        match Pins::claim(pins) {
            Err(DatapathError::InUse { .. }) => {}
            claimed => return claimed,
        }
        if waiting.is_empty() {
            tracing::info!(pins = %pins.display(), "another agent is at work here: standing by until it stops");
            let standby = Arc::new(Standby {
                missing: Mutex::new(Some("trying whether it could take over".to_owned())),
            });
            waiting.spawn(weir_admin::serve(port.clone(), standby.clone()));
            waiting.spawn(rehearse(standby, control_plane.cloned()));
        }
        sleep(TRY).await;
    }
}

/// Waits, when this agent gave up its pins, until another one took over and is ready. False if none did. One that fails at it
/// gives the next one its time.
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
    tracing::warn!("no agent that took over is ready in {READY:?}");
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
