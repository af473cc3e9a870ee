//! One agent: how it is reached, and the JSON lines that it speaks.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail};
use futures_util::FutureExt as _;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader},
    net::UnixStream,
    time::timeout,
};
use tonic::{Streaming, transport::Channel};
use weir_proto::observer::{GetFlowsRequest, GetFlowsResponse, ServerStatusRequest};
use weir_types::api::{Request, Response};

use crate::{cluster::AgentPod, target::Usage};

/// How long an agent may say nothing while it answers.
const SILENCE: Duration = Duration::from_secs(15);
/// Longest line of an answer, in bytes: the status of a node with thousands of connections has some megabytes.
const MAX_LINE: u64 = 64 << 20;

/// An agent that can be asked.
#[derive(Debug)]
pub(crate) struct Agent {
    way: Way,
}

#[derive(Debug)]
enum Way {
    Socket(PathBuf),
    Pod(AgentPod),
}

/// A stream to an agent.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Stream for S {}

/// An open stream, and where the reason stands if it ends early.
pub(crate) struct Opened {
    pub(crate) stream: Box<dyn Stream>,
    pub(crate) problem: Option<futures_util::future::BoxFuture<'static, Option<String>>>,
}

/// An answer that is being read.
pub(crate) struct Answer {
    node: Option<String>,
    reader: BufReader<Box<dyn Stream>>,
    problem: Option<futures_util::future::BoxFuture<'static, Option<String>>>,
    silence: Duration,
    line: Vec<u8>,
}

/// Nobody answers.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unreachable {
    /// This node's agent.
    #[error("{}: {source} ({})", .socket.display(), what_of(.source))]
    Socket { socket: PathBuf, source: io::Error },
    /// The agent of a node of the cluster.
    #[error("node {node}: {why}")]
    Node { node: String, why: String },
    /// The cluster, or all of its agents.
    #[error("{0}")]
    Cluster(String),
}

fn what_of(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => {
            "no agent has made this socket; is weir-agent running? --socket names another"
        }
        io::ErrorKind::ConnectionRefused => "the agent that made this socket is gone; start weir-agent again",
        io::ErrorKind::PermissionDenied => "only root may ask the agent; try sudo",
        _ => "the agent cannot be asked",
    }
}

/// What a server says of a request that it does not take.
pub(crate) fn refusal(status: &tonic::Status) -> anyhow::Error {
    match status.code() {
        tonic::Code::InvalidArgument => Usage(status.message().to_owned()).into(),
        tonic::Code::Unimplemented => {
            anyhow::anyhow!("the agent does not serve flows this way; are agent and weir of one version?")
        }
        // Where TLS is refused after the handshake, nothing else is heard of it.
        tonic::Code::Unknown | tonic::Code::Unavailable if status.message() == "transport error" => {
            anyhow::anyhow!(
                "the other side ended the connection; with TLS, it may not take the certificate that it was shown"
            )
        }
        code => anyhow::anyhow!("{code}: {}", status.message()),
    }
}

// === impl Agent ===

impl Agent {
    /// This node's.
    pub(crate) fn local(socket: &Path) -> Self {
        Self {
            way: Way::Socket(socket.to_owned()),
        }
    }

    /// That of a node of the cluster.
    pub(crate) fn of_pod(pod: AgentPod) -> Self {
        Self { way: Way::Pod(pod) }
    }

    /// Its node; none for this node's own.
    pub(crate) fn node(&self) -> Option<&str> {
        match &self.way {
            Way::Socket(_) => None,
            Way::Pod(pod) => Some(&pod.node),
        }
    }

    /// Connects.
    ///
    /// # Errors
    /// [`Unreachable`].
    async fn connect(&self) -> anyhow::Result<Opened> {
        match &self.way {
            Way::Socket(socket) => match UnixStream::connect(socket).await {
                Ok(stream) => Ok(Opened {
                    stream: Box::new(stream),
                    problem: None,
                }),
                Err(source) => {
                    let socket = socket.clone();
                    bail!(Unreachable::Socket { socket, source });
                }
            },
            Way::Pod(pod) => Ok(pod.open().await?),
        }
    }

    /// A channel to what serves its flows.
    ///
    /// # Errors
    /// [`Unreachable`].
    pub(crate) async fn channel(&self) -> anyhow::Result<Channel> {
        let mut opened = self.connect().await?;
        let asking = async {
            let channel = weir_hubble::client::channel(opened.stream).await?;
            // A port-forward is open before what it leads to is.
            let mut client = weir_hubble::client::observer(channel.clone());
            client.server_status(ServerStatusRequest {}).await?;
            anyhow::Ok(channel)
        };
        let asked = match timeout(SILENCE, asking).await {
            Ok(asked) => asked,
            Err(_) => Err(anyhow::anyhow!("the agent said nothing for {SILENCE:?}")),
        };
        // Why the port-forward broke says more than that it did.
        let mut why = || {
            opened
                .problem
                .take()
                .and_then(|problem| problem.now_or_never())
                .flatten()
        };
        asked.map_err(|error| match (error.downcast::<tonic::Status>(), why()) {
            (Ok(status), None) if status.code() == tonic::Code::Unimplemented => refusal(&status),
            (Ok(status), None) => self.unreachable(status.message().to_owned()).into(),
            (_, Some(why)) => self
                .unreachable(format!("the agent cannot be reached: {}", why.trim()))
                .into(),
            (Err(error), None) => self.unreachable(format!("{error:#}")).into(),
        })
    }

    /// Asks for flows.
    ///
    /// # Errors
    /// [`Unreachable`], or that the request is refused.
    pub(crate) async fn flows(
        &self,
        request: GetFlowsRequest,
    ) -> anyhow::Result<Streaming<GetFlowsResponse>> {
        let mut client = weir_hubble::client::observer(self.channel().await?);
        let answer = client.get_flows(weir_hubble::form::own(request)).await;
        Ok(answer.map_err(|status| refusal(&status))?.into_inner())
    }

    fn unreachable(&self, why: String) -> Unreachable {
        match self.node() {
            Some(node) => Unreachable::Node {
                node: node.to_owned(),
                why,
            },
            None => Unreachable::Cluster(why),
        }
    }

    /// Opens a stream and asks.
    ///
    /// # Errors
    /// [`Unreachable`], or that the stream broke.
    pub(crate) async fn open(&self, request: &Request) -> anyhow::Result<Answer> {
        let opened = self.connect().await?;
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        let mut stream = opened.stream;
        let written = async {
            stream.write_all(&line).await?;
            stream.flush().await
        };
        match timeout(SILENCE, written).await {
            // One that hangs up at once: not the end of whoever reads our own output, which a broken pipe is otherwise.
            Ok(written) => {
                written.map_err(|error| self.unreachable(format!("the agent takes no question: {error}")))?;
            }
            Err(_) => bail!("the agent took no question within {SILENCE:?}"),
        }
        Ok(Answer {
            node: self.node().map(str::to_owned),
            reader: BufReader::new(stream),
            problem: opened.problem,
            silence: SILENCE,
            line: Vec::new(),
        })
    }

    /// Asks, and hands each answer to `sink`.
    ///
    /// # Errors
    /// [`Unreachable`], a refusal, an answer that breaks off, or the sink's own.
    pub(crate) async fn ask(
        &self,
        request: &Request,
        mut sink: impl FnMut(Response) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut answer = self.open(request).await?;
        let mut any = false;
        while let Some(response) = answer.next(any).await? {
            any = true;
            sink(response)?;
        }
        // There may be no workloads; a status there is always.
        if !any && !matches!(request, Request::Workloads) {
            bail!(
                self.unreachable(
                    "the agent ended the connection without an answer; may you ask it?".to_owned()
                )
            );
        }
        Ok(())
    }
}

// === impl Answer ===

impl Answer {
    /// The next line; nothing when the agent has closed. `any` says whether there was one before.
    pub(crate) async fn next(&mut self, any: bool) -> anyhow::Result<Option<Response>> {
        self.line.clear();
        let mut limited = (&mut self.reader).take(MAX_LINE);
        let reading = limited.read_until(b'\n', &mut self.line);
        let silence = self.silence;
        let Ok(read) = timeout(silence, reading).await else {
            bail!(self.unreachable(format!("the agent said nothing for {silence:?}")));
        };
        // What the other side says of a connection that it could not make comes before the end; nothing comes where the
        // forwarding itself broke.
        if let Some(why) = self.problem.as_mut().and_then(|problem| problem.now_or_never()) {
            self.problem = None;
            let why = why.as_deref().map_or("the port-forward broke off", str::trim);
            if !any {
                bail!(self.unreachable(format!("the agent cannot be reached: {why}")));
            }
            bail!("the agent's answer broke off: {why}");
        }
        let read = read.context("the agent's answer broke off")?;
        if read == 0 {
            return Ok(None);
        }
        if self.line.last() != Some(&b'\n') {
            bail!("the agent's answer broke off, or has a line of more than {MAX_LINE} bytes");
        }
        let response = serde_json::from_slice(&self.line)
            .context("the agent's answer is not understood; are agent and weir of one version?")?;
        match response {
            Response::Error(problem) => bail!("the agent refused: {problem}"),
            response => Ok(Some(response)),
        }
    }

    fn unreachable(&self, why: String) -> Unreachable {
        match &self.node {
            Some(node) => Unreachable::Node {
                node: node.clone(),
                why,
            },
            None => Unreachable::Cluster(why),
        }
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer")
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_agent_that_says_nothing_is_not_waited_for() {
        let (stream, other) = tokio::io::duplex(1024);
        let mut answer = Answer {
            node: Some("a".to_owned()),
            reader: BufReader::new(Box::new(stream)),
            problem: None,
            silence: Duration::from_millis(20),
            line: Vec::new(),
        };
        let error = answer.next(false).await.unwrap_err();
        assert!(error.downcast_ref::<Unreachable>().is_some());
        assert_eq!(error.to_string(), "node a: the agent said nothing for 20ms");
        drop(other);
    }

    #[tokio::test]
    async fn half_a_line_is_none() {
        let (stream, mut other) = tokio::io::duplex(1024);
        let mut answer = Answer {
            node: None,
            reader: BufReader::new(Box::new(stream)),
            problem: None,
            silence: SILENCE,
            line: Vec::new(),
        };
        let line = br#"{"workload":{"uid":"u","namespace":"n","name":"w","identity":"spiffe://t/ns/n/sa/s","addresses":[],"node":"n1","tunnel":"NONE","services":[],"labels":{},"local":false}}"#;
        other.write_all(line).await.unwrap();
        other.write_all(b"\n{\"work").await.unwrap();
        drop(other);
        assert!(matches!(
            answer.next(false).await.unwrap(),
            Some(Response::Workload(_))
        ));
        assert!(answer.next(true).await.is_err());
    }
}
