//! Weir's reasons as those for which Cilium drops.

use weir_proto::flow::DropReason;
use weir_types::Reason;

/// The nearest reason of Hubble's. The exact one stands in the details.
#[must_use]
pub fn drop_reason(reason: Reason) -> DropReason {
    match reason {
        Reason::PlaintextToStrict => DropReason::UnencryptedTraffic,
        Reason::PolicyDenied | Reason::DeniedByVerdict | Reason::PolicyChanged => DropReason::PolicyDeny,
        // No rule of those that allow matched.
        Reason::NotAllowed => DropReason::PolicyDenied,
        Reason::NoCertificate
        | Reason::UntrustedRoot
        | Reason::WrongTrustDomain
        | Reason::BadCertificate
        | Reason::CertificateExpired
        | Reason::CertificateRevoked
        | Reason::HandshakeFailed
        | Reason::HandshakeTimeout
        | Reason::TrustEnded
        | Reason::NoOwnCertificate => DropReason::AuthRequired,
        Reason::WrongIdentity => DropReason::InvalidIdentity,
        Reason::UnregisteredOwnAddress | Reason::ForeignSource => DropReason::InvalidSourceIp,
        Reason::TableFull | Reason::ConnectionLimit => DropReason::CtMapInsertionFailed,
        Reason::HandshakeLimit => DropReason::DropRateLimited,
        Reason::NoEndpoint | Reason::UnknownPort => DropReason::ServiceBackendNotFound,
        Reason::LeaseEnded => DropReason::NoConfigurationAvailableToPerformPolicyDecision,
        Reason::NoListener => DropReason::DropEpNotReady,
        Reason::Unreachable => DropReason::StaleOrUnroutableIp,
        _ => DropReason::Unknown,
    }
}
