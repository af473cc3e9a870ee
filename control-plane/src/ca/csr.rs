//! What a certificate request may say (RFC 2986): it counts for its public key and the proof that the requester has
//! the private one. Names come from the caller's rights, never from the request.

use rcgen::{PublicKeyData as _, SubjectPublicKeyInfo};
use rustls_pki_types::{CertificateSigningRequestDer, pem::PemObject as _};
use weir_types::Identity;
use x509_parser::{
    certification_request::X509CertificationRequest,
    cri_attributes::ParsedCriAttribute,
    extensions::{GeneralName, ParsedExtension, X509Extension},
    oid_registry::{
        OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_PKCS1_RSAENCRYPTION, OID_SIG_ED25519,
        OID_X509_EXT_BASIC_CONSTRAINTS, OID_X509_EXT_SUBJECT_ALT_NAME,
    },
    prelude::FromDer as _,
    public_key::PublicKey,
    x509,
};

/// Most bytes of a request in PEM: one with an RSA key of 8192 bits and a name takes 3,000.
pub const MOST_CSR_BYTES: usize = 8 * 1024;
/// Least bits of an RSA key (NIST SP 800-131A).
const LEAST_RSA_BITS: usize = 2048;
/// Most bits of an RSA key: whoever verifies its signatures pays for them.
const MOST_RSA_BITS: usize = 8192;

/// A request whose sender has the private key.
#[derive(Debug)]
pub struct VerifiedRequest {
    public_key: SubjectPublicKeyInfo,
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    /// It is larger than any honest one.
    #[error("it is larger than {MOST_CSR_BYTES} bytes")]
    TooLarge,
    /// It cannot be read.
    #[error("it is not one certificate request in PEM form")]
    Malformed,
    /// The requester has not shown that it holds the private key.
    #[error("its signature is not by its own key, or by an algorithm that is not accepted")]
    Signature,
    /// The key is of a kind or a size that is not accepted.
    #[error("its key is none of P-256, P-384, Ed25519 and RSA of {LEAST_RSA_BITS} to {MOST_RSA_BITS} bits")]
    WeakKey,
    /// It asks for another name than its own.
    #[error("it asks for another name than it would get")]
    Names,
    /// It asks to become a certificate authority.
    #[error("it asks for a certificate of an authority")]
    Authority,
}

// === impl VerifiedRequest ===

impl VerifiedRequest {
    /// Checks a request in PEM form for this identity.
    ///
    /// # Errors
    /// See [`CsrError`].
    pub fn parse(pem: &str, identity: &Identity) -> Result<Self, CsrError> {
        let own = identity.to_string();
        Self::parse_for(pem, |name| matches!(name, GeneralName::URI(uri) if *uri == own))
    }

    /// Checks a request in PEM form for a host of this name.
    ///
    /// # Errors
    /// See [`CsrError`].
    pub fn parse_host(pem: &str, host: &str) -> Result<Self, CsrError> {
        Self::parse_for(
            pem,
            |name| matches!(name, GeneralName::DNSName(name) if *name == host),
        )
    }

    /// The subject and the extensions but for names are ignored. None of what it asks for gets into the certificate,
    /// so what is refused here is only what no honest client sends.
    fn parse_for(pem: &str, is_own: impl Fn(&GeneralName<'_>) -> bool) -> Result<Self, CsrError> {
        if pem.len() > MOST_CSR_BYTES {
            return Err(CsrError::TooLarge);
        }
        let mut requests = CertificateSigningRequestDer::pem_slice_iter(pem.as_bytes());
        let (Some(Ok(der)), None) = (requests.next(), requests.next()) else {
            return Err(CsrError::Malformed);
        };
        let (rest, request) = X509CertificationRequest::from_der(&der).map_err(|_| CsrError::Malformed)?;
        if !rest.is_empty() {
            return Err(CsrError::Malformed);
        }
        // Before the signature: a huge key must not be computed with.
        let public_key = accepted(&request.certification_request_info.subject_pki)?;
        // Weak digests that the parser still knows of.
        let algorithm = &request.signature_algorithm.algorithm;
        if SHA1_SIGNATURES.contains(&algorithm.to_id_string().as_str()) {
            return Err(CsrError::Signature);
        }
        request.verify_signature().map_err(|_| CsrError::Signature)?;
        for attribute in request.certification_request_info.iter_attributes() {
            if let ParsedCriAttribute::ExtensionRequest(requested) = attribute.parsed_attribute() {
                for extension in &requested.extensions {
                    check_extension(extension, &is_own)?;
                }
            }
        }
        Ok(Self { public_key })
    }

    /// The key to certify.
    pub(crate) fn public_key(&self) -> &SubjectPublicKeyInfo {
        &self.public_key
    }
}

/// sha1WithRSAEncryption, its OIW alias, and ecdsa-with-SHA1.
const SHA1_SIGNATURES: [&str; 3] = ["1.2.840.113549.1.1.5", "1.3.14.3.2.29", "1.2.840.10045.4.1"];

fn accepted(key: &x509::SubjectPublicKeyInfo<'_>) -> Result<SubjectPublicKeyInfo, CsrError> {
    let weak = CsrError::WeakKey;
    let algorithm = &key.algorithm.algorithm;
    if *algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY {
        let curve = key
            .algorithm
            .parameters
            .as_ref()
            .and_then(|any| any.as_oid().ok());
        if !curve.is_some_and(|curve| curve == OID_EC_P256 || curve == OID_NIST_EC_P384) {
            return Err(weak);
        }
    } else if *algorithm == OID_PKCS1_RSAENCRYPTION {
        let Ok(PublicKey::RSA(rsa)) = key.parsed() else {
            return Err(weak);
        };
        if !(LEAST_RSA_BITS..=MOST_RSA_BITS).contains(&bits(rsa.modulus)) {
            return Err(weak);
        }
    } else if *algorithm != OID_SIG_ED25519 {
        return Err(weak);
    }
    let public_key = SubjectPublicKeyInfo::from_der(key.raw).map_err(|_| weak)?;
    // What goes into the certificate is encoded anew, and must be the very key that signed.
    if public_key.subject_public_key_info() != key.raw {
        return Err(CsrError::Malformed);
    }
    Ok(public_key)
}

/// Bits of a big-endian number.
fn bits(number: &[u8]) -> usize {
    let significant = number
        .iter()
        .position(|byte| *byte != 0)
        .map_or(&[][..], |first| &number[first..]);
    let leading = significant
        .first()
        .map_or(0, |byte| byte.leading_zeros() as usize);
    significant.len() * 8 - leading
}

fn check_extension(
    extension: &X509Extension<'_>,
    is_own: impl Fn(&GeneralName<'_>) -> bool,
) -> Result<(), CsrError> {
    if extension.oid == OID_X509_EXT_SUBJECT_ALT_NAME {
        // By the OID, so that names which cannot be parsed are not taken for no names.
        let ParsedExtension::SubjectAlternativeName(names) = extension.parsed_extension() else {
            return Err(CsrError::Names);
        };
        return match names.general_names.as_slice() {
            [] => Ok(()),
            [name] if is_own(name) => Ok(()),
            _ => Err(CsrError::Names),
        };
    }
    if extension.oid == OID_X509_EXT_BASIC_CONSTRAINTS {
        return match extension.parsed_extension() {
            ParsedExtension::BasicConstraints(constraints) if !constraints.ca => Ok(()),
            _ => Err(CsrError::Authority),
        };
    }
    Ok(())
}

#[cfg(test)]
mod tests;
