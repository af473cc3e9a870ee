//! `istio.v1.auth.IstioCertificateService`: who gets which certificate.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use prometheus::Registry;
use prost_types::value::Kind;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tonic::{Code, Request, Response, Status};
use weir_proto::istio::v1::auth::{
    IstioCertificateRequest, IstioCertificateResponse,
    istio_certificate_service_server::{IstioCertificateService, IstioCertificateServiceServer},
};
use weir_types::{Identity, TrustDomain};

use super::{
    authority::LONGEST_LIFETIME,
    csr::{CsrError, VerifiedRequest},
    in_force::InForce,
    metrics::Metrics,
    rate::Rates,
};
use crate::{
    ads::{Authenticate, Peer, Refusal},
    auth::RefusalLog,
    compile::Unentitled,
};

/// Why requests are refused.
const REFUSED: [&str; 12] = [
    "unauthenticated",
    "unavailable",
    "rate",
    "no_identity",
    "bad_identity",
    "trust_domain",
    "csr",
    "revoked",
    "not_entitled",
    "no_service_account",
    "no_authority",
    "authority",
];

/// The metadata's field that names the workload's identity.
const IMPERSONATED: &str = "ImpersonatedIdentity";
/// Most bytes of a message: a request for the largest key and the longest identity takes 6 KiB.
const MOST_MESSAGE: usize = 32 * 1024;
/// How often it is asked again whether a pod is there that the watch may not have told of yet.
const ASK_AGAIN: Duration = Duration::from_millis(50);

/// Knows which identities are a node's.
pub trait Entitlements: Send + Sync + 'static {
    /// Whether a pod of this identity is on the node now: alive, enrolled or to be, and not in the host's network; and its
    /// service account is there.
    ///
    /// # Errors
    /// What there is not.
    fn entitled(&self, node: &str, identity: &Identity) -> Result<(), Unentitled>;
}

/// What the service grants.
#[derive(Debug, Clone)]
pub struct CaLimits {
    /// The longest life of a certificate; [`LONGEST_LIFETIME`] at most.
    pub lifetime: Duration,
    /// How long a pod is waited for that was scheduled a moment ago: the watch lags by some hundreds of milliseconds.
    pub pod_wait: Duration,
    /// How long the check of a caller's credentials may take.
    pub authenticate_timeout: Duration,
    /// Certificates that a node may ask for in a second, in the long run.
    pub per_second: u32,
    /// Certificates that a node may ask for at once. One for each service account of its pods when its agent starts:
    /// Kubernetes has 110 pods to a node by default, clouds up to 250.
    pub burst: u32,
    /// Most nodes that ask at about the same time. Kubernetes is made for 5,000.
    pub nodes: usize,
}

/// The certificate service.
#[derive(Clone)]
pub struct CertificateService(Arc<Shared>);

struct Shared {
    trust_domain: TrustDomain,
    authenticate: Arc<dyn Authenticate>,
    entitlements: Arc<dyn Entitlements>,
    in_force: watch::Receiver<Option<Arc<InForce>>>,
    limits: CaLimits,
    metrics: Metrics,
    rates: Mutex<Rates>,
    log: RefusalLog,
    started: Instant,
}

/// Why a request is refused. For our log and metrics; the client is told little of it.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("{0}")]
    Caller(Refusal),
    #[error("the check of its credentials took too long")]
    Slow,
    #[error("its node {0} asks for too many certificates")]
    Rate(Arc<str>),
    #[error("it names no identity")]
    NoIdentity,
    #[error("what it names is no identity of a workload")]
    BadIdentity,
    #[error("{0} is not of our trust domain")]
    TrustDomain(Identity),
    #[error("the request for {identity} from node {node}: {why}")]
    Csr {
        identity: Identity,
        node: Arc<str>,
        why: CsrError,
    },
    #[error("{0} is revoked")]
    Revoked(Identity),
    #[error("{identity} for node {node}: {why}")]
    NotEntitled {
        identity: Identity,
        node: Arc<str>,
        why: Unentitled,
    },
    #[error("no authority is in force")]
    NoAuthority,
    #[error("the authority cannot sign: {0}")]
    Authority(#[from] super::AuthorityError),
}

// === impl CaLimits ===

impl Default for CaLimits {
    fn default() -> Self {
        Self {
            lifetime: LONGEST_LIFETIME,
            pod_wait: Duration::from_secs(2),
            authenticate_timeout: Duration::from_secs(10),
            per_second: 10,
            burst: 500,
            nodes: 10_000,
        }
    }
}

// === impl CertificateService ===

impl CertificateService {
    /// Issues from what is in force to agents that `authenticate` knows, what `entitlements` grant their nodes.
    ///
    /// # Errors
    /// If the registry has metrics of these names already.
    pub fn new(
        trust_domain: TrustDomain,
        authenticate: Arc<dyn Authenticate>,
        entitlements: Arc<dyn Entitlements>,
        in_force: watch::Receiver<Option<Arc<InForce>>>,
        limits: CaLimits,
        registry: &Registry,
    ) -> Result<Self, prometheus::Error> {
        Ok(Self(Arc::new(Shared {
            trust_domain,
            authenticate,
            entitlements,
            in_force,
            metrics: Metrics::new("workloads", &REFUSED, registry)?,
            rates: Mutex::new(Rates::new(limits.per_second, limits.burst, limits.nodes)),
            log: RefusalLog::default(),
            started: Instant::now(),
            limits,
        })))
    }

    /// The service, for a tonic server.
    #[must_use]
    pub fn service(&self) -> IstioCertificateServiceServer<Self> {
        IstioCertificateServiceServer::new(self.clone()).max_decoding_message_size(MOST_MESSAGE)
    }
}

#[tonic::async_trait]
impl IstioCertificateService for CertificateService {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let peer = request.extensions().get::<Peer>();
        let peer = peer.map_or_else(|| request.remote_addr(), |peer| peer.address);
        match self.0.create(&request, peer).await {
            Ok(cert_chain) => {
                self.0.metrics.issued.inc();
                Ok(Response::new(IstioCertificateResponse { cert_chain }))
            }
            Err(refused) => {
                self.0.metrics.refused(refused.label());
                // A caller that is not known is in the log of whoever checked it.
                if !matches!(refused, Refused::Caller(_)) {
                    self.0.log.warn("a certificate", peer, &refused);
                }
                Err(refused.status())
            }
        }
    }
}

// === impl Shared ===

impl Shared {
    async fn create(
        &self,
        request: &Request<IstioCertificateRequest>,
        peer: Option<SocketAddr>,
    ) -> Result<Vec<String>, Refused> {
        let check = self.authenticate.authenticate(request.metadata(), peer);
        let agent = timeout(self.limits.authenticate_timeout, check)
            .await
            .map_err(|_| Refused::Slow)?;
        let node = agent.map_err(Refused::Caller)?.node;
        let message = request.get_ref();
        if !self.rate(&node) {
            return Err(Refused::Rate(node));
        }
        let identity = asked_for(message)?;
        if *identity.trust_domain() != self.trust_domain {
            return Err(Refused::TrustDomain(identity));
        }
        // Before the wait for the pod, so that nobody waits for what cannot be granted.
        let csr = VerifiedRequest::parse(&message.csr, &identity).map_err(|why| Refused::Csr {
            identity: identity.clone(),
            node: node.clone(),
            why,
        })?;
        self.entitled(&node, &identity).await?;
        // Only now, since a revocation or a rotation may have come in meanwhile.
        let in_force = self.in_force.borrow().clone().ok_or(Refused::NoAuthority)?;
        if in_force.revoked().names(&identity) {
            return Err(Refused::Revoked(identity));
        }
        let certified = in_force.issue(&csr, &identity, self.lifetime(message), Timestamp::now())?;
        // The serial number is what a revocation needs.
        tracing::info!(%identity, %node, serial = certified.serial, until = %certified.not_after, "a certificate is issued");
        Ok(in_force.answer(&certified))
    }

    fn rate(&self, node: &Arc<str>) -> bool {
        let mut rates = self.rates.lock().unwrap_or_else(PoisonError::into_inner);
        rates.allow(node, self.started.elapsed())
    }

    async fn entitled(&self, node: &Arc<str>, identity: &Identity) -> Result<(), Refused> {
        let deadline = Instant::now() + self.limits.pod_wait;
        while let Err(why) = self.entitlements.entitled(node, identity) {
            if Instant::now() >= deadline {
                return Err(Refused::NotEntitled {
                    identity: identity.clone(),
                    node: node.clone(),
                    why,
                });
            }
            sleep(ASK_AGAIN).await;
        }
        Ok(())
    }

    /// What is wished for, up to the most; the most where nothing is.
    fn lifetime(&self, message: &IstioCertificateRequest) -> Duration {
        let wish = u64::try_from(message.validity_duration)
            .ok()
            .filter(|seconds| *seconds > 0);
        wish.map_or(self.limits.lifetime, |seconds| {
            Duration::from_secs(seconds).min(self.limits.lifetime)
        })
    }
}

fn asked_for(message: &IstioCertificateRequest) -> Result<Identity, Refused> {
    let fields = message.metadata.as_ref().map(|metadata| &metadata.fields);
    let value = fields
        .and_then(|fields| fields.get(IMPERSONATED))
        .and_then(|value| value.kind.as_ref());
    match value {
        Some(Kind::StringValue(text)) if !text.is_empty() => text.parse().map_err(|_| Refused::BadIdentity),
        Some(Kind::StringValue(_)) | None => Err(Refused::NoIdentity),
        Some(_) => Err(Refused::BadIdentity),
    }
}

// === impl Refused ===

impl Refused {
    /// The metric's label.
    fn label(&self) -> &'static str {
        match self {
            Self::Caller(Refusal::Unauthenticated(_)) => "unauthenticated",
            Self::Caller(Refusal::Unavailable(_)) | Self::Slow => "unavailable",
            Self::Rate(_) => "rate",
            Self::NoIdentity => "no_identity",
            Self::BadIdentity => "bad_identity",
            Self::TrustDomain(_) => "trust_domain",
            Self::Csr { .. } => "csr",
            Self::Revoked(_) => "revoked",
            Self::NotEntitled {
                why: Unentitled::NoPod,
                ..
            } => "not_entitled",
            Self::NotEntitled {
                why: Unentitled::NoServiceAccount,
                ..
            } => "no_service_account",
            Self::NoAuthority => "no_authority",
            Self::Authority(_) => "authority",
        }
    }

    /// What the client is told: whether trying again helps, and not what exists on other nodes.
    fn status(&self) -> Status {
        let (code, text) = match self {
            Self::Caller(Refusal::Unauthenticated(_)) => {
                (Code::Unauthenticated, "the credentials are not those of an agent")
            }
            Self::Caller(Refusal::Unavailable(_)) | Self::Slow => {
                (Code::Unavailable, "credentials cannot be checked now")
            }
            Self::Rate(_) => (Code::ResourceExhausted, "the node asks for too many certificates"),
            Self::Csr { .. } => (Code::InvalidArgument, "the certificate request is not acceptable"),
            Self::NoIdentity
            | Self::BadIdentity
            | Self::TrustDomain(_)
            | Self::Revoked(_)
            | Self::NotEntitled { .. } => (Code::PermissionDenied, "the identity is not one of this node's"),
            Self::NoAuthority | Self::Authority(_) => {
                (Code::Unavailable, "no certificates can be issued now")
            }
        };
        Status::new(code, text)
    }
}
