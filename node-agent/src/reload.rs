//! Applies a changed configuration or CA without a restart.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use weir_tunnel::ca::{CaError, CertificateAuthority};
use weir_types::TrustDomain;

use crate::{
    agent::Agent,
    config::{self, CaConfig, ConfigFile},
    revalidate,
};

/// How often files are looked at. Polled, since Kubernetes replaces mounted files by switching a link; so often, because a
/// policy must be in force within a second.
const INTERVAL: Duration = Duration::from_millis(250);

/// The part of the agent that a CA's fault belongs to.
const CA: &str = "certificate authority";

/// The part of the agent that what policy cannot end belongs to.
const POLICY: &str = "policy";

/// What a file looked like: enough to see that it was replaced or written.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    modified: Option<SystemTime>,
    length: u64,
    inode: u64,
}

/// What the configuration and the CA's files looked like before they were read: what changes while they are read, or
/// before they are watched, counts as changed.
#[derive(Debug)]
pub struct Seen {
    file: Stamps,
    ca: Stamps,
}

impl Seen {
    /// The configuration file as it is now; to be taken before it is read.
    #[must_use]
    pub fn file(file: &Path) -> Self {
        Self {
            file: Stamps::of(&[file.to_owned()]),
            ca: Stamps(BTreeMap::new()),
        }
    }

    /// The CA's files as they are now; to be taken before they are read.
    pub fn ca(&mut self, config: &CaConfig) {
        self.ca = Stamps::of(&ca_files(config));
    }
}

/// Files, and what they looked like.
#[derive(Debug, PartialEq, Eq)]
struct Stamps(BTreeMap<PathBuf, Option<Stamp>>);

impl Stamps {
    fn of(files: &[PathBuf]) -> Self {
        use std::os::unix::fs::MetadataExt as _;
        let stamp = |file: &PathBuf| {
            let meta = std::fs::metadata(file).ok()?;
            Some(Stamp {
                modified: meta.modified().ok(),
                length: meta.len(),
                inode: meta.ino(),
            })
        };
        Self(files.iter().map(|file| (file.clone(), stamp(file))).collect())
    }
}

/// Watches the configuration file and the CA's files, for ever.
pub async fn watch(agent: Arc<Agent>, source: config::Source, mut applied: ConfigFile, mut seen: Seen) {
    let configuration = [source.file.clone()];
    let mut ticks = tokio::time::interval(INTERVAL);
    loop {
        ticks.tick().await;
        let now = Stamps::of(&configuration);
        if now != seen.file {
            seen.file = now;
            tokio::task::block_in_place(|| reload(&agent, &source, &mut applied));
        }
        if let Some(ca) = &applied.ca {
            let now = Stamps::of(&ca_files(&ca.value));
            if now != seen.ca {
                seen.ca = now;
                tokio::task::block_in_place(|| reload_ca(&agent, &ca.value, &applied.trust_domain));
            }
        }
        tokio::task::block_in_place(|| {
            agent.enrolment.reconcile();
            revalidate::retry(&agent.node);
        });
        let unfinished = agent.node.ended.unfinished();
        let problem = unfinished.into_iter().collect::<Vec<_>>().join(", ");
        let problem = (!problem.is_empty())
            .then(|| format!("connections that policy forbids may go on, tried again, of pods {problem}"));
        agent.fault(POLICY, problem);
    }
}

fn reload(agent: &Agent, source: &config::Source, applied: &mut ConfigFile) {
    let file = &source.file;
    let result = source
        .load()
        .map_err(|error| error.to_string())
        .and_then(|config| {
            if let Some(field) = fixed_field(applied, &config) {
                return Err(format!(
                    "{}: {field}: can be changed by a restart only",
                    file.display()
                ));
            }
            agent
                .apply(&config)
                .map_err(|error| format!("{}: {error}", file.display()))?;
            Ok(config)
        });
    match result {
        Ok(config) => {
            let ca = |config: &ConfigFile| config.ca.as_ref().map(|ca| ca.value.clone());
            let changed = ca(&config).filter(|_| ca(&config) != ca(applied));
            *applied = config;
            if let Some(ca) = changed {
                reload_ca(agent, &ca, &applied.trust_domain);
            }
        }
        Err(problem) => {
            tracing::error!("configuration rejected, the old one stays in force: {problem}");
            agent.reject(problem);
        }
    }
}

fn reload_ca(agent: &Agent, config: &CaConfig, trust_domain: &TrustDomain) {
    match open_ca(config, trust_domain, false) {
        Ok(ca) => {
            tracing::info!("certificate authority reloaded");
            agent.node.certificates.replace_issuer(Arc::new(ca));
            agent.fault(CA, None);
        }
        Err(error) => {
            tracing::error!(%error, "certificate authority not reloaded, the old one stays in force");
            agent.fault(
                CA,
                Some(format!("not reloaded, the old one stays in force: {error}")),
            );
        }
    }
}

/// Opens the CA that a configuration names. At the agent's start a folder that is empty gets one; later, a CA that is gone
/// is an error, and never a reason to make another.
///
/// # Errors
/// When its files are missing, malformed or open to others.
pub fn open_ca(
    config: &CaConfig,
    trust_domain: &TrustDomain,
    starting: bool,
) -> Result<CertificateAuthority, CaError> {
    match (&config.dir, &config.certificate, &config.key) {
        (Some(dir), ..) => {
            if starting {
                CertificateAuthority::open_or_create_dir(dir, trust_domain)?;
            }
            CertificateAuthority::open_dir(dir, &config.roots)
        }
        (None, Some(certificate), Some(key)) => {
            CertificateAuthority::from_files(certificate, key, &config.roots)
        }
        // Excluded by the check of the file.
        _ => CertificateAuthority::from_files(Path::new(""), Path::new(""), &[]),
    }
}

fn ca_files(config: &CaConfig) -> Vec<PathBuf> {
    let dir = config
        .dir
        .iter()
        .flat_map(|dir| [dir.join("ca.crt"), dir.join("ca.key")]);
    dir.chain(config.certificate.clone())
        .chain(config.key.clone())
        .chain(config.roots.clone())
        .collect()
}

/// The first field that differs among those that hold for the agent's life.
fn fixed_field(old: &ConfigFile, new: &ConfigFile) -> Option<&'static str> {
    let hubble = |config: &ConfigFile| config.hubble.as_ref().map(|hubble| hubble.value.clone());
    let cni = |config: &ConfigFile| config.cni.as_ref().map(|cni| cni.value.clone());
    let fields = [
        ("node", old.node.value != new.node.value),
        ("trustDomain", old.trust_domain != new.trust_domain),
        ("cni", cni(old) != cni(new)),
        ("hubble", hubble(old) != hubble(new)),
        (
            "trustDomainAliases",
            old.trust_domain_aliases != new.trust_domain_aliases,
        ),
        (
            "certificates",
            old.certificates.lifetime.value != new.certificates.lifetime.value,
        ),
        (
            "controlPlane",
            old.control_plane.as_ref().map(|c| &c.value) != new.control_plane.as_ref().map(|c| &c.value),
        ),
        ("cgroup", old.cgroup != new.cgroup),
        ("pinDir", old.pin_dir != new.pin_dir),
        ("api", old.api != new.api),
        ("metrics", old.metrics != new.metrics),
        ("flows", old.flows.value != new.flows.value),
        ("workerThreads", old.worker_threads != new.worker_threads),
        ("verdictLease", old.verdict_lease.value != new.verdict_lease.value),
        ("kubeletCgroup", old.kubelet_cgroup != new.kubelet_cgroup),
    ];
    fields
        .into_iter()
        .find_map(|(name, differs)| differs.then_some(name))
}
