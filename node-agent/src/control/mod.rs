//! The control plane, of which the agent is a client: what it knows of the mesh comes by delta ADS, and its workloads'
//! certificates from the certificate service, both over one TLS connection.
//!
//! Nothing here is needed for connections that are open, or for new ones between pods that are known: an agent whose control
//! plane is away works on with what it has, for as long as its certificates last, and says so.

mod channel;
mod decode;
mod issuer;
mod report;
mod state;
mod step;
mod stream;

pub use channel::{Address, ControlPlane};
pub use issuer::RemoteIssuer;
pub use report::report;
pub use state::State;
pub use stream::follow;

/// Why the control plane cannot be used right now. Trying again later is always safe.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// A file that is needed to connect cannot be read.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file with roots holds none.
    #[error("{path} holds no certificate in PEM form")]
    NoRoots {
        /// The file.
        path: std::path::PathBuf,
    },
    /// The token is none.
    #[error("{path} holds no token")]
    NoToken {
        /// The file.
        path: std::path::PathBuf,
    },
    /// TLS cannot be set up.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The connection cannot be made.
    #[error("cannot connect: {0}")]
    Connect(std::io::Error),
    /// The control plane refused, or ended the call.
    #[error("{}: {}", .0.code(), .0.message())]
    Status(#[from] Box<tonic::Status>),
    /// It did not answer in time.
    #[error("no answer in time")]
    Timeout,
    /// It ended the stream, as it does now and then.
    #[error("the stream ended")]
    Ended,
}

impl From<tonic::Status> for ControlError {
    fn from(status: tonic::Status) -> Self {
        Self::Status(Box::new(status))
    }
}
