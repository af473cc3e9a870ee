//! The embedded certificate authority, and the trait that a remote one implements.
//!
//! Workload keys are made in memory, never written, and wiped when dropped.

mod files;
mod request;

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, SerialNumber,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use weir_types::{Identity, TrustDomain};
use zeroize::{Zeroize, Zeroizing};

pub use request::{Answer, CertificateRequest};

/// How far `notBefore` lies in the past, so that a peer whose clock is behind accepts a fresh certificate.
pub const CLOCK_SKEW: Duration = Duration::from_secs(120);

/// Validity of a certificate authority made by [`CertificateAuthority::open_or_create_dir`]: ten years, because
/// nothing replaces it but an operator.
const CA_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Octets of a random serial number: RFC 5280 section 4.1.2.2 allows 20; 16 cannot collide.
const SERIAL_LENGTH: usize = 16;

/// Why a certificate authority cannot be had or does not issue.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file cannot be written.
    #[error("cannot write {path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Others may read the key.
    #[error(
        "{path} has mode {mode:04o}: the key of a certificate authority must be readable by its owner alone; run 'chmod 600 {path}'"
    )]
    KeyExposed {
        /// The key's file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The folder has one of key and certificate without the other. Nothing is made then: it would replace an
    /// authority that may still be had.
    #[error(
        "{present} is there but {missing} is not: put it back, or move {present} away to have a new authority made, which every node must then trust"
    )]
    Incomplete {
        /// The file that is there.
        present: PathBuf,
        /// The file that is missing.
        missing: PathBuf,
    },
    /// Another user owns the folder or the key.
    #[error("{path} belongs to user {owner}, who could replace the authority; run 'chown {expected} {path}'")]
    Owner {
        /// The folder or file.
        path: PathBuf,
        /// Who owns it.
        owner: u32,
        /// Who should: the user of this process. Root may, too.
        expected: u32,
    },
    /// Others may write to the folder.
    #[error(
        "{path} has mode {mode:04o}: others than its owner could replace the authority; run 'chmod go-w {path}'"
    )]
    Writable {
        /// The folder.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// No PEM certificate in the file.
    #[error("{path} holds no certificate in PEM form")]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// PEM or DER that cannot be parsed.
    #[error("{path} holds a certificate that cannot be parsed")]
    MalformedCertificate {
        /// The file.
        path: PathBuf,
    },
    /// The certificate may not sign others.
    #[error(
        "the first certificate in {path} is not one of a certificate authority (basicConstraints CA:TRUE)"
    )]
    NotAuthority {
        /// The file.
        path: PathBuf,
    },
    /// The private key cannot be parsed.
    #[error("{path} holds no private key in PKCS#8, PKCS#1 or SEC1 PEM form")]
    MalformedKey {
        /// The file.
        path: PathBuf,
    },
    /// Certificate and key do not belong together.
    #[error("the key in {key} is not that of the first certificate in {certificate}")]
    KeyMismatch {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// Nothing to trust: the chain has no self-signed certificate and no extra root was given.
    #[error("{path} holds no self-signed certificate, so the roots must be given as well")]
    NoRoot {
        /// The file.
        path: PathBuf,
    },
    /// The certificate authority's own certificate is not valid now.
    #[error("the certificate of the certificate authority has expired or is not valid yet")]
    Expired,
    /// A time that X.509 cannot express.
    #[error("the validity of the certificate cannot be expressed")]
    Time,
    /// Key generation or signing failed.
    #[error("cannot make a key or sign a certificate: {0}")]
    Sign(#[from] rcgen::Error),
}

/// A private key in memory, wiped when dropped.
pub struct WorkloadKey(PrivateKeyDer<'static>);

/// A certificate as it was issued.
pub struct Issued {
    /// The workload's certificate, then intermediates, without the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its private key.
    pub key: WorkloadKey,
    /// Valid from.
    pub not_before: SystemTime,
    /// Valid until.
    pub not_after: SystemTime,
    /// Serial number, lower-case hexadecimal.
    pub serial: Arc<str>,
}

/// Something that issues certificates: the embedded authority, or a client of a remote one.
#[async_trait]
pub trait Issuer: Send + Sync + 'static {
    /// Issues a certificate whose only name is the identity, valid for at most `lifetime` from now.
    ///
    /// # Errors
    /// When the authority refuses or cannot be reached; the caller tries again later.
    async fn issue(&self, identity: &Identity, lifetime: Duration) -> Result<Issued, IssueError>;

    /// The roots to trust, DER. A remote authority may change them at each issue: they are asked for again.
    fn roots(&self) -> Vec<CertificateDer<'static>>;

    /// Differs when leaf certificates have to be issued again: another key or chain.
    fn fingerprint(&self) -> [u8; 32];
}

/// Why an issuer did not issue.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// The embedded authority failed.
    #[error(transparent)]
    Authority(#[from] CaError),
    /// A remote authority refused or could not be reached.
    #[error("the certificate service failed: {0}")]
    Remote(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The issuer did not answer in time.
    #[error("the certificate service did not answer in time")]
    Timeout,
    /// What was issued is not usable: wrong key, no certificate, or validity that cannot be read.
    #[error("the certificate that was issued is malformed")]
    Malformed,
}

/// A certificate authority whose key is in this process.
pub struct CertificateAuthority {
    key: Zeroizing<KeyPair>,
    certificate: CertificateDer<'static>,
    /// What goes into a chain behind the leaf: the authority and its issuers up to, but not with, the root.
    intermediates: Vec<CertificateDer<'static>>,
    roots: Vec<CertificateDer<'static>>,
    not_before: SystemTime,
    not_after: SystemTime,
}

// === impl CertificateAuthority ===

impl CertificateAuthority {
    /// A new self-signed authority in memory, valid for `lifetime` from `now`.
    ///
    /// # Errors
    /// When a key cannot be made.
    pub fn generate(
        trust_domain: &TrustDomain,
        now: SystemTime,
        lifetime: Duration,
    ) -> Result<Self, CaError> {
        let (certificate, key) = Self::self_signed(trust_domain, now, lifetime)?;
        Self::assemble(
            vec![certificate.der().clone()],
            key,
            Vec::new(),
            &PathBuf::from("memory"),
            &PathBuf::from("memory"),
        )
    }

    /// Issues a certificate at a given time; see [`Issuer::issue`].
    ///
    /// # Errors
    /// When the authority's own certificate is not valid at `now`, or signing fails.
    pub fn issue_at(
        &self,
        identity: &Identity,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Issued, CaError> {
        if now >= self.not_after || now < self.not_before {
            return Err(CaError::Expired);
        }
        let not_before = (now - CLOCK_SKEW).max(self.not_before);
        let not_after = (now + lifetime).min(self.not_after);
        let mut serial: [u8; SERIAL_LENGTH] = rand::random();
        // RFC 5280 section 4.1.2.2: positive, so the highest bit is clear; the next one set keeps the length.
        serial[0] = serial[0] & 0x7f | 0x40;

        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(
            identity
                .to_string()
                .try_into()
                .map_err(|_| rcgen::Error::InvalidNameType)?,
        )];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.not_before = offset(not_before)?;
        params.not_after = offset(not_after)?;

        let key = Zeroizing::new(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?);
        let issuer = rcgen::Issuer::from_ca_cert_der(&self.certificate, &*self.key)?;
        let leaf = params.signed_by(&*key, &issuer)?;
        let mut chain = vec![leaf.der().clone()];
        chain.extend(self.intermediates.iter().cloned());
        Ok(Issued {
            chain,
            key: WorkloadKey::from_pkcs8(key.serialize_der()),
            not_before,
            not_after,
            serial: hex(&serial).into(),
        })
    }

    /// When the authority's own certificate ends.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    fn self_signed(
        trust_domain: &TrustDomain,
        now: SystemTime,
        lifetime: Duration,
    ) -> Result<(rcgen::Certificate, Zeroizing<KeyPair>), CaError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::OrganizationName, trust_domain.as_str());
        params
            .distinguished_name
            .push(DnType::CommonName, "Weir certificate authority");
        // SPIFFE X.509-SVID section 3.2: a signing certificate's id is its trust domain's.
        let id = format!("spiffe://{trust_domain}");
        params.subject_alt_names = vec![SanType::URI(
            id.try_into().map_err(|_| rcgen::Error::InvalidNameType)?,
        )];
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = offset(now - CLOCK_SKEW)?;
        params.not_after = offset(now + lifetime)?;
        let key = Zeroizing::new(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?);
        let certificate = params.self_signed(&*key)?;
        Ok((certificate, key))
    }
}

#[async_trait]
impl Issuer for CertificateAuthority {
    async fn issue(&self, identity: &Identity, lifetime: Duration) -> Result<Issued, IssueError> {
        Ok(self.issue_at(identity, lifetime, SystemTime::now())?)
    }

    fn roots(&self) -> Vec<CertificateDer<'static>> {
        self.roots.clone()
    }

    fn fingerprint(&self) -> [u8; 32] {
        let mut digest = Sha256::new();
        digest.update(&self.certificate);
        for certificate in &self.intermediates {
            digest.update(certificate);
        }
        digest.finalize().into()
    }
}

impl std::fmt::Debug for CertificateAuthority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CertificateAuthority")
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

// === impl WorkloadKey ===

impl WorkloadKey {
    /// A key from its PKCS#8 DER encoding (RFC 5958), which this takes over and wipes.
    #[must_use]
    pub fn from_pkcs8(der: Vec<u8>) -> Self {
        Self(PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(der)))
    }

    pub(crate) fn der(&self) -> &PrivateKeyDer<'static> {
        &self.0
    }
}

impl Drop for WorkloadKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

fn offset(time: SystemTime) -> Result<OffsetDateTime, CaError> {
    let since = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_err(|_| CaError::Time)?;
    let seconds = i64::try_from(since.as_secs()).map_err(|_| CaError::Time)?;
    OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| CaError::Time)
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}
