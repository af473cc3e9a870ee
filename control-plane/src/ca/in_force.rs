//! The authority as it is in force: what the Secret's contents come to.

use std::time::Duration;

use jiff::Timestamp;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};
use weir_types::Identity;

use super::{
    authority::{Authority, AuthorityError, Certified, end_of},
    contents::{Contents, ContentsError, Material, Phase},
    csr::VerifiedRequest,
    pem,
    revocation::Revoked,
    scope::Scope,
};

/// Signs, and says what to trust and what is revoked. Never changes: another takes its place.
#[derive(Debug)]
pub struct InForce {
    authority: Authority,
    /// Authorities whose certificates live or will: they sign revocation lists of their own.
    others: Vec<Authority>,
    roots: Vec<CertificateDer<'static>>,
    roots_pem: String,
    roots_end: Timestamp,
    phase: Phase,
    next_possible: Option<Timestamp>,
    revoked: Revoked,
}

impl InForce {
    /// Makes an authority of contents, and tries it.
    ///
    /// # Errors
    /// When they cannot be read, or what the authority signs would not be accepted at `now`.
    pub fn load(contents: &Contents, scope: &Scope, now: Timestamp) -> Result<Self, ContentsError> {
        let roots = contents.roots()?;
        let load = |material: &Material, name| {
            Authority::from_pem(&material.chain, &material.key, &roots, scope, now)
                .map_err(|source| ContentsError::Authority { name, source })
        };
        let authority = load(&contents.current, "the authority (tls.crt, tls.key, ca.crt)")?;
        let mut others = Vec::new();
        if let Some(next) = &contents.next {
            others.push(load(
                next,
                "the next authority (next.crt, next.key, next-ca.crt)",
            )?);
        }
        // It signs nothing any more, and may have expired.
        others.extend(contents.previous.as_ref().and_then(|previous| {
            load(previous, "the previous authority")
                .inspect_err(|error| tracing::warn!(%error, "there will be no revocation list of it"))
                .ok()
        }));
        Ok(Self {
            authority,
            others,
            roots_pem: roots.iter().map(pem::certificate).collect(),
            // Those that have expired are of no use and do no harm.
            roots_end: roots
                .iter()
                .filter_map(end_of)
                .filter(|end| *end > now)
                .min()
                .unwrap_or(now),
            roots,
            phase: contents.phase(),
            next_possible: contents.next_possible(),
            revoked: contents.revoked.clone(),
        })
    }

    /// Certifies a key; see [`Authority::issue`].
    ///
    /// # Errors
    /// As there.
    pub fn issue(
        &self,
        request: &VerifiedRequest,
        identity: &Identity,
        lifetime: Duration,
        now: Timestamp,
    ) -> Result<Certified, AuthorityError> {
        self.authority.issue(request, identity, lifetime, now)
    }

    /// The answer to a request: PEM texts, the leaf, an element for each intermediate, and last one with all roots.
    #[must_use]
    pub fn answer(&self, certified: &Certified) -> Vec<String> {
        let chain = std::iter::once(&certified.leaf).chain(&certified.intermediates);
        let mut texts: Vec<String> = chain.map(pem::certificate).collect();
        texts.push(self.roots_pem.clone());
        texts
    }

    /// The roots that agents are to trust.
    #[must_use]
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// The same in PEM form.
    #[must_use]
    pub fn roots_pem(&self) -> &str {
        &self.roots_pem
    }

    /// The end of the root that ends first.
    #[must_use]
    pub fn roots_end(&self) -> Timestamp {
        self.roots_end
    }

    /// Who signs.
    #[must_use]
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// Where the rotation stands, and when the next step is possible.
    #[must_use]
    pub fn rotation(&self) -> (Phase, Option<Timestamp>) {
        (self.phase, self.next_possible)
    }

    /// What is revoked.
    #[must_use]
    pub fn revoked(&self) -> &Revoked {
        &self.revoked
    }

    /// Revocation lists, DER, one of each authority that may sign them; all list the same certificates, since serial
    /// numbers are random and meet only once.
    ///
    /// # Errors
    /// When the authority that signs certificates cannot sign a list.
    pub fn revocation_lists(
        &self,
        now: Timestamp,
    ) -> Result<Vec<CertificateRevocationListDer<'static>>, AuthorityError> {
        let mut lists = vec![self.revoked.list(&self.authority, now)?];
        for other in &self.others {
            match self.revoked.list(other, now) {
                Ok(list) => lists.push(list),
                Err(error) => tracing::warn!(%error, "no revocation list of another authority"),
            }
        }
        Ok(lists)
    }
}
