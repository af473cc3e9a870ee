//! Types of resources: their URLs, and how a message gets into a discovery resource and out again.

use bytes::Bytes;
use prost::{DecodeError, Message};

use crate::{
    envoy::service::discovery::v3::Resource,
    istio::{security::Authorization, workload::Address},
    weir::node::v1::{Pod, Revocations},
};

/// The name of the one resource of [`ResourceType::Revocations`].
pub const REVOCATIONS: &str = "revocations";
/// The name that stands for all resources of a type.
pub const WILDCARD: &str = "*";

/// `google.protobuf.Any`: an encoded message and its type's URL.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct Any {
    /// Such as [`ResourceType::url`].
    #[prost(string, tag = "1")]
    pub type_url: String,
    /// The encoded message.
    #[prost(bytes = "bytes", tag = "2")]
    pub value: Bytes,
}

/// A type of resource that the control plane serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ResourceType {
    /// Workloads and services: `istio.workload.Address`.
    Address,
    /// Policies: `istio.security.Authorization`.
    Authorization,
    /// Pods of the agent's own node: `weir.node.v1.Pod`.
    Pod,
    /// What is revoked: `weir.node.v1.Revocations`.
    Revocations,
}

impl ResourceType {
    /// Every type.
    pub const ALL: [Self; 4] = [Self::Address, Self::Authorization, Self::Pod, Self::Revocations];

    /// What stands in a request's `type_url`.
    pub const fn url(self) -> &'static str {
        match self {
            Self::Address => "type.googleapis.com/istio.workload.Address",
            Self::Authorization => "type.googleapis.com/istio.security.Authorization",
            Self::Pod => "type.googleapis.com/weir.node.v1.Pod",
            Self::Revocations => "type.googleapis.com/weir.node.v1.Revocations",
        }
    }

    /// The type of this URL, if it is served.
    pub fn from_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.url() == url)
    }

    /// A short name, for metrics and logs.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Address => "address",
            Self::Authorization => "authorization",
            Self::Pod => "pod",
            Self::Revocations => "revocations",
        }
    }
}

/// A message that is served as a resource.
pub trait ResourceMessage: Message + Default {
    /// Its type.
    const TYPE: ResourceType;
}

impl ResourceMessage for Address {
    const TYPE: ResourceType = ResourceType::Address;
}

impl ResourceMessage for Authorization {
    const TYPE: ResourceType = ResourceType::Authorization;
}

impl ResourceMessage for Pod {
    const TYPE: ResourceType = ResourceType::Pod;
}

impl ResourceMessage for Revocations {
    const TYPE: ResourceType = ResourceType::Revocations;
}

/// Why a resource could not be read. Trying again does not help: the sender is at fault.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum UnpackError {
    /// The resource has a name and no content.
    #[error("the resource is empty")]
    Empty,
    /// The content says that it is something else.
    #[error("the resource is of type {found}, not {expected}")]
    WrongType {
        /// The URL that was asked for.
        expected: &'static str,
        /// The URL in the resource.
        found: String,
    },
    /// The content is not the type's encoding.
    #[error("the resource cannot be decoded: {0}")]
    Decode(#[from] DecodeError),
}

impl Any {
    /// Encodes a message of a served type.
    pub fn pack<M: ResourceMessage>(message: &M) -> Self {
        Self {
            type_url: M::TYPE.url().to_owned(),
            value: message.encode_to_vec().into(),
        }
    }
}

impl Resource {
    /// Decodes the message that the resource carries.
    pub fn unpack<M: ResourceMessage>(&self) -> Result<M, UnpackError> {
        let any = self.resource.as_ref().ok_or(UnpackError::Empty)?;
        if any.type_url != M::TYPE.url() {
            return Err(UnpackError::WrongType {
                expected: M::TYPE.url(),
                found: any.type_url.clone(),
            });
        }
        Ok(M::decode(any.value.clone())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_is_unpacked_as_its_own_type_only() {
        let pod = Pod {
            uid: "u".to_owned(),
            ..Pod::default()
        };
        let resource = Resource {
            resource: Some(Any::pack(&pod)),
            ..Resource::default()
        };
        assert_eq!(resource.unpack::<Pod>().unwrap(), pod);
        assert!(matches!(
            resource.unpack::<Address>(),
            Err(UnpackError::WrongType { .. })
        ));
        assert_eq!(Resource::default().unpack::<Pod>(), Err(UnpackError::Empty));
    }

    #[test]
    fn a_type_is_found_by_its_url() {
        for kind in ResourceType::ALL {
            assert_eq!(ResourceType::from_url(kind.url()), Some(kind));
        }
        assert_eq!(ResourceType::from_url("type.googleapis.com/other"), None);
    }
}
