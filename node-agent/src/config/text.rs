//! Values that are written as text for a person.

use std::time::Duration;

use serde::{Deserialize, Deserializer, de};

/// A duration as `24h`, `30m` or `10s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, schemars::JsonSchema)]
#[schemars(with = "String", extend("examples" = ["24h", "30m", "10s"]))]
pub struct HumanDuration(pub Duration);

impl<'de> Deserialize<'de> for HumanDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let duration = humantime::parse_duration(&text).map_err(|_| {
            de::Error::custom(format_args!(
                "expected a duration such as 24h, 30m or 10s, not '{text}'"
            ))
        })?;
        Ok(Self(duration))
    }
}
