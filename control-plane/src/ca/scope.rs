//! Whom an authority certifies, and what its own root says of that.

use rcgen::{
    CertificateParams, CidrSubnet, DistinguishedName, DnType, ExtendedKeyUsagePurpose, GeneralSubtree,
    NameConstraints, SanType,
};
use weir_types::{Identity, TrustDomain, hubble::DOMAIN};

use super::authority::AuthorityError;

/// Whom an authority certifies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// The workloads of a trust domain, by their SPIFFE identities.
    Workloads(TrustDomain),
    /// Who serves flows, and who asks for them, by names below [`DOMAIN`].
    Flows,
}

/// What a certificate is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    /// To be connected to.
    Server,
    /// To connect.
    Client,
}

// === impl Scope ===

impl From<TrustDomain> for Scope {
    fn from(trust_domain: TrustDomain) -> Self {
        Self::Workloads(trust_domain)
    }
}

impl Scope {
    /// As metrics and the log name it.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::Workloads(_) => "workloads",
            Self::Flows => "flows",
        }
    }

    /// Puts the name of a new root into its certificate, and what that may be used for. Roots that are trusted at the same time
    /// must not share a name, since a verifier finds the issuer by it: each has a number.
    pub(super) fn describe_root(
        &self,
        params: &mut CertificateParams,
        number: &str,
    ) -> Result<(), AuthorityError> {
        let (organization, name) = match self {
            Self::Workloads(trust_domain) => (trust_domain.as_str(), "Weir root"),
            Self::Flows => (DOMAIN, "Weir flows root"),
        };
        let mut subject = DistinguishedName::new();
        subject.push(DnType::OrganizationName, organization);
        subject.push(DnType::CommonName, format!("{name} {number}"));
        params.distinguished_name = subject;
        match self {
            // SPIFFE X.509-SVID section 3.2: a signing certificate's id is its trust domain's.
            Self::Workloads(trust_domain) => {
                params.subject_alt_names = vec![uri(&format!("spiffe://{trust_domain}"))?];
            }
            // RFC 5280 section 4.2.1.10: a kind of name that is not constrained is free, so addresses are shut out.
            Self::Flows => {
                params.name_constraints = Some(NameConstraints {
                    permitted_subtrees: vec![GeneralSubtree::DnsName(DOMAIN.to_owned())],
                    excluded_subtrees: vec![
                        GeneralSubtree::IpAddress(CidrSubnet::V4([0; 4], [0; 4])),
                        GeneralSubtree::IpAddress(CidrSubnet::V6([0; 16], [0; 16])),
                    ],
                });
            }
        }
        Ok(())
    }

    /// A name as the authority will certify it, to try it with.
    pub(super) fn example(&self) -> Result<SanType, AuthorityError> {
        match self {
            Self::Workloads(trust_domain) => {
                let identity = Identity::new(trust_domain, "weir", "weir");
                uri(&identity.map_err(|_| rcgen::Error::InvalidNameType)?.to_string())
            }
            Self::Flows => dns(&format!("weir.{DOMAIN}")),
        }
    }
}

// === impl Usage ===

impl Usage {
    pub(super) fn purpose(self) -> ExtendedKeyUsagePurpose {
        match self {
            Self::Server => ExtendedKeyUsagePurpose::ServerAuth,
            Self::Client => ExtendedKeyUsagePurpose::ClientAuth,
        }
    }
}

pub(super) fn uri(text: &str) -> Result<SanType, AuthorityError> {
    Ok(SanType::URI(
        text.try_into().map_err(|_| rcgen::Error::InvalidNameType)?,
    ))
}

pub(super) fn dns(text: &str) -> Result<SanType, AuthorityError> {
    Ok(SanType::DnsName(
        text.try_into().map_err(|_| rcgen::Error::InvalidNameType)?,
    ))
}
