//! What becomes of a pod while the agent cannot say it.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// The annotation that switches a pod.
pub const SWITCH: &str = "weir.dev/mesh";
/// Istio's, understood as an alias where ours is absent.
pub const ISTIO_SWITCH: &str = "istio.io/dataplane-mode";

/// What is wanted of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Switch {
    /// In the mesh.
    Enabled,
    /// Its connections are recorded and left alone.
    Observe,
    /// Left alone.
    Disabled,
}

/// A switch of ours with a value that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("its annotation {SWITCH} says '{0}': expected enabled, observe or disabled")]
pub struct UnknownSwitch(pub String);

/// What an agent knew of namespaces when it last had something new to say. Namespaces in neither list are unknown.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct State {
    /// Namespaces with pods in the mesh.
    pub enabled: BTreeSet<String>,
    /// Namespaces of whose pods none is.
    pub disabled: BTreeSet<String>,
}

/// Whether a pod may start without the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Away {
    /// It is not meant to be in the mesh.
    Start,
    /// It is meant to be.
    Wait,
    /// Nobody knows: it waits too.
    Unknown,
}

impl Switch {
    /// What annotations say; ours over Istio's.
    ///
    /// # Errors
    /// When ours is one that nobody knows.
    pub fn of(texts: &BTreeMap<String, String>) -> Result<Option<Self>, UnknownSwitch> {
        if let Some(text) = texts.get(SWITCH) {
            return match text.as_str() {
                "enabled" => Ok(Some(Self::Enabled)),
                "observe" => Ok(Some(Self::Observe)),
                "disabled" => Ok(Some(Self::Disabled)),
                other => Err(UnknownSwitch(other.chars().take(64).collect())),
            };
        }
        Ok(match texts.get(ISTIO_SWITCH).map(String::as_str) {
            Some("ambient") => Some(Self::Enabled),
            Some("none") => Some(Self::Disabled),
            _ => None,
        })
    }
}

/// Whether a pod may start while the agent is away: its own switch, else what was known of its namespace, else whether the
/// namespace is one of those that must start without the mesh.
#[must_use]
pub fn while_away(
    own: &Result<Option<Switch>, UnknownSwitch>,
    namespace: &str,
    state: Option<&State>,
    exclude: &[String],
) -> Away {
    match own {
        Ok(Some(Switch::Enabled)) => return Away::Wait,
        // What is only observed needs no protection.
        Ok(Some(Switch::Observe | Switch::Disabled)) => return Away::Start,
        // It may be a mistyped `enabled`.
        Err(_) => return Away::Unknown,
        Ok(None) => {}
    }
    if let Some(state) = state {
        if state.enabled.contains(namespace) {
            return Away::Wait;
        }
        if state.disabled.contains(namespace) {
            return Away::Start;
        }
    }
    if exclude.iter().any(|own| own == namespace) {
        Away::Start
    } else {
        Away::Unknown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_the_agent_only_pods_start_that_are_known_to_be_outside_of_the_mesh() {
        let state = State {
            enabled: ["shop", "kube-system"].map(str::to_owned).into(),
            disabled: ["legacy"].map(str::to_owned).into(),
        };
        let none = Ok(None);
        let own = |switch| Ok(Some(switch));
        let mistyped = Err(UnknownSwitch("Enabled".to_owned()));
        let cases = [
            (&none, "shop", true, Away::Wait),
            (&none, "legacy", true, Away::Start),
            (&none, "new", true, Away::Unknown),
            (&none, "weir-system", true, Away::Start),
            // What is known goes before what is excluded.
            (&none, "kube-system", true, Away::Wait),
            (&none, "kube-system", false, Away::Start),
            (&none, "shop", false, Away::Unknown),
            (&none, "legacy", false, Away::Unknown),
            (&own(Switch::Enabled), "legacy", true, Away::Wait),
            (&own(Switch::Enabled), "kube-system", false, Away::Wait),
            (&own(Switch::Disabled), "shop", true, Away::Start),
            (&own(Switch::Disabled), "shop", false, Away::Start),
            (&own(Switch::Observe), "shop", true, Away::Start),
            (&mistyped, "legacy", true, Away::Unknown),
        ];
        let exclude = ["kube-system", "weir-system"].map(str::to_owned);
        for (own, namespace, has_state, wanted) in cases {
            let found = while_away(own, namespace, has_state.then_some(&state), &exclude);
            assert_eq!(found, wanted, "{own:?} {namespace} {has_state}");
        }
    }

    #[test]
    fn our_switch_goes_before_istios() {
        let of = |pairs: &[(&str, &str)]| {
            let texts = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
            Switch::of(&texts.collect())
        };
        assert_eq!(of(&[(ISTIO_SWITCH, "ambient")]), Ok(Some(Switch::Enabled)));
        assert_eq!(
            of(&[(ISTIO_SWITCH, "ambient"), (SWITCH, "disabled")]),
            Ok(Some(Switch::Disabled))
        );
        assert_eq!(of(&[(ISTIO_SWITCH, "other")]), Ok(None));
        assert_eq!(of(&[(SWITCH, "")]), Err(UnknownSwitch(String::new())));
    }
}
