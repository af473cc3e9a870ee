//! What is served: resources by type, and what changed lately.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, PoisonError, RwLock},
};

use tokio::sync::watch;
use weir_proto::ResourceType;

use super::{
    close::Close,
    resource::{Change, Keys, Resource},
};

/// Changes of a type that are remembered: minutes at hundreds of changes a second, some 10 MB.
const LOG: usize = 65_536;

/// Counts published sets of changes.
pub(super) type Revision = u64;

/// The resources that all streams serve from.
#[derive(Debug)]
pub struct Store {
    state: RwLock<State>,
    revision: watch::Sender<Revision>,
    ready: watch::Sender<bool>,
}

/// The store's content.
#[derive(Debug)]
pub(super) struct State {
    revision: Revision,
    types: [TypeState; ResourceType::ALL.len()],
    log: usize,
}

#[derive(Debug, Default)]
struct TypeState {
    resources: HashMap<Arc<str>, Arc<Resource>>,
    /// Names by alias. Mostly one; an address that moves can be two pods' for a moment.
    aliases: HashMap<Arc<str>, Vec<Arc<str>>>,
    log: VecDeque<Logged>,
    /// The last revision that the log has no longer whole.
    forgotten: Revision,
}

/// That a resource changed: where it could be found before and after. Not its content, which would stay in memory.
#[derive(Debug)]
pub(super) struct Logged {
    revision: Revision,
    pub(super) name: Arc<str>,
    before: Option<Keys>,
    after: Option<Keys>,
}

/// A type's resources as the agent of one node may see them.
#[derive(Clone, Copy, Debug)]
pub(super) struct View<'a> {
    kind: ResourceType,
    node: &'a str,
    state: &'a TypeState,
}

// === impl Store ===

impl Default for Store {
    fn default() -> Self {
        Self::new()
    }
}

impl Store {
    /// An empty store, which is not ready.
    pub fn new() -> Self {
        Self {
            state: RwLock::new(State::new(LOG)),
            revision: watch::Sender::new(0),
            ready: watch::Sender::new(false),
        }
    }

    /// Publishes a set of changes: a stream sends all of it in one response for each type, or none yet.
    pub fn apply(&self, changes: impl IntoIterator<Item = Change>) {
        // Made before the lock is taken: streams wait for it.
        let changes: Vec<_> = changes.into_iter().collect();
        let revision = {
            let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
            state.apply(changes);
            state.revision
        };
        self.revision.send_if_modified(|published| {
            let newer = revision > *published;
            *published = revision.max(*published);
            newer
        });
    }

    /// Says that the store is complete: until then no stream is served, since its client would take what is missing
    /// for gone.
    pub fn mark_ready(&self) {
        self.ready.send_replace(true);
    }

    /// How many resources of a type there are.
    pub fn len(&self, kind: ResourceType) -> usize {
        self.read(|state| state.types[kind as usize].resources.len())
    }

    /// Whether there is no resource of a type.
    pub fn is_empty(&self, kind: ResourceType) -> bool {
        self.len(kind) == 0
    }

    pub(super) fn ready(&self) -> watch::Receiver<bool> {
        self.ready.subscribe()
    }

    pub(super) fn revisions(&self) -> watch::Receiver<Revision> {
        self.revision.subscribe()
    }

    pub(super) fn read<T>(&self, read: impl FnOnce(&State) -> T) -> T {
        read(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }
}

// === impl State ===

impl State {
    pub(super) fn new(log: usize) -> Self {
        Self {
            revision: 0,
            types: Default::default(),
            log,
        }
    }

    pub(super) fn revision(&self) -> Revision {
        self.revision
    }

    /// The last revision in which something of a type changed.
    fn changed(&self, kind: ResourceType) -> Revision {
        let state = &self.types[kind as usize];
        state.log.back().map_or(state.forgotten, |last| last.revision)
    }

    /// What a response says of the store's state: its revision, and since which of them workloads and policies are as they
    /// are. Policies and the workloads that name them are sent apart, and are to be put in force together: an agent that has
    /// one of the two up to a revision knows by this what it has to wait for.
    pub(super) fn version_info(&self) -> String {
        let Self { revision, .. } = self;
        let [address, authorization] =
            [ResourceType::Address, ResourceType::Authorization].map(|kind| self.changed(kind));
        format!("{revision} address={address} authorization={authorization}")
    }

    pub(super) fn view<'a>(&'a self, kind: ResourceType, node: &'a str) -> View<'a> {
        View {
            kind,
            node,
            state: &self.types[kind as usize],
        }
    }

    pub(super) fn apply(&mut self, changes: impl IntoIterator<Item = Change>) {
        let revision = self.revision + 1;
        for change in changes {
            let kind = match &change {
                Change::Set(resource) => resource.kind,
                Change::Remove(kind, _) => *kind,
            };
            if self.types[kind as usize].apply(change, revision, self.log) {
                self.revision = revision;
            }
        }
    }
}

impl TypeState {
    /// Whether this changed anything.
    fn apply(&mut self, change: Change, revision: Revision, log: usize) -> bool {
        let (name, before, after) = match change {
            Change::Set(resource) => {
                let resource = Arc::new(resource);
                let before = self.resources.get(&resource.name);
                if before.is_some_and(|old| old.version() == resource.version() && old.keys == resource.keys)
                {
                    return false;
                }
                // The old name stays the key, so that both share its memory with the log's.
                let name = before.map_or_else(|| resource.name.clone(), |old| old.name.clone());
                let after = resource.keys.clone();
                let before = self
                    .resources
                    .insert(name.clone(), resource)
                    .map(|old| old.keys.clone());
                (name, before, Some(after))
            }
            Change::Remove(_, name) => {
                let Some((name, old)) = self.resources.remove_entry(&name) else {
                    return false;
                };
                (name, Some(old.keys.clone()), None)
            }
        };
        self.index(&name, before.as_ref(), after.as_ref());
        self.log.push_back(Logged {
            revision,
            name,
            before,
            after,
        });
        while self.log.len() > log {
            if let Some(oldest) = self.log.pop_front() {
                self.forgotten = oldest.revision;
            }
        }
        true
    }

    fn index(&mut self, name: &Arc<str>, before: Option<&Keys>, after: Option<&Keys>) {
        for alias in before.iter().flat_map(|keys| keys.aliases.iter()) {
            if let Some(names) = self.aliases.get_mut(alias) {
                names.retain(|other| other != name);
                if names.is_empty() {
                    self.aliases.remove(alias);
                }
            }
        }
        for alias in after.iter().flat_map(|keys| keys.aliases.iter()) {
            self.aliases.entry(alias.clone()).or_default().push(name.clone());
        }
    }
}

// === impl View ===

impl<'a> View<'a> {
    /// The resource of this name.
    pub(super) fn get(&self, name: &str) -> Option<&'a Arc<Resource>> {
        let resource = self.state.resources.get(name)?;
        resource.keys.visible(self.kind, self.node).then_some(resource)
    }

    /// The resources that are called so, by name or alias.
    pub(super) fn resolve<'k>(self, key: &'k str) -> impl Iterator<Item = &'a Arc<Resource>> + use<'a, 'k> {
        let named = self.state.aliases.get(key).map_or(&[][..], Vec::as_slice);
        self.get(key)
            .into_iter()
            .chain(named.iter().filter_map(move |name| self.get(name)))
    }

    /// Whether nothing is called so.
    pub(super) fn lacks(&self, key: &str) -> bool {
        self.resolve(key).next().is_none()
    }

    /// All resources.
    pub(super) fn all(&self) -> impl Iterator<Item = &'a Arc<Resource>> + use<'a> {
        let View { kind, node, state } = *self;
        state
            .resources
            .values()
            .filter(move |resource| resource.keys.visible(kind, node))
    }

    /// What changed after `revision`.
    pub(super) fn since(
        &self,
        revision: Revision,
    ) -> Result<impl Iterator<Item = &'a Logged> + use<'a>, Close> {
        let View { kind, node, state } = *self;
        if revision < state.forgotten {
            return Err(Close::Behind);
        }
        let first = state.log.partition_point(|change| change.revision <= revision);
        let seen = move |keys: &Option<Keys>| keys.as_ref().is_some_and(|keys| keys.visible(kind, node));
        Ok(state
            .log
            .range(first..)
            .filter(move |change| seen(&change.before) || seen(&change.after)))
    }
}

// === impl Logged ===

impl Logged {
    /// Every name that the resource could be found by before or after.
    pub(super) fn touched(&self) -> impl Iterator<Item = &Arc<str>> {
        let keys = self.before.iter().chain(&self.after);
        std::iter::once(&self.name).chain(keys.flat_map(|keys| keys.aliases.iter()))
    }
}
