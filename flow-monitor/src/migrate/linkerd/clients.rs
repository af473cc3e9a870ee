//! Who is let in: identities and addresses, as Linkerd has them.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::migrate::{Settings, addresses::Addresses};

/// Between a service account's name and namespace and the rest of its identity.
const ACCOUNT: &str = ".serviceaccount.identity.";

/// By identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Who {
    /// Without one, too.
    Anybody,
    /// Any identity.
    Identified,
    /// Principals, some with `*` at their end.
    These(BTreeSet<String>),
}

/// Clients that are let in: of these identities, and from there.
#[derive(Debug, Clone)]
pub(crate) struct Clients {
    pub(crate) who: Who,
    pub(crate) from: Addresses,
}

// === impl Clients ===

impl Clients {
    /// What an `accessPolicy` lets in; nothing if it is not known.
    pub(super) fn of_mode(mode: &str, settings: &Settings) -> Option<Self> {
        let cluster = || settings.cluster_addresses();
        let (who, from) = match mode {
            "all-unauthenticated" => (Who::Anybody, Addresses::all()),
            "all-authenticated" => (Who::Identified, Addresses::all()),
            "cluster-unauthenticated" => (Who::Anybody, cluster()),
            "cluster-authenticated" => (Who::Identified, cluster()),
            _ => return None,
        };
        Some(Self { who, from })
    }
}

// === impl Who ===

impl Who {
    pub(crate) fn nobody() -> Self {
        Self::These(BTreeSet::new())
    }

    pub(crate) fn or(self, other: Self) -> Self {
        match (self, other) {
            (Self::Anybody, _) | (_, Self::Anybody) => Self::Anybody,
            (Self::Identified, _) | (_, Self::Identified) => Self::Identified,
            (Self::These(mut one), Self::These(other)) => {
                one.extend(other);
                Self::These(one)
            }
        }
    }
}

/// An identity of Linkerd's: `*`, a service account's, or what ends like one.
///
/// # Errors
/// Why there is none like it.
pub(super) fn identity(text: &str, settings: &Settings) -> Result<Who, String> {
    if text == "*" {
        return Ok(Who::Identified);
    }
    let one = |principal: String| Ok(Who::These(BTreeSet::from([principal])));
    let (left, right) = text.split_once(ACCOUNT).unwrap_or_default();
    let domain = right.split_once('.').map(|(_, domain)| domain);
    if left.is_empty() || domain.is_none() {
        return Err(format!("'{text}' is no identity of a service account"));
    }
    if domain != Some(settings.linkerd_trust_domain.as_str()) {
        return Err(format!("'{text}' is of another trust domain"));
    }
    let domain = &settings.trust_domain;
    if left == "*" {
        return one(format!("{domain}/*"));
    }
    let Some((account, namespace)) = left.rsplit_once('.') else {
        return Err(format!("'{text}' is no identity of a service account"));
    };
    match account {
        "*" => one(format!("{domain}/ns/{namespace}/*")),
        account if name(account) && name(namespace) => one(service_account(namespace, account, settings)),
        _ => Err(format!("'{text}' has a beginning that Weir cannot leave open")),
    }
}

pub(super) fn service_account(namespace: &str, account: &str, settings: &Settings) -> String {
    format!("{}/ns/{namespace}/sa/{account}", settings.trust_domain)
}

pub(super) fn name(text: &str) -> bool {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
    !text.is_empty() && text.len() <= 253 && text.chars().all(good)
}

/// Networks with exceptions. Those that are not understood are left out, and told.
pub(super) fn networks(networks: &Value, mut left_out: impl FnMut(String)) -> Addresses {
    let mut all = Addresses::default();
    for (index, network) in networks.as_array().into_iter().flatten().enumerate() {
        let block = network["cidr"].as_str().and_then(Addresses::block);
        let excepted = match &network["except"] {
            Value::Null => Some(Addresses::default()),
            Value::Array(blocks) => blocks.iter().try_fold(Addresses::default(), |all, block| {
                Some(all.or(&Addresses::block(block.as_str()?)?))
            }),
            _ => None,
        };
        match (block, excepted) {
            (Some(block), Some(excepted)) => all = all.or(&block.without(&excepted)),
            _ => left_out(format!("networks[{index}] is not understood: left out")),
        }
    }
    all
}
