//! All policies, and what applies to a workload.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use crate::{
    Action, Authorization, Caution, Decision, Denial, EffectiveMtls, PeerAuthentication, PolicyError,
    Problem, Request, Scope, Verdict, Warning,
    index::Prepared,
    layer::{Layer, Named},
    peer::{self, Chosen},
    received::{Received, missing},
    selection::Selectors,
};

/// All policies of a mesh, compiled as workloads ask for them. Immutable: a change makes a new one.
pub struct Policies {
    pub(crate) authorization: Vec<(Arc<str>, Authorization)>,
    pub(crate) peer: Vec<PeerAuthentication>,
    /// Of policies that came over the wire.
    received: Option<Received>,
    mesh: PerScope,
    namespaces: HashMap<String, Namespace>,
    /// Selectors of the root namespace, for workloads of every namespace.
    everywhere: Selectors,
    warnings: Vec<Warning>,
    /// What workloads asked for, so that those to which the same applies share it. Not on the path of decisions.
    known: Mutex<HashMap<Applicable, WorkloadPolicies>>,
}

/// What applies to a workload and how connections to it are decided. Cheap to clone.
#[derive(Clone)]
pub struct WorkloadPolicies(Arc<Compiled>);

/// A policy that applies to a workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PolicySummary<'a> {
    /// `namespace/name`.
    pub name: &'a Arc<str>,
    /// What a match means.
    pub action: Action,
    /// Whether it is only reported what it would do.
    pub dry_run: bool,
}

/// Policies without selector of the mesh or of a namespace, by number.
#[derive(Default)]
struct PerScope {
    authorization: Vec<u32>,
    peer: Vec<u32>,
    /// Compiled when first needed: a node has workloads of few namespaces.
    layer: OnceLock<Arc<Layer>>,
}

#[derive(Default)]
struct Namespace {
    own: PerScope,
    authorization: Selectors,
    peer: Selectors,
}

/// Which policies apply to a workload, besides those of the mesh.
#[derive(PartialEq, Eq, Hash)]
struct Applicable {
    /// Empty for all namespaces that have no policies of their own.
    namespace: Box<str>,
    /// Those with a selector, in order.
    authorization: Box<[u32]>,
    peer: Box<[u32]>,
    /// Those that the workload names and nobody knows.
    missing: Box<[Arc<str>]>,
}

struct Compiled {
    mtls: EffectiveMtls,
    warnings: Vec<Warning>,
    /// In the order in which they are asked; those without policies are left out.
    layers: Vec<Arc<Layer>>,
    /// Enforced ALLOW policies.
    allow: Vec<Arc<str>>,
    dry_run_allow: Vec<Arc<str>>,
}

// === impl Policies ===

impl Policies {
    /// Of these policies; within a scope they are tried in this order.
    ///
    /// # Errors
    /// When a PeerAuthentication is wrong or a name is used twice. `field` is then counted from the list:
    /// `peerAuthentications[3].portLevelMtls`.
    pub fn new(
        root_namespace: &str,
        authorization: Vec<Authorization>,
        peer: &[PeerAuthentication],
    ) -> Result<Self, PolicyError> {
        let (mut warnings, mut names) = (Vec::new(), HashSet::new());
        for (index, peer) in peer.iter().enumerate() {
            let at = |field: &str| format!("peerAuthentications[{index}].{field}");
            let mut checked = peer.check(root_namespace).map_err(|error| PolicyError {
                field: at(&error.field),
                problem: error.problem,
            })?;
            warnings.append(&mut checked);
            if !names.insert((&peer.namespace, &peer.name)) {
                let policy = peer.qualified();
                return Err(PolicyError::new(at("name"), Problem::Duplicate { policy }));
            }
        }
        let mut names = HashSet::with_capacity(authorization.len());
        for (index, one) in authorization.iter().enumerate() {
            if !names.insert((&one.namespace, &one.name)) {
                let policy = format!("{}/{}", one.namespace, one.name);
                let field = format!("authorizationPolicies[{index}].name");
                return Err(PolicyError::new(field, Problem::Duplicate { policy }));
            }
        }
        let mut policies = Self {
            authorization: authorization
                .into_iter()
                .map(|one| (format!("{}/{}", one.namespace, one.name).into(), one))
                .collect(),
            peer: peer.to_vec(),
            warnings,
            ..Self::none()
        };
        policies.sort_authorization(root_namespace);
        policies.sort_peer(root_namespace);
        Ok(policies)
    }

    fn none() -> Self {
        Self {
            authorization: Vec::new(),
            peer: Vec::new(),
            received: None,
            mesh: PerScope::default(),
            namespaces: HashMap::new(),
            everywhere: Selectors::default(),
            warnings: Vec::new(),
            known: Mutex::default(),
        }
    }

    /// Of policies as they come over the wire, each by its own name; within a scope they are tried in this order. What
    /// applies to a workload is then asked with [`Policies::for_listed`].
    ///
    /// `removed` are names that a workload may still list a moment longer than there is such a policy. A policy of
    /// [`Scope::Workload`] concerns nobody here.
    #[must_use]
    pub fn received(authorization: Vec<(Arc<str>, Authorization)>, removed: HashSet<Arc<str>>) -> Self {
        let mut policies = Self {
            received: Some(Received::new(&authorization, removed)),
            authorization,
            ..Self::none()
        };
        policies.sort_authorization("");
        policies
    }

    /// What of the policies may not do what was meant, besides what their conversion said and what depends on the
    /// workload ([`WorkloadPolicies::warnings`]).
    #[must_use]
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// What applies to a workload. Workloads to which the same policies apply share it.
    #[must_use]
    pub fn for_workload(&self, namespace: &str, labels: &BTreeMap<String, String>) -> WorkloadPolicies {
        let (authorization, peer) = self.selecting(namespace, labels);
        self.applicable(namespace, authorization, peer, Vec::new())
    }

    /// What applies to a workload that names these among its policies, besides those of its namespace and the mesh. A name
    /// that was never seen denies everything: what it stands for is not known.
    #[must_use]
    pub fn for_listed<'a>(
        &self,
        namespace: &str,
        names: impl Iterator<Item = &'a Arc<str>>,
    ) -> WorkloadPolicies {
        let (mut listed, mut missing) = (Vec::new(), Vec::new());
        for name in names {
            match self.received.as_ref().and_then(|received| received.find(name)) {
                Some(Some(number)) => listed.push(number),
                Some(None) => {}
                None => missing.push(name.clone()),
            }
        }
        listed.sort_unstable();
        listed.dedup();
        missing.sort_unstable();
        self.applicable(namespace, listed, Vec::new(), missing)
    }

    /// The numbers of the policies whose selectors select a workload, in order.
    pub(crate) fn selecting(
        &self,
        namespace: &str,
        labels: &BTreeMap<String, String>,
    ) -> (Vec<u32>, Vec<u32>) {
        let (mut authorization, mut peer) = (Vec::new(), Vec::new());
        self.everywhere.find(labels, &mut authorization);
        if let Some(own) = self.namespaces.get(namespace) {
            own.authorization.find(labels, &mut authorization);
            own.peer.find(labels, &mut peer);
        }
        authorization.sort_unstable();
        peer.sort_unstable();
        (authorization, peer)
    }

    /// The PeerAuthentications that count for a workload.
    pub(crate) fn chosen(&self, namespace: &str, selecting: &[u32]) -> Chosen<'_> {
        let peer = |number: &u32| &self.peer[*number as usize];
        let own = self.namespaces.get(namespace);
        Chosen {
            workload: selecting.first().map(peer),
            namespace: own.and_then(|own| own.own.peer.first()).map(peer),
            mesh: self.mesh.peer.first().map(peer),
        }
    }

    fn applicable(
        &self,
        namespace: &str,
        authorization: Vec<u32>,
        peer: Vec<u32>,
        missing: Vec<Arc<str>>,
    ) -> WorkloadPolicies {
        let own = self.namespaces.get_key_value(namespace);
        let applicable = Applicable {
            namespace: own.map_or("", |(name, _)| name).into(),
            authorization: authorization.into(),
            peer: peer.into(),
            missing: missing.into(),
        };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known.get(&applicable) {
            return known.clone();
        }
        let compiled = self.compile(namespace, own.map(|(_, own)| &own.own), &applicable);
        let policies = WorkloadPolicies(Arc::new(compiled));
        known.insert(applicable, policies.clone());
        policies
    }

    fn compile(&self, name: &str, namespace: Option<&PerScope>, applicable: &Applicable) -> Compiled {
        let scopes = [Some(&self.mesh), namespace].into_iter().flatten();
        let own = scopes.clone().flat_map(|scope| &scope.authorization);
        let (mtls, plaintext) = if self.received.is_some() {
            let all = own.chain(&*applicable.authorization);
            EffectiveMtls::received(all.map(|number| &self.authorization[*number as usize]))
        } else {
            let mtls = EffectiveMtls::resolve(self.chosen(name, &applicable.peer));
            let policies = mtls.policies();
            (mtls, policies)
        };
        let plaintext = plaintext.iter().map(|(name, authorization)| Named {
            name: name.clone(),
            authorization,
            plaintext: true,
        });
        let unknown: Vec<_> = applicable.missing.iter().map(missing).collect();
        let unknown = unknown.iter().map(|(name, authorization)| Named {
            name: name.clone(),
            authorization,
            plaintext: false,
        });
        let mut layers = vec![Arc::new(Layer::compile(plaintext.chain(unknown)))];
        layers.extend(scopes.map(|scope| self.layer(scope)));
        layers.push(Arc::new(Layer::compile(self.named(&applicable.authorization))));
        layers.retain(|layer| !layer.policies.is_empty());
        let allow = |dry_run| -> Vec<Arc<str>> {
            let policies = layers.iter().flat_map(|layer| &layer.policies);
            let allow = policies.filter(|one| one.action == Action::Allow && one.dry_run == dry_run);
            allow.map(|one| one.name.clone()).collect()
        };
        Compiled {
            mtls,
            warnings: shadowed(&self.peer, &applicable.peer),
            allow: allow(false),
            dry_run_allow: allow(true),
            layers,
        }
    }

    fn layer(&self, scope: &PerScope) -> Arc<Layer> {
        let compile = || Arc::new(Layer::compile(self.named(&scope.authorization)));
        scope.layer.get_or_init(compile).clone()
    }

    fn named<'a>(&'a self, numbers: &'a [u32]) -> impl Iterator<Item = Named<'a>> {
        let numbered = numbers.iter().map(|number| &self.authorization[*number as usize]);
        // What refuses plaintext has a layer of its own.
        let others = numbered
            .filter(|(_, authorization)| self.received.is_none() || !peer::denies_plaintext(authorization));
        others.map(|(name, authorization)| Named {
            name: name.clone(),
            authorization,
            plaintext: false,
        })
    }

    fn sort_authorization(&mut self, root_namespace: &str) {
        let mut selectors: HashMap<&str, Vec<_>> = HashMap::new();
        for (number, (_, one)) in (0..).zip(&self.authorization) {
            match &one.scope {
                Scope::Mesh => self.mesh.authorization.push(number),
                Scope::Namespace => {
                    let namespace = self.namespaces.entry(one.namespace.clone()).or_default();
                    namespace.own.authorization.push(number);
                }
                Scope::Workload(selector) => {
                    let selectors = selectors.entry(&one.namespace).or_default();
                    selectors.push((number, selector));
                }
                Scope::Listed => {}
            }
        }
        for (namespace, selectors) in selectors {
            let selectors = Selectors::new(selectors.into_iter());
            if namespace == root_namespace {
                self.everywhere = selectors;
            } else {
                let namespace = self.namespaces.entry(namespace.to_owned()).or_default();
                namespace.authorization = selectors;
            }
        }
    }

    fn sort_peer(&mut self, root_namespace: &str) {
        let mut selectors: HashMap<&str, Vec<_>> = HashMap::new();
        for (number, peer) in (0..).zip(&self.peer) {
            let root = peer.namespace == root_namespace;
            match peer.selector.as_ref().filter(|_| peer.selects()) {
                // As Istio: it is ignored, with a warning.
                Some(_) if root => {}
                Some(selector) => {
                    let selectors = selectors.entry(&peer.namespace).or_default();
                    selectors.push((number, selector));
                }
                None if root => self.mesh.peer.push(number),
                None => {
                    let namespace = self.namespaces.entry(peer.namespace.clone()).or_default();
                    namespace.own.peer.push(number);
                }
            }
        }
        for (namespace, selectors) in selectors {
            let namespace = self.namespaces.entry(namespace.to_owned()).or_default();
            namespace.peer = Selectors::new(selectors.into_iter());
        }
        let namespaces = self.namespaces.values().map(|namespace| &namespace.own);
        let mut scopes: Vec<_> = namespaces.chain([&self.mesh]).map(|scope| &scope.peer).collect();
        // The same order each time, whatever that of the table.
        scopes.sort_unstable();
        let shadowed = scopes.into_iter().flat_map(|peer| shadowed(&self.peer, peer));
        self.warnings.extend(shadowed);
    }
}

impl fmt::Debug for Policies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policies")
            .field("authorization", &self.authorization.len())
            .field("peer", &self.peer.len())
            .finish_non_exhaustive()
    }
}

/// Warns of those after the first, of PeerAuthentications of one scope.
fn shadowed(all: &[PeerAuthentication], numbers: &[u32]) -> Vec<Warning> {
    let mut peers = numbers.iter().map(|number| &all[*number as usize]);
    let Some(first) = peers.next() else {
        return Vec::new();
    };
    let warning = |peer: &PeerAuthentication| Warning {
        policy: peer.qualified(),
        field: "name".to_owned(),
        caution: Caution::Shadowed {
            by: first.qualified(),
        },
    };
    peers.map(warning).collect()
}

// === impl WorkloadPolicies ===

impl WorkloadPolicies {
    /// Decides on a connection. Does not allocate.
    ///
    /// DENY before ALLOW; PeerAuthentication before mesh, namespace, workload; within these the policies' order, and
    /// the rules'. The first that matches is named.
    #[must_use]
    pub fn decide(&self, request: &Request<'_>) -> Decision<'_> {
        let request = &Prepared::new(request);
        let Compiled {
            layers,
            allow,
            dry_run_allow,
            ..
        } = &*self.0;
        let denied = |denial| Decision {
            verdict: Verdict::Denied(denial),
            dry_run: None,
        };
        let mut matched = layers
            .iter()
            .filter_map(|layer| layer.first(&layer.deny, request));
        if let Some((policy, matched)) = matched.next() {
            return denied(if policy.plaintext {
                let policy = Some(matched.policy);
                Denial::Plaintext { policy }
            } else {
                Denial::Rule(matched)
            });
        }
        let mut matched = layers
            .iter()
            .filter_map(|layer| layer.first(&layer.allow, request));
        let allowed = matched.next().map(|(_, matched)| matched);
        if allowed.is_none() && !allow.is_empty() {
            return denied(Denial::NoAllow { policies: allow });
        }
        let mut matched = layers
            .iter()
            .filter_map(|layer| layer.first(&layer.dry_run_deny, request));
        let dry_run = if let Some((_, matched)) = matched.next() {
            Some(Denial::Rule(matched))
        } else if allowed.is_none() && !dry_run_allow.is_empty() {
            // No enforced ALLOW policy applies, else one matched: those in dry run are all there are.
            let mut matched = layers
                .iter()
                .filter_map(|layer| layer.first(&layer.dry_run_allow, request));
            let policies = dry_run_allow;
            matched.next().is_none().then_some(Denial::NoAllow { policies })
        } else {
            None
        };
        Decision {
            verdict: Verdict::Allowed(allowed),
            dry_run,
        }
    }

    /// Whether the workload accepts plaintext.
    #[must_use]
    pub fn mtls(&self) -> &EffectiveMtls {
        &self.0.mtls
    }

    /// What of the policies that apply here may not do what was meant: several PeerAuthentications select the workload.
    #[must_use]
    pub fn warnings(&self) -> &[Warning] {
        &self.0.warnings
    }

    /// Whether both are the same compiled policies, and so decide alike. Cheap; different ones may decide alike too.
    #[must_use]
    pub fn same_as(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The AuthorizationPolicies that apply, in the order in which they are tried within an action.
    pub fn names(&self) -> impl Iterator<Item = PolicySummary<'_>> {
        let policies = self.0.layers.iter().flat_map(|layer| &layer.policies);
        let policies = policies.filter(|policy| !policy.plaintext);
        policies.map(|policy| PolicySummary {
            name: &policy.name,
            action: policy.action,
            dry_run: policy.dry_run,
        })
    }
}

impl fmt::Debug for WorkloadPolicies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.names()).finish()
    }
}
