//! What is revoked: certificates by their serial numbers, and identities.

use std::collections::HashSet;

use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};
use weir_types::Identity;
use x509_parser::prelude::{CertificateRevocationList, FromDer as _, X509Certificate};

/// Most lists: one of each authority whose certificates live, which are two in a rotation.
const MOST_LISTS: usize = 16;

/// Certificates and identities that are not to be trusted any more.
///
/// The lists' signatures are not looked at: whoever brings them brings the roots too. An authority that was given another key
/// under its name signs no list that verifies with the key before, and must not cut off the certificates of that key. A list
/// that has ended still says what was revoked: a control plane that is away must not make it trusted again.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Revoked {
    /// The name of the issuer as DER, and the serial number.
    certificates: HashSet<(Vec<u8>, Vec<u8>)>,
    identities: HashSet<Identity>,
}

/// A list that cannot be used. It says what is revoked in a form that nobody can read, so the one before stays in force.
#[derive(Debug, thiserror::Error)]
pub enum RevokedError {
    /// Not a list as of RFC 5280.
    #[error("a certificate revocation list is malformed")]
    Malformed,
    /// More than there can be authorities.
    #[error("more than {MOST_LISTS} certificate revocation lists")]
    TooMany,
}

impl Revoked {
    /// Of lists and identities.
    ///
    /// # Errors
    /// When a list cannot be parsed, or there are too many.
    pub fn new(
        lists: &[CertificateRevocationListDer<'_>],
        identities: HashSet<Identity>,
    ) -> Result<Self, RevokedError> {
        if lists.len() > MOST_LISTS {
            return Err(RevokedError::TooMany);
        }
        let mut certificates = HashSet::new();
        for der in lists {
            let (_, list) = CertificateRevocationList::from_der(der).map_err(|_| RevokedError::Malformed)?;
            let issuer = list.issuer().as_raw();
            for entry in list.iter_revoked_certificates() {
                certificates.insert((issuer.to_vec(), entry.raw_serial().to_vec()));
            }
        }
        Ok(Self {
            certificates,
            identities,
        })
    }

    /// Whether a certificate is not to be trusted: it, or the identity that it names.
    pub(super) fn names(&self, leaf: &CertificateDer<'_>, identity: &Identity) -> bool {
        if self.identities.contains(identity) {
            return true;
        }
        // Mostly there is nothing to look for.
        !self.certificates.is_empty()
            && X509Certificate::from_der(leaf).map_or(true, |(_, parsed)| {
                let key = (parsed.issuer().as_raw().to_vec(), parsed.raw_serial().to_vec());
                self.certificates.contains(&key)
            })
    }
}
