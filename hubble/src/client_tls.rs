//! The client's side of TLS with certificates from the control plane.

use std::sync::Arc;

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::aws_lc_rs,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use weir_types::hubble;

use crate::{
    certificate::Credentials,
    tls::{TlsError, names},
};

/// Whom a client takes for its server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// The server of the name that it connects to.
    Name,
    /// Any agent: who asks by a Service's address does not know whose node answers.
    AnyAgent,
}

/// TLS of a client that shows these credentials.
///
/// # Errors
/// When they are not usable.
pub fn client(credentials: &Credentials, expected: Expected) -> Result<ClientConfig, TlsError> {
    let mut roots = RootCertStore::empty();
    for root in &credentials.roots {
        roots.add(root.clone())?;
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build()?;
    let builder = match expected {
        Expected::Name => builder.with_webpki_verifier(verifier),
        Expected::AnyAgent => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyAgent(verifier))),
    };
    let mut config = builder.with_client_auth_cert(credentials.chain.clone(), credentials.key())?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// Verifies all that is verified of a server's certificate, for the name in it, which must be an agent's.
#[derive(Debug)]
struct AnyAgent(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for AnyAgent {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let no_agent = || Error::InvalidCertificate(CertificateError::NotValidForName);
        let names = names(end_entity);
        let [name] = names.as_slice() else {
            return Err(no_agent());
        };
        if !hubble::is_agent(name) {
            return Err(no_agent());
        }
        let name = ServerName::try_from(name.as_str()).map_err(|_| no_agent())?;
        self.0
            .verify_server_cert(end_entity, intermediates, &name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
