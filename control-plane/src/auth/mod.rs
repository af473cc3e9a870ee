//! Who an agent is: the bearer token of its pod, looked at by the API server, and the pod that the token is bound to.
//!
//! The node is the one that the pod's object names; nothing that the client says counts. `claims`, `pod`, `cache` and
//! `throttle` are without I/O and clocks; [`TokenAuthenticator`] is the shell around them.

mod authenticator;
mod cache;
mod claims;
mod lookup;
mod pod;
mod reason;
mod refusals;
mod throttle;
mod token;

pub use authenticator::{AuthLimits, Caller, Callers, TokenAuthenticator};
pub use claims::{AgentAccount, BadAccount, NodeAccount};
pub use lookup::{AgentPods, KubePods, LookupError};
pub use pod::{AgentPod, Controller};
pub use reason::Reason;
pub use refusals::RefusalLog;
