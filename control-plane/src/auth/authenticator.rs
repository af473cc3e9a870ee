//! The check of a caller's token: the shell.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::{Api, Client, api::PostParams};
use prometheus::{IntCounter, IntCounterVec, Opts, Registry};
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep, timeout},
};
use tonic::metadata::MetadataMap;
use zeroize::Zeroize as _;

use super::{
    cache::Reviewed,
    claims::{AgentAccount, BoundPod, Holder},
    lookup::{AgentPods, LookupError},
    reason::Reason,
    refusals::RefusalLog,
    throttle::{Crowded, Source, Throttle},
    token::Token,
};
use crate::ads::{Agent, Authenticate, Refusal};

/// What callers that nobody knows yet may cost.
#[derive(Debug, Clone)]
pub struct AuthLimits {
    /// How long the API server may take, for all that it is asked about a caller.
    pub timeout: Duration,
    /// How long a token counts that the API server believed: an agent that starts asks for many certificates at once.
    /// A token that is withdrawn counts as long; the pod is looked up each time.
    pub remember: Duration,
    /// Tokens that are remembered: one a node, and one for each that is replaced meanwhile.
    pub remembered: usize,
    /// Callers that the API server is asked about at once: strangers, and as many that were believed before. It has
    /// 200 places for requests that change something, and others need them too.
    pub reviews: usize,
    /// Sources whose failures are remembered.
    pub sources: usize,
}

/// Who a caller is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// An agent.
    Agent(Agent),
    /// A node proxy of other make, which is let in as agents are.
    OtherNodeProxy(Agent),
    /// A relay of flows, in this pod.
    Relay(String),
}

/// Decides who a caller is, where that may be another than a node's proxy.
#[tonic::async_trait]
pub trait Callers: Send + Sync + 'static {
    /// Who sent these metadata from this address.
    async fn caller(&self, metadata: &MetadataMap, peer: Option<SocketAddr>) -> Result<Caller, Refusal>;
}

/// Knows agents and relays by the tokens of their pods.
pub struct TokenAuthenticator {
    reviews: Api<TokenReview>,
    account: AgentAccount,
    pods: Arc<dyn AgentPods>,
    limits: AuthLimits,
    places: Semaphore,
    /// Places of those whose token was believed before, so that a crowd of strangers keeps no agent out.
    known_places: Semaphore,
    reviewed: Mutex<Reviewed>,
    throttle: Mutex<Throttle>,
    log: RefusalLog,
    metrics: Metrics,
    started: Instant,
}

struct Metrics {
    reviews: IntCounter,
    refused: IntCounterVec,
}

/// What the check of a caller came to, if it is no agent.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error(transparent)]
    Refused(#[from] Reason),
    #[error("too many callers of its address wait for their check")]
    Crowded,
    #[error("the API server did not answer in time")]
    Slow,
    #[error("the API server cannot be asked: {0}")]
    Review(Box<kube::Error>),
    #[error("its pod cannot be looked up: {0}")]
    Lookup(#[from] LookupError),
}

/// A caller that waits out its delay; gives its place back, also if its request ends meanwhile.
struct Waiting<'a> {
    throttle: &'a Mutex<Throttle>,
    source: Source,
}

// === impl AuthLimits ===

impl Default for AuthLimits {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(5),
            remember: Duration::from_secs(10),
            remembered: 4_096,
            reviews: 32,
            sources: 4_096,
        }
    }
}

// === impl TokenAuthenticator ===

impl TokenAuthenticator {
    /// Knows agents of this account. The client needs `create` on TokenReviews.
    ///
    /// # Errors
    /// If the registry has metrics of these names already.
    pub fn new(
        client: Client,
        account: AgentAccount,
        pods: Arc<dyn AgentPods>,
        limits: AuthLimits,
        registry: &Registry,
    ) -> Result<Self, prometheus::Error> {
        Ok(Self {
            reviews: Api::all(client),
            account,
            pods,
            places: Semaphore::new(limits.reviews),
            known_places: Semaphore::new(limits.reviews),
            reviewed: Mutex::new(Reviewed::new(limits.remembered)),
            throttle: Mutex::new(Throttle::new(limits.sources)),
            log: RefusalLog::default(),
            metrics: Metrics::new(registry)?,
            started: Instant::now(),
            limits,
        })
    }

    async fn check(&self, metadata: &MetadataMap, source: Source) -> Result<Caller, Failed> {
        let token = Token::of(metadata)?;
        let digest = token.digest();
        // Who does not guess does not wait for others who have the same address.
        let known = lock(&self.reviewed).known(&digest, self.started.elapsed());
        if !known {
            self.slow_down(source).await?;
        }
        let asked = async {
            // Never closed.
            let places = if known { &self.known_places } else { &self.places };
            let _place = places.acquire().await;
            // Others may have come with the same token meanwhile.
            let fresh = lock(&self.reviewed).fresh(&digest, self.started.elapsed());
            let bound = match fresh {
                Some(bound) => bound,
                None => self.review(&token, digest).await?,
            };
            self.holder(&bound).await
        };
        timeout(self.limits.timeout, asked)
            .await
            .map_err(|_| Failed::Slow)?
    }

    async fn slow_down(&self, source: Source) -> Result<(), Failed> {
        let delay = lock(&self.throttle).enter(source, self.started.elapsed());
        let delay = delay.map_err(|Crowded| Failed::Crowded)?;
        if !delay.is_zero() {
            let _waiting = Waiting {
                throttle: &self.throttle,
                source,
            };
            sleep(delay).await;
        }
        Ok(())
    }

    /// Asks the API server about a token.
    async fn review(&self, token: &Token, digest: [u8; 32]) -> Result<BoundPod, Failed> {
        self.metrics.reviews.inc();
        let mut review = TokenReview {
            spec: TokenReviewSpec {
                token: Some(token.as_str().to_owned()),
                audiences: Some(self.account.audiences.clone()),
            },
            ..TokenReview::default()
        };
        let answer = self.reviews.create(&PostParams::default(), &review).await;
        review.spec.token.zeroize();
        let mut answer = answer.map_err(|error| Failed::Review(Box::new(error)))?;
        answer.spec.token.zeroize();
        let status = answer.status.unwrap_or_else(TokenReviewStatus::default);
        let bound = self.account.bound_pod(&status);
        let bound = bound.inspect_err(|_| lock(&self.reviewed).forget(&digest))?;
        // Without an expiry that can be read, it is not remembered: it might count for longer than it should.
        if let Some(expiry) = token.expiry() {
            let left = expiry.duration_since(Timestamp::now());
            let left = Duration::try_from(left).unwrap_or_default();
            let now = self.started.elapsed();
            let expires = now.saturating_add(left);
            lock(&self.reviewed).put(digest, bound.clone(), now, self.limits.remember, expires);
        }
        Ok(bound)
    }

    async fn holder(&self, bound: &BoundPod) -> Result<Caller, Failed> {
        let no_pod = || Reason::NoPod(bound.name.clone());
        let index = match bound.holder {
            Holder::Node(index) => index,
            Holder::Relay => {
                let pod = self.pods.pod(&self.account.namespace, &bound.name).await?;
                let pod = pod.ok_or_else(no_pod)?;
                pod.check(bound, &self.account.relay_service_account)?;
                return Ok(Caller::Relay(bound.name.clone()));
            }
        };
        let account = self.account.expected().nth(index).ok_or_else(no_pod)?;
        let pod = self.pods.pod(account.namespace, &bound.name).await?;
        let pod = pod.ok_or_else(no_pod)?;
        let daemon_set = self
            .pods
            .daemon_set_uid(account.namespace, account.daemon_set)
            .await?;
        let node = account.node_of(bound, &pod, daemon_set.as_deref())?.into();
        Ok(match index {
            0 => Caller::Agent(Agent { node }),
            _ => Caller::OtherNodeProxy(Agent { node }),
        })
    }

    /// Notes that a caller was not let in.
    fn refuse(&self, failed: Failed, peer: Option<SocketAddr>, source: Source) -> Refusal {
        self.metrics.refused.with_label_values(&[failed.label()]).inc();
        self.log.warn("a caller", peer, &failed);
        let text = failed.to_string();
        match failed {
            Failed::Refused(_) => {
                lock(&self.throttle).failed(source, self.started.elapsed());
                Refusal::Unauthenticated(text)
            }
            // Nothing is known of the caller then, so it is not held against it.
            _ => Refusal::Unavailable(text),
        }
    }
}

#[tonic::async_trait]
impl Authenticate for TokenAuthenticator {
    async fn authenticate(&self, metadata: &MetadataMap, peer: Option<SocketAddr>) -> Result<Agent, Refusal> {
        let source = Source::new(peer.map(|peer| peer.ip()));
        match self.check(metadata, source).await {
            Ok(Caller::Agent(agent) | Caller::OtherNodeProxy(agent)) => Ok(agent),
            Ok(Caller::Relay(pod)) => Err(self.refuse(Reason::User(pod).into(), peer, source)),
            Err(failed) => Err(self.refuse(failed, peer, source)),
        }
    }
}

#[tonic::async_trait]
impl Callers for TokenAuthenticator {
    async fn caller(&self, metadata: &MetadataMap, peer: Option<SocketAddr>) -> Result<Caller, Refusal> {
        let source = Source::new(peer.map(|peer| peer.ip()));
        let checked = self.check(metadata, source).await;
        checked.map_err(|failed| self.refuse(failed, peer, source))
    }
}

// === impl Failed ===

impl Failed {
    fn label(&self) -> &'static str {
        match self {
            Self::Refused(reason) => reason.label(),
            Self::Crowded => "crowded",
            Self::Slow => "slow",
            Self::Review(_) | Self::Lookup(_) => "unavailable",
        }
    }
}

// === impl Metrics ===

impl Metrics {
    fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let reviews = IntCounter::new(
            "weir_auth_reviews_total",
            "Tokens that the API server was asked about.",
        )?;
        let refused = Opts::new("weir_auth_refused_total", "Callers that were not let in.");
        let refused = IntCounterVec::new(refused, &["reason"])?;
        // From the start: that one rises from nothing is seen only if nothing was seen before.
        for reason in Reason::LABELS
            .into_iter()
            .chain(["crowded", "slow", "unavailable"])
        {
            let _ = refused.with_label_values(&[reason]);
        }
        registry.register(Box::new(reviews.clone()))?;
        registry.register(Box::new(refused.clone()))?;
        Ok(Self { reviews, refused })
    }
}

// === impl Waiting ===

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        lock(self.throttle).waited(self.source);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
