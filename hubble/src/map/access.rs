//! Who may see the map.

use std::{fmt::Write as _, net::IpAddr, sync::Arc};

use hyper::{
    HeaderMap, StatusCode,
    header::{AUTHORIZATION, COOKIE, HOST, HeaderName},
    http::request::Parts,
};
use sha2::{Digest as _, Sha256};

use crate::{observer::Viewer, tls::Tls};

/// The cookie that a token becomes.
pub(super) const COOKIE_NAME: &str = "weir-map";
/// Characters of a token at least: 16 of base64 are 96 bits, which nobody guesses.
const SHORTEST: usize = 16;
/// Tokens at most: each is looked at with every request, and has a graph of its own each second.
const MOST: usize = 64;
/// Where a browser says that a request comes from (Fetch Metadata).
const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Who may see what.
#[derive(Debug)]
pub struct Access {
    grants: Vec<Grant>,
    by: By,
}

/// By what a grant is had.
#[derive(Debug)]
enum By {
    /// Whoever reaches the port has the only grant: it is on loopback.
    Reaching,
    Token,
    /// Of mutual TLS.
    Certificate(Box<Tls>),
}

#[derive(Debug)]
struct Grant {
    token: [u8; 32],
    cookie: [u8; 32],
    viewer: Viewer,
}

/// Why tokens are not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AccessError {
    /// A line that is not understood.
    #[error(
        "line {0}: expected a token of at least {SHORTEST} letters, digits or any of -._~+/=, and after a blank the \
         namespaces that it is limited to, with commas between them"
    )]
    Line(usize),
    /// The same token twice.
    #[error("line {0}: the token stands in an earlier line")]
    Twice(usize),
    /// None at all.
    #[error("it has no token")]
    Empty,
    /// Too many.
    #[error("it has more than {MOST} tokens")]
    Many,
}

/// What becomes of a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// Served, by this grant.
    Allowed(usize),
    /// The token in its address becomes a cookie with this value.
    Cookie(String),
    Refused(StatusCode, &'static str),
}

// === impl Access ===

impl Access {
    /// Whoever reaches the port sees everything: for loopback.
    #[must_use]
    pub fn open() -> Self {
        let grant = Grant {
            token: [0; 32],
            cookie: [0; 32],
            viewer: Viewer::default(),
        };
        Self {
            grants: vec![grant],
            by: By::Reaching,
        }
    }

    /// Those whose certificate names a client that may ask.
    #[must_use]
    pub fn certificates(tls: Tls) -> Self {
        let tls = tls.for_browsers();
        let mut grants: Vec<Grant> = Vec::new();
        for viewer in tls.viewers() {
            // Who sees the same is told the same.
            if grants.iter().all(|grant| grant.viewer != *viewer) {
                grants.push(Grant {
                    token: [0; 32],
                    cookie: [0; 32],
                    viewer: viewer.clone(),
                });
            }
        }
        Self {
            grants,
            by: By::Certificate(Box::new(tls)),
        }
    }

    /// Those who know a token: one a line, after a blank the namespaces that it is limited to. `#` begins a comment.
    ///
    /// # Errors
    /// When a line is not understood.
    pub fn tokens(text: &str) -> Result<Self, AccessError> {
        let mut grants: Vec<Grant> = Vec::new();
        for (number, line) in (1..).zip(text.lines().map(str::trim)) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let mut words = line.split_whitespace();
            let token = words.next().unwrap_or_default();
            let namespaces = words.next().map(|all| all.split(',').map(str::to_owned));
            let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte);
            let names = namespaces.clone().into_iter().flatten();
            if token.len() < SHORTEST
                || !token.bytes().all(is_token)
                || words.next().is_some()
                || names.into_iter().any(|name| name.is_empty())
            {
                return Err(AccessError::Line(number));
            }
            let grant = Grant {
                token: digest(token),
                cookie: digest(&cookie_of(token)),
                viewer: Viewer {
                    namespaces: namespaces.map(|all| Arc::new(all.collect())),
                },
            };
            if grants.iter().any(|other| other.token == grant.token) {
                return Err(AccessError::Twice(number));
            }
            grants.push(grant);
        }
        match grants.len() {
            0 => Err(AccessError::Empty),
            1..=MOST => Ok(Self {
                grants,
                by: By::Token,
            }),
            _ => Err(AccessError::Many),
        }
    }

    /// What each grant shows.
    pub(super) fn viewers(&self) -> impl Iterator<Item = &Viewer> {
        self.grants.iter().map(|grant| &grant.viewer)
    }

    pub(super) fn viewer(&self, grant: usize) -> &Viewer {
        &self.grants[grant].viewer
    }

    /// What clients must show before anything is asked.
    pub(super) fn tls(&self) -> Option<&Tls> {
        match &self.by {
            By::Certificate(tls) => Some(tls),
            By::Reaching | By::Token => None,
        }
    }

    /// The grant of who showed a certificate.
    pub(super) fn grant(&self, viewer: &Viewer) -> Option<usize> {
        self.grants.iter().position(|grant| grant.viewer == *viewer)
    }

    /// What becomes of a request, by the certificate that was shown, if there are certificates.
    pub(super) fn decide(&self, request: &Parts, shown: Option<usize>) -> Decision {
        if let Some(refused) = elsewhere(&request.headers) {
            return refused;
        }
        if self.tls().is_some() {
            let refused = Decision::Refused(StatusCode::FORBIDDEN, "a certificate is needed\n");
            return shown.map_or(refused, Decision::Allowed);
        }
        if matches!(self.by, By::Reaching) {
            // A name of another site that leads to loopback would have the site's scripts read the answer.
            let named = request.uri.host().is_none_or(is_loopback);
            return match host(&request.headers) {
                Some(host) if named && is_loopback(host) => Decision::Allowed(0),
                _ => Decision::Refused(
                    StatusCode::MISDIRECTED_REQUEST,
                    "the map answers to localhost and addresses of loopback only\n",
                ),
            };
        }
        let refused = Decision::Refused(
            StatusCode::UNAUTHORIZED,
            "a token is needed: in the address as /?token=TOKEN, or as 'Authorization: Bearer TOKEN'\n",
        );
        if let Some(value) = request.headers.get(AUTHORIZATION) {
            let given = value.to_str().ok().and_then(|value| {
                let (scheme, token) = value.split_once(' ')?;
                scheme.eq_ignore_ascii_case("bearer").then_some(token)
            });
            let grant = given.and_then(|token| self.find(token, |grant| &grant.token));
            return grant.map_or(refused, Decision::Allowed);
        }
        let mut parameters = request.uri.query().unwrap_or_default().split('&');
        if let Some(token) = parameters.find_map(|one| one.strip_prefix("token=")) {
            return match self.find(token, |grant| &grant.token) {
                Some(_) if request.uri.path() == "/" => Decision::Cookie(cookie_of(token)),
                _ => refused,
            };
        }
        let cookies = request.headers.get_all(COOKIE).iter();
        let cookies = cookies.filter_map(|value| value.to_str().ok());
        let grant = cookies
            .flat_map(|value| value.split(';'))
            .filter_map(|one| one.trim().strip_prefix(COOKIE_NAME)?.strip_prefix('='))
            .find_map(|value| self.find(value, |grant| &grant.cookie));
        grant.map_or(refused, Decision::Allowed)
    }

    /// Digests are compared, and all of them, whichever is the one: time tells nothing of a token.
    fn find(&self, given: &str, of: impl Fn(&Grant) -> &[u8; 32]) -> Option<usize> {
        let given = digest(given);
        let mut found = None;
        for (number, grant) in self.grants.iter().enumerate() {
            let bytes = given.iter().zip(of(grant));
            if bytes.fold(0, |differs, (one, other)| differs | (one ^ other)) == 0 {
                found = Some(number);
            }
        }
        found
    }
}

/// Another site's page may lead here, but not load what is here: it would take the places of those who look.
fn elsewhere(headers: &HeaderMap) -> Option<Decision> {
    let site = headers.get(FETCH_SITE)?.as_bytes();
    let mode = headers.get("sec-fetch-mode").map(|mode| mode.as_bytes());
    if matches!(site, b"same-origin" | b"none") || mode == Some(b"navigate") {
        return None;
    }
    Some(Decision::Refused(
        StatusCode::FORBIDDEN,
        "not for pages of other sites\n",
    ))
}

fn host(headers: &HeaderMap) -> Option<&str> {
    let mut all = headers.get_all(HOST).iter();
    let host = all.next()?.to_str().ok()?;
    if all.next().is_some() {
        return None;
    }
    let port = host.rfind(':').filter(|at| !host[*at..].contains(']'));
    Some(&host[..port.unwrap_or(host.len())])
}

fn is_loopback(host: &str) -> bool {
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    host.eq_ignore_ascii_case("localhost")
        || address
            .unwrap_or(host)
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

fn digest(text: &str) -> [u8; 32] {
    Sha256::digest(text.as_bytes()).into()
}

/// Not the token itself: a cookie lies about in a browser's files.
fn cookie_of(token: &str) -> String {
    let digest = digest(&format!("weir map cookie {token}"));
    digest.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
