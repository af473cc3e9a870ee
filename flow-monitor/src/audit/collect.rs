//! Reads what a report is about: of the API server, and of each agent.

use std::collections::HashSet;

use futures_util::{StreamExt as _, stream};
use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Namespace, Node, Pod},
};
use kube::{
    Api, ResourceExt as _,
    api::{ApiResource, DynamicObject, ListParams},
    core::{GroupVersionKind, TypeMeta},
};
use serde::de::DeserializeOwned;
use weir_proto::observer::GetFlowsRequest;
use weir_types::{
    Flow,
    api::{Request, Response, Status},
};

use super::{
    connections::{Connections, Records},
    report::{Agent as Answer, Collected, Missing},
};
use crate::{
    agent::{Agent, Unreachable},
    cluster::{ApiError, Cluster},
    merge::Item,
    mesh::{GROUP, Switch, VERSION, has_ended, is_enrolled, is_wanted},
};

/// Objects of a page.
const PAGE: u32 = 500;
/// Agents that are asked at once. All records of one are in memory at a time: 16 MiB of each as it is configured by default.
const AT_ONCE: usize = 4;

/// Reads everything. What cannot be read is missing from the report, and told in it.
///
/// # Errors
/// When the API server cannot be reached.
pub(super) async fn collect(
    cluster: &Cluster,
    since: Timestamp,
    namespaces: Vec<String>,
    now: Timestamp,
) -> anyhow::Result<Collected> {
    let version = cluster.answer(cluster.client.apiserver_version()).await;
    let version = version.map_err(|why| cluster.unreachable(why))?;
    let client = || cluster.client.clone();
    let mut collected = Collected {
        cluster: cluster.name.clone(),
        root: cluster.namespace.clone(),
        api_server: version.git_version,
        now,
        ..Collected::default()
    };
    let mut missing = Vec::new();
    let control = Api::<Deployment>::namespaced(client(), &cluster.namespace);
    match cluster.answer(control.get_opt("weir-control")).await {
        Ok(Some(deployment)) => collected.control_plane = Some(control_plane(&deployment)),
        Ok(None) => {}
        Err(why) => missing.push(unread("the control plane's Deployment", &why)),
    }
    let nodes = kept(
        &mut missing,
        "nodes",
        all(cluster, Api::<Node>::all(client())).await,
    );
    collected.kernels = nodes
        .iter()
        .map(|node| {
            let info = node.status.as_ref().and_then(|status| status.node_info.as_ref());
            let kernel = info.map_or("not said", |info| info.kernel_version.as_str());
            (node.name_any(), kernel.to_owned())
        })
        .collect();
    let listed = kept(
        &mut missing,
        "namespaces",
        all(cluster, Api::<Namespace>::all(client())).await,
    );
    collected.namespaces = listed.into_iter().map(|one| (one.name_any(), one)).collect();
    collected.pods = kept(
        &mut missing,
        "pods",
        all(cluster, Api::<Pod>::all(client())).await,
    );
    for kind in ["AuthorizationPolicy", "PeerAuthentication"] {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(GROUP, VERSION, kind));
        let api = Api::<DynamicObject>::all_with(client(), &resource);
        let policies = kept(&mut missing, kind, all(cluster, api).await);
        let types = TypeMeta {
            api_version: resource.api_version.clone(),
            kind: kind.to_owned(),
        };
        collected.policies.extend(policies.into_iter().map(|mut policy| {
            policy.types = Some(types.clone());
            policy
        }));
    }
    if !namespaces.is_empty() {
        let concerns = |policy: &DynamicObject| {
            let own = policy.namespace().unwrap_or_default();
            own == cluster.namespace || namespaces.contains(&own)
        };
        collected.policies.retain(concerns);
    }
    let mut connections = Connections {
        since,
        namespaces,
        observed: observed(&collected),
        ..Connections::default()
    };
    let agents = match cluster.agents(None).await {
        Ok(agents) => agents,
        Err(why) => {
            missing.push(Missing {
                what: "agents".to_owned(),
                why: why.to_string(),
            });
            crate::cluster::Agents {
                found: Vec::new(),
                missing: Vec::new(),
            }
        }
    };
    let mut known = HashSet::new();
    for why in agents.missing {
        let what = match &why {
            Unreachable::Node { node, .. } => {
                known.insert(node.clone());
                format!("node {node}")
            }
            _ => "an agent".to_owned(),
        };
        missing.push(told(what, &why.into()));
    }
    let mut answers = stream::iter(agents.found)
        .map(|agent| async move {
            let node = agent.node().unwrap_or_default().to_owned();
            (node, ask(&agent).await)
        })
        .buffered(AT_ONCE);
    while let Some((node, answer)) = answers.next().await {
        known.insert(node.clone());
        let (status, flows, lost) = match answer {
            Ok(answer) => answer,
            Err(error) => {
                missing.push(told(format!("node {node}"), &error));
                continue;
            }
        };
        let mut records = Records::default();
        for flow in &flows {
            connections.add(&mut records, flow);
        }
        collected.agents.push(Answer {
            node,
            status,
            records: records.count,
            oldest: records.oldest,
            lost,
        });
    }
    missing.extend(without_agent(&collected, &known));
    collected.connections = connections;
    collected.missing = missing;
    Ok(collected)
}

/// Nodes with pods of the mesh and without an agent.
fn without_agent(collected: &Collected, known: &HashSet<String>) -> Vec<Missing> {
    let pods = collected.pods.iter().filter(|pod| !has_ended(pod));
    let meant = pods.filter(|pod| {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        is_enrolled(pod) || is_wanted(pod, collected.namespaces.get(namespace))
    });
    let mut nodes: Vec<&str> = meant
        .filter_map(|pod| pod.spec.as_ref()?.node_name.as_deref())
        .filter(|node| !known.contains(*node))
        .collect();
    nodes.sort_unstable();
    nodes.dedup();
    let of = |node: &str| Missing {
        what: format!("node {node}"),
        why: "it has pods of the mesh, and no agent".to_owned(),
    };
    nodes.into_iter().map(of).collect()
}

fn observed(collected: &Collected) -> HashSet<(String, String)> {
    let pods = collected.pods.iter().filter_map(|pod| {
        let namespace = pod.metadata.namespace.clone()?;
        let own = collected
            .namespaces
            .get(&namespace)
            .and_then(Switch::of_namespace);
        let switch = Switch::of_pod(pod).or(own).or(collected.mesh_default());
        (switch == Some(Switch::Observe)).then(|| (namespace, pod.name_any()))
    });
    pods.collect()
}

/// The state of an agent, all its records, and events lost between these.
async fn ask(agent: &Agent) -> anyhow::Result<(Status, Vec<Flow>, u64)> {
    let (mut status, mut flows, mut lost) = (None, Vec::new(), 0);
    // Records first: the count in the state that comes later is no smaller.
    let mut responses = agent.flows(GetFlowsRequest::default()).await?;
    while let Some(response) = responses.message().await? {
        match Item::of(response, "") {
            Some(Item::Flow(seen)) => flows.push(seen.flow),
            Some(Item::Lost(_, count)) => lost += count,
            Some(Item::Status(_)) | None => {}
        }
    }
    agent
        .ask(&Request::Status, |response| {
            if let Response::Status(answer) = response {
                status = Some(answer);
            }
            Ok(())
        })
        .await?;
    let status = status.ok_or_else(|| anyhow::anyhow!("it closed the connection without an answer"))?;
    Ok((*status, flows, lost))
}

fn control_plane(deployment: &Deployment) -> (String, i32) {
    let pod = deployment
        .spec
        .as_ref()
        .and_then(|spec| spec.template.spec.as_ref());
    let image = pod.and_then(|pod| pod.containers.first()?.image.clone());
    let ready = deployment
        .status
        .as_ref()
        .and_then(|status| status.ready_replicas);
    (image.unwrap_or_else(|| "not said".to_owned()), ready.unwrap_or(0))
}

fn told(what: String, error: &anyhow::Error) -> Missing {
    let text = format!("{error:#}");
    let why = text
        .strip_prefix(&format!("{what}: "))
        .unwrap_or(&text)
        .to_owned();
    Missing { what, why }
}

fn unread(what: &str, why: &ApiError) -> Missing {
    Missing {
        what: what.to_owned(),
        why: why.to_string(),
    }
}

fn kept<T>(missing: &mut Vec<Missing>, what: &str, read: Result<Vec<T>, ApiError>) -> Vec<T> {
    match read {
        Ok(read) => read,
        // A cluster without such a kind has none.
        Err(why) if why.is_absent() => Vec::new(),
        Err(why) => {
            missing.push(unread(what, &why));
            Vec::new()
        }
    }
}

/// All objects of a kind, page by page.
async fn all<K>(cluster: &Cluster, api: Api<K>) -> Result<Vec<K>, ApiError>
where
    K: Clone + DeserializeOwned + std::fmt::Debug,
{
    let mut objects = Vec::new();
    let mut params = ListParams::default().limit(PAGE);
    loop {
        let page = cluster.answer(api.list(&params)).await?;
        objects.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(objects),
        }
    }
}
