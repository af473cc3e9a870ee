//! What the watches bring is what the engine goes by.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::sync::Arc;

use k8s_openapi::api::core::v1::ServiceAccount;
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, PostParams},
};
use prometheus::{IntGaugeVec, Opts};
use tokio::{sync::mpsc, task::JoinSet};
use weir_api_server::{Effect, Requests, TestCluster, eventually, object};
use weir_control::{ads::Store, compile::Settings, compile::Unentitled, engine::Engine, watch};

const MESH: (&str, &str) = ("weir.dev/mesh", "enabled");

/// An engine with all its watches; both end when it is dropped.
struct Watched {
    engine: Arc<Engine>,
    _tasks: JoinSet<()>,
}

impl Watched {
    fn start(client: &Client) -> Self {
        let engine = Arc::new(Engine::new(Settings::default(), Arc::new(Store::new())));
        let failing = IntGaugeVec::new(Opts::new("failing", "1 while it fails"), &["kind"]).unwrap();
        let (batches, incoming) = mpsc::channel(watch::QUEUE);
        let mut tasks = JoinSet::new();
        let kinds = watch::start(client, false, &failing, &batches, &mut tasks);
        let running = engine.clone();
        tasks.spawn(async move { running.run(incoming, &kinds).await });
        Self {
            engine,
            _tasks: tasks,
        }
    }

    fn entitled(&self, node: &str, namespace: &str, account: &str) -> Result<(), Unentitled> {
        self.engine.compiler().entitled(node, namespace, account)
    }

    async fn until(&self, node: &str, namespace: &str, expected: Result<(), Unentitled>) {
        eventually(&format!("{expected:?}"), || async {
            (self.entitled(node, namespace, "web") == expected).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_service_account_counts_while_it_is_there() {
    let cluster = TestCluster::new().await;
    let namespace = cluster.namespace("accounts").await;
    let node = cluster.node("accounts").await;
    cluster.service_account(&namespace, "web").await;
    let pod = cluster.pod(&namespace, "web-1").account("web").on(&node);
    pod.annotations(&[MESH]).create().await;
    let node = node.name_any();
    let watched = Watched::start(&cluster.client());
    watched.until(&node, &namespace, Ok(())).await;

    let accounts: Api<ServiceAccount> = Api::namespaced(cluster.client(), &namespace);
    accounts.delete("web", &DeleteParams::default()).await.unwrap();
    // The pod lives on.
    watched
        .until(&node, &namespace, Err(Unentitled::NoServiceAccount))
        .await;

    let again: ServiceAccount = object(serde_json::json!({"metadata": {"name": "web"}}));
    accounts.create(&PostParams::default(), &again).await.unwrap();
    watched.until(&node, &namespace, Ok(())).await;
}

#[tokio::test]
async fn nobody_is_entitled_before_all_service_accounts_are_known() {
    let cluster = TestCluster::new().await;
    let namespace = cluster.namespace("accounts").await;
    let node = cluster.node("accounts").await;
    cluster.service_account(&namespace, "web").await;
    let pod = cluster.pod(&namespace, "web-1").account("web").on(&node);
    pod.annotations(&[MESH]).create().await;
    let node = node.name_any();
    let faults = cluster.faults();
    let lists = Requests::all().of("serviceaccounts");
    let fault = faults.inject(Effect::Refuse(500), lists.clone());
    let watched = Watched::start(&faults.client().unwrap());
    eventually("the list to be asked for", || async {
        (faults.count(&lists) >= 2).then_some(())
    })
    .await;
    assert!(!*watched.engine.synced().borrow());
    assert!(watched.entitled(&node, &namespace, "web").is_err());
    faults.lift(fault);
    let asked = faults.seen(&lists);
    assert!(
        asked
            .iter()
            .all(|asked| asked.accept.contains("as=PartialObjectMetadata")),
        "{asked:?}"
    );
    watched.until(&node, &namespace, Ok(())).await;
}
