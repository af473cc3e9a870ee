//! `weir uninstall`: takes everything out again, on the nodes first.

use std::{
    io::{self, Write as _},
    time::Duration,
};

use anyhow::bail;
use clap::Args;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::{
    Api,
    api::{DynamicObject, ListParams, Patch, PatchParams},
};
use serde_json::json;
use tokio::time::{Instant, sleep};
use weir::style::{BOLD, GOOD, WARN, clean, paint};

use crate::{
    cluster::Cluster,
    install::{
        apply::{self, title},
        manifest::{self, Object, Settings},
        ready, workload,
    },
    mesh::{ENROLLED, GROUP, NOT_ENROLLED, Switch, VERSION},
    rollback,
    target::Options,
};

/// The DaemonSet that detaches on every node.
pub(crate) const DETACH: &str = "weir-detach";
/// The taint that weir-control may have left.
const TAINT: &str = "weir.dev/agent-not-ready";
/// How often it is looked whether something is gone.
const POLL: Duration = Duration::from_millis(500);
/// Who changes fields.
const MANAGER: &str = "weir-uninstall";

/// Takes Weir out of a cluster; applications keep running.
///
/// Stops the agents, takes the kernel programs and the CNI plugin out on every node, deletes what was installed, the
/// authority's key and all policies of weir.dev included, and removes what was written to pods and nodes. Connections that
/// went by mutual TLS end once; new ones are plaintext.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    weir uninstall --dry-run            what it would delete\n  \
    weir uninstall                      asks first\n  \
    weir uninstall --keep-objects       only what is on the nodes and on pods; then 'helm uninstall weir -n weir-system'")]
pub(crate) struct Uninstall {
    /// Do not ask.
    #[arg(long, short)]
    yes: bool,
    /// Only show what would be done.
    #[arg(long)]
    dry_run: bool,
    /// Leave what was installed to whoever installed it, except Deployment and DaemonSet.
    #[arg(long)]
    keep_objects: bool,
    /// Go on where there is no DaemonSet weir-agent any more, by which nodes could be cleaned.
    #[arg(long)]
    leave_nodes: bool,
    /// How long each step may take.
    #[arg(long, value_name = "TIME", default_value = "2m", value_parser = rollback::seconds)]
    timeout: Duration,
}

impl Uninstall {
    pub(crate) async fn run(self, options: &Options) -> anyhow::Result<()> {
        options.only_cluster()?;
        let cluster = Cluster::new(options).await?;
        let namespace = cluster.namespace.clone();
        let mut out = anstream::stdout();
        // What else was installed, and where, its own installer knows.
        let objects = match self.keep_objects {
            true => Vec::new(),
            false => present(&cluster, &namespace).await?,
        };
        let policies = policies(&cluster).await?;
        writeln!(out, "{}", paint(BOLD, format!("Weir in {}", cluster.name)))?;
        if objects.is_empty() && !self.keep_objects {
            writeln!(out, "  nothing of it is installed")?;
        }
        for object in &objects {
            writeln!(out, "  {}", title(object))?;
        }
        if !policies.is_empty() && !self.keep_objects {
            let text = format!(
                "{} policies of {GROUP} go with their definitions:",
                policies.len()
            );
            writeln!(out, "{}", paint(WARN, text))?;
            for policy in &policies {
                writeln!(out, "  {}", clean(policy))?;
            }
        }
        if self.dry_run {
            writeln!(out, "\nNothing was changed.")?;
            return Ok(());
        }
        if !self.yes {
            rollback::confirm()?;
        }
        let control = workload(&namespace, "Deployment", "weir-control");
        let installed = !objects.is_empty() || apply::get(&cluster, &control).await?.is_some();
        let clean = self.nodes(&cluster, &namespace, installed, &mut out).await?;
        // It would write again what is removed next.
        self.remove(&cluster, &control).await?;
        traces(&cluster, &mut out).await?;
        // What runs first, then what it needed, definitions and namespaces last. Before these what has detached: until then it
        // tells the next time, should this break off, that the nodes are done.
        let (namespaces, others): (Vec<_>, Vec<_>) = objects
            .iter()
            .rev()
            .partition(|object| object["kind"] == "Namespace");
        for object in others {
            self.remove(&cluster, object).await?;
        }
        self.remove(&cluster, &workload(&namespace, "DaemonSet", DETACH))
            .await?;
        for object in namespaces {
            self.remove(&cluster, object).await?;
        }
        if self.keep_objects {
            writeln!(out, "What else was installed is left to whoever installed it.")?;
            return Ok(());
        }
        let said = if clean {
            paint(GOOD, "Nothing of Weir is left in the cluster and on its nodes.")
        } else {
            paint(
                WARN,
                "Nothing of Weir is left in the cluster; its nodes were not looked at.",
            )
        };
        writeln!(out, "{said}")?;
        labelled(&cluster, &mut out).await
    }

    /// Takes out what is on the nodes: by the DaemonSet's own pods, once its agents have stopped. False if it could not.
    async fn nodes(
        &self,
        cluster: &Cluster,
        namespace: &str,
        installed: bool,
        out: &mut impl io::Write,
    ) -> anyhow::Result<bool> {
        let agents = workload(namespace, "DaemonSet", "weir-agent");
        let detach = workload(namespace, "DaemonSet", DETACH);
        // What was begun and broken off is known by the second one.
        let source = match apply::get(cluster, &agents).await? {
            Some(found) => Some(found),
            None => apply::get(cluster, &detach).await?,
        };
        let Some(source) = source else {
            let text =
                "There is no DaemonSet weir-agent: what agents left on nodes cannot be taken out from here";
            if installed && !self.leave_nodes {
                bail!(
                    "{text}. 'weir install' and uninstall again, or give --leave-nodes and run 'weir-agent --detach' on each"
                );
            }
            writeln!(out, "{}", paint(WARN, text))?;
            return Ok(false);
        };
        if is_done(&source) {
            writeln!(out, "Detached on every node, when this was run before.")?;
            return Ok(true);
        }
        // First what knows how to detach, on no node yet: whatever breaks off from here on, the next time goes on with it.
        let (held, made) = (
            detaching(&source, namespace, true),
            detaching(&source, namespace, false),
        );
        apply::apply(cluster, &held).await?;
        self.remove(cluster, &agents).await?;
        self.no_pods(cluster, namespace).await?;
        apply::apply(cluster, &made).await?;
        let deadline = Instant::now() + self.timeout;
        if let Err(why) = ready(cluster, &made, deadline, self.timeout).await {
            bail!(
                "{why}. On these nodes kernel programs or the CNI plugin are still in place: 'kubectl -n {namespace} logs ds/{DETACH}' \
                 says why; then run this again"
            );
        }
        writeln!(out, "Detached on every node.")?;
        Ok(true)
    }

    /// Deletes an object, and waits until it is gone.
    async fn remove(&self, cluster: &Cluster, object: &Object) -> anyhow::Result<()> {
        if !apply::delete(cluster, object).await? {
            return Ok(());
        }
        let deadline = Instant::now() + self.timeout;
        while apply::get(cluster, object).await?.is_some() {
            if Instant::now() > deadline {
                bail!(
                    "{} is being deleted, and not gone after {:?}: run this again",
                    title(object),
                    self.timeout
                );
            }
            sleep(POLL).await;
        }
        Ok(())
    }

    /// Waits until no agent runs.
    async fn no_pods(&self, cluster: &Cluster, namespace: &str) -> anyhow::Result<()> {
        let pods = Api::<Pod>::namespaced(cluster.client.clone(), namespace);
        let agents = ListParams::default().labels("app.kubernetes.io/name=weir-agent");
        let deadline = Instant::now() + self.timeout;
        loop {
            let left = cluster.answer(pods.list(&agents)).await?.items;
            let Some(first) = left.first() else {
                return Ok(());
            };
            if Instant::now() > deadline {
                let node = first.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
                bail!(
                    "after {:?} {} agents have not stopped, the first on node {}: run this again",
                    self.timeout,
                    left.len(),
                    node.unwrap_or("(none)")
                );
            }
            sleep(POLL).await;
        }
    }
}

/// What is installed, in the order in which it was applied.
async fn present(cluster: &Cluster, namespace: &str) -> anyhow::Result<Vec<Object>> {
    let mut objects = manifest::objects(namespace, &Settings::default())?;
    // weir-control makes it.
    let made = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"namespace": namespace, "name": "weir-ca-roots"}});
    objects.insert(objects.len() / 2, made);
    let mut present = Vec::new();
    for object in objects {
        if apply::get(cluster, &object).await?.is_some() {
            present.push(object);
        }
    }
    Ok(present)
}

/// Names of all policies of ours.
async fn policies(cluster: &Cluster) -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    for kind in ["AuthorizationPolicy", "PeerAuthentication"] {
        let kind_of = json!({"apiVersion": format!("{GROUP}/{VERSION}"), "kind": kind, "metadata": {}});
        let api: Api<DynamicObject> = apply::api(&cluster.client, &kind_of)?;
        match cluster.answer(api.list(&ListParams::default())).await {
            Ok(list) => names.extend(list.items.into_iter().map(|policy| {
                let meta = policy.metadata;
                let part = |part: Option<String>| part.unwrap_or_default();
                format!("{kind} {}/{}", part(meta.namespace), part(meta.name))
            })),
            Err(why) if why.is_absent() => {}
            Err(why) => bail!(why),
        }
    }
    Ok(names)
}

/// Whether this is what detaches, let loose on every node and done there.
fn is_done(set: &Object) -> bool {
    let status = |field: &str| set["status"][field].as_u64();
    set["metadata"]["name"] == DETACH
        && set["spec"]["template"]["spec"]["affinity"].is_null()
        && status("observedGeneration") >= set["metadata"]["generation"].as_u64()
        && status("updatedNumberScheduled") == status("desiredNumberScheduled")
        && status("numberReady") == status("desiredNumberScheduled")
}

/// A DaemonSet like the agents' that detaches on each node and stays until it is deleted.
fn detaching(agents: &Object, namespace: &str, held: bool) -> Object {
    let labels = json!({"app.kubernetes.io/name": DETACH, "app.kubernetes.io/part-of": "weir"});
    let mut spec = agents["spec"]["template"]["spec"].clone();
    for container in spec["containers"].as_array_mut().into_iter().flatten() {
        container["args"] = json!(["--config=/etc/weir/config/agent.yaml", "--detach", "--hold"]);
        container["name"] = json!(DETACH);
    }
    // Neither its token nor weir-control's roots: weir-control may be gone.
    let needed = |volume: &serde_json::Value| volume["name"] != "token" && volume["name"] != "roots";
    if let Some(volumes) = spec["volumes"].as_array_mut() {
        volumes.retain(needed);
    }
    if let Some(mounts) = spec
        .pointer_mut("/containers/0/volumeMounts")
        .and_then(|mounts| mounts.as_array_mut())
    {
        mounts.retain(needed);
    }
    // Agents have no affinity of their own.
    spec["affinity"] = if held {
        json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
            {"matchExpressions": [{"key": "weir.dev/on-no-node", "operator": "Exists"}]},
        ]}}})
    } else {
        serde_json::Value::Null
    };
    let mut made = workload(namespace, "DaemonSet", DETACH);
    made["spec"] = json!({
        "selector": {"matchLabels": {"app.kubernetes.io/name": DETACH}},
        "template": {"metadata": {"labels": labels, "annotations": {"weir.dev/mesh": "disabled"}}, "spec": spec},
    });
    made
}

/// Removes what weir-control wrote to pods and nodes.
async fn traces(cluster: &Cluster, out: &mut impl io::Write) -> anyhow::Result<()> {
    let params = PatchParams {
        field_manager: Some(MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let pods = Api::<Pod>::all(cluster.client.clone());
    let mut count = 0;
    for pod in cluster.answer(pods.list(&ListParams::default())).await?.items {
        let annotations = pod.metadata.annotations.as_ref();
        let marked =
            annotations.is_some_and(|all| all.contains_key(ENROLLED) || all.contains_key(NOT_ENROLLED));
        let (Some(namespace), Some(name), true) = (&pod.metadata.namespace, &pod.metadata.name, marked)
        else {
            continue;
        };
        let api = Api::<Pod>::namespaced(cluster.client.clone(), namespace);
        let patch = Patch::Merge(json!({
            "metadata": {"uid": pod.metadata.uid, "annotations": {ENROLLED: null, NOT_ENROLLED: null}},
        }));
        match cluster.answer(api.patch(name, &params, &patch)).await {
            Ok(_) => count += 1,
            // It is another by now, or gone.
            Err(why) if why.is_absent() || why.is_conflict() || why.names_another() => {}
            Err(why) => bail!("pod {namespace}/{name}: {why}"),
        }
    }
    let nodes = Api::<Node>::all(cluster.client.clone());
    for node in cluster.answer(nodes.list(&ListParams::default())).await?.items {
        let mut taints = node.spec.and_then(|spec| spec.taints).unwrap_or_default();
        let before = taints.len();
        taints.retain(|taint| taint.key != TAINT);
        let (Some(name), true) = (&node.metadata.name, taints.len() < before) else {
            continue;
        };
        let patch = json!({
            "metadata": {"resourceVersion": node.metadata.resource_version}, "spec": {"taints": taints},
        });
        cluster
            .answer(nodes.patch(name, &params, &Patch::Merge(patch)))
            .await?;
        writeln!(out, "Took the taint off node {name}.")?;
    }
    if count > 0 {
        writeln!(out, "Removed the annotations of {count} pods.")?;
    }
    Ok(())
}

/// Says which namespaces still bear the label: it is the user's.
async fn labelled(cluster: &Cluster, out: &mut impl io::Write) -> anyhow::Result<()> {
    let namespaces = Api::<Namespace>::all(cluster.client.clone());
    let all = cluster
        .answer(namespaces.list(&ListParams::default()))
        .await?
        .items;
    let enabled = all
        .iter()
        .filter(|namespace| Switch::of_namespace(namespace).is_some());
    let names: Vec<_> = enabled
        .filter_map(|namespace| namespace.metadata.name.as_deref())
        .collect();
    if !names.is_empty() {
        writeln!(
            out,
            "These namespaces still bear a label of the mesh, which says nothing now: {}",
            clean(&names.join(", "))
        )?;
    }
    Ok(())
}
