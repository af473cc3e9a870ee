//! The local API: JSON lines over a Unix socket that only root can open, or a port on loopback.

use std::{
    io,
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
    path::Path,
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{
        AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader,
        BufWriter,
    },
    net::{TcpListener, UnixListener, tcp, unix},
    sync::Semaphore,
    time::timeout,
};
use weir_types::api::{FlowsRequest, MAX_REQUEST, Request, Response};

use crate::{agent::Agent, explain};

/// Clients at once: people and their scripts.
const CLIENTS: usize = 64;
/// A client must have sent its request in this time.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// A client that takes no more for this long is gone.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// Records sent before the ring is looked at again: bounds what one reader holds.
const PAGE: usize = 1024;

/// Opens the socket: mode 0600 from its first moment, in place of one that a dead agent left.
///
/// # Errors
/// When another agent serves it, or the folder cannot be written.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    if std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket()) {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                "another agent serves this socket",
            ));
        }
        std::fs::remove_file(path)?;
    }
    // Bound under another name and moved, so that nobody can open it before its mode is set.
    let hidden = path.with_extension(format!("{}.tmp", std::process::id()));
    let listener = UnixListener::bind(&hidden)?;
    std::fs::set_permissions(&hidden, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&hidden, path)?;
    Ok(listener)
}

/// Where clients come from: the socket, or a port. Whoever reaches the port may ask: it is for the loopback of a network
/// namespace that the agent has for itself.
pub trait Accept: Sync {
    /// What a client says.
    type Read: AsyncRead + Unpin + Send + 'static;
    /// What it is told.
    type Write: AsyncWrite + Unpin + Send + 'static;

    /// The next client.
    fn client(&self) -> impl Future<Output = io::Result<(Self::Read, Self::Write)>> + Send;
}

impl Accept for UnixListener {
    type Read = unix::OwnedReadHalf;
    type Write = unix::OwnedWriteHalf;

    async fn client(&self) -> io::Result<(Self::Read, Self::Write)> {
        Ok(self.accept().await?.0.into_split())
    }
}

impl Accept for TcpListener {
    type Read = tcp::OwnedReadHalf;
    type Write = tcp::OwnedWriteHalf;

    async fn client(&self) -> io::Result<(Self::Read, Self::Write)> {
        Ok(self.accept().await?.0.into_split())
    }
}

/// Serves clients, for ever.
pub async fn serve(listener: impl Accept, agent: Arc<Agent>) {
    let clients = Arc::new(Semaphore::new(CLIENTS));
    loop {
        let Ok(permit) = clients.clone().acquire_owned().await else {
            return;
        };
        match listener.client().await {
            Ok((read, write)) => {
                let agent = agent.clone();
                tokio::spawn(async move {
                    // An error here: the client went away.
                    let _ = answer(read, write, &agent).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accept failed on the API socket");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn answer(
    read: impl AsyncRead + Unpin,
    write: impl AsyncWrite + Unpin,
    agent: &Agent,
) -> io::Result<()> {
    let mut out = BufWriter::new(write);
    let mut read = BufReader::new(read);
    let mut line = Vec::new();
    let mut bounded = (&mut read).take(MAX_REQUEST as u64);
    let request = match timeout(REQUEST_TIMEOUT, bounded.read_until(b'\n', &mut line)).await {
        Ok(Ok(_)) if line.ends_with(b"\n") => serde_json::from_slice::<Request>(&line),
        Ok(Ok(_)) => return refuse(&mut out, "expected one JSON request and a newline").await,
        Ok(Err(error)) => return Err(error),
        Err(_) => return refuse(&mut out, "no request came in time").await,
    };
    match request {
        Ok(Request::Status) => send(&mut out, &Response::Status(agent.status())).await?,
        Ok(Request::Workloads) => {
            for workload in agent.node.mesh.load().status() {
                let local = agent.node.pod(&workload.uid).is_some();
                let workload = weir_types::api::WorkloadStatus { local, ..workload };
                send(&mut out, &Response::Workload(workload)).await?;
            }
        }
        Ok(Request::Explain(request)) => match explain::explain(&agent.node, &request) {
            Ok(explanation) => send(&mut out, &Response::Explanation(Box::new(explanation))).await?,
            Err(error) => return refuse(&mut out, &error.to_string()).await,
        },
        Ok(Request::Flows(request)) => {
            // A client that hangs up is noticed also while there is nothing to send.
            let mut sink = [0; 1];
            tokio::select! {
                result = flows(&mut out, agent, &request) => result?,
                _ = read.read(&mut sink), if request.follow => return Ok(()),
            }
        }
        Err(error) => return refuse(&mut out, &format!("the request is not understood: {error}")).await,
    }
    flush(&mut out).await
}

async fn flows(
    out: &mut BufWriter<impl AsyncWrite + Unpin>,
    agent: &Agent,
    request: &FlowsRequest,
) -> io::Result<()> {
    let log = &agent.node.flows;
    let mut newest = log.watch();
    let mut page = log.page(log.oldest(), request);
    if let Some(last) = request.last {
        let last = usize::try_from(last).unwrap_or(usize::MAX);
        page.flows.drain(..page.flows.len().saturating_sub(last));
    }
    let mut lost = log.lost();
    loop {
        for flow in page.flows.chunks(PAGE).flatten() {
            send(out, &Response::Flow((**flow).clone())).await?;
        }
        flush(out).await?;
        if !request.follow || newest.wait_for(|count| *count > page.next).await.is_err() {
            return Ok(());
        }
        page = log.page(page.next, request);
        let now = log.lost();
        let missed = page.lost + (now - lost);
        lost = now;
        if missed > 0 {
            send(out, &Response::Lost(missed)).await?;
        }
    }
}

async fn refuse(out: &mut BufWriter<impl AsyncWrite + Unpin>, problem: &str) -> io::Result<()> {
    send(out, &Response::Error(problem.to_owned())).await?;
    flush(out).await
}

async fn send(out: &mut BufWriter<impl AsyncWrite + Unpin>, response: &Response) -> io::Result<()> {
    let mut line = serde_json::to_vec(response)?;
    line.push(b'\n');
    timeout(WRITE_TIMEOUT, out.write_all(&line)).await?
}

async fn flush(out: &mut BufWriter<impl AsyncWrite + Unpin>) -> io::Result<()> {
    timeout(WRITE_TIMEOUT, out.flush()).await?
}
