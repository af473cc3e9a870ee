//! What the runtime says of the pod, in environment variables.

use std::collections::BTreeMap;

use crate::error::CniError;

/// Longest `CNI_ARGS`: containerd and CRI-O send some 400 bytes.
const MAX_ARGS: usize = 8192;
/// Longest name of an object in Kubernetes: a DNS subdomain (RFC 1123).
const MAX_NAME: usize = 253;
/// Longest container id; containerd's and CRI-O's have 64 characters.
const MAX_CONTAINER: usize = 128;
/// `IFNAMSIZ` without the zero.
const MAX_IFNAME: usize = 15;

/// The pod that a command is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodArgs {
    /// Kubernetes' UID.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// What a command is about in the runtime's terms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// The sandbox's container.
    pub container_id: String,
    /// The interface in it.
    pub ifname: String,
}

fn wrong(variable: &'static str, problem: impl Into<String>) -> CniError {
    CniError::Environment {
        variable,
        problem: problem.into(),
    }
}

impl PodArgs {
    /// From `CNI_ARGS`.
    ///
    /// # Errors
    /// When it is not of the form that the specification gives it, or does not name a pod.
    pub fn parse(text: &str) -> Result<Self, CniError> {
        const VARIABLE: &str = "CNI_ARGS";
        if text.len() > MAX_ARGS {
            return Err(wrong(VARIABLE, format!("expected at most {MAX_ARGS} bytes")));
        }
        let mut pairs = BTreeMap::new();
        for pair in text.split(';').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair
                .split_once('=')
                .ok_or_else(|| wrong(VARIABLE, "expected KEY=VALUE, separated by ';'"))?;
            if pairs.insert(key, value).is_some() {
                return Err(wrong(VARIABLE, format!("expected {key} once")));
            }
        }
        let take = |key: &str, what: &str, is_right: fn(&str) -> bool| match pairs.get(key) {
            Some(value) if is_right(value) => Ok((*value).to_owned()),
            Some(_) => Err(wrong(VARIABLE, format!("expected {what} as {key}"))),
            None => Err(wrong(
                VARIABLE,
                format!("expected {key}: this plugin is for pods of Kubernetes"),
            )),
        };
        Ok(Self {
            uid: take("K8S_POD_UID", "a pod's UID", is_uid)?,
            namespace: take("K8S_POD_NAMESPACE", "a namespace's name", is_name)?,
            name: take("K8S_POD_NAME", "a pod's name", is_name)?,
        })
    }
}

impl Attachment {
    /// From `CNI_CONTAINERID` and `CNI_IFNAME`.
    ///
    /// # Errors
    /// When one is missing, or not of the form that the specification gives it.
    pub fn parse(container_id: Option<String>, ifname: Option<String>) -> Result<Self, CniError> {
        let container_id = container_id
            .filter(|id| is_container_id(id))
            .ok_or_else(|| wrong("CNI_CONTAINERID", "expected a container's id"))?;
        let ifname = ifname
            .filter(|name| is_ifname(name))
            .ok_or_else(|| wrong("CNI_IFNAME", "expected an interface's name"))?;
        Ok(Self { container_id, ifname })
    }
}

/// Whether a text is a pod's UID: a UUID, or the hash of a static pod's manifest.
#[must_use]
pub fn is_uid(text: &str) -> bool {
    (32..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-')
}

/// Whether a text is the name of an object in Kubernetes.
#[must_use]
pub fn is_name(text: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    text.len() <= MAX_NAME && text.split('.').all(label)
}

/// Whether a text is a container's id.
#[must_use]
pub fn is_container_id(text: &str) -> bool {
    text.len() <= MAX_CONTAINER
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

/// Whether a text is an interface's name.
#[must_use]
pub fn is_ifname(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= MAX_IFNAME
        && text != "."
        && text != ".."
        && !text
            .bytes()
            .any(|b| b == b'/' || b == b':' || b.is_ascii_whitespace())
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0b2f5c1e-1111-2222-3333-444455556666";

    #[test]
    fn what_containerd_and_cri_o_send_names_the_pod() {
        let text = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-7d9f-x;K8S_POD_INFRA_CONTAINER_ID=abc;K8S_POD_UID={UID}"
        );
        let pod = PodArgs::parse(&text).unwrap();
        assert_eq!(
            (pod.namespace.as_str(), pod.name.as_str(), pod.uid.as_str()),
            ("shop", "web-7d9f-x", UID)
        );
    }

    #[test]
    fn what_does_not_name_a_pod_is_refused() {
        let good = [
            ("K8S_POD_NAMESPACE", "shop"),
            ("K8S_POD_NAME", "a"),
            ("K8S_POD_UID", UID),
        ];
        let with = |key: &str, value: &str| {
            let pair =
                |(own, known): &(&str, &str)| format!("{own}={}", if *own == key { value } else { known });
            good.iter().map(pair).collect::<Vec<_>>().join(";")
        };
        assert!(PodArgs::parse(&with("", "")).is_ok());
        let long = "a".repeat(254);
        let texts = [
            String::new(),
            "IgnoreUnknown=1".to_owned(),
            with("K8S_POD_NAMESPACE", "../etc"),
            with("K8S_POD_NAMESPACE", ""),
            with("K8S_POD_NAME", "A"),
            with("K8S_POD_NAME", &long),
            with("K8S_POD_UID", "1"),
            with("K8S_POD_UID", &UID.replace('0', "/")),
            with("", "") + ";K8S_POD_UID=" + UID,
            with("", "") + ";junk",
            with("", "") + ";X=" + &"x".repeat(MAX_ARGS),
        ];
        for text in texts {
            let error = PodArgs::parse(&text).unwrap_err();
            assert_eq!(error.code(), 4, "{text}");
        }
    }

    #[test]
    fn ids_and_interfaces_are_those_of_the_specification() {
        let parse = |id: &str, name: &str| Attachment::parse(Some(id.to_owned()), Some(name.to_owned()));
        assert!(parse("abc_1.2-3", "eth0").is_ok());
        for (id, name) in [
            ("", "eth0"),
            ("-a", "eth0"),
            ("a/b", "eth0"),
            ("a", ""),
            ("a", "eth0/1"),
            ("a", ".."),
        ] {
            assert!(parse(id, name).is_err(), "{id} {name}");
        }
        assert!(parse("a", &"x".repeat(16)).is_err());
        assert!(Attachment::parse(None, Some("eth0".to_owned())).is_err());
    }
}
