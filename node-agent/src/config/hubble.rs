//! The section of the port for Hubble's tools.

use std::{net::SocketAddr, path::PathBuf};

use schemars::JsonSchema;
use serde::Deserialize;

/// What stands for the node's name in `serverName`.
const NODE: &str = "*";

/// The port by which relays and Hubble's tools ask for flows.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HubbleConfig {
    /// Address and port; Hubble's tools expect port 4244.
    #[serde(default = "default_address")]
    pub address: SocketAddr,
    /// PEM file with the certificate, followed by its chain. Read again when it changes, as are the others.
    pub certificate: PathBuf,
    /// PEM file with its private key.
    pub key: PathBuf,
    /// PEM file with the roots that clients' certificates must chain to.
    pub roots: PathBuf,
    /// Who may ask; nobody if empty.
    pub clients: Vec<HubbleClient>,
    /// The name in the certificate by which relays know this agent: `*` stands for the node's name, with dashes for its dots.
    #[serde(default = "default_server_name")]
    pub server_name: String,
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

    /// What is wrong with it: the field, and what was expected.
    pub(super) fn check(&self) -> Result<(), (&'static str, &'static str)> {
        let paths = [
            ("hubble.certificate", &self.certificate),
            ("hubble.key", &self.key),
            ("hubble.roots", &self.roots),
        ];
        for (field, path) in paths {
            if !path.is_absolute() {
                return Err((field, "expected an absolute path"));
            }
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
}
