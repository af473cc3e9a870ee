//! Numbers and labels of endpoints.

use std::net::IpAddr;

use sha2::{Digest as _, Sha256};
use weir_types::{FlowPeer, Identity};

/// Numbers below this are reserved, and print as names.
const FIRST: u32 = 256;
/// Numbers of identities have so many bits, as those of Cilium that are of one cluster or one node.
const BITS: u32 = 24;
/// `reserved:world`: outside of the cluster, as far as is known.
const WORLD: u32 = 2;
/// `reserved:unmanaged`: a pod without a verified identity.
const UNMANAGED: u32 = 3;

/// The number of an identity: the same on every node and at all times. Two identities may share one: a number is for tools that
/// know nothing else.
#[must_use]
pub fn number(identity: &Identity) -> u32 {
    let hash = Sha256::digest(identity.to_string());
    let bytes = hash.first_chunk::<4>().copied().unwrap_or_default();
    FIRST + u32::from_be_bytes(bytes) % ((1 << BITS) - FIRST)
}

/// The number of one end of a flow.
#[must_use]
pub(super) fn of_peer(peer: &FlowPeer) -> u32 {
    match (&peer.identity, &peer.pod) {
        (Some(identity), _) => number(identity),
        (None, Some(_)) => UNMANAGED,
        (None, None) => WORLD,
    }
}

/// The labels of one end of a flow, each with its source.
#[must_use]
pub(super) fn labels(peer: &FlowPeer) -> Vec<String> {
    if peer.pod.is_none() && peer.identity.is_none() {
        let family = match peer.address.ip() {
            IpAddr::V4(_) => "reserved:world-ipv4",
            IpAddr::V6(_) => "reserved:world-ipv6",
        };
        return vec!["reserved:world".to_owned(), family.to_owned()];
    }
    let mut labels = Vec::new();
    if let Some(about) = &peer.about {
        labels.extend(
            about
                .labels
                .iter()
                .map(|(key, value)| format!("k8s:{key}={value}")),
        );
    }
    if let Some(identity) = &peer.identity {
        let account = identity.service_account();
        labels.push(format!("k8s:io.cilium.k8s.policy.serviceaccount={account}"));
    }
    if let Some(namespace) = &peer.namespace {
        labels.push(format!("k8s:io.kubernetes.pod.namespace={namespace}"));
    }
    labels.sort_unstable();
    labels
}
