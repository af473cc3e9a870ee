//! The client's side of the agent's local API.

use std::{
    io::{self, BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    path::PathBuf,
};

use anyhow::{Context as _, bail};
use weir_types::api::{Request, Response};

/// The agent of this node.
#[derive(Debug)]
pub(crate) struct Agent {
    socket: PathBuf,
}

/// The agent cannot be reached.
#[derive(Debug)]
pub(crate) struct NoAgent {
    socket: PathBuf,
    source: io::Error,
}

impl std::fmt::Display for NoAgent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let what = match self.source.kind() {
            io::ErrorKind::NotFound => {
                "no agent has made this socket; is weir-agent running? --socket names another"
            }
            io::ErrorKind::ConnectionRefused => {
                "the agent that made this socket is gone; start weir-agent again"
            }
            io::ErrorKind::PermissionDenied => "only root may ask the agent; try sudo",
            _ => "the agent cannot be asked",
        };
        write!(f, "{}: {} ({what})", self.socket.display(), self.source)
    }
}

impl std::error::Error for NoAgent {}

impl Agent {
    pub(crate) fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Asks, and hands each answer to `sink`.
    pub(crate) fn ask(
        &self,
        request: &Request,
        mut sink: impl FnMut(Response) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut stream = UnixStream::connect(&self.socket).map_err(|source| NoAgent {
            socket: self.socket.clone(),
            source,
        })?;
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        stream.write_all(&line).context("asking the agent")?;
        for line in BufReader::new(stream).lines() {
            let line = line.context("the agent's answer broke off")?;
            let response = serde_json::from_str(&line)
                .context("the agent's answer is not understood; are agent and weir of one version?")?;
            match response {
                Response::Error(problem) => bail!("the agent refused: {problem}"),
                response => sink(response)?,
            }
        }
        Ok(())
    }
}
