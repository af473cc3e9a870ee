//! A key and a certificate that sign others.

use std::time::Duration;

use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, TrustAnchor, UnixTime, pem::PemObject as _};
use webpki::{ALL_VERIFICATION_ALGS, EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use weir_types::Identity;
use x509_parser::{
    extensions::ParsedExtension,
    prelude::{FromDer as _, X509Certificate},
};
use zeroize::Zeroizing;

use super::{
    clock::{after, before, offset},
    csr::VerifiedRequest,
    scope::{Scope, Usage, dns, uri},
};

/// How far `notBefore` lies in the past, so that a peer whose clock is behind accepts a fresh certificate. As the
/// agents' own authority does.
pub const CLOCK_SKEW: Duration = Duration::from_secs(120);
/// The longest that a leaf may live: a configuration may shorten it only, since a rotation of the root waits so long.
pub const LONGEST_LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// Validity of a root that we make: nothing replaces it but an operator's rotation.
const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Octets of a random serial number: RFC 5280 section 4.1.2.2 allows 20; 16 do not collide.
const SERIAL_LENGTH: usize = 16;
/// Most certificates in a bundle: agents refuse an answer with more.
const MOST_CERTIFICATES: usize = 32;

/// Why an authority cannot be had or does not sign.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A bundle without a certificate.
    #[error("there is no certificate in PEM form in {0}")]
    NoCertificate(&'static str),
    /// A certificate that cannot be read.
    #[error("there is a certificate in {0} that cannot be read")]
    MalformedCertificate(&'static str),
    /// More certificates than agents accept.
    #[error("there are more than {MOST_CERTIFICATES} certificates in {0}")]
    TooMany(&'static str),
    /// A certificate that may not sign others.
    #[error(
        "a certificate in {0} is not one of an authority (basicConstraints CA:TRUE, keyUsage keyCertSign)"
    )]
    NotAuthority(&'static str),
    /// The key cannot be read.
    #[error("there is no private key in PKCS#8, PKCS#1 or SEC1 PEM form in {0}")]
    MalformedKey(&'static str),
    /// Key and certificate do not belong together.
    #[error("the key is not that of the first certificate")]
    KeyMismatch,
    /// What it would sign is not accepted.
    #[error(
        "a certificate that this authority signs does not verify against the roots ({0}): check that the chain leads to one of them, and that no constraint on names or on the length of the path forbids it"
    )]
    Unverifiable(webpki::Error),
    /// Its certificate is not valid now.
    #[error("the certificate of the authority has expired or is not valid yet")]
    Expired,
    /// It may not sign revocation lists.
    #[error("the certificate of the authority lacks the key usage cRLSign")]
    NoRevocationLists,
    /// A time that X.509 cannot express.
    #[error("a validity cannot be expressed")]
    Time,
    /// Making a key or signing failed.
    #[error("cannot make a key or sign: {0}")]
    Sign(#[from] rcgen::Error),
}

/// Signs certificates.
pub struct Authority {
    key: Zeroizing<KeyPair>,
    /// Of the authority, then of its issuers up to but not with a root.
    chain: Vec<CertificateDer<'static>>,
    is_root: bool,
    not_before: Timestamp,
    not_after: Timestamp,
    /// Its subjectKeyIdentifier, which revocation lists must repeat.
    key_identifier: Option<Vec<u8>>,
}

/// A certificate as it was issued.
#[derive(Debug, Clone)]
pub struct Certified {
    /// The certificate.
    pub leaf: CertificateDer<'static>,
    /// Its issuers, without the root.
    pub intermediates: Vec<CertificateDer<'static>>,
    /// Valid from.
    pub not_before: Timestamp,
    /// Valid until.
    pub not_after: Timestamp,
    /// Serial number, lower-case hexadecimal.
    pub serial: String,
}

/// A new self-signed root, in PEM form.
pub(super) struct NewRoot {
    pub(super) certificate: String,
    pub(super) key: Zeroizing<String>,
}

// === impl Authority ===

impl Authority {
    /// An authority from PEM: its certificate and those of its issuers in `chain`, and its key. It is tried: what it
    /// signs must verify against the roots now, for servers and for clients.
    ///
    /// # Errors
    /// When that is not so, or the contents cannot be read or do not belong together.
    pub fn from_pem(
        chain: &[u8],
        key: &[u8],
        roots: &[CertificateDer<'static>],
        scope: &Scope,
        now: Timestamp,
    ) -> Result<Self, AuthorityError> {
        const CHAIN: &str = "the certificate chain";
        const KEY: &str = "the key";
        let mut chain = authorities(chain, CHAIN)?;
        let der = PrivateKeyDer::from_pem_slice(key).map(Zeroizing::new);
        let der = der.map_err(|_| AuthorityError::MalformedKey(KEY))?;
        let key = KeyPair::try_from(&*der).map(Zeroizing::new);
        let key = key.map_err(|_| AuthorityError::MalformedKey(KEY))?;
        let first = chain
            .first()
            .cloned()
            .ok_or(AuthorityError::NoCertificate(CHAIN))?;
        let malformed = AuthorityError::MalformedCertificate(CHAIN);
        let Ok((_, parsed)) = X509Certificate::from_der(&first) else {
            return Err(malformed);
        };
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(AuthorityError::KeyMismatch);
        }
        let validity = parsed.validity();
        let moment = |time: x509_parser::time::ASN1Time| {
            Timestamp::from_second(time.timestamp()).map_err(|_| AuthorityError::Time)
        };
        let (not_before, not_after) = (moment(validity.not_before)?, moment(validity.not_after)?);
        let key_identifier =
            parsed
                .iter_extensions()
                .find_map(|extension| match extension.parsed_extension() {
                    ParsedExtension::SubjectKeyIdentifier(identifier) => Some(identifier.0.to_vec()),
                    _ => None,
                });
        let is_root = roots.contains(&first);
        // A root need not travel in each handshake.
        chain.retain(|certificate| *certificate == first || !roots.contains(certificate));
        let authority = Self {
            key,
            chain,
            is_root,
            not_before,
            not_after,
            key_identifier,
        };
        authority.try_out(roots, scope, now)?;
        Ok(authority)
    }

    /// Certifies a requester's key for one identity. `lifetime` counts from `now` and is cut where the authority's own
    /// ends.
    ///
    /// # Errors
    /// When the authority is not valid at `now`, or signing fails.
    pub fn issue(
        &self,
        request: &VerifiedRequest,
        identity: &Identity,
        lifetime: Duration,
        now: Timestamp,
    ) -> Result<Certified, AuthorityError> {
        let name = uri(&identity.to_string())?;
        let lifetime = lifetime.min(LONGEST_LIFETIME);
        self.certify(
            request.public_key(),
            name,
            &[Usage::Server, Usage::Client],
            lifetime,
            now,
        )
    }

    /// Certifies a key for a host's name, and for one use. `lifetime` counts from `now` and is cut where the authority's own
    /// ends.
    ///
    /// # Errors
    /// When the authority is not valid at `now`, the name is none, or signing fails.
    pub fn issue_host(
        &self,
        key: &impl PublicKeyData,
        name: &str,
        usage: Usage,
        lifetime: Duration,
        now: Timestamp,
    ) -> Result<Certified, AuthorityError> {
        self.certify(key, dns(name)?, &[usage], lifetime, now)
    }

    /// When its own certificate ends.
    #[must_use]
    pub fn not_after(&self) -> Timestamp {
        self.not_after
    }

    /// Its own certificate.
    #[must_use]
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.chain[0]
    }

    /// Whether its own certificate is one of the roots.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.is_root
    }

    /// Its issuers, with itself unless it is a root, as they go behind a leaf.
    pub(super) fn intermediates(&self) -> &[CertificateDer<'static>] {
        if self.is_root {
            &self.chain[1..]
        } else {
            &self.chain
        }
    }

    pub(super) fn key_identifier(&self) -> Option<&[u8]> {
        self.key_identifier.as_deref()
    }

    pub(super) fn issuer(&self) -> Result<Issuer<'_, &KeyPair>, AuthorityError> {
        Ok(Issuer::from_ca_cert_der(self.certificate(), &*self.key)?)
    }

    /// A new self-signed root, valid from `now`.
    pub(super) fn new_root(scope: &Scope, now: Timestamp) -> Result<NewRoot, AuthorityError> {
        let mut params = CertificateParams::default();
        let number: [u8; 4] = rand::random();
        scope.describe_root(&mut params, &hex(&number))?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.serial_number = Some(SerialNumber::from_slice(&serial()));
        params.not_before = offset(before(now, CLOCK_SKEW)).ok_or(AuthorityError::Time)?;
        params.not_after = offset(after(now, ROOT_LIFETIME)).ok_or(AuthorityError::Time)?;
        let key = Zeroizing::new(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?);
        let certificate = params.self_signed(&*key)?.pem();
        Ok(NewRoot {
            certificate,
            key: Zeroizing::new(key.serialize_pem()),
        })
    }

    fn certify(
        &self,
        key: &impl PublicKeyData,
        name: SanType,
        usages: &[Usage],
        lifetime: Duration,
        now: Timestamp,
    ) -> Result<Certified, AuthorityError> {
        if now >= self.not_after || now < self.not_before {
            return Err(AuthorityError::Expired);
        }
        let not_before = before(now, CLOCK_SKEW).max(self.not_before);
        let not_after = after(now, lifetime).min(self.not_after);
        let serial = serial();
        let mut params = CertificateParams::default();
        // No subject, so the name below is critical (RFC 5280 section 4.1.2.6): rcgen sees to it.
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![name];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = usages.iter().map(|usage| usage.purpose()).collect();
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.not_before = offset(not_before).ok_or(AuthorityError::Time)?;
        params.not_after = offset(not_after).ok_or(AuthorityError::Time)?;
        let leaf = params.signed_by(key, &self.issuer()?)?.der().clone();
        Ok(Certified {
            leaf,
            intermediates: self.intermediates().to_vec(),
            not_before,
            not_after,
            serial: hex(&serial),
        })
    }

    /// Signs a certificate, for a key that is thrown away, and verifies it as a peer would. That covers what could be
    /// wrong with an operator's chain: order, missing links, constraints, and names that come out encoded otherwise.
    fn try_out(
        &self,
        roots: &[CertificateDer<'static>],
        scope: &Scope,
        now: Timestamp,
    ) -> Result<(), AuthorityError> {
        let usages = [Usage::Server, Usage::Client];
        let key = Zeroizing::new(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?);
        let certified = self.certify(&*key, scope.example()?, &usages, LONGEST_LIFETIME, now)?;
        let anchors: Vec<TrustAnchor<'_>> = roots
            .iter()
            .map(anchor_from_trusted_cert)
            .collect::<Result<_, _>>()
            .map_err(AuthorityError::Unverifiable)?;
        let leaf = EndEntityCert::try_from(&certified.leaf).map_err(AuthorityError::Unverifiable)?;
        let seconds = u64::try_from(now.as_second()).map_err(|_| AuthorityError::Time)?;
        let time = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        for usage in [KeyUsage::server_auth(), KeyUsage::client_auth()] {
            leaf.verify_for_usage(
                ALL_VERIFICATION_ALGS,
                &anchors,
                &certified.intermediates,
                time,
                usage,
                None,
                None,
            )
            .map_err(AuthorityError::Unverifiable)?;
        }
        Ok(())
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority")
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// The certificates of a PEM bundle, at least one, which must all be of authorities. `what` names it in errors.
pub(super) fn authorities(
    pem: &[u8],
    what: &'static str,
) -> Result<Vec<CertificateDer<'static>>, AuthorityError> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let certificates = certificates.map_err(|_| AuthorityError::MalformedCertificate(what))?;
    if certificates.is_empty() {
        return Err(AuthorityError::NoCertificate(what));
    }
    if certificates.len() > MOST_CERTIFICATES {
        return Err(AuthorityError::TooMany(what));
    }
    for der in &certificates {
        let Ok((rest, certificate)) = X509Certificate::from_der(der) else {
            return Err(AuthorityError::MalformedCertificate(what));
        };
        if !rest.is_empty() {
            return Err(AuthorityError::MalformedCertificate(what));
        }
        let usage = certificate
            .key_usage()
            .map_err(|_| AuthorityError::MalformedCertificate(what))?;
        if !certificate.is_ca() || usage.is_some_and(|usage| !usage.value.key_cert_sign()) {
            return Err(AuthorityError::NotAuthority(what));
        }
    }
    Ok(certificates)
}

/// When a certificate ends.
pub(super) fn end_of(certificate: &CertificateDer<'_>) -> Option<Timestamp> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    Timestamp::from_second(parsed.validity().not_after.timestamp()).ok()
}

fn serial() -> [u8; SERIAL_LENGTH] {
    let mut serial: [u8; SERIAL_LENGTH] = rand::random();
    // RFC 5280 section 4.1.2.2: positive, so the highest bit is clear; the next one set keeps the length.
    serial[0] = serial[0] & 0x7f | 0x40;
    serial
}

/// Lower-case hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}
