//! `weir.flows.v1.FlowCertificates`: who gets which certificate.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use prometheus::Registry;
use tokio::time::{Instant, timeout};
use tonic::{Code, Request, Response, Status};
use weir_proto::weir::flows::v1::{
    CreateRequest, CreateResponse, Usage as Asked,
    flow_certificates_server::{FlowCertificates, FlowCertificatesServer},
};
use weir_types::hubble::{self, NameError};

use super::Authority;
use crate::{
    ads::{Peer, Refusal},
    auth::{Caller, Callers, RefusalLog},
    ca::{AuthorityError, CsrError, LONGEST_LIFETIME, Metrics, Usage, VerifiedRequest, pem, rate::Rates},
};

/// Most bytes of a message: a request for the largest key takes 4 KiB.
const MOST_MESSAGE: usize = 16 * 1024;
/// What all relays together count as where certificates are counted. No node has a name like that.
const RELAYS: &str = "(relays)";
/// Why requests are refused.
const REFUSED: [&str; 9] = [
    "unauthenticated",
    "unavailable",
    "rate",
    "not_agent",
    "usage",
    "name",
    "csr",
    "no_authority",
    "authority",
];

/// What the service grants.
#[derive(Debug, Clone)]
pub struct FlowLimits {
    /// How long the check of a caller's credentials may take.
    pub authenticate_timeout: Duration,
    /// How long the authority is waited for: at first use it is made, which takes three requests to the API server.
    pub authority_wait: Duration,
    /// Seconds in which a node may have one certificate, in the long run. It needs one in twelve hours.
    pub per_seconds: u32,
    /// Certificates that a node may ask for at once: an agent that restarts asks for one.
    pub burst: u32,
    /// Most nodes that ask at about the same time. Kubernetes is made for 5,000.
    pub nodes: usize,
}

/// The service.
#[derive(Clone)]
pub struct FlowService(Arc<Shared>);

struct Shared {
    callers: Arc<dyn Callers>,
    authority: Authority,
    limits: FlowLimits,
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
    #[error("{0} asks for too many certificates")]
    Rate(Arc<str>),
    #[error("the node proxy of {0} is no agent")]
    NotAgent(Arc<str>),
    #[error("{0} may not have a certificate for that use")]
    Usage(Arc<str>),
    #[error("the agent of {node}: {why}")]
    Name { node: Arc<str>, why: NameError },
    #[error("the request of {who}: {why}")]
    Csr { who: Arc<str>, why: CsrError },
    #[error("no authority is in force")]
    NoAuthority,
    #[error("the authority cannot sign: {0}")]
    Authority(#[from] AuthorityError),
}

// === impl FlowLimits ===

impl Default for FlowLimits {
    fn default() -> Self {
        Self {
            authenticate_timeout: Duration::from_secs(10),
            authority_wait: Duration::from_secs(5),
            per_seconds: 1,
            burst: 20,
            nodes: 10_000,
        }
    }
}

// === impl FlowService ===

impl FlowService {
    /// Issues to agents and relays that `callers` knows.
    ///
    /// # Errors
    /// If the registry has metrics of these names already.
    pub fn new(
        callers: Arc<dyn Callers>,
        authority: Authority,
        limits: FlowLimits,
        registry: &Registry,
    ) -> Result<Self, prometheus::Error> {
        Ok(Self(Arc::new(Shared {
            callers,
            authority,
            metrics: Metrics::new("flows", &REFUSED, registry)?,
            rates: Mutex::new(Rates::new(limits.per_seconds, limits.burst, limits.nodes)),
            log: RefusalLog::default(),
            started: Instant::now(),
            limits,
        })))
    }

    /// The service, for a tonic server.
    #[must_use]
    pub fn service(&self) -> FlowCertificatesServer<Self> {
        FlowCertificatesServer::new(self.clone()).max_decoding_message_size(MOST_MESSAGE)
    }
}

#[tonic::async_trait]
impl FlowCertificates for FlowService {
    async fn create(&self, request: Request<CreateRequest>) -> Result<Response<CreateResponse>, Status> {
        let peer = request.extensions().get::<Peer>();
        let peer = peer.map_or_else(|| request.remote_addr(), |peer| peer.address);
        match self.0.create(&request, peer).await {
            Ok(answer) => {
                self.0.metrics.issued.inc();
                Ok(Response::new(answer))
            }
            Err(refused) => {
                self.0.metrics.refused(refused.label());
                // A caller that is not known is in the log of whoever checked it.
                if !matches!(refused, Refused::Caller(_)) {
                    self.0.log.warn("a certificate for flows", peer, &refused);
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
        request: &Request<CreateRequest>,
        peer: Option<SocketAddr>,
    ) -> Result<CreateResponse, Refused> {
        let check = self.callers.caller(request.metadata(), peer);
        let caller = timeout(self.limits.authenticate_timeout, check)
            .await
            .map_err(|_| Refused::Slow)?
            .map_err(Refused::Caller)?;
        let who = match &caller {
            Caller::Agent(agent) => agent.node.clone(),
            Caller::OtherNodeProxy(proxy) => return Err(Refused::NotAgent(proxy.node.clone())),
            Caller::Relay(_) => RELAYS.into(),
        };
        if !self.rate(&who) {
            return Err(Refused::Rate(who));
        }
        let message = request.get_ref();
        let (name, usage) = granted(&caller, message.usage(), &who)?;
        let csr = VerifiedRequest::parse_host(&message.csr, &name);
        let csr = csr.map_err(|why| Refused::Csr {
            who: who.clone(),
            why,
        })?;
        let in_force = timeout(self.limits.authority_wait, self.authority.wait()).await;
        let in_force = in_force.ok().flatten().ok_or(Refused::NoAuthority)?;
        let lifetime = match message.lifetime_seconds {
            0 => LONGEST_LIFETIME,
            wish => Duration::from_secs(wish).min(LONGEST_LIFETIME),
        };
        let authority = in_force.authority();
        let certified = authority.issue_host(csr.public_key(), &name, usage, lifetime, Timestamp::now())?;
        tracing::info!(name, ?usage, %who, serial = certified.serial, until = %certified.not_after, "a certificate for flows is issued");
        let chain = std::iter::once(&certified.leaf).chain(&certified.intermediates);
        Ok(CreateResponse {
            chain: chain.map(pem::certificate).collect(),
            roots: in_force.roots_pem().to_owned(),
        })
    }

    fn rate(&self, who: &Arc<str>) -> bool {
        let mut rates = self.rates.lock().unwrap_or_else(PoisonError::into_inner);
        rates.allow(who, self.started.elapsed())
    }
}

/// The name that a caller gets, if it may be used as it is asked for.
fn granted(caller: &Caller, asked: Asked, who: &Arc<str>) -> Result<(String, Usage), Refused> {
    match (caller, asked) {
        (Caller::Agent(agent), Asked::Server) => {
            let name = hubble::agent(&agent.node);
            let node = agent.node.clone();
            Ok((name.map_err(|why| Refused::Name { node, why })?, Usage::Server))
        }
        (Caller::Relay(_), Asked::Server) => Ok((hubble::RELAY.to_owned(), Usage::Server)),
        (Caller::Relay(_), Asked::Client) => Ok((hubble::RELAY.to_owned(), Usage::Client)),
        _ => Err(Refused::Usage(who.clone())),
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
            Self::NotAgent(_) => "not_agent",
            Self::Usage(_) => "usage",
            Self::Name { .. } => "name",
            Self::Csr { .. } => "csr",
            Self::NoAuthority => "no_authority",
            Self::Authority(_) => "authority",
        }
    }

    /// What the client is told: whether trying again helps.
    fn status(&self) -> Status {
        let (code, text) = match self {
            Self::Caller(Refusal::Unauthenticated(_)) => (
                Code::Unauthenticated,
                "the credentials are not those of an agent or a relay",
            ),
            Self::Caller(Refusal::Unavailable(_)) | Self::Slow => {
                (Code::Unavailable, "credentials cannot be checked now")
            }
            Self::Rate(_) => (Code::ResourceExhausted, "too many certificates are asked for"),
            Self::NotAgent(_) | Self::Usage(_) => (
                Code::PermissionDenied,
                "there is no such certificate for this caller",
            ),
            // It is the caller's own.
            Self::Name { why, .. } => return Status::failed_precondition(why.to_string()),
            Self::Csr { .. } => (Code::InvalidArgument, "the certificate request is not acceptable"),
            Self::NoAuthority | Self::Authority(_) => {
                (Code::Unavailable, "no certificates can be issued now")
            }
        };
        Status::new(code, text)
    }
}
