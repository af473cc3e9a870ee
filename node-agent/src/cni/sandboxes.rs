//! The sandboxes that the container runtime told of. An agent that starts knows none: it finds pods by their processes.

use std::{collections::BTreeMap, io, net::IpAddr, os::fd::OwnedFd, sync::Arc};

use tokio::sync::watch;
use weir_cni::protocol::{self, SandboxRef};

use crate::netns::{NetNs, NetNsRef};

/// Most sandboxes that are known: more than any kubelet runs, which stops at a few hundred pods.
const MOST: usize = 4096;

/// Sandboxes by their pods' UIDs. A change makes another map.
pub type ByUid = Arc<BTreeMap<Arc<str>, Arc<Sandbox>>>;

/// A sandbox whose network is there. Keeps its namespace alive.
#[derive(Debug)]
pub struct Sandbox {
    about: protocol::Sandbox,
    netns: NetNs,
}

/// All that are known.
#[derive(Debug)]
pub struct Sandboxes(watch::Sender<ByUid>);

// === impl Sandbox ===

impl Sandbox {
    /// Of what the plugin said, and the descriptor that came with it.
    ///
    /// # Errors
    /// When the descriptor is not one of a network namespace.
    pub fn new(about: protocol::Sandbox, netns: OwnedFd) -> io::Result<Self> {
        let netns = NetNs::given(netns, &about.uid.as_str().into())?;
        Ok(Self { about, netns })
    }

    /// The cookie of its namespace.
    #[must_use]
    pub fn cookie(&self) -> u64 {
        self.netns.cookie()
    }

    /// Its namespace, to be kept.
    ///
    /// # Errors
    /// When the agent has no descriptor left.
    pub fn netns(&self) -> io::Result<NetNs> {
        let copy = self.netns.as_fd().try_clone_to_owned()?;
        NetNs::given(copy, &self.about.uid.as_str().into())
    }
}

// === impl Sandboxes ===

impl Default for Sandboxes {
    fn default() -> Self {
        Self(watch::Sender::new(ByUid::default()))
    }
}

impl Sandboxes {
    /// Remembers a sandbox, in the place of an older one of its pod.
    ///
    /// # Errors
    /// When there are too many.
    pub fn put(&self, sandbox: Sandbox) -> Result<(), TooMany> {
        let uid: Arc<str> = sandbox.about.uid.as_str().into();
        let mut result = Ok(());
        self.0.send_modify(|all| {
            if all.len() >= MOST && !all.contains_key(&uid) {
                result = Err(TooMany);
            } else {
                Arc::make_mut(all).insert(uid, Arc::new(sandbox));
            }
        });
        result
    }

    /// Forgets a sandbox. One that a newer one of its pod replaced is forgotten already, and the newer one stays.
    pub fn forget(&self, gone: &SandboxRef) {
        self.retain(|sandbox| sandbox.about.reference() != *gone);
    }

    /// Forgets all but these.
    pub fn forget_all_but(&self, valid: &[SandboxRef]) {
        self.retain(|sandbox| valid.contains(&sandbox.about.reference()));
    }

    fn retain(&self, wanted: impl Fn(&Sandbox) -> bool) {
        self.0.send_if_modified(|all| {
            let changes = !all.values().all(|sandbox| wanted(sandbox));
            if changes {
                Arc::make_mut(all).retain(|_, sandbox| wanted(sandbox));
            }
            changes
        });
    }

    /// The sandbox of a pod.
    #[must_use]
    pub fn of(&self, source: &NetNsRef) -> Option<Arc<Sandbox>> {
        self.0.borrow().get(source.pod_uid()?).cloned()
    }

    /// To hear of changes.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<ByUid> {
        self.0.subscribe()
    }
}

/// More sandboxes than a node can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "weir-agent knows of {MOST} sandboxes already: was the runtime's DEL kept from it? Restarting weir-agent forgets them"
)]
pub struct TooMany;

/// The addresses of sandboxes, by their pods' UIDs.
#[must_use]
pub fn addresses(sandboxes: &ByUid) -> BTreeMap<String, Vec<IpAddr>> {
    let all = sandboxes.iter();
    all.map(|(uid, sandbox)| (uid.to_string(), sandbox.about.addresses.clone()))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    const UID: &str = "0b2f5c1e-1111-2222-3333-444455556666";

    fn about(container: &str) -> protocol::Sandbox {
        protocol::Sandbox {
            uid: UID.to_owned(),
            namespace: "shop".to_owned(),
            name: "a".to_owned(),
            container_id: container.to_owned(),
            ifname: "eth0".to_owned(),
            addresses: vec!["10.1.0.2".parse().unwrap()],
            switch: None,
            excluded: false,
        }
    }

    fn own_netns() -> OwnedFd {
        File::open("/proc/self/ns/net").unwrap().into()
    }

    #[test]
    fn a_descriptor_that_is_not_of_a_network_namespace_is_refused() {
        for path in ["/proc/self/ns/mnt", "/dev/null", "/proc/self/ns"] {
            let file = File::open(path).unwrap();
            assert!(Sandbox::new(about("a"), file.into()).is_err(), "{path}");
        }
    }

    #[test]
    fn the_del_of_an_older_sandbox_leaves_the_newer_one_of_its_pod() {
        // Entering a namespace, which finds out its cookie, takes root.
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let all = Sandboxes::default();
        let source = NetNsRef::Pod(UID.into());
        all.put(Sandbox::new(about("old"), own_netns()).unwrap()).unwrap();
        all.put(Sandbox::new(about("new"), own_netns()).unwrap()).unwrap();
        all.forget(&about("old").reference());
        assert!(all.of(&source).is_some());
        all.forget_all_but(&[about("new").reference()]);
        assert!(all.of(&source).is_some());
        all.forget(&about("new").reference());
        assert!(all.of(&source).is_none());
    }
}
