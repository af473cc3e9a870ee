//! The agents of a cluster: which pods they are, and a port-forward to each.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use futures_util::FutureExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt as _, api::ListParams};
use tokio::{sync::Semaphore, time::timeout};

use super::{ApiError, Cluster, place::Place};
use crate::agent::{Agent, Opened, Unreachable};

/// The label of the agents' pods.
pub(crate) const LABEL: &str = "app.kubernetes.io/name=weir-agent";
/// Where an agent listens on its pod's loopback.
const PORT: u16 = 15021;
/// How long opening a port-forward may take: the API server asks the kubelet, and that the container runtime.
const OPEN: Duration = Duration::from_secs(10);

/// The pod of an agent.
#[derive(Clone)]
pub(crate) struct AgentPod {
    pub(crate) node: String,
    name: String,
    pods: Api<Pod>,
    opening: Arc<Semaphore>,
}

/// The agents that were asked for.
#[derive(Debug)]
pub(crate) struct Agents {
    /// By their nodes' names.
    pub(crate) found: Vec<Agent>,
    /// Those that cannot be asked.
    pub(crate) missing: Vec<Unreachable>,
}

// === impl Cluster ===

impl Cluster {
    /// The pods of the agents.
    ///
    /// # Errors
    /// What the API server says.
    pub(crate) async fn agent_pods(&self) -> Result<Vec<Pod>, ApiError> {
        let pods = Api::<Pod>::namespaced(self.client.clone(), &self.namespace);
        let params = ListParams::default().labels(LABEL);
        Ok(self.answer(pods.list(&params)).await?.items)
    }

    /// The agents of all nodes, or of one.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) async fn agents(&self, node: Option<&str>) -> Result<Agents, Unreachable> {
        let pods = self
            .agent_pods()
            .await
            .map_err(|why| Unreachable::Cluster(format!("cluster {}: {why}", self.name)))?;
        let mut nodes = one_a_node(&pods);
        if nodes.is_empty() {
            return Err(Unreachable::Cluster(format!(
                "cluster {}: no agent runs in the namespace {} (pods with the label {LABEL}); --weir-namespace names \
                 another, 'weir check' says what is wrong",
                self.name, self.namespace
            )));
        }
        if let Some(node) = node {
            nodes.retain(|name, _| name == node);
            if nodes.is_empty() {
                return Err(Unreachable::Node {
                    node: node.to_owned(),
                    why: format!("no agent of the namespace {} runs there", self.namespace),
                });
            }
        }
        let mut agents = Agents {
            found: Vec::new(),
            missing: Vec::new(),
        };
        for (node, pod) in nodes {
            match problem(pod) {
                None => agents.found.push(Agent::of_pod(self.agent_pod(node, pod))),
                Some(why) => agents.missing.push(Unreachable::Node { node, why }),
            }
        }
        Ok(agents)
    }

    /// How to reach the agent in a pod.
    pub(crate) fn agent_pod(&self, node: String, pod: &Pod) -> AgentPod {
        AgentPod {
            node,
            name: pod.name_any(),
            pods: Api::namespaced(self.client.clone(), &self.namespace),
            opening: self.opening.clone(),
        }
    }

    /// The node of the pod that a user names; nothing where it is none, or not the only one.
    ///
    /// # Errors
    /// What the API server says.
    pub(crate) async fn node_of(&self, named: &str) -> Result<Option<String>, ApiError> {
        let Some(place) = Place::parse(named) else {
            return Ok(None);
        };
        let pods = match place.namespace() {
            Some(namespace) => Api::<Pod>::namespaced(self.client.clone(), namespace),
            None => Api::<Pod>::all(self.client.clone()),
        };
        let mut params = ListParams::default();
        if let Some(fields) = place.fields() {
            params = params.fields(&fields);
        }
        let found = self.answer(pods.list(&params)).await?;
        Ok(place.node(&found.items))
    }
}

/// The pod that counts on each node: while pods are replaced a node may have two.
pub(crate) fn one_a_node(pods: &[Pod]) -> BTreeMap<String, &Pod> {
    let mut nodes: BTreeMap<String, &Pod> = BTreeMap::new();
    for pod in pods {
        let Some(node) = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()) else {
            continue;
        };
        match nodes.get(&node) {
            Some(other) if problem(other).is_none() || problem(pod).is_some() => {}
            _ => drop(nodes.insert(node, pod)),
        }
    }
    nodes
}

/// Why the agent in a pod cannot be asked.
pub(crate) fn problem(pod: &Pod) -> Option<String> {
    let name = pod.name_any();
    if pod.metadata.deletion_timestamp.is_some() {
        return Some(format!("the agent's pod {name} is ending"));
    }
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    if phase == Some("Running") && waiting(pod).is_none() {
        return None;
    }
    let why = waiting(pod).map_or_else(String::new, |why| format!(": {why}"));
    Some(format!(
        "the agent's pod {name} is {}{why}",
        phase.unwrap_or("not started")
    ))
}

/// What a pod waits for, in the words of its node or of the scheduler.
pub(crate) fn waiting(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let init = status.init_container_statuses.iter().flatten();
    let containers = init.chain(status.container_statuses.iter().flatten());
    let mut states = containers.filter_map(|container| container.state.as_ref()?.waiting.as_ref());
    if let Some(waiting) = states.next() {
        let words = [waiting.reason.as_deref(), waiting.message.as_deref()];
        return Some(words.into_iter().flatten().collect::<Vec<_>>().join(": "));
    }
    let unscheduled = status
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == "PodScheduled" && condition.status == "False")?;
    unscheduled.message.clone().or_else(|| unscheduled.reason.clone())
}

// === impl AgentPod ===

impl AgentPod {
    /// Opens a port-forward to the agent.
    ///
    /// # Errors
    /// [`Unreachable::Node`].
    pub(crate) async fn open(&self) -> Result<Opened, Unreachable> {
        let unreachable = |why: String| Unreachable::Node {
            node: self.node.clone(),
            why: format!("{why} (pod {})", self.name),
        };
        // Never closed.
        let _permit = self.opening.acquire().await;
        let mut forward = match timeout(OPEN, self.pods.portforward(&self.name, &[PORT])).await {
            Ok(Ok(forward)) => forward,
            Ok(Err(why)) => return Err(unreachable(super::text(&why))),
            Err(_) => return Err(unreachable(format!("no port-forward within {OPEN:?}"))),
        };
        let problem = forward.take_error(PORT).map(|problem| problem.boxed());
        match forward.take_stream(PORT) {
            Some(stream) => Ok(Opened {
                stream: Box::new(stream),
                problem,
            }),
            None => Err(unreachable("the port-forward has no stream".to_owned())),
        }
    }
}

impl fmt::Debug for AgentPod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentPod")
            .field("node", &self.node)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(name: &str, node: Value, status: Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": name}, "spec": {"containers": [], "nodeName": node}, "status": status,
        }))
        .unwrap()
    }

    #[test]
    fn while_pods_are_replaced_the_one_that_runs_counts() {
        let running = json!({"phase": "Running"});
        let pods = [
            pod("old", json!("a"), json!({"phase": "Failed"})),
            pod("new", json!("a"), running.clone()),
            pod("later", json!("a"), json!({"phase": "Pending"})),
            pod("other", json!("b"), running),
            pod("nowhere", Value::Null, json!({"phase": "Pending"})),
        ];
        let found = one_a_node(&pods);
        let names: Vec<(&str, String)> = found
            .iter()
            .map(|(node, pod)| (node.as_str(), pod.name_any()))
            .collect();
        assert_eq!(names, [("a", "new".to_owned()), ("b", "other".to_owned())]);
    }

    #[test]
    fn why_an_agent_does_not_run_is_said_in_its_nodes_words() {
        let status = json!({"phase": "Pending", "containerStatuses": [{
            "name": "agent", "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}},
        }]});
        assert_eq!(
            problem(&pod("x", json!("a"), status)).unwrap(),
            "the agent's pod x is Pending: ImagePullBackOff: Back-off pulling image"
        );
        let status = json!({"phase": "Pending", "conditions": [
            {"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available"},
        ]});
        let problem = problem(&pod("x", Value::Null, status)).unwrap();
        assert!(problem.ends_with("0/3 nodes are available"), "{problem}");
    }
}
