//! A node's agent: its process, its configuration file, its API.

use std::{
    fs,
    io::{BufRead as _, BufReader, Lines, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use rustix::process::Signal;
use tokio::runtime::Runtime;
use tonic::Streaming;
use weir_hubble::from_hubble;
use weir_proto::observer::{GetFlowsRequest, GetFlowsResponse, get_flows_response::ResponseTypes};
use weir_types::{
    Flow,
    api::{Request, Response, Status, WorkloadStatus},
};

use crate::{AgentConfig, PATIENCE, Place, Process, replace_file};

/// How long an agent may take to drain after SIGTERM before that is an error.
const DRAIN: Duration = Duration::from_secs(30);
/// How long the API may take for an answer that does not follow.
const API_PATIENCE: Duration = Duration::from_secs(10);

/// A node's agent. Killed when dropped.
#[derive(Debug)]
pub struct Agent {
    place: Place,
    config: AgentConfig,
    file: PathBuf,
    log: PathBuf,
    process: std::sync::Mutex<Process>,
}

/// Flows as they are recorded.
#[derive(Debug)]
pub struct FlowStream {
    responses: Streaming<GetFlowsResponse>,
    runtime: Runtime,
}

// === impl Agent ===

impl Agent {
    pub(crate) fn launch(place: Place, folder: &Path, config: AgentConfig) -> Result<Self> {
        let file = folder.join(format!("{}.yaml", config.node));
        let log = folder.join("log").join(format!("agent-{}", config.node));
        write_config(&file, &config)?;
        let process = start(&place, &file, &log, &config, false)?.into();
        Ok(Self {
            place,
            config,
            file,
            log,
            process,
        })
    }

    /// Its node's name.
    #[must_use]
    pub fn node(&self) -> &str {
        &self.config.node
    }

    /// The configuration that was written last.
    #[must_use]
    pub fn config(&self) -> &AgentConfig {
        &self.config
    }

    /// Its configuration file.
    #[must_use]
    pub fn config_file(&self) -> &Path {
        &self.file
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process().pid()
    }

    /// What it logged since the lab was made, over all restarts.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read(&self.log)
            .map(|log| String::from_utf8_lossy(&log).into_owned())
            .unwrap_or_default()
    }

    /// What it has printed.
    #[must_use]
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.process().stdout()).into_owned()
    }

    /// Waits until it says that it is ready.
    ///
    /// # Errors
    /// When it ends before, or takes too long; with its log.
    pub fn wait_ready(&self) -> Result<()> {
        let ready = crate::poll("the agent to be ready", PATIENCE, || {
            if let Some(status) = self.process().ended()? {
                bail!("it ended with {status}");
            }
            Ok(self.status().is_ok_and(|status| status.ready).then_some(()))
        });
        ready.with_context(|| format!("agent of {}; its log:\n{}", self.node(), self.log()))
    }

    /// Changes its configuration and waits until the agent has taken it or refused it. Gives its status then; a
    /// refusal is in `config.rejected`.
    ///
    /// # Errors
    /// When it does neither in time; with its log.
    pub fn reload(&mut self, change: impl FnOnce(&mut AgentConfig)) -> Result<Status> {
        let mut config = self.config.clone();
        change(&mut config);
        let text = serde_saphyr::to_string(&config).context("the configuration as YAML")?;
        let status = self.reload_text(&text)?;
        if status.config.rejected.is_none() {
            self.config = config;
        }
        Ok(status)
    }

    /// As [`Agent::reload`], with any text as the file.
    ///
    /// # Errors
    /// As [`Agent::reload`].
    pub fn reload_text(&self, text: &str) -> Result<Status> {
        let before = self.status()?.config;
        replace_file(&self.file, text.as_bytes())?;
        let taken = crate::poll("the agent to take its new configuration", PATIENCE, || {
            let status = self.status()?;
            let refused = status.config.rejected.is_some() && status.config.rejected != before.rejected;
            Ok((refused || status.config.generation != before.generation).then_some(status))
        });
        taken.with_context(|| format!("agent of {}; its log:\n{}", self.node(), self.log()))
    }

    /// Its state.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn status(&self) -> Result<Status> {
        let mut responses = self.ask(&Request::Status, Some(API_PATIENCE))?;
        match responses.next().context("the agent answered nothing")?? {
            Response::Status(status) => Ok(*status),
            other => bail!("not an answer to `status`: {other:?}"),
        }
    }

    /// The workloads that it knows.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn workloads(&self) -> Result<Vec<WorkloadStatus>> {
        let responses = self.ask(&Request::Workloads, Some(API_PATIENCE))?;
        responses
            .map(|response| match response? {
                Response::Workload(workload) => Ok(workload),
                other => bail!("not an answer to `workloads`: {other:?}"),
            })
            .collect()
    }

    /// The flows that it has recorded.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn flows(&self) -> Result<Vec<Flow>> {
        self.ask_flows(GetFlowsRequest::default())?.collect()
    }

    /// The newest of them, this many at most.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn last_flows(&self, count: u64) -> Result<Vec<Flow>> {
        let request = GetFlowsRequest {
            number: count,
            ..GetFlowsRequest::default()
        };
        self.ask_flows(request)?.collect()
    }

    /// The flows that it has recorded, and then each new one.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn follow(&self) -> Result<FlowStream> {
        self.ask_flows(GetFlowsRequest {
            follow: true,
            // From the first on.
            since: Some(Default::default()),
            ..GetFlowsRequest::default()
        })
    }

    fn ask_flows(&self, request: GetFlowsRequest) -> Result<FlowStream> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let socket = &self.config.api.socket;
        let asking = async {
            let stream = tokio::net::UnixStream::connect(socket).await?;
            let mut client = weir_hubble::client::over(stream).await?;
            anyhow::Ok(
                client
                    .get_flows(weir_hubble::form::own(request))
                    .await?
                    .into_inner(),
            )
        };
        let asked = runtime.block_on(async { tokio::time::timeout(API_PATIENCE, asking).await });
        let responses = asked?.with_context(|| socket.display().to_string())?;
        Ok(FlowStream { responses, runtime })
    }

    /// Waits for a recorded flow, old or new, that is wanted.
    ///
    /// # Errors
    /// When none is recorded in time; with those that were.
    pub fn wait_flow(&self, what: &str, wanted: impl Fn(&Flow) -> bool) -> Result<Flow> {
        let mut all = Vec::new();
        let found = crate::poll(what, PATIENCE, || {
            all = self.flows()?;
            Ok(all.iter().find(|flow| wanted(flow)).cloned())
        });
        found.with_context(|| {
            let lines: Vec<_> = all
                .iter()
                .filter_map(|flow| serde_json::to_string(flow).ok())
                .collect();
            format!("flows of {}:\n{}", self.node(), lines.join("\n"))
        })
    }

    /// Ends it as its supervisor does, with SIGTERM, and waits.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn stop(&self) -> Result<ExitStatus> {
        let mut process = self.process();
        process.signal(Signal::TERM)?;
        process.wait_status(DRAIN)
    }

    /// Kills it as `kill -9` does.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn kill(&self) -> Result<()> {
        self.process().kill()
    }

    /// Starts it again with the same configuration, and waits until it is ready.
    ///
    /// # Errors
    /// When it does not become ready; with its log.
    pub fn restart(&self) -> Result<()> {
        *self.process() = start(&self.place, &self.file, &self.log, &self.config, false)?;
        self.wait_ready()
    }

    /// As [`Self::restart`], as one that lets another take over from it.
    ///
    /// # Errors
    /// When it does not become ready; with its log.
    pub fn restart_standby(&self) -> Result<()> {
        *self.process() = start(&self.place, &self.file, &self.log, &self.config, true)?;
        self.wait_ready()
    }

    /// Starts another agent that stands by, with its metrics at another port, waits until it says that it is ready to take
    /// over, stops this one, and waits until the other is ready. Gives how the one before ended.
    ///
    /// # Errors
    /// When one of these does not happen; with the log.
    pub fn replace(&mut self) -> Result<ExitStatus> {
        let mut config = self.config.clone();
        let port = config.metrics.address.port();
        config.metrics.address.set_port(if port.is_multiple_of(2) {
            port + 1
        } else {
            port - 1
        });
        let file = self
            .file
            .with_extension(format!("{}.yaml", config.metrics.address.port()));
        write_config(&file, &config)?;
        let next = start(&self.place, &file, &self.log, &self.config, true)?;
        self.config.metrics = config.metrics;
        crate::poll("the next agent to stand by", PATIENCE, || {
            Ok(self
                .metrics()
                .is_ok_and(|text| text.contains("weir_standby 1") && self.http("/readyz").is_ok())
                .then_some(()))
        })
        .with_context(|| self.log())?;
        let ended = self.stop()?;
        self.file = file;
        *self.process() = next;
        self.wait_ready()?;
        Ok(ended)
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// When it does not.
    pub fn wait_end(&self) -> Result<ExitStatus> {
        self.process().wait_status(PATIENCE)
    }

    /// Its metrics page, in the Prometheus text format.
    ///
    /// # Errors
    /// When it does not answer with success.
    pub fn metrics(&self) -> Result<String> {
        self.http("/metrics")
    }

    /// The body of a page of its metrics server.
    ///
    /// # Errors
    /// When it does not answer with success.
    pub fn http(&self, path: &str) -> Result<String> {
        use std::io::Read as _;
        let address = self.config.metrics.address;
        let answer = crate::netns::inside(&self.place.netns_path(), || {
            let mut stream = std::net::TcpStream::connect_timeout(&address, API_PATIENCE)?;
            stream.set_read_timeout(Some(API_PATIENCE))?;
            write!(
                stream,
                "GET {path} HTTP/1.1\r\nHost: weir\r\nConnection: close\r\n\r\n"
            )?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        })?;
        let (head, body) = answer.split_once("\r\n\r\n").context("not an HTTP answer")?;
        let status = head.split(' ').nth(1).unwrap_or_default();
        anyhow::ensure!(status == "200", "{path}: status {status}: {body}");
        Ok(body.to_owned())
    }

    fn process(&self) -> std::sync::MutexGuard<'_, Process> {
        self.process
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn ask(
        &self,
        request: &Request,
        patience: Option<Duration>,
    ) -> Result<impl Iterator<Item = Result<Response>> + use<>> {
        Ok(self
            .connect(request, patience)?
            .map(|line| Ok(serde_json::from_str(&line?)?)))
    }

    fn connect(&self, request: &Request, patience: Option<Duration>) -> Result<Lines<BufReader<UnixStream>>> {
        let socket = &self.config.api.socket;
        let mut stream = UnixStream::connect(socket).with_context(|| socket.display().to_string())?;
        stream.set_read_timeout(patience)?;
        stream.write_all((serde_json::to_string(request)? + "\n").as_bytes())?;
        Ok(BufReader::new(stream).lines())
    }
}

// === impl FlowStream ===

impl Iterator for FlowStream {
    type Item = Result<Flow>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let response = self.runtime.block_on(self.responses.message());
            return match response.transpose()? {
                Ok(response) => match response.response_types {
                    Some(ResponseTypes::Flow(flow)) => {
                        Some(from_hubble(&flow).with_context(|| format!("not a flow of Weir's: {flow:?}")))
                    }
                    Some(ResponseTypes::LostEvents(lost)) => {
                        eprintln!("{} flow events were lost", lost.num_events_lost);
                        continue;
                    }
                    other => Some(Err(anyhow::anyhow!("not a flow: {other:?}"))),
                },
                Err(status) => Some(Err(status.into())),
            };
        }
    }
}

fn start(place: &Place, file: &Path, log: &Path, config: &AgentConfig, standby: bool) -> Result<Process> {
    let mut command = Command::new(crate::program("weir-agent")?);
    command.arg("--config").arg(file);
    if standby {
        command.arg("--standby");
    }
    if let Some(own) = config.pod_ip {
        command.env("POD_IP", own.to_string());
    }
    place.spawn_as(command, Some(log))
}

fn write_config(file: &Path, config: &AgentConfig) -> Result<()> {
    let text = serde_saphyr::to_string(config).context("the configuration as YAML")?;
    replace_file(file, text.as_bytes())
}
