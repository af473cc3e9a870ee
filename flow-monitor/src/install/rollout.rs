//! Waiting until what was applied is at work.

use std::{io::IsTerminal as _, time::Duration};

use anyhow::bail;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::{apply, manifest::Object, workload};
use crate::cluster::Cluster;

/// How often it is looked.
const POLL: Duration = Duration::from_millis(500);

/// Waits until weir-control runs what it should.
///
/// # Errors
/// That it does not in time.
pub(crate) async fn control(cluster: &Cluster, namespace: &str, patience: Duration) -> anyhow::Result<()> {
    let part = workload(namespace, "Deployment", "weir-control");
    ready(cluster, &part, Instant::now() + patience, patience).await
}

/// Waits until the agents run what they should on every node.
///
/// # Errors
/// That they do not in time: how many.
pub(crate) async fn agents(cluster: &Cluster, namespace: &str, patience: Duration) -> anyhow::Result<()> {
    let part = workload(namespace, "DaemonSet", "weir-agent");
    ready(cluster, &part, Instant::now() + patience, patience).await
}

/// Waits until a workload is at work.
///
/// # Errors
/// That it is not in time.
pub(crate) async fn ready(
    cluster: &Cluster,
    part: &Object,
    deadline: Instant,
    patience: Duration,
) -> anyhow::Result<()> {
    loop {
        let now = apply::get(cluster, part).await?;
        let (done, wanted) = now.as_ref().map_or((0, 1), progress);
        let text = format!("{}: {done} of {wanted} ready", apply::title(part));
        if std::io::stderr().is_terminal() {
            eprint!("\r\x1b[K  {text}");
        }
        let settled = now.is_some_and(|object| is_settled(&object)) && done >= wanted;
        if settled || Instant::now() > deadline {
            if std::io::stderr().is_terminal() {
                eprint!("\r\x1b[K");
            }
            if settled {
                return Ok(());
            }
            bail!("after {patience:?} {text}; 'weir check' says what is missing");
        }
        sleep(POLL).await;
    }
}

fn number(object: &Value, field: &str) -> u64 {
    object["status"][field].as_u64().unwrap_or(0)
}

/// Pods of the newest template that are ready, and how many there are to be.
fn progress(object: &Object) -> (u64, u64) {
    if object["kind"] == "DaemonSet" {
        let ready = number(object, "numberReady").min(number(object, "updatedNumberScheduled"));
        (ready, number(object, "desiredNumberScheduled"))
    } else {
        let ready = number(object, "readyReplicas").min(number(object, "updatedReplicas"));
        (ready, object["spec"]["replicas"].as_u64().unwrap_or(1))
    }
}

/// Whether its controller has seen the newest template.
fn is_settled(object: &Object) -> bool {
    object["status"]["observedGeneration"].as_u64() >= object["metadata"]["generation"].as_u64()
        && object["metadata"]["generation"].is_u64()
}
