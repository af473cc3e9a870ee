//! What agents say of their nodes. The control plane writes it to the cluster for them.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{sync::watch, time::timeout};
use tonic::{Request, Response, Status, Streaming};
use weir_proto::weir::node::v1::{
    NodeReport, ReportSummary,
    node_reports_server::{NodeReports, NodeReportsServer},
};

use crate::ads::{Authenticate, Peer, Refusal};

/// Largest report: 250 pods with a sentence each.
const MAX_REPORT: usize = 256 * 1024;
/// Most pods of a report; Kubernetes has at most some hundreds on a node.
const MAX_PODS: usize = 2048;
/// An agent repeats its report each minute: one that says nothing for so long is gone, or stuck.
const SILENCE: Duration = Duration::from_secs(180);
/// A stream ends after this long, so that the agent shows who it is again.
const LIFE: Duration = Duration::from_secs(30 * 60);
/// How long it may take to find out who an agent is.
const AUTHENTICATE: Duration = Duration::from_secs(10);

/// What the agent of a node said last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeState {
    /// Whether it takes traffic.
    pub ready: bool,
    /// Pods that are enrolled, or why they are not, by UID.
    pub pods: HashMap<Arc<str>, Result<(), String>>,
}

/// The last report of each node whose agent has this replica for its control plane.
///
/// Of a node that is not in it nothing is known: another replica may know.
#[derive(Debug)]
pub struct Reports {
    nodes: RwLock<HashMap<Arc<str>, Reported>>,
    /// Nodes of which something else is known than when they were last asked for.
    touched: Mutex<HashSet<Arc<str>>>,
    changed: watch::Sender<u64>,
}

#[derive(Debug)]
struct Reported {
    state: Arc<NodeState>,
    /// The stream that it came by.
    stream: u64,
}

/// Takes reports.
pub struct ReportService {
    reports: Arc<Reports>,
    authenticate: Arc<dyn Authenticate>,
    streams: AtomicU64,
}

/// Forgets what a stream brought when it ends, however it does.
struct Ended<'a> {
    reports: &'a Reports,
    node: &'a Arc<str>,
    stream: u64,
}

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.reports.forget(self.node, self.stream);
    }
}

// === impl Reports ===

impl Default for Reports {
    fn default() -> Self {
        Self {
            nodes: RwLock::default(),
            touched: Mutex::default(),
            changed: watch::Sender::new(0),
        }
    }
}

impl Reports {
    /// What the agent of a node said last, if it said it here.
    #[must_use]
    pub fn node(&self, node: &str) -> Option<NodeState> {
        let nodes = self.nodes.read().unwrap_or_else(PoisonError::into_inner);
        nodes.get(node).map(|reported| NodeState::clone(&reported.state))
    }

    /// All that was said.
    #[must_use]
    pub fn all(&self) -> HashMap<Arc<str>, Arc<NodeState>> {
        let nodes = self.nodes.read().unwrap_or_else(PoisonError::into_inner);
        let states = nodes
            .iter()
            .map(|(node, reported)| (node.clone(), reported.state.clone()));
        states.collect()
    }

    /// Nodes of which something else is known than when this was last asked. Whoever asks looks at [`Reports::all`] after.
    #[must_use]
    pub fn take_touched(&self) -> HashSet<Arc<str>> {
        std::mem::take(&mut self.touched.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn touch(&self, node: &Arc<str>) {
        let mut touched = self.touched.lock().unwrap_or_else(PoisonError::into_inner);
        touched.insert(node.clone());
    }

    /// Says when something changed.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn set(&self, node: &Arc<str>, stream: u64, state: NodeState) {
        let state = Arc::new(state);
        let reported = Reported {
            state: state.clone(),
            stream,
        };
        let mut nodes = self.nodes.write().unwrap_or_else(PoisonError::into_inner);
        let before = nodes.insert(node.clone(), reported);
        drop(nodes);
        if before.is_none_or(|before| before.state != state) {
            self.touch(node);
            self.changed.send_modify(|count| *count += 1);
        }
    }

    /// Forgets what came by a stream that ended, unless another has brought something since: the agent may talk to another
    /// replica now, and what it said here becomes old.
    fn forget(&self, node: &Arc<str>, stream: u64) {
        let mut nodes = self.nodes.write().unwrap_or_else(PoisonError::into_inner);
        if nodes.get(node).is_some_and(|reported| reported.stream == stream) {
            nodes.remove(node);
            drop(nodes);
            self.touch(node);
        }
    }
}

// === impl ReportService ===

impl ReportService {
    /// The service, for a tonic server.
    #[must_use]
    pub fn new(reports: Arc<Reports>, authenticate: Arc<dyn Authenticate>) -> NodeReportsServer<Self> {
        let service = Self {
            reports,
            authenticate,
            streams: AtomicU64::new(0),
        };
        NodeReportsServer::new(service).max_decoding_message_size(MAX_REPORT)
    }

    async fn take(&self, node: &Arc<str>, mut stream: Streaming<NodeReport>) -> Result<(), Status> {
        let number = self.streams.fetch_add(1, Ordering::Relaxed);
        let _ended = Ended {
            reports: &self.reports,
            node,
            stream: number,
        };
        loop {
            let report = match timeout(SILENCE, stream.message()).await {
                Ok(Ok(Some(report))) => report,
                Ok(Ok(None)) => return Ok(()),
                Ok(Err(status)) => return Err(status),
                Err(_) => return Err(Status::deadline_exceeded("no report in time")),
            };
            if report.pods.len() > MAX_PODS {
                return Err(Status::resource_exhausted("too many pods"));
            }
            let pods = report.pods.into_iter().map(|pod| {
                let state = if pod.enrolled { Ok(()) } else { Err(pod.problem) };
                (Arc::from(pod.uid), state)
            });
            self.reports.set(
                node,
                number,
                NodeState {
                    ready: report.ready,
                    pods: pods.collect(),
                },
            );
        }
    }
}

#[tonic::async_trait]
impl NodeReports for ReportService {
    async fn report(
        &self,
        request: Request<Streaming<NodeReport>>,
    ) -> Result<Response<ReportSummary>, Status> {
        let peer = request.extensions().get::<Peer>().and_then(|peer| peer.address);
        let asked = self.authenticate.authenticate(request.metadata(), peer);
        let agent = match timeout(AUTHENTICATE, asked).await {
            Ok(Ok(agent)) => agent,
            Ok(Err(Refusal::Unauthenticated(reason))) => {
                tracing::warn!(?peer, reason, "a report is refused");
                return Err(Status::unauthenticated("not an agent of this mesh"));
            }
            Ok(Err(Refusal::Unavailable(reason))) => {
                tracing::warn!(?peer, reason, "who sends a report cannot be told now");
                return Err(Status::unavailable("try again"));
            }
            Err(_) => return Err(Status::unavailable("try again")),
        };
        match timeout(LIFE, self.take(&agent.node, request.into_inner())).await {
            Ok(result) => result.map(|()| Response::new(ReportSummary {})),
            Err(_) => Err(Status::unavailable("open another stream")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_by_a_stream_that_ended_is_forgotten_unless_another_spoke_since() {
        let (reports, node): (Reports, Arc<str>) = (Reports::default(), "n1".into());
        let ready = || NodeState {
            ready: true,
            ..NodeState::default()
        };
        reports.set(&node, 1, NodeState::default());
        reports.set(&node, 2, ready());
        assert_eq!(reports.take_touched(), HashSet::from([node.clone()]));
        reports.set(&node, 2, ready());
        reports.forget(&node, 1);
        assert!(
            reports.take_touched().is_empty(),
            "what is said again changes nothing"
        );
        assert_eq!(reports.node("n1"), Some(ready()), "the newer stream's");
        reports.forget(&node, 2);
        assert_eq!(reports.node("n1"), None);
        assert_eq!(reports.take_touched(), HashSet::from([node]));
    }
}
