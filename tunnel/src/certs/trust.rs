//! Whom to believe: the roots in force, and what a peer's certificate must be.
//!
//! SPIFFE X.509-SVID: a chain to a root with the right extended key usage, and exactly one URI name.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use jiff::Timestamp;
use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm, TrustAnchor, UnixTime};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use webpki::{EndEntityCert, KeyUsage};
use weir_types::{Identity, Reason, TrustDomain, api::RootStatus};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::revoked::Revoked;
use crate::ca::hex;

/// Why a peer's certificate is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// Sent none.
    #[error("no certificate")]
    Missing,
    /// Cannot be parsed, or breaks a rule of RFC 5280.
    #[error("the certificate is malformed")]
    Malformed,
    /// No chain to a trusted root.
    #[error("the certificate does not chain to a trusted root")]
    Untrusted,
    /// Expired or not valid yet, it or one of its issuers.
    #[error("the certificate has expired or is not valid yet")]
    Expired,
    /// The extended key usage lacks what is needed.
    #[error("the certificate is not for this use (extended key usage)")]
    Usage,
    /// Not exactly one URI among its names.
    #[error("the certificate names not exactly one URI")]
    Names,
    /// The URI is not the identity of a workload.
    #[error(
        "the certificate's URI is not of the form spiffe://<trust domain>/ns/<namespace>/sa/<service account>"
    )]
    NotSpiffe,
    /// Another trust domain.
    #[error("the certificate is of another trust domain")]
    TrustDomain,
    /// Another identity than one of those expected.
    #[error("the certificate names another identity than expected")]
    Identity,
    /// It, or the identity that it names, is revoked.
    #[error("the certificate is revoked")]
    Revoked,
}

/// What a peer's certificate is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    /// The peer is a client.
    Client,
    /// The peer is a server.
    Server,
}

/// A peer's certificate after it was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerCertificate {
    /// The identity that it names.
    pub identity: Identity,
    /// When the first certificate of its chain expires, its root's included.
    pub not_after: SystemTime,
    /// When a connection to it gets no new streams any more: they would end with the certificate.
    pub retire_at: SystemTime,
}

/// The last part of a certificate's lifetime in which it gets no new streams, as a divisor: a quarter. The peer has
/// renewed it at half, and a stream that is opened before has this long.
const RETIREMENT: u32 = 4;

/// The roots in force, and what is revoked.
#[derive(Debug)]
pub struct TrustBundle {
    roots: Arc<[Root]>,
    revoked: Arc<Revoked>,
}

#[derive(Debug)]
struct Root {
    der: CertificateDer<'static>,
    anchor: TrustAnchor<'static>,
    not_before: i64,
    not_after: i64,
    subject: String,
}

/// What peers must satisfy: the roots, which can be replaced while connections are open, and the trust domains.
#[derive(Debug)]
pub struct Trust {
    bundle: watch::Sender<Arc<TrustBundle>>,
    domains: Vec<TrustDomain>,
    algorithms: &'static [&'static dyn SignatureVerificationAlgorithm],
}

// === impl PeerError ===

impl PeerError {
    /// The reason that flows and metrics show.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Missing => Reason::NoCertificate,
            Self::Malformed | Self::Usage | Self::Names | Self::NotSpiffe => Reason::BadCertificate,
            Self::Untrusted => Reason::UntrustedRoot,
            Self::Expired => Reason::CertificateExpired,
            Self::TrustDomain => Reason::WrongTrustDomain,
            Self::Identity => Reason::WrongIdentity,
            Self::Revoked => Reason::CertificateRevoked,
        }
    }

    fn from_webpki(error: &webpki::Error) -> Self {
        use webpki::Error as E;
        match error {
            E::CertExpired { .. } | E::CertNotValidYet { .. } => Self::Expired,
            // A root of the same name with another key fails by its signature.
            E::UnknownIssuer | E::InvalidSignatureForPublicKey => Self::Untrusted,
            E::RequiredEkuNotFoundContext(_) => Self::Usage,
            _ => Self::Malformed,
        }
    }
}

// === impl TrustBundle ===

impl TrustBundle {
    /// Roots from DER. Those that cannot be parsed are left out and logged: one bad root must not end all trust.
    #[must_use]
    pub fn new(roots: &[CertificateDer<'static>]) -> Self {
        let parse = |der: &CertificateDer<'static>| {
            let (_, parsed) = X509Certificate::from_der(der).ok()?;
            Some(Root {
                anchor: webpki::anchor_from_trusted_cert(der).ok()?.to_owned(),
                not_before: parsed.validity().not_before.timestamp(),
                not_after: parsed.validity().not_after.timestamp(),
                subject: parsed.subject().to_string(),
                der: der.clone(),
            })
        };
        let roots = roots
            .iter()
            .filter_map(|der| {
                let root = parse(der);
                if root.is_none() {
                    tracing::warn!(
                        fingerprint = fingerprint(der),
                        "ignoring a root that cannot be parsed"
                    );
                }
                root
            })
            .collect();
        Self {
            roots,
            revoked: Arc::default(),
        }
    }

    /// The roots, for people.
    #[must_use]
    pub fn status(&self) -> Vec<RootStatus> {
        self.roots
            .iter()
            .map(|root| RootStatus {
                subject: root.subject.clone(),
                fingerprint: fingerprint(&root.der),
                not_after: Timestamp::from_second(root.not_after).unwrap_or(Timestamp::MAX),
            })
            .collect()
    }

    /// webpki does not look at a trust anchor's validity, so roots that are not valid now are left out here.
    fn anchors(&self, now: UnixTime) -> Vec<TrustAnchor<'static>> {
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let valid = |root: &&Root| root.not_before <= now && now <= root.not_after;
        self.roots
            .iter()
            .filter(valid)
            .map(|root| root.anchor.clone())
            .collect()
    }

    /// When trust in an anchor ends: a root may be there twice, renewed with the same key.
    fn not_after(&self, anchor: &TrustAnchor<'_>) -> Option<i64> {
        let same = |root: &&Root| {
            root.anchor.subject == anchor.subject
                && root.anchor.subject_public_key_info == anchor.subject_public_key_info
        };
        self.roots.iter().filter(same).map(|root| root.not_after).max()
    }
}

// === impl Trust ===

impl Trust {
    pub(super) fn new(
        bundle: TrustBundle,
        domains: Vec<TrustDomain>,
        algorithms: &'static [&'static dyn SignatureVerificationAlgorithm],
    ) -> Self {
        Self {
            bundle: watch::Sender::new(Arc::new(bundle)),
            domains,
            algorithms,
        }
    }

    /// Replaces the roots; what is revoked stays.
    pub(super) fn replace(&self, bundle: TrustBundle) {
        self.bundle.send_if_modified(|current| {
            let der = |bundle: &TrustBundle| {
                bundle
                    .roots
                    .iter()
                    .map(|root| root.der.clone())
                    .collect::<Vec<_>>()
            };
            let changed = der(current) != der(&bundle);
            if changed {
                let revoked = current.revoked.clone();
                *current = Arc::new(TrustBundle {
                    roots: bundle.roots.clone(),
                    revoked,
                });
            }
            changed
        });
    }

    /// Replaces what is revoked: it judges new handshakes at once, and open connections are verified again.
    pub(super) fn revoke(&self, revoked: Revoked) {
        self.bundle.send_if_modified(|current| {
            let changed = *current.revoked != revoked;
            if changed {
                *current = Arc::new(TrustBundle {
                    roots: current.roots.clone(),
                    revoked: Arc::new(revoked),
                });
            }
            changed
        });
    }

    /// The roots in force now.
    #[must_use]
    pub fn current(&self) -> Arc<TrustBundle> {
        self.bundle.borrow().clone()
    }

    /// Changes of the roots, for connections that must be verified again.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Arc<TrustBundle>> {
        self.bundle.subscribe()
    }

    /// Verifies a peer's chain, leaf first, against the roots in force.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn verify(
        &self,
        chain: &[CertificateDer<'_>],
        usage: Usage,
        now: UnixTime,
    ) -> Result<PeerCertificate, PeerError> {
        let (leaf, intermediates) = chain.split_first().ok_or(PeerError::Missing)?;
        let certificate = EndEntityCert::try_from(leaf).map_err(|_| PeerError::Malformed)?;
        let bundle = self.current();
        let anchors = bundle.anchors(now);
        let key_usage = match usage {
            Usage::Client => KeyUsage::client_auth(),
            Usage::Server => KeyUsage::server_auth(),
        };
        let path = certificate
            .verify_for_usage(
                self.algorithms,
                &anchors,
                intermediates,
                now,
                key_usage,
                None,
                None,
            )
            .map_err(|error| PeerError::from_webpki(&error))?;

        let mut uris = certificate.valid_uri_names();
        let uri = uris.next().ok_or(PeerError::Names)?;
        if uris.next().is_some() {
            return Err(PeerError::Names);
        }
        let identity: Identity = uri.parse().map_err(|_| PeerError::NotSpiffe)?;
        if !self.domains.contains(identity.trust_domain()) {
            return Err(PeerError::TrustDomain);
        }
        if bundle.revoked.names(leaf, &identity) {
            return Err(PeerError::Revoked);
        }
        let validity = |der: &CertificateDer<'_>| {
            let (_, parsed) = X509Certificate::from_der(der).map_err(|_| PeerError::Malformed)?;
            let validity = parsed.validity();
            Ok((
                system_time(validity.not_before.timestamp()),
                system_time(validity.not_after.timestamp()),
            ))
        };
        let (not_before, mut not_after) = validity(leaf)?;
        for intermediate in intermediates {
            not_after = not_after.min(validity(intermediate)?.1);
        }
        if let Some(root) = bundle.not_after(path.anchor()) {
            not_after = not_after.min(system_time(root));
        }
        let lifetime = not_after.duration_since(not_before).unwrap_or_default();
        let retire_at = not_after - lifetime / RETIREMENT;
        Ok(PeerCertificate {
            identity,
            not_after,
            retire_at,
        })
    }
}

fn system_time(seconds: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

fn fingerprint(der: &CertificateDer<'_>) -> String {
    hex(&Sha256::digest(der))
}
