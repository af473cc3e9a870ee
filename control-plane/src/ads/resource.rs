//! One resource, encoded once.

use std::{fmt::Write as _, sync::Arc};

use bytes::Bytes;
use prost::Message as _;
use sha2::{Digest as _, Sha256};
use weir_proto::{
    Any, ResourceMessage, ResourceType, SharedResource,
    envoy::service::discovery::v3::Resource as WireResource,
};

/// Bytes of the SHA-256 that make a version: enough that no two contents of one resource meet.
const VERSION_BYTES: usize = 8;

/// A resource as it goes to every stream.
#[derive(Debug)]
pub struct Resource {
    pub(super) kind: ResourceType,
    pub(super) name: Arc<str>,
    version: String,
    pub(super) keys: Keys,
    encoded: SharedResource,
}

/// By what else than its name a resource is found, and by whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Keys {
    /// Sorted.
    pub(super) aliases: Arc<[Arc<str>]>,
    pub(super) node: Option<Arc<str>>,
}

/// One change of the store's content.
#[derive(Debug)]
pub enum Change {
    /// The resource is new, or has new content. Without effect if it is there already.
    Set(Resource),
    /// There is no such resource any more.
    Remove(ResourceType, Arc<str>),
}

// === impl Resource ===

impl Resource {
    /// A resource for everybody. `aliases` are other names that it can be asked for by, such as `network/ip`.
    pub fn new<M: ResourceMessage>(
        name: impl Into<Arc<str>>,
        aliases: impl IntoIterator<Item = String>,
        message: &M,
    ) -> Self {
        Self::build(name.into(), aliases.into_iter().collect(), None, message)
    }

    /// A resource that only the agent of `node` sees.
    pub fn of_node<M: ResourceMessage>(
        node: impl Into<Arc<str>>,
        name: impl Into<Arc<str>>,
        message: &M,
    ) -> Self {
        Self::build(name.into(), Vec::new(), Some(node.into()), message)
    }

    /// A resource of a node that has aliases: nothing that is served is like it, but the protocol is the same.
    #[cfg(test)]
    pub(super) fn aliased_of_node<M: ResourceMessage>(
        node: impl Into<Arc<str>>,
        name: impl Into<Arc<str>>,
        aliases: impl IntoIterator<Item = String>,
        message: &M,
    ) -> Self {
        Self::build(
            name.into(),
            aliases.into_iter().collect(),
            Some(node.into()),
            message,
        )
    }

    fn build<M: ResourceMessage>(
        name: Arc<str>,
        mut aliases: Vec<String>,
        node: Option<Arc<str>>,
        message: &M,
    ) -> Self {
        aliases.sort_unstable();
        aliases.dedup();
        let content = Any::pack(message);
        // The version is the content's, not a counter: another replica, or this one after a restart, gives the same,
        // and an agent that comes from there is not sent what it has. Aliases count, since they move without the rest.
        let versioned = WireResource {
            version: String::new(),
            resource: Some(content.clone()),
            name: name.to_string(),
            aliases: aliases.clone(),
        };
        let version = version(&versioned.encode_to_vec());
        let keys = Keys {
            aliases: aliases.iter().map(|alias| Arc::from(alias.as_str())).collect(),
            node,
        };
        let encoded = SharedResource::new(&name, &version, aliases, content);
        Self {
            kind: M::TYPE,
            name,
            version,
            keys,
            encoded,
        }
    }

    /// Its type.
    pub fn kind(&self) -> ResourceType {
        self.kind
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its content's version.
    pub fn version(&self) -> &str {
        &self.version
    }

    pub(super) fn encoded(&self) -> Bytes {
        self.encoded.bytes().clone()
    }
}

fn version(content: &[u8]) -> String {
    let mut text = String::with_capacity(2 * VERSION_BYTES);
    for byte in Sha256::digest(content).iter().take(VERSION_BYTES) {
        // Writing into a String does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

// === impl Keys ===

impl Keys {
    /// Whether the agent of `node` may know of the resource. Pods always belong to a node: one without is nobody's.
    pub(super) fn visible(&self, kind: ResourceType, node: &str) -> bool {
        match &self.node {
            Some(own) => **own == *node,
            None => kind != ResourceType::Pod,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_proto::weir::node::v1::Pod;

    fn pod(name: &str) -> Pod {
        Pod {
            name: name.to_owned(),
            ..Pod::default()
        }
    }

    #[test]
    fn equal_content_has_the_same_version_in_every_replica() {
        let version = |aliases: [&str; 2], name| {
            Resource::new("uid", aliases.map(str::to_owned), &pod(name))
                .version()
                .to_owned()
        };
        assert_eq!(version(["a", "b"], "web"), version(["b", "a"], "web"));
        assert_ne!(version(["a", "b"], "web"), version(["a", "c"], "web"));
        assert_ne!(version(["a", "b"], "web"), version(["a", "b"], "api"));
        // Pinned: a new release must not resend everything to every agent by giving it another version.
        assert_eq!(version(["a", "b"], "web"), "0330d2ea7d5d3e3d");
    }

    #[test]
    fn a_pod_without_a_node_is_nobodys() {
        let resource = Resource::new("uid", [], &pod("web"));
        assert!(!resource.keys.visible(ResourceType::Pod, ""));
        let resource = Resource::of_node("node1", "uid", &pod("web"));
        assert!(resource.keys.visible(ResourceType::Pod, "node1"));
        assert!(!resource.keys.visible(ResourceType::Pod, "node2"));
    }
}
