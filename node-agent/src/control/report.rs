//! What the agent says of its node: which pods are enrolled, and why others are not.

use std::{sync::Arc, time::Duration};

use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use weir_proto::weir::node::v1::{NodeReport, PodReport, node_reports_client::NodeReportsClient};

use super::{ControlError, ControlPlane};
use crate::agent::Agent;

/// How often it is looked whether there is something new to say.
const LOOK: Duration = Duration::from_millis(100);
/// The report is repeated after this long: who says nothing is taken for gone.
const REPEAT: Duration = Duration::from_secs(60);
/// Wait before the next stream.
const RETRY: Duration = Duration::from_secs(2);
/// A control plane that takes no reports is asked again this rarely.
const UNSUPPORTED: Duration = Duration::from_secs(600);

/// Reports for ever.
pub async fn report(agent: Arc<Agent>, control_plane: ControlPlane) {
    loop {
        let error = match stream(&agent, &control_plane).await {
            Ok(()) => ControlError::Ended,
            Err(error) => error,
        };
        let wait = match &error {
            ControlError::Status(status) if status.code() == tonic::Code::Unimplemented => UNSUPPORTED,
            _ => RETRY,
        };
        tracing::debug!(%error, "the stream of reports ended");
        tokio::time::sleep(wait).await;
    }
}

async fn stream(agent: &Arc<Agent>, control_plane: &ControlPlane) -> Result<(), ControlError> {
    let (reports, outgoing) = mpsc::channel(1);
    let request = control_plane.request(ReceiverStream::new(outgoing)).await?;
    let mut client = NodeReportsClient::new(control_plane.channel());
    tokio::select! {
        answer = client.report(request) => {
            answer?;
            Ok(())
        }
        () = send(agent, reports) => Ok(()),
    }
}

/// Sends a report now and whenever it changes, until nobody takes them any more.
async fn send(agent: &Arc<Agent>, reports: mpsc::Sender<NodeReport>) {
    let mut sent: Option<(NodeReport, Instant)> = None;
    let mut ticks = tokio::time::interval(LOOK);
    loop {
        ticks.tick().await;
        // An agent that starts does not know its pods yet, and one that stops leaves the kernel as it is.
        if agent.unready().is_some() {
            continue;
        }
        let report = of(agent);
        let is_new = sent
            .as_ref()
            .is_none_or(|(last, at)| *last != report || at.elapsed() >= REPEAT);
        if is_new {
            if reports.send(report.clone()).await.is_err() {
                return;
            }
            sent = Some((report, Instant::now()));
        }
    }
}

fn of(agent: &Agent) -> NodeReport {
    let problems = agent.enrolment.problems();
    let mesh = agent.node.mesh.load();
    let pods = mesh.local().values().filter_map(|local| {
        let uid = local.netns.pod_uid()?;
        let workload = &local.workload.uid;
        Some(PodReport {
            uid: uid.to_owned(),
            enrolled: agent
                .node
                .pod(workload)
                .is_some_and(|pod| pod.is(local) && !pod.observed),
            problem: problems.get(workload).cloned().unwrap_or_default(),
        })
    });
    NodeReport {
        ready: agent.unready().is_none(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pods: pods.collect(),
    }
}
