//! What the API server says about a token.

use std::str::FromStr;

use k8s_openapi::api::authentication::v1::TokenReviewStatus;

use super::reason::Reason;

/// Keys of a user's extra fields (`k8s.io/apiserver/pkg/authentication/serviceaccount`).
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
/// From Kubernetes 1.30.
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
/// Most bytes of the API server's own words that are kept.
const MOST_WORDS: usize = 200;

/// Who agents are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentAccount {
    /// Audiences that tokens may be for, one of them at least.
    pub audiences: Vec<String>,
    /// The agents' namespace.
    pub namespace: String,
    /// Their service account.
    pub service_account: String,
    /// Their DaemonSet.
    pub daemon_set: String,
    /// Other node proxies that are let in as agents are.
    pub trusted: Vec<NodeAccount>,
    /// The service account of relays of flows, in the agents' namespace.
    pub relay_service_account: String,
}

/// The service account of a node proxy of other make, as ztunnel is, and the DaemonSet of the same name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeAccount {
    /// The namespace of both.
    pub namespace: String,
    /// Their name.
    pub name: String,
}

/// Text that names no [`NodeAccount`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected a namespace and a name, as weir-system/ztunnel")]
pub struct BadAccount;

/// Whose pods count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Expected<'a> {
    pub(super) namespace: &'a str,
    pub(super) service_account: &'a str,
    pub(super) daemon_set: &'a str,
}

/// Whose pod a token is bound to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holder {
    /// A node proxy: which of [`AgentAccount::expected`]. The first are the agents.
    Node(usize),
    /// A relay of flows.
    Relay,
}

/// The pod that a token is bound to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BoundPod {
    pub(super) holder: Holder,
    pub(super) name: String,
    pub(super) uid: String,
    /// The node that the token names, if it names one.
    pub(super) node: Option<String>,
}

// === impl AgentAccount ===

impl Default for AgentAccount {
    fn default() -> Self {
        Self {
            audiences: vec!["weir".to_owned()],
            namespace: "weir-system".to_owned(),
            service_account: "weir-agent".to_owned(),
            daemon_set: "weir-agent".to_owned(),
            trusted: Vec::new(),
            relay_service_account: "weir-relay".to_owned(),
        }
    }
}

impl AgentAccount {
    /// The agents, and behind them those that are trusted besides.
    pub(super) fn expected(&self) -> impl Iterator<Item = Expected<'_>> {
        let own = Expected {
            namespace: &self.namespace,
            service_account: &self.service_account,
            daemon_set: &self.daemon_set,
        };
        let trusted = self.trusted.iter().map(|account| Expected {
            namespace: &account.namespace,
            service_account: &account.name,
            daemon_set: &account.name,
        });
        std::iter::once(own).chain(trusted)
    }

    /// The pod of a token that is an agent's, another node proxy's or a relay's.
    pub(super) fn bound_pod(&self, status: &TokenReviewStatus) -> Result<BoundPod, Reason> {
        if status.authenticated != Some(true) {
            let words = status.error.as_deref().unwrap_or_default();
            return Err(Reason::NotAuthenticated(words.chars().take(MOST_WORDS).collect()));
        }
        // A reviewer that knows nothing of audiences leaves them empty, and has then not checked them.
        let audiences = status.audiences.as_deref().unwrap_or_default();
        if !audiences.iter().any(|audience| self.audiences.contains(audience)) {
            return Err(Reason::Audience);
        }
        let user = status.user.as_ref();
        let name = user.and_then(|user| user.username.as_deref()).unwrap_or_default();
        let account = name
            .strip_prefix("system:serviceaccount:")
            .and_then(|account| account.split_once(':'));
        let holder = account.and_then(|(namespace, name)| {
            let node = self
                .expected()
                .position(|own| (own.namespace, own.service_account) == (namespace, name));
            let is_relay = (namespace, name) == (&self.namespace, &self.relay_service_account);
            node.map(Holder::Node).or(is_relay.then_some(Holder::Relay))
        });
        let Some(holder) = holder else {
            return Err(Reason::User(name.chars().take(MOST_WORDS).collect()));
        };
        let extra = user.and_then(|user| user.extra.as_ref());
        let one = |key: &str| match extra.and_then(|extra| extra.get(key)).map(Vec::as_slice) {
            Some([value]) if !value.is_empty() => Some(value.clone()),
            _ => None,
        };
        let (Some(name), Some(uid)) = (one(POD_NAME), one(POD_UID)) else {
            return Err(Reason::NotBound);
        };
        Ok(BoundPod {
            holder,
            name,
            uid,
            node: one(NODE_NAME),
        })
    }
}

// === impl NodeAccount ===

impl FromStr for NodeAccount {
    type Err = BadAccount;

    fn from_str(text: &str) -> Result<Self, BadAccount> {
        match text.split_once('/') {
            Some((namespace, name)) if [namespace, name].into_iter().all(is_name) => Ok(Self {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            }),
            _ => Err(BadAccount),
        }
    }
}

/// Whether it may be the name of an object (RFC 1123): one that is not never matches, and was meant otherwise.
fn is_name(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
    !text.is_empty() && text.bytes().all(inner)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn good() -> Value {
        json!({
            "authenticated": true,
            "audiences": ["weir"],
            "user": {
                "username": "system:serviceaccount:weir-system:weir-agent",
                "extra": {POD_NAME: ["agent-1"], POD_UID: ["uid-1"], NODE_NAME: ["node-1"]},
            },
        })
    }

    fn bound(status: Value) -> Result<BoundPod, Reason> {
        AgentAccount::default().bound_pod(&serde_json::from_value(status).unwrap())
    }

    fn ztunnel() -> AgentAccount {
        AgentAccount {
            trusted: vec!["mesh/ztunnel".parse().unwrap()],
            ..AgentAccount::default()
        }
    }

    #[test]
    fn whoever_is_trusted_besides_is_told_from_the_agents() {
        let of = |account: &AgentAccount, user: &str| {
            let mut status = good();
            status["user"]["username"] = json!(user);
            let bound = account.bound_pod(&serde_json::from_value(status).unwrap());
            bound.map(|bound| bound.holder)
        };
        let refused = |user: &str| Err(Reason::User(user.to_owned()));
        let [agent, other] = [
            "system:serviceaccount:weir-system:weir-agent",
            "system:serviceaccount:mesh:ztunnel",
        ];
        assert_eq!(
            (of(&ztunnel(), agent), of(&ztunnel(), other)),
            (Ok(Holder::Node(0)), Ok(Holder::Node(1)))
        );
        assert_eq!(
            of(&AgentAccount::default(), other),
            refused(other),
            "unless it is named"
        );
        let relay = "system:serviceaccount:weir-system:weir-relay";
        assert_eq!(of(&AgentAccount::default(), relay), Ok(Holder::Relay));
        for user in [
            "system:serviceaccount:mesh:weir-relay",
            "system:serviceaccount:mesh:weir-agent",
            "system:serviceaccount:weir-system:ztunnel",
            "system:serviceaccount:mesh:ztunnel:",
            "mesh:ztunnel",
        ] {
            assert_eq!(of(&ztunnel(), user), refused(user));
        }
    }

    #[test]
    fn a_trusted_account_is_a_namespace_and_a_name() {
        let read = "istio-system/ztunnel".parse::<NodeAccount>().unwrap();
        assert_eq!(
            (read.namespace.as_str(), read.name.as_str()),
            ("istio-system", "ztunnel")
        );
        for text in [
            "",
            "ztunnel",
            "/ztunnel",
            "mesh/",
            "a/b/c",
            "mesh/*",
            "mesh:ztunnel",
            " a/b",
        ] {
            assert_eq!(text.parse::<NodeAccount>(), Err(BadAccount), "{text}");
        }
    }

    #[test]
    fn a_token_of_an_agents_pod_names_the_pod() {
        let pod = bound(good()).unwrap();
        assert_eq!((pod.name.as_str(), pod.uid.as_str()), ("agent-1", "uid-1"));
        assert_eq!(pod.node.as_deref(), Some("node-1"));
        let mut older = good();
        older["user"]["extra"].as_object_mut().unwrap().remove(NODE_NAME);
        assert_eq!(bound(older).unwrap().node, None);
    }

    #[test]
    fn everything_else_is_refused() {
        let stranger = "system:serviceaccount:shop:weir-agent";
        for (pointer, value, expected) in [
            (
                "/authenticated",
                json!(false),
                Reason::NotAuthenticated(String::new()),
            ),
            (
                "/authenticated",
                json!(null),
                Reason::NotAuthenticated(String::new()),
            ),
            ("/audiences", json!(["other"]), Reason::Audience),
            ("/audiences", json!([]), Reason::Audience),
            ("/audiences", json!(null), Reason::Audience),
            (
                "/user/username",
                json!(stranger),
                Reason::User(stranger.to_owned()),
            ),
            (
                "/user/username",
                json!("weir-agent"),
                Reason::User("weir-agent".to_owned()),
            ),
            ("/user", json!({}), Reason::User(String::new())),
            ("/user/extra", json!(null), Reason::NotBound),
            ("/user/extra", json!({POD_NAME: ["agent-1"]}), Reason::NotBound),
            (
                "/user/extra",
                json!({POD_NAME: ["a", "b"], POD_UID: ["u"]}),
                Reason::NotBound,
            ),
            (
                "/user/extra",
                json!({POD_NAME: [""], POD_UID: ["u"]}),
                Reason::NotBound,
            ),
        ] {
            let mut status = good();
            *status.pointer_mut(pointer).unwrap() = value.clone();
            assert_eq!(bound(status), Err(expected), "{pointer} {value}");
        }
    }
}
