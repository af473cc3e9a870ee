//! The section of the port for Hubble's tools.

use std::{net::SocketAddr, path::PathBuf};

use schemars::JsonSchema;
use serde::Deserialize;

use super::ControlPlaneKind;

/// A field, and what was expected of it.
type Wrong = (&'static str, &'static str);

/// What stands for the node's name in `serverName`.
const NODE: &str = "*";

/// The port by which relays and Hubble's tools ask for flows.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HubbleConfig {
    /// Address and port; Hubble's tools expect port 4244.
    #[serde(default = "default_address")]
    pub address: SocketAddr,
    /// PEM file with the certificate, followed by its chain. Read again when it changes, as are the others. Without these three
    /// the certificate comes from the control plane.
    #[serde(default)]
    pub certificate: Option<PathBuf>,
    /// PEM file with its private key.
    #[serde(default)]
    pub key: Option<PathBuf>,
    /// PEM file with the roots that clients' certificates must chain to.
    #[serde(default)]
    pub roots: Option<PathBuf>,
    /// Who may ask; nobody if empty.
    pub clients: Vec<HubbleClient>,
    /// The name in the certificate by which relays know this agent: `*` stands for the node's name, with dashes for its dots.
    #[serde(default = "default_server_name")]
    pub server_name: String,
}

/// The files, where there are any.
#[derive(Debug, Clone, Copy)]
pub struct HubbleFiles<'a> {
    /// The certificate, followed by its chain.
    pub certificate: &'a PathBuf,
    /// Its key.
    pub key: &'a PathBuf,
    /// The roots of clients' certificates.
    pub roots: &'a PathBuf,
}

/// A client, by the DNS name in its certificate.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HubbleClient {
    /// The name; compared as it is written, without regard to case.
    pub name: String,
    /// Only flows with one of these namespaces at either end; all if absent.
    #[serde(default)]
    pub namespaces: Option<Vec<String>>,
}

fn default_address() -> SocketAddr {
    SocketAddr::from(([0_u16; 8], 4244))
}

fn default_server_name() -> String {
    "*.hubble.weir.dev".to_owned()
}

impl HubbleConfig {
    /// The name in the certificate of a node's agent.
    #[must_use]
    pub fn server_name_of(&self, node: &str) -> String {
        self.server_name.replace(NODE, &node.replace('.', "-"))
    }

    /// The files; without them the control plane gives the certificate.
    #[must_use]
    pub fn files(&self) -> Option<HubbleFiles<'_>> {
        Some(HubbleFiles {
            certificate: self.certificate.as_ref()?,
            key: self.key.as_ref()?,
            roots: self.roots.as_ref()?,
        })
    }

    /// What is wrong with it: the field, and what was expected.
    pub(super) fn check(&self, control_plane: Option<ControlPlaneKind>) -> Result<(), Wrong> {
        let paths = [
            ("hubble.certificate", &self.certificate),
            ("hubble.key", &self.key),
            ("hubble.roots", &self.roots),
        ];
        let is_given = paths.iter().any(|(_, path)| path.is_some());
        for (field, path) in paths {
            match path {
                Some(path) if path.is_absolute() => {}
                Some(_) => return Err((field, "expected an absolute path")),
                None if is_given => {
                    return Err((
                        field,
                        "expected 'certificate', 'key' and 'roots', or none of them",
                    ));
                }
                None => {}
            }
        }
        if !is_given {
            self.check_given_by(control_plane)?;
        }
        if self.clients.is_empty() {
            return Err((
                "hubble.clients",
                "expected at least one name: nobody else may ask",
            ));
        }
        let named = |name: &str| rustls_pki_types::DnsName::try_from(name).is_ok();
        if !self
            .clients
            .iter()
            .all(|client| named(client.name.trim_start_matches("*.")))
        {
            return Err(("hubble.clients", "expected DNS names"));
        }
        if !named(&self.server_name_of("node")) {
            return Err((
                "hubble.serverName",
                "expected a DNS name, with '*' for the node's name",
            ));
        }
        Ok(())
    }

    fn check_given_by(&self, control_plane: Option<ControlPlaneKind>) -> Result<(), Wrong> {
        match control_plane {
            Some(ControlPlaneKind::Weir) => {}
            Some(ControlPlaneKind::Istiod) => {
                return Err((
                    "hubble.certificate",
                    "expected 'certificate', 'key' and 'roots': istiod gives no certificates for this port",
                ));
            }
            None => {
                return Err((
                    "hubble.certificate",
                    "expected 'certificate', 'key' and 'roots': without 'controlPlane' nobody gives one",
                ));
            }
        }
        if self.server_name != default_server_name() {
            return Err((
                "hubble.serverName",
                "expected none: the control plane's certificate is for '*.hubble.weir.dev'",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn check(more: Value, control_plane: Option<ControlPlaneKind>) -> Result<(), Wrong> {
        let mut section = json!({ "clients": [{ "name": "relay.hubble.weir.dev" }] });
        for (field, value) in more.as_object().unwrap() {
            section[field] = value.clone();
        }
        let config: HubbleConfig = serde_json::from_value(section).unwrap();
        config.check(control_plane)
    }

    #[test]
    fn the_certificate_is_in_three_files_or_comes_from_weirs_own_control_plane() {
        let files = json!({ "certificate": "/c", "key": "/k", "roots": "/r" });
        for kind in [None, Some(ControlPlaneKind::Weir), Some(ControlPlaneKind::Istiod)] {
            assert_eq!(check(files.clone(), kind), Ok(()));
        }
        assert_eq!(check(json!({}), Some(ControlPlaneKind::Weir)), Ok(()));
        for (more, kind, field, said) in [
            (json!({}), None, "hubble.certificate", "without 'controlPlane'"),
            (
                json!({}),
                Some(ControlPlaneKind::Istiod),
                "hubble.certificate",
                "istiod gives no",
            ),
            (
                json!({ "key": "/k", "roots": "/r" }),
                Some(ControlPlaneKind::Weir),
                "hubble.certificate",
                "none of them",
            ),
            (
                json!({ "certificate": "/c" }),
                Some(ControlPlaneKind::Weir),
                "hubble.key",
                "none of them",
            ),
            (
                json!({ "certificate": "c", "key": "/k", "roots": "/r" }),
                None,
                "hubble.certificate",
                "absolute",
            ),
            (
                json!({ "serverName": "n1.example.org" }),
                Some(ControlPlaneKind::Weir),
                "hubble.serverName",
                "expected none",
            ),
        ] {
            let (wrong, expected) = check(more, kind).unwrap_err();
            assert_eq!(wrong, field);
            assert!(expected.contains(said), "{field}: {expected}");
        }
    }
}
