//! Why a caller is not believed.

/// For the log and metrics alone: it would tell an attacker how to do better. Never holds the token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// No `authorization` header.
    #[error("there is no bearer token")]
    NoToken,
    /// More than one `authorization` header: it is not known which another hop would look at.
    #[error("there is more than one authorization header")]
    SeveralTokens,
    /// Not `Bearer`, too long, or not of the form of a JWT.
    #[error("the authorization header holds no service account's token")]
    NotAToken,
    /// The API server does not believe it.
    #[error("the API server does not believe the token: {0:?}")]
    NotAuthenticated(String),
    /// It is for others.
    #[error("the token is not for one of our audiences")]
    Audience,
    /// It is another's.
    #[error("the token is that of {0:?}, who is no agent")]
    User(String),
    /// It may be anybody's who can ask for tokens of the account.
    #[error("the token is not bound to a pod")]
    NotBound,
    /// There is no such pod.
    #[error("there is no pod {0:?}")]
    NoPod(String),
    /// It is a later pod of the same name.
    #[error("the pod {0:?} is another one than the token is bound to")]
    PodUid(String),
    /// The pod ends, or has ended.
    #[error("the pod {0:?} is ending or has ended")]
    PodEnding(String),
    /// The pod is of another account than the token.
    #[error("the pod {0:?} runs as another service account")]
    PodAccount(String),
    /// Somebody made a pod with the agents' account.
    #[error("the pod {0:?} is not one of the agents' DaemonSet")]
    PodOwner(String),
    /// It runs nowhere.
    #[error("the pod {0:?} has no node")]
    NoNode(String),
    /// The token says that the pod is on another node.
    #[error("the token and the pod {0:?} name different nodes")]
    NodeMismatch(String),
}

impl Reason {
    /// All that [`Reason::label`] gives.
    pub(super) const LABELS: [&'static str; 14] = [
        "no_token",
        "several_tokens",
        "not_a_token",
        "not_authenticated",
        "audience",
        "user",
        "not_bound",
        "no_pod",
        "pod_uid",
        "pod_ending",
        "pod_account",
        "pod_owner",
        "no_node",
        "node_mismatch",
    ];

    /// The metric's label.
    pub(super) fn label(&self) -> &'static str {
        match self {
            Self::NoToken => "no_token",
            Self::SeveralTokens => "several_tokens",
            Self::NotAToken => "not_a_token",
            Self::NotAuthenticated(_) => "not_authenticated",
            Self::Audience => "audience",
            Self::User(_) => "user",
            Self::NotBound => "not_bound",
            Self::NoPod(_) => "no_pod",
            Self::PodUid(_) => "pod_uid",
            Self::PodEnding(_) => "pod_ending",
            Self::PodAccount(_) => "pod_account",
            Self::PodOwner(_) => "pod_owner",
            Self::NoNode(_) => "no_node",
            Self::NodeMismatch(_) => "node_mismatch",
        }
    }
}
