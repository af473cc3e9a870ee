//! TLS configurations: version, suites, verifiers.
//!
//! TLS 1.3 only, mutual, without resumption: a resumed session would outlive trust that was withdrawn.

use std::sync::{Arc, LazyLock};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, OtherError,
    ServerConfig, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature},
    server::{
        NoServerSessionStorage,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::{CertifiedKey, SingleCertAndKey},
    time_provider::TimeProvider,
    version::TLS13,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use weir_types::Identity;

use super::trust::{PeerError, Trust, Usage};

/// The protocol that both ends must agree on (RFC 9113 section 3.2).
pub const ALPN_H2: &[u8] = b"h2";

/// Suites and groups in order of preference; nothing else is offered or accepted.
pub(super) static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
            aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
        ],
        kx_groups: vec![aws_lc_rs::kx_group::X25519MLKEM768, aws_lc_rs::kx_group::X25519],
        ..aws_lc_rs::default_provider()
    })
});

/// What was negotiated, as `TLS1.3 AES_256_GCM X25519MLKEM768`.
#[must_use]
pub fn describe(connection: &rustls::CommonState) -> String {
    let version = match connection.protocol_version() {
        Some(rustls::ProtocolVersion::TLSv1_3) => "TLS1.3",
        _ => "TLS",
    };
    let suite = connection
        .negotiated_cipher_suite()
        .map(|suite| format!("{:?}", suite.suite()));
    // `TLS13_AES_256_GCM_SHA384`: version and hash are implied.
    let suite = suite.as_deref().unwrap_or_default();
    let suite = suite.strip_prefix("TLS13_").unwrap_or(suite);
    let suite = suite.rsplit_once("_SHA").map_or(suite, |(suite, _)| suite);
    let group = connection
        .negotiated_key_exchange_group()
        .map(|group| format!("{:?}", group.name()));
    format!("{version} {suite} {}", group.as_deref().unwrap_or_default())
}

pub(super) fn server_config(
    key: Arc<CertifiedKey>,
    trust: Arc<Trust>,
    clock: Arc<dyn TimeProvider>,
) -> Result<ServerConfig, Error> {
    let mut config = ServerConfig::builder_with_details(PROVIDER.clone(), clock)
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::new(ClientVerifier { trust }))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(config)
}

pub(super) fn client_config(
    key: Arc<CertifiedKey>,
    trust: Arc<Trust>,
    expected: Arc<[Identity]>,
    clock: Arc<dyn TimeProvider>,
) -> Result<ClientConfig, Error> {
    let mut config = ClientConfig::builder_with_details(PROVIDER.clone(), clock)
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(ServerVerifier { trust, expected }))
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config.enable_sni = false;
    Ok(config)
}

/// Verifies clients: chain and trust domain. Who they are is for the policy.
#[derive(Debug)]
struct ClientVerifier {
    trust: Arc<Trust>,
}

/// Verifies servers: chain, trust domain, and that it is one of those expected.
#[derive(Debug)]
struct ServerVerifier {
    trust: Arc<Trust>,
    expected: Arc<[Identity]>,
}

// === impl ClientVerifier ===

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // A workload has one certificate: hints would cost bytes and help nobody choose.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let chain = chain(end_entity, intermediates);
        match self.trust.verify(&chain, Usage::Client, now) {
            Ok(_) => Ok(ClientCertVerified::assertion()),
            // A client is told of its trust domain by access_denied; see `failure`.
            Err(PeerError::TrustDomain) => Err(CertificateError::ApplicationVerificationFailure.into()),
            Err(error) => Err(refuse(error)),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &PROVIDER.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        PROVIDER.signature_verification_algorithms.supported_schemes()
    }
}

// === impl ServerVerifier ===

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let chain = chain(end_entity, intermediates);
        let peer = self.trust.verify(&chain, Usage::Server, now).map_err(refuse)?;
        if !self.expected.contains(&peer.identity) {
            return Err(CertificateError::ApplicationVerificationFailure.into());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &PROVIDER.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        PROVIDER.signature_verification_algorithms.supported_schemes()
    }
}

fn chain<'a>(
    end_entity: &CertificateDer<'a>,
    intermediates: &[CertificateDer<'a>],
) -> Vec<CertificateDer<'a>> {
    std::iter::once(end_entity)
        .chain(intermediates)
        .cloned()
        .collect()
}

/// The error whose alert tells the peer what is wrong; `failure` reads it back on both sides.
fn refuse(error: PeerError) -> Error {
    match error {
        PeerError::Missing => Error::NoCertificatesPresented,
        PeerError::Untrusted => CertificateError::UnknownIssuer.into(),
        PeerError::Revoked => CertificateError::Revoked.into(),
        PeerError::Expired => CertificateError::Expired.into(),
        PeerError::Malformed => CertificateError::BadEncoding.into(),
        PeerError::Usage => CertificateError::InvalidPurpose.into(),
        PeerError::Names | PeerError::NotSpiffe => CertificateError::NotValidForName.into(),
        PeerError::Identity => CertificateError::ApplicationVerificationFailure.into(),
        PeerError::TrustDomain => CertificateError::Other(OtherError(Arc::new(error))).into(),
    }
}

fn no_tls12() -> Error {
    Error::PeerIncompatible(rustls::PeerIncompatible::Tls12NotOfferedOrEnabled)
}
