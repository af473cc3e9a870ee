//! Certificate authorities: the workloads', which signs for the agents of their nodes, and that of the ports that serve flows
//! ([`crate::flows`]). [`Scope`] tells them apart.
//!
//! [`AuthoritySecret`] keeps key and roots in a Secret and has the operations on it, [`Keys`] puts it into force and
//! keeps up with it, [`CertificateService`] answers agents that ask for workloads. The rotation of the root, with its steps and the layout of
//! the Secret, is described in `contents`; it has no I/O, nor have `csr`, `authority` and `revocation`.

mod authority;
pub(crate) mod clock;
mod contents;
mod csr;
mod in_force;
mod keys;
mod metrics;
pub(crate) mod pem;
pub(crate) mod rate;
mod revocation;
mod scope;
mod secret;
mod server_certificate;
mod service;

pub use authority::{Authority, AuthorityError, CLOCK_SKEW, Certified, LONGEST_LIFETIME};
pub use contents::{Contents, ContentsError, Material, Phase, Rotation, RotationError, WAIT};
pub use csr::{CsrError, MOST_CSR_BYTES, VerifiedRequest};
pub use in_force::InForce;
pub use keys::{Keys, RevocationLists, Source};
pub(crate) use metrics::Metrics;
pub use revocation::{
    Full, LIST_LIFETIME, MOST_REVOKED, Reason, Revoked, RevokedIdentity, RevokedSerial, Serial, SerialError,
};
pub use scope::{Scope, Usage};
pub use secret::{AuthoritySecret, AuthorityStatus, NextAuthority, SecretError, SecretName};
pub use server_certificate::ServerCertificate;
pub use service::{CaLimits, CertificateService, Entitlements};
