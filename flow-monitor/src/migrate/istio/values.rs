//! Values of Istio's fields, one by one.

use std::net::IpAddr;

use crate::migrate::Settings;

/// What stands in Istio's policies for the mesh's own trust domain, whatever that is.
const OWN: &str = "cluster.local";

/// What a value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Principal,
    Namespace,
    ServiceAccount,
    Cidr,
    Port,
}

/// A value as Weir has it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Translated {
    pub(super) value: String,
    /// What is to be said of it; matches more than the original if so.
    pub(super) wider: Option<String>,
    /// What is to be said of it, where it means the same.
    pub(super) note: Option<String>,
}

/// Reads a value. `may_widen`: where it matches more, less is allowed. `home` is the policy's own namespace.
///
/// # Errors
/// Why there is no such value in Weir.
pub(super) fn translate(
    form: Form,
    text: &str,
    may_widen: bool,
    home: &str,
    settings: &Settings,
) -> Result<Translated, String> {
    let same = |value: String| Translated {
        value,
        wider: None,
        note: None,
    };
    match form {
        Form::Principal => principal(text, may_widen, settings),
        Form::Namespace => {
            let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            wildcard(text, 64, good).map(|()| same(text.to_owned()))
        }
        Form::ServiceAccount => {
            let name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
            let (namespace, account) = text.split_once('/').unwrap_or((home, text));
            let good = !account.is_empty() && account.len() <= 253 && account.chars().all(name);
            if good && !namespace.is_empty() && namespace.chars().all(|c| name(c) && c != '.') {
                return Ok(same(format!("{namespace}/{account}")));
            }
            Err(format!("'{text}' is no service account"))
        }
        Form::Cidr => cidr(text).map(same),
        Form::Port => match text.parse::<u16>() {
            Ok(port) if port != 0 && text.bytes().all(|byte| byte.is_ascii_digit()) => {
                Ok(same(port.to_string()))
            }
            _ => Err(format!("'{text}' is no port")),
        },
    }
}

fn principal(text: &str, may_widen: bool, settings: &Settings) -> Result<Translated, String> {
    let good = |c: char| c.is_ascii_alphanumeric() || "._/-".contains(c);
    let plain = match text.strip_prefix("spiffe://") {
        None => text,
        Some(rest) if may_widen => rest,
        Some(_) => return Err(format!("'{text}': Istio has principals without 'spiffe://'")),
    };
    wildcard(plain, 500, good)?;
    let done =
        |value: String, wider: Option<String>, note: Option<String>| Ok(Translated { value, wider, note });
    if plain.starts_with('*') {
        return done(plain.to_owned(), None, None);
    }
    let own = &settings.trust_domain;
    match plain.split_once('/') {
        Some((domain, rest)) if domain == OWN || domain == own => {
            let note = (domain != own).then(|| format!("'{plain}': {OWN} stands for the mesh's own, {own}"));
            done(format!("{own}/{rest}"), None, note)
        }
        Some((domain, _)) if !may_widen => {
            let note = format!("'{plain}': another trust domain, {domain}: matches identities of it alone");
            done(plain.to_owned(), None, Some(note))
        }
        Some((domain, rest)) if !rest.ends_with('*') => {
            let wider = format!("'{plain}': matches in whatever trust domain, not only in {domain}");
            done(format!("*/{rest}"), Some(wider), None)
        }
        None if !may_widen => done(plain.to_owned(), None, None),
        _ => Err(format!("'{plain}' is of another trust domain")),
    }
}

/// `*` alone, first or last, once, and else these characters.
fn wildcard(text: &str, most: usize, good: fn(char) -> bool) -> Result<(), String> {
    let rest = text.strip_suffix('*').or_else(|| text.strip_prefix('*'));
    let rest = rest.unwrap_or(text);
    if text.is_empty() || text.len() > most || !rest.chars().all(good) {
        return Err(format!("'{text}' is not understood"));
    }
    Ok(())
}

fn cidr(text: &str) -> Result<String, String> {
    let wrong = || format!("'{text}' is no address or block");
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address, Some(length)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().map_err(|_| wrong())?;
    let most = match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => return Err(wrong()),
        IpAddr::V6(_) => 128,
    };
    match length.map(str::parse::<u8>) {
        None => Ok(address.to_string()),
        Some(Ok(length)) if length <= most => Ok(format!("{address}/{length}")),
        Some(_) => Err(wrong()),
    }
}
