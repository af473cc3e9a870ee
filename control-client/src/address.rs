//! Where the control plane is.

use std::{fmt, net::IpAddr, str::FromStr, time::Duration};

use rustls_pki_types::ServerName;
use serde::Deserialize;
use tokio::{net::TcpStream, time::timeout};

/// How long the address of the Service in the environment may take: one that nobody has any more mostly swallows what is sent.
const SERVICE_TIMEOUT: Duration = Duration::from_secs(3);

/// A host and a port.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Address {
    host: String,
    port: u16,
}

// === impl Address ===

impl FromStr for Address {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let expected = "expected a host and a port, as weir-control.weir-system.svc:15012";
        let (host, port) = text.rsplit_once(':').ok_or(expected)?;
        let host = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host);
        ServerName::try_from(host).map_err(|_| expected)?;
        match port.parse() {
            Ok(port) if port != 0 => Ok(Self {
                host: host.to_owned(),
                port,
            }),
            _ => Err(expected),
        }
    }
}

impl Address {
    /// Connects to the Service's address, as the kubelet put it into the environment, or by name. Pods that resolve names may
    /// themselves have to wait until the agent is ready.
    pub(crate) async fn connect(&self) -> std::io::Result<TcpStream> {
        if let Some(address) = self.service(|name| std::env::var(name).ok()) {
            match timeout(SERVICE_TIMEOUT, TcpStream::connect((address, self.port))).await {
                Ok(Ok(stream)) => return Ok(stream),
                // The Service may have been made anew since this agent started.
                _ => tracing::debug!(%address, "the Service's address does not answer"),
            }
        }
        TcpStream::connect((self.host.as_str(), self.port)).await
    }

    /// The name that its certificate must have.
    pub(crate) fn server_name(&self) -> std::io::Result<ServerName<'static>> {
        ServerName::try_from(self.host.clone()).map_err(std::io::Error::other)
    }

    /// The address of the Service of this name, if the host is one: `NAME_SERVICE_HOST` in a pod of its namespace.
    fn service(&self, variable: impl Fn(&str) -> Option<String>) -> Option<IpAddr> {
        let (service, rest) = self.host.split_once('.')?;
        let domain = rest.split_once('.').map(|(_, domain)| domain);
        if !domain.is_some_and(|domain| domain == "svc" || domain.starts_with("svc.")) {
            return None;
        }
        let name = service.to_uppercase().replace('-', "_");
        variable(&format!("{name}_SERVICE_HOST"))?.parse().ok()
    }
}

impl TryFrom<String> for Address {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_services_address_is_found_without_dns() {
        let variable = |name: &str| (name == "WEIR_CONTROL_SERVICE_HOST").then(|| "10.96.0.7".to_owned());
        let service = |text: &str| text.parse::<Address>().unwrap().service(variable);
        let expected = Some("10.96.0.7".parse().unwrap());
        assert_eq!(service("weir-control.weir-system.svc:15012"), expected);
        assert_eq!(
            service("weir-control.weir-system.svc.cluster.local:15012"),
            expected
        );
        for other in [
            "istiod.istio-system.svc:15012",
            "weir-control.example.org:15012",
            "weir-control:1",
            "10.0.0.1:1",
        ] {
            assert_eq!(service(other), None, "{other}");
        }
    }

    #[test]
    fn an_address_is_a_host_and_a_port() {
        for text in [
            "weir-control.weir-system.svc:15012",
            "10.0.0.1:1",
            "[fd00::1]:15012",
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "host",
            "host:",
            "host:0",
            "host:65536",
            ":15012",
            "ho st:1",
            "https://host:1",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }
}
