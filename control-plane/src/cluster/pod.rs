//! Whether a pod is in the mesh.

use std::{collections::BTreeMap, fmt};

/// The label or annotation that switches a namespace or a pod.
pub const SWITCH: &str = "weir.dev/mesh";
/// Istio's, understood as an alias: `ambient` is `enabled`, `none` is `disabled`.
pub const ISTIO_SWITCH: &str = "istio.io/dataplane-mode";

/// The label of the root namespace that says what holds for pods where neither they nor their namespaces say anything:
/// `observe`, or nothing. That all pods of a cluster are in the mesh is not to be had by one label: it would hold back those
/// that the cluster itself needs.
pub const DEFAULT_SWITCH: &str = "weir.dev/mesh-default";

/// What an operator wants of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Switch {
    /// In the mesh.
    Enabled,
    /// Its connections are recorded and left alone.
    Observe,
    /// Left alone.
    Disabled,
}

/// Why a pod that is meant to be in the mesh is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotEnrolled {
    /// It shares its node's network: its connections cannot be told from the node's.
    HostNetwork,
    /// Its runtime does not use the node's kernel for connections.
    Runtime(String),
}

impl Switch {
    /// What a namespace's labels, or annotations, say of the whole mesh, if it is the root namespace.
    #[must_use]
    pub fn default_of(texts: &BTreeMap<String, String>) -> Option<Self> {
        let text = texts.get(DEFAULT_SWITCH)?;
        (text == "observe").then_some(Self::Observe)
    }

    /// What labels, or annotations, say; ours over Istio's. An unknown value of ours is an error: it may be a mistyped
    /// `enabled`.
    ///
    /// # Errors
    /// The unknown value.
    pub fn of(texts: &BTreeMap<String, String>) -> Result<Option<Self>, String> {
        if let Some(text) = texts.get(SWITCH) {
            return match text.as_str() {
                "enabled" => Ok(Some(Self::Enabled)),
                "observe" => Ok(Some(Self::Observe)),
                "disabled" => Ok(Some(Self::Disabled)),
                other => Err(other.to_owned()),
            };
        }
        Ok(match texts.get(ISTIO_SWITCH).map(String::as_str) {
            Some("ambient") => Some(Self::Enabled),
            Some("none") => Some(Self::Disabled),
            _ => None,
        })
    }
}

/// What holds for a pod: its own switch, else its namespace's, else the mesh's, else nothing is done.
#[must_use]
pub fn live_switch(pod: Option<Switch>, namespace: Option<Switch>, mesh: Option<Switch>) -> Switch {
    pod.or(namespace).or(mesh).unwrap_or(Switch::Disabled)
}

impl fmt::Display for NotEnrolled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HostNetwork => f.write_str(
                "it uses the network of its node (hostNetwork), where its connections cannot be told from the node's",
            ),
            Self::Runtime(class) => write!(
                f,
                "its runtime class '{class}' does not use the node's kernel for connections"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_switch_counts_before_istios_and_an_unknown_value_is_an_error() {
        let of = |pairs: &[(&str, &str)]| {
            let texts = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
            Switch::of(&texts.collect())
        };
        assert_eq!(of(&[]), Ok(None));
        assert_eq!(of(&[(SWITCH, "enabled")]), Ok(Some(Switch::Enabled)));
        assert_eq!(of(&[(SWITCH, "observe")]), Ok(Some(Switch::Observe)));
        assert_eq!(of(&[(ISTIO_SWITCH, "ambient")]), Ok(Some(Switch::Enabled)));
        assert_eq!(
            of(&[(ISTIO_SWITCH, "ambient"), (SWITCH, "disabled")]),
            Ok(Some(Switch::Disabled))
        );
        assert_eq!(of(&[(ISTIO_SWITCH, "none")]), Ok(Some(Switch::Disabled)));
        assert_eq!(of(&[(SWITCH, "Enabled")]), Err("Enabled".to_owned()));
    }

    #[test]
    fn a_pods_own_switch_wins() {
        let namespace = Some(Switch::Enabled);
        let mesh = Some(Switch::Observe);
        assert_eq!(
            live_switch(Some(Switch::Disabled), namespace, mesh),
            Switch::Disabled
        );
        assert_eq!(live_switch(None, namespace, mesh), Switch::Enabled);
        assert_eq!(live_switch(None, None, mesh), Switch::Observe);
        assert_eq!(live_switch(None, None, None), Switch::Disabled);
    }

    #[test]
    fn the_whole_mesh_is_observed_or_nothing_is_said() {
        for (text, expected) in [
            ("observe", Some(Switch::Observe)),
            ("enabled", None),
            ("disabled", None),
            ("", None),
        ] {
            let texts = [(DEFAULT_SWITCH.to_owned(), text.to_owned())].into();
            assert_eq!(Switch::default_of(&texts), expected, "{text}");
        }
    }
}
