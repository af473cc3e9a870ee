//! The mesh's policy at L4: Istio's `AuthorizationPolicy` and `PeerAuthentication`, in one evaluator.
//!
//! The types of [`istio`] are what people write. They become [`Authorization`]s, the form in which policies also
//! come over the wire, and these become [`Policies`], which answer for a workload: [`WorkloadPolicies::decide`].
//! No I/O, clocks or logging here.
#![forbid(unsafe_code)]

pub mod authorization;
pub mod cidr;
mod convert;
pub mod decision;
pub mod error;
mod index;
pub mod istio;
mod layer;
pub mod peer;
pub mod policies;
mod received;
mod selection;
mod wire;

pub use authorization::{
    Action, Authorization, Clause, Match, Rule, Scope, Selector, ServiceAccountMatch, StringMatch,
};
pub use cidr::{Cidr, CidrError};
pub use decision::{Decision, Denial, Matched, Request, Verdict};
pub use error::{Caution, PolicyError, Problem, Warning};
pub use istio::{AuthorizationPolicy, PeerAuthentication};
pub use peer::{EffectiveMtls, MtlsMode};
pub use policies::{Policies, PolicySummary, WorkloadPolicies};
pub use wire::CONVERTED;
