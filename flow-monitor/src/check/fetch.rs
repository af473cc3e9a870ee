//! Fetches what the checks look at. Reads only.

use std::collections::BTreeMap;

use futures_util::{StreamExt as _, stream};
use k8s_openapi::{
    api::{
        admissionregistration::v1::MutatingWebhookConfiguration,
        apps::v1::{DaemonSet, Deployment},
        authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec},
        core::v1::{ConfigMap, Namespace, Node, Pod},
        networking::v1::NetworkPolicy,
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, ResourceExt as _,
    api::{ApiResource, DynamicObject, ListParams, PostParams},
    core::GroupVersionKind,
};
use serde::de::DeserializeOwned;
use weir_types::api::{Request, Response};

use super::{
    agents::Statuses,
    api_server::{RIGHTS, Right},
    policies::ROOTS,
};
use crate::{
    agent::Agent,
    cluster::{ApiError, Cluster, one_a_node, problem},
    mesh::{GROUP, VERSION},
};

/// Objects of a page: more cost the API server memory at once, less cost round trips.
const PAGE: u32 = 500;
/// Agents that are asked at once.
const AT_ONCE: usize = 16;

/// What was fetched; what could not be is empty, and stands in `problems`.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    pub(crate) rights: Vec<(Right, bool)>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) namespaces: BTreeMap<String, Namespace>,
    pub(crate) pods: Vec<Pod>,
    pub(crate) daemon_sets: Vec<DaemonSet>,
    pub(crate) control_plane: Option<Deployment>,
    pub(crate) network_policies: Vec<NetworkPolicy>,
    pub(crate) webhooks: Vec<MutatingWebhookConfiguration>,
    pub(crate) cilium: Option<ConfigMap>,
    pub(crate) felix: Vec<DynamicObject>,
    pub(crate) definitions: Vec<CustomResourceDefinition>,
    pub(crate) policies: Vec<DynamicObject>,
    pub(crate) roots: Option<ConfigMap>,
    pub(crate) agent_pods: Vec<Pod>,
    pub(crate) statuses: Statuses,
    /// What could not be looked at, and why.
    pub(crate) problems: Vec<(&'static str, String)>,
}

impl Facts {
    /// Asks for everything at once.
    pub(crate) async fn fetch(cluster: &Cluster) -> Self {
        let mut problems = Vec::new();
        let client = || cluster.client.clone();
        let own = &cluster.namespace;
        let dynamic = |group: &'static str, version: &'static str, kind: &'static str| {
            let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
            let api = Api::<DynamicObject>::all_with(client(), &resource);
            async move { all(cluster, api, |_| ()).await }
        };
        let lists = tokio::join!(
            rights(cluster),
            all(cluster, Api::<Node>::all(client()), |_| ()),
            all(cluster, Api::<Namespace>::all(client()), |_| ()),
            all(cluster, Api::<Pod>::all(client()), shorten),
            all(cluster, Api::<DaemonSet>::all(client()), |_| ()),
            all(cluster, Api::<NetworkPolicy>::all(client()), |_| ()),
            all(
                cluster,
                Api::<MutatingWebhookConfiguration>::all(client()),
                |_| ()
            ),
            all(
                cluster,
                Api::<CustomResourceDefinition>::all(client()),
                forget_schema
            ),
            dynamic("crd.projectcalico.org", "v1", "FelixConfiguration"),
            dynamic(GROUP, VERSION, "AuthorizationPolicy"),
            dynamic(GROUP, VERSION, "PeerAuthentication"),
        );
        let singles = tokio::join!(
            one(
                cluster,
                Api::<Deployment>::namespaced(client(), own),
                "weir-control"
            ),
            one(
                cluster,
                Api::<ConfigMap>::namespaced(client(), "kube-system"),
                "cilium-config"
            ),
            one(cluster, Api::<ConfigMap>::namespaced(client(), own), ROOTS),
            cluster.agent_pods(),
        );
        let mut facts = Self {
            rights: kept(&mut problems, "your rights", lists.0),
            nodes: kept(&mut problems, "nodes", lists.1),
            pods: kept(&mut problems, "pods", lists.3),
            daemon_sets: kept(&mut problems, "DaemonSets", lists.4),
            network_policies: kept(&mut problems, "NetworkPolicies", lists.5),
            webhooks: kept(&mut problems, "webhooks of other meshes", lists.6),
            definitions: kept(&mut problems, "definitions", lists.7),
            felix: kept(&mut problems, "Calico's configuration", lists.8),
            policies: kept(&mut problems, "AuthorizationPolicies", lists.9),
            control_plane: kept(&mut problems, "the control plane's Deployment", singles.0),
            cilium: kept(&mut problems, "Cilium's configuration", singles.1),
            roots: kept(&mut problems, "the roots", singles.2),
            agent_pods: kept(&mut problems, "the agents' pods", singles.3),
            ..Self::default()
        };
        let namespaces = kept(&mut problems, "namespaces", lists.2).into_iter();
        facts.namespaces = namespaces.map(|one| (one.name_any(), one)).collect();
        facts
            .policies
            .extend(kept(&mut problems, "PeerAuthentications", lists.10));
        facts.problems = problems;
        facts.statuses = statuses(cluster, &facts.agent_pods).await;
        facts
    }

    /// The agents' DaemonSet.
    pub(crate) fn agents(&self, namespace: &str) -> Option<&DaemonSet> {
        self.daemon_sets
            .iter()
            .find(|set| set.name_any() == "weir-agent" && set.namespace().as_deref() == Some(namespace))
    }

    /// Whether Weir is, at least in part, installed.
    pub(crate) fn installed(&self, namespace: &str) -> bool {
        self.agents(namespace).is_some() || self.control_plane.is_some() || !self.agent_pods.is_empty()
    }
}

fn kept<T: Default>(
    problems: &mut Vec<(&'static str, String)>,
    what: &'static str,
    fetched: Result<T, ApiError>,
) -> T {
    match fetched {
        Ok(fetched) => fetched,
        // A cluster without such a kind has none.
        Err(why) if why.is_absent() => T::default(),
        Err(why) => {
            problems.push((what, why.to_string()));
            T::default()
        }
    }
}

/// All objects of a kind, page by page. `shorten` takes off what is not looked at: a cluster has many pods.
async fn all<K>(cluster: &Cluster, api: Api<K>, shorten: fn(&mut K)) -> Result<Vec<K>, ApiError>
where
    K: Clone + DeserializeOwned + std::fmt::Debug + kube::Resource,
{
    let mut objects = Vec::new();
    let mut params = ListParams::default().limit(PAGE);
    loop {
        let mut page = cluster.answer(api.list(&params)).await?;
        for object in &mut page.items {
            object.meta_mut().managed_fields = None;
            shorten(object);
        }
        objects.append(&mut page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(objects),
        }
    }
}

fn shorten(pod: &mut Pod) {
    let Some(spec) = &mut pod.spec else { return };
    spec.volumes = None;
    let init = spec.init_containers.iter_mut().flatten();
    for container in init.chain(&mut spec.containers) {
        let (name, image) = (std::mem::take(&mut container.name), container.image.take());
        *container = k8s_openapi::api::core::v1::Container {
            name,
            image,
            ..Default::default()
        };
    }
}

fn forget_schema(definition: &mut CustomResourceDefinition) {
    for version in &mut definition.spec.versions {
        version.schema = None;
    }
}

async fn one<K>(cluster: &Cluster, api: Api<K>, name: &str) -> Result<Option<K>, ApiError>
where
    K: Clone + DeserializeOwned + std::fmt::Debug,
{
    cluster.answer(api.get_opt(name)).await
}

async fn rights(cluster: &Cluster) -> Result<Vec<(Right, bool)>, ApiError> {
    let reviews = Api::<SelfSubjectAccessReview>::all(cluster.client.clone());
    let reviews = &reviews;
    let answers = stream::iter(RIGHTS).map(|right| async move {
        let (resource, subresource) = match right.resource.split_once('/') {
            Some((resource, subresource)) => (resource, Some(subresource)),
            None => (right.resource, None),
        };
        let attributes = ResourceAttributes {
            verb: Some(right.verb.to_owned()),
            group: Some(right.group.to_owned()),
            resource: Some(resource.to_owned()),
            subresource: subresource.map(str::to_owned),
            namespace: right.to_look.then(|| cluster.namespace.clone()),
            ..ResourceAttributes::default()
        };
        let review = SelfSubjectAccessReview {
            spec: SelfSubjectAccessReviewSpec {
                resource_attributes: Some(attributes),
                ..SelfSubjectAccessReviewSpec::default()
            },
            ..SelfSubjectAccessReview::default()
        };
        let params = PostParams::default();
        let answer = cluster.answer(reviews.create(&params, &review)).await?;
        Ok((*right, answer.status.is_some_and(|status| status.allowed)))
    });
    let answers: Vec<Result<_, ApiError>> = answers.buffered(AT_ONCE).collect().await;
    answers.into_iter().collect()
}

/// What the agents say that run. Those that do not are told by their pods.
async fn statuses(cluster: &Cluster, pods: &[Pod]) -> Statuses {
    let running = one_a_node(pods)
        .into_iter()
        .filter(|(_, pod)| problem(pod).is_none());
    let asking = stream::iter(running).map(|(node, pod)| async move {
        let agent = Agent::of_pod(cluster.agent_pod(node.clone(), pod));
        let mut status = Err("it closed the connection without an answer".to_owned());
        let asked = agent.ask(&Request::Status, |response| {
            if let Response::Status(answer) = response {
                status = Ok(answer);
            }
            Ok(())
        });
        if let Err(error) = asked.await {
            let text = format!("{error:#}");
            let own = format!("node {node}: ");
            status = Err(text.strip_prefix(&own).unwrap_or(&text).to_owned());
        }
        (node, status)
    });
    asking.buffer_unordered(AT_ONCE).collect().await
}
