//! Whether workloads and policies are of one state of the control plane.

use weir_proto::ResourceType;

/// Up to which revision workloads and policies came, and up to which they must.
///
/// A control plane that says nothing of it, as istiod, is taken at its word: each response is then a state of its own.
#[derive(Debug, Default)]
pub(super) struct Step {
    came: [u64; 2],
    needed: [u64; 2],
}

impl Step {
    /// Takes what a response says of the state that it is of: `<revision> address=<revision> authorization=<revision>`.
    pub(super) fn take(&mut self, kind: ResourceType, version_info: &str) {
        let mut parts = version_info.split(' ');
        let revision = parts.next().and_then(|text| text.parse::<u64>().ok());
        let mut needed = |name: &str| parts.next()?.strip_prefix(name)?.parse::<u64>().ok();
        let (Some(revision), Some(address), Some(authorization)) =
            (revision, needed("address="), needed("authorization="))
        else {
            return;
        };
        match kind {
            ResourceType::Address => self.came[0] = revision,
            ResourceType::Authorization => self.came[1] = revision,
            ResourceType::Pod | ResourceType::Revocations => {}
        }
        self.needed = [self.needed[0].max(address), self.needed[1].max(authorization)];
    }

    /// Whether nothing is missing of the state that one of them is of.
    pub(super) fn is_whole(&self) -> bool {
        self.came
            .iter()
            .zip(self.needed)
            .all(|(came, needed)| *came >= needed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ResourceType::{Address, Authorization, Pod};

    #[test]
    fn workloads_and_policies_of_one_change_are_whole_together() {
        let mut step = Step::default();
        assert!(step.is_whole());
        step.take(Address, "5 address=4 authorization=5");
        assert!(!step.is_whole(), "policies of revision 5 are missing");
        step.take(Pod, "5 address=4 authorization=5");
        assert!(!step.is_whole());
        step.take(Authorization, "6 address=4 authorization=5");
        assert!(step.is_whole());
        step.take(Authorization, "8 address=7 authorization=8");
        assert!(!step.is_whole(), "workloads of revision 7 are missing");
        step.take(Address, "9 address=9 authorization=8");
        assert!(step.is_whole());
    }

    #[test]
    fn who_says_nothing_is_waited_for_by_nobody() {
        let mut step = Step::default();
        for text in [
            "",
            "2026-08-01T00:00:00Z/7",
            "7",
            "x address=1 authorization=2",
            "7 address=1",
        ] {
            step.take(Address, text);
            assert!(step.is_whole(), "{text}");
        }
    }
}
