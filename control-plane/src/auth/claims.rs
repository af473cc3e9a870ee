//! What the API server says about a token.

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
}

/// The pod that a token is bound to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BoundPod {
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
        }
    }
}

impl AgentAccount {
    /// The pod of an agent's token, if it is one.
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
        if name
            != format!(
                "system:serviceaccount:{}:{}",
                self.namespace, self.service_account
            )
        {
            return Err(Reason::User(name.chars().take(MOST_WORDS).collect()));
        }
        let extra = user.and_then(|user| user.extra.as_ref());
        let one = |key: &str| match extra.and_then(|extra| extra.get(key)).map(Vec::as_slice) {
            Some([value]) if !value.is_empty() => Some(value.clone()),
            _ => None,
        };
        let (Some(name), Some(uid)) = (one(POD_NAME), one(POD_UID)) else {
            return Err(Reason::NotBound);
        };
        Ok(BoundPod {
            name,
            uid,
            node: one(NODE_NAME),
        })
    }
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
