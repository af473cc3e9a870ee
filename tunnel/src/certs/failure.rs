//! From TLS errors to reasons, at the end that refuses a certificate and at the end that is refused.

use std::io;

use rustls::{AlertDescription, CertificateError, Error};
use weir_types::Reason;

use super::trust::PeerError;

/// Which end of the handshake we were.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// We opened the connection.
    Client,
    /// We accepted it.
    Server,
}

/// Why a handshake failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failure {
    /// The reason.
    pub reason: Reason,
    /// The peer refused us, and its alert says so; otherwise we refused the peer.
    pub by_peer: bool,
}

/// Classifies an error of a TLS session.
#[must_use]
pub fn classify(error: &Error, side: Side) -> Failure {
    match error {
        Error::AlertReceived(alert) => Failure {
            reason: from_alert(*alert, side),
            by_peer: true,
        },
        Error::InvalidCertificate(error) => Failure {
            reason: from_certificate(error, side),
            by_peer: false,
        },
        Error::NoCertificatesPresented => Failure {
            reason: Reason::NoCertificate,
            by_peer: false,
        },
        _ => Failure {
            reason: Reason::HandshakeFailed,
            by_peer: false,
        },
    }
}

/// Classifies an error of a TLS stream, if it is one of TLS rather than of the socket.
#[must_use]
pub fn classify_io(error: &io::Error, side: Side) -> Option<Failure> {
    error
        .get_ref()?
        .downcast_ref::<Error>()
        .map(|error| classify(error, side))
}

fn from_certificate(error: &CertificateError, side: Side) -> Reason {
    match error {
        CertificateError::Expired
        | CertificateError::ExpiredContext { .. }
        | CertificateError::NotValidYet
        | CertificateError::NotValidYetContext { .. } => Reason::CertificateExpired,
        CertificateError::UnknownIssuer => Reason::UntrustedRoot,
        CertificateError::Revoked => Reason::CertificateRevoked,
        CertificateError::ApplicationVerificationFailure => refused_name(side.other()),
        CertificateError::Other(other) => other
            .0
            .downcast_ref::<PeerError>()
            .map_or(Reason::BadCertificate, PeerError::reason),
        _ => Reason::BadCertificate,
    }
}

/// The alerts of RFC 8446 section 6.2, as rustls and Envoy send them for each fault of a certificate.
fn from_alert(alert: AlertDescription, side: Side) -> Reason {
    match alert {
        AlertDescription::CertificateExpired => Reason::CertificateExpired,
        AlertDescription::UnknownCA => Reason::UntrustedRoot,
        AlertDescription::CertificateRequired | AlertDescription::NoCertificate => Reason::NoCertificate,
        AlertDescription::AccessDenied => refused_name(side),
        AlertDescription::CertificateUnknown => match side {
            // A client of ours says so of a trust domain, and answers a wrong identity with access_denied.
            Side::Server => Reason::WrongTrustDomain,
            Side::Client => Reason::BadCertificate,
        },
        AlertDescription::CertificateRevoked => Reason::CertificateRevoked,
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::DecryptError => Reason::BadCertificate,
        _ => Reason::HandshakeFailed,
    }
}

/// What `access_denied` is about when the end named here is the one that was refused: a server looks at a
/// client's trust domain alone, a client at the server's identity.
fn refused_name(refused: Side) -> Reason {
    match refused {
        Side::Client => Reason::WrongTrustDomain,
        Side::Server => Reason::WrongIdentity,
    }
}

// === impl Failure ===

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.by_peer {
            write!(
                f,
                "the peer refused our certificate or handshake ({})",
                self.reason
            )
        } else {
            f.write_str(self.reason.explanation())
        }
    }
}

// === impl Side ===

impl Side {
    fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}
