//! Policies on their way to the wire, where there are no selectors, no `PeerAuthentication` and nothing that L4 cannot decide.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{Action, Authorization, Clause, EffectiveMtls, Match, Policies, Rule, Scope, peer::Chosen};

/// What the name of a policy begins with that stands for a PeerAuthentication, as Istio has it.
pub const CONVERTED: &str = "converted_peer_authentication_";

// === impl Policies ===

impl Policies {
    /// All policies in the form of the wire, by name: those of [`Policies::new`], each PeerAuthentication as the DENY policy
    /// that enforces it where it is the narrowest.
    #[must_use]
    pub fn to_wire(&self) -> BTreeMap<Arc<str>, Authorization> {
        let own = self
            .authorization
            .iter()
            .map(|(name, one)| (name.clone(), one.to_wire()));
        let mut all: BTreeMap<_, _> = own.collect();
        let namespaces: BTreeSet<&str> = self.peer.iter().map(|peer| peer.namespace.as_str()).collect();
        for (number, peer) in (0..).zip(&self.peer) {
            let selecting = if peer.selects() { vec![number] } else { Vec::new() };
            all.extend(converted(self.chosen(&peer.namespace, &selecting)));
        }
        // Where no namespace has one, the mesh's.
        if !namespaces.is_empty() {
            all.extend(converted(self.chosen("", &[])));
        }
        all
    }

    /// What a workload names among its policies: those whose selectors select it, and that of its PeerAuthentication.
    #[must_use]
    pub fn listed(&self, namespace: &str, labels: &BTreeMap<String, String>) -> Vec<Arc<str>> {
        let (authorization, peer) = self.selecting(namespace, labels);
        let names = authorization
            .iter()
            .map(|number| self.authorization[*number as usize].0.clone());
        let converted = converted(self.chosen(namespace, &peer)).map(|(name, _)| name);
        names.chain(converted).collect()
    }
}

/// The DENY policy that enforces what these make of a workload's mode, named after the narrowest of them that has a say.
fn converted(chosen: Chosen<'_>) -> Option<(Arc<str>, Authorization)> {
    let mtls = EffectiveMtls::resolve(chosen);
    let policies = mtls.policies();
    let of_ports = chosen.workload.filter(|peer| !peer.port_level_mtls.is_empty());
    let source = of_ports.map(|peer| Arc::from(peer.qualified()));
    let source: Arc<str> = source.or_else(|| mtls.source().cloned())?;
    let rules: Vec<Rule> = policies
        .into_iter()
        .flat_map(|(_, policy)| policy.rules)
        .collect();
    if rules.is_empty() {
        return None;
    }
    let (namespace, name) = source.split_once('/')?;
    let name = format!("{CONVERTED}{name}");
    let authorization = Authorization {
        scope: Scope::Listed,
        action: Action::Deny,
        dry_run: false,
        rules,
        namespace: namespace.to_owned(),
        name: name.clone(),
    };
    Some((format!("{namespace}/{name}").into(), authorization))
}

// === impl Authorization ===

impl Authorization {
    /// The same without what the wire cannot say. What L4 cannot decide counts as met in DENY; in ALLOW the rest of its
    /// clause counts, and a rule of which a clause is left without any says nothing.
    fn to_wire(&self) -> Self {
        let rules = self.rules.iter().filter_map(|rule| rule.to_wire(self.action));
        Self {
            scope: match &self.scope {
                Scope::Workload(_) => Scope::Listed,
                other => other.clone(),
            },
            rules: rules.collect(),
            ..self.clone()
        }
    }
}

impl Rule {
    fn to_wire(&self, action: Action) -> Option<Self> {
        let clause = |clause: &Clause| {
            // In ALLOW a match without any value never holds.
            let holds =
                |one: &&Match| action == Action::Deny || !(one.undecidable || **one == Match::default());
            let matches = clause.matches.iter().filter(holds).map(Match::to_wire);
            let mut matches: Vec<_> = matches.collect();
            if matches.is_empty() && action == Action::Deny {
                matches.push(Match::default().to_wire());
            }
            (!matches.is_empty()).then_some(Clause { matches })
        };
        let clauses: Option<Vec<_>> = self.clauses.iter().map(clause).collect();
        Some(Self { clauses: clauses? })
    }
}

impl Match {
    /// Without any value others take a match for none: what is meant is every source, in DENY.
    fn to_wire(&self) -> Self {
        let mut same = Self {
            undecidable: false,
            ..self.clone()
        };
        if same == Self::default() {
            same.source_ips = vec![crate::Cidr::EVERY_V4, crate::Cidr::EVERY_V6];
        }
        same
    }
}
