//! A certificate for the control plane's own port.

use std::time::Duration;

use jiff::Timestamp;
use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

use super::{
    authority::{Authority, AuthorityError, CLOCK_SKEW, LONGEST_LIFETIME},
    clock::{after, before, offset},
};

/// A certificate with its key.
pub struct ServerCertificate {
    /// The certificate, then its issuers without the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its key.
    pub key: PrivateKeyDer<'static>,
    /// Valid until.
    pub not_after: Timestamp,
}

impl Authority {
    /// A certificate for a server with these names or addresses, by a new key.
    ///
    /// # Errors
    /// When the authority is not valid at `now`, a name is none, or signing fails.
    pub fn server_certificate(
        &self,
        names: &[String],
        lifetime: Duration,
        now: Timestamp,
    ) -> Result<ServerCertificate, AuthorityError> {
        if now >= self.not_after() {
            return Err(AuthorityError::Expired);
        }
        let not_after = after(now, lifetime.min(LONGEST_LIFETIME)).min(self.not_after());
        let mut params = CertificateParams::new(names.to_vec())?;
        params.distinguished_name = DistinguishedName::new();
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        params.not_before = offset(before(now, CLOCK_SKEW)).ok_or(AuthorityError::Time)?;
        params.not_after = offset(not_after).ok_or(AuthorityError::Time)?;
        let key = Zeroizing::new(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?);
        let leaf = params.signed_by(&*key, &self.issuer()?)?.der().clone();
        let chain = std::iter::once(leaf).chain(self.intermediates().iter().cloned());
        Ok(ServerCertificate {
            chain: chain.collect(),
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            not_after,
        })
    }
}
