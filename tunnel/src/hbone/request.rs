//! CONNECT requests: made for a client, parsed for a server.

use std::net::SocketAddr;

use h2::ext::Protocol;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, header::FORWARDED, request::Parts};
use weir_types::{Identity, Reason};

use super::LOOP_PORTS;

/// Longest value of an optional header that is kept, in bytes; a longer one is dropped, since it is a hint only.
/// Eight baggage members of a Kubernetes name each (at most 253 bytes) fit.
pub(crate) const HEADER_LIMIT: usize = 4096;

/// Longest DNS name, in bytes (RFC 1035 section 2.3.4).
const MAX_HOSTNAME: usize = 253;

const BAGGAGE: HeaderName = HeaderName::from_static("baggage");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Where a CONNECT is to lead.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Authority {
    /// An address and port.
    Address(SocketAddr),
    /// A hostname and port, as gateways between networks use.
    Hostname(String, u16),
}

/// Why a request is not one that can be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Not CONNECT.
    #[error("the method is not CONNECT")]
    Method,
    /// Extended CONNECT (RFC 8441), or a path or scheme where there must be none.
    #[error("not a plain CONNECT: it has a protocol, scheme or path")]
    NotPlain,
    /// No authority, or one without port or with a malformed host.
    #[error("the authority is not <address>:<port>")]
    Authority,
    /// A port of the mesh itself.
    #[error("the authority's port is one of the mesh itself")]
    LoopPort,
}

/// A CONNECT request of a verified peer.
#[derive(Debug, Clone)]
pub struct ConnectRequest {
    /// The peer's identity, from its certificate.
    pub peer_identity: Identity,
    /// The peer's address.
    pub peer: SocketAddr,
    /// The address that the peer connected to.
    pub local: SocketAddr,
    /// Where it is to lead.
    pub authority: Authority,
    /// Hints from the peer: never input to policy, never an address to bind.
    pub baggage: Option<HeaderValue>,
    /// RFC 7239; a hint.
    pub forwarded: Option<HeaderValue>,
    /// W3C trace context; a hint.
    pub traceparent: Option<HeaderValue>,
}

/// What a client sends with a CONNECT.
#[derive(Debug, Clone, Default)]
pub struct ConnectHeaders {
    /// `baggage`: `k8s.namespace.name=...,service.name=...`.
    pub baggage: Option<HeaderValue>,
    /// `forwarded`: `for="ip:port"`.
    pub forwarded: Option<HeaderValue>,
    /// `traceparent`.
    pub traceparent: Option<HeaderValue>,
}

// === impl RequestError ===

impl RequestError {
    /// The reason that flows and metrics show.
    #[must_use]
    pub fn reason(self) -> Reason {
        match self {
            Self::Method | Self::NotPlain => Reason::BadRequest,
            Self::Authority => Reason::BadAuthority,
            Self::LoopPort => Reason::LoopPort,
        }
    }

    /// The status of the answer.
    #[must_use]
    pub fn status(self) -> http::StatusCode {
        match self {
            Self::Method | Self::NotPlain | Self::Authority => http::StatusCode::BAD_REQUEST,
            Self::LoopPort => http::StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

// === impl Authority ===

impl Authority {
    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        match self {
            Self::Address(address) => address.port(),
            Self::Hostname(_, port) => *port,
        }
    }
}

impl std::str::FromStr for Authority {
    type Err = RequestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(address) = text.parse::<SocketAddr>() {
            // On the wire an IPv4 address is never in its v4-mapped form, and a scope means nothing to others.
            let canonical = match address {
                SocketAddr::V4(_) => true,
                SocketAddr::V6(v6) => v6.scope_id() == 0 && v6.ip().to_ipv4_mapped().is_none(),
            };
            return if canonical && address.port() != 0 {
                Ok(Self::Address(address))
            } else {
                Err(RequestError::Authority)
            };
        }
        let (host, port) = text.rsplit_once(':').ok_or(RequestError::Authority)?;
        if port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit()) {
            return Err(RequestError::Authority);
        }
        let port: u16 = port.parse().map_err(|_| RequestError::Authority)?;
        if port == 0 || !is_hostname(host) {
            return Err(RequestError::Authority);
        }
        Ok(Self::Hostname(host.to_ascii_lowercase(), port))
    }
}

impl std::fmt::Display for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Hostname(host, port) => write!(f, "{host}:{port}"),
        }
    }
}

/// Letters, digits, hyphens and underscores in labels of 1 to 63 bytes; the last label not all digits, so that a
/// malformed IPv4 address is not taken for a name (RFC 1123 section 2.1).
fn is_hostname(host: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let numeric = |label: &str| label.bytes().all(|b| b.is_ascii_digit());
    host.len() <= MAX_HOSTNAME && host.split('.').all(label) && !host.rsplit('.').next().is_none_or(numeric)
}

/// Checks what can be checked by the request alone.
pub(super) fn parse_authority(parts: &Parts) -> Result<Authority, RequestError> {
    if parts.method != Method::CONNECT {
        return Err(RequestError::Method);
    }
    // h2 puts no path and no scheme into a plain CONNECT's URI (RFC 9113 section 8.5: they must be absent).
    if parts.extensions.get::<Protocol>().is_some() || parts.uri.scheme().is_some() || has_path(&parts.uri) {
        return Err(RequestError::NotPlain);
    }
    let authority: Authority = parts
        .uri
        .authority()
        .ok_or(RequestError::Authority)?
        .as_str()
        .parse()?;
    if LOOP_PORTS.contains(&authority.port()) {
        return Err(RequestError::LoopPort);
    }
    Ok(authority)
}

fn has_path(uri: &Uri) -> bool {
    uri.path_and_query().is_some_and(|path| !path.as_str().is_empty())
}

// === impl ConnectRequest ===

impl ConnectRequest {
    pub(super) fn new(
        headers: &HeaderMap,
        authority: Authority,
        peer_identity: Identity,
        peer: SocketAddr,
        local: SocketAddr,
    ) -> Self {
        let hint = |name: HeaderName| {
            headers
                .get(name)
                .filter(|value| value.len() <= HEADER_LIMIT)
                .cloned()
        };
        Self {
            peer_identity,
            peer,
            local,
            authority,
            baggage: hint(BAGGAGE),
            forwarded: hint(FORWARDED),
            traceparent: hint(TRACEPARENT),
        }
    }

    /// Whether the authority is an address of the connection itself, which is all that a workload's own listener
    /// accepts. v4-mapped local addresses of dual-stack sockets count as IPv4.
    #[must_use]
    pub fn is_for_local_address(&self) -> bool {
        match &self.authority {
            Authority::Address(address) => address.ip() == self.local.ip().to_canonical(),
            Authority::Hostname(..) => false,
        }
    }
}

// === impl ConnectHeaders ===

impl ConnectHeaders {
    /// The request: method, `:authority` and hints alone.
    pub(crate) fn request(&self, authority: &Authority) -> Result<Request<()>, http::Error> {
        let uri = Uri::builder().authority(authority.to_string()).build()?;
        let mut request = Request::builder().method(Method::CONNECT).uri(uri).body(())?;
        let hints = [
            (BAGGAGE, &self.baggage),
            (FORWARDED, &self.forwarded),
            (TRACEPARENT, &self.traceparent),
        ];
        for (name, value) in hints {
            if let Some(value) = value {
                request.headers_mut().insert(name, value.clone());
            }
        }
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorities_are_addresses_or_hostnames_with_a_port() {
        let address = |text: &str| Ok(Authority::Address(text.parse().unwrap()));
        let host = |host: &str, port| Ok(Authority::Hostname(host.to_owned(), port));
        let bad = || Err(RequestError::Authority);
        let table = [
            ("10.0.0.1:80", address("10.0.0.1:80")),
            ("[fd00::1]:80", address("[fd00::1]:80")),
            (
                "web.shop.svc.cluster.local:8080",
                host("web.shop.svc.cluster.local", 8080),
            ),
            ("Web:1", host("web", 1)),
            ("10.0.0.1", bad()),
            ("10.0.0.1:", bad()),
            ("10.0.0.1:0", bad()),
            ("10.0.0.1:65536", bad()),
            ("10.0.0.1:+80", bad()),
            ("10.0.0.256:80", bad()),
            ("10.0.0:80", bad()),
            ("fd00::1:80", bad()),
            ("[fd00::1]", bad()),
            ("[::ffff:10.0.0.1]:80", bad()),
            ("[fe80::1%1]:80", bad()),
            ("user@10.0.0.1:80", bad()),
            ("a..b:80", bad()),
            ("-a:80", bad()),
            (":80", bad()),
            ("", bad()),
        ];
        for (text, expected) in table {
            assert_eq!(text.parse::<Authority>(), expected, "{text}");
        }
    }
}
