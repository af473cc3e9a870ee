//! The cluster a test runs on: the stand-in, or a real one where `WEIR_TEST_KUBECONFIG` names a kubeconfig.

use std::{
    collections::BTreeMap,
    io::Write as _,
    path::PathBuf,
    sync::{Mutex, Once, PoisonError},
    thread,
    time::Duration,
};

use k8s_openapi::{
    api::core::v1::{Namespace, Node, Pod, ServiceAccount},
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::{faults::Faults, server::ApiServer};

/// Names the kubeconfig of a real cluster, which the tests may fill and empty.
pub const KUBECONFIG: &str = "WEIR_TEST_KUBECONFIG";
/// How long controllers of a real cluster may take for what the stand-in does at once.
const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(50);

/// Where the addresses of pods are on every node that tests make: the ranges for documentation (RFC 5737, RFC 3849).
const POD_RANGES: [&str; 2] = ["192.0.2.0/24", "2001:db8::/64"];

static ANNOUNCED: Once = Once::new();

/// A cluster for one test, which removes what it made when it is dropped.
///
/// A real cluster is shared: tests meet objects that are not theirs, and use names from [`TestCluster::unique`]
/// for whatever is in no namespace.
#[derive(Debug)]
pub struct TestCluster {
    stand_in: Option<ApiServer>,
    config: kube::Config,
    kubeconfig: String,
    client: ClientOf,
    version: String,
    made: Mutex<Made>,
}

/// A client has no `Debug`.
struct ClientOf(Client);

impl std::fmt::Debug for ClientOf {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Client")
    }
}

/// What is to be removed at the end.
#[derive(Debug, Default, Clone)]
struct Made {
    namespaces: Vec<String>,
    nodes: Vec<String>,
    definitions: Vec<String>,
}

impl TestCluster {
    /// The real cluster of `WEIR_TEST_KUBECONFIG`, or else a stand-in of the test's own.
    ///
    /// # Panics
    /// When the kubeconfig cannot be read, or the server does not answer.
    pub async fn new() -> Self {
        // Another provider may have been chosen before.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let (stand_in, config, kubeconfig) = match std::env::var_os(KUBECONFIG).map(PathBuf::from) {
            Some(path) => {
                let text = std::fs::read_to_string(&path).expect("the file that WEIR_TEST_KUBECONFIG names");
                let parsed = Kubeconfig::from_yaml(&text).expect("a kubeconfig in WEIR_TEST_KUBECONFIG");
                let config =
                    kube::Config::from_custom_kubeconfig(parsed, &KubeConfigOptions::default()).await;
                (None, config.expect("a context in WEIR_TEST_KUBECONFIG"), text)
            }
            None => {
                let server = ApiServer::start().expect("a port on loopback");
                let (config, kubeconfig) = (server.config(), server.kubeconfig());
                (Some(server), config, kubeconfig)
            }
        };
        let client = Client::try_from(config.clone()).expect("a client");
        let version = client
            .apiserver_version()
            .await
            .expect("an API server that answers");
        let cluster = Self {
            stand_in,
            config,
            kubeconfig,
            client: ClientOf(client),
            version: version.git_version,
            made: Mutex::default(),
        };
        ANNOUNCED.call_once(|| {
            // Not by `eprintln`, of which nothing is shown where the test passes.
            let _ = writeln!(
                std::io::stderr(),
                "API server of these tests: {}",
                cluster.describe()
            );
        });
        cluster
    }

    /// Which server it is: `in memory`, or its address and version.
    #[must_use]
    pub fn describe(&self) -> String {
        match &self.stand_in {
            Some(_) => "in memory".to_owned(),
            None => format!("{} ({})", self.config.cluster_url, self.version),
        }
    }

    /// The stand-in, for what only it can: moving the clock, forbidding, compacting. Nothing on a real cluster.
    #[must_use]
    pub fn stand_in(&self) -> Option<&ApiServer> {
        self.stand_in.as_ref()
    }

    /// A client.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client.0.clone()
    }

    /// How to reach the server.
    #[must_use]
    pub fn config(&self) -> kube::Config {
        self.config.clone()
    }

    /// A kubeconfig for subprocesses, as YAML.
    #[must_use]
    pub fn kubeconfig(&self) -> &str {
        &self.kubeconfig
    }

    /// Faults in front of the server.
    ///
    /// # Panics
    /// When there is no port to be had.
    #[must_use]
    pub fn faults(&self) -> Faults {
        Faults::before(self.config()).expect("a port on loopback")
    }

    /// A name that no other test has.
    #[must_use]
    pub fn unique(&self, prefix: &str) -> String {
        format!("{prefix}-{:08x}", rand::random::<u32>())
    }

    /// Makes a namespace with a name of its own.
    pub async fn namespace(&self, prefix: &str) -> String {
        self.namespace_with(prefix, &[]).await
    }

    /// Makes a namespace with labels, and waits until pods can be made in it.
    ///
    /// # Panics
    /// When the server refuses it.
    pub async fn namespace_with(&self, prefix: &str, labels: &[(&str, &str)]) -> String {
        let name = self.unique(prefix);
        self.made(|made| made.namespaces.push(name.clone()));
        let namespace = object(json!({"metadata": {"name": name, "labels": map(labels)}}));
        let namespaces = Api::<Namespace>::all(self.client());
        namespaces
            .create(&PostParams::default(), &namespace)
            .await
            .expect("a namespace");
        let accounts = Api::<ServiceAccount>::namespaced(self.client(), &name);
        eventually("the default service account", || async {
            accounts.get_opt("default").await.expect("service accounts")
        })
        .await;
        name
    }

    /// Makes a node with a name of its own, on which nothing runs that the test does not put there.
    ///
    /// # Panics
    /// When the server refuses it.
    pub async fn node(&self, prefix: &str) -> Node {
        let name = self.unique(prefix);
        self.made(|made| made.nodes.push(name.clone()));
        // The taint keeps a real scheduler from it. A DaemonSet controller creates no pods there either, yet does
        // not remove those that are there, which it would on a node that its DaemonSet does not select.
        let node = object(json!({
            "metadata": {"name": name, "labels": {
                "kubernetes.io/hostname": name, "kubernetes.io/os": "linux", TEST_NODE: "true",
            }},
            "spec": {
                "taints": [{"key": TEST_NODE, "effect": "NoSchedule"}],
                // As a cluster's network would say it, or a real cluster might say another.
                "podCIDR": POD_RANGES[0], "podCIDRs": POD_RANGES,
            },
        }));
        let nodes = Api::<Node>::all(self.client());
        nodes.create(&PostParams::default(), &node).await.expect("a node")
    }

    /// Makes a definition of a custom resource, and waits until it is served.
    ///
    /// # Panics
    /// When the server refuses it, or does not serve it in time.
    pub async fn define(&self, definition: &CustomResourceDefinition) -> CustomResourceDefinition {
        let name = definition.metadata.name.clone().unwrap_or_default();
        self.made(|made| made.definitions.push(name.clone()));
        let definitions = Api::<CustomResourceDefinition>::all(self.client());
        definitions
            .create(&PostParams::default(), definition)
            .await
            .expect("a definition");
        eventually("an established definition", || async {
            let definition = definitions.get(&name).await.expect("the definition");
            let conditions = definition
                .status
                .as_ref()
                .and_then(|status| status.conditions.as_ref());
            let established = conditions
                .into_iter()
                .flatten()
                .any(|condition| condition.type_ == "Established" && condition.status == "True");
            established.then_some(definition)
        })
        .await
    }

    fn made(&self, note: impl FnOnce(&mut Made)) {
        note(&mut self.made.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Label and taint of the nodes that tests make.
pub(crate) const TEST_NODE: &str = "test.weir.dev/node";

impl Drop for TestCluster {
    fn drop(&mut self) {
        if self.stand_in.is_some() {
            return;
        }
        let made = std::mem::take(&mut *self.made.lock().unwrap_or_else(PoisonError::into_inner));
        let config = self.config.clone();
        // The test's runtime may be ending, and cannot be waited on from here.
        let removal = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let Ok(runtime) = runtime else { return };
            runtime.block_on(async {
                if let Ok(client) = Client::try_from(config) {
                    remove(&client, &made).await;
                }
            });
        });
        let _ = removal.join();
    }
}

/// Removes what was made; what is gone already is as good.
async fn remove(client: &Client, made: &Made) {
    let now = DeleteParams::default().grace_period(0);
    let background = DeleteParams::background();
    for namespace in &made.namespaces {
        // Where no kubelet stops pods, they would hold up the namespace forever.
        let pods = Api::<Pod>::namespaced(client.clone(), namespace);
        let _ = pods.delete_collection(&now, &ListParams::default()).await;
        let _ = Api::<Namespace>::all(client.clone())
            .delete(namespace, &background)
            .await;
    }
    for node in &made.nodes {
        let _ = Api::<Node>::all(client.clone()).delete(node, &background).await;
    }
    for definition in &made.definitions {
        let definitions = Api::<CustomResourceDefinition>::all(client.clone());
        let _ = definitions.delete(definition, &background).await;
    }
}

/// Asks until there is an answer.
///
/// # Panics
/// When there is none after half a minute.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    let asking = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(POLL).await;
        }
    };
    match tokio::time::timeout(PATIENCE, asking).await {
        Ok(answer) => answer,
        Err(_) => panic!("{what}: not within {PATIENCE:?}"),
    }
}

/// An object of a kind, from what it says in JSON.
///
/// # Panics
/// When the kind has no such fields.
#[must_use]
pub fn object<K: DeserializeOwned>(value: serde_json::Value) -> K {
    serde_json::from_value(value).expect("an object of its kind")
}

pub(crate) fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|&(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}
