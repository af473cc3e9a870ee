//! The kinds that are watched.

use std::sync::Arc;

use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery};
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, PartialObjectMeta},
    core::GroupVersionKind,
};
use prometheus::IntGaugeVec;
use tokio::{sync::mpsc, task::JoinSet};

use super::{Batch, Convert, Seen, run};
use crate::{
    cluster::{EndpointSlice, Event, Namespace, Node, Pod, PolicyApi, Service, parse::name_of},
    compile::PolicyKind,
    crd,
    status::{PresentNode, PresentPod},
};

/// Istio's policies, as every Istio since 1.22 serves them.
const ISTIO_GROUP: &str = "security.istio.io";
const ISTIO_VERSION: &str = "v1";

/// Starts watching; Istio's policies too if that is wanted. Gives the kinds that are watched: each tells when all its objects
/// are known.
pub fn start(
    client: &Client,
    istio_policies: bool,
    failing: &IntGaugeVec,
    batches: &mpsc::Sender<Batch>,
    tasks: &mut JoinSet<()>,
) -> Vec<&'static str> {
    let mut kinds = Vec::new();
    let mut add = |kind: &'static str| {
        kinds.push(kind);
        kind
    };
    let pods = Convert {
        kind: add("Pod"),
        name: |pod: &core::Pod| name_of(&pod.metadata),
        there: Box::new(|pod, name| Some(Event::Pod(name, Some(Box::new(Pod::parse(pod)?))))),
        see: |pod| {
            let present = Box::new(PresentPod::of(pod));
            Some(Seen::Pod(name_of(&pod.metadata)?, present))
        },
        may_be_absent: false,
        gone: Box::new(|name| Event::Pod(name, None)),
    };
    let gauge = failing.with_label_values(&[pods.kind]);
    tasks.spawn(run(Api::all(client.clone()), pods, gauge, batches.clone()));
    let services = Convert {
        kind: add("Service"),
        name: |service: &core::Service| name_of(&service.metadata),
        there: Box::new(|service, name| Some(Event::Service(name, Some(Service::parse(service)?)))),
        see: |_| None,
        may_be_absent: false,
        gone: Box::new(|name| Event::Service(name, None)),
    };
    let gauge = failing.with_label_values(&[services.kind]);
    tasks.spawn(run(Api::all(client.clone()), services, gauge, batches.clone()));
    let slices = Convert {
        kind: add("EndpointSlice"),
        name: |slice: &discovery::EndpointSlice| name_of(&slice.metadata),
        there: Box::new(|slice, name| Some(Event::EndpointSlice(name, Some(EndpointSlice::parse(slice)?)))),
        see: |_| None,
        may_be_absent: false,
        gone: Box::new(|name| Event::EndpointSlice(name, None)),
    };
    let gauge = failing.with_label_values(&[slices.kind]);
    tasks.spawn(run(Api::all(client.clone()), slices, gauge, batches.clone()));
    let namespaces = Convert {
        kind: add("Namespace"),
        name: |namespace: &core::Namespace| cluster_name(namespace.metadata.name.as_deref()),
        there: Box::new(|namespace, name| {
            Some(Event::Namespace(
                name,
                Some(Namespace::parse(&namespace.metadata)),
            ))
        }),
        see: |_| None,
        may_be_absent: false,
        gone: Box::new(|name| Event::Namespace(name, None)),
    };
    let gauge = failing.with_label_values(&[namespaces.kind]);
    tasks.spawn(run(Api::all(client.clone()), namespaces, gauge, batches.clone()));
    let nodes = Convert {
        kind: add("Node"),
        name: |node: &core::Node| cluster_name(node.metadata.name.as_deref()),
        there: Box::new(|node, name| Some(Event::Node(name, Some(Node::parse(node))))),
        see: |node| {
            Some(Seen::Node(
                cluster_name(node.metadata.name.as_deref())?,
                PresentNode::of(node),
            ))
        },
        may_be_absent: false,
        gone: Box::new(|name| Event::Node(name, None)),
    };
    let gauge = failing.with_label_values(&[nodes.kind]);
    tasks.spawn(run(Api::all(client.clone()), nodes, gauge, batches.clone()));
    // Whether each is there, and nothing else of it: only metadata is sent.
    let accounts = Convert {
        kind: add("ServiceAccount"),
        name: |account: &PartialObjectMeta<core::ServiceAccount>| name_of(&account.metadata),
        there: Box::new(|_, name| Some(Event::ServiceAccount(name, true))),
        see: |_| None,
        may_be_absent: false,
        gone: Box::new(|name| Event::ServiceAccount(name, false)),
    };
    let gauge = failing.with_label_values(&[accounts.kind]);
    tasks.spawn(run(Api::all(client.clone()), accounts, gauge, batches.clone()));
    let mut apis = vec![(
        PolicyApi::Weir,
        crd::GROUP,
        crd::VERSION,
        ["AuthorizationPolicy", "PeerAuthentication"],
    )];
    if istio_policies {
        let kinds = ["Istio's AuthorizationPolicy", "Istio's PeerAuthentication"];
        apis.push((PolicyApi::Istio, ISTIO_GROUP, ISTIO_VERSION, kinds));
    }
    for (api, group, version, [authorization, peer]) in apis {
        let [see_authorization, see_peer]: [fn(&DynamicObject) -> Option<Seen>; 2] = match api {
            PolicyApi::Weir => [
                |object| see(PolicyKind::Authorization, PolicyApi::Weir, object),
                |object| see(PolicyKind::PeerAuthentication, PolicyApi::Weir, object),
            ],
            PolicyApi::Istio => [
                |object| see(PolicyKind::Authorization, PolicyApi::Istio, object),
                |object| see(PolicyKind::PeerAuthentication, PolicyApi::Istio, object),
            ],
        };
        let policies = |kind: &str| {
            let kind = GroupVersionKind::gvk(group, version, kind);
            Api::<DynamicObject>::all_with(client.clone(), &ApiResource::from_gvk(&kind))
        };
        let convert = Convert {
            kind: add(authorization),
            name: |policy: &DynamicObject| name_of(&policy.metadata),
            there: Box::new(move |policy, _| crd::authorization_event(api, policy)),
            see: see_authorization,
            may_be_absent: true,
            gone: Box::new(move |name| Event::AuthorizationPolicy(api, name, None)),
        };
        let gauge = failing.with_label_values(&[convert.kind]);
        tasks.spawn(run(
            policies("AuthorizationPolicy"),
            convert,
            gauge,
            batches.clone(),
        ));
        let convert = Convert {
            kind: add(peer),
            name: |policy: &DynamicObject| name_of(&policy.metadata),
            there: Box::new(move |policy, _| crd::peer_authentication_event(api, policy)),
            see: see_peer,
            may_be_absent: true,
            gone: Box::new(move |name| Event::PeerAuthentication(api, name, None)),
        };
        let gauge = failing.with_label_values(&[convert.kind]);
        tasks.spawn(run(
            policies("PeerAuthentication"),
            convert,
            gauge,
            batches.clone(),
        ));
    }
    kinds
}

fn cluster_name(name: Option<&str>) -> Option<Arc<str>> {
    name.map(Into::into)
}

fn see(kind: PolicyKind, api: PolicyApi, object: &DynamicObject) -> Option<Seen> {
    Some(Seen::Policy(kind, api, Box::new(object.clone())))
}
