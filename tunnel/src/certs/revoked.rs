//! What is revoked: certificates by their serial numbers, and identities.

use std::collections::HashSet;

use rustls_pki_types::CertificateRevocationListDer;
use webpki::{
    CertRevocationList, ExpirationPolicy, OwnedCertRevocationList, RevocationCheckDepth,
    RevocationOptionsBuilder, UnknownStatusPolicy,
};
use weir_types::Identity;

/// Most lists: one of each authority whose certificates live, which are two in a rotation.
const MOST_LISTS: usize = 16;

/// Certificates and identities that are not to be trusted any more.
#[derive(Debug, Default)]
pub struct Revoked {
    /// As they came, to know whether others are the same.
    der: Vec<CertificateRevocationListDer<'static>>,
    lists: Vec<CertRevocationList<'static>>,
    identities: HashSet<Identity>,
}

/// A list that cannot be used. It says what is revoked in a form that nobody can read, so the one before stays in force.
#[derive(Debug, thiserror::Error)]
pub enum RevokedError {
    /// Not a list as of RFC 5280.
    #[error("a certificate revocation list is malformed: {0}")]
    Malformed(webpki::Error),
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
        der: Vec<CertificateRevocationListDer<'static>>,
        identities: HashSet<Identity>,
    ) -> Result<Self, RevokedError> {
        if der.len() > MOST_LISTS {
            return Err(RevokedError::TooMany);
        }
        let parse = |list: &CertificateRevocationListDer<'_>| {
            let owned = OwnedCertRevocationList::from_der(list).map_err(RevokedError::Malformed)?;
            Ok(CertRevocationList::from(owned))
        };
        let lists = der.iter().map(parse).collect::<Result<_, _>>()?;
        Ok(Self {
            der,
            lists,
            identities,
        })
    }

    /// How a chain is checked against the lists; nothing where there are none.
    ///
    /// A list that has ended still says what was revoked: a control plane that is away must not make it trusted again.
    /// Certificates of an authority without a list are not revoked.
    pub(super) fn check<T>(&self, with: impl FnOnce(Option<webpki::RevocationOptions<'_>>) -> T) -> T {
        let lists: Vec<&CertRevocationList<'_>> = self.lists.iter().collect();
        let options = RevocationOptionsBuilder::new(&lists).ok().map(|builder| {
            builder
                .with_depth(RevocationCheckDepth::EndEntity)
                .with_status_policy(UnknownStatusPolicy::Allow)
                .with_expiration_policy(ExpirationPolicy::Ignore)
                .build()
        });
        with(options)
    }

    /// Whether no certificate of an identity is to be trusted.
    pub(super) fn names(&self, identity: &Identity) -> bool {
        self.identities.contains(identity)
    }

    /// Whether both say the same.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.der == other.der && self.identities == other.identities
    }
}
