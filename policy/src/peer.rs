//! From `PeerAuthentication` to a workload's mTLS mode, and to the DENY policies that enforce it.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    Action, Authorization, Caution, Clause, Match, PolicyError, Problem, Rule, Scope, StringMatch, Warning,
    convert::named,
    istio::{PeerAuthentication, PeerMode},
};

/// Whether plaintext is accepted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum MtlsMode {
    /// Mutual TLS and plaintext.
    #[default]
    Permissive,
    /// Mutual TLS only.
    Strict,
}

/// Whether a workload accepts plaintext, and which PeerAuthentication says so.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EffectiveMtls {
    mode: MtlsMode,
    source: Option<Arc<str>>,
    ports: BTreeMap<u16, MtlsMode>,
    ports_source: Option<Arc<str>>,
}

/// The PeerAuthentications that count for a workload: the first of each scope.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Chosen<'a> {
    pub(crate) workload: Option<&'a PeerAuthentication>,
    pub(crate) namespace: Option<&'a PeerAuthentication>,
    pub(crate) mesh: Option<&'a PeerAuthentication>,
}

// === impl PeerAuthentication ===

impl PeerAuthentication {
    /// Checks it by itself, and says what of it may not do what was meant.
    ///
    /// # Errors
    /// When a field is wrong; the first that is.
    pub fn check(&self, root_namespace: &str) -> Result<Vec<Warning>, PolicyError> {
        named(&self.name, &self.namespace)?;
        let mut warnings = Vec::new();
        let mut warn = |field: String, caution| {
            let policy = self.qualified();
            warnings.push(Warning {
                policy,
                field,
                caution,
            });
        };
        if !self.selects() && !self.port_level_mtls.is_empty() {
            return Err(PolicyError::new("portLevelMtls", Problem::NoSelector));
        }
        if self.selects() && self.namespace == root_namespace {
            warn("selector".to_owned(), Caution::RootSelector);
        }
        if self.mode() == PeerMode::Disable {
            warn("mtls.mode".to_owned(), Caution::Disable);
        }
        for (port, mtls) in &self.port_level_mtls {
            if mtls.mode == PeerMode::Disable {
                warn(format!("portLevelMtls.{port}.mode"), Caution::Disable);
            }
        }
        Ok(warnings)
    }

    /// Whether it concerns chosen workloads; Istio takes an empty selector for none.
    pub(crate) fn selects(&self) -> bool {
        self.selector.as_ref().is_some_and(|s| !s.match_labels.is_empty())
    }

    pub(crate) fn mode(&self) -> PeerMode {
        self.mtls.map_or(PeerMode::Unset, |mtls| mtls.mode)
    }

    /// `namespace/name`.
    pub(crate) fn qualified(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

// === impl PeerMode ===

impl PeerMode {
    fn resolved(self) -> Option<MtlsMode> {
        match self {
            Self::Unset => None,
            Self::Disable | Self::Permissive => Some(MtlsMode::Permissive),
            Self::Strict => Some(MtlsMode::Strict),
        }
    }
}

// === impl EffectiveMtls ===

impl EffectiveMtls {
    /// The mode of a port.
    #[must_use]
    pub fn mode(&self, port: u16) -> MtlsMode {
        self.ports.get(&port).copied().unwrap_or(self.mode)
    }

    /// The mode of ports that have none of their own.
    #[must_use]
    pub fn default_mode(&self) -> MtlsMode {
        self.mode
    }

    /// Modes of ports that have one of their own, by port.
    #[must_use]
    pub fn ports(&self) -> &BTreeMap<u16, MtlsMode> {
        &self.ports
    }

    /// Whether no port accepts plaintext.
    #[must_use]
    pub fn is_strict_everywhere(&self) -> bool {
        self.mode == MtlsMode::Strict && self.ports.values().all(|mode| *mode == MtlsMode::Strict)
    }

    /// Whether a port does not accept plaintext.
    #[must_use]
    pub fn is_strict_anywhere(&self) -> bool {
        self.mode == MtlsMode::Strict || self.ports.values().any(|mode| *mode == MtlsMode::Strict)
    }

    /// The PeerAuthentication that the default mode is from, `namespace/name`; `None` if none sets one.
    #[must_use]
    pub fn source(&self) -> Option<&Arc<str>> {
        self.source.as_ref()
    }

    /// The PeerAuthentication that a port's mode is from, `namespace/name`.
    #[must_use]
    pub fn source_of(&self, port: u16) -> Option<&Arc<str>> {
        let own = self.ports.contains_key(&port);
        if own {
            self.ports_source.as_ref()
        } else {
            self.source()
        }
    }

    pub(crate) fn of_parts(
        mode: MtlsMode,
        source: Option<Arc<str>>,
        ports: BTreeMap<u16, MtlsMode>,
        ports_source: Option<Arc<str>>,
    ) -> Self {
        Self {
            mode,
            source,
            ports,
            ports_source,
        }
    }

    pub(crate) fn resolve(chosen: Chosen<'_>) -> Self {
        let scopes = [chosen.workload, chosen.namespace, chosen.mesh];
        let mut modes = scopes
            .into_iter()
            .flatten()
            .filter_map(|peer| Some((peer, peer.mode().resolved()?)));
        let (source, mode) = match modes.next() {
            Some((peer, mode)) => (Some(peer.qualified().into()), mode),
            None => (None, MtlsMode::default()),
        };
        let ports = chosen.workload.map(|peer| &peer.port_level_mtls).into_iter();
        let ports: BTreeMap<_, _> = ports
            .flatten()
            .filter_map(|(port, mtls)| Some((*port, mtls.mode.resolved()?)))
            .collect();
        Self {
            mode,
            source,
            ports_source: chosen
                .workload
                .filter(|_| !ports.is_empty())
                .map(|peer| peer.qualified().into()),
            ports,
        }
    }

    /// The DENY policies that enforce it, with the PeerAuthentications' names: that of single ports first.
    pub(crate) fn policies(&self) -> Vec<(Arc<str>, Authorization)> {
        let ports = |wanted| -> Vec<u16> {
            let wanted = self.ports.iter().filter(|(_, mode)| **mode == wanted);
            wanted.map(|(port, _)| *port).collect()
        };
        let (strict, permissive) = (ports(MtlsMode::Strict), ports(MtlsMode::Permissive));
        let mut policies = Vec::new();
        if let Some(source) = self.ports_source.as_ref().filter(|_| !strict.is_empty()) {
            let at = Match {
                destination_ports: strict,
                ..Match::default()
            };
            policies.push((source.clone(), deny_plaintext(source, Some(at))));
        }
        if let Some(source) = self.source.as_ref().filter(|_| self.mode == MtlsMode::Strict) {
            let elsewhere = (!permissive.is_empty()).then(|| Match {
                not_destination_ports: permissive,
                ..Match::default()
            });
            policies.push((source.clone(), deny_plaintext(source, elsewhere)));
        }
        policies
    }
}

/// A rule of a DENY policy that refuses plaintext and does nothing else.
pub(crate) enum PlaintextRule<'a> {
    /// At these ports.
    At(&'a [u16]),
    /// At all but these.
    Except(&'a [u16]),
}

impl<'a> PlaintextRule<'a> {
    /// What a rule is, if it is one.
    pub(crate) fn of(rule: &'a Rule) -> Option<Self> {
        let plaintext = Match {
            not_principals: vec![StringMatch::Presence],
            ..Match::default()
        };
        let mut matches = rule.clauses.iter().map(|clause| match &clause.matches[..] {
            [one] => Some(one),
            _ => None,
        });
        if matches.next()?? != &plaintext {
            return None;
        }
        let Some(ports) = matches.next() else {
            return Some(Self::Except(&[]));
        };
        let ports = ports?;
        let of_ports = Match {
            destination_ports: ports.destination_ports.clone(),
            not_destination_ports: ports.not_destination_ports.clone(),
            ..Match::default()
        };
        match (
            &ports.destination_ports[..],
            &ports.not_destination_ports[..],
            matches.next(),
        ) {
            _ if *ports != of_ports => None,
            (at, [], None) if !at.is_empty() => Some(Self::At(at)),
            ([], except, None) if !except.is_empty() => Some(Self::Except(except)),
            _ => None,
        }
    }
}

/// Whether a policy refuses plaintext and does nothing else.
pub(crate) fn denies_plaintext(policy: &Authorization) -> bool {
    policy.action == Action::Deny
        && !policy.dry_run
        && !policy.rules.is_empty()
        && policy.rules.iter().all(|rule| PlaintextRule::of(rule).is_some())
}

/// DENY of sources without identity, where the second match holds.
fn deny_plaintext(source: &str, at: Option<Match>) -> Authorization {
    let plaintext = Match {
        not_principals: vec![StringMatch::Presence],
        ..Match::default()
    };
    let matches = [Some(plaintext), at].into_iter().flatten();
    let clauses = matches.map(|one| Clause { matches: vec![one] }).collect();
    let (namespace, name) = source.split_once('/').unwrap_or(("", source));
    Authorization {
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        scope: Scope::Mesh,
        action: Action::Deny,
        rules: vec![Rule { clauses }],
        dry_run: false,
    }
}
