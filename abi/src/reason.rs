//! Why a connection was refused or failed: one list for kernel, agent, metrics and command line.

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $value:literal, $text:literal, $explanation:literal;)*) => {
        /// Why a connection was refused, failed or ended early.
        ///
        /// The numbers cross the kernel boundary and are never given to another reason.
        #[repr(u32)]
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[cfg_attr(any(test, feature = "user"), derive(Debug))]
        pub enum Reason { $($(#[$doc])* $name = $value,)* }

        impl Reason {
            /// Every reason, in numeric order.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The short name that flows, metric labels and filters use.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// One sentence for a person: what happened, and where to look.
            #[must_use]
            pub const fn explanation(self) -> &'static str {
                match self { $(Self::$name => $explanation,)* }
            }

            /// The reason with this number, if there is one.
            #[must_use]
            pub const fn from_u32(value: u32) -> Option<Self> {
                match value { $($value => Some(Self::$name),)* _ => None }
            }
        }
    };
}

reasons! {
    /// Nothing went wrong.
    None = 0, "none", "Nothing went wrong.";
    /// Plaintext reached a STRICT workload.
    PlaintextToStrict = 1, "plaintext_to_strict", "The workload accepts mutual TLS only, and this connection came in plaintext.";
    /// A SYN with the pod's own address that none of its sockets sent.
    UnregisteredOwnAddress = 2, "unregistered_own_address", "A packet bore the pod's own address but no socket of the pod had opened that connection.";
    /// A cached verdict denied the connection.
    DeniedByVerdict = 3, "denied_by_verdict", "A decision of the agent, cached in the kernel, refuses this destination.";
    /// The pod has no address of the destination's family.
    NoAddressOfFamily = 4, "no_address_of_family", "The pod has no address of the destination's IP family, so the connection cannot be redirected.";
    /// The connection table or the pod's share of it is full.
    TableFull = 5, "table_full", "The pod has as many open connections as its budget in the kernel's table allows.";
    /// The listener of the agent is missing.
    NoListener = 6, "no_listener", "The agent has no listener in this pod's namespace; is it running?";
    /// A connection to the agent's listener that no hook registered.
    Unregistered = 7, "unregistered", "A connection reached one of the agent's listeners without having been redirected there.";
    /// The peer sent no certificate.
    NoCertificate = 8, "no_certificate", "The peer presented no certificate.";
    /// The peer's certificate chains to no trusted root.
    UntrustedRoot = 9, "untrusted_root", "The peer's certificate does not chain to a trusted root.";
    /// The peer's certificate is of another trust domain.
    WrongTrustDomain = 10, "wrong_trust_domain", "The peer's identity belongs to a trust domain that this mesh does not accept.";
    /// The peer's certificate has expired or is not valid yet.
    CertificateExpired = 11, "certificate_expired", "The peer's certificate has expired or is not valid yet; compare the clocks.";
    /// The peer's certificate names an identity that was not expected.
    WrongIdentity = 12, "wrong_identity", "The peer's certificate names another identity than the destination's.";
    /// The peer's certificate is malformed or unfit for this use.
    BadCertificate = 13, "bad_certificate", "The peer's certificate is malformed, unfit for this use, or names not exactly one SPIFFE identity.";
    /// The TLS handshake failed for another cause.
    HandshakeFailed = 14, "handshake_failed", "The TLS handshake failed.";
    /// The handshake did not end in time.
    HandshakeTimeout = 15, "handshake_timeout", "The TLS handshake did not finish in time.";
    /// Too many handshakes are under way.
    HandshakeLimit = 16, "handshake_limit", "Too many unfinished handshakes from this address or on this node.";
    /// A request that was not CONNECT, or malformed.
    BadRequest = 17, "bad_request", "The peer sent something other than a well-formed CONNECT.";
    /// An authority that is malformed or names another address.
    BadAuthority = 18, "bad_authority", "The CONNECT authority is malformed or is not the address that it was sent to.";
    /// An authority with a port of the mesh itself.
    LoopPort = 19, "loop_port", "The CONNECT authority names a port of the mesh itself, which would loop.";
    /// A policy denied the connection.
    PolicyDenied = 20, "policy_denied", "A policy of the destination refuses this connection.";
    /// The application refused.
    ConnectionRefused = 21, "connection_refused", "Nothing accepts connections on the destination's port.";
    /// The destination cannot be reached.
    Unreachable = 22, "unreachable", "There is no route to the destination, or its host answers that it is down.";
    /// Connecting took too long.
    ConnectTimeout = 23, "connect_timeout", "The destination did not answer in time.";
    /// A service without a healthy endpoint.
    NoEndpoint = 24, "no_endpoint", "The service has no endpoint that accepts connections.";
    /// A service without this port.
    UnknownPort = 25, "unknown_port", "The service does not have this port.";
    /// The peer ended the tunnel.
    TunnelReset = 26, "tunnel_reset", "The tunnel's stream was reset by the other side.";
    /// The tunnel's connection broke.
    TunnelBroken = 27, "tunnel_broken", "The connection between the nodes broke.";
    /// The application reset its connection.
    ApplicationReset = 28, "application_reset", "An application reset its connection.";
    /// No certificate could be had for the identity.
    NoOwnCertificate = 29, "no_own_certificate", "No certificate could be issued for this workload; see the agent's log and 'weir status'.";
    /// The peer's certificate expired or lost its root during the connection.
    TrustEnded = 30, "trust_ended", "The peer's certificate expired or lost its root while the connection was open.";
    /// The pod left the mesh, or its mode forbids the connection now.
    PolicyChanged = 31, "policy_changed", "A change of configuration forbids this connection.";
    /// The keep-alive of the tunnel went unanswered.
    KeepAliveTimeout = 32, "keep_alive_timeout", "The peer stopped answering on the tunnel's connection.";
    /// Another failure of a socket.
    Io = 33, "io", "A socket failed; the agent's log has the error.";
    /// The agent is shutting down.
    Shutdown = 34, "shutdown", "The agent was shutting down.";
    /// The kernel's program met something that it cannot handle.
    Internal = 35, "internal", "The agent met something that it cannot handle; please report it with its log.";
    /// An application reads too slowly while the agent is short of memory for waiting data.
    SlowReader = 36, "slow_reader", "The application did not read, and the agent had no more memory for what waits for such applications.";
    /// The agent carries too many connections of the pod.
    ConnectionLimit = 37, "connection_limit", "The agent already carries as many connections of this pod as it may have descriptors.";
    /// ALLOW policies apply and none matches.
    NotAllowed = 38, "not_allowed", "ALLOW policies apply to the destination, and none of their rules matches this connection.";
    /// A direct connection from an address that is not the pod's.
    ForeignSource = 39, "foreign_source", "The socket was bound to an address that is not the pod's own, so its identity cannot be vouched for.";
    /// The agent's lease had ended when the SYN was sent.
    LeaseEnded = 40, "lease_ended", "The agent has given no sign of life for as long as its decisions hold; is it running?";
    /// Another socket is registered under the same addresses and ports.
    Collision = 41, "collision", "Another pod's socket stands under the same addresses and ports.";
    /// The peer's certificate, or its identity, is revoked.
    CertificateRevoked = 42, "certificate_revoked", "The peer's certificate, or the identity that it names, is revoked.";
}

#[cfg(feature = "user")]
impl core::fmt::Display for Reason {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(feature = "user")]
impl core::str::FromStr for Reason {
    type Err = UnknownReason;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .iter()
            .copied()
            .find(|r| r.as_str() == text)
            .ok_or(UnknownReason)
    }
}

/// The text is no reason's name.
#[cfg(feature = "user")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnknownReason;

#[cfg(feature = "user")]
impl core::fmt::Display for UnknownReason {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("not the name of a reason")
    }
}

#[cfg(feature = "user")]
impl core::error::Error for UnknownReason {}

#[cfg(feature = "user")]
impl serde::Serialize for Reason {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

#[cfg(feature = "user")]
impl<'de> serde::Deserialize<'de> for Reason {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_are_unique_and_reversible() {
        let mut names = std::collections::HashSet::new();
        for (index, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index, "numbers are dense");
            assert_eq!(Reason::from_u32(*reason as u32), Some(*reason));
            assert!(names.insert(reason.as_str()), "{} is used twice", reason.as_str());
        }
        assert_eq!(Reason::from_u32(Reason::ALL.len() as u32), None);
    }
}
