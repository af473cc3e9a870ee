//! The request for a certificate, and what its answer must be.

use jiff::Timestamp;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData as _};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use weir_proto::weir::flows::v1::CreateResponse;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use zeroize::Zeroizing;

use super::Credentials;
use crate::tls::names;

/// Most certificates in an answer: chains have one or two, and roots double while they are replaced.
const MOST_CERTIFICATES: usize = 32;

/// What is wrong with a request or its answer.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// No key can be made.
    #[error("no key can be made: {0}")]
    Key(#[from] rcgen::Error),
    /// It cannot be read, or has too little or too much in it.
    #[error("the answer holds no certificate for the key that was made, or no roots")]
    Malformed,
    /// It is for somebody else.
    #[error("the certificate is for {found}, and not for {expected}")]
    Name {
        /// Who it is for.
        found: String,
        /// Who it should be for.
        expected: String,
    },
}

/// A new key, and the request to certify it. It asks for no name: that follows from who asks.
pub(super) struct Request {
    key: Zeroizing<KeyPair>,
    csr: String,
}

// === impl Request ===

impl Request {
    pub(super) fn new() -> Result<Self, RequestError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let key = Zeroizing::new(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?);
        let csr = params.serialize_request(&*key)?.pem()?;
        Ok(Self { key, csr })
    }

    pub(super) fn pem(&self) -> &str {
        &self.csr
    }

    /// Takes the answer, if it is a certificate for this key and this name alone, with roots.
    pub(super) fn answer(self, answer: &CreateResponse, name: &str) -> Result<Credentials, RequestError> {
        let read = |text: &str| -> Result<Vec<CertificateDer<'static>>, RequestError> {
            let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
            all.map_err(|_| RequestError::Malformed)
        };
        let mut chain = Vec::new();
        for text in answer.chain.iter().take(MOST_CERTIFICATES) {
            chain.extend(read(text)?);
        }
        let roots = read(&answer.roots)?;
        if roots.is_empty() || roots.len() > MOST_CERTIFICATES {
            return Err(RequestError::Malformed);
        }
        let leaf = chain.first().ok_or(RequestError::Malformed)?;
        let (_, parsed) = X509Certificate::from_der(leaf).map_err(|_| RequestError::Malformed)?;
        if parsed.public_key().raw != self.key.subject_public_key_info() {
            return Err(RequestError::Malformed);
        }
        let found = names(leaf);
        if found != [name] {
            return Err(RequestError::Name {
                found: found.join(", "),
                expected: name.to_owned(),
            });
        }
        let end = parsed.validity().not_after.timestamp();
        let not_after = Timestamp::from_second(end).map_err(|_| RequestError::Malformed)?;
        Ok(Credentials {
            roots,
            not_after,
            key: Zeroizing::new(self.key.serialize_der()),
            chain,
        })
    }
}
