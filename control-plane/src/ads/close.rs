//! Why a stream ends.

use tonic::Status;

/// The end of a stream. Each but [`Close::Name`] can be answered by connecting again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Close {
    #[error("the client ended the stream")]
    Client,
    #[error("the stream reached its age limit")]
    Age,
    #[error("the server is shutting down: connect to another replica")]
    Shutdown,
    #[error("the stream fell behind: reconnect with initial_resource_versions")]
    Behind,
    #[error("the stream is subscribed to too many names")]
    Names,
    #[error("a resource name is too long")]
    Name,
    #[error("the stream asked for too many unknown types")]
    Types,
    #[error("no request came in time")]
    Silent,
    #[error("a response was not read in time")]
    NotRead,
    #[error("a response was neither accepted nor rejected in time")]
    NotAnswered,
    #[error("the request cannot be read")]
    Malformed,
}

impl Close {
    /// Every one.
    pub(super) const ALL: [Self; 11] = [
        Self::Client,
        Self::Age,
        Self::Shutdown,
        Self::Behind,
        Self::Names,
        Self::Name,
        Self::Types,
        Self::Silent,
        Self::NotRead,
        Self::NotAnswered,
        Self::Malformed,
    ];

    /// For metrics.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Age => "age",
            Self::Shutdown => "shutdown",
            Self::Behind => "behind",
            Self::Names => "too_many_names",
            Self::Name => "name_too_long",
            Self::Types => "unknown_types",
            Self::Silent => "no_request",
            Self::NotRead => "not_read",
            Self::NotAnswered => "not_answered",
            Self::Malformed => "malformed",
        }
    }

    /// What the client is told; nothing if the stream ends cleanly.
    pub(super) fn status(self) -> Option<Status> {
        let text = self.to_string();
        match self {
            Self::Client | Self::Age => None,
            Self::Shutdown => Some(Status::unavailable(text)),
            Self::Behind => Some(Status::aborted(text)),
            Self::Names | Self::Types => Some(Status::resource_exhausted(text)),
            Self::Name | Self::Malformed => Some(Status::invalid_argument(text)),
            Self::Silent | Self::NotRead | Self::NotAnswered => Some(Status::deadline_exceeded(text)),
        }
    }
}
