//! Certificates in memory: one for each identity, renewed in time, and the roots that peers must chain to.

mod failure;
mod renewal;
mod revoked;
mod store;
mod tls;
mod trust;

pub use failure::{Failure, Side, classify, classify_io};
pub use revoked::{Revoked, RevokedError};
pub(crate) use store::system_time;
pub use store::{CertificateError, CertificateStore, Current, DEFAULT_LIFETIME, RenewalObserver, Settings};
pub use tls::{ALPN_H2, describe};
pub use trust::{PeerCertificate, PeerError, Trust, TrustBundle, Usage};
