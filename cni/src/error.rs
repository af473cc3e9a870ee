//! Errors, as a runtime reads them.

use serde_json::json;

/// Why a command failed. The runtime repeats the text to whoever looks at the pod's events.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CniError {
    /// The configuration's version is not one of ours.
    #[error("CNI version {0:?} is not supported: this plugin knows {supported}", supported = crate::config::VERSIONS.join(", "))]
    Version(String),
    /// An environment variable is missing or wrong.
    #[error("{variable}: {problem}")]
    Environment {
        /// Its name.
        variable: &'static str,
        /// What was expected.
        problem: String,
    },
    /// Standard input or a file cannot be read.
    #[error("{0}")]
    Io(String),
    /// Standard input is not JSON of the right form.
    #[error("the configuration on standard input cannot be read: {0}")]
    Decode(String),
    /// A field of the configuration is wrong.
    #[error("the configuration's {field}: {problem}")]
    Config {
        /// The field.
        field: &'static str,
        /// What was expected.
        problem: String,
    },
    /// Trying again is safe, and will do once somebody did what the text says.
    #[error("{0}")]
    TryAgainLater(String),
}

impl CniError {
    /// The code of the specification ("Error" in "Section 5: Result Types").
    #[must_use]
    pub fn code(&self) -> u32 {
        match self {
            Self::Version(_) => 1,
            Self::Environment { .. } => 4,
            Self::Io(_) => 5,
            Self::Decode(_) => 6,
            Self::Config { .. } => 7,
            Self::TryAgainLater(_) => 11,
        }
    }

    /// The object that the specification wants on standard output.
    #[must_use]
    pub fn json(&self, version: &str) -> String {
        let details = match self {
            Self::TryAgainLater(_) => "the runtime tries again by itself",
            _ => "trying again does not help until this is corrected",
        };
        json!({
            "cniVersion": version, "code": self.code(), "msg": format!("weir-cni: {self}"), "details": details,
        })
        .to_string()
    }
}
