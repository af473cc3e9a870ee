//! What the authority's Secret holds, and the rotation of its root: a state machine in the Secret's own data, without
//! I/O or clocks.
//!
//! | Key | Holds |
//! |---|---|
//! | `tls.crt`, `tls.key`, `ca.crt` | who signs: the certificate and those of its issuers, its key, the roots it leads to |
//! | `trusted.crt` | further roots to trust, an operator's own; optional |
//! | `next.crt`, `next.key`, `next-ca.crt` | who will sign, while a rotation is prepared |
//! | `previous.crt`, `previous.key`, `previous-ca.crt` | who signed, while its certificates still live |
//! | `rotation.json` | the phase, and since when; stable if absent |
//! | `revoked.json` | what is revoked; nothing if absent |
//!
//! A rotation without an outage:
//!
//! 1. *prepare*: the new roots are distributed as well; the old authority goes on signing. Agents learn roots only when
//!    they renew a certificate.
//! 2. *activate*, at least [`WAIT`] later, when every agent trusts the new roots: the new authority signs. Both roots
//!    are distributed.
//! 3. *retire*, at least [`WAIT`] later, when no certificate of the old authority lives any more: its roots go.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{
    authority::{AuthorityError, CLOCK_SKEW, LONGEST_LIFETIME, authorities},
    clock::after,
    revocation::{Full, Revoked},
};

/// How long a phase of a rotation lasts at least: a leaf's whole life, since one that was issued the moment before may
/// be renewed as late as that, and ten minutes for replicas to hear of the change and for their clocks to differ.
pub const WAIT: Duration = Duration::from_secs(LONGEST_LIFETIME.as_secs() + CLOCK_SKEW.as_secs() + 10 * 60);

const ROTATION: &str = "rotation.json";
const REVOKED: &str = "revoked.json";
const TRUSTED: &str = "trusted.crt";
/// The keys of what signs, will sign and signed.
const CURRENT: [&str; 3] = ["tls.crt", "tls.key", "ca.crt"];
const NEXT: [&str; 3] = ["next.crt", "next.key", "next-ca.crt"];
const PREVIOUS: [&str; 3] = ["previous.crt", "previous.key", "previous-ca.crt"];

/// A Secret's data to be written; `None` where a key is to be removed.
pub(super) type Written = BTreeMap<&'static str, Option<Zeroizing<Vec<u8>>>>;

/// An authority in PEM form, wiped when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Material {
    /// Its certificate, then those of its issuers.
    pub chain: Vec<u8>,
    /// Its key.
    pub key: Zeroizing<Vec<u8>>,
    /// The roots that it leads to.
    pub roots: Vec<u8>,
}

/// Where a rotation stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Phase {
    /// No rotation.
    #[default]
    Stable,
    /// New roots are distributed; the old authority signs.
    Prepared,
    /// The new authority signs; old roots are distributed still.
    Activated,
}

/// A phase, and when it began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rotation {
    /// The phase.
    pub phase: Phase,
    /// When it began.
    pub since: Timestamp,
}

/// What the Secret holds.
#[derive(Clone, PartialEq, Eq)]
pub struct Contents {
    pub(super) current: Material,
    pub(super) next: Option<Material>,
    pub(super) previous: Option<Material>,
    pub(super) trusted: Vec<u8>,
    pub(super) rotation: Option<Rotation>,
    pub(super) revoked: Revoked,
}

/// Why the Secret's contents are not what they should be.
#[derive(Debug, thiserror::Error)]
pub enum ContentsError {
    /// A key is missing.
    #[error("the Secret has no {0}")]
    Missing(&'static str),
    /// A key is there that does not belong to the phase, or one is not there that does.
    #[error(
        "the Secret is in phase {phase:?} of a rotation, and {key} does not go with that: put back what an operation on the authority wrote"
    )]
    Inconsistent {
        /// The phase.
        phase: Phase,
        /// The key.
        key: &'static str,
    },
    /// Not JSON of the form that it should have.
    #[error("{key} cannot be read: {source}")]
    Json {
        /// The key.
        key: &'static str,
        /// Why.
        source: serde_json::Error,
    },
    /// Certificates or keys.
    #[error("{name}: {source}")]
    Authority {
        /// Which of the authorities.
        name: &'static str,
        /// Why.
        source: AuthorityError,
    },
}

/// Why a rotation does not go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RotationError {
    /// The operation belongs to another phase.
    #[error("the rotation is in phase {is:?}; this is possible in phase {needs:?} only")]
    Phase {
        /// The phase it is in.
        is: Phase,
        /// The phase it would have to be in.
        needs: Phase,
    },
    /// It is too early.
    #[error(
        "not before {until}: until then there may be agents that do not trust the new roots yet, or hold certificates of the old authority. Forcing it cuts their connections"
    )]
    TooEarly {
        /// When it is possible.
        until: Timestamp,
    },
    /// The new authority is the old one.
    #[error("the new authority is the one in force")]
    Same,
    /// There is no room for another revocation.
    #[error(transparent)]
    Full(#[from] Full),
}

// === impl Contents ===

impl Contents {
    /// Contents with this authority and nothing else.
    #[must_use]
    pub fn new(current: Material) -> Self {
        Self {
            current,
            next: None,
            previous: None,
            trusted: Vec::new(),
            rotation: None,
            revoked: Revoked::default(),
        }
    }

    /// Reads a Secret's data. Certificates and keys are not looked into.
    ///
    /// # Errors
    /// When something is missing or does not go together.
    pub fn read<'a>(data: impl Fn(&str) -> Option<&'a [u8]>) -> Result<Self, ContentsError> {
        let rotation: Option<Rotation> = json(&data, ROTATION)?;
        let phase = rotation.map(|rotation| rotation.phase).unwrap_or_default();
        let contents = Self {
            current: Material::read(&data, CURRENT)?.ok_or(ContentsError::Missing(CURRENT[0]))?,
            next: Material::read(&data, NEXT)?,
            previous: Material::read(&data, PREVIOUS)?,
            trusted: data(TRUSTED).unwrap_or_default().to_vec(),
            rotation,
            revoked: json(&data, REVOKED)?.unwrap_or_default(),
        };
        for (material, key, belongs) in [
            (&contents.next, NEXT[0], phase == Phase::Prepared),
            (&contents.previous, PREVIOUS[0], phase == Phase::Activated),
        ] {
            if material.is_some() != belongs {
                return Err(ContentsError::Inconsistent { phase, key });
            }
        }
        Ok(contents)
    }

    /// Writes all of its keys. Other keys of the Secret are not its own.
    ///
    /// # Errors
    /// When something cannot be put into JSON, which does not happen.
    pub(super) fn write(&self) -> Result<Written, ContentsError> {
        let mut data = BTreeMap::new();
        for (material, keys) in [
            (Some(&self.current), CURRENT),
            (self.next.as_ref(), NEXT),
            (self.previous.as_ref(), PREVIOUS),
        ] {
            let [chain, key, roots] = keys;
            data.insert(
                chain,
                material.map(|material| Zeroizing::new(material.chain.clone())),
            );
            data.insert(key, material.map(|material| material.key.clone()));
            data.insert(
                roots,
                material.map(|material| Zeroizing::new(material.roots.clone())),
            );
        }
        data.insert(TRUSTED, some(self.trusted.clone()));
        let text = |key, source| ContentsError::Json { key, source };
        let rotation = self.rotation.as_ref().map(serde_json::to_vec).transpose();
        let rotation = rotation.map_err(|source| text(ROTATION, source))?;
        data.insert(ROTATION, rotation.map(Zeroizing::new));
        let revoked = if self.revoked == Revoked::default() {
            None
        } else {
            Some(serde_json::to_vec(&self.revoked).map_err(|source| text(REVOKED, source))?)
        };
        data.insert(REVOKED, revoked.map(Zeroizing::new));
        Ok(data)
    }

    /// The roots that agents are to trust, each once.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn roots(&self) -> Result<Vec<CertificateDer<'static>>, ContentsError> {
        let mut roots = Vec::new();
        let sources = [
            (CURRENT[2], Some(&self.current.roots)),
            (NEXT[2], self.next.as_ref().map(|material| &material.roots)),
            (
                PREVIOUS[2],
                self.previous.as_ref().map(|material| &material.roots),
            ),
            (TRUSTED, Some(&self.trusted).filter(|trusted| !trusted.is_empty())),
        ];
        for (name, pem) in sources {
            let Some(pem) = pem else { continue };
            let certificates =
                authorities(pem, name).map_err(|source| ContentsError::Authority { name, source })?;
            for certificate in certificates {
                if !roots.contains(&certificate) {
                    roots.push(certificate);
                }
            }
        }
        Ok(roots)
    }

    /// Where the rotation stands.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.rotation.map(|rotation| rotation.phase).unwrap_or_default()
    }

    /// Since when it stands there.
    #[must_use]
    pub fn since(&self) -> Option<Timestamp> {
        Some(self.rotation?.since)
    }

    /// When [`Self::activate`] or [`Self::retire`] is possible; nothing in the stable phase.
    #[must_use]
    pub fn next_possible(&self) -> Option<Timestamp> {
        let rotation = self.rotation.filter(|rotation| rotation.phase != Phase::Stable)?;
        Some(after(rotation.since, WAIT))
    }

    /// First step of a rotation: trust in this authority is distributed.
    ///
    /// # Errors
    /// In another phase than stable, or if it is the one in force.
    pub fn begin(&mut self, next: Material, now: Timestamp) -> Result<(), RotationError> {
        self.require(Phase::Stable)?;
        if next.chain == self.current.chain || next.key == self.current.key {
            return Err(RotationError::Same);
        }
        self.next = Some(next);
        self.enter(Phase::Prepared, now);
        Ok(())
    }

    /// Takes the first step back. Nothing was signed by the new authority yet.
    ///
    /// # Errors
    /// In another phase than prepared.
    pub fn abandon(&mut self, now: Timestamp) -> Result<(), RotationError> {
        self.require(Phase::Prepared)?;
        self.next = None;
        self.enter(Phase::Stable, now);
        Ok(())
    }

    /// Second step: the new authority signs.
    ///
    /// # Errors
    /// In another phase than prepared, or earlier than [`WAIT`] unless `force`.
    pub fn activate(&mut self, now: Timestamp, force: bool) -> Result<(), RotationError> {
        self.require(Phase::Prepared)?;
        self.require_waited(now, force)?;
        let Some(next) = self.next.take() else {
            return Err(self.wrong(Phase::Prepared));
        };
        self.previous = Some(std::mem::replace(&mut self.current, next));
        self.enter(Phase::Activated, now);
        Ok(())
    }

    /// Third step: the old authority is not trusted any more.
    ///
    /// # Errors
    /// In another phase than activated, or earlier than [`WAIT`] unless `force`.
    pub fn retire(&mut self, now: Timestamp, force: bool) -> Result<(), RotationError> {
        self.require(Phase::Activated)?;
        self.require_waited(now, force)?;
        self.previous = None;
        self.enter(Phase::Stable, now);
        Ok(())
    }

    /// What is revoked.
    pub fn revoked_mut(&mut self) -> &mut Revoked {
        &mut self.revoked
    }

    fn enter(&mut self, phase: Phase, since: Timestamp) {
        self.rotation = Some(Rotation { phase, since });
    }

    fn require(&self, needs: Phase) -> Result<(), RotationError> {
        if self.phase() == needs {
            Ok(())
        } else {
            Err(self.wrong(needs))
        }
    }

    fn wrong(&self, needs: Phase) -> RotationError {
        RotationError::Phase {
            is: self.phase(),
            needs,
        }
    }

    fn require_waited(&self, now: Timestamp, force: bool) -> Result<(), RotationError> {
        match self.next_possible() {
            Some(until) if now < until && !force => Err(RotationError::TooEarly { until }),
            _ => Ok(()),
        }
    }
}

impl Material {
    /// All three of its keys, or none.
    fn read<'a>(
        data: &impl Fn(&str) -> Option<&'a [u8]>,
        keys: [&'static str; 3],
    ) -> Result<Option<Self>, ContentsError> {
        // A Secret of type kubernetes.io/tls has its keys before it has contents.
        let of = |key| data(key).filter(|value| !value.is_empty());
        if keys.iter().all(|key| of(key).is_none()) {
            return Ok(None);
        }
        let required = |key: &'static str| of(key).map(<[u8]>::to_vec).ok_or(ContentsError::Missing(key));
        let [chain, key, roots] = keys;
        Ok(Some(Self {
            chain: required(chain)?,
            key: Zeroizing::new(required(key)?),
            roots: required(roots)?,
        }))
    }
}

fn json<'a, T: for<'de> Deserialize<'de>>(
    data: &impl Fn(&str) -> Option<&'a [u8]>,
    key: &'static str,
) -> Result<Option<T>, ContentsError> {
    let parsed = data(key).map(serde_json::from_slice).transpose();
    parsed.map_err(|source| ContentsError::Json { key, source })
}

fn some(bytes: Vec<u8>) -> Option<Zeroizing<Vec<u8>>> {
    (!bytes.is_empty()).then(|| Zeroizing::new(bytes))
}

#[cfg(test)]
mod tests;
