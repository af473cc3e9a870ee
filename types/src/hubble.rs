//! Names in the certificates of ports that serve flows. They are Weir's own: clients of flows have no SPIFFE identity.

/// The domain of all of them.
pub const DOMAIN: &str = "hubble.weir.dev";
/// A relay's name, at its port as towards agents.
pub const RELAY: &str = "relay.hubble.weir.dev";
/// The domain of clients that are neither.
const CLIENTS: &str = "client.hubble.weir.dev";

/// A name that cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// A node's name that would be that of something else.
    #[error("the name {0:?} is taken")]
    Taken(String),
    /// Not of letters, digits and dashes, or too long.
    #[error("{0:?} is no part of a DNS name: 63 lower-case letters, digits and dashes at most")]
    NoLabel(String),
}

/// Most bytes of a label (RFC 1035 section 2.3.4).
const MOST_LABEL: usize = 63;

/// Whether it is a label as hosts have them, in lower case.
fn is_label(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=MOST_LABEL).contains(&text.len())
        && text.bytes().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// The name of the agent of a node: dashes stand for the dots of the node's name. Nodes whose names differ in that alone have
/// one name.
///
/// # Errors
/// When the node's name does not fit.
pub fn agent(node: &str) -> Result<String, NameError> {
    let label = node.replace('.', "-");
    if !is_label(&label) {
        return Err(NameError::NoLabel(label));
    }
    let name = format!("{label}.{DOMAIN}");
    if name == RELAY || name == CLIENTS {
        return Err(NameError::Taken(label));
    }
    Ok(name)
}

/// Whether it is a name that [`agent`] gives.
#[must_use]
pub fn is_agent(name: &str) -> bool {
    let label = name.strip_suffix(DOMAIN).and_then(|rest| rest.strip_suffix('.'));
    label.is_some_and(|label| agent(label).as_deref() == Ok(name))
}

/// The name of a client that is neither an agent nor a relay, and cannot pose as one.
///
/// # Errors
/// When the name is none.
pub fn client(name: &str) -> Result<String, NameError> {
    if !is_label(name) {
        return Err(NameError::NoLabel(name.to_owned()));
    }
    Ok(format!("{name}.{CLIENTS}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_relays_and_clients_never_have_one_name() {
        assert_eq!(
            agent("ip-10-0-0-1.ec2.internal").unwrap(),
            "ip-10-0-0-1-ec2-internal.hubble.weir.dev"
        );
        for taken in ["relay", "client"] {
            assert_eq!(agent(taken), Err(NameError::Taken(taken.to_owned())));
        }
        assert_eq!(client("relay").unwrap(), "relay.client.hubble.weir.dev");
        for (name, expected) in [
            ("n1.hubble.weir.dev", true),
            ("relay.hubble.weir.dev", false),
            ("a.client.hubble.weir.dev", false),
            ("hubble.weir.dev", false),
            ("n1.hubble.weir.dev.example.org", false),
            ("n1xhubble.weir.dev", false),
            ("*.hubble.weir.dev", false),
        ] {
            assert_eq!(is_agent(name), expected, "{name}");
        }
        // No name of an agent has so many labels.
        assert_eq!(agent("relay.client").unwrap(), "relay-client.hubble.weir.dev");
        for wrong in ["", "*", "a b", "-a", "a-", "A", "a.b", "ä", &"a".repeat(64)] {
            assert!(client(wrong).is_err(), "{wrong}");
        }
        assert!(agent(&"a".repeat(63)).is_ok() && agent(&"a.".repeat(32)).is_err());
    }
}
