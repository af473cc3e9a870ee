//! The process of all agents. They count what they receive, acknowledge it, and keep of it only names and versions.

use std::{
    collections::{HashMap, HashSet},
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use prost::Message as _;
use tokio::{
    runtime::Runtime,
    sync::{mpsc, watch},
    time::{sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request,
    metadata::{Ascii, MetadataValue},
    transport::Channel,
};
use weir_proto::{
    ResourceType, SharedResponse,
    envoy::service::discovery::v3::{DeltaDiscoveryRequest, Resource},
    weir::node::v1::{NodeReport, PodReport, node_reports_client::NodeReportsClient},
};

use super::{
    PLAN, SOCKET,
    client::Client,
    plan::{Answer, Ask, OnDemand, Plan, Received, now},
};

/// Waits between attempts to connect, doubled from the first to the last: weir-agent's.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(15));
/// A report is repeated: weir-agent's.
const REPEAT: Duration = Duration::from_secs(60);
const TYPES: usize = ResourceType::ALL.len();

/// Names of resources, and their versions.
type Versions = HashMap<String, String>;

/// What all agents have in common.
struct Shared {
    state: Mutex<State>,
    /// How often all were told to connect anew.
    turn: watch::Sender<u32>,
}

#[derive(Default)]
struct State {
    agents: usize,
    answer: Answer,
    /// What the first agent has of workloads, services and policies: all that subscribe to everything have the same.
    known: [Versions; TYPES],
    /// First requests that say so, encoded once for all.
    resume: Option<[Bytes; TYPES]>,
}

/// One agent.
struct Agent {
    client: Client,
    /// What it asks for on demand; nothing if it subscribes to everything.
    names: Option<Vec<String>>,
    shared: Arc<Shared>,
    /// Pods of its own node.
    pods: Versions,
    /// Of which types this connection's first response has come.
    heard: [bool; TYPES],
    /// What it was told of since it had everything: of what changes again, the first time counts.
    told: HashSet<String>,
}

/// Runs until the benchmark ends, or its side of the connection does.
pub(super) fn run(folder: &Path) -> Result<()> {
    let plan: Plan = serde_json::from_slice(&std::fs::read(folder.join(PLAN))?)?;
    let mut socket = UnixStream::connect(folder.join(SOCKET))?;
    let shared = Arc::new(Shared {
        state: Mutex::new(State {
            agents: plan.agents.len() + plan.on_demand.len(),
            ..State::default()
        }),
        turn: watch::Sender::new(0),
    });
    let runtime = Runtime::new()?;
    let everything = plan.agents.into_iter().map(|agent| (agent, None));
    let on_demand = plan.on_demand.into_iter();
    let on_demand = on_demand.map(|OnDemand { agent, names }| (agent, Some(names)));
    for (number, (agent, names)) in everything.chain(on_demand).enumerate() {
        let agent = Agent {
            client: Client {
                number,
                control: plan.control,
                roots: plan.roots.clone(),
                token: agent.token,
            },
            names,
            shared: shared.clone(),
            pods: Versions::new(),
            heard: Default::default(),
            told: HashSet::new(),
        };
        runtime.spawn(agent.run());
    }
    let questions = BufReader::new(socket.try_clone()?);
    for line in questions.lines() {
        let answer = shared.answer(serde_json::from_str(&line?)?);
        writeln!(socket, "{}", serde_json::to_string(&answer)?)?;
    }
    Ok(())
}

// === impl Shared ===

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, ask: Ask) -> Answer {
        let mut state = self.state();
        match ask {
            Ask::Progress => Answer {
                arrivals: HashMap::new(),
                ..state.answer.clone()
            },
            Ask::Arrivals => state.answer.clone(),
            Ask::Reconnect => {
                state.resume =
                    Some(ResourceType::ALL.map(|kind| first_request(kind, &state.known[kind as usize])));
                state.answer = Answer::default();
                drop(state);
                self.turn.send_modify(|turn| *turn += 1);
                Answer::default()
            }
        }
    }
}

// === impl Agent ===

impl Agent {
    async fn run(mut self) {
        let mut turn = self.shared.turn.subscribe();
        let mut failures = 0;
        loop {
            let ended = tokio::select! {
                ended = self.follow() => ended,
                _ = turn.changed() => {
                    failures = 0;
                    continue;
                }
            };
            if let Err(error) = ended {
                let mut state = self.shared.state();
                *state.answer.failures.entry(format!("{error:#}")).or_default() += 1;
            }
            failures += 1;
            let wait = BACK_OFF.0.saturating_mul(1 << failures.min(10)).min(BACK_OFF.1);
            // The half that weir-agent leaves to chance, spread evenly here.
            let share = (self.client.number % 50) as f64 / 100.0;
            tokio::select! {
                () = sleep(wait.mul_f64(0.5 + share)) => {}
                _ = turn.changed() => failures = 0,
            }
        }
    }

    /// One connection, until it ends.
    async fn follow(&mut self) -> Result<()> {
        self.heard = Default::default();
        let first = self.first_requests();
        let mut connection = self.client.open(first).await?;
        let (pods, reported) = watch::channel(None);
        let report = report(connection.channel.clone(), connection.bearer.clone(), reported);
        let mut report = std::pin::pin!(report);
        loop {
            let response = tokio::select! {
                response = connection.responses.message() => response?.context("the stream ended")?,
                ended = &mut report => return ended,
            };
            let (nonce, kind) = (response.nonce.clone(), response.type_url.clone());
            self.take(&response)?;
            // One report a node: those on demand are beside the node's own agent here.
            if kind == ResourceType::Pod.url() && self.names.is_none() {
                pods.send_replace(Some(self.pods.keys().cloned().collect()));
            }
            let acknowledgement = DeltaDiscoveryRequest {
                type_url: kind,
                response_nonce: nonce,
                ..DeltaDiscoveryRequest::default()
            };
            connection
                .requests
                .send(acknowledgement.encode_to_vec().into())
                .await?;
        }
    }

    fn first_requests(&self) -> Vec<Bytes> {
        let resume = self.shared.state().resume.clone();
        let requests = ResourceType::ALL.map(|kind| match (kind, &self.names, &resume) {
            (ResourceType::Pod, ..) => first_request(kind, &self.pods),
            (ResourceType::Address, Some(names), _) => {
                let request = DeltaDiscoveryRequest {
                    type_url: kind.url().to_owned(),
                    resource_names_subscribe: names.clone(),
                    ..DeltaDiscoveryRequest::default()
                };
                request.encode_to_vec().into()
            }
            (_, _, Some(requests)) => requests[kind as usize].clone(),
            _ => first_request(kind, &Versions::new()),
        });
        requests.into()
    }

    /// Counts a response; takes it apart where its names or versions are of use.
    fn take(&mut self, response: &SharedResponse) -> Result<()> {
        let at = now();
        let kind = ResourceType::from_url(&response.type_url).context("a type that was not asked for")?;
        let is_first = !std::mem::replace(&mut self.heard[kind as usize], true);
        let is_whole = is_first && self.heard.iter().all(|heard| *heard);
        let (is_on_demand, keeps_all) = (self.names.is_some(), self.client.number == 0);
        let of_pods = kind == ResourceType::Pod;
        let mut named = Vec::new();
        if !is_first || of_pods || keeps_all {
            for bytes in &response.resources {
                let resource = Resource::decode(bytes.clone())?;
                ensure!(!resource.version.is_empty(), "a resource without a version");
                named.push((resource.name, resource.version));
            }
        }
        if of_pods {
            self.pods.extend(named.iter().cloned());
            for name in &response.removed_resources {
                self.pods.remove(name);
            }
        }
        let mut state = self.shared.state();
        let State { answer, known, .. } = &mut *state;
        if !is_first && !is_on_demand && kind == ResourceType::Address {
            let removed = response.removed_resources.iter();
            let names = named.iter().map(|(name, _)| name).chain(removed);
            for name in names.filter(|name| self.told.insert((*name).clone())) {
                answer.arrivals.entry(name.clone()).or_default().push(at);
            }
        }
        if keeps_all && !of_pods {
            let known = &mut known[kind as usize];
            known.extend(named);
            for name in &response.removed_resources {
                known.remove(name);
            }
        }
        let received = if is_on_demand {
            &mut answer.on_demand
        } else {
            &mut answer.received
        };
        received.count(kind, response);
        received.whole += usize::from(is_whole);
        if is_whole && answer.received.whole + answer.on_demand.whole == state.agents {
            state.answer.whole = Some(at);
        }
        Ok(())
    }
}

// === impl Received ===

impl Received {
    fn count(&mut self, kind: ResourceType, response: &SharedResponse) {
        let (count, bytes) = (response.resources.len() as u64, response.encoded_len() as u64);
        self.responses += 1;
        self.bytes += bytes;
        if kind == ResourceType::Address {
            self.addresses += count;
            self.address_bytes += bytes;
        } else if kind == ResourceType::Authorization {
            self.policies += count;
        } else if kind == ResourceType::Pod {
            self.pods += count;
        }
    }
}

/// Naming nothing asks for everything.
fn first_request(kind: ResourceType, known: &Versions) -> Bytes {
    let request = DeltaDiscoveryRequest {
        type_url: kind.url().to_owned(),
        initial_resource_versions: known.clone().into_iter().collect(),
        ..DeltaDiscoveryRequest::default()
    };
    request.encode_to_vec().into()
}

/// Says that the pods of the node are enrolled, as soon as they are known, whenever they change, and once a minute.
async fn report(
    channel: Channel,
    bearer: MetadataValue<Ascii>,
    mut pods: watch::Receiver<Option<Vec<String>>>,
) -> Result<()> {
    let (reports, outgoing) = mpsc::channel(1);
    let mut request = Request::new(ReceiverStream::new(outgoing));
    request.metadata_mut().insert("authorization", bearer);
    let mut client = NodeReportsClient::new(channel);
    let send = async {
        loop {
            let uids = pods.borrow_and_update().clone();
            if let Some(uids) = uids {
                let enrolled = |uid| PodReport {
                    uid,
                    enrolled: true,
                    problem: String::new(),
                };
                let report = NodeReport {
                    ready: true,
                    version: String::new(),
                    pods: uids.into_iter().map(enrolled).collect(),
                };
                if reports.send(report).await.is_err() {
                    return;
                }
            }
            // Whether it changed or not: the time for the next has come.
            let _ = timeout(REPEAT, pods.changed()).await;
        }
    };
    tokio::select! {
        answer = client.report(request) => answer.map(drop).context("reporting"),
        () = send => anyhow::bail!("reports are not taken"),
    }
}
