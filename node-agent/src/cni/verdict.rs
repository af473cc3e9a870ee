//! What the plugin is answered, from what is known of its pod.

use std::time::Duration;

use weir_cni::decide::{Away, Switch};

/// How long a pod must have been known as one outside of the mesh before that is said: its workload and the word that it is to
/// be enrolled come one after the other, in responses of two types.
const SETTLE: Duration = Duration::from_millis(500);
/// The same where something says that it may be in the mesh, or that what is known is of an older pod of its name.
const SETTLE_DOUBTFUL: Duration = Duration::from_secs(3);
/// How long a control plane that is away may take to come back before the decision falls without it.
const SETTLE_AWAY: Duration = Duration::from_secs(2);

/// What is known of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Known {
    /// The agent is not in step with the control plane: what it knows may be old.
    Nothing {
        /// What the namespace and the pod's own annotation say.
        away: Away,
    },
    /// The control plane has not told of it.
    Unheard,
    /// It is in the mesh.
    Wanted {
        /// Whether the kernel has it.
        enrolled: bool,
        /// Why not.
        problem: Option<String>,
        /// Whether its connections are only recorded.
        observed: bool,
    },
    /// There is a workload of its name, and no word that it is to be enrolled.
    Outside {
        /// Its own annotation, if the runtime passes it on.
        switch: Option<Switch>,
        /// Whether the workload has addresses, as one of a pod whose sandbox is only being made has not; or is that of
        /// another pod that is to be enrolled.
        may_be_older: bool,
        /// Whether other pods of its namespace are in the mesh.
        is_namespace_enabled: bool,
    },
}

/// What follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The kernel has it.
    Enrolled,
    /// It is not in the mesh.
    NotInMesh,
    /// It is to be seen; until now for this reason.
    Wait(String),
}

/// Decides, of what has been known for some time.
#[must_use]
pub fn verdict(known: &Known, stable_for: Duration) -> Verdict {
    match known {
        Known::Nothing { away } => match away {
            Away::Start if stable_for >= SETTLE_AWAY => Verdict::NotInMesh,
            _ => Verdict::Wait(
                "weir-agent has no connection to the control plane: the pod waits until it has (`weir status` says why)"
                    .to_owned(),
            ),
        },
        Known::Unheard => {
            Verdict::Wait("the control plane has not told weir-agent of the pod yet: it is tried again".to_owned())
        }
        Known::Wanted { enrolled: true, .. } => Verdict::Enrolled,
        // Worth a moment, so that its first connections are recorded; not that it does not start.
        Known::Wanted { observed: true, .. } if stable_for >= SETTLE_DOUBTFUL => Verdict::NotInMesh,
        Known::Wanted { problem, .. } => Verdict::Wait(match problem {
            Some(problem) => format!("the pod cannot be enrolled: {problem}"),
            None => "the pod is not enrolled yet: it is tried again".to_owned(),
        }),
        Known::Outside {
            switch,
            may_be_older,
            is_namespace_enabled,
        } => {
            let is_meant = match switch {
                Some(Switch::Enabled | Switch::Observe) => true,
                Some(Switch::Disabled) => false,
                None => *is_namespace_enabled,
            };
            let settle = if is_meant || *may_be_older {
                SETTLE_DOUBTFUL
            } else {
                SETTLE
            };
            if stable_for >= settle {
                Verdict::NotInMesh
            } else {
                Verdict::Wait("the control plane is changing what it says of the pod: it is tried again".to_owned())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_starts_when_the_kernel_has_it_or_it_is_surely_outside_of_the_mesh() {
        let outside = |switch, may_be_older, is_namespace_enabled| Known::Outside {
            switch,
            may_be_older,
            is_namespace_enabled,
        };
        let wanted = |enrolled| Known::Wanted {
            enrolled,
            problem: None,
            observed: false,
        };
        let observed = |enrolled, problem| Known::Wanted {
            enrolled,
            problem,
            observed: true,
        };
        let nothing = |away| Known::Nothing { away };
        let never = Duration::from_secs(3600);
        // From when on it is answered, and with what.
        let cases = [
            (wanted(true), Some((Duration::ZERO, Verdict::Enrolled))),
            (wanted(false), None),
            (observed(true, None), Some((Duration::ZERO, Verdict::Enrolled))),
            (
                observed(false, Some("no memory".to_owned())),
                Some((SETTLE_DOUBTFUL, Verdict::NotInMesh)),
            ),
            (Known::Unheard, None),
            (nothing(Away::Wait), None),
            (nothing(Away::Unknown), None),
            (nothing(Away::Start), Some((SETTLE_AWAY, Verdict::NotInMesh))),
            (outside(None, false, false), Some((SETTLE, Verdict::NotInMesh))),
            (
                outside(None, true, false),
                Some((SETTLE_DOUBTFUL, Verdict::NotInMesh)),
            ),
            (
                outside(None, false, true),
                Some((SETTLE_DOUBTFUL, Verdict::NotInMesh)),
            ),
            (
                outside(Some(Switch::Disabled), false, true),
                Some((SETTLE, Verdict::NotInMesh)),
            ),
            (
                outside(Some(Switch::Enabled), false, false),
                Some((SETTLE_DOUBTFUL, Verdict::NotInMesh)),
            ),
        ];
        for (known, answer) in cases {
            let (from, wanted) = answer.map_or((never, None), |(from, wanted)| (from, Some(wanted)));
            if let Some(before) = from.checked_sub(Duration::from_millis(1)) {
                assert!(matches!(verdict(&known, before), Verdict::Wait(_)), "{known:?}");
            }
            if let Some(wanted) = wanted {
                assert_eq!(verdict(&known, from), wanted, "{known:?}");
            }
        }
    }
}
