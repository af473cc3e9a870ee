//! SPIFFE identities of workloads: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

/// Longest SPIFFE id that is accepted, in bytes (SPIFFE-ID specification, section 2.3).
const MAX_SPIFFE_ID: usize = 2048;
/// Longest trust domain name, in bytes (SPIFFE-ID specification, section 2.1).
const MAX_TRUST_DOMAIN: usize = 255;
/// Longest Kubernetes namespace, a DNS label (RFC 1123), in bytes.
const MAX_NAMESPACE: usize = 63;
/// Longest Kubernetes service account, a DNS subdomain (RFC 1123), in bytes.
const MAX_SERVICE_ACCOUNT: usize = 253;

/// Why a text is not an identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Not of the form of a workload's SPIFFE id.
    #[error("expected spiffe://<trust domain>/ns/<namespace>/sa/<service account>")]
    Form,
    /// The trust domain is malformed.
    #[error("a trust domain is 1 to 255 of the characters a-z, 0-9, '.', '-' and '_'")]
    TrustDomain,
    /// The namespace is malformed.
    #[error("a namespace is a DNS label: 1 to 63 of a-z, 0-9 and '-', not at either end '-'")]
    Namespace,
    /// The service account is malformed.
    #[error("a service account is a DNS subdomain: 1 to 253 of a-z, 0-9, '-' and '.'")]
    ServiceAccount,
}

/// The name of a trust domain, compared exactly.
#[derive(
    Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String", extend("pattern" = "^[a-z0-9._-]{1,255}$"))]
pub struct TrustDomain(Arc<str>);

/// A workload's identity.
#[derive(
    Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String", extend("pattern" = "^spiffe://[a-z0-9._-]{1,255}/ns/[a-z0-9-]{1,63}/sa/[a-z0-9.-]{1,253}$"))]
pub struct Identity {
    trust_domain: TrustDomain,
    namespace: Arc<str>,
    service_account: Arc<str>,
}

// === impl TrustDomain ===

impl TrustDomain {
    /// The name itself.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for TrustDomain {
    /// `cluster.local`, as Istio's.
    fn default() -> Self {
        Self("cluster.local".into())
    }
}

impl FromStr for TrustDomain {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let valid = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
        if text.is_empty() || text.len() > MAX_TRUST_DOMAIN || !text.bytes().all(valid) {
            return Err(IdentityError::TrustDomain);
        }
        Ok(Self(text.into()))
    }
}

impl TryFrom<String> for TrustDomain {
    type Error = IdentityError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<TrustDomain> for String {
    fn from(value: TrustDomain) -> Self {
        value.0.as_ref().to_owned()
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// === impl Identity ===

impl Identity {
    /// The identity of a service account.
    ///
    /// # Errors
    /// When the namespace or the service account is not a Kubernetes name.
    pub fn new(
        trust_domain: &TrustDomain,
        namespace: &str,
        service_account: &str,
    ) -> Result<Self, IdentityError> {
        let label = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let edges = |s: &str| !s.starts_with(['-', '.']) && !s.ends_with(['-', '.']);
        if namespace.is_empty()
            || namespace.len() > MAX_NAMESPACE
            || !namespace.bytes().all(label)
            || !edges(namespace)
        {
            return Err(IdentityError::Namespace);
        }
        if service_account.is_empty()
            || service_account.len() > MAX_SERVICE_ACCOUNT
            || !service_account.bytes().all(|b| label(b) || b == b'.')
            || !edges(service_account)
        {
            return Err(IdentityError::ServiceAccount);
        }
        Ok(Self {
            trust_domain: trust_domain.clone(),
            namespace: namespace.into(),
            service_account: service_account.into(),
        })
    }

    /// The trust domain.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The Kubernetes namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The Kubernetes service account.
    #[must_use]
    pub fn service_account(&self) -> &str {
        &self.service_account
    }
}

impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > MAX_SPIFFE_ID {
            return Err(IdentityError::Form);
        }
        let rest = text.strip_prefix("spiffe://").ok_or(IdentityError::Form)?;
        let mut parts = rest.split('/');
        let mut next = || parts.next().ok_or(IdentityError::Form);
        let (domain, ns, namespace, sa, account) = (next()?, next()?, next()?, next()?, next()?);
        if ns != "ns" || sa != "sa" || parts.next().is_some() {
            return Err(IdentityError::Form);
        }
        Self::new(&domain.parse()?, namespace, account)
    }
}

impl TryFrom<String> for Identity {
    type Error = IdentityError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Identity> for String {
    fn from(value: Identity) -> Self {
        value.to_string()
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "spiffe://{}/ns/{}/sa/{}",
            self.trust_domain, self.namespace, self.service_account
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_workload_identities_parse() {
        let table = [
            ("spiffe://cluster.local/ns/shop/sa/web", Ok(())),
            ("spiffe://a/ns/b/sa/c.d", Ok(())),
            ("spiffe://cluster.local/ns/shop/sa/web/", Err(IdentityError::Form)),
            ("spiffe://cluster.local/ns/shop/sa", Err(IdentityError::Form)),
            ("spiffe://cluster.local/sa/shop/ns/web", Err(IdentityError::Form)),
            ("https://cluster.local/ns/shop/sa/web", Err(IdentityError::Form)),
            ("SPIFFE://cluster.local/ns/shop/sa/web", Err(IdentityError::Form)),
            ("spiffe:///ns/shop/sa/web", Err(IdentityError::TrustDomain)),
            (
                "spiffe://Cluster.Local/ns/shop/sa/web",
                Err(IdentityError::TrustDomain),
            ),
            ("spiffe://a:1/ns/shop/sa/web", Err(IdentityError::TrustDomain)),
            ("spiffe://u@a/ns/shop/sa/web", Err(IdentityError::TrustDomain)),
            ("spiffe://a/ns//sa/web", Err(IdentityError::Namespace)),
            ("spiffe://a/ns/-x/sa/web", Err(IdentityError::Namespace)),
            ("spiffe://a/ns/a.b/sa/web", Err(IdentityError::Namespace)),
            ("spiffe://a/ns/shop/sa/", Err(IdentityError::ServiceAccount)),
            ("spiffe://a/ns/shop/sa/web?x", Err(IdentityError::ServiceAccount)),
            ("spiffe://a/ns/shop/sa/..", Err(IdentityError::ServiceAccount)),
        ];
        for (text, expected) in table {
            let parsed = text.parse::<Identity>();
            assert_eq!(parsed.clone().map(|_| ()), expected, "{text}");
            if let Ok(identity) = parsed {
                assert_eq!(identity.to_string(), text);
            }
        }
        let long = format!("spiffe://a/ns/b/sa/{}", "c".repeat(3000));
        assert_eq!(long.parse::<Identity>(), Err(IdentityError::Form));
    }
}
