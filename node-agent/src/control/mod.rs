//! The control plane, of which the agent is a client: what it knows of the mesh comes by delta ADS, and its workloads'
//! certificates from the certificate service, both over one TLS connection.
//!
//! Nothing here is needed for connections that are open, or for new ones between pods that are known: an agent whose control
//! plane is away works on with what it has, for as long as its certificates last, and says so.

mod channel;
mod decode;
mod issuer;
mod local;
mod report;
mod state;
mod step;
mod stream;

pub use channel::ControlPlane;
pub use issuer::RemoteIssuer;
pub use report::report;
pub use state::State;
pub use stream::{follow, rehearse};
pub use weir_control_client::{Address, ControlError};
