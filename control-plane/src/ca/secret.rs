//! The authority's Secret: reading, making and changing it.
//!
//! Buffers of ours are wiped. Those inside of the Kubernetes client, through which the API server's answers come,
//! are not in our hands.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{Api, Client, api::PostParams};
use zeroize::{Zeroize as _, Zeroizing};

use super::{
    authority::{Authority, AuthorityError},
    contents::{Contents, ContentsError, Material, Phase, RotationError},
    in_force::InForce,
    revocation::{Full, Reason, Revoked, Serial},
    scope::Scope,
};

/// cert-manager's annotation on Secrets that it writes.
const MANAGED: &str = "cert-manager.io/certificate-name";
/// How often a change is tried again when another was faster.
const ATTEMPTS: usize = 8;
const CONFLICT: u16 = 409;

/// Which Secret it is.
#[derive(Debug, Clone)]
pub struct SecretName {
    /// Its namespace: one of its own, in which nobody else may read Secrets.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// Operations on the authority's Secret, for replicas and for the command line alike. Any number may run at the same
/// time.
#[derive(Clone)]
pub struct AuthoritySecret {
    api: Api<Secret>,
    name: SecretName,
    scope: Scope,
}

/// Who is to sign after a rotation.
pub enum NextAuthority {
    /// A new self-signed root.
    Generate,
    /// One given by the operator.
    Given(Material),
}

/// What is known of the authority, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorityStatus {
    /// Where a rotation stands.
    pub phase: Phase,
    /// When the next step of it is possible.
    pub next_possible: Option<Timestamp>,
    /// How many roots are distributed.
    pub roots: usize,
    /// When the first of them ends.
    pub roots_end: Timestamp,
    /// When the signing certificate ends.
    pub authority_end: Timestamp,
    /// Why no revocation list can be signed, so that single certificates cannot be revoked.
    pub no_lists: Option<String>,
    /// Certificates that are revoked.
    pub revoked_serials: usize,
    /// Identities that are revoked.
    pub revoked_identities: usize,
}

/// Why an operation on the Secret failed.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The API server refused or cannot be reached.
    #[error("the Secret {name} cannot be read or written: {source}")]
    Kubernetes {
        /// Namespace and name.
        name: String,
        /// Why.
        source: Box<kube::Error>,
    },
    /// There is none.
    #[error("there is no Secret {0}")]
    Absent(String),
    /// Its contents, or what they would become, are not fit.
    #[error(transparent)]
    Contents(#[from] ContentsError),
    /// The rotation does not go on.
    #[error(transparent)]
    Rotation(#[from] RotationError),
    /// No new root could be made.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// Another writes the authority into it.
    #[error(
        "cert-manager writes the authority into the Secret {0}: put the new root into trusted.crt, wait for a day, have cert-manager issue from it, wait for another day, and remove the old root"
    )]
    Managed(String),
    /// Others kept changing it.
    #[error("the Secret {0} was changed by others each time; try again")]
    Contended(String),
}

// === impl AuthoritySecret ===

impl AuthoritySecret {
    /// The Secret of an authority.
    #[must_use]
    pub fn new(client: Client, name: SecretName, scope: impl Into<Scope>) -> Self {
        Self {
            api: Api::namespaced(client, &name.namespace),
            name,
            scope: scope.into(),
        }
    }

    /// Makes the Secret with a new root if there is none. Of several replicas that do this at once, one makes it.
    /// Whether it was this one.
    ///
    /// # Errors
    /// When the API server refuses, or no root can be made.
    pub async fn create_if_absent(&self, now: Timestamp) -> Result<bool, SecretError> {
        if let Some(secret) = self
            .api
            .get_opt(&self.name.name)
            .await
            .map_err(|e| self.kubernetes(e))?
        {
            wipe(secret);
            return Ok(false);
        }
        let contents = Contents::new(self.generate(now)?);
        // Never in force before it was tried.
        InForce::load(&contents, &self.scope, now)?;
        let mut secret = Secret {
            type_: Some("kubernetes.io/tls".to_owned()),
            ..Secret::default()
        };
        secret.metadata.name = Some(self.name.name.clone());
        fill(&mut secret, &contents)?;
        let created = self.api.create(&PostParams::default(), &secret).await;
        wipe(secret);
        match created {
            Ok(secret) => {
                wipe(secret);
                Ok(true)
            }
            Err(kube::Error::Api(status)) if status.code == CONFLICT => Ok(false),
            Err(error) => Err(self.kubernetes(error)),
        }
    }

    /// What is in force, as far as the Secret says.
    ///
    /// # Errors
    /// When the Secret cannot be read, or is not fit.
    pub async fn status(&self, now: Timestamp) -> Result<AuthorityStatus, SecretError> {
        let contents = self.contents().await?;
        let in_force = InForce::load(&contents, &self.scope, now)?;
        Ok(AuthorityStatus {
            phase: contents.phase(),
            next_possible: contents.next_possible(),
            roots: in_force.roots().len(),
            roots_end: in_force.roots_end(),
            authority_end: in_force.authority().not_after(),
            no_lists: in_force
                .revocation_lists(now)
                .err()
                .map(|error| error.to_string()),
            revoked_serials: contents.revoked.serials.len(),
            revoked_identities: contents.revoked.identities.len(),
        })
    }

    /// Begins a rotation; see [`Contents::begin`].
    ///
    /// # Errors
    /// When the rotation, the new authority or the API server do not allow it.
    pub async fn begin(&self, next: NextAuthority, now: Timestamp) -> Result<(), SecretError> {
        let next = match next {
            NextAuthority::Generate => self.generate(now)?,
            NextAuthority::Given(material) => material,
        };
        self.rotate(now, |contents| contents.begin(next.clone(), now))
            .await
    }

    /// Has the new authority sign; see [`Contents::activate`].
    ///
    /// # Errors
    /// As [`Self::begin`], and when it is too early.
    pub async fn activate(&self, now: Timestamp, force: bool) -> Result<(), SecretError> {
        self.rotate(now, |contents| contents.activate(now, force)).await
    }

    /// Ends a rotation; see [`Contents::retire`].
    ///
    /// # Errors
    /// As [`Self::activate`].
    pub async fn retire(&self, now: Timestamp, force: bool) -> Result<(), SecretError> {
        self.rotate(now, |contents| contents.retire(now, force)).await
    }

    /// Takes the beginning of a rotation back; see [`Contents::abandon`].
    ///
    /// # Errors
    /// As [`Self::begin`].
    pub async fn abandon(&self, now: Timestamp) -> Result<(), SecretError> {
        self.rotate(now, |contents| contents.abandon(now)).await
    }

    /// Revokes a certificate.
    ///
    /// # Errors
    /// When there is no room, or the API server refuses.
    pub async fn revoke_serial(
        &self,
        serial: Serial,
        reason: Reason,
        now: Timestamp,
    ) -> Result<(), SecretError> {
        self.revoke(now, |revoked| revoked.add_serial(serial.clone(), reason, now))
            .await
    }

    /// Changes what is revoked.
    ///
    /// # Errors
    /// When there is no room, or the API server refuses.
    pub async fn revoke(
        &self,
        now: Timestamp,
        change: impl Fn(&mut Revoked) -> Result<(), Full>,
    ) -> Result<(), SecretError> {
        self.change(now, |_, contents| {
            Ok(change(contents.revoked_mut()).map_err(RotationError::from)?)
        })
        .await
    }

    async fn rotate(
        &self,
        now: Timestamp,
        step: impl Fn(&mut Contents) -> Result<(), RotationError>,
    ) -> Result<(), SecretError> {
        self.change(now, |secret, contents| {
            // Its next renewal would undo the step.
            let annotations = secret.metadata.annotations.as_ref();
            if annotations.is_some_and(|annotations| annotations.contains_key(MANAGED)) {
                return Err(SecretError::Managed(self.display()));
            }
            Ok(step(contents)?)
        })
        .await
    }

    /// Changes what is there, if nobody else does meanwhile, and if what comes of it is fit to be in force.
    async fn change(
        &self,
        now: Timestamp,
        change: impl Fn(&Secret, &mut Contents) -> Result<(), SecretError>,
    ) -> Result<(), SecretError> {
        for _ in 0..ATTEMPTS {
            let mut secret = self.get().await?;
            let changed = contents(&secret)
                .map_err(SecretError::from)
                .and_then(|mut contents| {
                    change(&secret, &mut contents)?;
                    InForce::load(&contents, &self.scope, now)?;
                    Ok(fill(&mut secret, &contents)?)
                });
            if let Err(error) = changed {
                wipe(secret);
                return Err(error);
            }
            // With the resourceVersion that was read, so that a change in between is a conflict.
            let replaced = self
                .api
                .replace(&self.name.name, &PostParams::default(), &secret)
                .await;
            wipe(secret);
            match replaced {
                Ok(secret) => {
                    wipe(secret);
                    return Ok(());
                }
                Err(kube::Error::Api(status)) if status.code == CONFLICT => {}
                Err(error) => return Err(self.kubernetes(error)),
            }
        }
        Err(SecretError::Contended(self.display()))
    }

    pub(super) fn api(&self) -> &Api<Secret> {
        &self.api
    }

    pub(super) fn name(&self) -> &str {
        &self.name.name
    }

    pub(crate) fn scope(&self) -> &Scope {
        &self.scope
    }

    /// Namespace and name.
    pub(super) fn display(&self) -> String {
        format!("{}/{}", self.name.namespace, self.name.name)
    }

    /// What it holds now.
    ///
    /// # Errors
    /// When the Secret cannot be read, or is not fit.
    pub(crate) async fn contents(&self) -> Result<Contents, SecretError> {
        let secret = self.get().await?;
        let contents = contents(&secret);
        wipe(secret);
        Ok(contents?)
    }

    async fn get(&self) -> Result<Secret, SecretError> {
        let secret = self
            .api
            .get_opt(&self.name.name)
            .await
            .map_err(|e| self.kubernetes(e))?;
        secret.ok_or_else(|| SecretError::Absent(self.display()))
    }

    fn generate(&self, now: Timestamp) -> Result<Material, SecretError> {
        let root = Authority::new_root(&self.scope, now)?;
        let certificate = root.certificate.into_bytes();
        Ok(Material {
            chain: certificate.clone(),
            key: Zeroizing::new(root.key.as_bytes().to_vec()),
            roots: certificate,
        })
    }

    fn kubernetes(&self, source: kube::Error) -> SecretError {
        SecretError::Kubernetes {
            name: self.display(),
            source: Box::new(source),
        }
    }
}

/// What a Secret holds.
pub(super) fn contents(secret: &Secret) -> Result<Contents, ContentsError> {
    let data = secret.data.as_ref();
    Contents::read(|key| {
        data.and_then(|data| data.get(key))
            .map(|value| value.0.as_slice())
    })
}

/// Wipes what a Secret holds.
pub(super) fn wipe(mut secret: Secret) {
    for value in secret.data.iter_mut().flat_map(BTreeMap::values_mut) {
        value.0.zeroize();
    }
}

fn fill(secret: &mut Secret, contents: &Contents) -> Result<(), ContentsError> {
    let data = secret.data.get_or_insert_default();
    for (key, value) in contents.write()? {
        let old = match value {
            Some(value) => data.insert(key.to_owned(), ByteString(value.to_vec())),
            None => data.remove(key),
        };
        if let Some(mut old) = old {
            old.0.zeroize();
        }
    }
    Ok(())
}
