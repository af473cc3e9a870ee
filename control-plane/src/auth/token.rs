//! A bearer token in a request's metadata (RFC 6750 section 2.1).

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tonic::metadata::MetadataMap;
use zeroize::Zeroizing;

use super::reason::Reason;

/// Longest token, in bytes: one that is bound to a pod takes 1,200.
const MOST_TOKEN: usize = 8 * 1024;

/// A token that may be one of a service account.
pub(super) struct Token(Zeroizing<String>);

// === impl Token ===

impl Token {
    /// The only token in a request's metadata.
    pub(super) fn of(metadata: &MetadataMap) -> Result<Self, Reason> {
        let mut headers = metadata.get_all("authorization").iter();
        let header = match (headers.next(), headers.next()) {
            (Some(header), None) => header,
            (None, _) => return Err(Reason::NoToken),
            (Some(_), Some(_)) => return Err(Reason::SeveralTokens),
        };
        let (scheme, token) = header
            .to_str()
            .ok()
            .and_then(|text| text.split_once(' '))
            .ok_or(Reason::NotAToken)?;
        // RFC 9110 section 11.1: the scheme is case-insensitive.
        if !scheme.eq_ignore_ascii_case("bearer") || token.len() > MOST_TOKEN || !is_jwt(token) {
            return Err(Reason::NotAToken);
        }
        Ok(Self(Zeroizing::new(token.to_owned())))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// What stands for it where it is remembered.
    pub(super) fn digest(&self) -> [u8; 32] {
        Sha256::digest(self.0.as_bytes()).into()
    }

    /// When it expires, as it says itself: to be asked only after the API server has believed it.
    pub(super) fn expiry(&self) -> Option<Timestamp> {
        #[derive(Deserialize)]
        struct Claims {
            exp: i64,
        }
        let claims = URL_SAFE_NO_PAD.decode(self.0.split('.').nth(1)?).ok()?;
        let claims: Claims = serde_json::from_slice(&claims).ok()?;
        Timestamp::from_second(claims.exp).ok()
    }
}

/// Whether it has the form of a JWT (RFC 7515 section 7.1), which all service accounts' tokens have: what has not need
/// not trouble the API server.
fn is_jwt(text: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty()
            && part
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    text.split('.').count() == 3 && text.split('.').all(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(headers: &[&str]) -> Result<String, Reason> {
        let mut metadata = MetadataMap::new();
        for header in headers {
            metadata.append("authorization", header.parse().unwrap());
        }
        Token::of(&metadata).map(|token| token.as_str().to_owned())
    }

    #[test]
    fn there_must_be_one_token_of_the_right_form() {
        let long = format!("Bearer a.{}.c", "b".repeat(MOST_TOKEN));
        for (headers, expected) in [
            (&["Bearer a.b-_.c"][..], Ok("a.b-_.c")),
            (&["bearer a.b.c"], Ok("a.b.c")),
            (&[], Err(Reason::NoToken)),
            (&["Bearer a.b.c", "Bearer a.b.c"], Err(Reason::SeveralTokens)),
            (&["Basic a.b.c"], Err(Reason::NotAToken)),
            (&["a.b.c"], Err(Reason::NotAToken)),
            (&["Bearer a.b"], Err(Reason::NotAToken)),
            (&["Bearer a..c"], Err(Reason::NotAToken)),
            (&["Bearer a.b.c.d"], Err(Reason::NotAToken)),
            (&["Bearer a.b.c, Bearer a.b.c"], Err(Reason::NotAToken)),
            (&["Bearer  a.b.c"], Err(Reason::NotAToken)),
            (&[&long], Err(Reason::NotAToken)),
        ] {
            assert_eq!(of(headers), expected.map(str::to_owned), "{headers:?}");
        }
    }

    #[test]
    fn a_tokens_expiry_is_read_where_there_is_one() {
        let token = |claims: &str| Token(Zeroizing::new(format!("a.{}.c", URL_SAFE_NO_PAD.encode(claims))));
        let expected = Timestamp::from_second(1_700_000_000).unwrap();
        assert_eq!(token(r#"{"exp":1700000000,"aud":[]}"#).expiry(), Some(expected));
        for claims in [
            "{}",
            r#"{"exp":"soon"}"#,
            "nonsense",
            r#"{"exp":9223372036854775807}"#,
        ] {
            assert_eq!(token(claims).expiry(), None, "{claims}");
        }
    }
}
