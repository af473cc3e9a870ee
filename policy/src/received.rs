//! Policies as they come over the wire: by name, and what of them stands for a `PeerAuthentication`.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use crate::{
    Action, Authorization, EffectiveMtls, MtlsMode, Rule, Scope,
    peer::{PlaintextRule, denies_plaintext},
    wire::CONVERTED,
};

/// Where to find policies that workloads name.
pub(crate) struct Received {
    listed: HashMap<Arc<str>, u32>,
    removed: HashSet<Arc<str>>,
}

// === impl Received ===

impl Received {
    pub(crate) fn new(authorization: &[(Arc<str>, Authorization)], removed: HashSet<Arc<str>>) -> Self {
        let listed = (0..)
            .zip(authorization)
            .map(|(number, (name, _))| (name.clone(), number));
        Self {
            listed: listed.collect(),
            removed,
        }
    }

    /// The number of a policy; an inner `None` if there was one and is no more.
    pub(crate) fn find(&self, name: &Arc<str>) -> Option<Option<u32>> {
        match self.listed.get(name) {
            Some(number) => Some(Some(*number)),
            None => self.removed.contains(name).then_some(None),
        }
    }
}

/// What stands for a policy that a workload names and nobody knows: it denies everything.
pub(crate) fn missing(name: &Arc<str>) -> (Arc<str>, Authorization) {
    let (namespace, own) = name.split_once('/').unwrap_or(("", name));
    let authorization = Authorization {
        name: own.to_owned(),
        namespace: namespace.to_owned(),
        scope: Scope::Listed,
        action: Action::Deny,
        rules: vec![Rule::default()],
        dry_run: false,
    };
    (name.clone(), authorization)
}

impl EffectiveMtls {
    /// The mode that policies with these names make, and those of them that do nothing else, under the names of what they
    /// stand for.
    pub(crate) fn received<'a>(
        policies: impl Iterator<Item = &'a (Arc<str>, Authorization)>,
    ) -> (Self, Vec<(Arc<str>, Authorization)>) {
        let mut own = Vec::new();
        let (mut source, mut ports_source) = (None, None);
        let mut strict_ports = BTreeSet::new();
        // Ports that every rule for all the others leaves out.
        let mut except: Option<BTreeSet<u16>> = None;
        for (name, authorization) in policies.filter(|(_, one)| denies_plaintext(one)) {
            let name = stands_for(name);
            for rule in authorization.rules.iter().filter_map(PlaintextRule::of) {
                match rule {
                    PlaintextRule::At(ports) => {
                        ports_source.get_or_insert_with(|| name.clone());
                        strict_ports.extend(ports);
                    }
                    PlaintextRule::Except(ports) => {
                        source.get_or_insert_with(|| name.clone());
                        let ports = ports.iter().copied();
                        except = Some(match except {
                            None => ports.collect(),
                            Some(before) => ports.filter(|port| before.contains(port)).collect(),
                        });
                    }
                }
            }
            own.push((name, authorization.clone()));
        }
        let mut ports: BTreeMap<u16, MtlsMode> = BTreeMap::new();
        if let Some(except) = &except {
            ports_source = ports_source.or_else(|| source.clone());
            ports.extend(except.iter().map(|port| (*port, MtlsMode::Permissive)));
        }
        ports.extend(strict_ports.into_iter().map(|port| (port, MtlsMode::Strict)));
        let mode = if except.is_some() {
            MtlsMode::Strict
        } else {
            MtlsMode::Permissive
        };
        (Self::of_parts(mode, source, ports, ports_source), own)
    }
}

/// The PeerAuthentication that a policy was made from, by its name.
fn stands_for(name: &Arc<str>) -> Arc<str> {
    let (namespace, own) = name.split_once('/').unwrap_or(("", name));
    match own.strip_prefix(CONVERTED) {
        Some(original) => format!("{namespace}/{original}").into(),
        None => name.clone(),
    }
}
