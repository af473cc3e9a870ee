//! What etcd and the watch cache are to an API server: objects by resource and key under one revision, and a
//! bounded history of changes, from which watches and continued lists are served.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use serde_json::{Value, json};

/// Versions at or below this are too old for a watch from the beginning on, as they are on a server that has
/// been compacted: a test can ask for version 1 and be refused by either.
const FIRST_REVISION: u64 = 1000;
/// More changes than a test makes between two looks, few enough to hold with their objects.
const HISTORY: usize = 10_000;

/// The objects, and how they came to be what they are.
#[derive(Debug)]
pub(crate) struct Store {
    revision: u64,
    /// The oldest revision whose successors are all in `history`.
    oldest: u64,
    objects: BTreeMap<Arc<str>, BTreeMap<String, Arc<Value>>>,
    history: VecDeque<Change>,
}

/// One write. An object that has been removed has no `now`; its `last` has the revision of the removal.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    pub(crate) revision: u64,
    resource: Arc<str>,
    key: String,
    pub(crate) before: Option<Arc<Value>>,
    pub(crate) now: Option<Arc<Value>>,
    /// What a watch shows: the object, or the last state of a removed one.
    pub(crate) last: Arc<Value>,
}

/// The history does not go back so far; the oldest revision it does go back to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Compacted(pub(crate) u64);

/// Where an object is among those of its resource. Sorted as etcd sorts its keys: `namespace/name` as bytes.
pub(crate) fn key(namespace: &str, name: &str) -> String {
    match namespace {
        "" => name.to_owned(),
        namespace => format!("{namespace}/{name}"),
    }
}

impl Default for Store {
    fn default() -> Self {
        Self {
            revision: FIRST_REVISION,
            oldest: FIRST_REVISION,
            objects: BTreeMap::new(),
            history: VecDeque::new(),
        }
    }
}

impl Store {
    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    pub(crate) fn find(&self, resource: &str, key: &str) -> Option<&Arc<Value>> {
        self.objects.get(resource)?.get(key)
    }

    /// Every object of a resource, in the order of its keys.
    pub(crate) fn all(&self, resource: &str) -> impl Iterator<Item = (&String, &Arc<Value>)> {
        self.objects.get(resource).into_iter().flatten()
    }

    /// The names of resources of which there are objects.
    pub(crate) fn resources(&self) -> Vec<Arc<str>> {
        self.objects.keys().cloned().collect()
    }

    /// Writes an object, whose version becomes the new revision.
    pub(crate) fn put(&mut self, resource: &str, key: &str, mut object: Value) -> Arc<Value> {
        self.revision += 1;
        object["metadata"]["resourceVersion"] = json!(self.revision.to_string());
        let object = Arc::new(object);
        let resource: Arc<str> = resource.into();
        let before = self
            .objects
            .entry(Arc::clone(&resource))
            .or_default()
            .insert(key.to_owned(), Arc::clone(&object));
        self.remember(
            resource,
            key,
            before,
            Some(Arc::clone(&object)),
            Arc::clone(&object),
        );
        object
    }

    /// Removes an object; its last state has the revision of the removal.
    pub(crate) fn remove(&mut self, resource: &str, key: &str) -> Option<Arc<Value>> {
        let before = self.objects.get_mut(resource)?.remove(key)?;
        self.revision += 1;
        let mut last = Value::clone(&before);
        last["metadata"]["resourceVersion"] = json!(self.revision.to_string());
        let last = Arc::new(last);
        self.remember(resource.into(), key, Some(before), None, Arc::clone(&last));
        Some(last)
    }

    fn remember(
        &mut self,
        resource: Arc<str>,
        key: &str,
        before: Option<Arc<Value>>,
        now: Option<Arc<Value>>,
        last: Arc<Value>,
    ) {
        self.history.push_back(Change {
            revision: self.revision,
            resource,
            key: key.to_owned(),
            before,
            now,
            last,
        });
        if self.history.len() > HISTORY
            && let Some(forgotten) = self.history.pop_front()
        {
            self.oldest = forgotten.revision;
        }
    }

    /// Forgets the history, as compaction does: every version but the present one is too old.
    pub(crate) fn compact(&mut self) {
        self.history.clear();
        self.oldest = self.revision;
    }

    /// The changes of a resource after a revision.
    pub(crate) fn changes(
        &self,
        resource: &str,
        after: u64,
    ) -> Result<impl Iterator<Item = &Change>, Compacted> {
        if after < self.oldest {
            return Err(Compacted(self.oldest));
        }
        let first = self.history.partition_point(|change| change.revision <= after);
        Ok(self
            .history
            .range(first..)
            .filter(move |change| *change.resource == *resource))
    }

    /// The objects of a resource as they were at a revision.
    pub(crate) fn at(
        &self,
        resource: &str,
        revision: u64,
    ) -> Result<BTreeMap<String, Arc<Value>>, Compacted> {
        let mut objects = self.objects.get(resource).cloned().unwrap_or_default();
        let later: Vec<&Change> = self.changes(resource, revision)?.collect();
        for change in later.into_iter().rev() {
            match &change.before {
                Some(before) => objects.insert(change.key.clone(), Arc::clone(before)),
                None => objects.remove(&change.key),
            };
        }
        Ok(objects)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(store: &mut Store, name: &str, value: u64) {
        store.put(
            "pods",
            &key("a", name),
            json!({"metadata": {"name": name}, "value": value}),
        );
    }

    #[test]
    fn an_earlier_state_is_had_back() {
        let mut store = Store::default();
        put(&mut store, "one", 1);
        put(&mut store, "two", 1);
        let then = store.revision();
        put(&mut store, "one", 2);
        put(&mut store, "three", 1);
        store.remove("pods", "a/two");
        let earlier = store.at("pods", then).unwrap();
        assert_eq!(earlier.keys().collect::<Vec<_>>(), ["a/one", "a/two"]);
        assert_eq!(earlier["a/one"]["value"], 1);
        assert_eq!(store.all("pods").count(), 2);
    }

    #[test]
    fn what_was_compacted_is_refused_and_the_present_is_not() {
        let mut store = Store::default();
        put(&mut store, "one", 1);
        let then = store.revision();
        put(&mut store, "one", 2);
        store.compact();
        assert_eq!(
            store.changes("pods", then).err(),
            Some(Compacted(store.revision()))
        );
        assert_eq!(store.changes("pods", store.revision()).unwrap().count(), 0);
    }

    #[test]
    fn the_history_is_bounded() {
        let mut store = Store::default();
        for value in 0..=HISTORY as u64 {
            put(&mut store, "one", value);
        }
        assert_eq!(store.history.len(), HISTORY);
        assert!(store.changes("pods", FIRST_REVISION).is_err());
        assert_eq!(
            store.changes("pods", FIRST_REVISION + 1).unwrap().count(),
            HISTORY
        );
    }
}
