//! Asking a remote authority: the request, and what its answer must be.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use rcgen::{
    CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData as _, SanType,
};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use weir_types::Identity;
use x509_parser::{
    extensions::GeneralName,
    prelude::{FromDer as _, X509Certificate},
};
use zeroize::Zeroizing;

use super::{CaError, IssueError, Issued, WorkloadKey, hex};

/// Most certificates in an answer: chains have two or three, and roots double while they are rotated.
const MOST_CERTIFICATES: usize = 64;
/// Most bytes of an answer's texts.
const MOST_BYTES: usize = 1 << 20;

/// A new key, and the request to certify it (RFC 2986).
pub struct CertificateRequest {
    identity: Identity,
    key: Zeroizing<KeyPair>,
    csr: String,
}

/// What an authority answered.
pub struct Answer {
    /// The certificate and its key.
    pub issued: Issued,
    /// The roots to trust from now on; at least one.
    pub roots: Vec<CertificateDer<'static>>,
}

// === impl CertificateRequest ===

impl CertificateRequest {
    /// A request for a certificate whose only name is the identity.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn new(identity: &Identity) -> Result<Self, CaError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let uri = identity.to_string().try_into();
        params.subject_alt_names = vec![SanType::URI(uri.map_err(|_| rcgen::Error::InvalidNameType)?)];
        let key = Zeroizing::new(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?);
        let csr = params.serialize_request(&*key)?.pem()?;
        Ok(Self {
            identity: identity.clone(),
            key,
            csr,
        })
    }

    /// The request in PEM form.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.csr
    }

    /// Takes the answer: PEM texts, the leaf first, intermediates one each, all roots in the last
    /// (`istio.v1.auth.IstioCertificateResponse`).
    ///
    /// # Errors
    /// When it is not a certificate for this key and this identity alone, or names no root.
    pub fn answer(self, texts: &[impl AsRef<str>]) -> Result<Answer, IssueError> {
        let malformed = || IssueError::Malformed;
        let bytes: usize = texts.iter().map(|text| text.as_ref().len()).sum();
        let [chain @ .., roots] = texts else {
            return Err(malformed());
        };
        if chain.is_empty() || texts.len() > MOST_CERTIFICATES || bytes > MOST_BYTES {
            return Err(malformed());
        }
        let read = |text: &str| -> Result<Vec<CertificateDer<'static>>, IssueError> {
            let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
            certificates.map_err(|_| malformed())
        };
        let mut certificates = Vec::new();
        for text in chain {
            certificates.extend(read(text.as_ref())?);
        }
        let roots = read(roots.as_ref())?;
        let leaf = certificates.first().ok_or_else(malformed)?;
        if roots.is_empty() || roots.len() > MOST_CERTIFICATES {
            return Err(malformed());
        }
        let (_, parsed) = X509Certificate::from_der(leaf).map_err(|_| malformed())?;
        if parsed.public_key().raw != self.key.subject_public_key_info() || !self.names(&parsed) {
            return Err(malformed());
        }
        let validity = parsed.validity();
        let serial: Arc<str> = hex(parsed.raw_serial()).into();
        let (not_before, not_after) = (
            time(validity.not_before.timestamp())?,
            time(validity.not_after.timestamp())?,
        );
        // An authority's own self-signed certificate need not travel in each handshake.
        certificates.retain(|certificate| !roots.contains(certificate));
        Ok(Answer {
            issued: Issued {
                chain: certificates,
                key: WorkloadKey::from_pkcs8(self.key.serialize_der()),
                not_before,
                not_after,
                serial,
            },
            roots,
        })
    }

    /// Whether the certificate's only name is the identity.
    fn names(&self, certificate: &X509Certificate<'_>) -> bool {
        let Ok(Some(names)) = certificate.subject_alternative_name() else {
            return false;
        };
        match names.value.general_names.as_slice() {
            [GeneralName::URI(uri)] => *uri == self.identity.to_string(),
            _ => false,
        }
    }
}

fn time(seconds: i64) -> Result<SystemTime, IssueError> {
    let seconds = u64::try_from(seconds).map_err(|_| IssueError::Malformed)?;
    Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(account: &str) -> Identity {
        format!("spiffe://cluster.local/ns/shop/sa/{account}")
            .parse()
            .unwrap()
    }

    /// An authority that certifies a request's key for whom it likes.
    fn signed(request: &CertificateRequest, names: &[&str]) -> Vec<String> {
        let mut ca = CertificateParams::default();
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let ca_certificate = ca.self_signed(&ca_key).unwrap();
        let issuer = rcgen::Issuer::from_ca_cert_der(ca_certificate.der(), &ca_key).unwrap();
        let mut leaf = CertificateParams::default();
        leaf.subject_alt_names = names
            .iter()
            .map(|name| SanType::URI((*name).try_into().unwrap()))
            .collect();
        let leaf = leaf.signed_by(&*request.key, &issuer).unwrap();
        vec![leaf.pem(), ca_certificate.pem()]
    }

    #[test]
    fn a_certificate_for_the_key_and_the_identity_is_taken_with_its_roots() {
        let request = CertificateRequest::new(&identity("web")).unwrap();
        assert!(request.pem().starts_with("-----BEGIN CERTIFICATE REQUEST-----"));
        let texts = signed(&request, &["spiffe://cluster.local/ns/shop/sa/web"]);
        let answer = request.answer(&texts).unwrap();
        assert_eq!((answer.issued.chain.len(), answer.roots.len()), (1, 1));
        assert!(answer.issued.not_before < answer.issued.not_after);
    }

    #[test]
    fn a_certificate_for_another_identity_or_key_or_without_roots_is_refused() {
        let own = "spiffe://cluster.local/ns/shop/sa/web";
        for names in [
            &["spiffe://cluster.local/ns/shop/sa/api"][..],
            &[own, "spiffe://cluster.local/ns/shop/sa/api"],
            &[],
        ] {
            let request = CertificateRequest::new(&identity("web")).unwrap();
            let texts = signed(&request, names);
            assert!(request.answer(&texts).is_err(), "{names:?}");
        }
        let request = CertificateRequest::new(&identity("web")).unwrap();
        let other = CertificateRequest::new(&identity("web")).unwrap();
        let texts = signed(&other, &[own]);
        assert!(request.answer(&texts).is_err(), "another's key");
        for cut in [0..0, 0..1] {
            let request = CertificateRequest::new(&identity("web")).unwrap();
            let texts = signed(&request, &[own]);
            assert!(request.answer(&texts[cut.clone()]).is_err(), "{cut:?}");
        }
        let request = CertificateRequest::new(&identity("web")).unwrap();
        let mut texts = signed(&request, &[own]);
        texts[1] = String::new();
        assert!(request.answer(&texts).is_err(), "no roots");
    }
}
