//! One replica of the control plane: what its watches bring goes to a compiler, and its writer writes.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Node, Pod},
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, CustomResourceExt as _, ResourceExt as _,
    api::{DynamicObject, Patch, PatchParams, PostParams},
    runtime::watcher,
};
use serde_json::{Value, json};
use tokio::{sync::Notify, task::JoinSet};
use weir_api_server::{TestCluster, eventually, object};
use weir_control::{
    cluster::{self, Event, PolicyApi, parse::name_of},
    compile::{Compiler, PolicyKind, Settings},
    crd::{AuthorizationPolicy, authorization_event, custom_resource_definitions},
    reports::NodeState,
    status::{Pace, Present, PresentNode, PresentPod, Writer, desired, plan},
};

/// As fast as tests are patient.
pub(crate) const PACE: Pace = Pace {
    coalesce: Duration::from_millis(30),
    per_second: 100,
    rest: Duration::from_millis(500),
    retry: Duration::from_millis(50),
    retry_most: Duration::from_millis(400),
    timeout: Duration::from_secs(5),
};

struct State {
    compiler: Compiler,
    present: Present,
    reports: HashMap<Arc<str>, NodeState>,
}

/// Ends when it is dropped.
pub(crate) struct Replica {
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
    _tasks: JoinSet<()>,
}

/// Puts the definitions where they are not yet: tests may share a cluster.
/// What the names of nodes begin with whose taints are looked after.
pub(crate) const TAINTED: &str = "tainted";

pub(crate) async fn install(cluster: &TestCluster) {
    let api = Api::<CustomResourceDefinition>::all(cluster.client());
    for definition in custom_resource_definitions() {
        let name = definition.metadata.name.clone().unwrap();
        let params = PatchParams::apply("test").force();
        api.patch(&name, &params, &Patch::Apply(&definition))
            .await
            .unwrap();
        eventually("an established definition", || async {
            let conditions = api
                .get(&name)
                .await
                .unwrap()
                .status
                .and_then(|status| status.conditions);
            let mut conditions = conditions.into_iter().flatten();
            conditions
                .any(|one| one.type_ == "Established" && one.status == "True")
                .then_some(())
        })
        .await;
    }
}

/// Makes a policy.
pub(crate) async fn policy(
    cluster: &TestCluster,
    namespace: &str,
    name: &str,
    spec: Value,
) -> AuthorizationPolicy {
    let policy: AuthorizationPolicy = object(json!({
        "apiVersion": "weir.dev/v1alpha1", "kind": "AuthorizationPolicy", "metadata": {"name": name}, "spec": spec,
    }));
    let api = Api::namespaced(cluster.client(), namespace);
    api.create(&PostParams::default(), &policy).await.unwrap()
}

impl Replica {
    /// A replica that sees one namespace and all nodes, and writes with `writing`.
    pub(crate) fn start(cluster: &TestCluster, writing: Client, namespace: &str, name: &str) -> Self {
        let state = Arc::new(Mutex::new(State {
            compiler: Compiler::new(Settings::default()),
            present: Present::default(),
            reports: HashMap::new(),
        }));
        let changed = Arc::new(Notify::new());
        let mut tasks = JoinSet::new();
        let client = cluster.client();
        let resource = AuthorizationPolicy::api_resource();
        let policies: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource);
        watch(
            &mut tasks,
            policies,
            &state,
            &changed,
            |state, object: &DynamicObject, there| {
                let (kind, api) = (PolicyKind::Authorization, PolicyApi::Weir);
                let name = name_of(&object.metadata).unwrap();
                let event = if there {
                    state.present.set_policy(kind, api, object);
                    authorization_event(api, object).unwrap()
                } else {
                    state.present.remove_policy(kind, api, &name);
                    Event::AuthorizationPolicy(api, name, None)
                };
                state.compiler.apply([event]);
            },
        );
        let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
        watch(&mut tasks, pods, &state, &changed, |state, pod: &Pod, there| {
            let name = name_of(&pod.metadata).unwrap();
            let parsed = cluster::Pod::parse(pod).filter(|_| there).map(Box::new);
            if there {
                state.present.set_pod(name.clone(), PresentPod::of(pod));
            } else {
                state.present.remove_pod(&name);
            }
            state.compiler.apply([Event::Pod(name, parsed)]);
        });
        let nodes: Api<Node> = Api::all(client);
        watch(
            &mut tasks,
            nodes,
            &state,
            &changed,
            |state, node: &Node, there| {
                let parsed = there.then(|| cluster::Node::parse(node));
                // Of a cluster that is not this test's own, other nodes are left alone.
                if there && node.name_any().starts_with(TAINTED) {
                    state
                        .present
                        .set_node(node.name_any().into(), PresentNode::of(node));
                }
                state
                    .compiler
                    .apply([Event::Node(node.name_any().into(), parsed)]);
            },
        );
        let writer = Writer::new(writing, name, PACE);
        let (seen, wake) = (state.clone(), changed.clone());
        tasks.spawn(writer.run(wake, move || {
            let state = seen.lock().unwrap();
            let desired = desired(
                &state.compiler,
                &state.reports,
                &state.present,
                "weir-system",
                true,
            );
            plan(&desired, &state.present, Timestamp::now())
        }));
        Self {
            state,
            changed,
            _tasks: tasks,
        }
    }

    /// What the agent of a node says of its pods; nothing when it is gone.
    pub(crate) fn report(&self, node: &str, pods: Option<&[(&str, Result<(), &str>)]>) {
        let mut state = self.state.lock().unwrap();
        let pods = pods.map(|pods| {
            let pods = pods
                .iter()
                .map(|(uid, result)| (Arc::from(*uid), result.map_err(str::to_owned)));
            let (ready, pods) = (true, pods.collect());
            NodeState { ready, pods }
        });
        match pods {
            Some(pods) => state.reports.insert(node.into(), pods),
            None => state.reports.remove(node),
        };
        drop(state);
        self.changed.notify_one();
    }
}

fn watch<K>(
    tasks: &mut JoinSet<()>,
    api: Api<K>,
    state: &Arc<Mutex<State>>,
    changed: &Arc<Notify>,
    take: fn(&mut State, &K, bool),
) where
    K: kube::Resource + Clone + serde::de::DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    let (state, changed) = (state.clone(), changed.clone());
    tasks.spawn(async move {
        let mut events = watcher(api, watcher::Config::default()).boxed();
        while let Some(event) = events.next().await {
            let (object, there) = match event {
                Ok(watcher::Event::Apply(object) | watcher::Event::InitApply(object)) => (object, true),
                Ok(watcher::Event::Delete(object)) => (object, false),
                Ok(_) | Err(_) => continue,
            };
            take(&mut state.lock().unwrap(), &object, there);
            changed.notify_one();
        }
    });
}
