//! Mutual TLS of a port for Hubble's tools. These have no SPIFFE identity: certificates are of a small authority of their own.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use jiff::Timestamp;
use rustls::{RootCertStore, ServerConfig, ServerConnection, server::WebPkiClientVerifier};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tokio_rustls::TlsAcceptor;
use x509_parser::{extensions::GeneralName, prelude::FromDer as _};

use crate::{
    certificate::{Credentials, Held},
    observer::Viewer,
};

/// Most bytes of a file.
const MAX_FILE: u64 = 1 << 20;

/// Why a client is refused, or the port cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{path}: expected {expected}, in PEM form")]
    Content {
        /// The file.
        path: PathBuf,
        /// What.
        expected: &'static str,
    },
    /// Certificate and key are not usable.
    #[error("{0}")]
    Tls(#[from] rustls::Error),
    /// No verifier can be made of the roots.
    #[error("the roots: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
    /// The handshake failed.
    #[error("{0}")]
    Io(io::Error),
    /// There is no certificate yet.
    #[error("there is no certificate from the control plane yet")]
    NoCertificate,
    /// It was not renewed in time.
    #[error("the certificate from the control plane ended {0:.0}")]
    Ended(Timestamp),
    /// The client's certificate is of nobody who may ask.
    #[error("its certificate names {0}, who may not ask")]
    Client(String),
}

/// Who may ask, by a DNS name in the certificate, and for which namespaces; nobody else may.
pub type Clients = Vec<(String, Option<Vec<String>>)>;

/// What is needed for it, where it is in files.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// PEM file with the server's certificate, followed by its chain.
    pub certificate: PathBuf,
    /// PEM file with its key.
    pub key: PathBuf,
    /// PEM file with the roots of clients' certificates.
    pub roots: PathBuf,
    /// Who may ask.
    pub clients: Clients,
}

/// The server's side, made anew when its certificate changes. Connections that are open do not notice.
#[derive(Debug)]
pub struct Tls {
    clients: BTreeMap<String, Viewer>,
    source: Source,
    /// Whether clients are browsers: they are offered HTTP/1.1 only.
    is_for_browsers: bool,
}

/// Where the certificate comes from.
#[derive(Debug)]
enum Source {
    Files {
        files: [PathBuf; 3],
        made: Mutex<Made<[Option<SystemTime>; 3]>>,
    },
    Held {
        held: Held,
        made: Mutex<Option<Made<Arc<Credentials>>>>,
    },
}

#[derive(Debug)]
struct Made<Of> {
    config: Arc<ServerConfig>,
    of: Of,
}

// === impl Tls ===

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// When one is missing or wrong.
    pub fn new(config: &TlsFiles) -> Result<Self, TlsError> {
        let files = [
            config.certificate.clone(),
            config.key.clone(),
            config.roots.clone(),
        ];
        let of = changed(&files);
        let made = Mutex::new(Made {
            config: Arc::new(read(&files)?),
            of,
        });
        Ok(Self {
            clients: viewers(&config.clients),
            source: Source::Files { files, made },
            is_for_browsers: false,
        })
    }

    /// With a certificate that is kept for it, whenever there is one. Without one nobody is let in.
    #[must_use]
    pub fn held(held: Held, clients: &Clients) -> Self {
        Self {
            clients: viewers(clients),
            source: Source::Held {
                held,
                made: Mutex::default(),
            },
            is_for_browsers: false,
        }
    }

    /// The same for browsers, which show a certificate that their user chose.
    #[must_use]
    pub fn for_browsers(self) -> Self {
        Self {
            is_for_browsers: true,
            ..self
        }
    }

    /// What the clients may see that may ask at all.
    pub(crate) fn viewers(&self) -> impl Iterator<Item = &Viewer> {
        self.clients.values()
    }

    /// Waits until there is a certificate.
    pub(crate) async fn ready(&self) {
        if let Source::Held { held, .. } = &self.source
            && held.clone().wait_for(Option::is_some).await.is_err()
        {
            // Nobody keeps it: there never will be one.
            std::future::pending::<()>().await;
        }
    }

    /// What accepts a client now.
    pub(crate) fn acceptor(&self) -> Result<TlsAcceptor, TlsError> {
        let mut config = self.config()?;
        if self.is_for_browsers {
            Arc::make_mut(&mut config).alpn_protocols = vec![b"http/1.1".to_vec()];
        }
        Ok(config.into())
    }

    fn config(&self) -> Result<Arc<ServerConfig>, TlsError> {
        // What they guard is whole after each statement, so a panic elsewhere does not spoil it.
        match &self.source {
            Source::Files { files, made } => {
                let mut made = made.lock().unwrap_or_else(PoisonError::into_inner);
                let of = changed(files);
                if made.of != of {
                    made.of = of;
                    match read(files) {
                        Ok(config) => {
                            tracing::info!("the certificate of the port for flows was read anew");
                            made.config = Arc::new(config);
                        }
                        Err(error) => {
                            tracing::error!(%error, "the certificate of the port for flows is not taken; the one before stays");
                        }
                    }
                }
                Ok(made.config.clone())
            }
            Source::Held { held, made } => {
                let now = held.borrow().clone().ok_or(TlsError::NoCertificate)?;
                if now.not_after <= Timestamp::now() {
                    return Err(TlsError::Ended(now.not_after));
                }
                let mut made = made.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(made) = made.as_ref().filter(|made| Arc::ptr_eq(&made.of, &now)) {
                    return Ok(made.config.clone());
                }
                let config = Arc::new(server(now.chain.clone(), now.key(), now.roots.clone())?);
                *made = Some(Made {
                    config: config.clone(),
                    of: now,
                });
                Ok(config)
            }
        }
    }

    /// What the client of a connection may see.
    pub(crate) fn viewer(&self, connection: &ServerConnection) -> Result<Viewer, TlsError> {
        let certificate = connection.peer_certificates().and_then(<[_]>::first);
        let names = certificate.map(names).unwrap_or_default();
        let found = names.iter().find_map(|name| self.clients.get(name));
        found.cloned().ok_or_else(|| {
            let names = if names.is_empty() {
                "nobody".to_owned()
            } else {
                names.join(", ")
            };
            TlsError::Client(names)
        })
    }
}

fn viewers(clients: &Clients) -> BTreeMap<String, Viewer> {
    let viewers = clients.iter().map(|(name, namespaces)| {
        let namespaces = namespaces.as_ref();
        let namespaces = namespaces.map(|all| Arc::new(all.iter().cloned().collect::<BTreeSet<_>>()));
        (name.to_ascii_lowercase(), Viewer { namespaces })
    });
    viewers.collect()
}

/// When files were changed last; `None` of one that is not there.
fn changed(files: &[PathBuf; 3]) -> [Option<SystemTime>; 3] {
    files
        .each_ref()
        .map(|file| fs::metadata(file).and_then(|meta| meta.modified()).ok())
}

fn read([certificate, key, roots]: &[PathBuf; 3]) -> Result<ServerConfig, TlsError> {
    let content = |path: &Path, expected| TlsError::Content {
        path: path.to_owned(),
        expected,
    };
    let chain = certificates(certificate)?;
    let key_text = bytes(key)?;
    let private = PrivateKeyDer::from_pem_slice(&key_text).map_err(|_| content(key, "a private key"))?;
    server(chain, private, certificates(roots)?)
}

fn server(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    roots: Vec<CertificateDer<'static>>,
) -> Result<ServerConfig, TlsError> {
    let mut trusted = RootCertStore::empty();
    for root in roots {
        trusted.add(root)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(trusted), provider.clone()).build()?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    // A name that is not allowed any more must not come back with a ticket.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    Ok(config)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let text = bytes(path)?;
    let all: Vec<_> = CertificateDer::pem_slice_iter(&text).flatten().collect();
    if all.is_empty() {
        return Err(TlsError::Content {
            path: path.to_owned(),
            expected: "a certificate",
        });
    }
    Ok(all)
}

fn bytes(path: &Path) -> Result<Vec<u8>, TlsError> {
    use io::Read as _;
    let read = || {
        let mut bytes = Vec::new();
        fs::File::open(path)?.take(MAX_FILE).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    read().map_err(|source| TlsError::File {
        path: path.to_owned(),
        source,
    })
}

/// The DNS names of a certificate.
pub(crate) fn names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, parsed)) = x509_parser::certificate::X509Certificate::from_der(certificate) else {
        return Vec::new();
    };
    let Ok(Some(names)) = parsed.subject_alternative_name() else {
        return Vec::new();
    };
    let dns = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        _ => None,
    });
    dns.collect()
}

impl From<io::Error> for TlsError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}
