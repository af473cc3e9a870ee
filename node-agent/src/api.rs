//! The local API over a Unix socket that only root can open, or a port on loopback: JSON lines, and gRPC for flows.

use std::{
    io,
    os::{
        fd::AsRawFd as _,
        unix::fs::{FileTypeExt as _, PermissionsExt as _},
    },
    path::Path,
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{
        AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader,
        BufWriter,
    },
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::Semaphore,
    time::timeout,
};
use weir_hubble::{
    observer::Viewer,
    serve::{Connections, Io},
};
use weir_types::api::{MAX_REQUEST, Request, Response};

use crate::{agent::Agent, explain};

/// Clients at once: people and their scripts.
const CLIENTS: usize = 64;
/// A client must have sent its request in this time.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// A client that takes no more for this long is gone.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// Supplementary groups of one process (NGROUPS_MAX of linux/limits.h).
const MAX_GROUPS: usize = 65_536;

/// Opens the socket: mode 0600 from its first moment, in place of one that a dead agent left.
///
/// # Errors
/// When another agent serves it, or the folder cannot be written.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    bind_for(path, None)
}

/// As [`bind`], with mode 0660 for the members of a group.
///
/// # Errors
/// As [`bind`].
pub fn bind_for(path: &Path, group: Option<u32>) -> io::Result<UnixListener> {
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
    if group.is_some() {
        std::os::unix::fs::chown(&hidden, None, group)?;
    }
    let mode = if group.is_some() { 0o660 } else { 0o600 };
    std::fs::set_permissions(&hidden, std::fs::Permissions::from_mode(mode))?;
    std::fs::rename(&hidden, path)?;
    Ok(listener)
}

/// Where clients come from: the socket, or a port. Whoever reaches the port may ask: it is for the loopback of a network
/// namespace that the agent has for itself.
pub trait Accept: Sync {
    /// What a client is connected by.
    type Io: Io;

    /// The next client.
    fn client(&self) -> impl Future<Output = io::Result<Self::Io>> + Send;
}

/// The socket, and which group's members may ask besides root and who runs the agent.
#[derive(Debug)]
pub struct Socket {
    /// Where clients connect.
    pub listener: UnixListener,
    /// The group.
    pub group: Option<u32>,
}

impl Accept for Socket {
    type Io = UnixStream;

    async fn client(&self) -> io::Result<UnixStream> {
        loop {
            let (stream, _) = self.listener.accept().await?;
            // The socket's mode says the same; a mode is easily changed.
            if may_ask(&stream, self.group).unwrap_or(false) {
                return Ok(stream);
            }
            tracing::warn!("a client of the API socket is refused: it is of another user and group");
        }
    }
}

impl Accept for TcpListener {
    type Io = TcpStream;

    async fn client(&self) -> io::Result<TcpStream> {
        Ok(self.accept().await?.0)
    }
}

fn may_ask(stream: &UnixStream, group: Option<u32>) -> io::Result<bool> {
    let peer = stream.peer_cred()?;
    if peer.uid() == 0 || peer.uid() == rustix::process::geteuid().as_raw() {
        return Ok(true);
    }
    let Some(group) = group else { return Ok(false) };
    Ok(peer.gid() == group || groups(stream)?.contains(&group))
}

/// The supplementary groups of who is connected (SO_PEERGROUPS, kernel 4.13).
fn groups(stream: &UnixStream) -> io::Result<Vec<u32>> {
    let mut groups = vec![0_u32; MAX_GROUPS];
    let mut bytes = libc::socklen_t::try_from(groups.len() * size_of::<u32>()).unwrap_or(0);
    // SAFETY: the buffer has as many bytes as `bytes` says.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERGROUPS,
            groups.as_mut_ptr().cast(),
            &raw mut bytes,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    groups.truncate(usize::try_from(bytes).unwrap_or(0) / size_of::<u32>());
    Ok(groups)
}

/// Serves clients, for ever: those that speak gRPC are handed on.
pub async fn serve(listener: impl Accept, agent: Arc<Agent>, hubble: Connections) {
    let clients = Arc::new(Semaphore::new(CLIENTS));
    loop {
        let Ok(permit) = clients.clone().acquire_owned().await else {
            return;
        };
        match listener.client().await {
            Ok(io) => {
                let (agent, hubble) = (agent.clone(), hubble.clone());
                tokio::spawn(async move {
                    // An error here: the client went away.
                    let _ = client(io, &agent, &hubble).await;
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

/// Tells a request in JSON from the first bytes of HTTP/2 (RFC 9113, section 3.4).
async fn client(io: impl Io, agent: &Agent, hubble: &Connections) -> io::Result<()> {
    let mut io = BufReader::new(io);
    let first = timeout(REQUEST_TIMEOUT, io.fill_buf()).await;
    if matches!(&first, Ok(Ok(bytes)) if bytes.first() == Some(&b'P')) {
        if !hubble.take(io, Viewer::default()).await {
            tracing::warn!("a client for flows is sent away: there are too many");
        }
        return Ok(());
    }
    let (read, write) = tokio::io::split(io);
    answer(read, write, agent).await
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
        Ok(Request::Status) => send(&mut out, &Response::Status(Box::new(agent.status()))).await?,
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
        Err(error) => return refuse(&mut out, &format!("the request is not understood: {error}")).await,
    }
    flush(&mut out).await
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
