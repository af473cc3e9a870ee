//! Certificates from the control plane.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use prost_types::{Struct, Value, value::Kind};
use rustls_pki_types::CertificateDer;
use weir_proto::istio::v1::auth::{
    IstioCertificateRequest, istio_certificate_service_client::IstioCertificateServiceClient,
};
use weir_tunnel::ca::{CertificateRequest, IssueError, Issued, Issuer};
use weir_types::Identity;

use super::{ControlError, ControlPlane};

/// The field of a request's metadata that names for whom the certificate is.
const IMPERSONATED: &str = "ImpersonatedIdentity";
/// Most bytes of an answer: a chain and some roots.
const MAX_ANSWER: usize = 1 << 20;

/// Asks the control plane's certificate service.
pub struct RemoteIssuer {
    control_plane: ControlPlane,
    /// As of the last answer.
    roots: ArcSwap<Vec<CertificateDer<'static>>>,
}

impl RemoteIssuer {
    /// An issuer that knows no roots before its first answer: until then no peer is trusted.
    #[must_use]
    pub fn new(control_plane: ControlPlane) -> Self {
        Self {
            control_plane,
            roots: ArcSwap::default(),
        }
    }

    async fn ask(
        &self,
        csr: &str,
        identity: &Identity,
        lifetime: Duration,
    ) -> Result<Vec<String>, ControlError> {
        let name = Value {
            kind: Some(Kind::StringValue(identity.to_string())),
        };
        let request = IstioCertificateRequest {
            csr: csr.to_owned(),
            validity_duration: i64::try_from(lifetime.as_secs()).unwrap_or(i64::MAX),
            metadata: Some(Struct {
                fields: BTreeMap::from([(IMPERSONATED.to_owned(), name)]),
            }),
        };
        let request = self.control_plane.request(request).await?;
        let mut client = IstioCertificateServiceClient::new(self.control_plane.channel())
            .max_decoding_message_size(MAX_ANSWER);
        let answer = client.create_certificate(request).await?;
        Ok(answer.into_inner().cert_chain)
    }
}

#[async_trait]
impl Issuer for RemoteIssuer {
    async fn issue(&self, identity: &Identity, lifetime: Duration) -> Result<Issued, IssueError> {
        let request = CertificateRequest::new(identity)?;
        let answer = self.ask(request.pem(), identity, lifetime).await;
        let chain = answer.map_err(|error| IssueError::Remote(Box::new(error)))?;
        let answer = request.answer(&chain)?;
        self.roots.store(Arc::new(answer.roots));
        Ok(answer.issued)
    }

    fn roots(&self) -> Vec<CertificateDer<'static>> {
        self.roots.load().as_ref().clone()
    }

    fn fingerprint(&self) -> [u8; 32] {
        // One authority, whatever its key is now: who renews when is the certificates' own affair.
        [0; 32]
    }
}
