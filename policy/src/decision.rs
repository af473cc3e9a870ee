//! What is asked of policies, and what they answer.

use std::{net::IpAddr, sync::Arc};

use weir_types::Identity;

/// A connection to be decided on.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Who the source proved to be; `None` in plaintext.
    pub source: Option<&'a Identity>,
    /// The source's address; a v4-mapped one counts as IPv4.
    pub source_ip: IpAddr,
    /// The destination's address; a v4-mapped one counts as IPv4.
    pub destination_ip: IpAddr,
    /// The destination's port.
    pub destination_port: u16,
}

/// What policies say of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision<'a> {
    /// What is to be done.
    pub verdict: Verdict<'a>,
    /// Why it would be denied if dry-run policies were enforced. `None` if it would not, or is denied anyhow.
    pub dry_run: Option<Denial<'a>>,
}

/// What is to be done with a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// It is allowed by this rule; `None`: no ALLOW policy applies to the workload.
    Allowed(Option<Matched<'a>>),
    /// It is denied.
    Denied(Denial<'a>),
}

/// A rule that matched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Matched<'a> {
    /// Its policy, `namespace/name`.
    pub policy: &'a Arc<str>,
    /// Its index in the policy, from 0.
    pub rule: u32,
}

/// Why a connection is denied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denial<'a> {
    /// A DENY rule matched.
    Rule(Matched<'a>),
    /// ALLOW policies apply to the workload, and none matched.
    NoAllow {
        /// Those that apply, `namespace/name`, in the order in which they were tried.
        policies: &'a [Arc<str>],
    },
    /// The source has no identity, and the mode is STRICT.
    Plaintext {
        /// The PeerAuthentication that says so, `namespace/name`.
        policy: Option<&'a Arc<str>>,
    },
}
