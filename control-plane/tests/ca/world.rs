//! A cluster with the authority's Secret, replicas that keep up with it, and authorities of others.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use prometheus::Registry;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SignatureAlgorithm,
};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use serde_json::json;
use tokio::task::JoinHandle;
use weir_api_server::{TestCluster, eventually};
use weir_control::ca::{AuthoritySecret, Certified, InForce, Keys, SecretName, Source, VerifiedRequest};
use weir_types::{Identity, TrustDomain};

pub(crate) const SECRET: &str = "weir-ca";
pub(crate) const DAY: Duration = Duration::from_secs(24 * 3600);

pub(crate) fn domain() -> TrustDomain {
    "cluster.local".parse().unwrap()
}

pub(crate) fn identity(account: &str) -> Identity {
    Identity::new(&domain(), "shop", account).unwrap()
}

pub(crate) struct World {
    pub(crate) cluster: TestCluster,
    pub(crate) namespace: String,
}

/// A replica, which ends when it is dropped.
pub(crate) struct Replica {
    pub(crate) keys: Arc<Keys>,
    pub(crate) registry: Registry,
    run: JoinHandle<()>,
}

impl World {
    pub(crate) async fn new() -> Self {
        let cluster = TestCluster::new().await;
        let namespace = cluster.namespace("ca").await;
        Self { cluster, namespace }
    }

    pub(crate) fn operations(&self) -> AuthoritySecret {
        let name = SecretName {
            namespace: self.namespace.clone(),
            name: SECRET.to_owned(),
        };
        AuthoritySecret::new(self.cluster.client(), name, domain())
    }

    pub(crate) fn start(&self, source: Source) -> Replica {
        let registry = Registry::new();
        let keys = Keys::new(self.operations(), source, &registry).unwrap();
        let running = keys.clone();
        let run = tokio::spawn(async move { running.run().await });
        Replica { keys, registry, run }
    }

    pub(crate) fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.cluster.client(), &self.namespace)
    }

    pub(crate) async fn data(&self) -> BTreeMap<String, Vec<u8>> {
        let secret = self.secrets().get(SECRET).await.unwrap();
        secret
            .data
            .unwrap()
            .into_iter()
            .map(|(key, value)| (key, value.0))
            .collect()
    }

    pub(crate) async fn create(&self, data: &[(&str, &str)]) {
        let mut secret = Secret::default();
        secret.metadata.name = Some(SECRET.to_owned());
        let bytes = |(key, value): &(&str, &str)| ((*key).to_owned(), ByteString(value.as_bytes().to_vec()));
        secret.data = Some(data.iter().map(bytes).collect());
        self.secrets()
            .create(&PostParams::default(), &secret)
            .await
            .unwrap();
    }

    pub(crate) async fn patch(&self, data: &[(&str, &str)]) {
        let text: BTreeMap<_, _> = data.iter().copied().collect();
        let patch = Patch::Merge(json!({"stringData": text}));
        self.secrets()
            .patch(SECRET, &PatchParams::default(), &patch)
            .await
            .unwrap();
    }
}

impl Replica {
    pub(crate) async fn in_force(&self) -> Arc<InForce> {
        let mut receiver = self.keys.in_force();
        let waited = tokio::time::timeout(Duration::from_secs(20), receiver.wait_for(Option::is_some)).await;
        waited.expect("an authority in time").unwrap().clone().unwrap()
    }

    /// Waits until something holds of what is in force.
    pub(crate) async fn until(&self, what: &str, holds: impl Fn(&InForce) -> bool) -> Arc<InForce> {
        eventually(what, || async {
            let in_force = self.keys.in_force().borrow().clone();
            in_force.filter(|in_force| holds(in_force))
        })
        .await
    }

    pub(crate) fn metric(&self, name: &str) -> Option<f64> {
        let families = self.registry.gather();
        let family = families.iter().find(|family| family.name() == name)?;
        let metric = family.get_metric().first()?;
        Some(metric.get_counter().get_value() + metric.get_gauge().get_value())
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.run.abort();
    }
}

/// A certificate for an identity, by a new key.
pub(crate) fn issue(in_force: &InForce, account: &str, lifetime: Duration, now: Timestamp) -> Certified {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let request = CertificateParams::default()
        .serialize_request(&key)
        .unwrap()
        .pem()
        .unwrap();
    let request = VerifiedRequest::parse(&request, &identity(account)).unwrap();
    in_force
        .issue(&request, &identity(account), lifetime, now)
        .unwrap()
}

/// Leaf and intermediates.
pub(crate) fn chain(certified: &Certified) -> Vec<CertificateDer<'static>> {
    std::iter::once(&certified.leaf)
        .chain(&certified.intermediates)
        .cloned()
        .collect()
}

pub(crate) fn certificates(pem: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .unwrap()
}

/// An authority of an operator's own: a root, and an intermediate under it for us.
pub(crate) struct Operators {
    pub(crate) root: String,
    pub(crate) intermediate: String,
    pub(crate) key: String,
}

impl Operators {
    pub(crate) fn new() -> Self {
        Self::with(&PKCS_ECDSA_P256_SHA256, |_| {})
    }

    pub(crate) fn with(
        algorithm: &'static SignatureAlgorithm,
        change: impl Fn(&mut CertificateParams),
    ) -> Self {
        let authority = |name: &str, constraint| {
            let mut params = CertificateParams::default();
            params.distinguished_name = DistinguishedName::new();
            params
                .distinguished_name
                .push(DnType::CommonName, format!("{name} {}", rand::random::<u32>()));
            params.is_ca = IsCa::Ca(constraint);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            params.use_authority_key_identifier_extension = true;
            params
        };
        let root_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let root = authority("root", BasicConstraints::Unconstrained);
        let root = CertifiedIssuer::self_signed(root, root_key).unwrap();
        let key = KeyPair::generate_for(algorithm).unwrap();
        let mut params = authority("intermediate", BasicConstraints::Constrained(0));
        change(&mut params);
        let intermediate = params.signed_by(&key, &root).unwrap();
        Self {
            root: root.pem(),
            intermediate: intermediate.pem(),
            key: key.serialize_pem(),
        }
    }

    pub(crate) fn data(&self) -> [(&str, &str); 3] {
        [
            ("tls.crt", self.intermediate.as_str()),
            ("tls.key", self.key.as_str()),
            ("ca.crt", self.root.as_str()),
        ]
    }
}
