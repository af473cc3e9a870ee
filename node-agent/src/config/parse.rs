//! Reading and checking the file: one error, that names file, line, field and what was expected.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize as _;
use serde_saphyr::Location;
use weir_types::Identity;

use super::{ConfigFile, Source, TunnelProtocol, WorkloadConfig, source};

/// Largest file that is read: 20,000 workloads take about 4 MiB.
const MAX_FILE: u64 = 64 << 20;
/// Bounds of a certificate's lifetime.
const LIFETIME: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(7 * 24 * 3600));
/// Bounds of the lease of what the kernel remembers.
const LEASE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(3600));
/// Bounds of the ring of flows.
const FLOW_CAPACITY: std::ops::RangeInclusive<u32> = 1..=1_000_000;

/// What is wrong with a configuration file. Reading it again helps only after it was changed.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: cannot be read: {source}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// The error.
        source: std::io::Error,
    },
    /// The file is too large.
    #[error("{}: expected at most {MAX_FILE} bytes", file.display())]
    TooLarge {
        /// The file.
        file: PathBuf,
    },
    /// The file's contents are wrong.
    #[error("{}:{at}: {field}: {problem}", file.display())]
    Contents {
        /// The file.
        file: PathBuf,
        /// Where.
        at: Position,
        /// The field, as `workloads[3].addresses`.
        field: String,
        /// What was expected.
        problem: String,
    },
}

/// A line and a column, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The line.
    pub line: u64,
    /// The column.
    pub column: u64,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

impl From<Location> for Position {
    fn from(location: Location) -> Self {
        Self {
            line: location.line(),
            column: location.column(),
        }
    }
}

impl Source {
    /// Reads and checks the configuration.
    ///
    /// # Errors
    /// When it cannot be read, or is wrong.
    pub fn load(&self) -> Result<ConfigFile, ConfigError> {
        let read = |source| ConfigError::Read {
            file: self.file.clone(),
            source,
        };
        if std::fs::metadata(&self.file).map_err(read)?.len() > MAX_FILE {
            return Err(ConfigError::TooLarge {
                file: self.file.clone(),
            });
        }
        self.parse(&std::fs::read_to_string(&self.file).map_err(read)?)
    }

    fn parse(&self, text: &str) -> Result<ConfigFile, ConfigError> {
        let mut config = read(&self.file, text)?;
        if let Some(node) = &self.node {
            config.node.value.clone_from(node);
        }
        if let Some(cgroup) = &self.cgroup {
            config.cgroup = Some(cgroup.clone());
        }
        check(&config).map_err(|problem| problem.in_file(&self.file))?;
        Ok(config)
    }
}

/// Checks the text of a file.
///
/// # Errors
/// When it is wrong.
pub fn parse(file: &Path, text: &str) -> Result<ConfigFile, ConfigError> {
    let file = file.to_owned();
    Source {
        file,
        ..Source::default()
    }
    .parse(text)
}

fn read(file: &Path, text: &str) -> Result<ConfigFile, ConfigError> {
    // Where a wrong field stands is found out only when one is wrong: keeping track costs a third more.
    let mut field = String::new();
    let parsed = serde_saphyr::from_str(text).or_else(|_: serde_saphyr::Error| {
        serde_saphyr::with_deserializer_from_str(text, |deserializer| {
            let mut track = serde_path_to_error::Track::new();
            let tracked = serde_path_to_error::Deserializer::new(deserializer, &mut track);
            ConfigFile::deserialize(tracked).inspect_err(|_| field = track.path().to_string())
        })
    });
    match parsed {
        Ok(config) => Ok(config),
        Err(error) => {
            let problem = plain(&error);
            let top = field.is_empty() || field == ".";
            // The parser is somewhere behind the last field when it finds that one of the file itself is missing.
            let missing = top && problem.starts_with("missing field");
            let at = if missing {
                Position { line: 1, column: 1 }
            } else {
                position(&error)
            };
            // `Spanned` puts a step of its own, `value`, into the path; no field of the file has that name.
            let field = if top {
                "(file)".to_owned()
            } else {
                field.replace(".value", "")
            };
            Err(ConfigError::Contents {
                file: file.to_owned(),
                at,
                field,
                problem,
            })
        }
    }
}

fn position(error: &serde_saphyr::Error) -> Position {
    error.location().unwrap_or(Location::UNKNOWN).into()
}

/// The message alone: where it is stands beside it.
fn plain(error: &serde_saphyr::Error) -> String {
    let text = error.without_snippet().to_string();
    let text = text.split('\n').next().unwrap_or_default();
    let position = text.rfind(" at line ").unwrap_or(text.len());
    text[..position].trim_end_matches([',', ':']).to_owned()
}

pub(super) struct Problem {
    location: Location,
    field: String,
    problem: String,
}

impl Problem {
    pub(super) fn new(location: Location, field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self {
            location,
            field: field.into(),
            problem: problem.into(),
        }
    }

    fn in_file(self, file: &Path) -> ConfigError {
        ConfigError::Contents {
            file: file.to_owned(),
            at: self.location.into(),
            field: self.field,
            problem: self.problem,
        }
    }
}

fn check(config: &ConfigFile) -> Result<(), Problem> {
    let expected =
        |location, field: &str, what: &str| Err(Problem::new(location, field, format!("expected {what}")));
    if config.node.value.is_empty() {
        return expected(
            config.node.referenced,
            "node",
            "the node's name, here or by --node",
        );
    }
    let flows = &config.flows;
    if !FLOW_CAPACITY.contains(&flows.value.capacity) {
        return expected(flows.referenced, "flows.capacity", "1 to 1,000,000");
    }
    if let Err((field, problem)) = flows.value.check() {
        return expected(flows.referenced, field, problem);
    }
    if let Some(address) = config.api.address.filter(|address| !address.ip().is_loopback()) {
        let problem = format!("expected an address on loopback, not {address}");
        return Err(Problem::new(Location::UNKNOWN, "api.address", problem));
    }
    source::check(config)?;
    if let Some(cni) = &config.cni {
        let checked = cni.value.check(config.control_plane.is_some());
        checked.map_err(|(field, problem)| Problem::new(cni.referenced, field, problem))?;
    }
    if let Some(hubble) = &config.hubble {
        let kind = config.control_plane.as_ref().map(|own| own.value.kind);
        let checked = hubble.value.check(kind);
        checked.map_err(|(field, problem)| Problem::new(hubble.referenced, field, problem))?;
    }
    let lifetime = &config.certificates.lifetime;
    if lifetime.value.0 < LIFETIME.0 || lifetime.value.0 > LIFETIME.1 {
        return Err(Problem::new(
            lifetime.referenced,
            "certificates.lifetime",
            "expected 10s to 7d",
        ));
    }
    let lease = &config.verdict_lease;
    if lease.value.0 < LEASE.0 || lease.value.0 > LEASE.1 {
        return expected(lease.referenced, "verdictLease", "5s to 1h");
    }
    let workloads = check_workloads(config)?;
    check_pods(config, &workloads)?;
    check_services(config, &workloads)?;
    let (same_node, at) = (&config.same_node.value, config.same_node.referenced);
    // With a control plane the file knows no workloads.
    if config.control_plane.is_some() {
        return Ok(());
    }
    if let Some(uid) = same_node
        .workloads
        .keys()
        .find(|uid| !workloads.contains_key(uid.as_str()))
    {
        return expected(
            at,
            &format!("sameNode.workloads.{uid}"),
            "the uid of a workload in this file",
        );
    }
    let unknown = |name: &&String| !workloads.values().any(|workload| workload.namespace == **name);
    for namespace in same_node.namespaces.keys().filter(unknown) {
        // It may get workloads later; or it may be a slip.
        tracing::warn!(
            namespace,
            "sameNode.namespaces names a namespace without workloads"
        );
    }
    check_policies(config)?;
    Ok(())
}

fn check_policies(config: &ConfigFile) -> Result<(), Problem> {
    let root = &config.root_namespace;
    if root.is_empty() {
        let at = Location::UNKNOWN;
        return Err(Problem::new(
            at,
            "rootNamespace",
            "expected the name of a namespace",
        ));
    }
    let mut names = HashSet::new();
    for (index, policy) in config.authorization_policies.iter().enumerate() {
        let list = format!("authorizationPolicies[{index}]");
        let at = |field: &str, problem: String| {
            Problem::new(policy.referenced, format!("{list}.{field}"), problem)
        };
        let value = &policy.value;
        value
            .compile(root)
            .map_err(|error| at(&error.field, error.problem.to_string()))?;
        if !names.insert((&value.namespace, &value.name)) {
            return Err(at("name", own_name(&value.namespace, &value.name)));
        }
    }
    let mut names = HashSet::new();
    for (index, peer) in config.peer_authentications.iter().enumerate() {
        let list = format!("peerAuthentications[{index}]");
        let at =
            |field: &str, problem: String| Problem::new(peer.referenced, format!("{list}.{field}"), problem);
        let value = &peer.value;
        value
            .check(root)
            .map_err(|error| at(&error.field, error.problem.to_string()))?;
        if !names.insert((&value.namespace, &value.name)) {
            return Err(at("name", own_name(&value.namespace, &value.name)));
        }
    }
    Ok(())
}

fn own_name(namespace: &str, name: &str) -> String {
    format!("expected a name of its own; '{namespace}/{name}' stands above")
}

fn check_workloads(config: &ConfigFile) -> Result<HashMap<&str, &WorkloadConfig>, Problem> {
    let mut by_uid = HashMap::new();
    let mut addresses: HashMap<IpAddr, &str> = HashMap::new();
    for (index, workload) in config.workloads.iter().enumerate() {
        let at = |field: &str, problem: String| {
            Problem::new(
                workload.referenced,
                format!("workloads[{index}].{field}"),
                problem,
            )
        };
        let value = &workload.value;
        if value.uid.is_empty() {
            return Err(at("uid", "expected a uid".to_owned()));
        }
        if by_uid.insert(value.uid.as_str(), value).is_some() {
            return Err(at(
                "uid",
                format!("expected a uid of its own; '{}' stands above", value.uid),
            ));
        }
        Identity::new(&config.trust_domain, &value.namespace, &value.service_account).map_err(|error| {
            at(
                "namespace, serviceAccount",
                format!("expected Kubernetes names: {error}"),
            )
        })?;
        if value.addresses.is_empty() {
            return Err(at("addresses", "expected at least one address".to_owned()));
        }
        for address in &value.addresses {
            let address = address.to_canonical();
            if let Some(other) = addresses.insert(address, &value.uid) {
                return Err(at(
                    "addresses",
                    format!("expected addresses of its own; {address} is also {other}'s"),
                ));
            }
            if !is_host(&address) {
                return Err(at(
                    "addresses",
                    format!("expected a unicast address, not {address}"),
                ));
            }
        }
    }
    Ok(by_uid)
}

fn check_pods(config: &ConfigFile, workloads: &HashMap<&str, &WorkloadConfig>) -> Result<(), Problem> {
    let mut uids = HashSet::new();
    for (index, pod) in config.pods.iter().enumerate() {
        let at = |field: &str, problem: String| {
            Err(Problem::new(
                pod.referenced,
                format!("pods[{index}].{field}"),
                problem,
            ))
        };
        let value = &pod.value;
        if !uids.insert(&value.uid) {
            return at(
                "uid",
                format!("expected a uid of its own; '{}' stands above", value.uid),
            );
        }
        let Some(workload) = workloads.get(value.uid.as_str()) else {
            return at(
                "uid",
                format!("expected the uid of a workload in this file, not '{}'", value.uid),
            );
        };
        if workload.node != config.node.value {
            return at(
                "uid",
                format!(
                    "expected a workload of node '{}', not of '{}'",
                    config.node.value, workload.node
                ),
            );
        }
        if value.observe && workload.tunnel == TunnelProtocol::Hbone {
            let problem = "expected a workload with tunnel NONE: what is only observed takes no tunnel";
            return at("observe", problem.to_owned());
        }
        if workload.namespace != value.namespace {
            return at(
                "namespace",
                format!("expected the workload's, '{}'", workload.namespace),
            );
        }
        if workload.service_account != value.service_account {
            return at(
                "serviceAccount",
                format!("expected the workload's, '{}'", workload.service_account),
            );
        }
    }
    Ok(())
}

fn check_services(config: &ConfigFile, workloads: &HashMap<&str, &WorkloadConfig>) -> Result<(), Problem> {
    let mut names = HashSet::new();
    let owners: HashSet<IpAddr> = workloads
        .values()
        .flat_map(|w| &w.addresses)
        .map(IpAddr::to_canonical)
        .collect();
    let mut addresses = owners.clone();
    for (index, service) in config.services.iter().enumerate() {
        let at = |field: &str, problem: String| {
            Err(Problem::new(
                service.referenced,
                format!("services[{index}].{field}"),
                problem,
            ))
        };
        let value = &service.value;
        if !names.insert((&value.namespace, &value.name)) {
            let name = format!("{}/{}", value.namespace, value.name);
            return at(
                "name",
                format!("expected a name of its own; '{name}' stands above"),
            );
        }
        let mut ports = HashSet::new();
        if let Some(port) = value.ports.iter().find(|p| !ports.insert(p.port)) {
            return at(
                "ports",
                format!("expected each port once; {} is there twice", port.port),
            );
        }
        if value.ports.is_empty() {
            return at("ports", "expected at least one port".to_owned());
        }
        if let Some(address) = value
            .addresses
            .iter()
            .find(|a| !addresses.insert(a.to_canonical()))
        {
            return at(
                "addresses",
                format!("expected addresses of its own; {address} is used above"),
            );
        }
        if let Some(address) = value.addresses.iter().find(|a| !is_host(&a.to_canonical())) {
            return at("addresses", format!("expected unicast addresses, not {address}"));
        }
        for (number, endpoint) in value.endpoints.iter().enumerate() {
            let problem = match (
                &endpoint.value.workload,
                endpoint.value.address.map(|a| a.to_canonical()),
            ) {
                (Some(uid), None) if workloads.contains_key(uid.as_str()) => continue,
                (None, Some(address)) if owners.contains(&address) => {
                    format!(
                        "expected 'workload': {address} is a workload's, which must not be reached in plaintext"
                    )
                }
                (None, Some(address)) if !is_host(&address) => {
                    format!("expected a unicast address, not {address}")
                }
                (None, Some(_)) => continue,
                (Some(uid), None) => format!("expected the uid of a workload in this file, not '{uid}'"),
                _ => "expected either 'workload' or 'address'".to_owned(),
            };
            let field = format!("services[{index}].endpoints[{number}]");
            return Err(Problem::new(endpoint.referenced, field, problem));
        }
    }
    Ok(())
}

/// Whether an address can be a host's.
fn is_host(address: &IpAddr) -> bool {
    !(address.is_unspecified() || address.is_loopback() || address.is_multicast())
}
