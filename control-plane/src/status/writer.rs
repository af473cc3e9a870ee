//! Writes what was planned, at its pace.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::{
    core::v1::{Node, Pod, Taint},
    events::v1::Event,
};
use kube::{
    Api, Client, CustomResourceExt as _,
    api::{DynamicObject, Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::{
    sync::Notify,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{
    ADDRESS, AddressWrite, MANAGER, NODE_TAINT, Notice, Pace, PodWrite, PolicyWrite, Write,
    fair::Turns,
    ledger::{Attempt, Ledger},
};
use crate::{compile::PolicyKind, crd};

/// Writes to the cluster. One a process; any number of processes.
pub struct Writer {
    client: Client,
    /// This replica, in events.
    instance: String,
    pace: Pace,
    ledger: Ledger,
    turns: Turns,
    /// When the next write may be made.
    next: Instant,
}

// === impl Writer ===

impl Writer {
    /// A writer that is known by the name of its pod.
    #[must_use]
    pub fn new(client: Client, instance: impl Into<String>, pace: Pace) -> Self {
        Self {
            client,
            instance: instance.into(),
            pace,
            ledger: Ledger::new(pace),
            turns: Turns::default(),
            next: Instant::now(),
        }
    }

    /// Writes what `plan` gives, whenever something changed and until nothing is left. Never ends.
    ///
    /// `plan` is asked anew before each second's writes, so that nothing is written that was planned long ago.
    pub async fn run(mut self, changed: Arc<Notify>, mut plan: impl FnMut() -> Vec<Write>) {
        let mut again = Some(Instant::now());
        loop {
            tokio::select! {
                () = changed.notified() => {}
                () = until(again) => {}
            }
            sleep(self.pace.coalesce.mul_f64(1.0 + rand::random::<f64>())).await;
            let (due, next) = self.ledger.due(plan(), Instant::now());
            let now = usize::try_from(self.pace.per_second.max(1)).unwrap_or(usize::MAX);
            let is_nothing = due.is_empty();
            for write in self.turns.first(due, now) {
                self.turns.had(&write);
                if self.write(&write).await == Attempt::Overloaded {
                    break;
                }
            }
            // After a write, the plan says what of it still is to be done, and the ledger when.
            again = if is_nothing { next } else { Some(Instant::now()) };
        }
    }

    async fn write(&mut self, write: &Write) -> Attempt {
        sleep_until(self.next).await;
        self.next = Instant::now() + std::time::Duration::from_secs(1) / self.pace.per_second.max(1);
        let written = async {
            match write {
                Write::Policy(write) => self.policy(write).await,
                Write::Pod(write) => self.pod(write).await,
                Write::Node { name, tainted } => self.node(name, *tainted).await,
                Write::Notice(notice) => self.notice(notice).await,
            }
        };
        let attempt = match timeout(self.pace.timeout, written).await {
            Ok(Ok(())) => Attempt::Done,
            Ok(Err(error)) => {
                let attempt = classify(&error);
                if attempt != Attempt::Outdated {
                    tracing::warn!(%error, ?write, "the cluster cannot be written to; trying again");
                }
                attempt
            }
            Err(_) => {
                tracing::warn!(?write, "the API server does not answer a write; trying again");
                Attempt::Failed
            }
        };
        self.ledger
            .tried(write.target(), attempt, Instant::now(), rand::random());
        attempt
    }

    /// Applied, so that conditions of others stay, and for one version of the policy only.
    async fn policy(&self, write: &PolicyWrite) -> kube::Result<()> {
        let resource = match write.key.kind {
            PolicyKind::Authorization => crd::AuthorizationPolicy::api_resource(),
            PolicyKind::PeerAuthentication => crd::PeerAuthentication::api_resource(),
        };
        let name = &write.key.name;
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &name.namespace, &resource);
        let applied = json!({
            "apiVersion": resource.api_version, "kind": resource.kind,
            "metadata": {"name": name.name, "uid": write.uid, "resourceVersion": write.version},
            "status": write.status,
        });
        let params = PatchParams::apply(MANAGER).force();
        api.patch_status(&name.name, &params, &Patch::Apply(applied))
            .await
            .map(drop)
    }

    /// With the UID, so that a pod made anew under the name is left alone. Through the status, which takes annotations too:
    /// who may write that cannot change what a pod runs. Of its conditions only ours is named, so those of kubelet and others
    /// stay as they are; kubelet in turn keeps what is not its own.
    async fn pod(&self, write: &PodWrite) -> kube::Result<()> {
        let name = &write.name;
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &name.namespace);
        let mut patch = json!({"metadata": {"uid": write.uid, "annotations": write.annotations}});
        let condition = write.address.as_ref().map(|address| match address {
            AddressWrite::Settled => json!({"type": ADDRESS, "$patch": "delete"}),
            AddressWrite::Refused(condition) => json!(condition),
        });
        if let Some(condition) = condition {
            patch["status"] = json!({"conditions": [condition]});
        }
        let params = PatchParams {
            field_manager: Some(MANAGER.to_owned()),
            ..PatchParams::default()
        };
        api.patch_status(&name.name, &params, &Patch::Strategic(patch))
            .await
            .map(drop)
    }

    /// Taints have no owner each: the list as it is now is written back, for this version of the node only.
    async fn node(&self, name: &str, tainted: bool) -> kube::Result<()> {
        let api: Api<Node> = Api::all(self.client.clone());
        let node = api.get(name).await?;
        let mut taints = node.spec.and_then(|spec| spec.taints).unwrap_or_default();
        let before = taints.len();
        taints.retain(|taint| taint.key != NODE_TAINT);
        if tainted {
            taints.push(Taint {
                key: NODE_TAINT.to_owned(),
                effect: "NoSchedule".to_owned(),
                ..Taint::default()
            });
        }
        if taints.len() == before {
            return Ok(());
        }
        let version = node.metadata.resource_version;
        let patch = json!({"metadata": {"resourceVersion": version}, "spec": {"taints": taints}});
        let params = PatchParams {
            field_manager: Some(MANAGER.to_owned()),
            ..PatchParams::default()
        };
        api.patch(name, &params, &Patch::Merge(patch)).await.map(drop)
    }

    async fn notice(&self, notice: &Notice) -> kube::Result<()> {
        let api: Api<Event> = Api::namespaced(self.client.clone(), &notice.about.name.namespace);
        let params = PostParams {
            field_manager: Some(MANAGER.to_owned()),
            ..PostParams::default()
        };
        let event = notice.event(&self.instance, Timestamp::now());
        match api.create(&params, &event).await {
            // Told, by another replica or by an earlier try whose answer was lost.
            Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => Ok(()),
            created => created.map(drop),
        }
    }
}

async fn until(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

fn classify(error: &kube::Error) -> Attempt {
    match error {
        kube::Error::Api(status) => match status.code {
            404 | 409 => Attempt::Outdated,
            422 if names_another(status) => Attempt::Outdated,
            429 | 503 => Attempt::Overloaded,
            _ => Attempt::Failed,
        },
        _ => Attempt::Failed,
    }
}

/// Whether a patch was for an object that is no more: its UID cannot become that of the one made anew under the name.
fn names_another(status: &kube::core::Status) -> bool {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    causes.into_iter().any(|cause| cause.field == "metadata.uid")
}
