//! What a stream is subscribed to of one type, and what its client does not know yet.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use bytes::Bytes;
use weir_proto::{WILDCARD, envoy::service::discovery::v3::DeltaDiscoveryRequest};

use super::super::{
    close::Close,
    resource::Resource,
    store::{Revision, View},
};

/// A type's subscriptions.
#[derive(Debug, Default)]
pub(super) struct Subscription {
    /// Subscribed to all resources.
    wildcard: bool,
    /// Subscribed to these names, which can be aliases.
    names: HashSet<Box<str>>,
    /// The client knows all changes up to here. None before the first response.
    revision: Option<Revision>,
    /// The wildcard has not been answered.
    everything: bool,
    /// Names that have not been answered.
    unanswered: BTreeSet<Box<str>>,
    /// What the client has from an earlier stream, until the first response.
    known: BTreeMap<String, String>,
    /// The nonce of the response that waits for its ACK.
    outstanding: Option<String>,
}

/// A response's content.
#[derive(Debug, Default)]
pub(super) struct Reply {
    pub(super) resources: Vec<Bytes>,
    pub(super) removed: Vec<String>,
}

impl Subscription {
    /// Subscriptions as the type's first request of the stream finds them, before its names are added.
    pub(super) fn first(request: &mut DeltaDiscoveryRequest) -> Self {
        // Naming nothing means everything, but only here: later requests without names are ACKs.
        let wildcard = request.resource_names_subscribe.is_empty();
        Self {
            wildcard,
            everything: wildcard,
            known: std::mem::take(&mut request.initial_resource_versions),
            ..Self::default()
        }
    }

    /// Takes an ACK or NACK, and says whether it was one. Both end the wait: what was rejected is not sent again,
    /// since it would be rejected again, and later changes go out.
    pub(super) fn answered(&mut self, nonce: &str) -> bool {
        let answered = self.outstanding.as_deref() == Some(nonce);
        if answered {
            self.outstanding = None;
        }
        answered
    }

    /// Adds and removes names.
    pub(super) fn change(&mut self, request: DeltaDiscoveryRequest) {
        for name in request.resource_names_subscribe {
            if name == WILDCARD {
                self.everything |= !self.wildcard;
                self.wildcard = true;
            } else {
                let name = name.into_boxed_str();
                self.unanswered.insert(name.clone());
                self.names.insert(name);
            }
        }
        for name in request.resource_names_unsubscribe {
            if name == WILDCARD {
                self.wildcard = false;
                self.everything = false;
            } else if self.names.remove(name.as_str()) && self.wildcard {
                // The client forgets it, yet the wildcard still means it.
                self.unanswered.insert(name.into_boxed_str());
            } else {
                self.unanswered.remove(name.as_str());
            }
        }
    }

    /// Takes what the client has from an earlier stream for outdated: it unsubscribed from something before the first
    /// response, and what it forgot with that, by whichever name it knew it, is to be sent if it asks again.
    pub(super) fn doubt(&mut self) {
        self.known.values_mut().for_each(String::clear);
    }

    /// Subscribes to what the client has from an earlier stream, which a wildcard would include.
    pub(super) fn resume(&mut self) {
        if self.wildcard {
            return;
        }
        for name in self.known.keys() {
            self.names.insert(name.as_str().into());
            self.unanswered.insert(name.as_str().into());
        }
    }

    /// Names that are held.
    pub(super) fn size(&self) -> usize {
        self.names.len().max(self.unanswered.len())
    }

    pub(super) fn awaits(&self) -> bool {
        self.outstanding.is_some()
    }

    pub(super) fn wants_everything(&self) -> bool {
        !self.awaits() && (self.everything || !self.known.is_empty())
    }

    /// Notes that the reply went out with this nonce.
    pub(super) fn sent(&mut self, nonce: String) {
        self.outstanding = Some(nonce);
    }

    /// What the client does not know at revision `now`. The first reply is given even if it is empty: it says that
    /// the client has everything. One that answers a wildcard has all of it, since clients take it as complete.
    pub(super) fn next(&mut self, view: View<'_>, now: Revision) -> Result<Option<Reply>, Close> {
        if self.awaits() {
            return Ok(None);
        }
        let first = self.revision.is_none();
        if !first && !self.everything && self.unanswered.is_empty() && self.revision == Some(now) {
            return Ok(None);
        }
        let answers_wildcard = self.everything;
        let reply = if answers_wildcard {
            self.all(view)?
        } else {
            self.changed(view)?
        };
        self.revision = Some(now);
        self.everything = false;
        self.unanswered.clear();
        self.known = BTreeMap::new();
        let speak = first || answers_wildcard || !reply.resources.is_empty() || !reply.removed.is_empty();
        Ok(speak.then_some(reply))
    }

    fn all(&self, view: View<'_>) -> Result<Reply, Close> {
        let resources = view
            .all()
            .filter(|resource| !self.knows(resource))
            .map(|resource| resource.encoded());
        let mut removed = BTreeSet::new();
        removed.extend(
            self.known
                .keys()
                .filter(|name| view.lacks(name))
                .map(String::as_str),
        );
        removed.extend(
            self.unanswered
                .iter()
                .filter(|name| view.lacks(name))
                .map(|name| &**name),
        );
        // The wildcard can be a second one, and a response to the first can have crossed it.
        if let Some(revision) = self.revision {
            for change in view.since(revision)? {
                let named = change.touched().filter(|name| self.names.contains(&***name));
                let names = named.chain([&change.name]);
                removed.extend(names.filter(|name| view.lacks(name)).map(|name| &**name));
            }
        }
        Ok(Reply {
            resources: resources.collect(),
            removed: owned(removed),
        })
    }

    fn changed(&self, view: View<'_>) -> Result<Reply, Close> {
        let mut send = BTreeMap::new();
        let mut removed = BTreeSet::new();
        if let Some(revision) = self.revision {
            for change in view.since(revision)? {
                let mut named = change
                    .touched()
                    .filter(|name| self.names.contains(&***name))
                    .peekable();
                if !self.wildcard && named.peek().is_none() {
                    continue;
                }
                match view.get(&change.name) {
                    Some(resource) if self.wants(resource) => {
                        send.insert(&*resource.name, resource);
                    }
                    // Gone, or no longer what the client asked for, as when an address moved to another workload.
                    _ => {
                        removed.insert(&*change.name);
                    }
                }
                removed.extend(named.filter(|name| view.lacks(name)).map(|name| &**name));
            }
        }
        for name in &self.unanswered {
            let mut lacks = true;
            for resource in view.resolve(name) {
                lacks = false;
                if !self.knows(resource) {
                    send.insert(&*resource.name, resource);
                }
            }
            if lacks {
                removed.insert(&**name);
            }
        }
        // Until the first response: whatever the client says that it has is confirmed, replaced or taken back, also what it
        // has given up since. By which of its names it still wants it, the client may not know as we do.
        for name in self.known.keys() {
            match view.get(name) {
                Some(resource) if self.wants(resource) => {
                    if !self.knows(resource) {
                        send.insert(&*resource.name, resource);
                    }
                }
                _ => {
                    removed.insert(name);
                }
            }
        }
        removed.retain(|name| !send.contains_key(name));
        let resources = send.into_values().map(|resource| resource.encoded()).collect();
        Ok(Reply {
            resources,
            removed: owned(removed),
        })
    }

    fn wants(&self, resource: &Resource) -> bool {
        self.wildcard
            || self.names.contains(&*resource.name)
            || resource
                .keys
                .aliases
                .iter()
                .any(|alias| self.names.contains(&**alias))
    }

    /// Whether the client has the resource from an earlier stream.
    fn knows(&self, resource: &Resource) -> bool {
        self.known
            .get(&*resource.name)
            .is_some_and(|version| version == resource.version())
    }
}

fn owned(names: BTreeSet<&str>) -> Vec<String> {
    names.into_iter().map(str::to_owned).collect()
}
