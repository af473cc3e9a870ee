//! What is told once, as an event of Kubernetes.

use std::{net::IpAddr, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1::Event},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::core::ObjectMeta;
use sha2::{Digest as _, Sha256};

use crate::{
    cluster::{ObjectName, Pod},
    compile::Refused,
};

/// Who reports, in events.
const CONTROLLER: &str = "weir.dev/control-plane";
/// Longest note that the API server takes, in bytes.
pub(super) const MAX_NOTE: usize = 1024;
/// What becomes of a policy that is refused, and was to be rehearsed.
pub(super) const REHEARSED: &str = "as it is a dry run, nothing is denied";
/// Why a pod does not have an address that it claims, in one word.
pub(super) const REFUSED: &str = "AddressRefused";
/// So much of the object's name stands in the event's, which may have 253 characters.
const MAX_NAME: usize = 200;
/// Bytes of the hash in an event's name.
const HASH: usize = 8;

/// Something that is to be told once.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Notice {
    /// The object that it is about.
    pub about: Regarding,
    /// Why, in one word.
    pub reason: &'static str,
    /// What was being done.
    pub action: &'static str,
    /// What is wrong, in a sentence.
    pub note: String,
    /// The node of the pod that it is about.
    pub node: Option<Arc<str>>,
}

/// An object that something is told about.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Regarding {
    /// Its API: `v1`, `weir.dev/v1alpha1`.
    pub api_version: String,
    /// Its kind.
    pub kind: &'static str,
    /// Its name.
    pub name: ObjectName,
    /// Its UID.
    pub uid: String,
    /// Its generation, if it has one: a change that is as wrong is told again.
    pub generation: i64,
}

// === impl Notice ===

impl Notice {
    pub(super) fn not_enrolled(name: &ObjectName, pod: &Pod, why: &str) -> Self {
        Self {
            about: Regarding::pod(name, &pod.uid),
            reason: "NotEnrolled",
            action: "Enrol",
            note: format!("The pod is meant to be in the mesh and is not: {why}"),
            node: Some(pod.node.clone()),
        }
    }

    /// A claim that is refused for long: one that is only early, of a pod whose node is not known yet, is not told.
    pub(super) fn claim(name: &ObjectName, pod: &Pod, address: IpAddr, why: &Refused) -> Option<Self> {
        let why = match why {
            Refused::UnknownNode => return None,
            Refused::OutOfRange => "it is not in a range of the pod's node (spec.podCIDRs)".to_owned(),
            Refused::Taken(other) => format!("the older pod {other} has it"),
            Refused::Service(service) => format!("the service {service} has it"),
        };
        Some(Self {
            about: Regarding::pod(name, &pod.uid),
            reason: REFUSED,
            action: "Claim",
            note: format!("The address {address} of the pod's status is not the pod's in the mesh: {why}"),
            node: Some(pod.node.clone()),
        })
    }

    pub(super) fn policy(about: Regarding, problem: &str, dry_run: bool) -> Self {
        let denied = if dry_run {
            REHEARSED
        } else {
            "all that it concerns is denied"
        };
        Self {
            about,
            reason: "PolicyRefused",
            action: "Compile",
            note: format!("The policy is refused, and {denied}: {problem}"),
            node: None,
        }
    }

    /// The event's name. It follows from what is told, so that whoever else tells it finds it told.
    #[must_use]
    pub fn name(&self) -> String {
        let about = &self.about;
        let mut hash = Sha256::new();
        for part in [
            &*about.uid,
            &about.generation.to_string(),
            self.reason,
            &self.note,
        ] {
            hash.update(part);
            hash.update([0]);
        }
        let hash: String = hash
            .finalize()
            .iter()
            .take(HASH)
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let name = cut(&about.name.name, MAX_NAME).trim_end_matches(['.', '-']);
        format!("{name}.{hash}")
    }

    /// The event.
    #[must_use]
    pub fn event(&self, instance: &str, now: Timestamp) -> Event {
        let about = &self.about;
        Event {
            metadata: ObjectMeta {
                name: Some(self.name()),
                namespace: Some(about.name.namespace.to_string()),
                ..ObjectMeta::default()
            },
            action: Some(self.action.to_owned()),
            event_time: Some(MicroTime(now)),
            note: Some(cut(&self.note, MAX_NOTE).to_owned()),
            reason: Some(self.reason.to_owned()),
            regarding: Some(ObjectReference {
                api_version: Some(about.api_version.clone()),
                kind: Some(about.kind.to_owned()),
                name: Some(about.name.name.to_string()),
                namespace: Some(about.name.namespace.to_string()),
                uid: Some(about.uid.clone()),
                ..ObjectReference::default()
            }),
            reporting_controller: Some(CONTROLLER.to_owned()),
            reporting_instance: Some(instance.to_owned()),
            type_: Some("Warning".to_owned()),
            ..Event::default()
        }
    }
}

// === impl Regarding ===

impl Regarding {
    fn pod(name: &ObjectName, uid: &str) -> Self {
        Self {
            api_version: "v1".to_owned(),
            kind: "Pod",
            name: ObjectName {
                namespace: Arc::clone(&name.namespace),
                name: Arc::clone(&name.name),
            },
            uid: uid.to_owned(),
            generation: 0,
        }
    }
}

/// The beginning of a text, in whole characters.
pub(super) fn cut(text: &str, most: usize) -> &str {
    &text[..text.floor_char_boundary(most)]
}
