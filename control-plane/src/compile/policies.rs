//! The mesh's policies: all that are understood, and in the place of each that is not one that denies.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use weir_policy::{
    Authorization, AuthorizationPolicy, PeerAuthentication, Policies, Selector,
    istio::{Mtls, PeerMode, PolicyAction, PolicyRule},
};
use weir_proto::{ResourceType, istio::security};

use crate::{
    ads::{Change, Resource},
    cluster::{ObjectName, PolicyApi, Read},
};

/// What became of a policy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Why it is not in force as it stands; what is in force instead denies, or says that it would.
    pub problem: Option<String>,
    /// Whether it is only rehearsed, and so denies nothing.
    pub dry_run: bool,
    /// What of it may not do what was meant.
    pub warnings: Vec<String>,
}

/// The kind of a policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PolicyKind {
    /// AuthorizationPolicy.
    Authorization,
    /// PeerAuthentication.
    PeerAuthentication,
}

/// Names a policy among all.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PolicyKey {
    /// Its kind.
    pub kind: PolicyKind,
    /// The API that it was written for.
    pub api: PolicyApi,
    /// Its name.
    pub name: ObjectName,
}

/// All policies.
pub(super) struct PolicySet {
    root_namespace: String,
    authorization: BTreeMap<(ObjectName, PolicyApi), Read<AuthorizationPolicy>>,
    /// With when they were made.
    peer: BTreeMap<(ObjectName, PolicyApi), (i64, Read<PeerAuthentication>)>,
    compiled: Arc<Policies>,
    wire: BTreeMap<Arc<str>, Authorization>,
    outcomes: HashMap<PolicyKey, Outcome>,
    /// Namespaces whose policies changed since the last [`PolicySet::compile`].
    changed: BTreeSet<Arc<str>>,
    /// Those of before whose changes are not in force, since they could not be compiled.
    failed: BTreeSet<Arc<str>>,
}

/// Whose workloads may have other policies now.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Concerned {
    /// Those of these namespaces.
    Namespaces(BTreeSet<Arc<str>>),
    /// All.
    Everybody,
}

// === impl PolicySet ===

impl PolicySet {
    pub(super) fn new(root_namespace: &str) -> Self {
        Self {
            root_namespace: root_namespace.to_owned(),
            authorization: BTreeMap::new(),
            peer: BTreeMap::new(),
            compiled: Arc::new(Policies::received(Vec::new(), HashSet::new())),
            wire: BTreeMap::new(),
            outcomes: HashMap::new(),
            changed: BTreeSet::new(),
            failed: BTreeSet::new(),
        }
    }

    pub(super) fn set_authorization(
        &mut self,
        api: PolicyApi,
        name: ObjectName,
        policy: Option<Read<AuthorizationPolicy>>,
    ) {
        self.changed.insert(name.namespace.clone());
        replace(&mut self.authorization, (name, api), policy);
    }

    pub(super) fn set_peer(
        &mut self,
        api: PolicyApi,
        name: ObjectName,
        policy: Option<(i64, Read<PeerAuthentication>)>,
    ) {
        self.changed.insert(name.namespace.clone());
        replace(&mut self.peer, (name, api), policy);
    }

    pub(super) fn compiled(&self) -> &Policies {
        &self.compiled
    }

    pub(super) fn outcomes(&self) -> &HashMap<PolicyKey, Outcome> {
        &self.outcomes
    }

    /// Compiles what changed. Gives whom it concerns, if anybody.
    pub(super) fn compile(&mut self, changes: &mut Vec<Change>) -> Option<Concerned> {
        if self.changed.is_empty() {
            return None;
        }
        let mut namespaces = std::mem::take(&mut self.changed);
        namespaces.append(&mut self.failed);
        self.outcomes.clear();
        let peer = self.peer_authentications();
        let authorization = self.authorizations();
        let compiled = match Policies::new(&self.root_namespace, authorization, &peer) {
            Ok(compiled) => compiled,
            Err(error) => {
                // Each was checked by itself, and none has another's name. As long as none changes this comes out the same, so
                // it is tried again when one does, and for these namespaces too.
                tracing::error!(%error, "policies cannot be compiled together: those of before stay in force");
                self.failed = namespaces;
                return None;
            }
        };
        for warning in compiled.warnings() {
            self.warn(&warning.policy, &warning.to_string());
        }
        let wire = compiled.to_wire();
        for (name, policy) in &wire {
            if self.wire.get(name) != Some(policy) {
                let message = security::Authorization::from(policy);
                changes.push(Change::Set(Resource::new(name.clone(), [], &message)));
            }
        }
        let gone = self.wire.keys().filter(|name| !wire.contains_key(*name));
        changes.extend(gone.map(|name| Change::Remove(ResourceType::Authorization, name.clone())));
        self.wire = wire;
        self.compiled = Arc::new(compiled);
        let everybody = namespaces.contains(self.root_namespace.as_str());
        Some(if everybody {
            Concerned::Everybody
        } else {
            Concerned::Namespaces(namespaces)
        })
    }

    fn authorizations(&mut self) -> Vec<Authorization> {
        let mut names = HashSet::new();
        let mut all = Vec::with_capacity(self.authorization.len());
        for ((name, api), read) in &self.authorization {
            let key = PolicyKey {
                kind: PolicyKind::Authorization,
                api: *api,
                name: name.clone(),
            };
            let dry_run = match read {
                Read::Understood(policy) => policy.dry_run,
                Read::Malformed { dry_run, .. } => *dry_run,
            };
            let mut outcome = Outcome {
                dry_run,
                ..Outcome::default()
            };
            let compiled = match read {
                Read::Understood(policy) => policy.compile(&self.root_namespace).map_err(|error| {
                    let closed = self.closed(name, policy.selector.clone(), policy.action, dry_run);
                    (closed, error.to_string())
                }),
                Read::Malformed {
                    selector, problem, ..
                } => Err((
                    self.closed(name, selector.clone(), PolicyAction::Deny, dry_run),
                    problem.clone(),
                )),
            };
            let compiled = match compiled {
                Ok((policy, warnings)) => {
                    outcome.warnings = warnings.iter().map(ToString::to_string).collect();
                    Some(policy)
                }
                Err((closed, problem)) => {
                    outcome.problem = Some(problem);
                    closed
                }
            };
            // Ours come first in the map.
            if !names.insert(name) {
                outcome.problem = Some(format!("there is a policy of this name in weir.dev: {name}"));
            } else {
                all.extend(compiled);
            }
            self.outcomes.insert(key, outcome);
        }
        all
    }

    /// What is in force instead of a policy that is not understood: it denies all that it concerns, or rehearses that.
    fn closed(
        &self,
        name: &ObjectName,
        selector: Option<Selector>,
        action: PolicyAction,
        dry_run: bool,
    ) -> Option<Authorization> {
        let policy = AuthorizationPolicy {
            name: name.name.to_string(),
            namespace: name.namespace.to_string(),
            dry_run,
            selector,
            action,
            rules: match action {
                // Without rules it allows nothing.
                PolicyAction::Allow => Vec::new(),
                PolicyAction::Deny => vec![PolicyRule::default()],
            },
        };
        policy
            .compile(&self.root_namespace)
            .ok()
            .map(|(policy, _)| policy)
    }

    fn peer_authentications(&mut self) -> Vec<PeerAuthentication> {
        let mut names = HashSet::new();
        let mut all = Vec::with_capacity(self.peer.len());
        for ((name, api), (created, read)) in &self.peer {
            let key = PolicyKey {
                kind: PolicyKind::PeerAuthentication,
                api: *api,
                name: name.clone(),
            };
            let mut outcome = Outcome::default();
            let strict = |selector: Option<Selector>| PeerAuthentication {
                name: name.name.to_string(),
                namespace: name.namespace.to_string(),
                selector,
                mtls: Some(Mtls {
                    mode: PeerMode::Strict,
                }),
                port_level_mtls: BTreeMap::new(),
            };
            let policy = match read {
                Read::Understood(policy) => match policy.check(&self.root_namespace) {
                    Ok(warnings) => {
                        outcome.warnings = warnings.iter().map(ToString::to_string).collect();
                        policy.clone()
                    }
                    Err(error) => {
                        outcome.problem = Some(error.to_string());
                        strict(policy.selector.clone())
                    }
                },
                Read::Malformed {
                    selector, problem, ..
                } => {
                    outcome.problem = Some(problem.clone());
                    strict(selector.clone())
                }
            };
            if names.insert(name) {
                all.push((*created, policy));
            } else {
                outcome.problem = Some(format!("there is a policy of this name in weir.dev: {name}"));
            }
            self.outcomes.insert(key, outcome);
        }
        // Stable: those of one second by name.
        all.sort_by_key(|(created, _)| *created);
        all.into_iter().map(|(_, policy)| policy).collect()
    }

    fn warn(&mut self, policy: &str, text: &str) {
        let Some((namespace, name)) = policy.split_once('/') else {
            return;
        };
        let name = ObjectName::new(namespace, name);
        for (key, outcome) in &mut self.outcomes {
            if key.name == name && !outcome.warnings.iter().any(|known| known == text) {
                outcome.warnings.push(text.to_owned());
            }
        }
    }
}

fn replace<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => {
            map.insert(key, value);
        }
        None => {
            map.remove(&key);
        }
    }
}
