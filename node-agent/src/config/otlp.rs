//! The section of the collector that flows are sent to.

use std::{
    collections::BTreeMap, fmt, net::IpAddr, num::NonZeroU32, path::PathBuf, str::FromStr, time::Duration,
};

use rustls_pki_types::ServerName;
use schemars::JsonSchema;
use serde::Deserialize;
use tonic::metadata::{Ascii, MetadataKey, MetadataValue};

use super::HumanDuration;

/// Bounds of how long one export may take.
const TIMEOUT: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(60));

/// A collector that is sent flows over OTLP/gRPC.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OtlpConfig {
    /// Where it is: `https://HOST:PORT`, or `http://HOST:PORT`, which is refused for others than loopback unless `plaintext` is
    /// set.
    #[schemars(with = "String")]
    pub endpoint: OtlpEndpoint,
    /// PEM file with the roots that its certificate must chain to; required for `https`. Read at each connection.
    #[serde(default)]
    pub roots: Option<PathBuf>,
    /// Whether flows may cross the network in the clear: who talks to whom, for everybody on the way to read.
    #[serde(default)]
    pub plaintext: bool,
    /// Headers that are sent with each export.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// File with more of them, a line `NAME: VALUE` each, as for a token. Read at each export.
    #[serde(default)]
    pub headers_file: Option<PathBuf>,
    /// Send every record, as a log record.
    #[serde(default = "yes")]
    pub logs: bool,
    /// Send every connection that ended or was refused, as a span, and tell servers' agents of the trace.
    #[serde(default)]
    pub spans: bool,
    /// With `spans` one in so many connections, all by default; of those that a client's side sent `traceparent` with, its
    /// word counts.
    #[serde(default = "all")]
    pub sample: NonZeroU32,
    /// How long one export may take, `100ms` to `1m`. What cannot be sent is tried again, and dropped after six times as long.
    #[serde(default = "default_timeout")]
    pub timeout: HumanDuration,
}

/// Scheme, host and port of a collector.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct OtlpEndpoint {
    /// Whether TLS is spoken.
    pub tls: bool,
    /// A name or an address.
    pub host: ServerName<'static>,
    /// The port.
    pub port: u16,
}

// === impl OtlpEndpoint ===

impl OtlpEndpoint {
    /// The host without the brackets of an IPv6 address.
    #[must_use]
    pub fn host(&self) -> String {
        self.host.to_str().into_owned()
    }

    fn is_loopback(&self) -> bool {
        match &self.host {
            ServerName::IpAddress(address) => IpAddr::from(*address).is_loopback(),
            ServerName::DnsName(name) => name.as_ref().eq_ignore_ascii_case("localhost"),
            _ => false,
        }
    }
}

impl FromStr for OtlpEndpoint {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let expected =
            "expected https://HOST:PORT or http://HOST:PORT, as https://collector.monitoring.svc:4317";
        let (scheme, rest) = text.split_once("://").ok_or(expected)?;
        let tls = match scheme {
            "https" => true,
            "http" => false,
            _ => return Err(expected),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = rest.rsplit_once(':').ok_or(expected)?;
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        // Only an IPv6 address has brackets, and none is without.
        if bare.is_some() != host.contains(':') {
            return Err(expected);
        }
        let host = ServerName::try_from(bare.unwrap_or(host)).map_err(|_| expected)?;
        match port.parse() {
            Ok(port) if port != 0 => Ok(Self {
                tls,
                host: host.to_owned(),
                port,
            }),
            _ => Err(expected),
        }
    }
}

impl TryFrom<String> for OtlpEndpoint {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl fmt::Display for OtlpEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        let (host, port) = (self.host(), self.port);
        if host.contains(':') {
            write!(f, "{scheme}://[{host}]:{port}")
        } else {
            write!(f, "{scheme}://{host}:{port}")
        }
    }
}

/// A header as it is sent. `None` for one that cannot be: gRPC's own, one of bytes, or one with other characters.
#[must_use]
pub fn header(name: &str, value: &str) -> Option<(MetadataKey<Ascii>, MetadataValue<Ascii>)> {
    const RESERVED: [&str; 4] = ["te", "content-type", "user-agent", "host"];
    let name = name.to_ascii_lowercase();
    if name.starts_with("grpc-") || RESERVED.contains(&name.as_str()) {
        return None;
    }
    let mut value: MetadataValue<Ascii> = value.parse().ok()?;
    value.set_sensitive(true);
    Some((MetadataKey::from_bytes(name.as_bytes()).ok()?, value))
}

fn yes() -> bool {
    true
}

fn all() -> NonZeroU32 {
    NonZeroU32::MIN
}

fn default_timeout() -> HumanDuration {
    HumanDuration(Duration::from_secs(10))
}

impl OtlpConfig {
    /// What is wrong with it: the field, and what was expected.
    pub(super) fn check(&self) -> Result<(), (&'static str, &'static str)> {
        let Self {
            endpoint, timeout, ..
        } = self;
        if !endpoint.tls && !self.plaintext && !endpoint.is_loopback() {
            let problem =
                "https, or an address on loopback, or 'plaintext: true': flows say who talks to whom";
            return Err(("flows.otlp.endpoint", problem));
        }
        if endpoint.tls && self.roots.is_none() {
            return Err((
                "flows.otlp.roots",
                "a PEM file with the roots of the collector's certificate",
            ));
        }
        for (field, path) in [
            ("flows.otlp.roots", &self.roots),
            ("flows.otlp.headersFile", &self.headers_file),
        ] {
            if path.as_ref().is_some_and(|path| !path.is_absolute()) {
                return Err((field, "an absolute path of a file"));
            }
        }
        if self
            .headers
            .iter()
            .any(|(name, value)| header(name, value).is_none())
        {
            return Err((
                "flows.otlp.headers",
                "names and values of HTTP headers, none of gRPC's own",
            ));
        }
        if !self.logs && !self.spans {
            return Err(("flows.otlp", "logs or spans to send"));
        }
        if timeout.0 < TIMEOUT.0 || timeout.0 > TIMEOUT.1 {
            return Err(("flows.otlp.timeout", "100ms to 1m"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_scheme_a_host_and_a_port() {
        for text in [
            "https://collector.monitoring.svc:4317",
            "http://localhost:4317",
            "http://127.0.0.1:4317",
            "https://[fd00::1]:4317",
        ] {
            assert_eq!(text.parse::<OtlpEndpoint>().unwrap().to_string(), text);
        }
        assert_eq!(
            "https://a:1/".parse::<OtlpEndpoint>().unwrap().to_string(),
            "https://a:1"
        );
        for text in [
            "",
            "collector:4317",
            "ftp://collector:4317",
            "HTTPS://collector:4317",
            "https://collector",
            "https://collector:0",
            "https://collector:65536",
            "https://:4317",
            "https://user@collector:4317",
            "https://collector:4317/v1/logs",
            "https://collector:4317?a=b",
            "https://fd00::1:4317",
            "https://[collector]:4317",
            "https://[fd00::1:4317",
            "https://co llector:4317",
        ] {
            assert!(text.parse::<OtlpEndpoint>().is_err(), "{text}");
        }
    }

    fn check(more: serde_json::Value) -> Option<&'static str> {
        let mut value =
            serde_json::json!({ "endpoint": "https://collector:4317", "roots": "/etc/roots.pem" });
        for (name, own) in more.as_object().unwrap() {
            value[name] = own.clone();
        }
        let config: OtlpConfig = serde_json::from_value(value).unwrap();
        config.check().err().map(|(field, _)| field)
    }

    #[test]
    fn what_would_leak_or_do_nothing_is_refused() {
        use serde_json::json;
        let table = [
            (json!({}), None),
            (json!({ "roots": null }), Some("flows.otlp.roots")),
            (json!({ "roots": "roots.pem" }), Some("flows.otlp.roots")),
            (
                json!({ "endpoint": "http://collector:4317" }),
                Some("flows.otlp.endpoint"),
            ),
            (
                json!({ "endpoint": "http://10.0.0.1:4317" }),
                Some("flows.otlp.endpoint"),
            ),
            (
                json!({ "endpoint": "http://localhost.example:4317" }),
                Some("flows.otlp.endpoint"),
            ),
            (
                json!({ "endpoint": "http://collector:4317", "plaintext": true }),
                None,
            ),
            (json!({ "endpoint": "http://localhost:4317" }), None),
            (json!({ "endpoint": "http://[::1]:4317" }), None),
            (json!({ "headers": { "x-tenant": "a" } }), None),
            (
                json!({ "headers": { "grpc-timeout": "1S" } }),
                Some("flows.otlp.headers"),
            ),
            (json!({ "headers": { "x-bin": "a" } }), Some("flows.otlp.headers")),
            (json!({ "headers": { "x y": "a" } }), Some("flows.otlp.headers")),
            (json!({ "headers": { "x": "a\nb" } }), Some("flows.otlp.headers")),
            (
                json!({ "headersFile": "headers" }),
                Some("flows.otlp.headersFile"),
            ),
            (json!({ "logs": false }), Some("flows.otlp")),
            (json!({ "logs": false, "spans": true }), None),
            (json!({ "timeout": "50ms" }), Some("flows.otlp.timeout")),
            (json!({ "timeout": "2m" }), Some("flows.otlp.timeout")),
        ];
        for (more, expected) in table {
            assert_eq!(check(more.clone()), expected, "{more}");
        }
    }
}
