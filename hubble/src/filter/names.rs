//! Names of pods, services and nodes in filters.

use regex::Regex;

/// `namespace/name`, where the name may be only a beginning, and either may be left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Prefixed {
    /// None: any.
    namespace: Option<String>,
    name: String,
}

/// A pattern of nodes' names, with a cluster's before it or not.
#[derive(Debug, Clone)]
pub(super) struct NodePattern {
    cluster: Option<Regex>,
    node: Option<Regex>,
}

// === impl Prefixed ===

impl Prefixed {
    /// A name without a slash is one of the namespace `default`, as for Hubble; `/name` is of any.
    pub(super) fn new(text: &str) -> Result<Self, &'static str> {
        let (namespace, name) = match text.split_once('/') {
            None if text.is_empty() => (None, text),
            None => (Some("default"), text),
            Some(("", name)) => (None, name),
            Some((namespace, name)) => (Some(namespace), name),
        };
        if namespace.is_none() && name.is_empty() {
            return Err("expected a name, 'namespace/name', 'namespace/' or '/name'");
        }
        if name.contains('/') {
            return Err("expected one slash at most");
        }
        Ok(Self {
            namespace: namespace.map(str::to_owned),
            name: name.to_owned(),
        })
    }

    pub(super) fn matches(&self, namespace: &str, name: &str) -> bool {
        self.namespace.as_deref().is_none_or(|own| own == namespace) && name.starts_with(&self.name)
    }
}

// === impl NodePattern ===

impl NodePattern {
    pub(super) fn new(text: &str) -> Result<Self, String> {
        let (cluster, node) = match text.split_once('/') {
            Some((cluster, node)) => (Some(cluster), node),
            None => (None, text),
        };
        if node.is_empty() && cluster.is_none_or(str::is_empty) {
            return Err("expected a node's name, with '*' for any part of it, or 'cluster/'".to_owned());
        }
        let cluster = cluster.filter(|cluster| !cluster.is_empty());
        Ok(Self {
            cluster: cluster.map(glob).transpose()?,
            node: (!node.is_empty()).then(|| glob(node)).transpose()?,
        })
    }

    pub(super) fn matches(&self, cluster: &str, node: &str) -> bool {
        let cluster = if cluster.is_empty() { "default" } else { cluster };
        self.cluster.as_ref().is_none_or(|own| own.is_match(cluster))
            && self.node.as_ref().is_none_or(|own| own.is_match(node))
    }
}

/// `*` stands for anything in one part of a name, `**` for anything.
fn glob(text: &str) -> Result<Regex, String> {
    let allowed = |char: char| char.is_ascii_alphanumeric() || "-._*".contains(char);
    if let Some(other) = text.chars().find(|char| !allowed(*char)) {
        return Err(format!("'{other}' can be in no node's name"));
    }
    let escaped = regex::escape(text).replace(r"\*\*", ".*").replace(r"\*", "[^.]*");
    Regex::new(&format!("^{escaped}$")).map_err(|error| error.to_string())
}

/// The path of a URL, or of a request's target.
pub(super) fn path_of(url: &str) -> &str {
    let rest = match url.split_once("://") {
        Some((_, rest)) => rest.find('/').map_or("", |at| &rest[at..]),
        None => url,
    };
    rest.split(['?', '#']).next().unwrap_or_default()
}
