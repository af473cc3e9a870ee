//! A certificate authority's files: reading an operator's, and keeping a folder of our own.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rcgen::{KeyPair, PublicKeyData as _};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use weir_types::TrustDomain;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use zeroize::Zeroizing;

use super::{CA_LIFETIME, CaError, CertificateAuthority};

/// The authority's certificate in its folder.
const CERTIFICATE_FILE: &str = "ca.crt";
/// The authority's key in its folder.
const KEY_FILE: &str = "ca.key";
/// Locked while the folder is filled: several agents of one lab share it and may start at the same time.
const LOCK_FILE: &str = "ca.lock";
/// Permission bits that expose a file to others than its owner.
const OTHERS: u32 = 0o077;
/// Permission bits that let others than its owner replace what is in a folder.
const OTHERS_WRITE: u32 = 0o022;

impl CertificateAuthority {
    /// Opens the authority in a folder, or makes folder (mode 0700), key (0600) and certificate on first use.
    ///
    /// Several processes may do this at the same time; all get the same authority. Blocks on the file system.
    ///
    /// # Errors
    /// When the files cannot be read or written, do not belong together, one is missing, or other users could read
    /// the key or replace it.
    pub fn open_or_create_dir(dir: &Path, trust_domain: &TrustDomain) -> Result<Self, CaError> {
        let write = |path: &Path| {
            let path = path.to_owned();
            move |source| CaError::Write { path, source }
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(write(dir))?;
        check_dir(dir)?;
        let (certificate, key) = (dir.join(CERTIFICATE_FILE), dir.join(KEY_FILE));
        let lock_path = dir.join(LOCK_FILE);
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&lock_path)
            .map_err(write(&lock_path))?;
        // Released when `lock` is closed.
        lock.lock().map_err(write(&lock_path))?;
        if !is_there(&certificate)? && !is_there(&key)? {
            let (made, pair) = Self::self_signed(trust_domain, SystemTime::now(), CA_LIFETIME)?;
            write_atomically(&key, Zeroizing::new(pair.serialize_pem()).as_bytes(), 0o600)
                .map_err(write(&key))?;
            write_atomically(&certificate, made.pem().as_bytes(), 0o644).map_err(write(&certificate))?;
        }
        Self::open_dir(dir, &[])
    }

    /// Opens the authority in a folder, and never makes anything; trusts the extra roots besides.
    ///
    /// # Errors
    /// As [`Self::open_or_create_dir`] and [`Self::from_files`].
    pub fn open_dir(dir: &Path, extra_roots: &[PathBuf]) -> Result<Self, CaError> {
        check_dir(dir)?;
        let (certificate, key) = (dir.join(CERTIFICATE_FILE), dir.join(KEY_FILE));
        let (present, missing) = match (is_there(&certificate)?, is_there(&key)?) {
            (true, false) => (certificate, key),
            (false, true) => (key, certificate),
            // Both missing: reading says so.
            _ => return Self::from_files(&certificate, &key, extra_roots),
        };
        Err(CaError::Incomplete { present, missing })
    }

    /// Reads an authority from PEM files.
    ///
    /// The certificate file holds the authority's certificate first, and for an intermediate its issuers behind
    /// it. Trusted are the self-signed ones among them and all of `extra_roots`. Blocks on the file system.
    ///
    /// # Errors
    /// When a file cannot be read or parsed, certificate and key do not belong together, the key is exposed to
    /// other users or belongs to one, or there is no root at all.
    pub fn from_files(certificate: &Path, key: &Path, extra_roots: &[PathBuf]) -> Result<Self, CaError> {
        let chain = read_certificates(certificate)?;
        let mut roots = Vec::new();
        for path in extra_roots {
            roots.extend(read_certificates(path)?);
        }
        let pair = read_key(key)?;
        Self::assemble(chain, pair, roots, certificate, key)
    }

    pub(super) fn assemble(
        mut chain: Vec<CertificateDer<'static>>,
        key: Zeroizing<KeyPair>,
        extra_roots: Vec<CertificateDer<'static>>,
        certificate_path: &Path,
        key_path: &Path,
    ) -> Result<Self, CaError> {
        let malformed = || CaError::MalformedCertificate {
            path: certificate_path.to_owned(),
        };
        let mut roots: Vec<CertificateDer<'static>> = Vec::new();
        let mut intermediates = Vec::new();
        let first = chain.first().cloned().ok_or_else(|| CaError::NoCertificate {
            path: certificate_path.to_owned(),
        })?;
        let (_, parsed) = X509Certificate::from_der(&first).map_err(|_| malformed())?;
        if !parsed.is_ca() {
            return Err(CaError::NotAuthority {
                path: certificate_path.to_owned(),
            });
        }
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(CaError::KeyMismatch {
                certificate: certificate_path.to_owned(),
                key: key_path.to_owned(),
            });
        }
        let validity = parsed.validity();
        let time = |t: x509_parser::time::ASN1Time| {
            u64::try_from(t.timestamp())
                .map(|s| SystemTime::UNIX_EPOCH + Duration::from_secs(s))
                .map_err(|_| malformed())
        };
        let (not_before, not_after) = (time(validity.not_before)?, time(validity.not_after)?);
        for der in chain.drain(..) {
            let (_, parsed) = X509Certificate::from_der(&der).map_err(|_| malformed())?;
            if parsed.subject().as_raw() == parsed.issuer().as_raw() {
                roots.push(der);
            } else {
                intermediates.push(der);
            }
        }
        for root in extra_roots {
            if !roots.contains(&root) {
                roots.push(root);
            }
        }
        if roots.is_empty() {
            return Err(CaError::NoRoot {
                path: certificate_path.to_owned(),
            });
        }
        Ok(Self {
            key,
            certificate: first,
            intermediates,
            roots,
            not_before,
            not_after,
        })
    }
}

/// Whether there is anything of this name, also a link that leads nowhere.
fn is_there(path: &Path) -> Result<bool, CaError> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(CaError::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

/// Whoever may write to the folder may put another authority there.
fn check_dir(dir: &Path) -> Result<(), CaError> {
    let metadata = fs::metadata(dir).map_err(|source| CaError::Read {
        path: dir.to_owned(),
        source,
    })?;
    check_owner(dir, &metadata)?;
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & OTHERS_WRITE != 0 {
        return Err(CaError::Writable {
            path: dir.to_owned(),
            mode,
        });
    }
    Ok(())
}

fn check_owner(path: &Path, metadata: &fs::Metadata) -> Result<(), CaError> {
    let (owner, expected) = (metadata.uid(), rustix::process::geteuid().as_raw());
    if owner != expected && owner != 0 {
        return Err(CaError::Owner {
            path: path.to_owned(),
            owner,
            expected,
        });
    }
    Ok(())
}

/// The certificates of a PEM file, at least one.
fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, CaError> {
    let text = fs::read(path).map_err(|source| CaError::Read {
        path: path.to_owned(),
        source,
    })?;
    let certificates = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| CaError::MalformedCertificate {
            path: path.to_owned(),
        })?;
    if certificates.is_empty() {
        return Err(CaError::NoCertificate {
            path: path.to_owned(),
        });
    }
    for der in &certificates {
        X509Certificate::from_der(der).map_err(|_| CaError::MalformedCertificate {
            path: path.to_owned(),
        })?;
    }
    Ok(certificates)
}

fn read_key(path: &Path) -> Result<Zeroizing<KeyPair>, CaError> {
    let read = |source| CaError::Read {
        path: path.to_owned(),
        source,
    };
    // Owner, mode and contents are of the same open file, so that it cannot be exchanged in between.
    let mut file = File::open(path).map_err(read)?;
    let metadata = file.metadata().map_err(read)?;
    check_owner(path, &metadata)?;
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & OTHERS != 0 {
        return Err(CaError::KeyExposed {
            path: path.to_owned(),
            mode,
        });
    }
    let mut text = Zeroizing::new(Vec::new());
    std::io::Read::read_to_end(&mut file, &mut text).map_err(read)?;
    let malformed = |_| CaError::MalformedKey {
        path: path.to_owned(),
    };
    let der = Zeroizing::new(PrivateKeyDer::from_pem_slice(&text).map_err(malformed)?);
    KeyPair::try_from(&*der)
        .map(Zeroizing::new)
        .map_err(|_| CaError::MalformedKey {
            path: path.to_owned(),
        })
}

/// Writes a file so that a reader sees all of it or nothing, and a crash leaves no half of it.
fn write_atomically(path: &Path, contents: &[u8], mode: u32) -> std::io::Result<()> {
    let temporary = path.with_extension("new");
    // Left by a process that died; the lock says that nobody else is writing.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&temporary)?;
    file.write_all(contents)?;
    file.sync_all()?;
    fs::rename(&temporary, path)
}
