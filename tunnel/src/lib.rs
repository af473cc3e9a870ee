//! Mutual TLS tunnels between workload identities: certificates, HBONE, pooling, byte copying.
//!
//! HBONE is HTTP/2 `CONNECT` over mutual TLS. A node agent uses [`pool::Pool`] for the connections that its
//! pods open and [`hbone::Server`] for those that reach them; both take certificates from one
//! [`certs::CertificateStore`] and move bytes with [`copy`]. Nothing here knows policy or workloads: what to
//! allow and where to connect is asked of the [`hbone::Handler`] and [`pool::Connector`] that the agent gives.
#![forbid(unsafe_code)]

pub mod ca;
pub mod certs;
pub mod connection;
pub mod copy;
pub mod hbone;
pub mod io;
pub mod pool;

pub use connection::{ConnectionState, PodKey, Registry, SeenPeer};
