//! The protocol of one stream, without I/O or clocks.
//!
//! A session holds what its client is subscribed to and, for each type, the revision of the store up to which the
//! client was told; never what it was sent. At most one response of a type waits for its ACK, and meanwhile the
//! revision stays: so a client that never answers costs nothing, changes gather while it works, and what happens
//! between a response and the requests that cross it on the way is in the next response.

mod subscription;

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;

use std::{collections::HashSet, sync::Arc};

use weir_proto::{
    ResourceType, SharedResponse, envoy::service::discovery::v3::DeltaDiscoveryRequest, google::rpc::Status,
};

use self::subscription::Subscription;
use super::{close::Close, limits::Limits, store::State};

/// Characters of a client's error that are logged.
const ERROR_LENGTH: usize = 256;

/// One stream's state.
#[derive(Debug)]
pub(super) struct Session {
    node: Arc<str>,
    names: usize,
    name_length: usize,
    unknown_types: usize,
    types: [Option<Subscription>; ResourceType::ALL.len()],
    unknown: HashSet<String>,
    nonces: u64,
}

/// What a request was, beyond a change of subscriptions.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// Nothing to tell anybody.
    Request,
    /// It rejects the response that it answers: with this text, cut short.
    Nack(ResourceType, String),
    /// It is the first about a type that we don't serve.
    UnknownType(String),
}

/// A response to send.
#[derive(Debug)]
pub(super) struct Push {
    pub(super) kind: ResourceType,
    pub(super) response: SharedResponse,
}

impl Session {
    /// The session of the authenticated agent of `node`.
    pub(super) fn new(node: Arc<str>, limits: &Limits) -> Self {
        Self {
            node,
            names: limits.names,
            name_length: limits.name_length,
            unknown_types: limits.unknown_types,
            types: Default::default(),
            unknown: HashSet::new(),
            nonces: 0,
        }
    }

    /// Takes a request.
    pub(super) fn receive(&mut self, mut request: DeltaDiscoveryRequest) -> Result<Received, Close> {
        let Some(kind) = ResourceType::from_url(&request.type_url) else {
            return self.unknown(request.type_url);
        };
        let subscribed = &request.resource_names_subscribe;
        let mut names = subscribed.iter().chain(request.initial_resource_versions.keys());
        if names.any(|name| name.len() > self.name_length) {
            return Err(Close::Name);
        }
        let rejects = request.error_detail.as_ref().map(error_text);
        let slot = &mut self.types[kind as usize];
        let first = slot.is_none();
        let subscription = slot.get_or_insert_with(|| Subscription::first(&mut request));
        // A stale nonce answers nothing, but the subscriptions beside it count: they are relative to the request before.
        let answers = subscription.answered(&request.response_nonce);
        if !first && !request.resource_names_unsubscribe.is_empty() {
            subscription.doubt();
        }
        subscription.change(request);
        if first {
            subscription.resume();
        }
        if self.types.iter().flatten().map(Subscription::size).sum::<usize>() > self.names {
            return Err(Close::Names);
        }
        Ok(rejects
            .filter(|_| answers)
            .map_or(Received::Request, |text| Received::Nack(kind, text)))
    }

    /// Whether the next response can be one with everything in it.
    pub(super) fn wants_everything(&self) -> bool {
        self.types.iter().flatten().any(Subscription::wants_everything)
    }

    /// Whether a response of this type waits for its ACK.
    pub(super) fn awaits(&self, kind: ResourceType) -> bool {
        self.types[kind as usize]
            .as_ref()
            .is_some_and(Subscription::awaits)
    }

    /// The next response, if there is something to say.
    pub(super) fn next(&mut self, state: &State) -> Result<Option<Push>, Close> {
        for kind in ResourceType::ALL {
            let Some(subscription) = &mut self.types[kind as usize] else {
                continue;
            };
            let Some(reply) = subscription.next(state.view(kind, &self.node), state.revision())? else {
                continue;
            };
            self.nonces += 1;
            let nonce = self.nonces.to_string();
            subscription.sent(nonce.clone());
            let response = SharedResponse {
                system_version_info: state.version_info(),
                resources: reply.resources,
                type_url: kind.url().to_owned(),
                nonce,
                removed_resources: reply.removed,
            };
            return Ok(Some(Push { kind, response }));
        }
        Ok(None)
    }

    fn unknown(&mut self, mut url: String) -> Result<Received, Close> {
        url.truncate(url.floor_char_boundary(ERROR_LENGTH));
        if !self.unknown.insert(url.clone()) {
            return Ok(Received::Request);
        }
        if self.unknown.len() > self.unknown_types {
            return Err(Close::Types);
        }
        Ok(Received::UnknownType(url))
    }
}

/// The client's words, without what would garble a log.
fn error_text(status: &Status) -> String {
    status
        .message
        .chars()
        .filter(|char| !char.is_control())
        .take(ERROR_LENGTH)
        .collect()
}
