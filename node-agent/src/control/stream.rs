//! The stream of what is new.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use prost_types::{Struct, Value, value::Kind};
use rand::Rng as _;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, timeout, timeout_at},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use weir_proto::{
    ResourceType,
    envoy::{
        config::core::v3::Node,
        service::discovery::v3::{
            DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource,
            aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
        },
    },
    google::rpc,
};
use weir_tunnel::certs::Revoked;
use weir_types::TrustDomain;

use super::{ControlError, ControlPlane, State, decode, local::LocalPods, step::Step};
use crate::{
    agent::Agent,
    cni,
    config::SameNodeConfig,
    mesh::{Received, Update},
};

/// Largest response: the whole mesh comes as one, some 300 bytes a workload.
const MAX_RESPONSE: usize = 256 << 20;
/// Requests that wait to be sent: answers to three types of resources, and what they begin with.
const REQUESTS: usize = 16;
/// How long the control plane may take to take the stream.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);
/// What comes this shortly after one another is put in force together.
const QUIET: Duration = Duration::from_millis(5);
/// But what came first waits no longer than this.
const PATIENCE: Duration = Duration::from_millis(50);
/// Waits between attempts to connect: doubled from the first to the last.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(15));
/// A stream that lasted this long was good: the next attempt does not wait.
const LASTED: Duration = Duration::from_secs(30);
/// `google.rpc.Code.INVALID_ARGUMENT`.
const INVALID_ARGUMENT: i32 = 3;
/// Faults that are named of a response that is refused in part.
const NAMED_FAULTS: usize = 5;

/// Follows the control plane for ever: what it says is put in force.
pub async fn follow(
    agent: Arc<Agent>,
    control_plane: ControlPlane,
    state: Arc<State>,
    trust_domain: TrustDomain,
    mut same_node: watch::Receiver<SameNodeConfig>,
) {
    let received = Received::new(&agent.node.name, same_node.borrow_and_update().clone());
    let mut follower = Follower {
        sandboxes: agent.node.sandboxes.subscribe(),
        agent,
        state,
        trust_domain,
        received,
        kinds: control_plane.kinds(),
        local: control_plane.local_pods(),
        known: Default::default(),
        doubted: Default::default(),
        heard: [false; ResourceType::ALL.len()],
        step: Step::default(),
        update: Update::default(),
        synced: false,
    };
    let mut failures = 0_u32;
    loop {
        let started = Instant::now();
        let Err(error) = follower.stream(&control_plane, &mut same_node).await;
        failures = if started.elapsed() >= LASTED {
            0
        } else {
            failures + 1
        };
        if error.is_about_request() && !follower.heard.contains(&true) {
            follower.doubt();
        }
        follower.agent.node.metrics.control_plane_connected.set(0);
        if failures <= 1 {
            tracing::info!(%error, "the stream from the control plane ended; connecting again");
        } else {
            tracing::warn!(%error, failures, "no stream from the control plane; trying again");
        }
        follower.state.disconnected(error.to_string());
        follower.sleep(back_off(failures)).await;
    }
}

/// Tries whether the control plane serves this agent: by the least that it can be asked for.
///
/// # Errors
/// When it does not.
pub async fn rehearse(control_plane: &ControlPlane) -> Result<(), ControlError> {
    let (requests, outgoing) = mpsc::channel(1);
    let first = DeltaDiscoveryRequest {
        node: Some(node("")),
        type_url: control_plane.least().url().to_owned(),
        ..DeltaDiscoveryRequest::default()
    };
    // There is room for it.
    let _ = requests.try_send(first);
    let request = control_plane.request(ReceiverStream::new(outgoing)).await?;
    let mut client = AggregatedDiscoveryServiceClient::new(control_plane.channel());
    let answered = async {
        let mut responses = client.delta_aggregated_resources(request).await?.into_inner();
        responses.message().await?.ok_or(ControlError::Ended).map(drop)
    };
    timeout(OPEN_TIMEOUT, answered)
        .await
        .map_err(|_| ControlError::Timeout)?
}

/// At most the last wait, and a random part of half of it, so that many agents do not return at once.
fn back_off(failures: u32) -> Duration {
    let full = BACK_OFF.0.saturating_mul(1 << failures.min(10)).min(BACK_OFF.1);
    full.mul_f64(rand::rng().random_range(0.5..1.0))
}

struct Follower {
    agent: Arc<Agent>,
    state: Arc<State>,
    trust_domain: TrustDomain,
    received: Received,
    /// The types of resources that are asked for.
    kinds: &'static [ResourceType],
    /// What finds the pods of this node, if the control plane does not say which they are.
    local: Option<LocalPods>,
    /// Versions by name of what is known, by type: a new stream need not send it again.
    known: [HashMap<String, String>; ResourceType::ALL.len()],
    /// Names of what was known when versions were last given up, by type: what a stream's first response does not name of
    /// these is gone.
    doubted: [HashSet<String>; ResourceType::ALL.len()],
    /// Of which types this stream's first response has come.
    heard: [bool; ResourceType::ALL.len()],
    /// The sandboxes that the container runtime told of.
    sandboxes: watch::Receiver<cni::ByUid>,
    /// What this stream's responses say of the state that they are of.
    step: Step,
    /// What is not in force yet.
    update: Update,
    /// Whether all that there is was known once.
    synced: bool,
}

type Never = std::convert::Infallible;

// === impl Follower ===

impl Follower {
    /// One stream, until it ends.
    async fn stream(
        &mut self,
        control_plane: &ControlPlane,
        same_node: &mut watch::Receiver<SameNodeConfig>,
    ) -> Result<Never, ControlError> {
        let (requests, outgoing) = mpsc::channel(REQUESTS);
        self.heard = Default::default();
        self.step = Step::default();
        for (index, kind) in self.kinds.iter().copied().enumerate() {
            // Nothing subscribed: everything.
            let request = DeltaDiscoveryRequest {
                node: (index == 0).then(|| node(&self.agent.node.name)),
                type_url: kind.url().to_owned(),
                initial_resource_versions: self.known[kind as usize].clone().into_iter().collect(),
                ..DeltaDiscoveryRequest::default()
            };
            // There is room for the first ones.
            let _ = requests.try_send(request);
        }
        let request = control_plane.request(ReceiverStream::new(outgoing)).await?;
        let mut client = AggregatedDiscoveryServiceClient::new(control_plane.channel())
            .max_decoding_message_size(MAX_RESPONSE);
        let opened = timeout(OPEN_TIMEOUT, client.delta_aggregated_resources(request)).await;
        let mut responses = opened.map_err(|_| ControlError::Timeout)??.into_inner();
        loop {
            let response = tokio::select! {
                response = responses.message() => response?.ok_or(ControlError::Ended)?,
                changed = same_node.changed(), if self.synced => {
                    if changed.is_ok() {
                        self.received.set_same_node(same_node.borrow_and_update().clone());
                        self.put();
                    }
                    continue;
                }
                changed = self.sandboxes.changed(), if self.synced => {
                    if changed.is_ok() {
                        self.put();
                    }
                    continue;
                }
                () = LocalPods::next(&mut self.local), if self.synced => {
                    self.put();
                    continue;
                }
            };
            self.state.connected();
            self.agent.node.metrics.control_plane_connected.set(1);
            self.take_with_followers(response, &mut responses, &requests)
                .await?;
            self.put_if_whole();
        }
    }

    /// Waits. A sandbox that was made anew is put in force also meanwhile.
    async fn sleep(&mut self, wait: Duration) {
        let deadline = Instant::now() + wait;
        while let Ok(Ok(())) = timeout_at(deadline, self.sandboxes.changed()).await {
            if self.synced {
                self.put();
            }
        }
        tokio::time::sleep_until(deadline).await;
    }

    /// Takes a response, and those that come right behind it.
    async fn take_with_followers(
        &mut self,
        first: DeltaDiscoveryResponse,
        responses: &mut Streaming<DeltaDiscoveryResponse>,
        requests: &mpsc::Sender<DeltaDiscoveryRequest>,
    ) -> Result<(), ControlError> {
        let deadline = Instant::now() + PATIENCE;
        let mut next = Some(first);
        while let Some(response) = next {
            let answer = self.take(response);
            if requests.send(answer).await.is_err() {
                return Err(ControlError::Ended);
            }
            let quiet = (Instant::now() + QUIET).min(deadline);
            next = match timeout_at(quiet, responses.message()).await {
                Ok(response) => Some(response?.ok_or(ControlError::Ended)?),
                Err(_) => None,
            };
        }
        Ok(())
    }

    /// Takes a response in; gives the answer to it.
    fn take(&mut self, response: DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
        let mut faults: Vec<String> = Vec::new();
        match ResourceType::from_url(&response.type_url) {
            Some(kind) => {
                if !self.heard[kind as usize] {
                    self.believe(kind, &response);
                }
                self.heard[kind as usize] = true;
                self.step.take(kind, &response.system_version_info);
                for resource in &response.resources {
                    match self.take_resource(kind, resource) {
                        Ok(()) => {
                            let known = &mut self.known[kind as usize];
                            known.insert(resource.name.clone(), resource.version.clone());
                        }
                        Err(error) => faults.push(format!("{}: {error}", resource.name)),
                    }
                }
                for name in &response.removed_resources {
                    self.known[kind as usize].remove(name);
                    self.remove(kind, name);
                }
            }
            None => faults.push(format!("{} was not asked for", response.type_url)),
        }
        let error_detail = (!faults.is_empty()).then(|| {
            let more = faults.len().saturating_sub(NAMED_FAULTS);
            faults.truncate(NAMED_FAULTS);
            let mut message = faults.join("; ");
            if more > 0 {
                message.push_str(&format!("; and {more} more"));
            }
            tracing::warn!(problem = message, "resources of the control plane are not taken");
            rpc::Status {
                code: INVALID_ARGUMENT,
                message,
                ..rpc::Status::default()
            }
        });
        DeltaDiscoveryRequest {
            type_url: response.type_url,
            response_nonce: response.nonce,
            error_detail,
            ..DeltaDiscoveryRequest::default()
        }
    }

    /// Asks for everything from now on, without saying what is known: the list of that may be what the control plane does not
    /// take.
    fn doubt(&mut self) {
        for (known, doubted) in self.known.iter_mut().zip(&mut self.doubted) {
            doubted.extend(known.drain().map(|(name, _)| name));
        }
    }

    /// Takes a first response for all there is of what was doubted.
    fn believe(&mut self, kind: ResourceType, response: &DeltaDiscoveryResponse) {
        let mut gone = std::mem::take(&mut self.doubted[kind as usize]);
        for resource in &response.resources {
            gone.remove(&resource.name);
        }
        for name in gone {
            self.remove(kind, &name);
        }
    }

    fn take_resource(&mut self, kind: ResourceType, resource: &Resource) -> Result<(), decode::DecodeError> {
        let update = &mut self.update;
        match kind {
            ResourceType::Address => decode::address_resource(resource, &self.trust_domain, update),
            ResourceType::Authorization => decode::policy_resource(resource, update),
            ResourceType::Pod => decode::pod_resource(resource, update),
            // At once: it does not hang on what else is new.
            ResourceType::Revocations => {
                self.agent
                    .node
                    .certificates
                    .revoke(decode::revocations(resource)?);
                Ok(())
            }
        }
    }

    fn remove(&mut self, kind: ResourceType, name: &str) {
        let update = &mut self.update;
        match kind {
            // Which of the two it was its name does not say.
            ResourceType::Address => {
                update.workloads.push((name.to_owned(), None));
                update.services.push((name.to_owned(), None));
            }
            ResourceType::Authorization => update.policies.push((name.into(), None)),
            ResourceType::Pod => update.pods.push((name.to_owned(), None)),
            ResourceType::Revocations => self.agent.node.certificates.revoke(Revoked::default()),
        }
    }

    /// Puts in force what came, once the first of each type has: what is missing would be taken for gone. And only if policies
    /// and the workloads that name them are of one state: in between, one policy may be gone and the other not there yet.
    fn put_if_whole(&mut self) {
        if self.is_whole() {
            self.put();
        }
    }

    fn is_whole(&self) -> bool {
        self.kinds.iter().all(|kind| self.heard[*kind as usize]) && self.step.is_whole()
    }

    fn put(&mut self) {
        // Something of this node's own may have changed while something of the control plane's is missing: that waits.
        let mut update = if self.is_whole() {
            std::mem::take(&mut self.update)
        } else {
            Update::default()
        };
        if let Some(local) = &mut self.local {
            local.tell(&self.received, &mut update);
        }
        update.sandboxes = Some(cni::addresses(&self.sandboxes.borrow_and_update()));
        let (received, agent) = (&mut self.received, &self.agent);
        let result = tokio::task::block_in_place(|| {
            let previous = agent.node.mesh.load_full();
            let (mesh, change) = received.apply(update, &previous);
            agent.put(mesh, &change, &previous)
        });
        if let Err(error) = result {
            self.received.fall_behind();
            tracing::error!(%error, "what the control plane says cannot be put in force");
            self.agent.fault(
                "control plane",
                Some(format!("cannot be put in force: {error:#}")),
            );
            return;
        }
        self.agent.fault("control plane", None);
        let (workloads, services, policies) = self.received.counts();
        self.state.change(|status| {
            status.updated = Some(Timestamp::now());
            (status.workloads, status.services, status.policies) = (workloads, services, policies);
        });
        if !self.synced {
            self.synced = true;
            tracing::info!(workloads, services, policies, "in step with the control plane");
            self.agent.start();
        }
    }
}

/// Who asks, in the form that istiod knows from node proxies. Our own control plane goes by the token alone.
fn node(name: &str) -> Node {
    let environment = |key: &str| std::env::var(key).unwrap_or_default();
    let (pod, namespace, address) = (
        environment("POD_NAME"),
        environment("POD_NAMESPACE"),
        environment("POD_IP"),
    );
    let text = |text: &str| Value {
        kind: Some(Kind::StringValue(text.to_owned())),
    };
    let fields = [
        ("NAME", text(&pod)),
        ("NAMESPACE", text(&namespace)),
        ("INSTANCE_IPS", text(&address)),
        ("NODE_NAME", text(name)),
    ];
    Node {
        id: format!("ztunnel~{address}~{pod}.{namespace}~{namespace}.svc.cluster.local"),
        metadata: Some(Struct {
            fields: fields
                .into_iter()
                .map(|(key, value)| (key.to_owned(), value))
                .collect(),
        }),
        ..Node::default()
    }
}
