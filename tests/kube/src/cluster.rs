//! The cluster that is tested, and the command line that it is tested with.

use std::{
    path::PathBuf,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::{
    Api, Client, Config,
    api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams},
    config::{KubeConfigOptions, Kubeconfig},
    core::{ApiResource, GroupVersionKind},
};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::Arguments;

/// Where Weir is.
pub(crate) const SYSTEM: &str = "weir-system";
/// Who makes objects.
const MANAGER: &str = "weir-kube-tests";
/// How long something may take that happens by itself.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(200);

/// A cluster.
pub(crate) struct Cluster {
    pub(crate) client: Client,
    pub(crate) arguments: Arguments,
    kubeconfig: PathBuf,
    /// Two nodes that pods can be on.
    pub(crate) nodes: [String; 2],
    namespaces: Vec<String>,
}

impl Cluster {
    pub(crate) async fn new(arguments: &Arguments) -> anyhow::Result<Self> {
        // Another crate may have chosen one already.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let kubeconfig = arguments.kubeconfig.clone().context("no kubeconfig")?;
        let read = Kubeconfig::read_from(&kubeconfig)?;
        let mut config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await?;
        // It would end commands that are quiet.
        config.read_timeout = None;
        let client = Client::try_from(config)?;
        let nodes = Api::<Node>::all(client.clone())
            .list(&ListParams::default())
            .await?;
        let taken = |node: &Node| {
            let spec = node.spec.clone().unwrap_or_default();
            let kept = spec
                .taints
                .unwrap_or_default()
                .iter()
                .any(|taint| taint.effect != "PreferNoSchedule");
            !kept && spec.unschedulable != Some(true)
        };
        let mut names = nodes
            .items
            .into_iter()
            .filter(taken)
            .filter_map(|node| node.metadata.name);
        let (Some(first), Some(second)) = (names.next(), names.next()) else {
            bail!("expected two nodes that take pods");
        };
        Ok(Self {
            client,
            arguments: arguments.clone(),
            kubeconfig,
            nodes: [first, second],
            namespaces: Vec::new(),
        })
    }

    /// What it is.
    pub(crate) async fn describe(&self) -> anyhow::Result<String> {
        let version = self.client.apiserver_version().await?;
        let [first, second] = &self.nodes;
        Ok(format!(
            "Kubernetes {}, pods on nodes {first} and {second}",
            version.git_version
        ))
    }

    /// Makes a namespace of the tests, or changes its switch.
    pub(crate) async fn namespace(&mut self, name: &str, mesh: Option<&str>) -> anyhow::Result<String> {
        let name = format!("weir-test-{name}");
        let labels = mesh.map_or_else(|| json!({}), |mesh| json!({"weir.dev/mesh": mesh}));
        self.apply(
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}),
        )
        .await?;
        if !self.namespaces.contains(&name) {
            self.namespaces.push(name.clone());
        }
        Ok(name)
    }

    /// Applies an object.
    pub(crate) async fn apply(&self, object: Value) -> anyhow::Result<DynamicObject> {
        let (api, name) = self.api(&object)?;
        let params = PatchParams::apply(MANAGER).force();
        let applied = api.patch(&name, &params, &Patch::Apply(&object)).await;
        applied.with_context(|| format!("applying {} {name}", object["kind"]))
    }

    /// Merges a change into an object that is there.
    pub(crate) async fn merge(&self, change: &Value) -> anyhow::Result<()> {
        let (api, name) = self.api(change)?;
        api.patch(&name, &PatchParams::default(), &Patch::Merge(change))
            .await?;
        Ok(())
    }

    /// Deletes an object, at once.
    pub(crate) async fn delete(&self, object: &Value) -> anyhow::Result<()> {
        let (api, name) = self.api(object)?;
        match api.delete(&name, &DeleteParams::default().grace_period(0)).await {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            deleted => deleted.map(drop).map_err(Into::into),
        }
    }

    /// The object as it is there, if it is.
    pub(crate) async fn get(&self, object: &Value) -> anyhow::Result<Option<Value>> {
        let (api, name) = self.api(object)?;
        match api.get_opt(&name).await? {
            Some(found) => Ok(Some(serde_json::to_value(found)?)),
            None => Ok(None),
        }
    }

    fn api(&self, object: &Value) -> anyhow::Result<(Api<DynamicObject>, String)> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let version = text(&object["apiVersion"]);
        let (group, version) = version.split_once('/').unwrap_or(("", &version));
        let kind = GroupVersionKind::gvk(group, version, &text(&object["kind"]));
        let resource = ApiResource::from_gvk(&kind);
        let api = match object["metadata"]["namespace"].as_str() {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &resource),
            None => Api::all_with(self.client.clone(), &resource),
        };
        Ok((api, text(&object["metadata"]["name"])))
    }

    /// Pods of a namespace, of one label.
    pub(crate) async fn pods(&self, namespace: &str, selector: &str) -> anyhow::Result<Vec<Pod>> {
        let api = Api::<Pod>::namespaced(self.client.clone(), namespace);
        Ok(api.list(&ListParams::default().labels(selector)).await?.items)
    }

    /// The agent's pod of a node.
    pub(crate) async fn agent(&self, node: &str) -> anyhow::Result<String> {
        let pods = self.pods(SYSTEM, "app.kubernetes.io/name=weir-agent").await?;
        let of_node = pods.into_iter().find(|pod| {
            let spec = pod.spec.as_ref();
            pod.metadata.deletion_timestamp.is_none()
                && spec.and_then(|spec| spec.node_name.as_deref()) == Some(node)
        });
        of_node
            .and_then(|pod| pod.metadata.name)
            .with_context(|| format!("node {node} has no agent"))
    }

    /// Runs `weir` against the cluster; its output, whatever came of it.
    pub(crate) async fn try_weir(&self, arguments: &[&str]) -> anyhow::Result<(bool, String)> {
        let mut command = Command::new(&self.arguments.weir);
        command.arg("--kubeconfig").arg(&self.kubeconfig).args(arguments);
        command.stdin(Stdio::null()).kill_on_drop(true);
        let output = command
            .output()
            .await
            .with_context(|| self.arguments.weir.display().to_string())?;
        let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        Ok((output.status.success(), text.into_owned()))
    }

    /// Runs `weir` against the cluster; its output.
    pub(crate) async fn weir(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let (success, text) = self.try_weir(arguments).await?;
        ensure!(success, "weir {}: {text}", arguments.join(" "));
        Ok(text)
    }

    /// Waits until something is so; `look` says what it is instead.
    pub(crate) async fn until(
        &self,
        what: &str,
        mut look: impl AsyncFnMut() -> anyhow::Result<Result<(), String>>,
    ) -> anyhow::Result<Duration> {
        let start = Instant::now();
        loop {
            let not_yet = match look().await? {
                Ok(()) => return Ok(start.elapsed()),
                Err(not_yet) => not_yet,
            };
            ensure!(
                start.elapsed() < PATIENCE,
                "{what}: not after {PATIENCE:?}: {not_yet}"
            );
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits until a workload of Weir's is at work as it should be.
    pub(crate) async fn rolled_out(&self, kind: &str, name: &str) -> anyhow::Result<()> {
        let object =
            json!({"apiVersion": "apps/v1", "kind": kind, "metadata": {"namespace": SYSTEM, "name": name}});
        let what = format!("{kind} {name} is at work");
        self.until(&what, async || {
            let now = self
                .get(&object)
                .await?
                .with_context(|| format!("no {kind} {name}"))?;
            let status = |field: &str| now["status"][field].as_u64().unwrap_or(0);
            let (wanted, updated, ready, all) = if kind == "DaemonSet" {
                let wanted = status("desiredNumberScheduled");
                (
                    wanted,
                    status("updatedNumberScheduled"),
                    status("numberReady"),
                    wanted,
                )
            } else {
                let wanted = now["spec"]["replicas"].as_u64().unwrap_or(1);
                (
                    wanted,
                    status("updatedReplicas"),
                    status("readyReplicas"),
                    status("replicas"),
                )
            };
            let seen = status("observedGeneration") >= now["metadata"]["generation"].as_u64().unwrap_or(0);
            let done = seen && updated == wanted && ready == wanted && all == wanted && wanted > 0;
            Ok(done
                .then_some(())
                .ok_or_else(|| format!("{updated} new, {ready} ready of {wanted}")))
        })
        .await?;
        Ok(())
    }

    /// Restarts the pods of a workload of Weir's, as `kubectl rollout restart` does, and waits for the end.
    pub(crate) async fn restart(&self, kind: &str, name: &str) -> anyhow::Result<()> {
        let object =
            json!({"apiVersion": "apps/v1", "kind": kind, "metadata": {"namespace": SYSTEM, "name": name}});
        let (api, name) = self.api(&object)?;
        let now = jiff::Timestamp::now().to_string();
        let patch = json!({"spec": {"template": {"metadata": {"annotations": {"kubectl.kubernetes.io/restartedAt": now}}}}});
        api.patch(&name, &PatchParams::default(), &Patch::Merge(patch))
            .await?;
        self.rolled_out(kind, &name).await
    }

    /// Notes of the events about a pod.
    pub(crate) async fn events(&self, namespace: &str, pod: &str) -> anyhow::Result<Vec<String>> {
        let api = Api::<k8s_openapi::api::core::v1::Event>::namespaced(self.client.clone(), namespace);
        let about = ListParams::default().fields(&format!("involvedObject.name={pod}"));
        let events = api.list(&about).await?.items;
        Ok(events.into_iter().filter_map(|event| event.message).collect())
    }

    /// Runs `weir-control authority` in a pod of the control plane; what it said.
    pub(crate) async fn authority(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let pods = self.pods(SYSTEM, "app.kubernetes.io/name=weir-control").await?;
        let name = pods
            .into_iter()
            .find_map(|pod| pod.metadata.name)
            .context("no pod of weir-control")?;
        let api = Api::<Pod>::namespaced(self.client.clone(), SYSTEM);
        let all = ["/weir-control", "authority"]
            .into_iter()
            .chain(arguments.iter().copied());
        let params = kube::api::AttachParams::default().stdout(true).stderr(true);
        let mut running = api.exec(&name, all, &params).await?;
        let mut said = String::new();
        if let Some(mut stdout) = running.stdout() {
            tokio::io::AsyncReadExt::read_to_string(&mut stdout, &mut said).await?;
        }
        if let Some(mut stderr) = running.stderr() {
            tokio::io::AsyncReadExt::read_to_string(&mut stderr, &mut said).await?;
        }
        ensure!(
            crate::pods::succeeded(running).await?,
            "weir-control authority {}: {said}",
            arguments.join(" ")
        );
        Ok(said)
    }

    /// Removes what the tests made.
    pub(crate) async fn clean_up(&self) -> anyhow::Result<()> {
        let api = Api::<Namespace>::all(self.client.clone());
        for name in &self.namespaces {
            match api.delete(name, &DeleteParams::default()).await {
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                deleted => drop(deleted?),
            }
        }
        for name in &self.namespaces {
            self.until(&format!("namespace {name} is gone"), async || {
                let left = api.get_opt(name).await?;
                Ok(left
                    .is_none()
                    .then_some(())
                    .ok_or_else(|| "it is there".to_owned()))
            })
            .await?;
        }
        Ok(())
    }
}
