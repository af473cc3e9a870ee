//! Where the pod runs that a user names, by the words that `weir explain` understands.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;

/// What a name may mean.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// `namespace/name`, or the workload's uid that ends so.
    Full(String, String),
    /// Of whatever namespace.
    Name(String),
    /// Of the pod's object.
    Uid(String),
    Address(IpAddr),
}

impl Place {
    /// Nothing where it names no pod.
    pub(super) fn parse(text: &str) -> Option<Self> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Some(Self::Address(address.to_canonical()));
        }
        let name = match text.split_once('/') {
            Some(("svc", _)) => return None,
            Some(("pod", name)) => name,
            // `Kubernetes//Pod/shop/web`, the uid of a workload.
            _ => text.split_once("/Pod/").map_or(text, |(_, name)| name),
        };
        match name.split_once('/') {
            Some((namespace, name)) => Some(Self::Full(namespace.to_owned(), name.to_owned())),
            None if is_uuid(name) => Some(Self::Uid(name.to_owned())),
            None => Some(Self::Name(name.to_owned())),
        }
    }

    pub(super) fn namespace(&self) -> Option<&str> {
        match self {
            Self::Full(namespace, _) => Some(namespace),
            _ => None,
        }
    }

    /// The field selector that finds it; the uid is none of the fields that can be selected by.
    pub(super) fn fields(&self) -> Option<String> {
        match self {
            Self::Full(_, name) | Self::Name(name) => Some(format!("metadata.name={name}")),
            Self::Address(address) => Some(format!("status.podIP={address}")),
            Self::Uid(_) => None,
        }
    }

    /// The node of the pods that were found, if it is one.
    pub(super) fn node(&self, pods: &[Pod]) -> Option<String> {
        let mut nodes = pods.iter().filter(|pod| match self {
            Self::Uid(uid) => pod.uid().as_ref() == Some(uid),
            _ => true,
        });
        let node = |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
        let first = node(nodes.next()?)?;
        nodes
            .all(|pod| node(pod).as_ref() == Some(&first))
            .then_some(first)
    }
}

fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.char_indices().all(|(at, c)| match at {
            8 | 13 | 18 | 23 => c == '-',
            _ => c.is_ascii_hexdigit(),
        })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_is_named_as_explain_names_it() {
        let full = || Some(Place::Full("shop".to_owned(), "web".to_owned()));
        let uid = "0f8fad5b-d9cb-469f-a165-70867728950e";
        for (text, expected) in [
            ("shop/web", full()),
            ("pod/shop/web", full()),
            ("Kubernetes//Pod/shop/web", full()),
            ("web", Some(Place::Name("web".to_owned()))),
            ("pod/web", Some(Place::Name("web".to_owned()))),
            (uid, Some(Place::Uid(uid.to_owned()))),
            ("10.0.0.1", Some(Place::Address([10, 0, 0, 1].into()))),
            ("svc/shop/web", None),
        ] {
            assert_eq!(Place::parse(text), expected, "{text}");
        }
    }

    #[test]
    fn a_name_that_pods_of_several_nodes_have_says_nothing() {
        let pod = |uid: &str, node: &str| -> Pod {
            let spec = json!({"containers": [], "nodeName": node});
            serde_json::from_value(json!({"metadata": {"name": "web", "uid": uid}, "spec": spec})).unwrap()
        };
        let pods = [pod("1", "a"), pod("2", "b")];
        let name = Place::Name("web".to_owned());
        assert_eq!(name.node(&pods), None);
        assert_eq!(name.node(&pods[..1]), Some("a".to_owned()));
        assert_eq!(name.node(&[]), None);
        assert_eq!(Place::Uid("2".to_owned()).node(&pods), Some("b".to_owned()));
    }
}
