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

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, CertificateRevocationListParams, IsCa, Issuer, KeyIdMethod,
        KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
    };
    use time::OffsetDateTime;

    use super::*;

    /// Authorities of one name, each with a key of its own.
    fn authority() -> Issuer<'static, KeyPair> {
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, "Issuing CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Issuer::new(params, KeyPair::generate().unwrap())
    }

    fn identity(account: &str) -> Identity {
        format!("spiffe://cluster.local/ns/shop/sa/{account}")
            .parse()
            .unwrap()
    }

    fn leaf(authority: &Issuer<'_, KeyPair>, serial: u64) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.serial_number = Some(SerialNumber::from(serial));
        let uri = identity("web").to_string().try_into().unwrap();
        params.subject_alt_names = vec![SanType::URI(uri)];
        let key = KeyPair::generate().unwrap();
        params.signed_by(&key, authority).unwrap().der().clone()
    }

    fn list(authority: &Issuer<'_, KeyPair>, serials: &[u64]) -> CertificateRevocationListDer<'static> {
        // Long over.
        let time = |seconds| OffsetDateTime::from_unix_timestamp(seconds).unwrap();
        let entry = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: time(0),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: time(0),
            next_update: time(60),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(entry).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(authority).unwrap().into()
    }

    #[test]
    fn what_a_list_names_is_revoked_whichever_key_of_the_authority_signed_it() {
        let (before, now) = (authority(), authority());
        // Of the same issuer's name, signed by the key of today; 0x80 has a leading zero as DER.
        let revoked = Revoked::new(&[list(&now, &[7, 0x80])], HashSet::new()).unwrap();
        for authority in [&before, &now] {
            assert!(revoked.names(&leaf(authority, 7), &identity("web")));
            assert!(revoked.names(&leaf(authority, 0x80), &identity("web")));
            assert!(
                !revoked.names(&leaf(authority, 8), &identity("web")),
                "others go on"
            );
        }
        assert!(!Revoked::default().names(&leaf(&now, 7), &identity("web")));
    }

    #[test]
    fn an_identity_is_revoked_with_all_its_certificates() {
        let revoked = Revoked::new(&[], [identity("web")].into()).unwrap();
        assert!(revoked.names(&leaf(&authority(), 1), &identity("web")));
        assert!(!revoked.names(&leaf(&authority(), 1), &identity("api")));
    }

    #[test]
    fn what_is_no_list_is_refused() {
        let nonsense = CertificateRevocationListDer::from(vec![0x30, 0x03, 0x02, 0x01, 0x01]);
        assert!(matches!(
            Revoked::new(&[nonsense], HashSet::new()),
            Err(RevokedError::Malformed)
        ));
        let many = vec![list(&authority(), &[]); MOST_LISTS + 1];
        assert!(matches!(
            Revoked::new(&many, HashSet::new()),
            Err(RevokedError::TooMany)
        ));
    }
}
