//! What a new configuration changes: whether everything that the kernel remembers is to be decided again, or what
//! concerns some addresses.

use std::{collections::HashSet, net::IpAddr};

use super::{LocalPod, Mesh, Workload};

/// What is to be forgotten.
#[derive(Debug, PartialEq, Eq)]
pub enum Change {
    /// Everything: who may reach a pod of this node, and how, may be another.
    Everything,
    /// What was decided about these destinations.
    Addresses(HashSet<IpAddr>),
}

impl Change {
    /// Whether everything is to be decided again.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        *self == Self::Everything
    }
}

impl Mesh {
    /// Whether pods of this node, or policies, are others than before.
    pub(super) fn decides_otherwise_than(&self, previous: &Self) -> bool {
        let same_pods = self.local.len() == previous.local.len()
            && self
                .local
                .iter()
                .zip(&previous.local)
                .all(|((_, a), (_, b))| a.is_like(b));
        // The same policies are the same object. Before the first configuration there are none.
        !std::sync::Arc::ptr_eq(&self.policies, &previous.policies) || !same_pods || previous.version == 0
    }

    /// What is different from an earlier configuration.
    pub(super) fn change_from(&self, previous: &Self) -> Change {
        if self.decides_otherwise_than(previous) {
            return Change::Everything;
        }
        let mut addresses = HashSet::new();
        let differs = |workload: &Workload, other: &Self| {
            let same = other.workloads.get(&workload.uid);
            same.is_none_or(|other| !other.is_like(workload))
        };
        for (these, those) in [(self, previous), (previous, self)] {
            let changed = these
                .workloads
                .values()
                .filter(|workload| differs(workload, those));
            addresses.extend(changed.flat_map(|workload| &workload.addresses));
            let changed = these.services.iter().filter(|(address, service)| {
                let same = those.services.get(*address);
                same.is_none_or(|other| !other.is_like(service))
            });
            addresses.extend(changed.map(|(address, _)| address));
        }
        Change::Addresses(addresses)
    }
}

impl Workload {
    /// Whether everything that a decision depends on is the same.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        self.uid == other.uid
            && self.identity == other.identity
            && self.addresses == other.addresses
            && self.node == other.node
            && self.zone == other.zone
            && self.about == other.about
            && self.tunnel == other.tunnel
            && self.listed == other.listed
    }
}

impl LocalPod {
    fn is_like(&self, other: &Self) -> bool {
        self.workload.is_like(&other.workload)
            && self.netns == other.netns
            && self.probe_ports == other.probe_ports
            && self.observed == other.observed
            && self.same_node == other.same_node
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = "
node: n1
trustDomain: cluster.local
ca: { dir: /ca }
pods: [{ uid: w1, namespace: a, serviceAccount: x, netns: /n }]
authorizationPolicies: [{ name: p, namespace: a }]
workloads:
- { uid: w1, namespace: a, serviceAccount: x, addresses: [10.0.0.1], node: n1 }
- { uid: w2, namespace: b, addresses: [10.0.0.2], node: n2 }
- { uid: w3, namespace: b, addresses: [10.0.0.3], node: n2 }
services:
- { name: s, namespace: a, addresses: [10.96.0.1], ports: [{ port: 80 }], endpoints: [{ workload: w2 }] }
- { name: t, namespace: a, addresses: [10.96.0.2], ports: [{ port: 80 }], endpoints: [{ workload: w1 }] }
";

    fn mesh(text: &str, previous: &Mesh) -> (Mesh, Change) {
        Mesh::new(&crate::config::parse("t.yaml".as_ref(), text).unwrap(), previous).unwrap()
    }

    fn change(from: &str, to: &str) -> (Change, bool) {
        let (first, _) = mesh(CONFIG, &Mesh::nothing(7));
        assert_eq!((first.generation(), first.version()), (8, 1));
        let text = CONFIG.replace(from, to);
        assert!(from == to || text != CONFIG, "{from} is there");
        let (second, change) = mesh(&text, &first);
        (change, second.generation() == 9)
    }

    #[test]
    fn a_change_concerns_what_it_touches() {
        let addresses =
            |texts: &[&str]| Change::Addresses(texts.iter().map(|text| text.parse().unwrap()).collect());
        for (from, to, expected) in [
            ("", "", addresses(&[])),
            // Its old address, its new one, and the service that it serves.
            (
                "10.0.0.2",
                "10.0.0.9",
                addresses(&["10.0.0.2", "10.0.0.9", "10.96.0.1"]),
            ),
            ("10.0.0.3", "10.0.0.9", addresses(&["10.0.0.3", "10.0.0.9"])),
            ("{ workload: w2 }", "{ workload: w3 }", addresses(&["10.96.0.1"])),
            ("10.96.0.1", "10.96.0.9", addresses(&["10.96.0.1", "10.96.0.9"])),
            ("name: p", "name: q", Change::Everything),
            ("10.0.0.1", "10.0.0.9", Change::Everything),
            ("netns: /n", "netns: /m", Change::Everything),
            ("netns: /n", "netns: /n, probePorts: [80]", Change::Everything),
            (
                "node: n1\ntrust",
                "sameNode: { mode: direct }\nnode: n1\ntrust",
                Change::Everything,
            ),
        ] {
            let (change, bumped) = change(from, to);
            assert_eq!(change, expected, "{from} to {to}");
            assert_eq!(bumped, expected.is_everything(), "{from} to {to}");
        }
    }
}
