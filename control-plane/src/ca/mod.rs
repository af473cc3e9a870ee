//! The certificate authority: signs certificates of workloads for the agents of their nodes.
//!
//! [`AuthoritySecret`] keeps key and roots in a Secret and has the operations on it, [`Keys`] puts it into force and
//! keeps up with it, [`CertificateService`] answers agents. The rotation of the root, with its steps and the layout of
//! the Secret, is described in `contents`; it has no I/O, nor have `csr`, `authority` and `revocation`.

mod authority;
mod clock;
mod contents;
mod csr;
mod in_force;
mod keys;
mod metrics;
mod pem;
mod rate;
mod revocation;
mod secret;
mod server_certificate;
mod service;

pub use authority::{Authority, AuthorityError, CLOCK_SKEW, Certified, LONGEST_LIFETIME};
pub use contents::{Contents, ContentsError, Material, Phase, Rotation, RotationError, WAIT};
pub use csr::{CsrError, MOST_CSR_BYTES, VerifiedRequest};
pub use in_force::InForce;
pub use keys::{Keys, RevocationLists, Source};
pub use revocation::{
    Full, LIST_LIFETIME, MOST_REVOKED, Reason, Revoked, RevokedIdentity, RevokedSerial, Serial, SerialError,
};
pub use secret::{AuthoritySecret, AuthorityStatus, NextAuthority, SecretError, SecretName};
pub use server_certificate::ServerCertificate;
pub use service::{CaLimits, CertificateService, Entitlements};
