//! Why the control plane cannot be used.

/// Why the control plane cannot be used right now. Trying again later is always safe.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// A file that is needed to connect cannot be read.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file with roots holds none.
    #[error("{path} holds no certificate in PEM form")]
    NoRoots {
        /// The file.
        path: std::path::PathBuf,
    },
    /// The token is none.
    #[error("{path} holds no token")]
    NoToken {
        /// The file.
        path: std::path::PathBuf,
    },
    /// TLS cannot be set up.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The connection cannot be made.
    #[error("cannot connect: {0}")]
    Connect(std::io::Error),
    /// The control plane refused, or ended the call.
    #[error("{}: {}", .0.code(), .0.message())]
    Status(#[from] Box<tonic::Status>),
    /// It did not answer in time.
    #[error("no answer in time")]
    Timeout,
    /// It ended the stream, as it does now and then.
    #[error("the stream ended")]
    Ended,
}

impl ControlError {
    /// Whether it is what was asked that the control plane does not take: asked again alike, it will not take it again. One that
    /// is away, or busy, or does not know the agent, is another matter.
    #[must_use]
    pub fn is_about_request(&self) -> bool {
        use tonic::Code;
        match self {
            Self::Status(status) => {
                matches!(
                    status.code(),
                    Code::InvalidArgument | Code::ResourceExhausted | Code::OutOfRange
                )
            }
            _ => false,
        }
    }
}

impl From<tonic::Status> for ControlError {
    fn from(status: tonic::Status) -> Self {
        Self::Status(Box::new(status))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Status;

    #[test]
    fn only_what_the_control_plane_says_of_the_request_itself_is_about_it() {
        for status in [Status::invalid_argument(""), Status::resource_exhausted("")] {
            assert!(ControlError::from(status).is_about_request());
        }
        for status in [
            Status::unavailable(""),
            Status::unauthenticated(""),
            Status::aborted(""),
        ] {
            assert!(
                !ControlError::from(status).is_about_request(),
                "what is known is not given up for that"
            );
        }
        assert!(!ControlError::Timeout.is_about_request());
        assert!(!ControlError::Ended.is_about_request());
    }
}
