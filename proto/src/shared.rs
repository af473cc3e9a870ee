//! A response whose resources are already encoded, so that all streams share one copy of each.

use bytes::Bytes;
use prost::Message;

use crate::{Any, envoy::service::discovery::v3::Resource};

/// An encoded `envoy.service.discovery.v3.Resource`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedResource(Bytes);

impl SharedResource {
    /// Encodes a resource.
    pub fn new(name: &str, version: &str, aliases: Vec<String>, content: Any) -> Self {
        let resource = Resource {
            name: name.to_owned(),
            version: version.to_owned(),
            aliases,
            resource: Some(content),
        };
        Self(resource.encode_to_vec().into())
    }

    /// The encoding; a clone shares it.
    pub fn bytes(&self) -> &Bytes {
        &self.0
    }
}

/// `envoy.service.discovery.v3.DeltaDiscoveryResponse` on the wire, where an embedded message is bytes like any other.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct SharedResponse {
    /// For people who debug.
    #[prost(string, tag = "1")]
    pub system_version_info: String,
    /// Each a [`SharedResource`]'s bytes.
    #[prost(bytes = "bytes", repeated, tag = "2")]
    pub resources: Vec<Bytes>,
    /// The type's URL.
    #[prost(string, tag = "4")]
    pub type_url: String,
    /// What the client's answer will repeat.
    #[prost(string, tag = "5")]
    pub nonce: String,
    /// Names that don't exist, or no longer.
    #[prost(string, repeated, tag = "6")]
    pub removed_resources: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{envoy::service::discovery::v3::DeltaDiscoveryResponse, weir::node::v1::Pod};

    #[test]
    fn a_shared_response_is_the_public_message_on_the_wire() {
        let any = Any::pack(&Pod {
            uid: "u".to_owned(),
            ..Pod::default()
        });
        let shared = SharedResponse {
            system_version_info: "7".to_owned(),
            resources: vec![
                SharedResource::new("u", "v", vec!["a".to_owned()], any.clone())
                    .bytes()
                    .clone(),
            ],
            type_url: "t".to_owned(),
            nonce: "n".to_owned(),
            removed_resources: vec!["gone".to_owned()],
        };
        let public = DeltaDiscoveryResponse {
            system_version_info: "7".to_owned(),
            resources: vec![Resource {
                version: "v".to_owned(),
                resource: Some(any),
                name: "u".to_owned(),
                aliases: vec!["a".to_owned()],
            }],
            type_url: "t".to_owned(),
            nonce: "n".to_owned(),
            removed_resources: vec!["gone".to_owned()],
        };
        assert_eq!(
            DeltaDiscoveryResponse::decode(shared.encode_to_vec().as_slice()).unwrap(),
            public
        );
    }
}
